// SPDX-License-Identifier: Apache-2.0
//! Attributes of the report of version and size.

use super::codec::{Codec, Host, attribute_level};

attribute_level! {
    /// Attributes of a report of version and size, `IPVS_INFO_ATTR_*`.
    InfoAttribute {
        /// `major << 16 | minor << 8 | patch`.
        Version(u32 as Host) = 1,
        /// Number of hash buckets of the connection table.
        ConnectionTableSize(u32 as Host) = 2,
    }
}
