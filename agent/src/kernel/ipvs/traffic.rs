// SPDX-License-Identifier: Apache-2.0
//! What the kernel counts for every virtual server, in one dump over a socket of its own.

use ipvs_netlink::{Client, Service};

use super::vs_key;
use crate::core::model::VsKey;

/// The kernel's counters of a virtual server. They start again from zero when the virtual server is created again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServerCounters {
    /// Connections.
    pub connections: u64,
    /// Packets from clients, and to them.
    pub packets: [u64; 2],
    /// Bytes from clients, and to them.
    pub bytes: [u64; 2],
}

/// Reads the counters of every virtual server; an error is a text for the log.
pub type ReadCounters = Box<dyn FnMut() -> Result<Vec<(VsKey, ServerCounters)>, String> + Send>;

/// Reads the counters of the network namespace that it is called in.
#[derive(Debug, Default)]
struct TrafficReader {
    /// Opened when it is needed: the kernel may get IPVS later than the agent starts.
    client: Option<Client>,
}

impl TrafficReader {
    fn read(&mut self) -> Result<Vec<(VsKey, ServerCounters)>, ipvs_netlink::Error> {
        let client = match &mut self.client {
            Some(client) => client,
            None => self.client.insert(Client::open()?),
        };
        Ok(client.services()?.iter().filter_map(counters).collect())
    }
}

/// Reads the counters over a socket that is opened again after an error.
pub fn reader() -> ReadCounters {
    let mut reader = TrafficReader::default();
    Box::new(move || {
        reader.read().map_err(|error| {
            // The state of the socket is unknown.
            reader.client = None;
            format!("cannot read the counters of IPVS: {error}")
        })
    })
}

/// Ignores services by fwmark and services without counters: other programs created them.
fn counters(service: &Service) -> Option<(VsKey, ServerCounters)> {
    let (key, stats) = (vs_key(&service.id)?, service.stats?);
    let counters = ServerCounters {
        connections: stats.connections,
        packets: [stats.packets_in, stats.packets_out],
        bytes: [stats.bytes_in, stats.bytes_out],
    };
    Some((key, counters))
}
