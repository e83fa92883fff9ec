// SPDX-License-Identifier: Apache-2.0
//! Whose is it? How an agent without memory tells its own kernel objects from others'.
//!
//! | object | ours when |
//! |---|---|
//! | address | it is on `kube-ipvs0` (IPv6 link-local is the kernel's own) |
//! | set | its name is one of [`SetId::all`](super::sets::SetId::all) |
//! | chain, jump | its name is one of [`CHAINS`](super::chains::CHAINS), a jump also by its comment |
//! | virtual server | it is in this network namespace, has an address, and that is not in `excludeCIDRs` |
//! | real server | its virtual server is wanted; weight 0 is the record of a drain |
//! | of other modes of kube-proxy | chains by name, jumps by comment, the nftables table `kube-proxy`; see [`removal`](super::removal) |
//! | sysctl | never: they are set and left |

use super::model::VsKey;
use super::settings::Settings;

/// The device that holds the VIPs.
pub const DEVICE: &str = "kube-ipvs0";

/// Whether a virtual server that nobody wants may be removed. Services by fwmark never get here:
/// they have no address and are not observed.
pub fn may_remove(vs: &VsKey, settings: &Settings) -> bool {
    settings.families.contains(&vs.family())
        && !settings.exclude_cidrs.iter().any(|net| net.contains(&vs.addr))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::model::{Family, Protocol};

    #[test]
    fn excluded_networks_and_absent_families_are_others() {
        let vs = |addr: &str| VsKey { protocol: Protocol::Tcp, addr: addr.parse().unwrap(), port: 80 };
        let settings = Settings {
            families: vec![Family::V4],
            exclude_cidrs: vec!["9.9.9.0/24".parse().unwrap()],
            ..Settings::default()
        };
        assert!(may_remove(&vs("9.9.8.8"), &settings));
        assert!(!may_remove(&vs("9.9.9.9"), &settings));
        assert!(!may_remove(&vs("fd00::1"), &settings));
    }
}
