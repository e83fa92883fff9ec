// SPDX-License-Identifier: Apache-2.0
//! Every field of the configuration: its type, its default, its flag, and whether it has an effect. The parser, the
//! flags, `kube-ipvs config` and `/configz` are all made from this table.

use Effect::{Missing, NoneInIpvsMode, NotNeeded};
use FieldType::{Any, Bool, Duration, Entries, Float, Gates, Int, List, Text};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldType {
    Bool,
    Int,
    Float,
    Text,
    /// A Go duration.
    Duration,
    /// A list of texts.
    List,
    /// A map from names to `true` or `false`.
    Gates,
    /// A list of mappings.
    Entries,
    /// Any value; it has no effect.
    Any,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// As in kube-proxy, or as docs/configuration.md says for our own fields.
    Acts,
    /// None, as in kube-proxy's ipvs mode.
    NoneInIpvsMode,
    /// None, other than in kube-proxy; the reason why the field is not needed.
    NotNeeded(&'static str),
    /// None, other than in kube-proxy. A warning when the field is set names what to do instead.
    Missing(&'static str),
}

#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// Its path, e.g. `ipvs.syncPeriod`.
    pub path: &'static str,
    pub field_type: FieldType,
    /// Its default, as text of its type.
    pub default: &'static str,
    /// The flag of kube-proxy that sets it.
    pub flag: Option<&'static str>,
    /// The flag overrides the configuration file; other flags are ignored with a file.
    pub flag_overrides: bool,
    /// A zero in the file is a value; for other fields a zero means the default.
    pub zero_is_value: bool,
    pub effect: Effect,
}

const fn field(path: &'static str, field_type: FieldType, default: &'static str) -> Field {
    Field {
        path,
        field_type,
        default,
        flag: None,
        flag_overrides: false,
        zero_is_value: false,
        effect: Effect::Acts,
    }
}

impl Field {
    const fn flag(self, flag: &'static str) -> Self {
        Self { flag: Some(flag), ..self }
    }

    const fn flag_overrides(self, flag: &'static str) -> Self {
        Self { flag: Some(flag), flag_overrides: true, ..self }
    }

    const fn zero_is_value(self) -> Self {
        Self { zero_is_value: true, ..self }
    }

    const fn effect(self, effect: Effect) -> Self {
        Self { effect, ..self }
    }
}

pub fn find(path: &str) -> Option<&'static Field> {
    FIELDS.iter().find(|field| field.path == path)
}

const NO_LIMIT: Effect = NotNeeded("the agent makes a handful of requests");
const JSON: Effect = NotNeeded("objects are read as JSON, which every API server speaks");
const BUFFERS: Effect = NotNeeded("every line is written at once");

/// Every field, sorted by path.
pub const FIELDS: &[Field] = &[
    field("bindAddress", Text, "0.0.0.0").flag("bind-address"),
    field("bindAddressHardFail", Bool, "false").flag("bind-address-hard-fail"),
    field("clientConnection.acceptContentTypes", Text, "").effect(JSON),
    field("clientConnection.burst", Int, "10").flag("kube-api-burst").effect(NO_LIMIT),
    field("clientConnection.contentType", Text, "application/vnd.kubernetes.protobuf")
        .flag("kube-api-content-type")
        .effect(JSON),
    field("clientConnection.kubeconfig", Text, "").flag("kubeconfig"),
    field("clientConnection.qps", Float, "5").flag("kube-api-qps").effect(NO_LIMIT),
    field("clusterCIDR", Text, "").flag("cluster-cidr"),
    field("configSyncPeriod", Duration, "15m")
        .flag("config-sync-period")
        .effect(NotNeeded("nothing is missed between two lists")),
    field("conntrack.maxPerCore", Int, "32768").flag("conntrack-max-per-core").zero_is_value(),
    field("conntrack.min", Int, "131072").flag("conntrack-min").zero_is_value(),
    field("conntrack.tcpBeLiberal", Bool, "false").flag("conntrack-tcp-be-liberal"),
    field("conntrack.tcpCloseWaitTimeout", Duration, "1h")
        .flag("conntrack-tcp-timeout-close-wait")
        .zero_is_value(),
    field("conntrack.tcpEstablishedTimeout", Duration, "24h")
        .flag("conntrack-tcp-timeout-established")
        .zero_is_value(),
    field("conntrack.udpStreamTimeout", Duration, "0s").flag("conntrack-udp-timeout-stream"),
    field("conntrack.udpTimeout", Duration, "0s").flag("conntrack-udp-timeout"),
    field("detectLocal.bridgeInterface", Text, "").flag("pod-bridge-interface"),
    field("detectLocal.interfaceNamePrefix", Text, "").flag("pod-interface-name-prefix"),
    field("detectLocalMode", Text, "").flag("detect-local-mode"),
    field("enableProfiling", Bool, "false")
        .flag("profiling")
        .effect(Missing("profile the process with perf")),
    field("featureGates", Gates, "").flag("feature-gates"),
    field("healthzBindAddress", Text, "").flag("healthz-bind-address"),
    field("hostnameOverride", Text, "").flag_overrides("hostname-override"),
    field("iptables.localhostNodePorts", Bool, "true")
        .flag("iptables-localhost-nodeports")
        .zero_is_value()
        .effect(NoneInIpvsMode),
    field("iptables.masqueradeAll", Bool, "false").flag("masquerade-all"),
    field("iptables.masqueradeBit", Int, "14").flag("iptables-masquerade-bit").zero_is_value(),
    field("iptables.minSyncPeriod", Duration, "1s").flag("iptables-min-sync-period").effect(NoneInIpvsMode),
    field("iptables.syncPeriod", Duration, "30s").flag("iptables-sync-period").effect(NoneInIpvsMode),
    field("ipvs.excludeCIDRs", List, "").flag("ipvs-exclude-cidrs"),
    field("ipvs.minSyncPeriod", Duration, "0s").flag("ipvs-min-sync-period"),
    field("ipvs.scheduler", Text, "").flag("ipvs-scheduler"),
    field("ipvs.strictARP", Bool, "false").flag("ipvs-strict-arp"),
    field("ipvs.syncPeriod", Duration, "30s").flag("ipvs-sync-period"),
    field("ipvs.tcpFinTimeout", Duration, "0s").flag("ipvs-tcpfin-timeout"),
    field("ipvs.tcpTimeout", Duration, "0s").flag("ipvs-tcp-timeout"),
    field("ipvs.udpTimeout", Duration, "0s").flag("ipvs-udp-timeout"),
    field("kubeIPVS.clusterIPs", Text, "address"),
    field("kubeIPVS.configReload.mode", Text, "restart"),
    field("kubeIPVS.configReload.spread", Duration, "60s").zero_is_value(),
    field("kubeIPVS.drainDeadline", Duration, "24h").zero_is_value(),
    field("kubeIPVS.externalIPs.allow", List, "").zero_is_value(),
    field("kubeIPVS.keepEstablished", Bool, "false"),
    field("kubeIPVS.metrics.maxServices", Int, "1000").zero_is_value(),
    field("kubeIPVS.metrics.perService", Bool, "false"),
    field("kubeIPVS.protectedCIDRs", List, ""),
    field("kubeIPVS.realServerOrder", Text, "address"),
    field("kubeIPVS.rules", Text, "iptables"),
    field("kubeIPVS.serviceCIDRs", List, ""),
    field("kubeIPVS.serviceDefaults", Entries, ""),
    field("kubeIPVS.serviceProxyName", Text, ""),
    field("logging.flushFrequency", Any, "").flag_overrides("log-flush-frequency").effect(BUFFERS),
    field("logging.format", Text, "text").flag_overrides("logging-format"),
    field("logging.options", Any, "").effect(BUFFERS),
    field("logging.verbosity", Int, "0").flag_overrides("v"),
    field("logging.vmodule", Any, "")
        .flag_overrides("vmodule")
        .effect(Missing("levels are for the whole agent: use -v")),
    field("metricsBindAddress", Text, "").flag("metrics-bind-address"),
    field("mode", Text, "").flag("proxy-mode"),
    field("nftables", Any, "").effect(NoneInIpvsMode),
    field("nodePortAddresses", List, "").flag("nodeport-addresses"),
    field("oomScoreAdj", Int, "-999").flag("oom-score-adj").zero_is_value(),
    field("portRange", Text, "").effect(NoneInIpvsMode),
    field("showHiddenMetricsForVersion", Text, "")
        .flag("show-hidden-metrics-for-version")
        .effect(Missing("no metric is hidden")),
    field("windowsRunAsService", Bool, "false").effect(NoneInIpvsMode),
    field("winkernel", Any, "").effect(NoneInIpvsMode),
];

/// Flags of kube-proxy that set no field and have no effect here.
pub const IDLE_FLAGS: [&str; 6] = [
    "boot-id-file",
    "machine-id-file",
    "log-json-info-buffer-size",
    "log-json-split-stream",
    "log-text-info-buffer-size",
    "log-text-split-stream",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_flags_are_unique_and_sorted() {
        assert!(FIELDS.is_sorted_by(|a, b| a.path < b.path));
        let mut flags: Vec<&str> = FIELDS.iter().filter_map(|f| f.flag).chain(IDLE_FLAGS).collect();
        flags.sort_unstable();
        assert!(flags.is_sorted_by(|a, b| a < b), "{flags:?}");
    }

    #[test]
    fn no_field_is_inside_another() {
        for field in FIELDS {
            let inside = format!("{}.", field.path);
            assert!(!FIELDS.iter().any(|f| f.path.starts_with(&inside)), "{inside}");
        }
    }

    /// The table of docs/configuration.md, one line for each field.
    fn documented() -> String {
        let line = |f: &Field| {
            let default = if f.default.is_empty() { "–".to_owned() } else { format!("`{}`", f.default) };
            let flag = match f.flag {
                Some(flag) if f.flag_overrides => format!("`--{flag}` (wins)"),
                Some(flag) => format!("`--{flag}`"),
                None => "–".to_owned(),
            };
            let effect = match f.effect {
                Effect::Acts => "acts".to_owned(),
                Effect::NoneInIpvsMode => "none, as in kube-proxy's ipvs mode".to_owned(),
                Effect::NotNeeded(why) => format!("none: {why}"),
                Effect::Missing(instead) => format!("none, with a warning: {instead}"),
            };
            format!("| `{}` | {} | {} | {} |\n", f.path, default, flag, effect)
        };
        FIELDS.iter().map(line).collect()
    }

    #[test]
    fn the_document_has_this_table() {
        let document = include_str!("../../../docs/configuration.md");
        let table = documented();
        assert!(document.contains(&table), "docs/configuration.md must have:\n{table}");
    }
}
