// SPDX-License-Identifier: Apache-2.0
//! What a start would find and do on this node, for commands that only look: a reconciler whose kernel refuses to write.
//! Objects and configuration are those of the running agent, unless arguments name others.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use crate::cli::LookArgs;
use crate::config::{Config, host};
use crate::core::loop_state::LoopState;
use crate::core::model::service_defaults::label_keys;
use crate::core::model::settings::Settings;
use crate::core::plan::preview::Preview;
use crate::inspect::agent_objects;
use crate::inspect::answers::{AgentRequest, KUBERNETES_API, Setup};
use crate::inspect::plan_report::PlanReport;
use crate::inspect::socket::ask;
use crate::kernel::linux::LinuxKernel;
use crate::kernel::read_only::ReadOnly;
use crate::kernel::rules_mode;
use crate::reconcile::{Reconciler, Reporting};
use crate::source::client::ApiAccess;
use crate::source::{Source, Timing};
use crate::store::Store;
use crate::words;

/// How long lists of objects may take.
const LISTS: Duration = Duration::from_secs(60);

/// A node as a start would find it.
pub struct Offline {
    reconciler: Reconciler<ReadOnly<LinuxKernel>>,
    pub store: Arc<Store>,
    inbox: Arc<crate::inbox::Inbox>,
    settings: Settings,
    /// Where objects come from.
    pub source: String,
    /// Whether they come from a running agent, which has to be asked again for changes.
    from_agent: bool,
    began: Instant,
    /// Follows the API.
    _runtime: tokio::runtime::Runtime,
}

impl Offline {
    /// Reads configuration and objects, and opens the kernel.
    ///
    /// # Errors
    /// Any of that fails.
    pub fn open(args: &LookArgs) -> anyhow::Result<Self> {
        let setup: Option<Setup> = ask(&AgentRequest::Setup).ok();
        let config = config(args, setup.as_ref())?;
        let node = match &setup {
            Some(setup) if args.has_no_config() => setup.node.clone(),
            _ => host::node_name(&config.hostname_override)?,
        };
        let mut settings = config.node_settings()?;
        if config.chooses_rules {
            settings.rules = rules_mode::guess();
        }
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let inbox = Arc::new(crate::inbox::Inbox::default());
        let store = Arc::new(Store::new(inbox.clone()));
        let of_agent = setup.as_ref().filter(|_| args.objects.is_none() && args.master.is_none());
        let from_agent = of_agent.is_some_and(|setup| has_labels(setup, &config));
        // An agent without these labels does not help: its objects are read where it reads them.
        let files = || of_agent.filter(|setup| !from_agent && setup.source != KUBERNETES_API);
        let objects = args.objects.clone().or_else(|| files().map(|setup| PathBuf::from(&setup.source)));
        let source = match (&objects, from_agent) {
            (Some(path), _) => {
                Box::new(super::file_source(&config, path, &node)?).start(store.clone())?;
                path.display().to_string()
            }
            (None, true) => "the running agent".to_owned(),
            (None, false) => {
                follow_api(&config, args.master.clone(), &node, &store, &runtime)?;
                KUBERNETES_API.to_owned()
            }
        };
        let kernel = ReadOnly(LinuxKernel::open(&settings)?);
        let reporting = Reporting::log_only().context("cannot set up metrics")?;
        let local_from_node = config.local_from_node;
        let reconciler =
            Reconciler::new(kernel, store.clone(), settings.clone(), &node, local_from_node, reporting);
        let mut offline = Self {
            reconciler,
            store,
            inbox,
            settings,
            source,
            from_agent,
            began: Instant::now(),
            _runtime: runtime,
        };
        offline.refresh()?;
        offline.wait_for_lists()?;
        Ok(offline)
    }

    /// Takes the objects of the running agent again. False: its own lists are not complete.
    ///
    /// # Errors
    /// It does not answer.
    pub fn refresh(&mut self) -> anyhow::Result<bool> {
        if !self.from_agent {
            return Ok(true);
        }
        let is_synced =
            agent_objects::fill(&self.store).context("cannot read the objects of the running agent")?;
        // An agent of an earlier version does not tell.
        self.reconciler.know_missing_schedulers(ask(&AgentRequest::MissingSchedulers).unwrap_or_default());
        Ok(is_synced)
    }

    fn wait_for_lists(&self) -> anyhow::Result<()> {
        let until = Instant::now() + LISTS;
        while !self.store.is_synced() || self.store.awaits_nodes() {
            let Some(left) = until.checked_duration_since(Instant::now()) else {
                let kinds: Vec<String> = self.store.waiting_for().iter().map(ToString::to_string).collect();
                bail!("{} did not list {} within {}", self.source, kinds.join(", "), words::time(LISTS));
            };
            self.inbox.wait(Some(left.min(Duration::from_millis(100))));
        }
        Ok(())
    }

    /// Waits for a change of objects.
    pub fn wait_for_change(&self, limit: Duration) {
        self.inbox.wait(Some(limit));
    }

    /// What a start would do now.
    ///
    /// # Errors
    /// The kernel cannot be read.
    pub fn preview(&mut self) -> anyhow::Result<Preview> {
        ensure!(
            self.reconciler.is_ready(),
            "the Node has no pod CIDRs yet, and detectLocalMode is NodeCIDR: a start would wait for them"
        );
        self.reconciler.preview(self.began.elapsed()).map_err(|error| anyhow::anyhow!("{error}"))
    }

    /// What is known about the node after a preview.
    pub fn state(&self) -> LoopState<'_> {
        LoopState { is_whole: true, ..self.reconciler.state(self.began.elapsed()) }
    }

    /// The report of a preview.
    pub fn report(&self, preview: &Preview) -> PlanReport {
        let state = self.state();
        let report = PlanReport::build(preview, state.observed);
        PlanReport {
            source: self.source.clone(),
            rules_mode: self.settings.rules.to_string(),
            services: state.desired.service_count(),
            ..report
        }
    }
}

fn config(args: &LookArgs, setup: Option<&Setup>) -> anyhow::Result<Config> {
    match setup {
        Some(setup) if args.has_no_config() => {
            let mut config = setup.config().context("cannot use the configuration of the running agent")?;
            // What the agent chose is in force.
            config.settings.rules = setup.rules;
            config.chooses_rules = false;
            Ok(config)
        }
        _ => Config::read(args.source.config.as_deref(), &args.source.flags),
    }
}

/// Whether the objects of the agent have the labels by which the configuration selects.
fn has_labels(setup: &Setup, config: &Config) -> bool {
    let wanted = label_keys(&config.settings.service_defaults);
    let of_agent = setup.config().map(|config| config.settings.service_defaults).unwrap_or_default();
    let known = label_keys(&of_agent);
    wanted.iter().all(|key| known.contains(key))
}

fn follow_api(
    config: &Config,
    master: Option<String>,
    node: &str,
    store: &Arc<Store>,
    runtime: &tokio::runtime::Runtime,
) -> anyhow::Result<()> {
    let access = ApiAccess::new(&config.kubeconfig, master);
    let api = runtime.block_on(access.client(Arc::new(()), Timing::default().answer))?;
    Box::new(super::api_source(config, api, node, runtime)).start(store.clone())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::config::ConfigFlags;
    use crate::core::model::settings::RulesMode;

    fn document(selectors: &[Value]) -> Value {
        let entry = |selector: &Value| json!({"selector": selector, "settings": {"scheduler": "lc"}});
        json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "kubeIPVS": {"serviceDefaults": selectors.iter().map(entry).collect::<Vec<_>>()},
        })
    }

    #[test]
    fn objects_of_an_agent_that_reads_fewer_labels_are_not_used() {
        let [tier, app] = ["tier", "app"].map(|key| json!({"matchLabels": {key: "a"}}));
        let setup = |selectors: &[Value]| Setup {
            node: "n1".to_owned(),
            config: document(selectors),
            rules: RulesMode::default(),
            source: KUBERNETES_API.to_owned(),
            version: String::new(),
            pid: 1,
            started: std::time::SystemTime::UNIX_EPOCH,
        };
        let config = |selectors: &[Value]| {
            Config::parse(&document(selectors).to_string(), &ConfigFlags::default()).unwrap()
        };
        let both = [tier.clone(), app.clone()];
        assert!(has_labels(&setup(&both), &config(std::slice::from_ref(&app))));
        assert!(has_labels(&setup(&[]), &config(&[])));
        assert!(!has_labels(&setup(&[app]), &config(&[tier])));
        assert!(!has_labels(&Setup { config: json!({}), ..setup(&[]) }, &config(&both)));
    }
}
