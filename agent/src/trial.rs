// SPDX-License-Identifier: Apache-2.0
//! Checks whether a start with a configuration would work: the kernel has the scheduler, the agent can listen at the
//! addresses, the credentials are valid. For a changed file, and for `kube-ipvs config`.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::config::{Config, host};
use crate::core::model::Protocol;
use crate::kernel::host::sockets;
use crate::kernel::linux::LinuxKernel;
use crate::kernel::rules_mode;
use crate::serve::http;
use crate::source::client::ApiAccess;
use crate::source::describe;
use crate::words;

/// The fields of the addresses that the agent listens at.
const HEALTHZ: &str = "healthzBindAddress";
const METRICS: &str = "metricsBindAddress";
/// Timeout of the request to the API server.
const ANSWER: Duration = Duration::from_secs(10);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// Why the start would fail, or no Service would be programmed.
    pub errors: Vec<String>,
    /// Findings that do not stop a start, or that cannot be checked here.
    pub notes: Vec<String>,
}

#[derive(Clone, Copy, Debug)]
pub enum Tester<'a> {
    /// The agent that runs with this configuration: it does not check values that stay the same.
    Agent(&'a Config),
    /// A user at a terminal, maybe on another machine or without privileges.
    Person,
    /// A user on a node where no agent runs: every port must be free.
    Alone,
}

struct Trial<'a> {
    config: &'a Config,
    tester: Tester<'a>,
    findings: Findings,
}

/// Runs all checks. `api`: the flag `--master`, which replaces the API server's URL; `None`: the objects come from files.
pub fn check(
    config: &Config,
    tester: Tester<'_>,
    api: Option<&Option<String>>,
    runtime: &tokio::runtime::Handle,
) -> Findings {
    let mut trial = Trial { config, tester, findings: Findings::default() };
    trial.take(host::node_name(&config.hostname_override).map(drop));
    let kernel = trial.check_kernel();
    trial.take(kernel);
    trial.check_ports(runtime);
    if let Some(master) = api {
        let api = trial.check_api(master, runtime);
        trial.take(api);
    }
    trial.findings
}

/// Checks only whether the agent can listen at its addresses.
pub fn check_ports(config: &Config, tester: Tester<'_>, runtime: &tokio::runtime::Handle) -> Findings {
    let mut trial = Trial { config, tester, findings: Findings::default() };
    trial.check_ports(runtime);
    trial.findings
}

impl Trial<'_> {
    fn check_ports(&mut self, runtime: &tokio::runtime::Handle) {
        // Listeners belong to a runtime.
        let entered = runtime.enter();
        self.check_address(HEALTHZ, |c| c.healthz_address);
        self.check_address(METRICS, |c| Some(c.metrics_address));
        drop(entered);
        self.check_collision();
    }

    fn take(&mut self, result: anyhow::Result<()>) {
        self.findings.errors.extend(result.err().map(|error| words::chain(&error)));
    }

    /// Whether the running agent has the same value.
    fn is_kept<T: PartialEq>(&self, of: impl Fn(&Config) -> T) -> bool {
        matches!(self.tester, Tester::Agent(running) if of(running) == of(self.config))
    }

    /// What rules mode `auto` chooses here, and whether the kernel has what a changed mode needs and a changed scheduler.
    fn check_kernel(&mut self) -> anyhow::Result<()> {
        let keeps_rules = self.is_kept(|c| (c.chooses_rules, c.settings.rules));
        let keeps_scheduler = self.is_kept(|c| c.settings.scheduler.clone());
        if keeps_rules && keeps_scheduler {
            return Ok(());
        }
        let mut settings = self.config.node_settings()?;
        if self.config.chooses_rules {
            let why = rules_mode::choose(&mut settings);
            if !keeps_rules {
                let mode = settings.rules;
                self.findings.notes.push(format!("kubeIPVS.rules: auto chooses {mode} on this node: {why}"));
            }
        }
        match (LinuxKernel::open(&settings), self.tester) {
            (Ok(mut kernel), _) if !keeps_scheduler => kernel.check_scheduler(&settings.scheduler)?,
            (Ok(_), _) => {}
            (Err(error), Tester::Agent(_)) if keeps_rules => return Err(error),
            (Err(error), Tester::Agent(_)) => {
                return Err(error.context(format!("kubeIPVS.rules: {}", settings.rules)));
            }
            (Err(error), Tester::Person | Tester::Alone) => {
                let why = words::chain(&error);
                self.findings.notes.push(format!("ipvs.scheduler was not checked here: {why}"));
            }
        }
        Ok(())
    }

    fn check_address(&mut self, field: &str, of: impl Fn(&Config) -> Option<SocketAddr>) {
        let Some(address) = of(self.config).filter(|_| !self.is_kept(&of)) else { return };
        let Err(error) = http::listen(address, false) else { return };
        let message = format!("{field}: cannot listen at {address}: {}", words::io_error(&error));
        let is_taken = error.kind() == ErrorKind::AddrInUse;
        match self.tester {
            Tester::Agent(running) if is_taken && only_own_listeners_collide(address, running) => {}
            Tester::Person if is_taken => {
                self.findings.notes.push(format!("{message}; the running agent may use it"));
            }
            Tester::Person if !self.config.bind_address_hard_fail => self.findings.notes.push(message),
            _ => self.findings.errors.push(message),
        }
    }

    /// Both servers at one port: the second one is retried for ever, or ends the agent.
    fn check_collision(&mut self) {
        let of = |c: &Config| (c.healthz_address, c.metrics_address);
        let (Some(healthz), metrics) = of(self.config) else { return };
        if !http::collide(healthz, metrics) {
            return;
        }
        let message = format!(
            "{HEALTHZ} ({healthz}) and {METRICS} ({metrics}) have one port, and only one server can listen at it: \
             give each its own port"
        );
        // A running agent with the same addresses has the same collision.
        let is_usual = matches!(self.tester, Tester::Person) || self.is_kept(of);
        if is_usual && !self.config.bind_address_hard_fail {
            self.findings.notes.push(message);
        } else {
            self.findings.errors.push(message);
        }
    }

    fn check_api(&mut self, master: &Option<String>, runtime: &tokio::runtime::Handle) -> anyhow::Result<()> {
        let access = ApiAccess::new(&self.config.kubeconfig, master.clone());
        let api = runtime.block_on(access.client(Arc::new(()), ANSWER))?;
        if self.is_kept(|c| c.kubeconfig.clone()) {
            return Ok(());
        }
        if let Err(error) = runtime.block_on(api.client.apiserver_version()) {
            let message = describe(&error, &api.route);
            match self.tester {
                Tester::Agent(_) => self.findings.errors.push(message),
                Tester::Person | Tester::Alone => self.findings.notes.push(message),
            }
        }
        Ok(())
    }
}

/// Whether only the agent's own listeners, which end with it, use the address.
fn only_own_listeners_collide(address: SocketAddr, running: &Config) -> bool {
    let ours: Vec<SocketAddr> = [running.healthz_address, Some(running.metrics_address)]
        .into_iter()
        .flatten()
        .filter(|held| http::collide(*held, address))
        .collect();
    // If the kernel does not list the listeners, the configuration decides.
    let listeners = sockets::listeners().unwrap_or_default();
    let is_ours = |listener: &SocketAddr| {
        let both = |held: &SocketAddr| held.ip().is_unspecified() && listener.ip().is_unspecified();
        ours.iter().any(|held| held.ip() == listener.ip() || both(held))
    };
    let mut in_the_way = listeners
        .iter()
        .filter(|port| port.protocol == Protocol::Tcp)
        .map(|port| SocketAddr::new(port.addr, port.port))
        .filter(|listener| http::collide(*listener, address));
    !ours.is_empty() && in_the_way.all(|listener| is_ours(&listener))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::config::ConfigFlags;

    fn config(body: &str) -> Config {
        let head = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
        Config::parse(&format!("{head}{body}"), &ConfigFlags::default()).unwrap()
    }

    fn found(new: &Config, tester: Tester<'_>, api: bool) -> Findings {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        check(new, tester, api.then_some(&None), runtime.handle())
    }

    #[test]
    fn unchanged_values_are_not_checked_again() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let body = format!("metricsBindAddress: {}\nhostnameOverride: node\n", taken.local_addr().unwrap());
        let running = config(&body);
        assert_eq!(found(&running, Tester::Agent(&running), false), Findings::default());
        let other = config("hostnameOverride: node\n");
        let findings = found(&running, Tester::Agent(&other), false);
        assert_eq!(findings.errors.len(), 1, "{findings:?}");
        assert!(
            findings.errors[0].contains("metricsBindAddress: cannot listen at 127.0.0.1"),
            "{findings:?}"
        );
        let alone = found(&running, Tester::Alone, false);
        assert!(alone.errors[0].contains("metricsBindAddress: cannot listen"), "{alone:?}");
        let person = found(&running, Tester::Person, false);
        assert!(person.notes.iter().any(|note| note.contains("the running agent may use it")), "{person:?}");
    }

    /// A configuration with these addresses for health and metrics, and more fields.
    fn listening(healthz: &str, metrics: &str, more: &str) -> Config {
        config(&format!(
            "healthzBindAddress: \"{healthz}\"\nmetricsBindAddress: \"{metrics}\"\nhostnameOverride: node\n{more}"
        ))
    }

    /// Two free ports.
    fn free_ports() -> [u16; 2] {
        let listeners = [(), ()].map(|()| TcpListener::bind("0.0.0.0:0").unwrap());
        listeners.map(|listener| listener.local_addr().unwrap().port())
    }

    #[test]
    fn the_agents_own_listeners_do_not_collide() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _entered = runtime.enter();
        let [a, b] = free_ports();
        let (all, home) = ("0.0.0.0", "127.0.0.1");
        for (healthz, metrics, new_healthz, new_metrics) in [
            ((all, a), (home, b), (all, a), (all, b)),
            ((all, a), (all, b), (all, a), (home, b)),
            ((all, a), (all, b), (home, a), ("[::]", b)),
            ((all, a), (home, b), (all, b), (home, a)),
        ] {
            let at = |(ip, port): (&str, u16)| format!("{ip}:{port}");
            let running = listening(&at(healthz), &at(metrics), "");
            let new = listening(&at(new_healthz), &at(new_metrics), "bindAddressHardFail: true\n");
            let held = [running.healthz_address.unwrap(), running.metrics_address];
            let _held = held.map(|address| http::listen(address, false).unwrap());
            let findings = found(&new, Tester::Agent(&running), false);
            assert_eq!(findings, Findings::default(), "{healthz:?} {metrics:?}");
        }
    }

    #[test]
    fn another_listener_at_the_new_address_collides_although_the_agent_has_the_port_too() {
        let ours = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = ours.local_addr().unwrap().port();
        let running = listening("127.0.0.1", &format!("127.0.0.1:{port}"), "");
        let new = listening("127.0.0.1", &format!("0.0.0.0:{port}"), "");
        assert_eq!(found(&new, Tester::Agent(&running), false), Findings::default());
        let _another = TcpListener::bind(("127.0.0.2", port)).unwrap();
        let findings = found(&new, Tester::Agent(&running), false);
        assert_eq!(findings.errors.len(), 1, "{findings:?}");
        assert!(
            findings.errors[0].starts_with("metricsBindAddress: cannot listen at 0.0.0.0"),
            "{findings:?}"
        );
    }

    #[test]
    fn health_and_metrics_at_one_port_are_refused() {
        let [port, other] = free_ports();
        let at = |ip: &str, port: u16| format!("{ip}:{port}");
        let running = listening(&at("127.0.0.1", port), &at("127.0.0.1", other), "");
        for (healthz, metrics) in
            [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("127.0.0.1", "[::]")]
        {
            let both = |more: &str| listening(&at(healthz, port), &at(metrics, port), more);
            let (soft, hard) = (both(""), both("bindAddressHardFail: true\n"));
            for (new, tester) in [
                (&soft, Tester::Agent(&running)),
                (&hard, Tester::Agent(&running)),
                (&hard, Tester::Agent(&soft)),
                (&hard, Tester::Person),
            ] {
                let findings = found(new, tester, false);
                let errors = &findings.errors[..];
                assert_eq!(errors.len(), 1, "{findings:?}");
                assert!(errors[0].contains(HEALTHZ) && errors[0].contains(METRICS), "{findings:?}");
            }
            // The start uses one of the two.
            for tester in [Tester::Agent(&soft), Tester::Person] {
                let findings = found(&soft, tester, false);
                assert!(findings.errors.is_empty(), "{findings:?}");
                assert!(findings.notes.iter().any(|note| note.contains("have one port")), "{findings:?}");
            }
        }
    }

    #[test]
    fn addresses_and_credentials_are_checked() {
        let running = config("hostnameOverride: node\n");
        let elsewhere = config("healthzBindAddress: 192.0.2.1:10256\n");
        let findings = found(&elsewhere, Tester::Agent(&running), false);
        assert!(findings.errors[0].contains("Cannot assign requested address"), "{findings:?}");
        let missing = config("clientConnection: {kubeconfig: /nonexistent/kubeconfig}\n");
        let findings = found(&missing, Tester::Agent(&running), true);
        assert!(findings.errors[0].contains("/nonexistent/kubeconfig"), "{findings:?}");
    }
}
