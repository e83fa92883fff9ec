// SPDX-License-Identifier: Apache-2.0
//! The configuration file: a `KubeProxyConfiguration` (kubeproxy.config.k8s.io/v1alpha1), of which
//! the fields that act are read and the others named.

pub mod node;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;

use crate::core::model::{Family, LocalTraffic};

/// What the file says, with kube-proxy's defaults.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// `hostnameOverride`; empty when absent.
    pub hostname_override: String,
    /// `clientConnection.kubeconfig`; empty when absent.
    pub kubeconfig: String,
    /// `ipvs.scheduler`, `rr` when empty.
    pub scheduler: String,
    /// `ipvs.minSyncPeriod`.
    pub min_sync_period: Duration,
    /// `ipvs.syncPeriod`, 30 s when zero.
    pub sync_period: Duration,
    /// `ipvs.excludeCIDRs`.
    pub exclude_cidrs: Vec<IpNet>,
    /// `detectLocalMode` with its value, but for NodeCIDR.
    pub local: LocalTraffic,
    /// `detectLocalMode: NodeCIDR`: the Node object has the value.
    pub local_from_node: bool,
    /// `iptables.masqueradeAll`.
    pub masquerade_all: bool,
    /// The mark of `iptables.masqueradeBit`, bit 14 when absent.
    pub masquerade_mark: u32,
    /// Fields that are set but have no effect in this version.
    pub without_effect: Vec<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct RawConfig {
    api_version: String,
    kind: String,
    mode: Option<String>,
    hostname_override: Option<String>,
    #[serde(rename = "clusterCIDR")]
    cluster_cidr: Option<String>,
    detect_local_mode: Option<String>,
    detect_local: Option<RawDetectLocal>,
    client_connection: Option<RawClientConnection>,
    iptables: Option<RawIptables>,
    ipvs: Option<RawIpvs>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct RawDetectLocal {
    bridge_interface: Option<String>,
    interface_name_prefix: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawClientConnection {
    kubeconfig: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct RawIptables {
    masquerade_all: Option<bool>,
    masquerade_bit: Option<u32>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct RawIpvs {
    scheduler: Option<String>,
    sync_period: Option<kube::core::Duration>,
    min_sync_period: Option<kube::core::Duration>,
    #[serde(rename = "excludeCIDRs")]
    exclude_cidrs: Option<Vec<String>>,
}

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    /// Names the file, the field, and what is wrong.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path);
        let text = text.with_context(|| format!("cannot read the configuration file {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("in the configuration file {}", path.display()))
    }

    /// Parses YAML or JSON.
    ///
    /// # Errors
    /// Names the field and what is wrong.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let value: Value = serde_saphyr::from_str(text).context("not valid YAML")?;
        let mut ignored = BTreeSet::new();
        let mut track = serde_path_to_error::Track::new();
        let tracked = serde_path_to_error::Deserializer::new(&value, &mut track);
        let raw: Result<RawConfig, _> = serde_ignored::deserialize(tracked, |path| {
            ignored.insert(path.to_string());
        });
        let raw = raw.map_err(|error| anyhow::anyhow!("{}: {error}", track.path()))?;
        ensure!(
            raw.kind == "KubeProxyConfiguration" && raw.api_version == "kubeproxy.config.k8s.io/v1alpha1",
            "kind {:?} of apiVersion {:?} is not KubeProxyConfiguration of kubeproxy.config.k8s.io/v1alpha1",
            raw.kind,
            raw.api_version
        );
        let without_effect = ignored.into_iter().filter(|path| matters(&value, path)).collect();
        Ok(Self { without_effect, ..Self::from_raw(raw)? })
    }

    fn from_raw(raw: RawConfig) -> anyhow::Result<Self> {
        let local = local_traffic(&raw)?;
        match raw.mode.as_deref() {
            None | Some("" | "ipvs") => {}
            Some(other) => bail!(
                "mode: {other:?} is not ipvs: kube-ipvs implements the ipvs mode only; run kube-proxy for others"
            ),
        }
        let ipvs = raw.ipvs.unwrap_or_default();
        let iptables = raw.iptables.unwrap_or_default();
        let bit = iptables.masquerade_bit.unwrap_or(14);
        ensure!(bit < 32, "iptables.masqueradeBit: {bit} is not in 0-31");
        let min_sync_period = duration("ipvs.minSyncPeriod", ipvs.min_sync_period)?;
        let sync_period = match duration("ipvs.syncPeriod", ipvs.sync_period)? {
            Duration::ZERO => Duration::from_secs(30),
            period => period,
        };
        ensure!(
            sync_period >= min_sync_period,
            "ipvs.syncPeriod ({sync_period:?}) is shorter than ipvs.minSyncPeriod ({min_sync_period:?})"
        );
        let exclude = ipvs.exclude_cidrs.unwrap_or_default();
        Ok(Self {
            hostname_override: raw.hostname_override.unwrap_or_default(),
            kubeconfig: raw.client_connection.and_then(|c| c.kubeconfig).unwrap_or_default(),
            scheduler: ipvs.scheduler.filter(|s| !s.is_empty()).unwrap_or_else(|| "rr".to_owned()),
            min_sync_period,
            sync_period,
            exclude_cidrs: exclude.iter().map(|t| cidr("ipvs.excludeCIDRs", t)).collect::<Result<_, _>>()?,
            local_from_node: raw.detect_local_mode.as_deref() == Some("NodeCIDR"),
            local,
            masquerade_all: iptables.masquerade_all.unwrap_or(false),
            masquerade_mark: 1 << bit,
            without_effect: Vec::new(),
        })
    }
}

/// Whether an ignored field is set to anything but its zero value: the others would only be noise.
fn matters(value: &Value, path: &str) -> bool {
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

fn duration(field: &str, value: Option<kube::core::Duration>) -> anyhow::Result<Duration> {
    let Some(value) = value else { return Ok(Duration::ZERO) };
    ensure!(!value.is_negative(), "{field} is negative");
    Ok(value.into())
}

fn cidr(field: &str, text: &str) -> anyhow::Result<IpNet> {
    let net: IpNet = text.trim().parse().with_context(|| format!("{field}: {text:?} is not a CIDR"))?;
    Ok(net.trunc())
}

fn local_traffic(raw: &RawConfig) -> anyhow::Result<LocalTraffic> {
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

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

    fn parse(body: &str) -> anyhow::Result<Config> {
        Config::parse(&format!("{HEAD}{body}"))
    }

    #[test]
    fn the_config_map_of_kubeadm_gives_the_defaults() {
        let config = parse(
            "mode: ipvs\nclusterCIDR: 10.244.0.0/16\niptables:\n  masqueradeAll: false\n  masqueradeBit: null\n  \
             minSyncPeriod: 0s\nipvs:\n  excludeCIDRs: null\n  minSyncPeriod: 0s\n  scheduler: \"\"\n  \
             strictARP: false\n  syncPeriod: 0s\n  tcpFinTimeout: 0s\nmetricsBindAddress: \"\"\nbindAddress: 0.0.0.0\n",
        )
        .unwrap();
        assert_eq!(config.scheduler, "rr");
        assert_eq!((config.min_sync_period, config.sync_period), (Duration::ZERO, Duration::from_secs(30)));
        assert_eq!(config.masquerade_mark, 0x4000);
        assert_eq!(config.without_effect, ["bindAddress"], "zero values are not worth a line");
    }

    #[test]
    fn cluster_cidrs_are_kept_by_family() {
        let config = parse("clusterCIDR: fd00:244::/48,10.244.0.0/16\n").unwrap();
        let LocalTraffic::Cidrs(cidrs) = config.local else { panic!() };
        assert_eq!(cidrs.map(|c| c.unwrap().to_string()), ["10.244.0.0/16", "fd00:244::/48"]);
    }

    #[test]
    fn every_way_to_detect_local_traffic() {
        let prefix =
            parse("detectLocalMode: InterfaceNamePrefix\ndetectLocal: {interfaceNamePrefix: veth}\n");
        assert_eq!(prefix.unwrap().local, LocalTraffic::Interface("veth+".into()));
        let bridge = parse("detectLocalMode: BridgeInterface\ndetectLocal: {bridgeInterface: cni0}\n");
        assert_eq!(bridge.unwrap().local, LocalTraffic::Interface("cni0".into()));
        assert!(parse("detectLocalMode: NodeCIDR\n").unwrap().local_from_node);
    }

    #[test]
    fn each_mistake_is_named() {
        let cases = [
            ("mode: iptables\n", "mode: \"iptables\""),
            ("mode: [\n", "YAML"),
            ("clusterCIDR: 10.244.0.0\n", "clusterCIDR: \"10.244.0.0\""),
            ("clusterCIDR: 10.0.0.0/8,11.0.0.0/8\n", "two CIDRs of one family"),
            ("ipvs: {excludeCIDRs: [x]}\n", "ipvs.excludeCIDRs: \"x\""),
            ("ipvs: {syncPeriod: 1s, minSyncPeriod: 2s}\n", "ipvs.syncPeriod"),
            ("ipvs: {syncPeriod: fast}\n", "ipvs.syncPeriod"),
            ("ipvs: {minSyncPeriod: -1s}\n", "ipvs.minSyncPeriod is negative"),
            ("iptables: {masqueradeBit: 32}\n", "masqueradeBit: 32"),
            ("iptables: {masqueradeAll: 3}\n", "iptables.masqueradeAll: invalid type"),
            ("detectLocalMode: BridgeInterface\n", "detectLocal.bridgeInterface is empty"),
            ("detectLocalMode: Magic\n", "detectLocalMode: \"Magic\""),
            ("mode: ipvs\nmode: ipvs\n", "duplicate"),
        ];
        for (body, expected) in cases {
            let error = format!("{:#}", parse(body).unwrap_err());
            assert!(error.contains(expected), "{body:?} gave {error:?}");
        }
        let error = format!("{:#}", Config::parse("kind: ConfigMap\n").unwrap_err());
        assert!(error.contains("ConfigMap"), "{error}");
        let error = format!("{:#}", Config::read(Path::new("/nonexistent")).unwrap_err());
        assert!(error.contains("/nonexistent"), "{error}");
    }
}
