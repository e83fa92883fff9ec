// SPDX-License-Identifier: Apache-2.0
//! The configuration file: a `KubeProxyConfiguration` (kubeproxy.config.k8s.io/v1alpha1), of which
//! the fields that act are read and the others named. Our own settings are under `kubeIPVS`.

mod fields;
pub mod node;
mod raw;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use ipnet::IpNet;
use serde_json::Value;

use crate::core::settings::{ExternalIps, LocalTraffic, NodePortAddresses, Settings, Timeouts};
use raw::{RawConfig, RawConntrack, RawIpvs, RawMetrics};

/// Connections of removed endpoints may go on this long: longer than any sensible grace period.
const DRAIN_DEADLINE: Duration = Duration::from_secs(24 * 3600);

/// What the file says, with kube-proxy's defaults.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// `hostnameOverride`; empty when absent.
    pub hostname_override: String,
    /// `bindAddress`, unless it is unspecified.
    pub bind_address: Option<IpAddr>,
    /// `metricsBindAddress`.
    pub metrics_address: SocketAddr,
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
    /// `ipvs.strictARP`.
    pub strict_arp: bool,
    /// `ipvs.tcpTimeout`, `tcpFinTimeout` and `udpTimeout`.
    pub timeouts: Timeouts,
    /// `conntrack`.
    pub conntrack: Conntrack,
    /// `detectLocalMode` with its value, but for NodeCIDR.
    pub local: LocalTraffic,
    /// `detectLocalMode: NodeCIDR`: the Node object has the value.
    pub local_from_node: bool,
    /// `iptables.masqueradeAll`.
    pub masquerade_all: bool,
    /// The mark of `iptables.masqueradeBit`, bit 14 when absent.
    pub masquerade_mark: u32,
    /// `nodePortAddresses`.
    pub node_port_addresses: NodePortAddresses,
    /// `kubeIPVS.externalIPs.allow`, and the feature gate `AllowServiceExternalIPs`.
    pub external_ips: ExternalIps,
    /// `kubeIPVS.drainDeadline`; `None` when `0s`: no deadline.
    pub drain_deadline: Option<Duration>,
    /// `kubeIPVS.keepEstablished`.
    pub keep_established: bool,
    /// `kubeIPVS.metrics.perService`: how many Services have traffic metrics of their own
    /// (`maxServices`); `None`: no traffic is told.
    pub service_metrics: Option<usize>,
    /// Fields that are set but have no effect in this version.
    pub without_effect: Vec<String>,
}

/// Connection tracking. 0 and `None`: leave the kernel's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conntrack {
    /// Table entries for each CPU.
    pub max_per_core: i64,
    /// Table entries at least, where `max_per_core` is set.
    pub min: i64,
    /// Seconds that idle established TCP connections are kept.
    pub tcp_established: i64,
    /// Seconds that half-closed TCP connections are kept.
    pub tcp_close_wait: i64,
    /// Packets out of window do not end a TCP connection.
    pub tcp_be_liberal: bool,
    /// Seconds that a UDP flow without answer is kept.
    pub udp: i64,
    /// Seconds that a UDP flow with answers is kept.
    pub udp_stream: i64,
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
        let without_effect = ignored.into_iter().filter(|path| fields::matters(&value, path)).collect();
        Ok(Self { without_effect, ..Self::from_raw(raw)? })
    }

    fn from_raw(raw: RawConfig) -> anyhow::Result<Self> {
        let local = fields::local_traffic(&raw)?;
        match raw.mode.as_deref() {
            None | Some("" | "ipvs") => {}
            Some(other) => bail!(
                "mode: {other:?} is not ipvs: kube-ipvs implements the ipvs mode only; run kube-proxy for others"
            ),
        }
        let external_ips = external_ips(&raw)?;
        let metrics_address = metrics_address(&raw)?;
        let ipvs = raw.ipvs.unwrap_or_default();
        let iptables = raw.iptables.unwrap_or_default();
        let own = raw.own.unwrap_or_default();
        let bit = iptables.masquerade_bit.unwrap_or(14);
        ensure!(bit < 32, "iptables.masqueradeBit: {bit} is not in 0-31");
        let (min_sync_period, sync_period) = periods(&ipvs)?;
        let drain_deadline = match own.drain_deadline {
            None => DRAIN_DEADLINE,
            given => fields::duration("kubeIPVS.drainDeadline", given)?,
        };
        Ok(Self {
            hostname_override: raw.hostname_override.unwrap_or_default(),
            bind_address: fields::bind_address(raw.bind_address.as_deref().unwrap_or_default())?,
            metrics_address,
            kubeconfig: raw.client_connection.and_then(|c| c.kubeconfig).unwrap_or_default(),
            timeouts: timeouts(&ipvs)?,
            conntrack: conntrack(&raw.conntrack.unwrap_or_default())?,
            strict_arp: ipvs.strict_arp.unwrap_or(false),
            exclude_cidrs: fields::cidrs("ipvs.excludeCIDRs", ipvs.exclude_cidrs.as_deref())?,
            scheduler: ipvs.scheduler.filter(|s| !s.is_empty()).unwrap_or_else(|| "rr".to_owned()),
            min_sync_period,
            sync_period,
            local_from_node: raw.detect_local_mode.as_deref() == Some("NodeCIDR"),
            local,
            masquerade_all: iptables.masquerade_all.unwrap_or(false),
            masquerade_mark: 1 << bit,
            node_port_addresses: fields::node_port_addresses(raw.node_port_addresses.as_deref())?,
            external_ips,
            drain_deadline: Some(drain_deadline).filter(|d| !d.is_zero()),
            keep_established: own.keep_established.unwrap_or(false),
            service_metrics: service_metrics(&own.metrics.unwrap_or_default()),
            without_effect: Vec::new(),
        })
    }

    /// The settings of the plan on this machine.
    ///
    /// # Errors
    /// When the machine cannot tell its kernel version.
    pub fn settings(&self) -> anyhow::Result<Settings> {
        let mut sysctls = node::sysctls(node::kernel_version()?, self.strict_arp);
        sysctls.extend(self.conntrack.sysctls(node::cpus()));
        Ok(Settings {
            families: node::families(),
            scheduler: self.scheduler.as_str().into(),
            local: self.local.clone(),
            masquerade_all: self.masquerade_all,
            masquerade_mark: self.masquerade_mark,
            sysctls,
            timeouts: self.timeouts,
            exclude_cidrs: self.exclude_cidrs.clone(),
            node_port_addresses: self.node_port_addresses.clone(),
            bind_address: self.bind_address,
            external_ips: self.external_ips.clone(),
            drain_deadline: self.drain_deadline,
            keep_established: self.keep_established,
        })
    }
}

/// A thousand Services unless set.
fn service_metrics(raw: &RawMetrics) -> Option<usize> {
    raw.per_service.unwrap_or(false).then(|| raw.max_services.unwrap_or(1000))
}

/// Loopback unless set, in the family of `bindAddress`.
fn metrics_address(raw: &RawConfig) -> anyhow::Result<SocketAddr> {
    let v6 = raw.bind_address.as_deref().is_some_and(|text| text.contains(':'));
    let default = if v6 { "::1" } else { "127.0.0.1" };
    let given = raw.metrics_bind_address.as_deref().filter(|text| !text.is_empty());
    fields::address_with_port("metricsBindAddress", given.unwrap_or(default), 10249)
}

fn periods(ipvs: &RawIpvs) -> anyhow::Result<(Duration, Duration)> {
    let min = fields::duration("ipvs.minSyncPeriod", ipvs.min_sync_period)?;
    let period = match fields::duration("ipvs.syncPeriod", ipvs.sync_period)? {
        Duration::ZERO => Duration::from_secs(30),
        period => period,
    };
    ensure!(period >= min, "ipvs.syncPeriod ({period:?}) is shorter than ipvs.minSyncPeriod ({min:?})");
    Ok((min, period))
}

fn timeouts(ipvs: &RawIpvs) -> anyhow::Result<Timeouts> {
    let seconds = |field: &str, value| {
        let seconds = fields::duration(field, value)?.as_secs();
        u32::try_from(seconds).with_context(|| format!("{field} is too long"))
    };
    Ok(Timeouts {
        tcp: seconds("ipvs.tcpTimeout", ipvs.tcp_timeout)?,
        tcp_fin: seconds("ipvs.tcpFinTimeout", ipvs.tcp_fin_timeout)?,
        udp: seconds("ipvs.udpTimeout", ipvs.udp_timeout)?,
    })
}

fn conntrack(raw: &RawConntrack) -> anyhow::Result<Conntrack> {
    let number = |field: &str, value: Option<i32>, default: i32| {
        let value = value.unwrap_or(default);
        ensure!(value >= 0, "{field} is negative");
        Ok(i64::from(value))
    };
    let seconds = |field: &str, value: Option<kube::core::Duration>, default: i64| match value {
        None => Ok(default),
        given => anyhow::Ok(i64::try_from(fields::duration(field, given)?.as_secs())?),
    };
    Ok(Conntrack {
        max_per_core: number("conntrack.maxPerCore", raw.max_per_core, 32768)?,
        min: number("conntrack.min", raw.min, 131_072)?,
        tcp_established: seconds("conntrack.tcpEstablishedTimeout", raw.tcp_established_timeout, 86400)?,
        tcp_close_wait: seconds("conntrack.tcpCloseWaitTimeout", raw.tcp_close_wait_timeout, 3600)?,
        tcp_be_liberal: raw.tcp_be_liberal.unwrap_or(false),
        udp: seconds("conntrack.udpTimeout", raw.udp_timeout, 0)?,
        udp_stream: seconds("conntrack.udpStreamTimeout", raw.udp_stream_timeout, 0)?,
    })
}

fn external_ips(raw: &RawConfig) -> anyhow::Result<ExternalIps> {
    let gate = raw.feature_gates.as_ref().and_then(|gates| gates.get("AllowServiceExternalIPs"));
    if gate == Some(&false) {
        return Ok(ExternalIps::None);
    }
    let allow = raw.own.as_ref().and_then(|own| own.external_ips.as_ref()).and_then(|e| e.allow.as_deref());
    match allow {
        None => Ok(ExternalIps::All),
        given => Ok(ExternalIps::Within(fields::cidrs("kubeIPVS.externalIPs.allow", given)?)),
    }
}

#[cfg(test)]
mod tests;
