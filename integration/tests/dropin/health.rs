// SPDX-License-Identifier: Apache-2.0
//! Health of the agent, of the node and of Services.

use super::*;
use integration::objects::{ServiceBuilder, node};
use nix::sys::signal::Signal;

const HC: u16 = 31234;

fn web(port: u16) -> Value {
    let web = ServiceBuilder::new("web", &["10.96.0.10"], &PORT).load_balancer(&["203.0.113.1"]);
    web.node_ports(&[30080]).external_policy("Local").health_check_node_port(port).build()
}

/// A node, healthy but for what `more` adds to its object.
fn node_with(more: &Value) -> Value {
    let mut node = node("node-a", &["192.168.50.2"]);
    for (part, fields) in more.as_object().unwrap() {
        for (name, value) in fields.as_object().unwrap() {
            node[part][name] = value.clone();
        }
    }
    node
}

#[test]
fn a_node_that_leaves_fails_healthz_and_not_livez() {
    let ns = Netns::new("node-a").unwrap();
    let files = Files::new(&json!({}), vec![]);
    let agent = files.start(&ns);
    wait_for("livez", &agent, || get(&ns, 10256, "livez").0 == 200);
    wait_for("readyz", &agent, || get(&ns, 10256, "readyz").0 == 200);
    let (code, body) = get(&ns, 10256, "healthz");
    assert!(code == 503 && body.contains("\"nodeEligible\":false"), "there is no Node object: {body}");
    assert!(
        body.contains("content-type: application/json") && body.contains("x-content-type-options: nosniff")
    );
    assert_eq!(get(&ns, 10256, "").0, 404);
    let states = [
        (json!({}), 200),
        (
            json!({"spec": {"taints": [{"key": "node.kubernetes.io/unreachable", "effect": "NoExecute"}]}}),
            200,
        ),
        (
            json!({"spec": {"taints": [{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]}}),
            503,
        ),
        (json!({}), 200),
        (json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}), 503),
    ];
    for (more, code) in states {
        files.write(vec![node_with(&more)]);
        wait_for(&format!("{code} for {more}"), &agent, || get(&ns, 10256, "healthz").0 == code);
        assert_eq!(get(&ns, 10256, "livez").0, 200, "{more}");
    }
}

#[test]
fn a_change_that_cannot_be_programmed_in_time_is_unhealthy() {
    let ns = Netns::new("node-a").unwrap();
    // Twice the sync period is the limit.
    let files = Files::new(&json!({"ipvs": {"syncPeriod": "2s"}}), vec![node_with(&json!({}))]);
    let agent = files.start(&ns);
    wait_for("the start", &agent, || get(&ns, 10256, "readyz").0 == 200);
    // A device of another kind in the place of ours: addresses of both families fail.
    // The agent is stopped meanwhile, because it would create its own device at once.
    agent.signal(Signal::SIGSTOP).unwrap();
    ns.ip("link del kube-ipvs0\nlink add kube-ipvs0 type bridge").unwrap();
    agent.signal(Signal::SIGCONT).unwrap();
    wait_for("the error in the log", &agent, || agent.log().contains("bridge"));
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(
        get(&ns, 10256, "livez").0,
        200,
        "failed audits without a change of objects do not affect health, as in kube-proxy"
    );
    files.write([one_service(), vec![node_with(&json!({}))]].concat());
    wait_for("the end of health", &agent, || get(&ns, 10256, "healthz").0 == 503);
    let (code, body) = get(&ns, 10256, "healthz");
    assert!(code == 503 && body.contains("\"nodeEligible\":true,\"healthy\":false"), "{body}");
    assert_eq!(get(&ns, 10256, "livez").0, 200, "the loop works, and a restart would not help");
    let (code, body) = get(&ns, 10256, "readyz?verbose");
    assert!(
        code == 503 && body.contains("[-]guard-IPv4 failed") && body.contains("device kube-ipvs0"),
        "{body}"
    );
    ns.ip("link del kube-ipvs0").unwrap();
    wait_for("health again", &agent, || get(&ns, 10256, "healthz").0 == 200);
}

#[test]
fn health_check_node_ports_report_the_local_endpoints() {
    let ns = Netns::new("node-a").unwrap();
    // Without an address for its node port a Service has no health check either, as in kube-proxy.
    ns.ip("link add eth0 type dummy\naddr add 192.168.50.2/24 dev eth0\nlink set eth0 up").unwrap();
    let local = slice("web", &["10.244.1.5@node-a", "10.244.1.6@node-a", "10.244.2.5@node-b"], &PORT);
    let files = Files::new(&json!({}), vec![web(HC), local.clone()]);
    let agent = files.start(&ns);
    let ask = |port: u16| get(&ns, port, "anything");
    wait_for("the answer", &agent, || ask(HC).0 == 200);
    let answer = ask(HC).1;
    assert!(answer.contains("x-load-balancing-endpoint-weight: 2\r\n"), "{answer}");
    assert!(answer.ends_with("\"localEndpoints\": 2,\n\t\"serviceProxyHealthy\": true\n}"), "{answer}");
    files.write(vec![web(HC), slice("web", &["10.244.2.5@node-b"], &PORT)]);
    wait_for("no endpoint here", &agent, || ask(HC).0 == 503);
    assert!(ask(HC).1.contains("\"localEndpoints\": 0"), "{}", ask(HC).1);
    files.write(vec![web(HC + 1), local]);
    wait_for("the other port", &agent, || ask(HC + 1).0 == 200);
    wait_for("the end of the first port", &agent, || ask(HC).0 == 0);
    let vip = ([10, 96, 0, 10], HC + 1).into();
    let answer = ns.enter(|| oracle::http(vip, "GET", "", "")).unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "through a VIP, as in kube-proxy: {answer}");
}

#[test]
fn a_health_check_port_in_use_is_reported_and_blocks_nothing_else() {
    let ns = Netns::new("node-a").unwrap();
    let taken = ns.listen(&format!("0.0.0.0:{HC}")).unwrap();
    let files = Files::new(&json!({}), vec![web(HC), slice("web", &["10.244.1.5@node-a"], &PORT)]);
    let agent = files.start(&ns);
    wait_for("the error in the log", &agent, || agent.log().contains("FailedToStartServiceHealthcheck"));
    let message = format!("node node-a failed to start healthcheck \"test/web\" on port {HC}");
    assert!(agent.log().contains(&message), "{}", agent.log());
    wait_for("the address", &agent, || is_bound(&ns, "10.96.0.10/32"));
    drop(taken);
    // Any change of the ports causes a retry at once.
    files.write(vec![web(HC), slice("web", &["10.244.1.5@node-a", "10.244.1.6@node-a"], &PORT)]);
    wait_for("the answer", &agent, || get(&ns, HC, "").0 == 200);
}
