// SPDX-License-Identifier: Apache-2.0
//! IPVS: scheduler, connection table, timeouts and estimators.

use super::NodeFinding;
use super::facts::{DoctorFacts, Intent};
use super::sysctl_checks::dotted;
use crate::config::host::parse_version;
use crate::core::model::options::SCHEDULERS;
use crate::core::model::settings::Timeouts;
use crate::kernel::host::node_files::ModuleState;
use crate::kernel::ipvs::ipvs_survey::{IpvsGap, IpvsSurvey};
use crate::words::{count, thousands};

/// Connections of a bucket from which a packet waits noticeably for its connection.
const FULL: usize = 8;
/// `conn_tab_bits` may be at most this in every kernel.
const MOST_BITS: u32 = 20;
/// Since this version estimators run in kernel threads and can be turned off.
const THREADS: (u32, u32) = (6, 2);
/// Virtual servers from which estimators in a softirq delay packets by milliseconds.
const MANY: usize = 2000;

const TIMEOUTS: &str = "timeouts";
pub(super) const KEEPALIVE: &str = "/proc/sys/net/ipv4/tcp_keepalive_time";
pub(super) const ESTABLISHED: &str = "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established";
pub(super) const FIN_WAIT: &str = "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_fin_wait";
pub(super) const UDP_STREAM: &str = "/proc/sys/net/netfilter/nf_conntrack_udp_timeout_stream";
pub(super) const RUN_ESTIMATION: &str = "/proc/sys/net/ipv4/vs/run_estimation";
pub(super) const EST_CPULIST: &str = "/proc/sys/net/ipv4/vs/est_cpulist";
pub(super) const EST_NICE: &str = "/proc/sys/net/ipv4/vs/est_nice";
/// Kernels with this sysctl resize the connection table.
pub(super) const CONN_LFACTOR: &str = "/proc/sys/net/ipv4/vs/conn_lfactor";

pub(super) fn check(intent: &Intent, facts: &DoctorFacts) -> Vec<NodeFinding> {
    let mut findings = vec![usable(facts), scheduler(intent, facts)];
    if let Ok(survey) = &facts.ipvs {
        findings.push(table(survey, facts));
        findings.push(estimators(intent, facts, survey.servers.len()));
    }
    findings.extend(timeouts(intent, facts));
    findings
}

fn usable(facts: &DoctorFacts) -> NodeFinding {
    const CHECK: &str = "ipvs";
    match &facts.ipvs {
        Ok(survey) => {
            let servers = count(survey.servers.len(), "virtual server");
            NodeFinding::ok(CHECK, format!("IPVS {} answers, with {servers}", survey.version))
        }
        Err(IpvsGap::Missing) if facts.modules.state("ip_vs") == ModuleState::Installed => {
            NodeFinding::warning(
                CHECK,
                "IPVS is installed, but not loaded",
                "its connection table and virtual servers could not be checked",
                "run `modprobe ip_vs` on the node, or the init container of the manifests, and this command again",
            )
        }
        Err(IpvsGap::Missing) => NodeFinding::error(
            CHECK,
            "the kernel has no IPVS",
            "the agent cannot program a virtual server",
            "run `modprobe ip_vs` on the node, or use a kernel that has IPVS",
        ),
        Err(IpvsGap::Unread(why)) => NodeFinding::warning(
            CHECK,
            "IPVS, its connection table and its estimators could not be checked",
            why,
            "run this command as root in the node's network namespace",
        ),
    }
}

fn scheduler(intent: &Intent, facts: &DoctorFacts) -> NodeFinding {
    const CHECK: &str = "scheduler";
    let name = &*intent.settings.scheduler;
    let in_use = facts.ipvs.as_ref().is_ok_and(|survey| survey.servers.iter().any(|(_, used)| used == name));
    let state = |name: &str| facts.modules.state(&format!("ip_vs_{name}"));
    let is_there = |name: &str| matches!(state(name), ModuleState::Present | ModuleState::Installed);
    let others: Vec<&str> =
        SCHEDULERS.into_iter().filter(|other| *other != name && is_there(other)).collect();
    let available = if others.is_empty() { "none is known".to_owned() } else { others.join(", ") };
    if in_use || is_there(name) {
        return NodeFinding::ok(CHECK, format!("{name} is available; others: {available}"));
    }
    match state(name) {
        ModuleState::Unknown => NodeFinding::warning(
            CHECK,
            format!("the scheduler {name} could not be checked"),
            "no virtual server uses it, its module is not loaded, and the list of modules is not here",
            format!("run `modprobe ip_vs_{name}` on the node, or mount /lib/modules into the container"),
        ),
        _ => NodeFinding::error(
            CHECK,
            format!("the kernel has no scheduler {name}"),
            "the agent ends at its start",
            format!(
                "set ipvs.scheduler to one that the kernel has ({available}), or install the module ip_vs_{name}"
            ),
        ),
    }
}

fn table(survey: &IpvsSurvey, facts: &DoctorFacts) -> NodeFinding {
    const CHECK: &str = "connectionTable";
    let buckets = thousands(survey.table_size);
    let Some(connections) = survey.connections else {
        return NodeFinding::warning(
            CHECK,
            format!("the use of the connection table of {buckets} buckets could not be checked"),
            "/proc/net/ip_vs_conn cannot be read",
            "run this command as root",
        );
    };
    let use_of = format!("{} in {buckets} buckets", count(connections, "connection"));
    if connections <= survey.table_size.saturating_mul(FULL) || facts.sysctls.text(CONN_LFACTOR).is_some() {
        return NodeFinding::ok(CHECK, use_of);
    }
    let bits = (usize::BITS - connections.leading_zeros()).min(MOST_BITS);
    NodeFinding::warning(
        CHECK,
        use_of,
        format!(
            "each packet searches a list of about {} connections",
            connections / survey.table_size.max(1)
        ),
        format!(
            "write `options ip_vs conn_tab_bits={bits}` to /etc/modprobe.d/ip_vs.conf and reboot the node: the size is \
             fixed when the module is loaded"
        ),
    )
}

fn estimators(intent: &Intent, facts: &DoctorFacts, servers: usize) -> NodeFinding {
    const CHECK: &str = "estimators";
    let has_threads = match facts.release.as_deref().ok().and_then(parse_version) {
        _ if facts.sysctls.text(RUN_ESTIMATION).is_some() => true,
        Some(version) => version >= THREADS,
        None => false,
    };
    let is_off = facts.sysctls.number(RUN_ESTIMATION) == Some(0);
    let many = count(servers, "virtual server");
    if is_off && intent.config.service_metrics.is_some() {
        return NodeFinding::warning(
            CHECK,
            format!("{} is 0", dotted(RUN_ESTIMATION)),
            "the kernel does not add up its counters: the traffic metrics of kubeIPVS.metrics.perService stand still",
            format!("run `sysctl -w {}=1`", dotted(RUN_ESTIMATION)),
        );
    }
    if is_off {
        return NodeFinding::ok(CHECK, "turned off: `kube-ipvs list --stats` and `--rate` stand still");
    }
    if !has_threads && servers >= MANY {
        return NodeFinding::warning(
            CHECK,
            format!("the kernel estimates the rates of {many} in a timer"),
            "every two seconds the timer delays the packets of its CPU, by milliseconds with thousands of virtual \
             servers",
            "use Linux 6.2 or later, which estimates in kernel threads",
        );
    }
    if !has_threads {
        return NodeFinding::ok(
            CHECK,
            format!("the kernel estimates the rates of {many} in a timer, which are few"),
        );
    }
    let of =
        |path: &str| facts.sysctls.text(path).filter(|text| !text.is_empty()).unwrap_or("unset").to_owned();
    NodeFinding::ok(
        CHECK,
        format!("kernel threads estimate rates (est_cpulist {}, est_nice {})", of(EST_CPULIST), of(EST_NICE)),
    )
}

/// The timeouts of IPVS once the agent runs: those of the configuration, and the kernel's for fields that are 0.
fn timeouts_in_force(intent: &Intent, facts: &DoctorFacts) -> Timeouts {
    const DEFAULT: Timeouts = Timeouts { tcp: 900, tcp_fin: 120, udp: 300 };
    let now = facts.ipvs.as_ref().map_or(DEFAULT, |survey| survey.timeouts);
    let set = &intent.settings.timeouts;
    let value = |wanted: u32, now: u32| if wanted == 0 { now } else { wanted };
    Timeouts {
        tcp: value(set.tcp, now.tcp),
        tcp_fin: value(set.tcp_fin, now.tcp_fin),
        udp: value(set.udp, now.udp),
    }
}

fn timeouts(intent: &Intent, facts: &DoctorFacts) -> Vec<NodeFinding> {
    let in_force = timeouts_in_force(intent, facts);
    let Timeouts { tcp, tcp_fin, udp } = in_force;
    let mut findings = Vec::new();
    findings.extend(keepalive(tcp, facts));
    findings.extend(longer_than_conntrack(&in_force, intent, facts));
    if findings.is_empty() {
        findings.push(NodeFinding::ok(
            TIMEOUTS,
            format!("TCP {tcp} s, TCP after a FIN {tcp_fin} s, UDP {udp} s"),
        ));
    }
    findings
}

/// Whether idle TCP connections are forgotten before their keepalive.
fn keepalive(tcp: u32, facts: &DoctorFacts) -> Option<NodeFinding> {
    let name = dotted(KEEPALIVE);
    let Some(keepalive) = facts.sysctls.number(KEEPALIVE) else {
        return Some(NodeFinding::warning(
            TIMEOUTS,
            format!("the TCP timeout of {tcp} s could not be compared with keepalive"),
            format!("{name} cannot be read"),
            "run this command in the node's network namespace, with /proc",
        ));
    };
    let (enough, sooner) = (keepalive.saturating_add(300), tcp / 3 * 2);
    (i64::from(tcp) <= keepalive).then(|| {
        NodeFinding::warning(
            TIMEOUTS,
            format!("IPVS forgets TCP connections that are idle for {tcp} s"),
            format!(
                "TCP keepalive begins after {keepalive} s ({name}), so an idle connection to a Service is reset at its \
                 next packet"
            ),
            format!(
                "set ipvs.tcpTimeout: {enough}s, or let the programs send keepalives earlier than after {tcp} s \
                 (`sysctl -w {name}={sooner}` in their pods)"
            ),
        )
    })
}

fn longer_than_conntrack(
    in_force: &Timeouts,
    intent: &Intent,
    facts: &DoctorFacts,
) -> impl Iterator<Item = NodeFinding> {
    // The agent sets those of the configuration.
    let conntrack = |path: &'static str| {
        let wanted = intent.settings.sysctls.iter().find(|sysctl| sysctl.path == path);
        wanted.map(|sysctl| sysctl.value).or_else(|| facts.sysctls.number(path))
    };
    let pairs = [
        ("ipvs.tcpTimeout", in_force.tcp, ESTABLISHED, "conntrack.tcpEstablishedTimeout"),
        ("ipvs.tcpFinTimeout", in_force.tcp_fin, FIN_WAIT, ""),
        // The kernel's defaults, 300 s and 120 s, are no mistake of the operator.
        ("ipvs.udpTimeout", intent.settings.timeouts.udp, UDP_STREAM, "conntrack.udpStreamTimeout"),
    ];
    let finding = move |(field, ours, path, of_conntrack): (&str, u32, &'static str, &str)| {
        let theirs = conntrack(path).filter(|theirs| i64::from(ours) > *theirs)?;
        let other = match of_conntrack {
            "" => format!("run `sysctl -w {}={ours}`", dotted(path)),
            of_conntrack => format!("set {of_conntrack}: {ours}s"),
        };
        Some(NodeFinding::warning(
            TIMEOUTS,
            format!(
                "{field} is {ours} s, and connection tracking forgets after {theirs} s ({})",
                dotted(path)
            ),
            "IPVS still sends to the real server, but the masquerading of the connection is lost",
            format!("set {field}: {theirs}s or less, or {other}"),
        ))
    };
    pairs.into_iter().filter_map(finding)
}

#[cfg(test)]
mod tests {
    use super::super::{Level, sample};
    use super::*;

    fn with(change: impl FnOnce(&mut IpvsSurvey)) -> DoctorFacts {
        let mut facts = sample::facts();
        change(facts.ipvs.as_mut().unwrap());
        facts
    }

    #[test]
    fn ipvs_is_usable_missing_or_unread() {
        let level = |ipvs| usable(&DoctorFacts { ipvs, ..sample::facts() }).level;
        assert_eq!(level(sample::facts().ipvs), Level::Ok);
        assert_eq!(level(Err(IpvsGap::Missing)), Level::Error);
        let mut idle = DoctorFacts { ipvs: Err(IpvsGap::Missing), ..sample::facts() };
        idle.modules.present.remove("ip_vs");
        idle.modules.installed.get_or_insert_default().insert("ip_vs".to_owned());
        assert_eq!(usable(&idle).level, Level::Warning);
        assert_eq!(level(Err(IpvsGap::Unread("not permitted".to_owned()))), Level::Warning);
    }

    #[test]
    fn the_configured_scheduler_is_available_missing_or_unknown() {
        let (rr, mh) = (sample::intent(""), sample::intent("ipvs: {scheduler: mh}"));
        let mut facts = sample::facts();
        assert_eq!(scheduler(&rr, &facts).what, "rr is available; others: wlc");
        let missing = scheduler(&mh, &facts);
        assert_eq!(missing.level, Level::Error);
        assert!(missing.remedy.unwrap().contains("(rr, wlc)"));
        facts.modules.installed = None;
        assert_eq!(scheduler(&mh, &facts).level, Level::Warning);
        let key = sample::server("TCP", "10.96.0.1", 443);
        let facts = with(|survey| survey.servers.push((key, "mh".to_owned())));
        assert_eq!(scheduler(&mh, &facts).level, Level::Ok, "in use");
    }

    #[test]
    fn a_connection_table_with_long_lists_is_a_warning() {
        let found = |connections| {
            let facts = with(|survey| survey.connections = connections);
            table(facts.ipvs.as_ref().unwrap(), &facts)
        };
        assert_eq!(found(Some(32_768)).level, Level::Ok);
        let full = found(Some(300_000));
        assert_eq!((full.level, &*full.what), (Level::Warning, "300,000 connections in 4,096 buckets"));
        assert!(full.remedy.unwrap().contains("conn_tab_bits=19"));
        assert_eq!(found(None).level, Level::Warning);
        let mut facts = with(|survey| survey.connections = Some(300_000));
        sample::set(&mut facts, CONN_LFACTOR, "-4");
        assert_eq!(table(facts.ipvs.as_ref().unwrap(), &facts).level, Level::Ok, "it grows by itself");
    }

    #[test]
    fn estimators_cost_on_old_kernels_and_stand_still_when_off() {
        let mut facts = sample::facts();
        let (usual, metrics) =
            (sample::intent(""), sample::intent("kubeIPVS: {metrics: {perService: true}}"));
        assert_eq!(estimators(&usual, &facts, 10).level, Level::Ok);
        assert_eq!(estimators(&usual, &facts, 5000).level, Level::Warning, "Linux 6.1");
        facts.release = Ok("6.12.1".to_owned());
        sample::set(&mut facts, RUN_ESTIMATION, "1");
        let threads = estimators(&usual, &facts, 5000);
        assert_eq!(threads.what, "kernel threads estimate rates (est_cpulist unset, est_nice unset)");
        sample::set(&mut facts, RUN_ESTIMATION, "0");
        assert_eq!(estimators(&usual, &facts, 5000).level, Level::Ok);
        assert_eq!(estimators(&metrics, &facts, 5000).level, Level::Warning);
    }

    #[test]
    fn timeouts_shorter_than_keepalive_or_longer_than_conntrack_are_warnings() {
        let what = |config: &str, facts: &DoctorFacts| {
            let found = timeouts(&sample::intent(config), facts);
            found.into_iter().map(|finding| (finding.level, finding.what)).collect::<Vec<_>>()
        };
        let mut facts = sample::facts();
        let fine = "TCP 7500 s, TCP after a FIN 120 s, UDP 300 s".to_owned();
        assert_eq!(what("", &facts), [(Level::Ok, fine)]);
        let idle = "IPVS forgets TCP connections that are idle for 900 s".to_owned();
        assert_eq!(what("ipvs: {tcpTimeout: 900s}", &facts), [(Level::Warning, idle)]);
        let remedy = timeouts(&sample::intent("ipvs: {tcpTimeout: 900s}"), &facts)[0].remedy.clone().unwrap();
        assert!(remedy.starts_with("set ipvs.tcpTimeout: 7500s, or "), "{remedy}");
        let longer = what("conntrack: {tcpEstablishedTimeout: 2h}", &facts);
        assert!(longer[0].1.starts_with("ipvs.tcpTimeout is 7500 s, and"), "{longer:?}");
        let longer = what("ipvs: {tcpFinTimeout: 300s, udpTimeout: 300s}", &facts);
        assert_eq!(longer.len(), 2, "{longer:?}");
        facts.sysctls.0.remove(KEEPALIVE);
        assert_eq!(what("", &facts)[0].0, Level::Warning, "unknown");
    }
}
