// SPDX-License-Identifier: Apache-2.0
//! What the kernel counts for every virtual server, in one dump over a socket of its own.

use ipvs_netlink::{Client, Service};

use super::linux::vs_key;
use crate::core::model::VsKey;
use crate::metrics::services::{Counts, Reader, Reading};
use crate::words;

/// Reads the counters of the network namespace that it is called in.
#[derive(Debug, Default)]
struct TrafficReader {
    /// Opened when it is needed: the kernel may get IPVS later than the agent starts.
    client: Option<Client>,
}

impl TrafficReader {
    fn read(&mut self) -> Result<Reading, ipvs_netlink::Error> {
        let client = match &mut self.client {
            Some(client) => client,
            None => self.client.insert(Client::open()?),
        };
        Ok(client.services()?.iter().filter_map(counts).collect())
    }
}

/// A reader for [`crate::metrics::Metrics::serve_traffic`].
pub fn reader() -> Reader {
    let mut reader = TrafficReader::default();
    Box::new(move || {
        reader.read().map_err(|error| {
            // A socket in an unknown state is not used on.
            reader.client = None;
            format!("cannot read the counters of IPVS: {}", words::causes(&error))
        })
    })
}

/// Services by fwmark, and such without counters, are somebody else's.
fn counts(service: &Service) -> Option<(VsKey, Counts)> {
    let (key, stats) = (vs_key(&service.id)?, service.stats?);
    let counts = Counts {
        connections: stats.connections,
        packets: [stats.packets_in, stats.packets_out],
        bytes: [stats.bytes_in, stats.bytes_out],
    };
    Some((key, counts))
}
