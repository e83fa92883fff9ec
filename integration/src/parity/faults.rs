// SPDX-License-Identifier: Apache-2.0
//! Runs the recorded scenarios on a kernel in memory. Every op of every step fails once, and the agent is killed
//! between any two ops; the next sync, or the next start, must reach the same state as an undisturbed run.

use kube_ipvs::core::plan::pass::{Due, Pass};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kube_ipvs::config::{Config, ConfigFlags};
use kube_ipvs::core::mirror::Observed;
use kube_ipvs::core::model::Family;
use kube_ipvs::core::model::settings::Settings;
use kube_ipvs::inbox::Inbox;
use kube_ipvs::kernel::fake::FakeKernel;
use kube_ipvs::reconcile::{Reconciler, Reporting};
use kube_ipvs::source::decode::decode;
use kube_ipvs::store::{Kind, Object, Store};
use serde_json::Value;

use super::scenario::Scenario;

/// The desired state and the configuration.
struct Wanted {
    config: Config,
    settings: Settings,
    objects: Vec<Object>,
}

/// The number of failures and kills in a scenario.
#[derive(Clone, Copy, Debug, Default)]
pub struct Survived {
    /// Ops that failed once.
    pub failures: usize,
    /// Kills between two ops.
    pub kills: usize,
}

/// Runs every step of a scenario with every failure.
///
/// # Errors
/// The step, the op and the difference.
pub fn sweep(scenario: &Scenario) -> Result<Survived> {
    let mut survived = Survived::default();
    let mut before = wanted(scenario, &Value::Null)?;
    for (number, step) in scenario.steps.iter().enumerate() {
        let after = wanted(scenario, &step.objects)?;
        let done = sweep_step(&before, &after).with_context(|| format!("step-{}", number + 1))?;
        survived.failures += done.failures;
        survived.kills += done.kills;
        before = after;
    }
    Ok(survived)
}

fn wanted(scenario: &Scenario, list: &Value) -> Result<Wanted> {
    let config = Config::parse(&scenario.config, &ConfigFlags::default())?;
    let settings = Settings { families: Family::ALL.to_vec(), ..config.node_settings()? };
    let items = list["items"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut objects = Vec::new();
    for item in items.iter().chain([&scenario.node]) {
        let kind = Kind::ALL.into_iter().find(|kind| item["kind"] == kind.to_string());
        if let Some(kind) = kind {
            objects.push(decode(kind, item).map_err(anyhow::Error::msg)?);
        }
    }
    Ok(Wanted { config, settings, objects })
}

/// An agent and its store.
struct Agent {
    store: Arc<Store>,
    reconciler: Reconciler<FakeKernel>,
    /// Advances by 31 s with every sync, so every failed op is due for a retry.
    now: Duration,
}

impl Agent {
    fn start(kernel: FakeKernel, wanted: &Wanted) -> Result<Self> {
        let store = Arc::new(Store::new(Arc::new(Inbox::default())));
        let reporting = Reporting::log_only()?;
        let (settings, from_node) = (wanted.settings.clone(), wanted.config.local_from_node);
        let reconciler = Reconciler::new(kernel, store.clone(), settings, "node-a", from_node, reporting);
        let agent = Self { store, reconciler, now: Duration::ZERO };
        agent.follow(wanted);
        Ok(agent)
    }

    fn follow(&self, wanted: &Wanted) {
        self.store.update(|update| {
            Kind::ALL.into_iter().for_each(|kind| update.begin_list(kind));
            wanted.objects.iter().for_each(|object| update.put(object.clone()));
            Kind::ALL.into_iter().for_each(|kind| update.finish_list(kind));
        });
    }

    fn sync(&mut self, due: Due) -> Pass {
        self.now += Duration::from_secs(31);
        let pass = self.reconciler.sync(due, self.now);
        self.reconciler.report_due(self.now);
        pass
    }

    /// A sync, and the syncs that begin to drain real servers.
    fn clean(&mut self, due: Due) -> Result<()> {
        let mut pass = self.sync(due);
        while pass.is_clean() && pass.plan.begins_drain() {
            pass = self.sync(Due::Changes);
        }
        ensure!(pass.is_clean(), "not clean: {:?}\n{}", pass.unreadable, pass.plan);
        Ok(())
    }

    fn kill(mut self) -> FakeKernel {
        std::mem::take(self.reconciler.kernel())
    }
}

/// A kernel with the addresses of the recorded node.
fn kernel(settings: &Settings) -> FakeKernel {
    let sysctls: Vec<&'static str> = settings.sysctls.iter().map(|s| s.path).collect();
    let mut kernel = FakeKernel::new(&sysctls);
    let ips = |texts: &[&str]| texts.iter().filter_map(|text| text.parse().ok()).collect();
    kernel.state.node_addresses = ips(&["10.77.0.5", "192.168.50.2", "fd00:50::2"]);
    kernel.state.node.next_hops = ips(&["192.168.50.1", "fd00:50::1"]);
    kernel
}

/// An agent that has programmed `before` and has received `after`.
fn moved(before: &Wanted, after: &Wanted) -> Result<Agent> {
    let mut agent = Agent::start(kernel(&after.settings), before)?;
    agent.clean(Due::Audit)?;
    agent.follow(after);
    Ok(agent)
}

fn sweep_step(before: &Wanted, after: &Wanted) -> Result<Survived> {
    let mut undisturbed = moved(before, after)?;
    undisturbed.clean(Due::Changes)?;
    let expected = undisturbed.kill().state;
    let mut survived = Survived::default();
    for uncertain in [false, true] {
        for n in 0.. {
            let mut agent = moved(before, after)?;
            agent.reconciler.kernel().fail_at(n, uncertain);
            if agent.sync(Due::Changes).is_clean() {
                break;
            }
            agent
                .clean(if uncertain { Due::Audit } else { Due::Changes })
                .with_context(|| format!("op {n} failed"))?;
            compare(&agent.kill().state, &expected).with_context(|| format!("op {n} failed"))?;
            survived.failures += 1;
        }
    }
    for n in 0.. {
        let mut agent = moved(before, after)?;
        agent.reconciler.kernel().stop_after(Some(n));
        let finished = agent.sync(Due::Changes).is_clean();
        let mut kernel = agent.kill();
        kernel.stop_after(None);
        let mut again = Agent::start(kernel, after)?;
        again.clean(Due::Audit).with_context(|| format!("killed after {n} ops"))?;
        compare(&again.kill().state, &expected).with_context(|| format!("killed after {n} ops"))?;
        survived.kills += 1;
        if finished {
            return Ok(survived);
        }
    }
    Ok(survived)
}

fn compare(state: &Observed, expected: &Observed) -> Result<()> {
    ensure!(state == expected, "the kernel differs:\n{state:#?}\nexpected:\n{expected:#?}");
    Ok(())
}
