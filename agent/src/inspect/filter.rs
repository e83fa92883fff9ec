// SPDX-License-Identifier: Apache-2.0
//! Which virtual servers and connections a list has.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use ipvs_netlink::{Destination, Service};

use super::owners::{OwnersOf, ServiceOwners};
use crate::core::model::{Protocol, VsKey};
use crate::kernel::ipvs::vs_key;

/// What a question is about: a Service, or an address with or without a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QueryTarget {
    /// `NAMESPACE/NAME[:PORT-NAME]`, or `NAME[:PORT-NAME]` in any namespace.
    Service { namespace: Option<String>, name: String, port: Option<String> },
    /// `ADDRESS` or `ADDRESS:PORT`.
    Vip(IpAddr, Option<u16>),
}

impl FromStr for QueryTarget {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(addr) = text.trim_start_matches('[').trim_end_matches(']').parse() {
            return Ok(Self::Vip(addr, None));
        }
        if let Ok(addr) = text.parse::<SocketAddr>() {
            return Ok(Self::Vip(addr.ip(), Some(addr.port())));
        }
        let (name, port) = match text.split_once(':') {
            Some((name, port)) => (name, Some(port.to_owned())),
            None => (text, None),
        };
        let (namespace, name) = match name.split_once('/') {
            Some((namespace, name)) => (Some(namespace.to_owned()), name),
            None => (None, name),
        };
        if name.is_empty() || name.contains('/') {
            return Err("not NAMESPACE/NAME, NAME, VIP or VIP:PORT".to_owned());
        }
        Ok(Self::Service { namespace, name: name.to_owned(), port })
    }
}

/// Conditions that must all hold.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    pub target: Option<QueryTarget>,
    /// The namespace of the Service.
    pub namespace: Option<String>,
    pub protocol: Option<Protocol>,
    /// Virtual servers that drain a real server, with these only.
    pub draining: bool,
    /// Virtual servers without a real server that takes new connections.
    pub empty: bool,
}

impl Filter {
    /// Whether the names of Services are needed.
    pub fn needs_owners(&self) -> bool {
        self.namespace.is_some() || matches!(self.target, Some(QueryTarget::Service { .. }))
    }

    /// The virtual servers whose Services are needed.
    pub fn owners_of(&self) -> OwnersOf {
        let (namespace, name) = match &self.target {
            Some(QueryTarget::Service { namespace, name, .. }) => (namespace.clone(), Some(name.clone())),
            _ => (None, None),
        };
        OwnersOf { namespace: namespace.or_else(|| self.namespace.clone()), name }
    }

    /// Whether it has every virtual server with all real servers.
    pub fn is_everything(&self) -> bool {
        self.target.is_none()
            && self.namespace.is_none()
            && self.protocol.is_none()
            && !self.draining
            && !self.empty
    }

    /// Whether the list has the virtual server, apart from the state of its real servers.
    pub fn has_service(&self, service: &Service, owners: &ServiceOwners) -> bool {
        match vs_key(&service.id) {
            Some(key) => self.has(&key, owners),
            // A firewall mark has neither address nor Service.
            None => self.target.is_none() && self.namespace.is_none() && self.protocol.is_none(),
        }
    }

    /// Whether the list has what belongs to this virtual server.
    pub fn has(&self, key: &VsKey, owners: &ServiceOwners) -> bool {
        if self.protocol.is_some_and(|protocol| protocol != key.protocol) {
            return false;
        }
        if let Some(QueryTarget::Vip(addr, port)) = self.target
            && (addr != key.addr || port.is_some_and(|port| port != key.port))
        {
            return false;
        }
        if !self.needs_owners() {
            return true;
        }
        owners.get(&key.to_string()).is_some_and(|owner| self.has_owner(owner))
    }

    /// `owner`: `NAMESPACE/NAME[:PORT-NAME]`.
    fn has_owner(&self, owner: &str) -> bool {
        let (owner, owner_port) = match owner.split_once(':') {
            Some((owner, port)) => (owner, port),
            None => (owner, ""),
        };
        let (owner_namespace, owner_name) = owner.split_once('/').unwrap_or_default();
        if self.namespace.as_ref().is_some_and(|namespace| namespace != owner_namespace) {
            return false;
        }
        let Some(QueryTarget::Service { namespace, name, port }) = &self.target else { return true };
        namespace.as_ref().is_none_or(|namespace| namespace == owner_namespace)
            && name == owner_name
            && port.as_ref().is_none_or(|port| port == owner_port)
    }

    /// The real servers that the list has; `None`: not even the virtual server.
    pub fn select(&self, mut destinations: Vec<Destination>) -> Option<Vec<Destination>> {
        if self.empty && destinations.iter().any(|dest| dest.weight > 0) {
            return None;
        }
        if self.draining {
            destinations.retain(|dest| dest.weight == 0);
            if destinations.is_empty() {
                return None;
            }
        }
        Some(destinations)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn has(filter: &Filter, server: &str) -> bool {
        let owners = ServiceOwners::parse(
            "TCP 10.96.0.1:443 default/kubernetes:https\nTCP 10.96.0.10:53 kube-system/kube-dns:dns-tcp\n\
             UDP 10.96.0.10:53 kube-system/kube-dns:dns\nTCP [fd00::7]:80 shop/web\n",
        );
        let (protocol, addr) = server.split_once(' ').unwrap();
        let addr: SocketAddr = addr.parse().unwrap();
        let protocol = if protocol == "UDP" { Protocol::Udp } else { Protocol::Tcp };
        filter.has(&VsKey { protocol, addr: addr.ip(), port: addr.port() }, &owners)
    }

    #[test]
    fn conditions_select_virtual_servers() {
        const ALL: [&str; 5] = [
            "TCP 10.96.0.1:443",
            "TCP 10.96.0.10:53",
            "UDP 10.96.0.10:53",
            "TCP [fd00::7]:80",
            "TCP 192.0.2.1:1",
        ];
        let filter = |target: &str, namespace: &str, protocol| Filter {
            target: (!target.is_empty()).then(|| target.parse().unwrap()),
            namespace: (!namespace.is_empty()).then(|| namespace.to_owned()),
            protocol,
            ..Filter::default()
        };
        for (filter, expected) in [
            (filter("", "", None), &[0, 1, 2, 3, 4][..]),
            (filter("", "kube-system", None), &[1, 2]),
            (filter("", "", Some(Protocol::Udp)), &[2]),
            (filter("kube-system/kube-dns", "", None), &[1, 2]),
            (filter("kube-dns", "", None), &[1, 2]),
            (filter("kube-dns:dns", "", None), &[2]),
            (filter("kube-dns", "default", None), &[]),
            (filter("10.96.0.10", "", None), &[1, 2]),
            (filter("10.96.0.10:53", "", Some(Protocol::Tcp)), &[1]),
            (filter("10.96.0.10:54", "", None), &[]),
            (filter("fd00::7", "", None), &[3]),
            (filter("[fd00::7]:80", "shop", None), &[3]),
            (filter("192.0.2.1", "", None), &[4]),
            (filter("192.0.2.1", "shop", None), &[]),
        ] {
            let found: Vec<usize> = (0..ALL.len()).filter(|i| has(&filter, ALL[*i])).collect();
            assert_eq!(found, expected, "{filter:?}");
        }
        for wrong in ["", "/", "a/", "a/b/c"] {
            assert!(wrong.parse::<QueryTarget>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn weights_select_real_servers() {
        let dest = |weight| {
            let mut dest = Destination::new("10.0.0.1:80".parse().unwrap());
            dest.weight = weight;
            dest
        };
        let select = |draining, empty, weights: &[u32]| {
            let filter = Filter { draining, empty, ..Filter::default() };
            let selected = filter.select(weights.iter().map(|weight| dest(*weight)).collect());
            selected.map(|dests| dests.iter().map(|dest| dest.weight).collect::<Vec<_>>())
        };
        assert_eq!(select(false, false, &[1, 0]), Some(vec![1, 0]));
        assert_eq!(select(true, false, &[1, 0, 0]), Some(vec![0, 0]));
        assert_eq!(select(true, false, &[1]), None);
        assert_eq!(select(false, true, &[1, 0]), None);
        assert_eq!(select(false, true, &[0]), Some(vec![0]));
        assert_eq!(select(false, true, &[]), Some(vec![]));
        assert_eq!(select(true, true, &[]), None);
    }
}
