// SPDX-License-Identifier: Apache-2.0
//! Every field of the configuration: its type, its default, its flag, and whether it acts. Reading,
//! flags, `kube-ipvs config` and `/configz` all follow this one table.

/// The type of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `true` or `false`.
    Bool,
    /// A whole number.
    Int,
    /// A number.
    Float,
    /// Text.
    Text,
    /// A Go duration.
    Duration,
    /// A list of texts.
    List,
    /// A map from names to `true` or `false`.
    Gates,
    /// Anything: nothing in it acts.
    Any,
}

/// What a field does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// What it says.
    Acts,
    /// Nothing, as in kube-proxy's ipvs mode.
    NoneInIpvsMode,
    /// Nothing, although it acts in kube-proxy; why nobody misses it.
    NotNeeded(&'static str),
    /// Nothing, although it acts in kube-proxy: worth a warning when set; what to do instead.
    Missing(&'static str),
}

/// One field.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// Where it is, e.g. `ipvs.syncPeriod`.
    pub path: &'static str,
    /// Its type.
    pub kind: Kind,
    /// Its default, as text of its type.
    pub default: &'static str,
    /// The flag of kube-proxy that sets it.
    pub flag: Option<&'static str>,
    /// The flag counts even beside a configuration file.
    pub flag_wins: bool,
    /// A zero in the file is a value, not the wish for the default.
    pub zero_counts: bool,
    /// What it does.
    pub effect: Effect,
}

const fn field(path: &'static str, kind: Kind, default: &'static str) -> Field {
    Field { path, kind, default, flag: None, flag_wins: false, zero_counts: false, effect: Effect::Acts }
}

impl Field {
    const fn flag(self, flag: &'static str) -> Self {
        Self { flag: Some(flag), ..self }
    }

    const fn flag_wins(self, flag: &'static str) -> Self {
        Self { flag: Some(flag), flag_wins: true, ..self }
    }

    const fn zero_counts(self) -> Self {
        Self { zero_counts: true, ..self }
    }

    const fn effect(self, effect: Effect) -> Self {
        Self { effect, ..self }
    }

    const fn none_in_ipvs_mode(self) -> Self {
        self.effect(Effect::NoneInIpvsMode)
    }
}

/// The field at `path`.
pub fn find(path: &str) -> Option<&'static Field> {
    FIELDS.iter().find(|field| field.path == path)
}

const NO_LIMIT: Effect = Effect::NotNeeded("the agent makes a handful of requests");
const JSON: Effect = Effect::NotNeeded("objects are read as JSON, which every API server speaks");
const BUFFERS: Effect = Effect::NotNeeded("every line is written at once");

/// Every field, sorted by path.
pub const FIELDS: &[Field] = &[
    field("bindAddress", Kind::Text, "0.0.0.0").flag("bind-address"),
    field("bindAddressHardFail", Kind::Bool, "false").flag("bind-address-hard-fail"),
    field("clientConnection.acceptContentTypes", Kind::Text, "").effect(JSON),
    field("clientConnection.burst", Kind::Int, "10").flag("kube-api-burst").effect(NO_LIMIT),
    field("clientConnection.contentType", Kind::Text, "application/vnd.kubernetes.protobuf")
        .flag("kube-api-content-type")
        .effect(JSON),
    field("clientConnection.kubeconfig", Kind::Text, "").flag("kubeconfig"),
    field("clientConnection.qps", Kind::Float, "5").flag("kube-api-qps").effect(NO_LIMIT),
    field("clusterCIDR", Kind::Text, "").flag("cluster-cidr"),
    field("configSyncPeriod", Kind::Duration, "15m")
        .flag("config-sync-period")
        .effect(Effect::NotNeeded("nothing is missed between two lists")),
    field("conntrack.maxPerCore", Kind::Int, "32768").flag("conntrack-max-per-core").zero_counts(),
    field("conntrack.min", Kind::Int, "131072").flag("conntrack-min").zero_counts(),
    field("conntrack.tcpBeLiberal", Kind::Bool, "false").flag("conntrack-tcp-be-liberal"),
    field("conntrack.tcpCloseWaitTimeout", Kind::Duration, "1h")
        .flag("conntrack-tcp-timeout-close-wait")
        .zero_counts(),
    field("conntrack.tcpEstablishedTimeout", Kind::Duration, "24h")
        .flag("conntrack-tcp-timeout-established")
        .zero_counts(),
    field("conntrack.udpStreamTimeout", Kind::Duration, "0s").flag("conntrack-udp-timeout-stream"),
    field("conntrack.udpTimeout", Kind::Duration, "0s").flag("conntrack-udp-timeout"),
    field("detectLocal.bridgeInterface", Kind::Text, "").flag("pod-bridge-interface"),
    field("detectLocal.interfaceNamePrefix", Kind::Text, "").flag("pod-interface-name-prefix"),
    field("detectLocalMode", Kind::Text, "").flag("detect-local-mode"),
    field("enableProfiling", Kind::Bool, "false")
        .flag("profiling")
        .effect(Effect::Missing("profile the process with perf")),
    field("featureGates", Kind::Gates, "").flag("feature-gates"),
    field("healthzBindAddress", Kind::Text, "").flag("healthz-bind-address"),
    field("hostnameOverride", Kind::Text, "").flag_wins("hostname-override"),
    field("iptables.localhostNodePorts", Kind::Bool, "true")
        .flag("iptables-localhost-nodeports")
        .zero_counts()
        .none_in_ipvs_mode(),
    field("iptables.masqueradeAll", Kind::Bool, "false").flag("masquerade-all"),
    field("iptables.masqueradeBit", Kind::Int, "14").flag("iptables-masquerade-bit").zero_counts(),
    field("iptables.minSyncPeriod", Kind::Duration, "1s")
        .flag("iptables-min-sync-period")
        .none_in_ipvs_mode(),
    field("iptables.syncPeriod", Kind::Duration, "30s").flag("iptables-sync-period").none_in_ipvs_mode(),
    field("ipvs.excludeCIDRs", Kind::List, "").flag("ipvs-exclude-cidrs"),
    field("ipvs.minSyncPeriod", Kind::Duration, "0s").flag("ipvs-min-sync-period"),
    field("ipvs.scheduler", Kind::Text, "").flag("ipvs-scheduler"),
    field("ipvs.strictARP", Kind::Bool, "false").flag("ipvs-strict-arp"),
    field("ipvs.syncPeriod", Kind::Duration, "30s").flag("ipvs-sync-period"),
    field("ipvs.tcpFinTimeout", Kind::Duration, "0s").flag("ipvs-tcpfin-timeout"),
    field("ipvs.tcpTimeout", Kind::Duration, "0s").flag("ipvs-tcp-timeout"),
    field("ipvs.udpTimeout", Kind::Duration, "0s").flag("ipvs-udp-timeout"),
    field("kubeIPVS.configReload.mode", Kind::Text, "restart"),
    field("kubeIPVS.configReload.spread", Kind::Duration, "60s").zero_counts(),
    field("kubeIPVS.drainDeadline", Kind::Duration, "24h").zero_counts(),
    field("kubeIPVS.externalIPs.allow", Kind::List, "").zero_counts(),
    field("kubeIPVS.keepEstablished", Kind::Bool, "false"),
    field("kubeIPVS.metrics.maxServices", Kind::Int, "1000").zero_counts(),
    field("kubeIPVS.metrics.perService", Kind::Bool, "false"),
    field("kubeIPVS.protectedCIDRs", Kind::List, ""),
    field("kubeIPVS.serviceProxyName", Kind::Text, ""),
    field("logging.flushFrequency", Kind::Any, "").flag_wins("log-flush-frequency").effect(BUFFERS),
    field("logging.format", Kind::Text, "text").flag_wins("logging-format"),
    field("logging.options", Kind::Any, "").effect(BUFFERS),
    field("logging.verbosity", Kind::Int, "0").flag_wins("v"),
    field("logging.vmodule", Kind::Any, "")
        .flag_wins("vmodule")
        .effect(Effect::Missing("levels are for the whole agent: use -v")),
    field("metricsBindAddress", Kind::Text, "").flag("metrics-bind-address"),
    field("mode", Kind::Text, "").flag("proxy-mode"),
    field("nftables", Kind::Any, "").none_in_ipvs_mode(),
    field("nodePortAddresses", Kind::List, "").flag("nodeport-addresses"),
    field("oomScoreAdj", Kind::Int, "-999").flag("oom-score-adj").zero_counts(),
    field("portRange", Kind::Text, "").none_in_ipvs_mode(),
    field("showHiddenMetricsForVersion", Kind::Text, "")
        .flag("show-hidden-metrics-for-version")
        .effect(Effect::Missing("no metric is hidden")),
    field("windowsRunAsService", Kind::Bool, "false").none_in_ipvs_mode(),
    field("winkernel", Kind::Any, "").none_in_ipvs_mode(),
];

/// Flags of kube-proxy that set no field and do nothing here.
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
    fn no_field_lies_inside_another() {
        for field in FIELDS {
            let inside = format!("{}.", field.path);
            assert!(!FIELDS.iter().any(|f| f.path.starts_with(&inside)), "{inside}");
        }
    }

    /// The table of docs/configuration.md, one line per field.
    fn documented() -> String {
        let line = |f: &Field| {
            let default = if f.default.is_empty() { "–".to_owned() } else { format!("`{}`", f.default) };
            let flag = match f.flag {
                Some(flag) if f.flag_wins => format!("`--{flag}` (wins)"),
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
