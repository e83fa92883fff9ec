// SPDX-License-Identifier: Apache-2.0
//! Errors of transactions.

use std::fmt;

use netlink_batch::{Errno, Error, Refusal, Refusals};

use crate::transaction::Transaction;

/// Why a transaction was not applied.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CommitError {
    /// The kernel refused commands, and applied nothing.
    #[error("the kernel refused the transaction: {}", summary(.commands, *.incomplete))]
    Refused {
        /// The refused commands, by index.
        commands: Vec<RefusedCommand>,
        /// Further commands were refused, but their refusals did not fit the receive buffer.
        incomplete: bool,
    },
    /// The ruleset has another generation than [`Transaction::require_generation`] demands. Nothing was applied.
    #[error("the ruleset changed since it was read")]
    GenerationChanged,
    /// The kernel has no nf_tables. Nothing was applied.
    #[error(
        "the kernel has no nf_tables: load the module with `modprobe nf_tables`, or use a kernel that has it"
    )]
    NotSupported,
    /// The process lacks `CAP_NET_ADMIN` ([`Error::NotPermitted`]), or the transaction does not fit the send buffer
    /// ([`Error::TooLarge`]): nothing was applied. After any other error it is unknown whether the transaction was
    /// applied; read the ruleset.
    #[error(transparent)]
    Netlink(#[from] Error),
}

/// A command that the kernel refused.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RefusedCommand {
    /// Its index in the transaction. An error of the commit itself is reported for the first command.
    pub index: usize,
    /// What it was about, such as `add set ip kube services`.
    pub command: String,
    /// Errno and text of the kernel.
    pub refusal: Refusal,
}

impl fmt::Display for RefusedCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {}: {}", self.command, self.refusal)
    }
}

fn summary(commands: &[RefusedCommand], incomplete: bool) -> String {
    match commands {
        [] => "the details were lost".to_owned(),
        [first] if !incomplete => first.to_string(),
        [first, more @ ..] => {
            let least = if incomplete { "at least " } else { "" };
            format!("{first} (and {least}{} more)", more.len())
        }
    }
}

impl CommitError {
    /// What the refusals of messages mean for the commands of a transaction. `command_of` has the index of each message's
    /// command.
    pub(crate) fn of(
        refusals: Refusals,
        transaction: &Transaction,
        command_of: &[Option<usize>],
    ) -> Option<Self> {
        if refusals.is_empty() {
            return None;
        }
        if let Some((0, whole)) = refusals.messages.first() {
            return Some(match whole.errno() {
                Errno::ERESTART => CommitError::GenerationChanged,
                Errno::EOPNOTSUPP => CommitError::NotSupported,
                _ => Error::from(whole.clone()).into(),
            });
        }
        let mut commands: Vec<RefusedCommand> = Vec::new();
        for (message, refusal) in refusals.messages {
            let Some(index) = command_of.get(message).copied().flatten() else { continue };
            // Of a command with several messages the first refusal is enough.
            if commands.last().is_none_or(|last| last.index != index) {
                let command = transaction.commands().get(index).map(ToString::to_string).unwrap_or_default();
                commands.push(RefusedCommand { index, command, refusal });
            }
        }
        Some(CommitError::Refused { commands, incomplete: refusals.lost })
    }
}
