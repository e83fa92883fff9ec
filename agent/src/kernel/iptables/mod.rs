// SPDX-License-Identifier: Apache-2.0
//! `iptables-save`, `iptables-restore` and their IPv6 counterparts: the only external programs of the agent.

pub mod flavour;
pub mod iptables_survey;
pub mod worker;

use crate::core::plan::outcome::{Cause, OpError};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::core::model::{Family, PerFamily};
use crate::core::plan::op::RulesOp;
use crate::core::rules::removal::Removal;
use crate::core::rules::render_restore;
use crate::core::rules::save::{ObservedRules, parse_save};
use crate::kernel::host::child::{self, ChildError};
use crate::kernel::netfilter::nft_watch::OwnPorts;
use flavour::Flavour;

/// Part of a rule that needs the match `ipvs` (module `xt_ipvs`).
pub const IPVS_MATCH: &str = "-m ipvs ";
/// How long a program may run. Listing 50,000 rules takes seconds on a slow node.
const LIMIT: Duration = Duration::from_secs(20);
/// How long iptables waits for its lock, in seconds.
const LOCK_WAIT: &str = "5";
/// Exit code of iptables when the kernel lacks its tables (`VERSION_PROBLEM` of `<xtables.h>`).
const NO_TABLES: i32 = 3;
/// Messages of iptables-nft if the kernel has no nf_tables; its exit code is not specific.
const NO_NF_TABLES: [&str; 3] =
    ["generation id: Invalid argument", "Failed to initialize nft", "Protocol not supported"];

/// Runs the programs and counts them. Clones share the count.
#[derive(Clone, Debug, Default)]
pub struct Iptables {
    started: Arc<AtomicU64>,
    children: OwnPorts,
    /// The flavour of each family, detected at the first use.
    flavours: Arc<PerFamily<OnceLock<Flavour>>>,
}

/// The version of the program that the agent of this node runs, such as `1.8.9 (nf_tables)`; `None`: it does not tell.
pub fn version() -> Option<String> {
    // Which flavour the agent uses does not matter here: both are of one version.
    ["iptables-save", "iptables-nft-save"].iter().find_map(|program| child_version(program).ok())
}

/// The version of a program.
fn child_version(program: &str) -> Result<String, ChildError> {
    let text = child::run(program, &["--version"], "", LIMIT, |_| {})?;
    Ok(text.trim().split_once(" v").map_or_else(|| text.trim().to_owned(), |(_, version)| version.to_owned()))
}

impl Iptables {
    /// Processes started so far.
    pub fn started(&self) -> u64 {
        self.started.load(Ordering::Relaxed)
    }

    /// The processes that write rules for this agent.
    pub fn children(&self) -> OwnPorts {
        self.children.clone()
    }

    /// The program for a family in the flavour of this node.
    fn program(&self, family: Family, verb: &str) -> Result<String, OpError> {
        let find = || Flavour::of_family(family, |program| self.save_to_compare(program));
        Ok(self.flavour(family, find)?.program(family, verb))
    }

    /// The flavour of a family, which `find` detects until it succeeds once. One caller does not wait for another.
    fn flavour(
        &self,
        family: Family,
        find: impl FnOnce() -> Result<Flavour, OpError>,
    ) -> Result<Flavour, OpError> {
        let known = &self.flavours[family];
        match known.get() {
            Some(flavour) => Ok(*flavour),
            None => find().map(|flavour| *known.get_or_init(|| flavour)),
        }
    }

    /// The output of a program; empty if the flavour is not installed or not supported.
    fn save_to_compare(&self, program: &str) -> Result<String, OpError> {
        match self.save_with(program).map_err(|error| op_error(&error, false)) {
            Err(error) if matches!(error.cause, Cause::ProgramMissing | Cause::NotSupported) => {
                Ok(String::new())
            }
            saved => saved,
        }
    }

    fn save_with(&self, program: &str) -> Result<String, ChildError> {
        self.started.fetch_add(1, Ordering::Relaxed);
        child::run(program, &[], "", LIMIT, |_| {})
    }

    /// The rules of a family as text.
    ///
    /// # Errors
    /// When the program fails.
    pub fn save(&self, family: Family) -> Result<String, OpError> {
        self.save_with(&self.program(family, "save")?).map_err(|error| op_error(&error, false))
    }

    /// Reads the rules of a family.
    ///
    /// # Errors
    /// When the program fails.
    pub fn read(&self, family: Family) -> Result<SavedRules, OpError> {
        let text = self.save(family)?;
        Ok(SavedRules { rules: parse_save(&text), in_nft: is_in_nft(&text) })
    }

    /// Writes the rules of a family, each table atomically.
    ///
    /// # Errors
    /// When the program fails: the tables that it has not reached are unchanged.
    pub fn write(&self, rules: &RulesOp) -> Result<(), OpError> {
        let input = render_restore(&rules.chains, &rules.jumps);
        let program = self.program(rules.family, "restore")?;
        // The first table may have been written before the second failed.
        let Err(error) = self.restore(&program, &input) else { return Ok(()) };
        let (kept, left_out): (Vec<&str>, Vec<&str>) = input.lines().partition(|l| !l.contains(IPVS_MATCH));
        // If the program hangs or is missing, the match is not the cause.
        if left_out.is_empty() || matches!(error.cause, Cause::TimedOut | Cause::ProgramMissing) {
            return Err(error);
        }
        // The filter must be in place even if one match is missing.
        match self.restore(&program, &(kept.join("\n") + "\n")) {
            Ok(()) => Err(OpError::degraded(
                error.cause,
                format!(
                    "{error}; the other rules are in place; load the module xt_ipvs: without it the source ranges of \
                     load balancers do not apply to connections of this node itself"
                ),
            )),
            Err(_) => Err(error),
        }
    }

    /// Tries whether the programs and the kernel have all that our rules use. `set`: an existing set of addresses. Changes
    /// nothing.
    ///
    /// # Errors
    /// What is missing.
    pub fn try_rules(&self, family: Family, set: &str) -> Result<(), OpError> {
        let program = self.program(family, "restore")?;
        let result = self.run_restore(&program, &["--test"], &tried_rules(family, set));
        result.map_err(|error| op_error(&error, false))
    }

    /// Removes chains and jumps, each table atomically.
    ///
    /// # Errors
    /// When the program fails: the tables that it has not reached are unchanged.
    pub fn remove(&self, family: Family, removal: &Removal) -> Result<(), OpError> {
        self.restore(&self.program(family, "restore")?, &removal.render())
    }

    fn restore(&self, program: &str, input: &str) -> Result<(), OpError> {
        self.run_restore(program, &[], input).map_err(|error| op_error(&error, true))
    }

    fn run_restore(&self, program: &str, more: &[&str], input: &str) -> Result<(), ChildError> {
        self.started.fetch_add(1, Ordering::Relaxed);
        let args = [&["-w", LOCK_WAIT, "--noflush"], more].concat();
        child::run(program, &args, input, LIMIT, |pid| self.children.add(pid)).map(drop)
    }
}

/// Rules with every match and target of ours.
fn tried_rules(family: Family, set: &str) -> String {
    let (vip, reject) = match family {
        Family::V4 => ("192.0.2.1", "icmp-port-unreachable"),
        Family::V6 => ("2001:db8::1", "icmp6-port-unreachable"),
    };
    format!(
        "*nat\n:KUBE-IPVS-TRIED - [0:0]\n\
         -A KUBE-IPVS-TRIED -m comment --comment \"tried\" -m set --match-set {set} dst -j RETURN\n\
         -A KUBE-IPVS-TRIED -m addrtype --dst-type LOCAL -m physdev ! --physdev-is-in -j ACCEPT\n\
         -A KUBE-IPVS-TRIED -m mark ! --mark 0x4000/0x4000 -j RETURN\n\
         -A KUBE-IPVS-TRIED -j MARK --set-xmark 0x4000/0x0\n\
         -A KUBE-IPVS-TRIED -j MASQUERADE --random-fully\nCOMMIT\n\
         *filter\n:KUBE-IPVS-TRIED - [0:0]\n\
         -A KUBE-IPVS-TRIED -m ipvs --vproto 6 --vaddr {vip} --vport 80 -j DROP\n\
         -A KUBE-IPVS-TRIED -m conntrack --ctstate NEW -j REJECT --reject-with {reject}\nCOMMIT\n"
    )
}

/// `writes`: the program may have changed something before it failed.
fn op_error(error: &ChildError, writes: bool) -> OpError {
    let (cause, remedy) = match error {
        ChildError::Missing(_) => (Cause::ProgramMissing, ": install the iptables package"),
        ChildError::TimedOut { .. } => {
            (Cause::TimedOut, "; check whether another program holds /run/xtables.lock, and the node's load")
        }
        // The program's own remedy, to be root, does not help in a container. Legacy tables and the match `set` of
        // both flavours need a raw socket.
        ChildError::Failed { stderr, .. }
            if ["you must be root", "open socket to ipset"].iter().any(|text| stderr.contains(text)) =>
        {
            (Cause::NotPermitted, "; it needs the capabilities NET_ADMIN and NET_RAW")
        }
        ChildError::Failed { code, stderr, .. }
            if *code == Some(NO_TABLES) || NO_NF_TABLES.iter().any(|text| stderr.contains(text)) =>
        {
            (
                Cause::NotSupported,
                "; load the kernel's iptables modules, or use the other flavour of iptables",
            )
        }
        ChildError::Failed { .. } | ChildError::Unusable(..) => (Cause::ProgramFailed, ""),
    };
    let message = format!("{error}{remedy}");
    if writes { OpError::uncertain(cause, message) } else { OpError::plain(cause, message) }
}

/// The rules of a family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SavedRules {
    pub rules: ObservedRules,
    /// Whether they are in nf_tables.
    pub in_nft: bool,
}

/// The first line names nf_tables: `# Generated by iptables-save v1.8.9 (nf_tables) on …`.
fn is_in_nft(text: &str) -> bool {
    text.lines().next().is_some_and(|line| line.contains("(nf_tables)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_detection_of_the_flavour_is_retried_and_each_family_has_its_own_flavour() {
        let iptables = Iptables::default();
        let failed = OpError::plain(Cause::TimedOut, "iptables-nft-save did not end within 20 s");
        assert_eq!(iptables.flavour(Family::V4, || Err(failed.clone())), Err(failed));
        assert_eq!(iptables.flavour(Family::V4, || Ok(Flavour::Nft)), Ok(Flavour::Nft));
        assert_eq!(iptables.clone().flavour(Family::V4, || Ok(Flavour::Legacy)), Ok(Flavour::Nft));
        // One family is detected during the detection of the other.
        let iptables = Iptables::default();
        let found = iptables.flavour(Family::V6, || {
            assert_eq!(iptables.flavour(Family::V4, || Ok(Flavour::Legacy)), Ok(Flavour::Legacy));
            Ok(Flavour::Nft)
        });
        assert_eq!(found, Ok(Flavour::Nft));
    }

    #[test]
    fn a_missing_flavour_has_no_rules_and_a_failing_one_is_an_error() {
        let iptables = Iptables::default();
        assert_eq!(iptables.save_to_compare("kube-ipvs-nothing-save"), Ok(String::new()));
        let error = iptables.save_to_compare("false").unwrap_err();
        assert!(error.message.starts_with("false failed"), "{}", error.message);
    }

    #[test]
    fn missing_nf_tables_is_not_supported_and_a_busy_kernel_is_a_failure() {
        let cause = |code, stderr: &str| {
            let (program, stderr) = ("iptables-nft-save".to_owned(), stderr.to_owned());
            let status = format!("exit code {code}");
            op_error(&ChildError::Failed { program, status, code: Some(code), stderr }, false).cause
        };
        for lacking in [
            cause(NO_TABLES, "can't initialize iptables table `filter'"),
            cause(4, "Could not fetch rule set generation id: Invalid argument"),
            cause(1, "iptables-nft-save/1.8.9 Failed to initialize nft: Protocol not supported"),
        ] {
            assert_eq!(lacking, Cause::NotSupported);
        }
        let busy = cause(4, "Could not fetch rule set generation id: Resource temporarily unavailable");
        assert_eq!(busy, Cause::ProgramFailed);
        assert_eq!(
            cause(4, "Could not fetch rule set generation id: Permission denied (you must be root)"),
            Cause::NotPermitted
        );
    }
}
