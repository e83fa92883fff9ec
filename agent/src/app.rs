// SPDX-License-Identifier: Apache-2.0
//! Wiring: configuration, store, source, kernel, loop, signals. No decisions about the data plane.

use std::io::IsTerminal;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use dummy_iface::{Change, Watch};
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::{ListArgs, RunArgs};
use crate::config::{Config, node};
use crate::core::ownership::DEVICE;
use crate::core::settings::Settings;
use crate::events::EventSink;
use crate::inbox::Inbox;
use crate::inspect::list::{Format, Table};
use crate::inspect::owners::{self, Owners};
use crate::kernel::linux::LinuxKernel;
use crate::kernel::nft_watch::RulesWatch;
use crate::kernel::traffic;
use crate::metrics::Metrics;
use crate::reconcile::{Outlets, Reconciler};
use crate::schedule::Schedule;
use crate::serve;
use crate::source::Source;
use crate::source::api::{ApiAccess, ApiSource};
use crate::source::files::FileSource;
use crate::store::Store;

/// Pause between audits for changes to rules.
const RULES_PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// How long the first lists may take before a line says what is missing.
const SYNC_NOTICE: Duration = Duration::from_secs(10);

/// Prints the table of the kernel.
///
/// # Errors
/// When the kernel has no IPVS or may not be asked.
pub fn list(args: &ListArgs) -> anyhow::Result<()> {
    let table = Table::read()?;
    let owners = if args.output == Format::Ipvsadm {
        Owners::default()
    } else {
        Owners::ask().unwrap_or_else(|error| {
            eprintln!("kube-ipvs: Services are not shown: {error:#}");
            Owners::default()
        })
    };
    use std::io::Write as _;
    let text = table.render(args.output, &owners);
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// Runs the agent until SIGTERM or SIGINT.
///
/// # Errors
/// What cannot heal by waiting.
pub fn run(args: &RunArgs) -> anyhow::Result<()> {
    start_log(args.v);
    let config = Config::read(&args.config)?;
    let name = node::node_name(args.hostname_override.as_deref(), &config.hostname_override)?;
    if !config.without_effect.is_empty() {
        tracing::warn!(
            "set in the configuration but without effect in this version: {}",
            config.without_effect.join(", ")
        );
    }
    let settings = config.settings()?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), node = %name, families = ?settings.families, "kube-ipvs");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let inbox = Arc::new(Inbox::default());
    let store = Arc::new(Store::new(inbox.clone()));
    owners::serve(inbox.clone())?;
    stop_on_signal(&runtime, inbox.clone())?;
    let metrics = Metrics::new().context("cannot set up metrics")?;
    let (source, events) = source(args, &config, &name, &runtime)?;
    source.start(store.clone())?;
    metrics.watch_store(&store);
    metrics.watch_events(&events);
    if let Some(limit) = config.service_metrics {
        metrics.serve_traffic(limit, traffic::reader())?;
    }
    runtime.spawn(serve::metrics(config.metrics_address, metrics.clone()));
    notice_slow_lists(store.clone())?;
    let schedule = Schedule::new(config.min_sync_period, config.sync_period);
    let Some(mut kernel) = open_kernel(&settings, &inbox) else { return Ok(()) };
    kernel.count_flows(metrics.flows());
    kernel.check_scheduler(&settings.scheduler)?;
    watch_addresses(&kernel, inbox.clone())?;
    watch_rules(&kernel, inbox.clone())?;
    let outlets = Outlets { events, metrics };
    let mut reconciler = Reconciler::new(kernel, store, settings, &name, config.local_from_node, outlets);
    reconciler.run(&inbox, schedule);
    tracing::info!("stopped; the kernel keeps everything as it is");
    runtime.shutdown_background();
    Ok(())
}

fn source(
    args: &RunArgs,
    config: &Config,
    node: &str,
    runtime: &tokio::runtime::Runtime,
) -> anyhow::Result<(Box<dyn Source>, EventSink)> {
    if let Some(path) = &args.objects {
        tracing::info!(path = %path.display(), "following objects in files");
        return Ok((Box::new(FileSource::new(path, node)), EventSink::log_only()));
    }
    let in_config = Some(config.kubeconfig.clone()).filter(|path| !path.is_empty());
    let access = ApiAccess { kubeconfig: args.kubeconfig.clone().or(in_config), master: args.master.clone() };
    // One TLS provider for the process; a second call would be the only way to fail.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = runtime.block_on(access.client())?;
    let events = EventSink::to_api(client.clone(), node, runtime.handle());
    Ok((Box::new(ApiSource::new(client, node, runtime.handle().clone())), events))
}

/// Opens the kernel, trying again while a module or a privilege is missing; `None` when asked to stop.
fn open_kernel(settings: &Settings, inbox: &Inbox) -> Option<LinuxKernel> {
    let mut pause = Duration::from_secs(1);
    loop {
        match LinuxKernel::open(settings) {
            Ok(kernel) => return Some(kernel),
            Err(error) => tracing::error!("{error:#}; trying again in {pause:?}"),
        }
        let until = std::time::Instant::now() + pause;
        while let Some(left) = until.checked_duration_since(std::time::Instant::now()) {
            if inbox.wait(Some(left)).stop {
                return None;
            }
        }
        pause = (pause * 2).min(MAX_PAUSE);
    }
}

/// Says once which lists are missing if they take long: nothing is programmed meanwhile.
fn notice_slow_lists(store: Arc<Store>) -> anyhow::Result<()> {
    std::thread::Builder::new().name("notice".to_owned()).spawn(move || {
        std::thread::sleep(SYNC_NOTICE);
        if !store.is_synced() {
            let kinds: Vec<String> = store.waiting_for().iter().map(ToString::to_string).collect();
            tracing::warn!(
                "still waiting for the first list of {}; nothing is changed until then",
                kinds.join(", ")
            );
        }
    })?;
    Ok(())
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

/// Notices at once what others do to our addresses, and new addresses of the node.
fn watch_addresses(kernel: &LinuxKernel, inbox: Arc<Inbox>) -> anyhow::Result<()> {
    let mut watch = Watch::open(DEVICE, kernel.address_port()).context("cannot watch addresses")?;
    std::thread::Builder::new().name("addresses".to_owned()).spawn(move || {
        loop {
            match watch.next() {
                // Our own creation of the device is seen as well; an audit then finds nothing.
                Ok(Change::DeviceAppeared) => {}
                // IPv6 changes do not say who made them: the loop knows what it wants.
                Ok(Change::Added(net)) => inbox.address(net, true),
                Ok(Change::Removed(net)) => inbox.address(net, false),
                Ok(change) => {
                    tracing::debug!(?change, "a device changed");
                    inbox.doubt();
                }
                Err(error) => {
                    tracing::error!("cannot watch addresses: {error}; changes are found by the next audit");
                    std::thread::sleep(MAX_PAUSE);
                }
            }
        }
    })?;
    Ok(())
}

/// Notices at once what others do to our rules, where the kernel tells.
fn watch_rules(kernel: &LinuxKernel, inbox: Arc<Inbox>) -> anyhow::Result<()> {
    let mut watch = match RulesWatch::open(kernel.rule_writers()) {
        Ok(watch) => watch,
        Err(error) => {
            tracing::info!("cannot watch rules ({error}): changes by others are found by the next audit");
            return Ok(());
        }
    };
    std::thread::Builder::new().name("rules".to_owned()).spawn(move || {
        loop {
            match watch.wait() {
                Ok(()) => inbox.doubt(),
                Err(error) => tracing::debug!("watching rules: {error}"),
            }
            // Whoever fights over our chains gets an audit a second, not one for every stroke.
            std::thread::sleep(RULES_PAUSE);
        }
    })?;
    Ok(())
}

fn start_log(verbosity: u8) {
    use tracing_subscriber::filter::{LevelFilter, Targets};
    use tracing_subscriber::layer::SubscriberExt;
    use tracing_subscriber::util::SubscriberInitExt;
    let level = if verbosity >= 2 { LevelFilter::DEBUG } else { LevelFilter::INFO };
    // Libraries speak up only about errors; kube-client repeats whole bodies in its own.
    let targets = Targets::new()
        .with_default(LevelFilter::ERROR)
        .with_target("kube_ipvs", level)
        .with_target("kube_client", LevelFilter::OFF)
        .with_target("kube_runtime", LevelFilter::OFF);
    let format = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false);
    // Only a second start in one process could fail.
    let _ = tracing_subscriber::registry().with(format).with(targets).try_init();
}
