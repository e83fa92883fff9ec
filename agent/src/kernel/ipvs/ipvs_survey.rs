// SPDX-License-Identifier: Apache-2.0
//! What IPVS says about itself, for `kube-ipvs doctor`.

use std::fs::File;
use std::io::Read as _;

use ipvs_netlink::{Client, Error};

use super::vs_key;
use crate::core::model::VsKey;
use crate::core::model::settings::Timeouts;
use crate::words;

/// The connections of this thread's network namespace.
const CONNECTIONS: &str = "/proc/thread-self/net/ip_vs_conn";
/// Counting stops there: a table with more connections is too full for every size.
const MOST_CONNECTIONS: usize = 4 << 20;

/// The state of IPVS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IpvsSurvey {
    pub version: String,
    /// Buckets of the connection table.
    pub table_size: usize,
    /// Connections; `None`: they cannot be read.
    pub connections: Option<usize>,
    pub timeouts: Timeouts,
    /// The virtual servers that have an address, with their schedulers.
    pub servers: Vec<(VsKey, String)>,
}

/// Why IPVS is not read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IpvsGap {
    /// The kernel has no IPVS, or has not loaded it.
    Missing,
    /// Why it is not known.
    Unread(String),
}

impl IpvsSurvey {
    /// Reads the state. Writes nothing, but the kernel may load the module `ip_vs`.
    ///
    /// # Errors
    /// A missing module or privilege.
    pub fn read() -> Result<Self, IpvsGap> {
        Self::read_kernel().map_err(|error| match error {
            Error::FamilyMissing => IpvsGap::Missing,
            error => IpvsGap::Unread(words::causes(&error)),
        })
    }

    fn read_kernel() -> Result<Self, Error> {
        let mut client = Client::open()?;
        let (info, config) = (client.info()?, client.config()?);
        let servers = client.services()?;
        Ok(Self {
            version: info.version_text(),
            table_size: info.connection_table_size as usize,
            connections: count_lines(CONNECTIONS).map(|lines| lines.saturating_sub(1)),
            timeouts: Timeouts { tcp: config.tcp, tcp_fin: config.tcp_fin, udp: config.udp },
            servers: servers.into_iter().filter_map(|s| Some((vs_key(&s.id)?, s.scheduler))).collect(),
        })
    }
}

fn count_lines(path: &str) -> Option<usize> {
    let (mut file, mut buffer, mut lines) = (File::open(path).ok()?, vec![0; 64 << 10], 0);
    loop {
        let len = file.read(&mut buffer).ok()?;
        lines += buffer[..len].iter().filter(|byte| **byte == b'\n').count();
        if len == 0 || lines > MOST_CONNECTIONS {
            return Some(lines);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_counted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ip_vs_conn");
        std::fs::write(&path, "Pro FromIP\nTCP 1\nTCP 2\n").unwrap();
        assert_eq!(count_lines(path.to_str().unwrap()), Some(3));
        assert_eq!(count_lines("/nonexistent"), None);
    }
}
