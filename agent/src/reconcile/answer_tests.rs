// SPDX-License-Identifier: Apache-2.0
//! The answers of an agent to its commands, as texts at 80 and 200 columns, and their schemas.

use std::time::Duration;

use schemars::schema_for;
use serde_json::json;

use crate::commands::verify_node::VerifyReport;
use crate::core::model::settings::{RulesMode, Settings};
use crate::core::model::{Family, PerFamily};
use crate::core::plan::op::OpKind;
use crate::core::plan::outcome::{Cause, OpError};
use crate::core::plan::pass::Due;
use crate::core::plan::preview::Preview;
use crate::core::plan::subject::Subject;
use crate::inspect::answers::Setup;
use crate::inspect::doctor::DoctorReport;
use crate::inspect::explain::{self, ExplainRequest, Explanation};
use crate::inspect::layout::Layout;
use crate::inspect::list_document::ListDocument;
use crate::inspect::plan_report::PlanReport;
use crate::inspect::status::{Status, StatusInput};
use crate::kernel::read_only::ReadOnly;
use crate::metrics::WatchReport;
use crate::reconcile::Reconciler;
use crate::serve::health::LoopLag;
use crate::testing::cluster::Cluster;
use crate::testing::scenarios::tcp_server;
use crate::testing::{Agent, golden, kernel, reporting, settings};

const WIDTHS: [usize; 2] = [80, 200];

fn cluster() -> Cluster {
    Cluster::default()
        .service(
            "web",
            json!({"clusterIP": "10.96.0.10", "type": "LoadBalancer", "externalTrafficPolicy": "Local",
                   "loadBalancerSourceRanges": ["198.18.0.0/16"],
                   "ports": [{"name": "http", "port": 80, "nodePort": 30080}]}),
            &["203.0.113.7"],
        )
        .slice("web", &["10.244.1.5@n1", "10.244.2.6@n2", "!10.244.2.7@n2"], &["http/TCP/8080"])
        .service("dns", json!({"clusterIP": "10.96.0.11", "ports": [{"port": 53, "protocol": "UDP"}]}), &[])
        .service(
            "late",
            json!({"clusterIP": "10.96.0.12", "externalIPs": ["203.0.113.7"], "ports": [{"port": 80}]}),
            &[],
        )
        .slice("late", &["10.244.2.9@n2"], &["/TCP/80"])
}

/// An agent with a drain, a refused real server and repaired drift.
fn agent() -> Agent {
    let mut agent = Agent::with_settings(kernel(), &cluster(), settings());
    let refused = Subject::RealServer(tcp_server("10.96.0.12", 80), "10.244.2.9:80".parse_rs());
    let why = "the kernel refused the address (EINVAL): it is a broadcast address of this node";
    agent.kernel().refuse(refused, OpError::plain(Cause::InvalidArgument, why));
    for _ in 0..6 {
        let _ = agent.sync(Due::Changes);
    }
    let server = tcp_server("10.96.0.10", 80);
    agent.kernel().state.virtual_servers.remove(&server);
    let _ = agent.sync(Due::Audit);
    agent.kernel().state.busy.insert((server, "10.244.2.6:8080".parse_rs()));
    let smaller = cluster().slice("web", &["10.244.1.5@n1", "!10.244.2.7@n2"], &["http/TCP/8080"]);
    smaller.put(&agent.store);
    let _ = agent.sync(Due::Changes);
    agent
}

trait ParseRs {
    fn parse_rs(&self) -> crate::core::model::RsKey;
}

impl ParseRs for str {
    fn parse_rs(&self) -> crate::core::model::RsKey {
        let addr: std::net::SocketAddr = self.parse().unwrap();
        crate::core::model::RsKey { addr: addr.ip(), port: addr.port() }
    }
}

fn status(agent: &Agent) -> Status {
    let setup = Setup {
        node: "n1".to_owned(),
        config: json!({}),
        rules: RulesMode::Iptables,
        source: "the Kubernetes API".to_owned(),
        version: "0.1.0".to_owned(),
        pid: 7,
        started: std::time::SystemTime::UNIX_EPOCH,
    };
    let watch = |kind: &str, state: &str| WatchReport {
        kind: kind.to_owned(),
        state: state.to_owned(),
        since: Some(4000.0),
    };
    let input = StatusInput {
        is_ready: true,
        readiness: "[+]first-sync ok\n".to_owned(),
        kernel_problem: None,
        is_eligible: true,
        lag: LoopLag::default(),
        setup,
        waiting_for: Vec::new(),
        watches: vec![watch("Service", "following"), watch("EndpointSlice", "failing")],
        kubernetes: Some("v1.36.2".to_owned()),
        malformed: [0, 2, 0],
        servers: PerFamily::new([6, 5], [0, 0]),
        uptime: Duration::from_secs(4000),
    };
    let mut status = Status::build(&agent.reconciler.state(agent.now), input);
    status.versions.kernel = "6.12.0".to_owned();
    // The time that a sync took is that of this machine.
    status
}

fn explanation(agent: &Agent, target: &str, from: Option<&str>) -> Result<Explanation, String> {
    let request = ExplainRequest { target: target.to_owned(), from: from.map(str::to_owned) };
    let found = explain::find(&agent.store, &request)?;
    Ok(explain::explain(&agent.reconciler.state(agent.now), &found, &request))
}

fn compare(name: &str, text: impl Fn(Layout) -> String) {
    for width in WIDTHS {
        let text = text(Layout { width, color: false });
        let longest = text.lines().map(|line| line.chars().count()).max().unwrap_or(0);
        assert!(
            longest <= width || ["plan", "explain-steps", "verify"].iter().any(|wide| name.starts_with(wide)),
            "{name}: {longest}"
        );
        golden::compare(&format!("agent/snapshots/{name}-{width}.txt"), &text);
    }
}

#[test]
fn texts_are_those_of_the_snapshots() {
    let agent = agent();
    let status = status(&agent);
    assert!(status.ready && status.degraded && status.exit_code() == 1);
    compare("status", |layout| status.text(layout));
    for (name, target) in [
        ("service", "d/web"),
        ("load-balancer", "203.0.113.7:80"),
        ("empty", "dns"),
        ("refused", "10.96.0.12:80"),
        ("pod", "10.244.2.7"),
        ("nobody", "10.96.0.10:443"),
        ("elsewhere", "10.96.99.99"),
    ] {
        let explanation = explanation(&agent, target, None).unwrap();
        compare(&format!("explain-{name}"), |layout| explanation.text(layout, false));
    }
    let steps = explanation(&agent, "203.0.113.7:80", Some("198.18.3.3")).unwrap();
    compare("explain-steps", |layout| steps.text(layout, true));
    for wrong in ["d/none", "a/b/c", ""] {
        assert!(explanation(&agent, wrong, None).is_err(), "{wrong:?}");
    }
    assert!(explanation(&agent, "d/web", Some("mars")).unwrap_err().contains("--from"));
}

#[test]
fn plans_are_those_of_the_snapshots() {
    let store = std::sync::Arc::new(crate::store::Store::new(Default::default()));
    cluster().put(&store);
    let mut found = kernel();
    let foreign = Agent::start(
        kernel(),
        &Cluster::default().service("other", json!({"clusterIP": "192.0.2.9", "ports": [{"port": 1}]}), &[]),
    );
    let mut other = foreign;
    other.converge(Due::Changes, 6);
    found.state.virtual_servers = other.kernel().state.virtual_servers.clone();
    let settings = Settings { scheduler: "lc".into(), ..settings() };
    let mut looks = Reconciler::new(ReadOnly(found), store, settings, "n1", false, reporting());
    let preview = looks.preview(Duration::ZERO).unwrap();
    let state = looks.state(Duration::ZERO);
    let report = PlanReport {
        source: "the running agent".to_owned(),
        rules_mode: "iptables".to_owned(),
        services: state.desired.service_count(),
        ..PlanReport::build(&preview, state.observed)
    };
    assert_eq!(report.foreign, ["virtual server TCP 192.0.2.9:1"]);
    assert!(report.summary.contains_key(<&str>::from(OpKind::AddVirtualServer)));
    compare("plan", |layout| report.text(layout, true));
    compare("plan-summary", |layout| report.text(layout, false));
    let verified = VerifyReport::of(&preview, report.services);
    assert!(!verified.equal && verified.differences >= verified.first.len());
    compare("verify-different", |layout| verified.text(layout));
    let nothing = Preview { unread: vec![Family::V6], ..Preview::default() };
    compare("verify-unread", |layout| VerifyReport::of(&nothing, 3).text(layout));
    let equal = VerifyReport::of(&Preview::default(), 3);
    assert!(equal.equal);
    compare("verify-equal", |layout| equal.text(layout));
    let problem = VerifyReport::problem("the agent has not listed all objects yet".to_owned());
    compare("verify-problem", |layout| problem.text(layout));
}

#[test]
fn schemas_are_those_of_the_documentation() {
    let schemas = [
        ("status", schema_for!(Status)),
        ("explain", schema_for!(Explanation)),
        ("plan", schema_for!(PlanReport)),
        ("verify", schema_for!(VerifyReport)),
        ("doctor", schema_for!(DoctorReport)),
        ("list", schema_for!(ListDocument)),
    ];
    for (name, schema) in schemas {
        let text = format!("{:#}\n", schema.to_value());
        golden::compare(&format!("docs/schemas/{name}.json"), &text);
    }
}
