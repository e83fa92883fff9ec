// SPDX-License-Identifier: Apache-2.0
//! Compares the kernel state, from the output of its tools, with the expected state.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use anyhow::{Context, Result};

use super::tally::Footprint;
use super::traffic::CLOSED;
use super::world::{NODE_PORTS, Wanted};
use crate::bench::process::status;
use crate::lab::{Netns, bound, oracle};

/// The nftables table that counts packets behind the agent's filters.
const COUNTERS: &str = "table inet chaos";

/// The node and its expected rules.
#[derive(Debug)]
pub struct Judge<'a> {
    ns: &'a Netns,
    rules: BTreeSet<String>,
    /// Entries of sets that never change.
    entries: BTreeSet<String>,
    /// Packets that passed and were reported already.
    seen: u64,
}

impl<'a> Judge<'a> {
    /// Counts packets from the network to addresses of the node that have passed the agent's filter, and what
    /// is sent to pods by a client that source ranges exclude.
    ///
    /// # Errors
    /// When nft refuses.
    pub fn new(ns: &'a Netns, stranger: [IpAddr; 2]) -> Result<Self> {
        let [v4, v6] = stranger;
        let rules = format!(
            "{COUNTERS} {{
               counter passed {{ }}
               chain in {{ type filter hook input priority 10;
                 iifname eth0 udp dport {CLOSED} counter name passed; }}
               chain out {{ type filter hook postrouting priority 90;
                 ip saddr {v4} tcp dport 8080 counter name passed;
                 ip6 saddr {v6} tcp dport 8080 counter name passed; }}
             }}"
        );
        ns.exec_with(&["nft", "-f", "-"], Some(&rules))?;
        Ok(Self { ns, rules: BTreeSet::new(), entries: BTreeSet::new(), seen: 0 })
    }

    /// Packets that passed since the last call.
    ///
    /// # Errors
    /// When nft fails.
    pub fn newly_passed(&mut self) -> Result<u64> {
        let passed = self.passed()?;
        Ok(passed - std::mem::replace(&mut self.seen, passed))
    }

    /// Ignores packets that passed since the last call.
    ///
    /// # Errors
    /// When nft fails.
    pub fn excuse(&mut self) -> Result<()> {
        self.newly_passed().map(drop)
    }

    fn passed(&self) -> Result<u64> {
        let shown = self.ns.exec(&["nft", "list", "counter", "inet", "chaos", "passed"])?.stdout;
        let mut words = shown.split_whitespace().skip_while(|word| *word != "packets");
        words.nth(1).and_then(|word| word.parse().ok()).context("packets of the counter")
    }

    /// Records the current rules and set entries as the expected ones: only objects
    /// that never change exist yet.
    ///
    /// # Errors
    /// When a program fails.
    pub fn learn(&mut self) -> Result<()> {
        self.rules = self.read_rules()?;
        self.entries = steady(&oracle::sets(self.ns)?);
        Ok(())
    }

    fn read_rules(&self) -> Result<BTreeSet<String>> {
        // Addresses of the links of pods come and go.
        let rules = oracle::rules(self.ns)?.into_iter();
        Ok(rules.filter(|rule| !rule.contains("@node-addresses: ")).collect())
    }

    /// The differences between the kernel and the expected state.
    ///
    /// # Errors
    /// When a program fails.
    pub fn difference(&self, wanted: &Wanted) -> Result<Option<String>> {
        let saved = self.ns.exec(&["ipvsadm", "-Sn"])?.stdout;
        if let Some(difference) = differing_servers(&wanted.servers, &servers(&saved)) {
            return Ok(Some(difference));
        }
        let addresses = bound(self.ns);
        if let Some(address) = addresses.symmetric_difference(&wanted.addresses).next() {
            let how = if addresses.contains(address) { "is bound" } else { "is not bound" };
            return Ok(Some(format!("{address} {how}")));
        }
        let sets = oracle::sets(self.ns)?;
        if let Some(entry) = self.entries.difference(&steady(&sets)).next() {
            return Ok(Some(format!("the entry {entry} is missing")));
        }
        let entries = guarded(&sets);
        if let Some(address) = entries.symmetric_difference(&wanted.addresses).next() {
            let how = if entries.contains(address) { "is" } else { "is not" };
            return Ok(Some(format!("{address} {how} in the set of guarded addresses")));
        }
        let rules = self.read_rules()?;
        if !self.rules.is_empty() && rules != self.rules {
            let rule = rules.symmetric_difference(&self.rules).next().cloned().unwrap_or_default();
            return Ok(Some(format!("rules differ, as in {rule}")));
        }
        Ok(None)
    }
}

/// Virtual servers and their real servers of weight other than 0, from `ipvsadm -Sn`.
fn servers(saved: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut all: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in saved.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["-A", flag, at, ..] => _ = all.entry(format!("{flag} {at}")).or_default(),
            ["-a", flag, at, "-r", real_server, "-m", "-w", weight, ..] if weight != "0" => {
                all.entry(format!("{flag} {at}")).or_default().insert(real_server.to_owned());
            }
            _ => {}
        }
    }
    all
}

fn differing_servers(
    wanted: &BTreeMap<String, BTreeSet<String>>,
    found: &BTreeMap<String, BTreeSet<String>>,
) -> Option<String> {
    // Links of pods also have addresses that serve node ports.
    let is_node_port = |name: &str| NODE_PORTS.iter().any(|port| name.ends_with(&format!(":{port}")));
    for (name, real_servers) in wanted {
        match found.get(name) {
            None => return Some(format!("{name} is missing")),
            Some(has) if has != real_servers => {
                return Some(format!("{name} has {has:?}, not {real_servers:?}"));
            }
            Some(_) => {}
        }
    }
    let more = found.keys().find(|name| !wanted.contains_key(*name) && !is_node_port(name));
    more.map(|name| format!("{name} exists"))
}

/// The entries of all sets but those of endpoints, as `SET ENTRY`, from `ipset save`. Without one of them a
/// connection goes out with the client's own address, for as long as it lives.
fn steady(sets: &str) -> BTreeSet<String> {
    let entries = sets.lines().filter_map(|line| line.strip_prefix("add "));
    entries.filter(|entry| !entry.contains("LOOP-BACK ")).map(str::to_owned).collect()
}

/// The entries of the sets of all addresses on `kube-ipvs0`, from `ipset save`.
fn guarded(sets: &str) -> BTreeSet<IpAddr> {
    let entries = sets.lines().filter_map(|line| {
        let rest = line.strip_prefix("add ")?;
        rest.strip_prefix("KUBE-IPVS-IPS ").or_else(|| rest.strip_prefix("KUBE-6-IPVS-IPS "))
    });
    entries.filter_map(|entry| entry.split_whitespace().next()?.parse().ok()).collect()
}

/// Memory, threads and open files of a process.
///
/// # Errors
/// When it is gone.
pub fn footprint(pid: u32) -> Result<Footprint> {
    let [memory, threads] = status(pid, ["RssAnon:", "Threads:"])?;
    let files = std::fs::read_dir(format!("/proc/{pid}/fd")).context("open files")?.count();
    Ok(Footprint { memory, threads, files: files as u64 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drained_real_servers_are_ignored() {
        let saved = "-A -t 10.96.0.10:80 -s rr\n-a -t 10.96.0.10:80 -r 10.244.1.5:8080 -m -w 1\n\
                     -a -t 10.96.0.10:80 -r 10.244.1.6:8080 -m -w 0\n-A -t 192.168.50.2:30080 -s rr\n";
        let found = servers(saved);
        let wanted =
            BTreeMap::from([("-t 10.96.0.10:80".to_owned(), BTreeSet::from(["10.244.1.5:8080".to_owned()]))]);
        assert_eq!(differing_servers(&wanted, &found), None);
        let other = BTreeMap::from([("-t 10.96.0.10:80".to_owned(), BTreeSet::new())]);
        assert!(differing_servers(&other, &found).is_some_and(|text| text.contains("10.244.1.5:8080")));
        assert_eq!(
            differing_servers(&wanted, &BTreeMap::new()),
            Some("-t 10.96.0.10:80 is missing".to_owned())
        );
    }

    #[test]
    fn guarded_addresses_are_in_two_sets() {
        let sets = "create KUBE-IPVS-IPS hash:ip\nadd KUBE-IPVS-IPS 10.96.0.10\nadd KUBE-6-IPVS-IPS fd00:96::10\n\
                    add KUBE-CLUSTER-IP 10.96.0.20,tcp:80\n";
        let expected: BTreeSet<IpAddr> =
            ["10.96.0.10", "fd00:96::10"].iter().map(|ip| ip.parse().unwrap()).collect();
        assert_eq!(guarded(sets), expected);
    }

    #[test]
    fn entries_of_endpoints_are_not_compared() {
        let sets = "create KUBE-LOAD-BALANCER hash:ip,port\nadd KUBE-LOAD-BALANCER 203.0.113.20,tcp:80\n\
                    add KUBE-LOOP-BACK 10.244.1.10,tcp:8080,10.244.1.10\n";
        assert_eq!(steady(sets), BTreeSet::from(["KUBE-LOAD-BALANCER 203.0.113.20,tcp:80".to_owned()]));
    }
}
