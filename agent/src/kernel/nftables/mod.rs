// SPDX-License-Identifier: Apache-2.0
//! Sets and rules in tables of nf_tables that are ours alone (rules mode `nftables`). No program is started, and
//! `CAP_NET_ADMIN` is sufficient.

mod compile;
mod nft_elements;
mod nft_leftovers;
mod nft_rules;

use std::collections::BTreeSet;

use nftables_netlink::netlink_batch::Errno;
use nftables_netlink::{
    Client, Command, CommitError, Counters, Element, Error, RefusedCommand, Table, Transaction,
};

use crate::core::mirror::ObservedSet;
use crate::core::model::sets::SetId;
use crate::core::model::settings::Settings;
use crate::core::model::{Family, PerFamily};
use crate::core::plan::op::Op;
use crate::core::plan::outcome::{Cause, Finished, OpError, Progress};
use crate::core::rules::nftables::TABLE;
use crate::core::rules::removal::Removal;
use crate::kernel::netfilter::nft_tables::{self, nft_family};
use crate::words;
pub(super) use nft_leftovers::{removal_commands, save_text};

/// How often a transaction is sent without the commands that the kernel refused. Each round reports all of them.
const ROUNDS: usize = 6;

/// Our tables of nf_tables, one for each family.
pub(super) struct NftFilter {
    client: Client,
    /// What the rules depend on.
    settings: Settings,
    /// The generation at which the sets were read in full, plus our transactions since. While it is that of the kernel,
    /// nothing else has changed any table.
    sets_known: Option<u32>,
    /// The same, for rules.
    rules_known: PerFamily<Option<u32>>,
    /// The generation at the begin of a reading of all sets.
    reading: Option<u32>,
    /// Readings of rules.
    ready: Vec<Finished>,
}

impl NftFilter {
    /// Opens a socket in the current network namespace.
    ///
    /// # Errors
    /// When the kernel has no nf_tables.
    pub fn open(settings: &Settings) -> Result<Self, Error> {
        let mut client = Client::open()?;
        client.generation()?;
        Ok(Self {
            client,
            settings: settings.clone(),
            sets_known: None,
            rules_known: PerFamily::default(),
            reading: None,
            ready: Vec::new(),
        })
    }

    pub fn counters(&self) -> Counters {
        self.client.counters()
    }

    /// The netlink port of our changes.
    pub fn port_number(&self) -> u32 {
        self.client.port_number()
    }

    /// Results of [`Self::read_rules`].
    pub fn finished(&mut self) -> Vec<Finished> {
        std::mem::take(&mut self.ready)
    }

    fn generation(&mut self) -> Option<u32> {
        nft_tables::generation(&mut self.client).unwrap_or_default()
    }

    /// Whether no other program has changed a table since all sets were read.
    pub fn sets_are_known(&mut self) -> bool {
        self.sets_known.is_some_and(|known| self.generation() == Some(known))
    }

    /// A reading of all sets begins.
    pub fn begin_sets(&mut self) {
        self.reading = self.generation();
    }

    /// A reading of all sets has ended; `complete`: all of them were read.
    pub fn end_sets(&mut self, complete: bool) {
        let began = self.reading.take();
        let unchanged = began.is_some() && began == self.generation();
        self.sets_known = began.filter(|_| complete && unchanged);
    }

    /// Applies a transaction, and counts it as ours.
    fn commit(&mut self, commands: Vec<Command>) -> Result<(), CommitError> {
        let result = self.client.commit(&commands.into_iter().collect::<Transaction>());
        let known = [&mut self.sets_known, &mut self.reading].into_iter().chain(self.rules_known.iter_mut());
        match &result {
            Ok(()) => known.for_each(|known| *known = known.map(|known| known.wrapping_add(1))),
            Err(CommitError::Refused { .. }) => {}
            Err(_) => known.for_each(|known| *known = None),
        }
        result
    }

    /// Removes chains and jumps that other modes left in the tables of iptables-nft, atomically.
    ///
    /// # Errors
    /// When the kernel refuses; nothing is removed then.
    pub fn remove_leftovers(&mut self, family: Family, removal: &Removal) -> Result<(), OpError> {
        let removed = self.commit(removal_commands(family, removal));
        // Another program may have changed one of them.
        removed.map_err(|error| OpError { uncertain: true, ..commit_error(&error) })
    }

    /// Reads a set; `None`: it does not exist.
    ///
    /// # Errors
    /// When the list is not complete.
    pub fn get(&mut self, id: SetId) -> Result<Option<ObservedSet>, Error> {
        read_set(&mut self.client, id)
    }

    /// Runs ops on sets and entries in one transaction, and returns one result for each.
    pub fn execute(&mut self, ops: &[&Op]) -> Vec<Result<Progress, OpError>> {
        let mut results: Vec<Result<Progress, OpError>> = vec![Ok(Progress::Done); ops.len()];
        let mut parts = parts(ops);
        for _ in 0..ROUNDS {
            if parts.is_empty() {
                return results;
            }
            // A set needs its table.
            let families: BTreeSet<Family> = parts.iter().map(|part| part.set.family).collect();
            let tables = families.iter().map(|f| Command::AddTable(Table::new(nft_family(*f), TABLE)));
            let mut commands: Vec<Command> = tables.collect();
            let offset = commands.len();
            commands.extend(parts.iter().map(|part| part.command(ops)));
            let refused = match self.commit(commands) {
                Ok(()) => return results,
                Err(CommitError::Refused { commands, .. })
                    if commands.iter().all(|refused| refused.index >= offset) =>
                {
                    commands
                }
                Err(error) => {
                    let error = commit_error(&error);
                    parts.iter().flat_map(|part| &part.ops).for_each(|i| results[*i] = Err(error.clone()));
                    return results;
                }
            };
            parts = without_refused(parts, offset, &refused, ops, &mut results);
        }
        let error = OpError::uncertain(Cause::Other, "the kernel refuses more of the transaction each time");
        parts.iter().flat_map(|part| &part.ops).for_each(|i| results[*i] = Err(error.clone()));
        results
    }
}

/// The elements of a set of our table; `None`: it does not exist.
fn elements(client: &mut Client, family: Family, set: &str) -> Result<Option<Vec<Element>>, Error> {
    match client.elements(nft_family(family), TABLE, set) {
        Err(Error::Refused(refusal)) if refusal.errno() == Errno::ENOENT => Ok(None),
        elements => elements.map(Some),
    }
}

/// Reads a set in the place of an ipset; `None`: it does not exist.
///
/// # Errors
/// When the list is not complete.
pub(super) fn read_set(client: &mut Client, id: SetId) -> Result<Option<ObservedSet>, Error> {
    let Some(elements) = elements(client, id.family, &id.name())? else { return Ok(None) };
    let mut set = ObservedSet::fresh(id);
    let len = nft_elements::set(id).key_len as usize;
    for element in &elements {
        set.misfit |= element.key.len() != len;
        set.members.extend(nft_elements::entry(element, id));
    }
    Ok(Some(set))
}

/// Ops that are one command: indexes of ops of one kind on one set.
struct SetPart {
    set: SetId,
    ops: Vec<usize>,
}

impl SetPart {
    fn command(&self, ops: &[&Op]) -> Command {
        let (family, table, set) = (nft_family(self.set.family), TABLE.to_owned(), self.set.name());
        let element = |i: &usize| match ops[*i] {
            Op::AddEntry(_, entry) | Op::RemoveEntry(_, entry) => Some(nft_elements::element(entry)),
            _ => None,
        };
        let elements = self.ops.iter().filter_map(element).collect();
        match self.ops.first().map(|i| ops[*i]) {
            Some(Op::AddEntry(..)) => Command::AddElements { family, table, set, elements },
            Some(Op::RemoveEntry(..)) => Command::DeleteElements { family, table, set, elements },
            Some(Op::DestroySet(_)) => Command::DeleteSet { family, table, set },
            _ => Command::AddSet(nft_elements::set(self.set)),
        }
    }
}

/// One part for each op on a set, and for each run of entries that are added to a set or removed from it.
fn parts(ops: &[&Op]) -> Vec<SetPart> {
    let mut parts: Vec<SetPart> = Vec::new();
    for (i, op) in ops.iter().enumerate() {
        let (Op::CreateSet(set) | Op::DestroySet(set) | Op::AddEntry(set, _) | Op::RemoveEntry(set, _)) = op
        else {
            continue;
        };
        let is_entry = matches!(op, Op::AddEntry(..) | Op::RemoveEntry(..));
        match parts.last_mut() {
            Some(part) if is_entry && part.set == *set && ops[part.ops[0]].kind() == op.kind() => {
                part.ops.push(i);
            }
            _ => parts.push(SetPart { set: *set, ops: vec![i] }),
        }
    }
    parts
}

/// The parts to send again: without the refused ops, whose results are set. A refused command with many entries does not
/// tell which of them is refused: they become a command each. Entries of a set that is refused are refused with it.
fn without_refused(
    parts: Vec<SetPart>,
    offset: usize,
    refused: &[RefusedCommand],
    ops: &[&Op],
    results: &mut [Result<Progress, OpError>],
) -> Vec<SetPart> {
    let refusal = |n: usize| refused.iter().find(|refused| refused.index == n + offset);
    let is_creation = |part: &SetPart| matches!(ops[part.ops[0]], Op::CreateSet(_));
    let missing: BTreeSet<SetId> = (parts.iter().enumerate())
        .filter(|(n, part)| is_creation(part) && refusal(*n).is_some())
        .map(|(_, part)| part.set)
        .collect();
    let mut rest = Vec::new();
    for (n, part) in parts.into_iter().enumerate() {
        match refusal(n) {
            None => rest.push(part),
            Some(_) if part.ops.len() > 1 && !missing.contains(&part.set) => {
                let single = |i| SetPart { set: part.set, ops: vec![i] };
                rest.extend(part.ops.into_iter().map(single));
            }
            Some(refused) => {
                for i in part.ops {
                    results[i] = Err(set_error(ops[i], refused));
                }
            }
        }
    }
    rest
}

fn set_error(op: &Op, refused: &RefusedCommand) -> OpError {
    let refusal = &refused.refusal;
    let cause = Cause::of_errno(refusal.code);
    match (op, refusal.errno()) {
        // Older kernels accept the creation of a set that exists with another type, and refuse its elements.
        (Op::CreateSet(set) | Op::AddEntry(set, _), Errno::EEXIST | Errno::EINVAL)
        | (Op::DestroySet(set), Errno::EBUSY) => {
            let family = nft_family(set.family);
            let message = format!(
                "a set of this name exists with another type: remove our table with \
                 `nft delete table {family} {TABLE}`, and the agent makes it again"
            );
            OpError::uncertain(Cause::WrongKind, message)
        }
        _ if matches!(cause, Cause::Missing | Cause::Exists) => {
            OpError::uncertain(cause, refusal.to_string())
        }
        _ => OpError::plain(cause, refusal.to_string()),
    }
}

/// A transaction that failed as a whole.
fn commit_error(error: &CommitError) -> OpError {
    let text = words::causes(error);
    match error {
        CommitError::Refused { commands, .. } => {
            let cause = commands.first().map_or(Cause::Other, |first| Cause::of_errno(first.refusal.code));
            OpError::plain(cause, text)
        }
        CommitError::NotSupported => OpError::plain(Cause::NotSupported, text),
        CommitError::Netlink(Error::NotPermitted) => OpError::plain(Cause::NotPermitted, text),
        CommitError::Netlink(Error::TooLarge(_)) => OpError::plain(Cause::Other, text),
        CommitError::Netlink(Error::Timeout) => OpError::uncertain(Cause::TimedOut, text),
        _ => OpError::uncertain(Cause::Other, text),
    }
}

/// A reading that failed.
fn read_error(error: &Error) -> OpError {
    OpError::plain(Cause::Other, words::causes(error))
}
