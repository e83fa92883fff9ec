// SPDX-License-Identifier: Apache-2.0
//! Traffic counters of every virtual server, in one dump over a separate socket.

use ipvs_netlink::{Client, Service};

use super::vs_key;
use crate::core::model::VsKey;

/// The kernel's counters of a virtual server; zero again after the virtual server is re-created.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServerCounters {
    pub connections: u64,
    /// Packets from and to clients.
    pub packets: [u64; 2],
    /// Bytes from and to clients.
    pub bytes: [u64; 2],
}

/// Reads the counters of every virtual server; the error is a message for the log.
pub type ReadCounters = Box<dyn FnMut() -> Result<Vec<(VsKey, ServerCounters)>, String> + Send>;

/// Reads the counters in the network namespace of the calling thread.
#[derive(Debug, Default)]
struct TrafficReader {
    /// Opened at the first read: IPVS may be loaded after the agent starts.
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

/// Returns a function that reads the counters and opens its socket again after an error.
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
