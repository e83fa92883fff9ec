// SPDX-License-Identifier: Apache-2.0
//! What a node is measured with: what its rules are made of, and what makes its ClusterIPs local.

use std::fmt;
use std::str::FromStr;

use ipnet::IpNet;
use kube_ipvs::core::model::settings::{RulesMode, Settings};
use serde_json::{Value, json};

/// The networks of all ClusterIPs: of the node in this process, of [`super::process::objects`] and of [`super::first`].
const RANGES: [&str; 3] = ["10.0.0.0/11", "10.96.0.0/12", "11.0.0.0/8"];

/// Rules mode and `clusterIPs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode {
    /// `kubeIPVS.rules`
    pub rules: RulesMode,
    /// `kubeIPVS.clusterIPs` is `route` instead of `address`.
    pub by_route: bool,
}

impl Mode {
    /// The defaults.
    pub const IPTABLES: Mode = Mode { rules: RulesMode::Iptables, by_route: false };
    /// Rules of iptables, and a route.
    pub const IPTABLES_ROUTE: Mode = Mode { rules: RulesMode::Iptables, by_route: true };
    /// Rules of nf_tables, and addresses.
    pub const NFTABLES: Mode = Mode { rules: RulesMode::Nftables, by_route: false };
    /// Rules of nf_tables, and a route.
    pub const NFTABLES_ROUTE: Mode = Mode { rules: RulesMode::Nftables, by_route: true };

    /// All modes.
    pub const ALL: [Mode; 4] = [Self::IPTABLES, Self::IPTABLES_ROUTE, Self::NFTABLES, Self::NFTABLES_ROUTE];

    /// The name in flags and of files, such as `nftables-route`.
    pub fn name(self) -> String {
        format!("{}-{}", self.rules, self.local_by())
    }

    fn local_by(self) -> &'static str {
        if self.by_route { "route" } else { "addresses" }
    }

    /// Puts the mode into settings.
    pub fn set(self, settings: Settings) -> Settings {
        let routed: Vec<IpNet> = RANGES.iter().filter_map(|net| net.parse().ok()).collect();
        Settings { rules: self.rules, routed: if self.by_route { routed } else { Vec::new() }, ..settings }
    }

    /// The configuration of an agent with this mode; `more`: its other fields.
    pub fn config(self, mut more: Value) -> Value {
        more["kubeIPVS"] = if self.by_route {
            json!({"rules": self.rules.to_string(), "clusterIPs": "route", "serviceCIDRs": RANGES})
        } else {
            json!({"rules": self.rules.to_string()})
        };
        more
    }
}

/// As in the names of rows.
impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}", self.rules, self.local_by())
    }
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let names = || Self::ALL.map(Self::name).join(", ");
        Self::ALL
            .into_iter()
            .find(|mode| mode.name() == name)
            .ok_or_else(|| format!("not one of {}", names()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::node::virtual_server;
    use super::*;

    #[test]
    fn settings_and_configuration_are_of_the_mode() {
        let settings = Mode::NFTABLES_ROUTE.set(Settings::default());
        assert_eq!((settings.rules, settings.routed.len()), (RulesMode::Nftables, RANGES.len()));
        let addr = virtual_server(99_999).addr;
        assert!(settings.routed.iter().any(|net| net.contains(&addr)));
        assert!(Mode::NFTABLES.set(Settings::default()).routed.is_empty());
        let config = Mode::NFTABLES_ROUTE.config(json!({"ipvs": {"syncPeriod": "1h"}}));
        assert_eq!(config["ipvs"]["syncPeriod"], "1h");
        assert_eq!(
            (&config["kubeIPVS"]["rules"], &config["kubeIPVS"]["clusterIPs"]),
            (&json!("nftables"), &json!("route"))
        );
        assert_eq!(Mode::IPTABLES.config(json!({}))["kubeIPVS"], json!({"rules": "iptables"}));
        assert_eq!(Mode::IPTABLES_ROUTE.to_string(), "iptables, route");
    }

    #[test]
    fn modes_have_names() {
        for mode in Mode::ALL {
            assert_eq!(mode.name().parse(), Ok(mode));
        }
        assert_eq!("nftables-route".parse(), Ok(Mode::NFTABLES_ROUTE));
        assert!("nftables".parse::<Mode>().unwrap_err().contains("iptables-addresses, iptables-route"));
    }
}
