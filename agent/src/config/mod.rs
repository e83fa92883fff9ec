// SPDX-License-Identifier: Apache-2.0
//! The configuration: a `KubeProxyConfiguration` (kubeproxy.config.k8s.io/v1alpha1), from a file or from kube-proxy's
//! flags. Our own settings are under `kubeIPVS`, which kube-proxy ignores.

pub mod annotations;
mod chosen_values;
mod default_entries;
pub(crate) mod duration;
mod fields;
pub(crate) mod flags;
pub mod host;
pub mod table;
mod values;

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use ipnet::IpNet;
use serde_json::Value;

use crate::core::model::address;
use crate::core::model::settings::{ExternalIps, Settings, Timeouts};
use crate::file_watch;
use crate::log;
use crate::yaml::{self, DuplicateKeyPolicy};
pub use flags::ConfigFlags;
pub use host::Conntrack;
use values::{API_VERSION, KIND};
pub use values::{Origin, Values};

/// kube-proxy's default for a configuration of flags; that of a file is 0s.
const MIN_SYNC_PERIOD_OF_FLAGS: &str = "1s";
const SERVICE_PROXY_NAME: &str = "kubeIPVS.serviceProxyName";
/// Feature gates of kube-proxy, which cause no warning.
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
    /// `bindAddressHardFail`: a port in use ends the process.
    pub bind_address_hard_fail: bool,
    /// `healthzBindAddress`; `None`: no health server.
    pub healthz_address: Option<SocketAddr>,
    pub metrics_address: SocketAddr,
    /// `clientConnection.kubeconfig`; empty when absent.
    pub kubeconfig: String,
    pub oom_score_adj: i64,
    pub log_format: log::LogFormat,
    pub verbosity: u32,
    pub min_sync_period: Duration,
    pub sync_period: Duration,
    pub strict_arp: bool,
    pub conntrack: Conntrack,
    /// `detectLocalMode: NodeCIDR`: the value is in the Node object.
    pub local_from_node: bool,
    /// `kubeIPVS.clusterIPs: route` without `serviceCIDRs`: the ranges are in the ServiceCIDR objects.
    pub follows_service_cidrs: bool,
    /// `kubeIPVS.rules: auto`: the node decides what sets and rules are made of.
    pub chooses_rules: bool,
    /// `kubeIPVS.metrics.perService`: the number of Services with traffic metrics of their own (`maxServices`);
    /// `None`: no traffic metrics.
    pub service_metrics: Option<usize>,
    /// `kubeIPVS.configReload`: what to do when the file changes.
    pub reload: Reload,
    /// `kubeIPVS.serviceProxyName`; `None` when empty: Services without such a label.
    pub service_proxy_name: Option<String>,
    /// The settings of the sync, without what depends on this node: see [`Self::node_settings`].
    pub settings: Settings,
    /// Warnings for the operator: unknown fields, fields without effect.
    pub warnings: Vec<String>,
    pub values: Values,
}

/// What to do when the configuration file changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reload {
    /// Stop within this time, to be started again: the nodes of a fleet restart one after another.
    Restart(Duration),
    /// Nothing: the change takes effect at the next start.
    Ignore,
}

impl Config {
    /// Reads a file, or only the flags when there is no file.
    ///
    /// # Errors
    /// Names the file, the field or the flag, and what is wrong.
    pub fn read(file: Option<&Path>, flags: &ConfigFlags) -> anyhow::Result<Self> {
        let Some(path) = file else { return Self::build(None, flags) };
        Self::parse(&read_file(path)?, flags).with_context(|| in_file(path))
    }

    /// Parses YAML or JSON. Only the flags that override a file are used.
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

    /// Only `ipvs.excludeCIDRs`, of a file for any mode of kube-proxy, for `cleanup`.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_exclude_cidrs(file: Option<&Path>, flags: &ConfigFlags) -> anyhow::Result<Vec<IpNet>> {
        let text = file.map(read_file).transpose()?;
        let read = || {
            let values = Self::values(text.as_deref(), flags)?;
            fields::cidrs(&values, "ipvs.excludeCIDRs")
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
        for (field, text_of_flag) in &flags.given {
            if text.is_none() || field.flag_overrides {
                values.take_flag(field, text_of_flag)?;
            } else {
                values.warnings.push(format!(
                    "--{} is ignored with --config, as in kube-proxy: set {} in the file",
                    field.flag.unwrap_or_default(),
                    field.path
                ));
            }
        }
        Ok(values)
    }

    fn from_values(mut v: Values) -> anyhow::Result<Self> {
        let mode = v.text("mode");
        ensure!(
            matches!(mode, "" | "ipvs"),
            "mode: {mode:?} is not ipvs: kube-ipvs implements the ipvs mode only; run kube-proxy for others"
        );
        fill_addresses(&mut v);
        let warnings = warnings(&v);
        let (min_sync_period, sync_period) = periods(&v)?;
        let routed = fields::routed(&v)?;
        let rules = fields::rules_mode(&v)?;
        Ok(Self {
            service_proxy_name: fields::label_value(&v, SERVICE_PROXY_NAME)?,
            hostname_override: v.text("hostnameOverride").to_owned(),
            bind_address_hard_fail: v.bool("bindAddressHardFail"),
            healthz_address: Some(fields::address_with_port(&v, "healthzBindAddress", 10256)?),
            metrics_address: fields::address_with_port(&v, "metricsBindAddress", 10249)?,
            kubeconfig: v.text("clientConnection.kubeconfig").to_owned(),
            oom_score_adj: v.int_in("oomScoreAdj", -1000..=1000)?,
            log_format: v.text("logging.format").parse().context("logging.format")?,
            verbosity: u32::try_from(v.int("logging.verbosity"))
                .ok()
                .context("logging.verbosity is negative")?,
            min_sync_period,
            sync_period,
            strict_arp: v.bool("ipvs.strictARP"),
            conntrack: conntrack(&v)?,
            local_from_node: v.text("detectLocalMode") == "NodeCIDR",
            follows_service_cidrs: routed.is_none(),
            chooses_rules: rules.is_none(),
            service_metrics: service_metrics(&v)?,
            reload: reload(&v)?,
            settings: Settings {
                routed: routed.unwrap_or_default(),
                rules: rules.unwrap_or_default(),
                ..settings(&v)?
            },
            warnings,
            values: v,
        })
    }

    /// The settings of the sync on this node: with its IP families, and the sysctls for its kernel and CPUs.
    ///
    /// # Errors
    /// The kernel version cannot be read.
    pub fn node_settings(&self) -> anyhow::Result<Settings> {
        let mut sysctls = host::sysctls(host::kernel_version()?, self.strict_arp);
        sysctls.extend(self.conntrack.sysctls(host::cpus()));
        Ok(Settings { families: host::families(), sysctls, ..self.settings.clone() })
    }
}

fn settings(v: &Values) -> anyhow::Result<Settings> {
    Ok(Settings {
        masquerade_mark: 1 << v.int_in("iptables.masqueradeBit", 0..=31)?,
        scheduler: Some(v.text("ipvs.scheduler")).filter(|name| !name.is_empty()).unwrap_or("rr").into(),
        local: fields::local_traffic(v)?,
        masquerade_all: v.bool("iptables.masqueradeAll"),
        timeouts: timeouts(v)?,
        exclude_cidrs: fields::cidrs(v, "ipvs.excludeCIDRs")?,
        node_port_addresses: fields::node_port_addresses(v)?,
        bind_address: fields::bind_address(v)?,
        external_ips: external_ips(v)?,
        drain_deadline: Some(v.duration("kubeIPVS.drainDeadline")).filter(|d| !d.is_zero()),
        keep_established: v.bool("kubeIPVS.keepEstablished"),
        protected: fields::cidrs(v, "kubeIPVS.protectedCIDRs")?,
        binds_routed: fields::binds_routed(v),
        order_seed: fields::order_by_node(v)?.then_some(0),
        service_defaults: default_entries::service_defaults(v)?.into(),
        shares_node: !v.text(SERVICE_PROXY_NAME).is_empty(),
        ..Settings::default()
    })
}

fn read_file(path: &Path) -> anyhow::Result<String> {
    // The log is not set up yet.
    let text = file_watch::read_complete(path, |line| eprintln!("kube-ipvs: {line}"));
    text.with_context(|| format!("cannot read the configuration file {}", path.display()))
}

fn in_file(path: &Path) -> String {
    format!("in the configuration file {}", path.display())
}

/// As in kube-proxy, a duplicate key is a warning, and its last value is used.
fn parse_yaml(text: &str, warnings: &mut Vec<String>) -> anyhow::Result<Value> {
    let error = match yaml::read(text, DuplicateKeyPolicy::Error) {
        Ok(value) => return Ok(value),
        Err(error) => error,
    };
    match yaml::read(text, DuplicateKeyPolicy::LastWins) {
        Ok(value) => {
            warnings.push(format!("a field is given twice, its last value is used: {error}"));
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
    let gates = v.get("featureGates").as_object().into_iter().flat_map(|gates| gates.keys());
    let unknown = gates.filter(|name| !GATES.contains(&name.as_str()));
    let gates = unknown.map(|name| format!("featureGates.{name} is unknown: check its spelling"));
    v.warnings.iter().cloned().chain(v.missing()).chain(gates).collect()
}

/// Defaults: all addresses for health and loopback for metrics, in the family of `bindAddress`.
fn fill_addresses(v: &mut Values) {
    // An invalid address is refused later.
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

fn seconds<T: TryFrom<u64>>(v: &Values, path: &str) -> anyhow::Result<T> {
    T::try_from(v.duration(path).as_secs()).ok().with_context(|| format!("{path} is too long"))
}

fn timeouts(v: &Values) -> anyhow::Result<Timeouts> {
    Ok(Timeouts {
        tcp: seconds(v, "ipvs.tcpTimeout")?,
        tcp_fin: seconds(v, "ipvs.tcpFinTimeout")?,
        udp: seconds(v, "ipvs.udpTimeout")?,
    })
}

fn conntrack(v: &Values) -> anyhow::Result<Conntrack> {
    let number = |path: &str| v.int_in(path, 0..=i64::from(i32::MAX));
    Ok(Conntrack {
        max_per_core: number("conntrack.maxPerCore")?,
        min: number("conntrack.min")?,
        tcp_established: seconds(v, "conntrack.tcpEstablishedTimeout")?,
        tcp_close_wait: seconds(v, "conntrack.tcpCloseWaitTimeout")?,
        tcp_be_liberal: v.bool("conntrack.tcpBeLiberal"),
        udp: seconds(v, "conntrack.udpTimeout")?,
        udp_stream: seconds(v, "conntrack.udpStreamTimeout")?,
    })
}

fn external_ips(v: &Values) -> anyhow::Result<ExternalIps> {
    const ALLOW: &str = "kubeIPVS.externalIPs.allow";
    let is_off = v.get("featureGates")["AllowServiceExternalIPs"] == false;
    Ok(match v.get(ALLOW) {
        _ if is_off => ExternalIps::None,
        Value::Null => ExternalIps::All,
        _ => ExternalIps::Within(fields::cidrs(v, ALLOW)?),
    })
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
