// SPDX-License-Identifier: Apache-2.0
//! The shape of the file, as far as it acts.

use std::collections::BTreeMap;

use kube::core::Duration;
use serde::Deserialize;

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct RawConfig {
    pub api_version: String,
    pub kind: String,
    pub mode: Option<String>,
    pub feature_gates: Option<BTreeMap<String, bool>>,
    pub hostname_override: Option<String>,
    pub bind_address: Option<String>,
    pub metrics_bind_address: Option<String>,
    #[serde(rename = "clusterCIDR")]
    pub cluster_cidr: Option<String>,
    pub detect_local_mode: Option<String>,
    pub detect_local: Option<RawDetectLocal>,
    pub node_port_addresses: Option<Vec<String>>,
    pub client_connection: Option<RawClientConnection>,
    pub iptables: Option<RawIptables>,
    pub ipvs: Option<RawIpvs>,
    pub conntrack: Option<RawConntrack>,
    #[serde(rename = "kubeIPVS")]
    pub own: Option<RawOwn>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct RawDetectLocal {
    pub bridge_interface: Option<String>,
    pub interface_name_prefix: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
pub(super) struct RawClientConnection {
    pub kubeconfig: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct RawIptables {
    pub masquerade_all: Option<bool>,
    pub masquerade_bit: Option<u32>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct RawIpvs {
    pub scheduler: Option<String>,
    pub sync_period: Option<Duration>,
    pub min_sync_period: Option<Duration>,
    #[serde(rename = "excludeCIDRs")]
    pub exclude_cidrs: Option<Vec<String>>,
    #[serde(rename = "strictARP")]
    pub strict_arp: Option<bool>,
    pub tcp_timeout: Option<Duration>,
    pub tcp_fin_timeout: Option<Duration>,
    pub udp_timeout: Option<Duration>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct RawConntrack {
    pub max_per_core: Option<i32>,
    pub min: Option<i32>,
    pub tcp_established_timeout: Option<Duration>,
    pub tcp_close_wait_timeout: Option<Duration>,
    pub tcp_be_liberal: Option<bool>,
    pub udp_timeout: Option<Duration>,
    pub udp_stream_timeout: Option<Duration>,
}

/// Our own settings; kube-proxy passes over the whole of it with a warning.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct RawOwn {
    pub drain_deadline: Option<Duration>,
    #[serde(rename = "externalIPs")]
    pub external_ips: Option<RawExternalIps>,
    pub keep_established: Option<bool>,
    pub metrics: Option<RawMetrics>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct RawMetrics {
    pub per_service: Option<bool>,
    pub max_services: Option<usize>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
pub(super) struct RawExternalIps {
    pub allow: Option<Vec<String>>,
}
