// SPDX-License-Identifier: Apache-2.0
//! The configuration: a `KubeProxyConfiguration` (kubeproxy.config.k8s.io/v1alpha1), from a file or from
//! kube-proxy's flags. Our own settings are under `kubeIPVS`, which kube-proxy passes over.

pub(crate) mod duration;
mod fields;
pub(crate) mod flags;
pub mod host;
pub mod table;
mod values;

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use ipnet::IpNet;
use serde_json::Value;

use crate::core::model::address;
use crate::core::model::settings::{ExternalIps, LocalTraffic, NodePortAddresses, Settings, Timeouts};
use crate::file_watch;
use crate::log;
use crate::yaml::{self, Twice};
pub use flags::ConfigFlags;
pub use values::{Origin, Values};

const API_VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";
const KIND: &str = "KubeProxyConfiguration";
/// kube-proxy's default for a configuration of flags; that of a file is 0s.
const MIN_SYNC_PERIOD_OF_FLAGS: &str = "1s";
/// Gates of kube-proxy that it is no mistake to name.
const GATES: [&str; 11] = [
    "AllAlpha",
    "AllBeta",
    "AllowServiceExternalIPs",
    "ComponentFlagz",
    "ComponentStatusz",
    "ContextualLogging",
    "LoggingAlphaOptions",
    "LoggingBetaOptions",
    "MultiCIDRServiceAllocator",
    "NativeHistograms",
    "PreferSameTrafficDistribution",
];

/// The configuration in force, with kube-proxy's defaults.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// `hostnameOverride`; empty when absent.
    pub hostname_override: String,
    /// `bindAddress`, unless it is unspecified.
    pub bind_address: Option<IpAddr>,
    /// `bindAddressHardFail`: a port that is taken ends the process.
    pub bind_address_hard_fail: bool,
    /// `healthzBindAddress`; `None`: no health server.
    pub healthz_address: Option<SocketAddr>,
    /// `metricsBindAddress`.
    pub metrics_address: SocketAddr,
    /// `clientConnection.kubeconfig`; empty when absent.
    pub kubeconfig: String,
    /// `oomScoreAdj`.
    pub oom_score_adj: i64,
    /// `logging.format`.
    pub log_format: log::LogFormat,
    /// `logging.verbosity`.
    pub verbosity: u32,
    /// `ipvs.scheduler`, `rr` when empty.
    pub scheduler: String,
    /// `ipvs.minSyncPeriod`.
    pub min_sync_period: Duration,
    /// `ipvs.syncPeriod`.
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
    /// The mark of `iptables.masqueradeBit`.
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
    /// `kubeIPVS.configReload`: what becomes of a change of the file.
    pub reload: Reload,
    /// `kubeIPVS.protectedCIDRs`: addresses that are never bound.
    pub protected_cidrs: Vec<IpNet>,
    /// `kubeIPVS.serviceProxyName`; `None` when empty: Services without such a label are served.
    pub service_proxy_name: Option<String>,
    /// What the operator should know: unknown fields, fields without effect.
    pub warnings: Vec<String>,
    /// Every field's value and origin.
    pub values: Values,
}

/// What becomes of a change of the configuration file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reload {
    /// The agent stops within this time, to be started anew: the nodes of a fleet do so one after another.
    Restart(Duration),
    /// It counts from the next start.
    Ignore,
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
    /// Reads a file, or takes the flags alone when there is none.
    ///
    /// # Errors
    /// Names the file, the field or the flag, and what is wrong.
    pub fn read(file: Option<&Path>, flags: &ConfigFlags) -> anyhow::Result<Self> {
        let Some(path) = file else { return Self::build(None, flags) };
        Self::parse(&read_file(path)?, flags).with_context(|| in_file(path))
    }

    /// Parses YAML or JSON. Of the flags those count that count beside a file.
    ///
    /// # Errors
    /// Names the field and what is wrong.
    pub fn parse(text: &str, flags: &ConfigFlags) -> anyhow::Result<Self> {
        Self::build(Some(text), flags)
    }

    fn build(text: Option<&str>, flags: &ConfigFlags) -> anyhow::Result<Self> {
        let mut config = Self::from_values(Self::values(text, flags)?)?;
        if text.is_none() && flags.healthz_port == Some(0) {
            config.healthz_address = None;
        }
        Ok(config)
    }

    /// Only `ipvs.excludeCIDRs`, of a file for any mode of kube-proxy: for whoever removes what a mode left.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_exclude_cidrs(file: Option<&Path>, flags: &ConfigFlags) -> anyhow::Result<Vec<IpNet>> {
        let text = file.map(read_file).transpose()?;
        let read = || {
            let values = Self::values(text.as_deref(), flags)?;
            fields::cidrs("ipvs.excludeCIDRs", values.list("ipvs.excludeCIDRs"))
        };
        read().with_context(|| file.map(in_file).unwrap_or_default())
    }

    fn values(text: Option<&str>, flags: &ConfigFlags) -> anyhow::Result<Values> {
        let mut values = Values::default();
        values.file_text = text.map(str::to_owned);
        if let Some(text) = text {
            let file = parse_yaml(text, &mut values.warnings)?;
            check_kind(&file)?;
            values.take_file(&file)?;
        } else {
            values.set_default("ipvs.minSyncPeriod", MIN_SYNC_PERIOD_OF_FLAGS);
        }
        for (field, flag, text_of_flag) in &flags.given {
            if text.is_none() || field.flag_wins {
                values.take_flag(field, flag, text_of_flag)?;
            } else {
                let warning =
                    format!("--{flag} is passed over beside --config, as in kube-proxy: set {}", field.path);
                values.warnings.push(warning);
            }
        }
        Ok(values)
    }

    fn from_values(mut v: Values) -> anyhow::Result<Self> {
        match v.text("mode") {
            "" | "ipvs" => {}
            other => bail!(
                "mode: {other:?} is not ipvs: kube-ipvs implements the ipvs mode only; run kube-proxy for others"
            ),
        }
        fill_addresses(&mut v);
        let warnings = warnings(&v);
        let bit = values::in_range("iptables.masqueradeBit", v.int("iptables.masqueradeBit"), 0..=31)?;
        let (min_sync_period, sync_period) = periods(&v)?;
        let address = |path, port| fields::address_with_port(path, v.text(path), port);
        Ok(Self {
            hostname_override: v.text("hostnameOverride").to_owned(),
            bind_address: fields::bind_address(v.text("bindAddress"))?,
            bind_address_hard_fail: v.bool("bindAddressHardFail"),
            healthz_address: Some(address("healthzBindAddress", 10256)?),
            metrics_address: address("metricsBindAddress", 10249)?,
            kubeconfig: v.text("clientConnection.kubeconfig").to_owned(),
            oom_score_adj: values::in_range("oomScoreAdj", v.int("oomScoreAdj"), -1000..=1000)?,
            log_format: v.text("logging.format").parse().context("logging.format")?,
            verbosity: u32::try_from(v.int("logging.verbosity"))
                .ok()
                .context("logging.verbosity is negative")?,
            timeouts: timeouts(&v)?,
            conntrack: conntrack(&v)?,
            strict_arp: v.bool("ipvs.strictARP"),
            exclude_cidrs: fields::cidrs("ipvs.excludeCIDRs", v.list("ipvs.excludeCIDRs"))?,
            scheduler: Some(v.text("ipvs.scheduler")).filter(|s| !s.is_empty()).unwrap_or("rr").to_owned(),
            min_sync_period,
            sync_period,
            local_from_node: v.text("detectLocalMode") == "NodeCIDR",
            local: fields::local_traffic(&v)?,
            masquerade_all: v.bool("iptables.masqueradeAll"),
            masquerade_mark: 1 << bit,
            node_port_addresses: fields::node_port_addresses(v.list("nodePortAddresses"))?,
            external_ips: external_ips(&v)?,
            drain_deadline: Some(v.duration("kubeIPVS.drainDeadline")).filter(|d| !d.is_zero()),
            keep_established: v.bool("kubeIPVS.keepEstablished"),
            service_metrics: service_metrics(&v)?,
            reload: reload(&v)?,
            protected_cidrs: fields::cidrs("kubeIPVS.protectedCIDRs", v.list("kubeIPVS.protectedCIDRs"))?,
            service_proxy_name: fields::label_value(
                "kubeIPVS.serviceProxyName",
                v.text("kubeIPVS.serviceProxyName"),
            )?,
            warnings,
            values: v,
        })
    }

    /// The settings of the plan on this machine.
    ///
    /// # Errors
    /// When the machine cannot tell its kernel version.
    pub fn settings(&self) -> anyhow::Result<Settings> {
        let mut sysctls = host::sysctls(host::kernel_version()?, self.strict_arp);
        sysctls.extend(self.conntrack.sysctls(host::cpus()));
        Ok(Settings {
            families: host::families(),
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
            protected: self.protected_cidrs.clone(),
            shares_node: self.service_proxy_name.is_some(),
        })
    }
}

fn read_file(path: &Path) -> anyhow::Result<String> {
    // The log begins when the configuration is known.
    let text = file_watch::read_complete(path, |line| eprintln!("kube-ipvs: {line}"));
    text.with_context(|| format!("cannot read the configuration file {}", path.display()))
}

fn in_file(path: &Path) -> String {
    format!("in the configuration file {}", path.display())
}

/// Strictly first; a key that is there twice then counts as its last, with a warning, as in kube-proxy.
fn parse_yaml(text: &str, warnings: &mut Vec<String>) -> anyhow::Result<Value> {
    let error = match yaml::read(text, Twice::Refused) {
        Ok(value) => return Ok(value),
        Err(error) => error,
    };
    match yaml::read(text, Twice::LastWins) {
        Ok(value) => {
            warnings.push(format!("a field is there twice, the last one counts: {error}"));
            Ok(value)
        }
        Err(error) => bail!("not valid YAML: {error}"),
    }
}

fn reload(v: &Values) -> anyhow::Result<Reload> {
    const MODE: &str = "kubeIPVS.configReload.mode";
    match v.text(MODE) {
        "restart" => Ok(Reload::Restart(v.duration("kubeIPVS.configReload.spread"))),
        "ignore" => Ok(Reload::Ignore),
        other => bail!("{MODE}: {other:?} is neither restart nor ignore"),
    }
}

fn service_metrics(v: &Values) -> anyhow::Result<Option<usize>> {
    const MAX: &str = "kubeIPVS.metrics.maxServices";
    let limit = usize::try_from(v.int(MAX)).ok().with_context(|| format!("{MAX} is negative"))?;
    Ok(v.bool("kubeIPVS.metrics.perService").then_some(limit))
}

fn check_kind(file: &Value) -> anyhow::Result<()> {
    let text = |name: &str| file.get(name).and_then(Value::as_str).unwrap_or_default();
    let (kind, version) = (text("kind"), text("apiVersion"));
    ensure!(
        kind == KIND && version == API_VERSION,
        "kind {kind:?} of apiVersion {version:?} is not {KIND} of {API_VERSION}"
    );
    Ok(())
}

fn warnings(v: &Values) -> Vec<String> {
    let unknown = v.gates("featureGates").into_keys().filter(|name| !GATES.contains(&name.as_str()));
    let gates = unknown.map(|name| format!("featureGates.{name} is not known here: check its spelling"));
    v.warnings.iter().cloned().chain(v.missing()).chain(gates).collect()
}

/// Every address for health, loopback for metrics, in the family of `bindAddress`.
fn fill_addresses(v: &mut Values) {
    // What is no address at all is refused later.
    let v6 = address::parse_ip(v.text("bindAddress")).is_some_and(|ip| ip.is_ipv6());
    let (any, loopback) =
        if v6 { ("[::]:10256", "[::1]:10249") } else { ("0.0.0.0:10256", "127.0.0.1:10249") };
    for (path, address) in [("healthzBindAddress", any), ("metricsBindAddress", loopback)] {
        if v.text(path).is_empty() {
            v.set_default(path, address);
        }
    }
}

fn periods(v: &Values) -> anyhow::Result<(Duration, Duration)> {
    let (min, period) = (v.duration("ipvs.minSyncPeriod"), v.duration("ipvs.syncPeriod"));
    ensure!(!period.is_zero(), "ipvs.syncPeriod is zero: set it to 30s or longer");
    ensure!(period >= min, "ipvs.syncPeriod ({period:?}) is shorter than ipvs.minSyncPeriod ({min:?})");
    ensure!(!v.duration("configSyncPeriod").is_zero(), "configSyncPeriod is zero");
    Ok((min, period))
}

fn timeouts(v: &Values) -> anyhow::Result<Timeouts> {
    let seconds = |path: &str| {
        u32::try_from(v.duration(path).as_secs()).ok().with_context(|| format!("{path} is too long"))
    };
    Ok(Timeouts {
        tcp: seconds("ipvs.tcpTimeout")?,
        tcp_fin: seconds("ipvs.tcpFinTimeout")?,
        udp: seconds("ipvs.udpTimeout")?,
    })
}

fn conntrack(v: &Values) -> anyhow::Result<Conntrack> {
    let number = |path: &str| values::in_range(path, v.int(path), 0..=i64::from(i32::MAX));
    let seconds = |path: &str| {
        i64::try_from(v.duration(path).as_secs()).ok().with_context(|| format!("{path} is too long"))
    };
    Ok(Conntrack {
        max_per_core: number("conntrack.maxPerCore")?,
        min: number("conntrack.min")?,
        tcp_established: seconds("conntrack.tcpEstablishedTimeout")?,
        tcp_close_wait: seconds("conntrack.tcpCloseWaitTimeout")?,
        tcp_be_liberal: v.bool("conntrack.tcpBeLiberal"),
        udp: seconds("conntrack.udpTimeout")?,
        udp_stream: seconds("conntrack.udpStreamTimeout")?,
    })
}

fn external_ips(v: &Values) -> anyhow::Result<ExternalIps> {
    const ALLOW: &str = "kubeIPVS.externalIPs.allow";
    if v.gates("featureGates").get("AllowServiceExternalIPs") == Some(&false) {
        return Ok(ExternalIps::None);
    }
    match v.list(ALLOW) {
        None => Ok(ExternalIps::All),
        given => Ok(ExternalIps::Within(fields::cidrs(ALLOW, given)?)),
    }
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
