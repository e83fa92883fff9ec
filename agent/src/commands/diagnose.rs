// SPDX-License-Identifier: Apache-2.0
//! `kube-ipvs doctor`: collects the facts about this node and prints what the checks find. Writes nothing.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;

use crate::cli::DoctorArgs;
use crate::config::{Config, ConfigFlags, host};
use crate::core::model::settings::RulesMode;
use crate::core::plan::ownership::DEVICE;
use crate::inspect::answers::{AgentRequest, KUBERNETES_API, Setup};
use crate::inspect::doctor::facts::{ApiFacts, DoctorFacts, Intent};
use crate::inspect::doctor::{DoctorReport, NodeFinding, sysctl_paths};
use crate::inspect::owners::{OwnersOf, ServiceOwners};
use crate::inspect::socket::{AskError, ask};
use crate::kernel::host::links;
use crate::kernel::host::node_files::NodeFiles;
use crate::kernel::iptables::iptables_survey::IptablesSurvey;
use crate::kernel::ipvs::ipvs_survey::IpvsSurvey;
use crate::kernel::netfilter::nft_tables;
use crate::kernel::teardown::Teardown;
use crate::source::access_review;
use crate::source::client::ApiAccess;
use crate::trial::{self, Tester};
use crate::words;

const CONFIGURATION: &str = "configuration";
const AGENT: &str = "agent";
/// The timeout of one request to the API server, and of all.
const ANSWER: Duration = Duration::from_secs(10);
const ANSWERS: Duration = Duration::from_secs(30);

/// Prints the findings. The code is 1 if there is an error.
///
/// # Errors
/// The output cannot be written.
pub fn run(args: &DoctorArgs) -> anyhow::Result<ExitCode> {
    let mut known = Vec::new();
    let setup = setup(&mut known);
    let plan = plan(args, &setup, &mut known)?;
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let facts = facts(args, &plan, setup.as_ref().ok(), &runtime);
    let report = DoctorReport::build(known, &plan.intent, &facts);
    super::print_answer(&report, args.answer.output, |layout| report.text(layout))?;
    Ok(ExitCode::from(report.exit_code()))
}

/// What the agent does, or shall do.
struct DoctorPlan {
    intent: Intent,
    /// The configuration is that of the running agent: its files are in the agent's container.
    is_of_agent: bool,
}

/// Asks the running agent how it was started.
fn setup(known: &mut Vec<NodeFinding>) -> Result<Setup, AskError> {
    let setup = ask::<Setup>(&AgentRequest::Setup);
    let unknown = |error: &AskError, why: &str, remedy: &str| {
        NodeFinding::warning(AGENT, format!("the agent could not be asked: {error}"), why, remedy)
    };
    let what_it_made = "what the agent made counts as that of other programs";
    known.push(match &setup {
        Ok(setup) => {
            let Setup { version, pid, rules, .. } = setup;
            NodeFinding::ok(AGENT, format!("kube-ipvs {version} runs (process {pid}), rules mode {rules}"))
        }
        Err(AskError::NoAgent) => NodeFinding::ok(AGENT, "no agent runs in this network namespace"),
        Err(error @ AskError::NotRoot) => unknown(error, what_it_made, "run this command as root"),
        Err(error @ AskError::Stranger(_)) => unknown(
            error,
            "the agent binds the socket when it is free, and `kube-ipvs status` gets no answer until then",
            "stop that process (`ss -xlp | grep kube-ipvs`)",
        ),
        Err(error) => unknown(error, what_it_made, "see the log of the agent and its /livez"),
    });
    setup
}

/// Reads the configuration. An invalid one is a finding, and the defaults are checked.
fn plan(
    args: &DoctorArgs,
    setup: &Result<Setup, AskError>,
    known: &mut Vec<NodeFinding>,
) -> anyhow::Result<DoctorPlan> {
    let source = &args.checked.source;
    let is_given = !source.is_empty();
    let of_agent = setup.as_ref().ok().filter(|_| !is_given);
    let read = match of_agent {
        Some(setup) => setup.config(),
        None => Config::read(source.config.as_deref(), &source.flags),
    };
    let config = match read {
        Ok(config) => {
            let from = match (&source.config, of_agent) {
                (_, Some(_)) => "that of the running agent".to_owned(),
                (Some(path), _) => format!("{} can be used", path.display()),
                _ if is_given => "that of the flags".to_owned(),
                _ => "the defaults, because no file and no flag is given".to_owned(),
            };
            known.push(NodeFinding::ok(CONFIGURATION, from));
            config
        }
        Err(error) => {
            known.push(NodeFinding::error(
                CONFIGURATION,
                words::chain(&error),
                "the agent does not start with it; the checks here use the defaults",
                "correct it, and see `kube-ipvs config`",
            ));
            Config::read(None, &ConfigFlags::default())?
        }
    };
    known.extend(config.warnings.iter().map(|warning| {
        let why = "the field or flag does not do what it says";
        NodeFinding::warning(CONFIGURATION, warning, why, "see `kube-ipvs config` and docs/configuration.md")
    }));
    let mut settings = match config.node_settings() {
        Ok(settings) => settings,
        // The check `kernel` tells it.
        Err(_) => config.settings.clone(),
    };
    let rules = of_agent.map(|setup| setup.rules).or((!config.chooses_rules).then_some(settings.rules));
    settings.rules = rules.unwrap_or_default();
    let agent_runs = !matches!(setup, Err(AskError::NoAgent | AskError::Stranger(_)));
    let intent = Intent { config, settings, rules, agent_runs };
    Ok(DoctorPlan { intent, is_of_agent: of_agent.is_some() })
}

fn facts(args: &DoctorArgs, plan: &DoctorPlan, setup: Option<&Setup>, runtime: &Runtime) -> DoctorFacts {
    let Intent { settings, rules, .. } = &plan.intent;
    let files = NodeFiles::default();
    let release = host::kernel_release().map_err(|error| words::chain(&error));
    // Before anything is asked: the kernel loads modules that are used.
    let modules = files.modules(release.as_deref().unwrap_or_default());
    let paths = settings.sysctls.iter().map(|sysctl| sysctl.path).chain(sysctl_paths());
    let iptables = match rules {
        Some(RulesMode::Nftables) => IptablesSurvey::default(),
        _ => IptablesSurvey::read(&settings.families),
    };
    let found = Teardown::open().map(|mut teardown| teardown.observe(&settings.families));
    let mut found = found.map_err(|error| words::chain(&error));
    if let (Ok((_, unread)), Some(RulesMode::Nftables)) = (&mut found, rules) {
        // Programs of iptables are not needed.
        unread.retain(|line| !line.contains(" rules: "));
    }
    DoctorFacts {
        release,
        modules,
        sysctls: files.sysctls(paths),
        processes: files.processes(),
        capabilities: files.capabilities(),
        is_root: nix::unistd::geteuid().is_root(),
        links: links::read(DEVICE).map_err(|error| words::causes(&error)),
        ipvs: IpvsSurvey::read(),
        iptables,
        nftables: nft_tables::is_available().map_err(|error| words::causes(&error)),
        found,
        owners: setup.and_then(|_| ServiceOwners::ask(&OwnersOf::default()).ok()),
        ports: ports(&plan.intent, setup, runtime),
        api: api(args, plan, setup, runtime),
        time: SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |time| i64::try_from(time.as_secs()).unwrap_or(i64::MAX)),
    }
}

/// Why the agent cannot listen. The ports that the running agent has are free for it.
fn ports(intent: &Intent, setup: Option<&Setup>, runtime: &Runtime) -> Vec<String> {
    let running = setup.and_then(|setup| setup.config().ok());
    let tester = match &running {
        Some(running) => Tester::Agent(running),
        None if intent.agent_runs => Tester::Person,
        None => Tester::Alone,
    };
    trial::check_ports(&intent.config, tester, runtime.handle()).errors
}

fn api(args: &DoctorArgs, plan: &DoctorPlan, setup: Option<&Setup>, runtime: &Runtime) -> ApiFacts {
    let of_agent = setup
        .filter(|setup| plan.is_of_agent && setup.source != KUBERNETES_API && args.checked.master.is_none());
    if let Some(path) = &args.checked.objects {
        return objects(path);
    }
    if let Some(setup) = of_agent {
        return ApiFacts::Files(setup.source.clone());
    }
    let config = &plan.intent.config;
    let access = ApiAccess::new(&config.kubeconfig, args.checked.master.clone());
    runtime.block_on(async {
        let api = match access.client(Arc::new(()), ANSWER).await {
            Ok(api) => api,
            // Without a kubeconfig the agent is a pod, and this process is not.
            Err(error) if !plan.is_of_agent && (access.kubeconfig.is_some() || access.master.is_some()) => {
                return ApiFacts::Failed(words::chain(&error));
            }
            Err(error) => return ApiFacts::Unread(words::chain(&error)),
        };
        let name = host::node_name(&config.hostname_override).unwrap_or_default();
        let wanted = access_review::permissions(config.follows_service_cidrs);
        match timeout(ANSWERS, access_review::survey(&api, &name, &wanted)).await {
            Ok(Ok(survey)) => ApiFacts::Answered(survey),
            Ok(Err(failure)) => ApiFacts::Failed(failure),
            Err(_) => {
                let (server, limit) = (api.route.described(), words::time(ANSWERS));
                ApiFacts::Failed(format!(
                    "{server} did not answer a dozen requests within {limit}; check the load of the API server"
                ))
            }
        }
    })
}

fn objects(path: &Path) -> ApiFacts {
    let shown = path.display();
    match std::fs::metadata(path) {
        Ok(_) => ApiFacts::Files(shown.to_string()),
        Err(error) => {
            let why = words::io_error(&error);
            ApiFacts::Failed(format!("cannot read the objects at {shown}: {why}; check --objects"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use crate::inspect::doctor::Level;

    fn args(flags: &[&str]) -> DoctorArgs {
        let line = ["kube-ipvs", "doctor"].iter().chain(flags).map(std::ffi::OsString::from);
        let Some(Command::Doctor(args)) = Cli::from_args(line).unwrap().command else { panic!() };
        args
    }

    fn setup(config: &str) -> Setup {
        let head = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
        let config = Config::parse(&format!("{head}{config}"), &ConfigFlags::default()).unwrap();
        Setup {
            node: "n1".to_owned(),
            config: config.values.document(),
            rules: RulesMode::Nftables,
            source: "/objects".to_owned(),
            version: "0.1.0".to_owned(),
            pid: 7,
            started: SystemTime::UNIX_EPOCH,
        }
    }

    #[test]
    fn the_configuration_is_that_of_the_file_the_flags_or_the_agent() {
        let agent = Ok(setup("kubeIPVS: {rules: auto}\nipvs: {scheduler: lc}\n"));
        let plan_of = |flags: &[&str], setup: &Result<Setup, AskError>| {
            let mut known = Vec::new();
            let plan = plan(&args(flags), setup, &mut known).unwrap();
            (plan, known)
        };
        let (of_agent, known) = plan_of(&[], &agent);
        assert_eq!(known, plan_of(&[], &agent).1);
        assert_eq!(
            (&*of_agent.intent.settings.scheduler, of_agent.intent.rules),
            ("lc", Some(RulesMode::Nftables))
        );
        assert!(of_agent.intent.agent_runs && of_agent.is_of_agent);
        let (flags, _) = plan_of(&["--ipvs-scheduler=sh"], &agent);
        assert_eq!(
            (&*flags.intent.settings.scheduler, flags.intent.rules),
            ("sh", Some(RulesMode::Iptables))
        );
        assert!(flags.intent.agent_runs && !flags.is_of_agent);
        let (defaults, known) = plan_of(&[], &Err(AskError::NoAgent));
        assert!(!defaults.intent.agent_runs && known[0].what.starts_with("the defaults"), "{known:?}");
        let (wrong, known) = plan_of(&["--config=/nonexistent/config"], &agent);
        assert_eq!(known[0].level, Level::Error, "{known:?}");
        assert_eq!(&*wrong.intent.settings.scheduler, "rr");
    }

    #[test]
    fn the_ports_of_the_running_agent_are_no_finding() {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let flags = [
            &*format!("--metrics-bind-address={address}"),
            "--healthz-bind-address=127.0.0.1",
            "--hostname-override=node",
        ];
        let mut known = Vec::new();
        let plan = plan(&args(&flags), &Err(AskError::NoAgent), &mut known).unwrap();
        let found = ports(&plan.intent, None, &runtime);
        assert!(found.len() == 1 && found[0].contains("metricsBindAddress"), "{found:?}");
        let agent = setup(&format!(
            "metricsBindAddress: {address}\nhealthzBindAddress: 127.0.0.1\nhostnameOverride: node\n"
        ));
        assert_eq!(ports(&plan.intent, Some(&agent), &runtime), [""; 0]);
    }

    #[test]
    fn this_machine_is_read_without_a_crash() {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let args = args(&["--objects=/nonexistent"]);
        let mut known = Vec::new();
        let plan = plan(&args, &Err(AskError::NoAgent), &mut known).unwrap();
        let facts = facts(&args, &plan, None, &runtime);
        assert!(facts.release.is_ok() && facts.links.is_ok());
        assert!(matches!(&facts.api, ApiFacts::Failed(failure) if failure.contains("/nonexistent")));
        let report = DoctorReport::build(known, &plan.intent, &facts);
        assert_eq!(report.exit_code(), 1);
        for finding in report.findings.iter().filter(|finding| finding.level != Level::Ok) {
            assert!(finding.why.is_some() && finding.remedy.is_some(), "{finding:?}");
        }
    }
}
