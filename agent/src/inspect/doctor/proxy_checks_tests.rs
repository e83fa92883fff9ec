// SPDX-License-Identifier: Apache-2.0

use super::super::{Level, sample};
use super::*;
use crate::core::model::Family;
use crate::kernel::host::links::NodeLink;
use crate::kernel::iptables::iptables_survey::IptablesSurvey;

fn levels(findings: &[NodeFinding]) -> Vec<Level> {
    findings.iter().map(|finding| finding.level).collect()
}

#[test]
fn the_programs_of_iptables_are_there_missing_or_fail() {
    let (intent, mut facts) = (sample::intent(""), sample::facts());
    let found = rules(&intent, &facts);
    assert_eq!(found, [NodeFinding::ok("rules", "IPv4: iptables-nft-save 1.8.9 (nf_tables)")]);
    facts.nftables = Ok(false);
    assert_eq!(levels(&rules(&intent, &facts)), [Level::Error]);
    facts.iptables.programs = vec![(Family::V4, Err("not permitted".to_owned()))];
    assert_eq!(levels(&rules(&intent, &facts)), [Level::Warning]);
    facts.iptables = IptablesSurvey::default();
    let found = rules(&intent, &facts);
    assert_eq!(levels(&found), [Level::Error]);
    assert!(found[0].remedy.as_ref().unwrap().contains("kubeIPVS.rules: nftables"));
}

#[test]
fn chains_in_the_other_flavour_are_a_warning() {
    let mut facts = sample::facts();
    facts.iptables.other_flavour = vec![("iptables-legacy-save".to_owned(), 12)];
    let found = rules(&sample::intent(""), &facts);
    assert_eq!(levels(&found), [Level::Ok, Level::Warning]);
    assert!(found[1].what.starts_with("`iptables-legacy-save` shows 12 chains"), "{found:?}");
}

#[test]
fn rules_mode_nftables_needs_nf_tables_only() {
    let intent = sample::intent("kubeIPVS: {rules: nftables}");
    let of = |nftables| {
        let facts = DoctorFacts { nftables, iptables: IptablesSurvey::default(), ..sample::facts() };
        levels(&rules(&intent, &facts))
    };
    assert_eq!(of(Ok(true)), [Level::Ok]);
    assert_eq!(of(Ok(false)), [Level::Error]);
    assert_eq!(of(Err("not permitted".to_owned())), [Level::Warning]);
}

#[test]
fn rules_mode_auto_is_guessed_without_writing() {
    let intent = sample::intent("kubeIPVS: {rules: auto}");
    let mut facts = sample::facts();
    assert!(rules(&intent, &facts)[0].what.contains("will probably choose iptables"));
    facts.iptables = IptablesSurvey::default();
    let found = rules(&intent, &facts);
    assert!(found[0].what.contains("will probably choose nftables"));
    assert_eq!(levels(&found), [Level::Ok, Level::Ok]);
}

#[test]
fn other_proxies_are_found_by_process_and_link() {
    let (mut intent, mut facts) = (sample::intent(""), sample::facts());
    assert_eq!(levels(&programs(&intent, &facts)), [Level::Ok]);
    facts.processes.programs.push((77, "kube-proxy".to_owned()));
    assert_eq!(levels(&programs(&intent, &facts)), [Level::Warning]);
    intent.agent_runs = true;
    assert_eq!(levels(&programs(&intent, &facts)), [Level::Error]);
    intent.settings.shares_node = true;
    assert_eq!(levels(&programs(&intent, &facts)), [Level::Ok]);
    facts.processes.programs.push((78, "kube-router".to_owned()));
    let link = |name: &str| NodeLink { name: name.to_owned(), ..NodeLink::default() };
    facts.links = Ok(vec![link("cilium_host"), link("kube-dummy-if")]);
    assert_eq!(levels(&programs(&intent, &facts)), [Level::Warning; 3]);
    intent.settings.masquerade_mark = 1 << 9;
    assert_eq!(programs(&intent, &facts)[3].what, "the packet mark 0x200 is one of Cilium's");
    facts.processes.sees_node = false;
    assert!(programs(&intent, &facts)[4].what.contains("could not be checked"));
}

#[test]
fn rules_of_other_modes_are_warnings() {
    const OTHER: &str = "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-SVC-AAAAAAAAAAAAAAAA - [0:0]\n\
                         -A KUBE-SERVICES -d 10.96.0.1/32 -j KUBE-SVC-AAAAAAAAAAAAAAAA\nCOMMIT\n";
    let (mut intent, mut facts) = (sample::intent(""), sample::facts());
    assert_eq!(levels(&leftovers(&intent, &facts)), [Level::Ok]);
    let found = facts.found.as_mut().unwrap();
    found.0.rules = vec![(Family::V4, OTHER.to_owned())];
    found.0.nft_tables[Family::V6].kube_proxy = true;
    let before = leftovers(&intent, &facts);
    assert_eq!(levels(&before), [Level::Warning; 2]);
    assert!(before[0].what.starts_with("IPv4 rules of another kube-proxy mode: 1 chain"), "{before:?}");
    assert!(before[0].why.as_ref().unwrap().starts_with("such rules serve Services until"));
    intent.agent_runs = true;
    assert!(leftovers(&intent, &facts)[1].remedy.as_ref().unwrap().contains("restart the agent"));
    intent.settings.shares_node = true;
    assert_eq!(levels(&leftovers(&intent, &facts)), [Level::Ok], "they are another proxy's");
    facts.found.as_mut().unwrap().1 = vec!["ipsets: the kernel did not answer in time".to_owned()];
    assert_eq!(leftovers(&intent, &facts)[0].what, "ipsets could not be checked");
    facts.found = Err("not permitted".to_owned());
    assert_eq!(levels(&leftovers(&intent, &facts)), [Level::Warning]);
}

#[test]
fn virtual_servers_of_other_programs_are_errors_unless_they_are_excluded() {
    let (mut intent, mut facts) = (sample::intent(""), sample::facts());
    let (ours, theirs) = (sample::server("TCP", "10.96.0.1", 443), sample::server("TCP", "192.0.2.9", 80));
    facts.ipvs.as_mut().unwrap().servers = vec![(ours, "rr".to_owned()), (theirs, "wlc".to_owned())];
    facts.found.as_mut().unwrap().0.bound = Some(["10.96.0.1/32".parse().unwrap()].into_iter().collect());
    let found = virtual_servers(&intent, &facts).unwrap();
    assert_eq!(found.level, Level::Error);
    assert!(found.what.contains("1 virtual server that no Service made: TCP 192.0.2.9:80"), "{found:?}");
    assert!(found.remedy.as_ref().unwrap().contains("ipvs.excludeCIDRs: 192.0.2.9/32"), "{found:?}");
    let excluded = sample::intent("ipvs: {excludeCIDRs: [192.0.2.0/24]}");
    assert_eq!(virtual_servers(&excluded, &facts).unwrap().level, Level::Ok);
    intent.agent_runs = true;
    assert_eq!(virtual_servers(&intent, &facts).unwrap().level, Level::Warning, "the agent does not answer");
    facts.owners = Some(ServiceOwners::parse("TCP 10.96.0.1:443 a/b\nTCP 192.0.2.9:80 a/c\n"));
    assert_eq!(virtual_servers(&intent, &facts).unwrap().level, Level::Ok, "the agent's own");
    facts.found = Err("not permitted".to_owned());
    assert_eq!(virtual_servers(&intent, &facts).unwrap().level, Level::Warning);
    facts.ipvs = Err(IpvsGap::Missing);
    assert_eq!(virtual_servers(&intent, &facts), None);
}

#[test]
fn ports_in_use_are_errors_but_for_those_of_a_kube_proxy() {
    let mut facts = sample::facts();
    assert_eq!(levels(&ports(&facts)), [Level::Ok]);
    facts.ports =
        vec!["healthzBindAddress: cannot listen at 0.0.0.0:10256: Address already in use".to_owned()];
    assert_eq!(levels(&ports(&facts)), [Level::Error]);
    facts.processes.programs.push((77, "kube-proxy".to_owned()));
    assert_eq!(levels(&ports(&facts)), [Level::Warning]);
}
