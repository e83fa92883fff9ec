// SPDX-License-Identifier: Apache-2.0
//! The agent starts on a node that kube-proxy programmed.

use std::collections::BTreeSet;

use super::*;

/// The state of a node that only this agent and unrelated programs have programmed.
fn fresh() -> BTreeMap<String, Vec<String>> {
    let cluster = Cluster::new();
    let setup = cluster.start();
    setup.wait_bound(&VIP).unwrap();
    setup.wait_bound(&EXTERNAL).unwrap();
    state(cluster.node.ns())
}

/// Waits for the state of a fresh node.
fn wait_for_state(setup: &Setup<'_>, ns: &Netns, expected: &BTreeMap<String, Vec<String>>) {
    let done = setup.wait_within(LIMIT, "the state of a fresh node", || state(ns) == *expected);
    if let Err(error) = done {
        let state = state(ns);
        let lines = |state: &BTreeMap<String, Vec<String>>| -> BTreeSet<String> {
            state
                .iter()
                .flat_map(|(key, list)| list.iter().map(move |line| format!("{key}: {line}")))
                .collect()
        };
        let (has, wanted) = (lines(&state), lines(expected));
        let differ: Vec<&String> = has.symmetric_difference(&wanted).collect();
        let order: Vec<_> = state.keys().filter(|key| state.get(*key) != expected.get(*key)).collect();
        panic!("{error}\ndifferent: {differ:#?} in {order:?}");
    }
}

/// Starts the agent while established connections are used and new ones are opened. Returns the agent when `done`.
fn take_over<'a>(
    cluster: &'a Cluster,
    askers: &[(&'a Netns, std::net::SocketAddr)],
    done: impl Fn() -> bool,
) -> Setup<'a> {
    let mut standing = Standing::open(askers);
    let mut started = None;
    Stream::during(cluster.node.ns(), askers.to_vec(), |stream| {
        let setup = cluster.start();
        setup.wait_bound(&VIP).unwrap();
        setup.wait_bound(&EXTERNAL).unwrap();
        setup.wait_within(LIMIT, "the end of the other mode", &done).unwrap();
        stream.more();
        standing.check("after the change");
        started = Some(setup);
    });
    standing.check("at the end");
    assert_eq!(cluster.leaked(), ["[0:0]", "[0:0]"], "packets left the node unbalanced");
    started.unwrap()
}

#[test]
fn from_the_ipvs_mode_of_kube_proxy() {
    let expected = fresh();
    let cluster = Cluster::new();
    let _backends = cluster.backends();
    fixture::ipvs_mode(cluster.node.ns());
    let setup = take_over(&cluster, &cluster.askers(), || true);
    wait_for_state(&setup, cluster.node.ns(), &expected);
    assert!(!setup.agent.log().contains("another kube-proxy mode"), "there was none: {}", setup.agent.log());
}

#[test]
fn from_the_iptables_mode() {
    let expected = fresh();
    let cluster = Cluster::new();
    let _backends = cluster.backends();
    let ns = cluster.node.ns();
    fixture::iptables_mode(ns, true);
    let gone = || !saved(ns).contains("KUBE-SEP-");
    let mut setup = take_over(&cluster, &cluster.askers(), gone);
    wait_for_state(&setup, ns, &expected);
    let words = match in_nftables() {
        false => "of another kube-proxy mode",
        true => "removed iptables rules that are not in use",
    };
    let said = |setup: &Setup<'_>| setup.agent.log().matches(words).count();
    assert_eq!(said(&setup), 2, "once for each family: {}", setup.agent.log());
    // IPVS balances new connections now.
    let has_balanced = || {
        let servers = ns.exec(&["ipvsadm", "-Ln", "--stats"]).unwrap().stdout;
        let web = servers.lines().find(|line| line.contains("10.96.0.10:80")).map(str::to_owned);
        web.is_some_and(|web| web.split_whitespace().nth(2) != Some("0"))
    };
    // The kernel adds its counters up every two seconds.
    setup.wait("connections of the virtual server", has_balanced).unwrap();
    assert!(setup.agent.stop().unwrap().success());
    drop(setup);
    let again = cluster.start();
    again.wait("the first pass", || again.agent.log().contains("nothing to do")).unwrap();
    assert_eq!(said(&again), 0, "{}", again.agent.log());
}

#[test]
fn from_the_nftables_mode() {
    let expected = fresh();
    let cluster = Cluster::new();
    let _backends = cluster.backends();
    let ns = cluster.node.ns();
    fixture::nftables_mode(ns);
    let tables = || ns.exec(&["nft", "list", "tables"]).unwrap().stdout;
    assert_eq!(tables().matches("kube-proxy").count(), 2);
    let vips: Vec<_> = cluster
        .askers()
        .into_iter()
        .filter(|(_, to)| to.port() == 80)
        .filter(|(_, to)| VIP.contains(&to.ip().to_string().as_str()))
        .collect();
    assert_eq!(vips.len(), 4);
    let setup = take_over(&cluster, &vips, || !tables().contains("kube-proxy"));
    assert!(tables().contains("table ip mine"), "{}", tables());
    wait_for_state(&setup, ns, &expected);
    let log = setup.agent.log();
    assert_eq!(log.matches("removed the nftables table kube-proxy").count(), 2, "{log}");
}
