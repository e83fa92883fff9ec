// SPDX-License-Identifier: Apache-2.0
//! Timeouts and version.

/// Timeouts of connections, in seconds. In a request 0 means: leave it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Idle established TCP connections; 900 unless set.
    pub tcp: u32,
    /// TCP connections after a FIN; 120 unless set.
    pub tcp_fin: u32,
    /// UDP; 300 unless set.
    pub udp: u32,
}

/// Version of IPVS in the kernel, and the size of its connection table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Info {
    /// `major << 16 | minor << 8 | patch`.
    pub version: u32,
    /// Number of hash buckets.
    pub connection_table_size: u32,
}

impl Info {
    /// The version as `1.2.1`.
    pub fn version_text(&self) -> String {
        format!("{}.{}.{}", self.version >> 16 & 0xff, self.version >> 8 & 0xff, self.version & 0xff)
    }
}
