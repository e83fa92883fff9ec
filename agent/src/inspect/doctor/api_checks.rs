// SPDX-License-Identifier: Apache-2.0
//! The API server: the way to it, this Node, permissions and the clock.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::NodeFinding;
use super::facts::{ApiFacts, DoctorFacts, Intent};
use crate::config::host;
use crate::source::access_review::{ApiSurvey, Permission};
use crate::words::{self, some};

/// A clock that is earlier is wrong: 2025-01-01.
const EARLIEST: i64 = 1_735_689_600;
/// A clock that is later is wrong: 2100-01-01.
const LATEST: i64 = 4_102_444_800;
/// Seconds that the clocks of node and API server may differ.
const SKEW: i64 = 10;
/// With more, tokens and certificates fail.
const LONG_SKEW: i64 = 300;

pub(super) fn check(intent: &Intent, facts: &DoctorFacts) -> Vec<NodeFinding> {
    const CHECK: &str = "api";
    let mut findings = Vec::new();
    let survey = match &facts.api {
        ApiFacts::Files(path) => {
            findings.push(NodeFinding::ok(CHECK, format!("not asked: objects come from {path}")));
            None
        }
        ApiFacts::Unread(why) => {
            let remedy = "give --config with a kubeconfig of this machine, or --master, or run this command in the agent's pod";
            findings.push(NodeFinding::warning(CHECK, "the API server could not be checked", why, remedy));
            None
        }
        ApiFacts::Failed(failure) => {
            let (what, remedy) = failure.rsplit_once("; ").unwrap_or((failure, "see docs/api-server.md"));
            let why = "without the API the agent programs nothing new, and a new agent nothing at all";
            findings.push(NodeFinding::error(CHECK, what, why, remedy));
            None
        }
        ApiFacts::Answered(survey) => {
            let server = format!("{} answers, version {}", survey.server, survey.version);
            findings.push(NodeFinding::ok(CHECK, server));
            Some(survey)
        }
    };
    if let Some(survey) = survey {
        findings.push(way(intent, facts, survey));
        findings.push(node(intent, survey));
        findings.extend(permissions(survey));
    }
    findings.push(clock(facts.time, survey.and_then(|survey| survey.time)));
    findings
}

/// Whether the way to the API server needs a ClusterIP, which needs the agent.
fn way(intent: &Intent, facts: &DoctorFacts, survey: &ApiSurvey) -> NodeFinding {
    const CHECK: &str = "apiAddress";
    let ranges = || intent.settings.routed.iter().chain(&survey.service_cidrs);
    let is_cluster_ip = |addr: &&IpAddr| {
        let is_served =
            facts.ipvs.as_ref().is_ok_and(|s| s.servers.iter().any(|(key, _)| key.addr == **addr));
        let on_link = facts
            .links
            .as_ref()
            .is_ok_and(|links| links.iter().flat_map(|link| &link.addresses).any(|net| net.addr() == **addr));
        ranges().any(|net| net.contains(*addr)) || (is_served && !on_link)
    };
    if survey.addresses.is_empty() {
        return NodeFinding::warning(
            CHECK,
            format!("the address of {} could not be checked", survey.server),
            "its name is not resolved",
            "write the address of the API server into the kubeconfig, or see /etc/resolv.conf",
        );
    }
    match survey.addresses.iter().find(is_cluster_ip) {
        Some(addr) => NodeFinding::error(
            CHECK,
            format!("{} is the ClusterIP {addr}", survey.server),
            "the agent makes ClusterIPs work, so after a reboot it cannot reach the API server",
            "set the server of clientConnection.kubeconfig, --master, or KUBERNETES_SERVICE_HOST of the ConfigMap to an \
             address that works without Services",
        ),
        None => NodeFinding::ok(
            CHECK,
            format!("{} is no ClusterIP", some(&survey.addresses, 3, survey.addresses.len())),
        ),
    }
}

fn node(intent: &Intent, survey: &ApiSurvey) -> NodeFinding {
    const CHECK: &str = "node";
    let name = host::node_name(&intent.config.hostname_override).unwrap_or_default();
    match &survey.node {
        Ok(true) => NodeFinding::ok(CHECK, format!("the Node {name} exists")),
        Ok(false) => NodeFinding::error(
            CHECK,
            format!("there is no Node {name}"),
            "without its Node the agent knows neither its addresses nor its zone, and /healthz answers 503",
            "set hostnameOverride (--hostname-override) to a name of `kubectl get nodes`",
        ),
        Err(why) => NodeFinding::warning(
            CHECK,
            format!("the Node {name} could not be checked"),
            why,
            format!("look at `kubectl get node {name}`"),
        ),
    }
}

fn permissions(survey: &ApiSurvey) -> Vec<NodeFinding> {
    const CHECK: &str = "permissions";
    let name = |p: &Permission| match p.group {
        "" => p.resource.to_owned(),
        group => format!("{}.{group}", p.resource),
    };
    // Verbs by resource.
    let mut denied: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    let mut unknown = None;
    for (permission, answer) in &survey.permissions {
        match answer {
            Ok(true) => {}
            Ok(false) => denied.entry(name(permission)).or_default().push(permission.verb),
            Err(why) => unknown = Some(why),
        }
    }
    let finding = |(resource, verbs): (&String, &Vec<&str>)| {
        let (what, verbs) =
            (format!("the credentials may not {} {resource}", verbs.join(" or ")), verbs.join(", "));
        let remedy =
            format!("add {verbs} on {resource} to the ClusterRole kube-ipvs (manifests/base/rbac.yaml)");
        match resource.starts_with("events") {
            true => {
                let why =
                    "Events about Services that cannot be programmed are missing; the log has the messages";
                NodeFinding::warning(CHECK, what, why, remedy)
            }
            false => NodeFinding::error(
                CHECK,
                what,
                "the agent programs nothing before it has all first lists",
                remedy,
            ),
        }
    };
    let mut findings: Vec<NodeFinding> = denied.iter().map(finding).collect();
    if let Some(why) = unknown {
        let what = "some permissions could not be checked";
        let remedy = "run `kubectl auth can-i --list --as=system:serviceaccount:kube-system:kube-ipvs`";
        findings.push(NodeFinding::warning(CHECK, what, why, remedy));
    }
    if findings.is_empty() {
        findings.push(NodeFinding::ok(CHECK, "the credentials have all permissions of an agent"));
    }
    findings
}

fn clock(here: i64, there: Option<i64>) -> NodeFinding {
    const CHECK: &str = "clock";
    let remedy =
        "set the clock: see `timedatectl` and the time service of the node (chrony, systemd-timesyncd)";
    if !(EARLIEST..LATEST).contains(&here) {
        let year = 1970 + here / 31_556_952;
        let why = "certificates and tokens are not valid at that time";
        return NodeFinding::error(CHECK, format!("this node's clock is in the year {year}"), why, remedy);
    }
    let Some(there) = there else {
        return NodeFinding::ok(CHECK, "the year of this node's clock is plausible");
    };
    let apart = words::time(std::time::Duration::from_secs(here.abs_diff(there)));
    let what = format!("the clocks of this node and of the API server are {apart} apart");
    match (here - there).abs() {
        skew if skew <= SKEW => NodeFinding::ok(CHECK, "the clocks of this node and of the API server agree"),
        skew if skew <= LONG_SKEW => {
            let why = "latencies in metrics and the times of Events are wrong";
            NodeFinding::warning(CHECK, what, why, remedy)
        }
        _ => NodeFinding::error(CHECK, what, "new tokens and certificates are refused", remedy),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Level, sample};
    use super::*;

    fn survey(facts: &mut DoctorFacts) -> &mut ApiSurvey {
        match &mut facts.api {
            ApiFacts::Answered(survey) => survey,
            _ => panic!("the sample has an API server"),
        }
    }

    fn found<'a>(findings: &'a [NodeFinding], check: &str) -> &'a NodeFinding {
        findings.iter().find(|finding| finding.check == check).unwrap()
    }

    #[test]
    fn the_api_answers_fails_or_is_not_asked() {
        let intent = sample::intent("");
        let level = |api| found(&check(&intent, &DoctorFacts { api, ..sample::facts() }), "api").level;
        assert_eq!(level(sample::facts().api), Level::Ok);
        assert_eq!(level(ApiFacts::Files("/objects".to_owned())), Level::Ok);
        assert_eq!(level(ApiFacts::Unread("no kubeconfig".to_owned())), Level::Warning);
        assert_eq!(level(ApiFacts::Failed("it hangs; look at it".to_owned())), Level::Error);
        let failed =
            DoctorFacts { api: ApiFacts::Failed("it hangs; look at it".to_owned()), ..sample::facts() };
        let failed = check(&intent, &failed);
        assert_eq!(found(&failed, "api").remedy.as_deref(), Some("look at it"));
    }

    #[test]
    fn a_cluster_ip_as_the_way_to_the_api_is_an_error() {
        let (intent, mut facts) = (sample::intent(""), sample::facts());
        assert_eq!(found(&check(&intent, &facts), "apiAddress").level, Level::Ok);
        survey(&mut facts).addresses = vec!["10.96.0.1".parse().unwrap()];
        assert_eq!(found(&check(&intent, &facts), "apiAddress").level, Level::Error, "in the ServiceCIDR");
        survey(&mut facts).service_cidrs.clear();
        assert_eq!(found(&check(&intent, &facts), "apiAddress").level, Level::Ok);
        let key = sample::server("TCP", "10.96.0.1", 443);
        facts.ipvs.as_mut().unwrap().servers.push((key, "rr".to_owned()));
        assert_eq!(found(&check(&intent, &facts), "apiAddress").level, Level::Error, "a virtual server");
        survey(&mut facts).addresses.clear();
        assert_eq!(found(&check(&intent, &facts), "apiAddress").level, Level::Warning);
    }

    #[test]
    fn the_node_exists_or_not() {
        let (intent, mut facts) = (sample::intent("hostnameOverride: n1"), sample::facts());
        assert_eq!(found(&check(&intent, &facts), "node").what, "the Node n1 exists");
        survey(&mut facts).node = Ok(false);
        assert_eq!(found(&check(&intent, &facts), "node").level, Level::Error);
        survey(&mut facts).node = Err("403".to_owned());
        assert_eq!(found(&check(&intent, &facts), "node").level, Level::Warning);
    }

    #[test]
    fn missing_permissions_are_named_by_resource() {
        let mut facts = sample::facts();
        let survey = survey(&mut facts);
        assert_eq!(permissions(survey)[0].level, Level::Ok);
        for (permission, answer) in &mut survey.permissions {
            match permission.resource {
                "endpointslices" | "events" => *answer = Ok(false),
                "nodes" => *answer = Err("no answer".to_owned()),
                _ => {}
            }
        }
        let found = permissions(survey);
        let whats: Vec<_> = found.iter().map(|finding| (finding.level, finding.what.as_str())).collect();
        assert_eq!(
            whats,
            [
                (Level::Error, "the credentials may not list or watch endpointslices.discovery.k8s.io"),
                (Level::Warning, "the credentials may not create or patch events.events.k8s.io"),
                (Level::Warning, "some permissions could not be checked"),
            ]
        );
    }

    #[test]
    fn clocks_agree_or_not() {
        let now = 1_795_828_258;
        for (here, there, level) in [
            (now, Some(now + 2), Level::Ok),
            (now, None, Level::Ok),
            (now, Some(now - 60), Level::Warning),
            (now, Some(now + 3600), Level::Error),
            (86_400, None, Level::Error),
            (LATEST, Some(now), Level::Error),
        ] {
            assert_eq!(clock(here, there).level, level, "{here} {there:?}");
        }
        assert_eq!(clock(86_400, None).what, "this node's clock is in the year 1970");
    }
}
