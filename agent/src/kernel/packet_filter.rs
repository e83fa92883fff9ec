// SPDX-License-Identifier: Apache-2.0
//! Sets and rules, in either rules mode.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use nftables_netlink::Counters;

use super::iptables::Iptables;
use super::iptables::worker::{Rules, Wake};
use super::netfilter::ipset::{IpsetClient, IpsetError};
use super::netfilter::nft_tables;
use super::netfilter::nft_watch::OwnPorts;
use super::nftables::{NftFilter, read_set};
use super::reading::failed;
use crate::core::mirror::ObservedSet;
use crate::core::mirror::comparison::NftTables;
use crate::core::model::sets::{ProbedSet, SetId};
use crate::core::model::settings::{RulesMode, Settings};
use crate::core::model::{Family, PerFamily};
use crate::core::plan::op::{LeftoversOp, Op};
use crate::core::plan::outcome::{Cause, Finished, ObserveError, OpError, Progress};
use crate::core::plan::subject::Part;
use crate::words;

/// Exists if the kernel has ipset. Asking the kernel itself would load the module.
const IPSET_MODULE: &str = "/sys/module/ip_set";

/// How long the loop waits for an ipset whose rules were just removed. Rules of iptables-legacy keep it in use, and then
/// each retry waits as long.
const DESTROY: Duration = Duration::from_millis(100);

/// Where sets and rules are.
#[allow(clippy::large_enum_variant, reason = "there is one for each agent")]
pub(super) enum PacketFilter {
    Iptables { sets: IpsetClient, iptables: Iptables, rules: Rules },
    Nftables { filter: NftFilter, ports: OwnPorts },
}

impl PacketFilter {
    /// Opens the sockets in the current network namespace.
    ///
    /// # Errors
    /// When the kernel lacks ipset, or nf_tables.
    pub fn open(settings: &Settings) -> anyhow::Result<Self> {
        match settings.rules {
            RulesMode::Iptables => {
                let iptables = Iptables::default();
                let sets = IpsetClient::open().context("ipset is not usable")?;
                Ok(Self::Iptables { sets, rules: Rules::new(iptables.clone()), iptables })
            }
            RulesMode::Nftables => {
                let filter = NftFilter::open(settings).context(
                    "nf_tables is not usable: load its module (`modprobe nf_tables`), or set kubeIPVS.rules to iptables",
                )?;
                let ports = OwnPorts::default();
                ports.add(filter.port_number());
                Ok(Self::Nftables { filter, ports })
            }
        }
    }

    /// Traffic with the kernel about sets; in rules mode `nftables` about rules, too.
    pub fn counters(&self) -> Counters {
        match self {
            Self::Iptables { sets, .. } => sets.counters(),
            Self::Nftables { filter, .. } => filter.counters(),
        }
    }

    /// Processes started so far.
    pub fn started(&self) -> u64 {
        match self {
            Self::Iptables { iptables, .. } => iptables.started(),
            Self::Nftables { .. } => 0,
        }
    }

    /// Calls `wake` whenever a program has ended.
    pub fn wake(&mut self, wake: Wake) {
        if let Self::Iptables { rules, .. } = self {
            rules.wake(wake);
        }
    }

    /// The netlink ports of our changes.
    pub fn own_ports(&self) -> OwnPorts {
        match self {
            Self::Iptables { iptables, .. } => iptables.children(),
            Self::Nftables { ports, .. } => ports.clone(),
        }
    }

    /// Reads one set; `None`: it does not exist.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn get(&mut self, id: SetId) -> Result<Option<ObservedSet>, ObserveError> {
        let part = Part::Set(id);
        match self {
            Self::Iptables { sets, .. } => sets.get(id).map_err(|error| failed(part)(&error)),
            Self::Nftables { filter, .. } => filter.get(id).map_err(|error| failed(part)(&error)),
        }
    }

    /// Whether no other program has changed a set since all were read; false if that is unknown.
    pub fn sets_are_known(&mut self) -> bool {
        match self {
            Self::Iptables { .. } => false,
            Self::Nftables { filter, .. } => filter.sets_are_known(),
        }
    }

    /// A reading of all sets begins. False: they are known not to have changed, so they need not be read.
    pub fn begin_sets(&mut self, fills: bool) -> bool {
        if !fills && self.sets_are_known() {
            return false;
        }
        if let Self::Nftables { filter, .. } = self {
            filter.begin_sets();
        }
        true
    }

    /// A reading of all sets has ended; `complete`: all of them were read.
    pub fn end_sets(&mut self, complete: bool) {
        if let Self::Nftables { filter, .. } = self {
            filter.end_sets(complete);
        }
    }

    /// Whether each set exists and has the member.
    pub fn have(&mut self, probed: &[ProbedSet]) -> Vec<Result<bool, ObserveError>> {
        // nf_tables reports every change, so its sets need no probe.
        let Self::Iptables { sets, .. } = self else { return vec![Ok(true); probed.len()] };
        let of_set = |(found, (set, _)): (Result<bool, OpError>, &ProbedSet)| {
            found.map_err(|error| ObserveError { part: Part::Set(*set), error })
        };
        match sets.have(probed) {
            Ok(answers) => answers.into_iter().zip(probed).map(of_set).collect(),
            Err(error) => probed.iter().map(|(set, _)| Err(failed(Part::Set(*set))(&error))).collect(),
        }
    }

    /// Runs ops on sets and entries, and returns one result for each.
    pub fn execute_sets(&mut self, ops: &[&Op]) -> Vec<Result<Progress, OpError>> {
        match self {
            Self::Iptables { sets, .. } => sets.execute(ops),
            Self::Nftables { filter, .. } => filter.execute(ops),
        }
    }

    /// Writes rules, or removes leftovers. iptables needs programs, which are only started.
    ///
    /// # Errors
    /// When the kernel refuses, or a program cannot be started.
    pub fn execute_rules(&mut self, op: &Op) -> Result<Progress, OpError> {
        match (self, op) {
            (Self::Iptables { rules, .. }, op) => rules.execute(op).map(|()| Progress::Started),
            (Self::Nftables { filter, .. }, Op::WriteRules(rules)) => {
                filter.write(rules).map(|()| Progress::Done)
            }
            (Self::Nftables { filter, .. }, Op::RemoveLeftovers(leftovers)) => {
                remove_leftovers(filter, leftovers).map(|()| Progress::Done)
            }
            (Self::Nftables { .. }, other) => {
                Err(OpError::plain(Cause::Other, format!("{other}: not an op on rules")))
            }
        }
    }

    /// Starts reading the rules of these families; [`Self::finished`] returns them.
    pub fn read_rules(&mut self, families: &[Family], nft: &mut nftables_netlink::Client, afresh: bool) {
        for family in families {
            match self {
                Self::Iptables { rules, .. } => rules.read(*family, nft, afresh),
                Self::Nftables { filter, .. } => filter.read_rules(*family, afresh),
            }
        }
    }

    /// Results of readings and programs; waits up to `limit` for the first one.
    pub fn finished(&mut self, limit: Duration) -> Vec<Finished> {
        match self {
            Self::Iptables { rules, .. } => rules.finished(limit),
            Self::Nftables { filter, .. } => filter.finished(),
        }
    }

    /// Sets of our names that the other rules mode has left. Those that cannot be read are not among them. `tables`: the
    /// tables of other modes.
    pub fn other_sets(
        &self,
        families: &[Family],
        tables: &PerFamily<NftTables>,
        nft: &mut nftables_netlink::Client,
    ) -> BTreeMap<SetId, ObservedSet> {
        match self {
            Self::Iptables { .. } => {
                let families = families.iter().filter(|family| tables[**family].kube_ipvs);
                let ids = families.flat_map(|family| SetId::all(*family));
                ids.filter_map(|id| Some((id, read_set(nft, id).ok()??))).collect()
            }
            Self::Nftables { .. } if !Path::new(IPSET_MODULE).exists() => BTreeMap::new(),
            Self::Nftables { .. } => {
                let ids = families.iter().flat_map(|family| SetId::all(*family));
                ipsets(&ids.map(|id| (id, None)).collect::<Vec<_>>()).unwrap_or_default()
            }
        }
    }
}

/// Those of the ipsets that exist.
fn ipsets(all: &[ProbedSet]) -> Result<BTreeMap<SetId, ObservedSet>, IpsetError> {
    let mut client = IpsetClient::open_untyped()?;
    let mut found = BTreeMap::new();
    for (exists, (id, _)) in client.have(all)?.into_iter().zip(all) {
        if exists == Ok(true)
            && let Some(set) = client.get(*id)?
        {
            found.insert(*id, set);
        }
    }
    Ok(found)
}

fn remove_leftovers(filter: &mut NftFilter, leftovers: &LeftoversOp) -> Result<(), OpError> {
    let family = leftovers.family;
    if !leftovers.removal.is_empty() {
        filter.remove_leftovers(family, &leftovers.removal)?;
        let (chains, rules) = leftovers.removal.count();
        tracing::info!(%family, chains, rules, "removed iptables rules that are not in use");
    }
    nft_tables::remove_all(family, leftovers.nft_tables)?;
    if !leftovers.sets.is_empty() {
        let failed = |error: &(dyn Error + 'static)| {
            OpError::uncertain(Cause::Other, format!("cannot remove ipsets: {}", words::causes(error)))
        };
        let mut client = IpsetClient::open_untyped().map_err(|error| failed(&error))?;
        for set in &leftovers.sets {
            client.destroy_soon(*set, DESTROY).map_err(|why| {
                OpError::uncertain(Cause::InUse, format!("cannot remove ipset {set}: {why}"))
            })?;
        }
        tracing::info!(%family, sets = leftovers.sets.len(), "removed ipsets that are not in use");
    }
    Ok(())
}
