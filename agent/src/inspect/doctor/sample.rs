// SPDX-License-Identifier: Apache-2.0
//! A healthy node, for the tests of the checks.

use crate::config::{Config, ConfigFlags};
use crate::core::model::settings::RulesMode;
use crate::core::model::{Family, VsKey};
use crate::core::plan::cleanup_plan::Found;
use crate::inspect::doctor::facts::{ApiFacts, DoctorFacts, Intent};
use crate::inspect::doctor::sysctl_paths;
use crate::kernel::host::links::NodeLink;
use crate::kernel::host::node_files::{FoundModules, FoundProcesses, SysctlState};
use crate::kernel::iptables::iptables_survey::{IptablesSurvey, SaveProgram};
use crate::kernel::ipvs::ipvs_survey::IpvsSurvey;
use crate::source::access_review::{ApiSurvey, permissions};

const HEAD: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

/// A configuration with these lines.
pub(super) fn intent(lines: &str) -> Intent {
    let config = Config::parse(&format!("{HEAD}{lines}\n"), &ConfigFlags::default()).unwrap();
    let rules = (!config.chooses_rules).then_some(config.settings.rules);
    let mut settings = config.node_settings().unwrap();
    settings.families = Family::ALL.to_vec();
    // Independent of the CPUs and the kernel of the machine that runs the test.
    settings.sysctls = crate::config::host::sysctls((6, 1), config.strict_arp);
    settings.sysctls.extend(config.conntrack.sysctls(4));
    Intent { config, settings, rules, agent_runs: false }
}

pub(super) fn server(protocol: &str, addr: &str, port: u16) -> VsKey {
    VsKey { protocol: protocol.parse().unwrap(), addr: addr.parse().unwrap(), port }
}

pub(super) fn set(facts: &mut DoctorFacts, path: &str, value: &str) {
    facts.sysctls.0.insert(path.to_owned(), SysctlState { value: value.to_owned(), is_writable: true });
}

/// Sets what the agent sets.
pub(super) fn meet(facts: &mut DoctorFacts, intent: &Intent) {
    for sysctl in &intent.settings.sysctls {
        set(facts, sysctl.path, &sysctl.value.to_string());
    }
}

pub(super) fn facts() -> DoctorFacts {
    let modules = [
        "ip_vs",
        "ip_vs_rr",
        "ip_vs_wlc",
        "dummy",
        "nf_conntrack",
        "nf_conntrack_netlink",
        "nf_tables",
        "nft_ct",
        "ip_set",
        "ip_set_hash_ip",
        "ip_set_hash_ipport",
        "ip_set_hash_ipportip",
        "ip_set_hash_ipportnet",
        "ip_set_bitmap_port",
        "xt_set",
        "xt_comment",
        "xt_mark",
        "xt_addrtype",
        "xt_conntrack",
        "xt_ipvs",
    ];
    let iptables =
        Ok(SaveProgram { name: "iptables-nft-save".to_owned(), version: "1.8.9 (nf_tables)".to_owned() });
    let mut facts = DoctorFacts {
        release: Ok("6.1.0-56-amd64".to_owned()),
        modules: FoundModules {
            present: modules.into_iter().map(str::to_owned).collect(),
            installed: Some(Default::default()),
        },
        processes: FoundProcesses { programs: vec![(1, "systemd".to_owned())], sees_node: true },
        capabilities: Some(0x1ff_ffff_ffff),
        is_root: true,
        links: Ok(vec![NodeLink {
            name: "eth0".to_owned(),
            is_physical: true,
            addresses: vec!["192.0.2.7/24".parse().unwrap(), "fe80::1/64".parse().unwrap()],
            ..NodeLink::default()
        }]),
        ipvs: Ok(IpvsSurvey {
            version: "1.2.1".to_owned(),
            table_size: 4096,
            connections: Some(12),
            timeouts: crate::core::model::settings::Timeouts { tcp: 7500, tcp_fin: 120, udp: 300 },
            servers: Vec::new(),
        }),
        iptables: IptablesSurvey {
            is_installed: true,
            programs: vec![(Family::V4, iptables)],
            other_flavour: Vec::new(),
        },
        nftables: Ok(true),
        found: Ok((Found::default(), Vec::new())),
        api: ApiFacts::Answered(ApiSurvey {
            server: "https://192.0.2.1:6443".to_owned(),
            addresses: vec!["192.0.2.1".parse().unwrap()],
            version: "v1.36.2".to_owned(),
            time: Some(1_795_828_258),
            node: Ok(true),
            service_cidrs: vec!["10.96.0.0/12".parse().unwrap()],
            permissions: permissions(true).into_iter().map(|permission| (permission, Ok(true))).collect(),
        }),
        ..DoctorFacts::unknown("not in the sample")
    };
    set_all(&mut facts);
    facts
}

fn set_all(facts: &mut DoctorFacts) {
    for path in sysctl_paths().filter(|path| !path.contains("/vs/") && !path.contains("bridge")) {
        set(facts, path, "1");
    }
    for (path, value) in [
        ("net/ipv4/tcp_keepalive_time", "7200"),
        ("net/netfilter/nf_conntrack_tcp_timeout_established", "432000"),
        ("net/netfilter/nf_conntrack_tcp_timeout_fin_wait", "120"),
        ("net/netfilter/nf_conntrack_udp_timeout_stream", "120"),
        ("net/ipv4/conf/all/rp_filter", "2"),
    ] {
        set(facts, &format!("/proc/sys/{path}"), value);
    }
    let usual = intent("");
    debug_assert_eq!(usual.rules, Some(RulesMode::Iptables));
    meet(facts, &usual);
}
