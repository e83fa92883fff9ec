// SPDX-License-Identifier: Apache-2.0
//! Single fields of the file. Errors name the field and what is wrong.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use ipnet::IpNet;
use serde_json::Value;

use super::raw::RawConfig;
use crate::core::model::Family;
use crate::core::settings::{LocalTraffic, NodePortAddresses};

/// Whether an ignored field is set to anything but its zero value: the others would only be noise.
pub(super) fn matters(value: &Value, path: &str) -> bool {
    // Optional levels appear as `?` in the path.
    let pointer: String = path.split('.').filter(|p| *p != "?").map(|p| format!("/{p}")).collect();
    !match value.pointer(&pointer) {
        None | Some(Value::Null | Value::Bool(false)) => true,
        Some(Value::Number(n)) => n.as_f64() == Some(0.0),
        Some(Value::String(s)) => s.is_empty() || s == "0s",
        Some(Value::Array(a)) => a.is_empty(),
        Some(Value::Object(o)) => o.is_empty(),
        Some(Value::Bool(true)) => false,
    }
}

pub(super) fn duration(field: &str, value: Option<kube::core::Duration>) -> anyhow::Result<Duration> {
    let Some(value) = value else { return Ok(Duration::ZERO) };
    ensure!(!value.is_negative(), "{field} is negative");
    Ok(value.into())
}

fn cidr(field: &str, text: &str) -> anyhow::Result<IpNet> {
    let net: IpNet = text.trim().parse().with_context(|| format!("{field}: {text:?} is not a CIDR"))?;
    Ok(net.trunc())
}

pub(super) fn cidrs(field: &str, texts: Option<&[String]>) -> anyhow::Result<Vec<IpNet>> {
    texts.unwrap_or_default().iter().map(|text| cidr(field, text)).collect()
}

/// An unspecified address says nothing.
pub(super) fn bind_address(text: &str) -> anyhow::Result<Option<IpAddr>> {
    if text.is_empty() {
        return Ok(None);
    }
    let ip: IpAddr = text.parse().with_context(|| format!("bindAddress: {text:?} is not an IP address"))?;
    Ok(Some(ip).filter(|ip| !ip.is_unspecified()))
}

/// `IP:PORT`, or an IP that gets the usual port.
pub(super) fn address_with_port(field: &str, text: &str, port: u16) -> anyhow::Result<SocketAddr> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Ok(SocketAddr::new(ip, port));
    }
    let address: SocketAddr =
        text.parse().with_context(|| format!("{field}: {text:?} is neither IP:PORT nor an IP address"))?;
    ensure!(address.port() > 0, "{field}: the port of {text:?} is not in 1-65535");
    Ok(address)
}

pub(super) fn node_port_addresses(texts: Option<&[String]>) -> anyhow::Result<NodePortAddresses> {
    let texts = texts.unwrap_or_default();
    if texts.iter().any(|text| text == "primary") {
        ensure!(texts.len() == 1, "nodePortAddresses: primary stands alone");
        return Ok(NodePortAddresses::Primary);
    }
    Ok(NodePortAddresses::Cidrs(cidrs("nodePortAddresses", Some(texts))?))
}

pub(super) fn local_traffic(raw: &RawConfig) -> anyhow::Result<LocalTraffic> {
    let detect = raw.detect_local.as_ref();
    let interface = |field: &str, name: Option<&String>, suffix: &str| {
        let name = name.filter(|name| !name.is_empty());
        let name =
            name.with_context(|| format!("detectLocal.{field} is empty but detectLocalMode asks for it"))?;
        Ok(LocalTraffic::Interface(format!("{name}{suffix}")))
    };
    match raw.detect_local_mode.as_deref() {
        None | Some("" | "ClusterCIDR") => {
            Ok(LocalTraffic::Cidrs(cluster_cidrs(raw.cluster_cidr.as_deref().unwrap_or_default())?))
        }
        Some("NodeCIDR") => Ok(LocalTraffic::default()),
        Some("BridgeInterface") => {
            interface("bridgeInterface", detect.and_then(|d| d.bridge_interface.as_ref()), "")
        }
        Some("InterfaceNamePrefix") => {
            interface("interfaceNamePrefix", detect.and_then(|d| d.interface_name_prefix.as_ref()), "+")
        }
        Some(other) => bail!(
            "detectLocalMode: {other:?} is not ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix"
        ),
    }
}

/// One CIDR, or one of each family.
fn cluster_cidrs(text: &str) -> anyhow::Result<[Option<IpNet>; 2]> {
    let mut cidrs = [None, None];
    for part in text.split(',').filter(|part| !part.trim().is_empty()) {
        let net = cidr("clusterCIDR", part)?;
        let slot = &mut cidrs[Family::of_net(&net).index()];
        ensure!(slot.is_none(), "clusterCIDR: {text:?} has two CIDRs of one family");
        *slot = Some(net);
    }
    Ok(cidrs)
}
