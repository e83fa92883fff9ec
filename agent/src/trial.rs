// SPDX-License-Identifier: Apache-2.0
//! What a start with a configuration would find: the kernel knows the scheduler, the addresses can be listened
//! at, the credentials work. For a file that changed, and for `kube-ipvs config`.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use crate::config::{Config, node};
use crate::kernel::linux::LinuxKernel;
use crate::metrics::Metrics;
use crate::serve::http;
use crate::source::client::ApiAccess;
use crate::source::describe;
use crate::words;

/// How long an API server may take to answer.
const ANSWER: Duration = Duration::from_secs(10);

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// The start would fail, or serve nobody.
    pub wrong: Vec<String>,
    /// It would go on; or it cannot be said from here.
    pub notes: Vec<String>,
}

/// Who tries.
#[derive(Clone, Copy, Debug)]
pub enum Tester<'a> {
    /// The agent that runs with this configuration: what is the same is in use and known to work.
    Agent(&'a Config),
    /// Somebody at a terminal, perhaps on another machine or without privileges.
    Person,
}

impl Tester<'_> {
    fn has<T: PartialEq>(self, of: impl Fn(&Config) -> T, new: &Config) -> bool {
        matches!(self, Tester::Agent(running) if of(running) == of(new))
    }
}

/// Tries everything. `master`: the flag that replaces the API server's URL; without `api` the objects come
/// from files.
pub fn check(
    config: &Config,
    tester: Tester<'_>,
    api: Option<&Option<String>>,
    runtime: &tokio::runtime::Handle,
) -> Findings {
    let mut findings = Findings::default();
    if let Err(error) = node::node_name(&config.hostname_override) {
        findings.wrong.push(words::chain(&error));
    }
    check_scheduler(config, tester, &mut findings);
    // Listeners belong to a runtime.
    let entered = runtime.enter();
    check_address("healthzBindAddress", |c| c.healthz_address, config, tester, &mut findings);
    check_address("metricsBindAddress", |c| Some(c.metrics_address), config, tester, &mut findings);
    drop(entered);
    if let Some(master) = api {
        check_api(config, tester, master, runtime, &mut findings);
    }
    findings
}

fn check_scheduler(config: &Config, tester: Tester<'_>, findings: &mut Findings) {
    if tester.has(|c| c.scheduler.clone(), config) {
        return;
    }
    let settings = match config.settings() {
        Ok(settings) => settings,
        Err(error) => return findings.wrong.push(words::chain(&error)),
    };
    match (LinuxKernel::open(&settings), tester) {
        (Ok(mut kernel), _) => {
            if let Err(error) = kernel.check_scheduler(&settings.scheduler) {
                findings.wrong.push(words::chain(&error));
            }
        }
        (Err(error), Tester::Agent(_)) => findings.wrong.push(words::chain(&error)),
        (Err(error), Tester::Person) => {
            findings.notes.push(format!("ipvs.scheduler was not tried here: {}", words::chain(&error)));
        }
    }
}

fn check_address(
    field: &str,
    of: impl Fn(&Config) -> Option<SocketAddr>,
    config: &Config,
    tester: Tester<'_>,
    findings: &mut Findings,
) {
    let Some(address) = of(config).filter(|_| !tester.has(&of, config)) else { return };
    let Err(error) = http::listen(address, false) else { return };
    let message = format!("{field}: cannot listen at {address}: {}", words::io_error(&error));
    match tester {
        // The agent that runs has it.
        Tester::Person if error.kind() == ErrorKind::AddrInUse => {
            findings.notes.push(format!("{message}; by the agent, if it runs"));
        }
        Tester::Person if !config.bind_address_hard_fail => findings.notes.push(message),
        _ => findings.wrong.push(message),
    }
}

fn check_api(
    config: &Config,
    tester: Tester<'_>,
    master: &Option<String>,
    runtime: &tokio::runtime::Handle,
    findings: &mut Findings,
) {
    let access = ApiAccess::new(&config.kubeconfig, master.clone());
    // A second call would be the only way to fail.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = Metrics::new()
        .map_err(anyhow::Error::from)
        .and_then(|metrics| runtime.block_on(access.client(&metrics, ANSWER)));
    let api = match client {
        Ok(api) => api,
        Err(error) => return findings.wrong.push(words::chain(&error)),
    };
    if tester.has(|c| c.kubeconfig.clone(), config) {
        return;
    }
    if let Err(error) = runtime.block_on(api.client.apiserver_version()) {
        let message = describe(&error, &api.route);
        match tester {
            Tester::Agent(_) => findings.wrong.push(message),
            Tester::Person => findings.notes.push(message),
        }
    }
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
    fn what_is_the_same_is_not_tried_again() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let body = format!("metricsBindAddress: {}\nhostnameOverride: node\n", taken.local_addr().unwrap());
        let running = config(&body);
        assert_eq!(found(&running, Tester::Agent(&running), false), Findings::default());
        let other = config("hostnameOverride: node\n");
        let findings = found(&running, Tester::Agent(&other), false);
        assert_eq!(findings.wrong.len(), 1, "{findings:?}");
        assert!(findings.wrong[0].contains("metricsBindAddress: cannot listen at 127.0.0.1"), "{findings:?}");
        let person = found(&running, Tester::Person, false);
        assert!(person.notes.iter().any(|note| note.contains("by the agent, if it runs")), "{person:?}");
    }

    #[test]
    fn addresses_and_credentials_are_tried() {
        let running = config("hostnameOverride: node\n");
        let elsewhere = config("healthzBindAddress: 192.0.2.1:10256\n");
        let findings = found(&elsewhere, Tester::Agent(&running), false);
        assert!(findings.wrong[0].contains("Cannot assign requested address"), "{findings:?}");
        let missing = config("clientConnection: {kubeconfig: /nonexistent/kubeconfig}\n");
        let findings = found(&missing, Tester::Agent(&running), true);
        assert!(findings.wrong[0].contains("/nonexistent/kubeconfig"), "{findings:?}");
    }
}
