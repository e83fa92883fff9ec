// SPDX-License-Identifier: Apache-2.0
//! Reads the rules beside everything else, and only when they may have changed: starting the programs
//! costs more than all other reading together. nf_tables has a number that goes up with every change,
//! whoever makes it; the legacy flavour has none and is read every time.

use std::thread::JoinHandle;

use super::iptables::{Iptables, Saved};
use super::nfnetlink::NfSocket;
use super::nft_tables;
use crate::core::model::Family;
use crate::core::save::ObservedRules;

/// The rules of each family, or why they cannot be read.
type Results = Vec<Result<Saved, String>>;

/// The families that can be programmed, and the rules by [`Family::index`].
pub(super) type Rules = (Vec<Family>, [ObservedRules; 2]);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct RulesReader {
    /// The generation that was read last, if nothing is known to have changed since.
    known: Option<u32>,
    job: Option<Job>,
}

#[derive(Debug)]
struct Job {
    /// The generation before the programs started.
    generation: Option<u32>,
    /// Rules were written meanwhile: what is read may be older.
    stale: bool,
    /// `None`: nothing changed.
    programs: Option<std::io::Result<JoinHandle<Results>>>,
}

impl RulesReader {
    /// Begins to read, beside the caller.
    pub fn begin(&mut self, nft: &mut NfSocket, iptables: &mut Iptables, families: &[Family]) {
        let generation = nft_tables::generation(nft).unwrap_or_default();
        let changed = generation.is_none() || generation != self.known;
        let programs = changed.then(|| iptables.begin_reading(families));
        self.job = Some(Job { generation, stale: false, programs });
    }

    /// The rules are being changed.
    pub fn forget(&mut self) {
        self.known = None;
        if let Some(job) = &mut self.job {
            job.stale = true;
        }
    }

    /// Whether [`Self::end`] would not have to wait.
    pub fn is_ready(&self) -> bool {
        let programs = self.job.as_ref().and_then(|job| job.programs.as_ref()?.as_ref().ok());
        programs.is_none_or(JoinHandle::is_finished)
    }

    /// Waits for the rules; `None` when they are as before. A node where the first reading shows that it
    /// lacks one of the two programs, or its tables in the kernel, serves the other family: `tried` tells
    /// whether all programs have worked once.
    pub fn end(&mut self, families: &[Family], tried: &mut bool) -> Result<Option<Rules>, String> {
        let Some(Job { generation, stale, programs: Some(programs) }) = self.job.take() else {
            return Ok(None);
        };
        let handle = programs.map_err(|error| format!("cannot start a thread: {error}"))?;
        let results = handle.join().map_err(|_| "the reading thread ended".to_owned())?;
        let (mut read, mut rules, mut errors) = (Vec::new(), <[ObservedRules; 2]>::default(), Vec::new());
        let mut in_nft = true;
        for (family, result) in families.iter().zip(results) {
            match result {
                Ok(saved) => {
                    in_nft &= saved.in_nft;
                    rules[family.index()] = saved.rules;
                    read.push(*family);
                }
                Err(error) => errors.push((*family, error)),
            }
        }
        match errors.first() {
            Some((_, error)) if *tried || read.is_empty() => return Err(error.clone()),
            _ => *tried = true,
        }
        for (family, error) in errors {
            tracing::warn!("Services get no {family} addresses on this node: {error}");
        }
        if stale {
            return Ok(None);
        }
        self.known = generation.filter(|_| in_nft);
        Ok(Some((read, rules)))
    }
}
