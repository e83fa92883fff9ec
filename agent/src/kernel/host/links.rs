// SPDX-License-Identifier: Apache-2.0
//! The links of the network namespace with their addresses, for `kube-ipvs doctor` and `trace`.

use std::collections::HashMap;
use std::path::Path;

use dummy_iface::DummyDevice;
use ipnet::IpNet;
use nix::net::if_::if_nameindex;

/// A link.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeLink {
    pub name: String,
    /// A bridge, as the plugin `bridge` of CNI makes it.
    pub is_bridge: bool,
    /// A network card of the machine.
    pub is_physical: bool,
    pub addresses: Vec<IpNet>,
}

/// The links, sorted by name. `own`: the device whose addresses are left out.
///
/// # Errors
/// When the kernel does not list links or addresses.
pub fn read(own: &str) -> Result<Vec<NodeLink>, dummy_iface::Error> {
    let addresses = DummyDevice::open(own)?.addresses()?.elsewhere;
    let named = names();
    let link = |(index, name): (u32, String)| {
        // The folder may be of another network namespace: then the link counts as virtual.
        let is = |file: &str| Path::new("/sys/class/net").join(&name).join(file).exists();
        let of = addresses.iter().filter(|address| address.index == index);
        NodeLink {
            is_bridge: is("bridge"),
            is_physical: is("device"),
            addresses: of.map(|address| address.addr).collect(),
            name,
        }
    };
    let mut links: Vec<NodeLink> = named.into_iter().map(link).collect();
    links.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(links)
}

/// The names of the links by index. None if the kernel does not list them.
pub fn names() -> HashMap<u32, String> {
    let names = if_nameindex().map(|names| {
        names.iter().map(|link| (link.index(), link.name().to_string_lossy().into_owned())).collect()
    });
    names.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_a_link_with_its_address() {
        let links = read("kube-ipvs0").unwrap();
        let lo = links.iter().find(|link| link.name == "lo").unwrap();
        assert!(!lo.is_bridge && !lo.is_physical);
        assert!(lo.addresses.is_empty() || lo.addresses.iter().any(|net| net.addr().is_loopback()));
    }
}
