// SPDX-License-Identifier: Apache-2.0
//! Reads a fake kernel in pieces.

use super::fake::FakeKernel;
use crate::core::mirror::comparison::{Addresses, Piece};
use crate::core::mirror::{ObservedServer, RealServers};
use crate::core::model::real_servers::{ConnectionLimits, RsState};
use crate::core::model::sets::SetId;
use crate::core::model::{Family, ONE_PACKET, PERSISTENT, VsKey, VsSpec};
use crate::core::plan::outcome::{Cause, ObserveError, OpError};
use crate::core::plan::subject::Part;

/// Virtual servers in one piece: few, so that tests can change state during a reading.
const PIECE: usize = 2;

impl FakeKernel {
    /// The next [`PIECE`] virtual servers after `last`.
    fn servers_after(&self, last: Option<VsKey>) -> Vec<VsKey> {
        let mut keys: Vec<VsKey> =
            self.state.virtual_servers.keys().copied().filter(|key| Some(*key) > last).collect();
        keys.sort_unstable();
        keys.truncate(PIECE);
        keys
    }

    /// The piece at this position, and the next position.
    pub(super) fn piece(&self, at: ReadPosition) -> (Option<Piece>, ReadPosition) {
        let server = |key: &VsKey| &self.state.virtual_servers[key];
        match at {
            ReadPosition::Listed(last) => match self.servers_after(last) {
                keys if keys.is_empty() => self.piece(ReadPosition::Shown(None)),
                keys => {
                    let list = keys.iter().map(|key| (*key, server(key).spec.clone())).collect();
                    (Some(Piece::Listed(list)), ReadPosition::Listed(keys.last().copied()))
                }
            },
            ReadPosition::Shown(last) => match self.servers_after(last) {
                keys if keys.is_empty() => self.piece(ReadPosition::Set(0)),
                keys => {
                    let list = keys
                        .iter()
                        .map(|key| (*key, shown(&server(key).spec), without_limits(server(key))))
                        .collect();
                    (Some(Piece::Shown(list)), ReadPosition::Shown(keys.last().copied()))
                }
            },
            ReadPosition::Set(n) => match Family::ALL.into_iter().flat_map(SetId::all).nth(n) {
                Some(id) => {
                    (Some(Piece::Set(id, self.state.sets.get(&id).cloned())), ReadPosition::Set(n + 1))
                }
                None => self.piece(ReadPosition::Addresses),
            },
            ReadPosition::Addresses => {
                let addresses = Addresses {
                    device: self.state.device,
                    bound: self.state.addresses.clone(),
                    elsewhere: self.state.node_addresses.clone(),
                };
                (Some(Piece::Addresses(addresses)), ReadPosition::Rest)
            }
            ReadPosition::Rest => (Some(Piece::Rest(self.state.node.clone())), ReadPosition::End),
            ReadPosition::End => (None, ReadPosition::End),
        }
    }

    /// The error, if the part of this piece is unreadable.
    pub(super) fn read_error(&self, piece: &Piece) -> Option<ObserveError> {
        let part = match piece {
            Piece::Listed(_) | Piece::Shown(_) => Part::Ipvs,
            Piece::Set(id, _) => Part::Set(*id),
            Piece::Addresses(_) => Part::Addresses,
            Piece::Rest(_) => Part::Node,
        };
        let error = self.unreadable.get(&part)?.clone();
        Some(ObserveError { part, error })
    }
}

pub(super) fn injected(part: Part) -> ObserveError {
    ObserveError { part, error: OpError::plain(Cause::Other, "injected failure") }
}

/// Real servers as `/proc/net/ip_vs` shows them.
fn without_limits(server: &ObservedServer) -> RealServers {
    let limits = ConnectionLimits::default();
    server.real_servers.iter().map(|(rs, state)| (rs, RsState { limits, ..state })).collect()
}

/// What `/proc/net/ip_vs` shows of it.
fn shown(spec: &VsSpec) -> VsSpec {
    let flags = spec.flags & (PERSISTENT | ONE_PACKET);
    let timeout = if flags & PERSISTENT == 0 { 0 } else { spec.timeout };
    VsSpec { scheduler: spec.scheduler.clone(), flags, timeout }
}

/// Position of a reading.
#[derive(Clone, Copy, Debug)]
pub(super) enum ReadPosition {
    Listed(Option<VsKey>),
    Shown(Option<VsKey>),
    Set(usize),
    Addresses,
    Rest,
    End,
}
