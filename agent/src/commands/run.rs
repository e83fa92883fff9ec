// SPDX-License-Identifier: Apache-2.0
//! `kube-ipvs run`: starts configuration, store, source, kernel, servers and the sync loop.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, ensure};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::{cleanup, init, plan_start, show_config};
use crate::cli::{ConfigSource, LookArgs, RunArgs};
use crate::config::{Config, host};
use crate::core::loop_state::{LoopState, Question};
use crate::core::model::PerFamily;
use crate::core::model::backoff::Backoff;
use crate::core::model::settings::{RulesMode, Settings};
use crate::core::plan::drain::Drains;
use crate::core::plan::history::History;
use crate::core::plan::retries::Retries;
use crate::core::service::desired::Desired;
use crate::core::service::node_facts::NodeFacts;
use crate::events::throttle::Limits;
use crate::events::{About, EventRequest, EventSink, Reason};
use crate::inbox::Inbox;
use crate::inspect::answers::{Answers, KUBERNETES_API, Setup};
use crate::inspect::socket;
use crate::kernel::ipvs::traffic;
use crate::kernel::linux::LinuxKernel;
use crate::kernel::rules_mode;
use crate::log::{self, Verbosity};
use crate::memory;
use crate::metrics::{Metrics, rest};
use crate::pace::FailurePace;
use crate::probe::Prober;
use crate::reconcile::schedule::Schedule;
use crate::reconcile::{Reconciler, Reporting};
use crate::reload::ConfigReload;
use crate::serve::connections::Connections;
use crate::serve::health::{Health, SharedHealth};
use crate::serve::node_ports::{HealthChecks, NodePorts};
use crate::serve::{self, HttpServer};
use crate::source::client::ApiAccess;
use crate::source::{Source, Timing};
use crate::store::Store;
use crate::trial::{self, Tester};
use crate::watchdog;
use crate::watches;
use crate::words;

/// The limit of connections of other hosts to all health-check node ports together.
const NODE_PORT_CONNECTIONS: usize = 1024;
/// The pauses between tries to open the kernel.
const PAUSES: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));
/// The time before a warning about missing first lists.
const SYNC_NOTICE: Duration = Duration::from_secs(10);

/// Runs the agent until SIGTERM or SIGINT, or the one action that the flags select.
///
/// # Errors
/// Errors that a retry cannot fix.
pub fn run(args: &RunArgs) -> anyhow::Result<()> {
    let ConfigSource { config: path, flags } = &args.source;
    if args.cleanup {
        return cleanup::clean(true, path.as_deref(), flags, false);
    }
    if args.dry_run {
        let (source, objects, master) = (args.source.clone(), args.objects.clone(), args.master.clone());
        return plan_start::follow(&LookArgs { source, objects, master });
    }
    let config = Config::read(path.as_deref(), flags)?;
    if let Some(path) = &args.write_config_to {
        return show_config::write(&config, path);
    }
    let verbosity = log::start(config.log_format, config.verbosity);
    for warning in &config.warnings {
        tracing::warn!("configuration: {warning}");
    }
    let name = host::node_name(&config.hostname_override)?;
    let mut settings = config.node_settings()?;
    let families: Vec<String> = settings.families.iter().map(ToString::to_string).collect();
    let version = env!("CARGO_PKG_VERSION");
    tracing::info!("kube-ipvs {version} starts on node {name}, {}", families.join(" and "));
    choose_rules(&config, &mut settings);
    if args.init_only {
        return init::run(&settings);
    }
    set_oom_score_adj(config.oom_score_adj);
    memory::limit();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.spawn(log::report_suppressed());
    let inbox = Arc::new(Inbox::default());
    let store = Arc::new(Store::new(inbox.clone()));
    let claim = socket::claim()?;
    stop_on_signal(&runtime, inbox.clone())?;
    let changed = watch_config(args, &config, &runtime, inbox.clone())?;
    let metrics = Metrics::new().context("cannot set up metrics")?;
    let (source, events) = source(args, &config, &name, &metrics, &runtime)?;
    source.start(store.clone())?;
    metrics.watch(&store, &events);
    metrics.set_rules_mode(settings.rules);
    if let Some(limit) = config.service_metrics {
        metrics.serve_traffic(limit, traffic::reader())?;
    }
    let reporting =
        start_servers(&config, &settings, &name, (events.clone(), metrics.clone()), verbosity, &runtime)?;
    reporting.health.watch(store.clone());
    notice_slow_lists(store.clone())?;
    let setup = setup(args, &config, &settings, &name);
    let health = reporting.health.clone();
    let answers = Answers {
        inbox: inbox.clone(),
        store: store.clone(),
        health,
        metrics: metrics.clone(),
        setup,
        held: Arc::default(),
    };
    socket::serve(claim, answers)?;
    let schedule = Schedule::new(config.min_sync_period, config.sync_period);
    if let Some(mut kernel) = open_kernel(&settings, &inbox, &events, &reporting.health) {
        kernel.observe_flows(metrics.proxy.flow_observer());
        kernel.check_scheduler(&settings.scheduler)?;
        let woken = inbox.clone();
        kernel.wake(Arc::new(move || woken.wake()));
        let until_synced = watches::start(&kernel, settings.rules, &inbox)?;
        reporting.health.beat();
        watchdog::start(reporting.health.clone(), nix::unistd::gettid(), config.min_sync_period)?;
        let mut reconciler =
            Reconciler::new(kernel, store, settings, &name, config.local_from_node, reporting);
        reconciler.when_ready(until_synced);
        let prober = {
            let (_guard, results) = (runtime.enter(), inbox.clone());
            Prober::start(move |changes| results.checked(changes))
        };
        reconciler.check_endpoints(Box::new(prober));
        reconciler.run(&inbox, schedule);
    }
    tracing::info!(target: log::READY, "stopped; everything stays in the kernel");
    runtime.shutdown_background();
    ensure!(!changed.load(Ordering::Relaxed), "content of the proxy server's configuration file was updated");
    Ok(())
}

/// What the agent tells about its start.
fn setup(args: &RunArgs, config: &Config, settings: &Settings, name: &str) -> Setup {
    Setup {
        node: name.to_owned(),
        config: config.values.document(),
        rules: settings.rules,
        source: match &args.objects {
            Some(path) => path.display().to_string(),
            None => KUBERNETES_API.to_owned(),
        },
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        started: SystemTime::now(),
    }
}

/// Chooses what sets and rules are made of, if the configuration leaves it to the node.
fn choose_rules(config: &Config, settings: &mut Settings) {
    if config.chooses_rules {
        let why = rules_mode::choose(settings);
        tracing::info!("sets and rules: {} (kubeIPVS.rules: auto: {why})", settings.rules);
    } else if settings.rules != RulesMode::default() {
        tracing::info!("sets and rules: {} (kubeIPVS.rules)", settings.rules);
    }
}

/// Starts the HTTP servers; the result is for the sync loop.
fn start_servers(
    config: &Config,
    settings: &Settings,
    node: &str,
    (events, metrics): (EventSink, Metrics),
    verbosity: Verbosity,
    runtime: &tokio::runtime::Runtime,
) -> anyhow::Result<Reporting> {
    let health = SharedHealth::new(Health::new(&settings.families, config.sync_period * 2));
    let hard_fail = config.bind_address_hard_fail;
    let server = |address, setting, reason| HttpServer { address, setting, reason, hard_fail };
    if let Some(address) = config.healthz_address {
        let server = server(address, "healthzBindAddress", Reason::FailedToStartProxierHealthcheck);
        runtime.spawn(server.run(events.clone(), serve::health_handler(health.clone(), metrics.clone())));
    }
    let server = server(config.metrics_address, "metricsBindAddress", Reason::FailedToStartMetricServer);
    let configz = serde_json::json!({"kubeproxy.config.k8s.io": config.values.document()}).to_string();
    runtime.spawn(server.run(events.clone(), serve::metrics_handler(metrics.clone(), configz, verbosity)));
    let (health_checks, wanted) = watch::channel(HealthChecks::default());
    let node = node.to_owned();
    let connections = Connections::new(NODE_PORT_CONNECTIONS, NODE_PORT_CONNECTIONS / 8);
    let node_ports = NodePorts { wanted, health: health.clone(), events: events.clone(), node, connections };
    runtime.spawn(node_ports.run());
    Ok(Reporting { events, metrics, health, health_checks })
}

/// Stops the agent when its configuration file changes to another valid one; the supervisor starts the agent again.
/// The flag is true when this happened.
fn watch_config(
    args: &RunArgs,
    config: &Config,
    runtime: &tokio::runtime::Runtime,
    inbox: Arc<Inbox>,
) -> anyhow::Result<Arc<AtomicBool>> {
    let changed = Arc::new(AtomicBool::new(false));
    let (Some(path), Some(text)) = (args.source.config.clone(), config.values.file_text.as_deref()) else {
        return Ok(changed);
    };
    let (text, flags, in_force) = (text.to_owned(), args.source.flags.clone(), config.clone());
    let api = args.objects.is_none().then(|| args.master.clone());
    let (has_changed, runtime) = (changed.clone(), runtime.handle().clone());
    std::thread::Builder::new().name("config".to_owned()).spawn(move || {
        let check = |text: &str| {
            let new = Config::parse(text, &flags).map_err(|error| words::chain(&error))?;
            let findings = trial::check(&new, Tester::Agent(&in_force), api.as_ref(), &runtime);
            findings.notes.iter().for_each(|note| tracing::warn!("the new configuration: {note}"));
            if findings.errors.is_empty() { Ok(()) } else { Err(findings.errors.join("; ")) }
        };
        ConfigReload::new(&path, &text, in_force.reload).wait(check);
        tracing::info!("stopping, to be started again with the new configuration");
        has_changed.store(true, Ordering::Relaxed);
        inbox.stop();
    })?;
    Ok(changed)
}

/// Sets the OOM score. A missing privilege is only logged.
fn set_oom_score_adj(value: i64) {
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", value.to_string()) {
        tracing::info!("cannot set oomScoreAdj: {}", words::io_error(&error));
    }
}

fn source(
    args: &RunArgs,
    config: &Config,
    node: &str,
    metrics: &Metrics,
    runtime: &tokio::runtime::Runtime,
) -> anyhow::Result<(Box<dyn Source>, EventSink)> {
    if let Some(path) = &args.objects {
        let source = super::file_source(config, path, node)?;
        tracing::info!(path = %path.display(), "reading objects from files");
        return Ok((Box::new(source), EventSink::log_only()));
    }
    let access = ApiAccess::new(&config.kubeconfig, args.master.clone());
    let api = runtime.block_on(access.client(Arc::new(metrics.clone()), Timing::default().answer))?;
    let to = metrics.clone();
    runtime.spawn(rest::follow_version(api.client.clone(), move |version| to.set_kubernetes(version)));
    let events = EventSink::to_api(api.client.clone(), node, runtime.handle(), Limits::default());
    Ok((Box::new(super::api_source(config, api, node, runtime)), events))
}

/// Opens the kernel, with retries while a module or a privilege is missing; `None` on a stop signal.
fn open_kernel(
    settings: &Settings,
    inbox: &Inbox,
    events: &EventSink,
    health: &SharedHealth,
) -> Option<LinuxKernel> {
    let start = Instant::now();
    let mut pauses = PAUSES;
    let mut pace = FailurePace::default();
    loop {
        match LinuxKernel::open(settings) {
            Ok(kernel) => {
                health.with(|health| health.kernel_problem = None);
                return Some(kernel);
            }
            Err(error) => {
                let why = words::chain(&error);
                health.with(|health| health.kernel_problem = Some(why.clone()));
                let now = start.elapsed();
                if let Some(count) = pace.failed(&why, now) {
                    let state = match count {
                        0 => "Services are not served on this node; retried until it works".to_owned(),
                        _ => format!("still failing after {}, {count} more tries", words::time(now)),
                    };
                    tracing::error!("{why}; {state}");
                }
                let message = format!("Services are not served on this node: {why}");
                events.send([EventRequest { about: About::Node, reason: Reason::KernelNotUsable, message }]);
            }
        }
        let until = Instant::now() + pauses.next_pause();
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            let mail = inbox.wait(Some(left));
            if mail.stop {
                return None;
            }
            answer_without_kernel(settings, mail.questions, start.elapsed());
        }
    }
}

/// Answers questions while the kernel cannot be used: nothing is known of it, and nothing is wanted yet.
fn answer_without_kernel(settings: &Settings, questions: Vec<Question>, now: Duration) {
    let (node, desired, retries) = (NodeFacts::default(), Desired::default(), Retries::default());
    let (drains, history, dead) = (Drains::default(), History::default(), BTreeSet::new());
    let state = LoopState {
        settings,
        node: &node,
        pod_cidrs: PerFamily::default(),
        desired: &desired,
        observed: None,
        retries: &retries,
        drains: &drains,
        history: &history,
        dead: &dead,
        is_whole: false,
        now,
    };
    questions.into_iter().for_each(|question| question(&state));
}

/// Warns once about first lists that take long.
fn notice_slow_lists(store: Arc<Store>) -> std::io::Result<()> {
    let run = move || {
        std::thread::sleep(SYNC_NOTICE);
        if !store.is_synced() {
            let kinds: Vec<String> = store.waiting_for().iter().map(ToString::to_string).collect();
            tracing::warn!(
                "still waiting for the first list of {}; until then changes are not followed",
                kinds.join(", ")
            );
        }
    };
    std::thread::Builder::new().name("notice".to_owned()).spawn(run).map(drop)
}

fn stop_on_signal(runtime: &tokio::runtime::Runtime, inbox: Arc<Inbox>) -> anyhow::Result<()> {
    let _guard = runtime.enter();
    let mut term = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
    let mut int = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;
    runtime.spawn(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        inbox.stop();
    });
    Ok(())
}
