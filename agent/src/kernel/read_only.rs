// SPDX-License-Identifier: Apache-2.0
//! A kernel that is only read: it refuses every op. So commands that look at a node cannot change it.

use std::time::Duration;

use super::{Kernel, ProbeResult, Runner};
use crate::core::mirror::ObservedServer;
use crate::core::mirror::comparison::{Piece, ReadStep};
use crate::core::model::map::Set;
use crate::core::model::sets::ProbedSet;
use crate::core::model::{Family, RsKey, VsKey};
use crate::core::plan::op::Op;
use crate::core::plan::outcome::{Cause, Finished, ObserveError, OpError, Progress};
use crate::core::plan::subject::Part;

/// See the module.
#[derive(Debug)]
pub struct ReadOnly<K>(pub K);

fn refuse(ops: &[&Op]) -> Vec<Result<Progress, OpError>> {
    ops.iter().map(|_| Err(OpError::plain(Cause::NotPermitted, "this command changes nothing"))).collect()
}

impl<K: Kernel> Kernel for ReadOnly<K> {
    fn read(&mut self, step: ReadStep) -> Result<Option<Piece>, ObserveError> {
        self.0.read(step)
    }

    fn read_part(&mut self, part: Part) -> Result<Piece, ObserveError> {
        self.0.read_part(part)
    }

    fn read_rules(&mut self, families: &[Family], afresh: bool) {
        self.0.read_rules(families, afresh);
    }

    fn finished(&mut self, limit: Duration) -> Vec<Finished> {
        self.0.finished(limit)
    }

    fn probe(&mut self, servers: &[VsKey], sets: &[ProbedSet]) -> ProbeResult {
        self.0.probe(servers, sets)
    }

    fn read_servers(&mut self, servers: &[VsKey]) -> Result<Vec<Option<ObservedServer>>, ObserveError> {
        self.0.read_servers(servers)
    }

    fn busy(&mut self, servers: &[VsKey]) -> Result<Set<(VsKey, RsKey)>, ObserveError> {
        self.0.busy(servers)
    }

    fn execute(&mut self, ops: &[&Op]) -> Vec<Result<Progress, OpError>> {
        refuse(ops)
    }

    fn beside(&mut self, work: &mut dyn FnMut(&mut Runner<'_>, &mut Runner<'_>)) {
        work(&mut |ops| refuse(ops), &mut |ops| refuse(ops));
    }
}
