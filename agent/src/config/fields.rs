// SPDX-License-Identifier: Apache-2.0
//! Parsers of single fields. Errors name the field and what is wrong.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, bail, ensure};
use ipnet::IpNet;

use super::values::Values;
use crate::core::model::address;
use crate::core::model::settings::{LocalTraffic, NodePortAddresses, RulesMode};
use crate::core::model::{Family, PerFamily};

fn cidr(field: &str, text: &str) -> anyhow::Result<IpNet> {
    address::parse_net(text.trim()).with_context(|| format!("{field}: {text:?} is not a CIDR"))
}

pub(super) fn cidrs(v: &Values, path: &str) -> anyhow::Result<Vec<IpNet>> {
    v.list(path).iter().map(|text| cidr(path, text)).collect()
}

const CLUSTER_IPS: &str = "kubeIPVS.clusterIPs";
const THEN_ADDRESS: &str = "route-then-address";

/// Whether ClusterIPs behind a route are bound, too.
pub(super) fn binds_routed(v: &Values) -> bool {
    v.text(CLUSTER_IPS) == THEN_ADDRESS
}

/// The networks whose ClusterIPs are local by a route; `None`: those of the ServiceCIDR objects.
pub(super) fn routed(v: &Values) -> anyhow::Result<Option<Vec<IpNet>>> {
    const RANGES: &str = "kubeIPVS.serviceCIDRs";
    let mut nets = cidrs(v, RANGES)?;
    if let Some(net) = nets.iter().find(|net| net.prefix_len() == 0) {
        bail!("{RANGES}: {net} is every address: list the ranges of ClusterIPs");
    }
    nets.iter_mut().for_each(|net| *net = net.trunc());
    match v.text(CLUSTER_IPS) {
        "address" => Ok(Some(Vec::new())),
        "route" | THEN_ADDRESS => Ok(Some(IpNet::aggregate(&nets)).filter(|nets| !nets.is_empty())),
        other => bail!("{CLUSTER_IPS}: {other:?} is not address, route or {THEN_ADDRESS}"),
    }
}

/// What sets and rules are made of; `None`: what works on the node.
pub(super) fn rules_mode(v: &Values) -> anyhow::Result<Option<RulesMode>> {
    const PATH: &str = "kubeIPVS.rules";
    match v.text(PATH) {
        "iptables" => Ok(Some(RulesMode::Iptables)),
        "nftables" => Ok(Some(RulesMode::Nftables)),
        "auto" => Ok(None),
        other => bail!("{PATH}: {other:?} is not auto, iptables or nftables"),
    }
}

/// `None` for an unspecified address.
pub(super) fn bind_address(v: &Values) -> anyhow::Result<Option<IpAddr>> {
    let text = v.text("bindAddress");
    if text.is_empty() {
        return Ok(None);
    }
    let ip =
        address::parse_ip(text).with_context(|| format!("bindAddress: {text:?} is not an IP address"))?;
    Ok(Some(ip).filter(|ip| !ip.is_unspecified()))
}

/// `IP:PORT`, or an IP with the default port.
pub(super) fn address_with_port(v: &Values, field: &str, port: u16) -> anyhow::Result<SocketAddr> {
    let text = v.text(field);
    if let Some(ip) = address::parse_ip(text) {
        return Ok(SocketAddr::new(ip, port));
    }
    let address = address::parse_socket(text)
        .with_context(|| format!("{field}: {text:?} is neither IP:PORT nor an IP address"))?;
    ensure!(address.port() > 0, "{field}: the port of {text:?} is not in 1-65535");
    Ok(address)
}

pub(super) fn node_port_addresses(v: &Values) -> anyhow::Result<NodePortAddresses> {
    const PATH: &str = "nodePortAddresses";
    let texts = v.list(PATH);
    if texts.contains(&"primary") {
        ensure!(texts.len() == 1, "{PATH}: primary cannot be combined with other values");
        return Ok(NodePortAddresses::Primary);
    }
    Ok(NodePortAddresses::Cidrs(cidrs(v, PATH)?))
}

pub(super) fn local_traffic(v: &Values) -> anyhow::Result<LocalTraffic> {
    let interface = |path: &str, suffix: &str| {
        let name = v.text(path);
        ensure!(!name.is_empty(), "{path} is empty, but detectLocalMode needs it");
        Ok(LocalTraffic::Interface(format!("{name}{suffix}")))
    };
    match v.text("detectLocalMode") {
        "" | "ClusterCIDR" => Ok(LocalTraffic::Cidrs(cluster_cidrs(v.text("clusterCIDR"))?)),
        "NodeCIDR" => Ok(LocalTraffic::default()),
        "BridgeInterface" => interface("detectLocal.bridgeInterface", ""),
        "InterfaceNamePrefix" => interface("detectLocal.interfaceNamePrefix", "+"),
        other => bail!(
            "detectLocalMode: {other:?} is not ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix"
        ),
    }
}

/// One CIDR, or one of each family.
fn cluster_cidrs(text: &str) -> anyhow::Result<PerFamily<Option<IpNet>>> {
    let mut cidrs: PerFamily<Option<IpNet>> = PerFamily::default();
    for part in text.split(',').filter(|part| !part.trim().is_empty()) {
        let net = cidr("clusterCIDR", part)?;
        let slot = &mut cidrs[Family::of(net.addr())];
        ensure!(slot.is_none(), "clusterCIDR: {text:?} has two CIDRs of one family");
        *slot = Some(net);
    }
    Ok(cidrs)
}

/// The value of a label; `None` when empty.
pub(super) fn label_value(v: &Values, field: &str) -> anyhow::Result<Option<String>> {
    let text = v.text(field);
    if text.is_empty() {
        return Ok(None);
    }
    ensure!(
        is_label_name(text),
        "{field}: {text:?} is not a valid value of a label: up to 63 letters and digits, with -_. between them"
    );
    Ok(Some(text.to_owned()))
}

/// Whether the text can be a value of a label that is not empty, or the name in the key of one.
pub(super) fn is_label_name(text: &str) -> bool {
    let is_end = |c: char| c.is_ascii_alphanumeric();
    text.len() <= 63
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        && text.starts_with(is_end)
        && text.ends_with(is_end)
}

/// Whether each node adds real servers in another order.
pub(super) fn order_by_node(v: &Values) -> anyhow::Result<bool> {
    const ORDER: &str = "kubeIPVS.realServerOrder";
    match v.text(ORDER) {
        "address" => Ok(false),
        "node" => Ok(true),
        other => bail!("{ORDER}: {other:?} is neither address nor node"),
    }
}
