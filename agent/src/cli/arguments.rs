// SPDX-License-Identifier: Apache-2.0
//! The arguments of the commands.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::config::ConfigFlags;
use crate::config::duration::GoDuration;
use crate::core::model::Protocol;
use crate::inspect::filter::QueryTarget;
use crate::inspect::ipvs_table::ListFormat;
use crate::inspect::top::top_state::INTERVALS;
use crate::inspect::top::traffic_order::SortOrder;

/// The format of an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs, reason = "named after the format")]
pub enum AnswerFormat {
    #[default]
    Text,
    Json,
    Yaml,
}

/// Arguments of commands that show an answer.
#[derive(Debug, Args)]
pub struct AnswerArgs {
    /// Output format.
    #[arg(short, long, value_enum, default_value_t = AnswerFormat::Text)]
    pub output: AnswerFormat,
}

/// What a command looks at: by default what the running agent uses.
#[derive(Clone, Debug, Default, Args)]
pub struct LookArgs {
    #[command(flatten)]
    pub source: ConfigSource,
    /// Read objects from this file or folder, as the agent's `--objects`.
    #[arg(long, value_name = "PATH")]
    pub objects: Option<PathBuf>,
    /// Read objects from this API server.
    #[arg(long, value_name = "URL", conflicts_with = "objects")]
    pub master: Option<String>,
}

impl LookArgs {
    /// Whether nothing is given.
    pub fn is_empty(&self) -> bool {
        self.has_no_config() && self.objects.is_none() && self.master.is_none()
    }

    /// Whether no configuration is given.
    pub fn has_no_config(&self) -> bool {
        self.source.is_empty()
    }
}

/// Arguments of `plan`.
#[derive(Debug, Args)]
pub struct PlanArgs {
    #[command(flatten)]
    pub look: LookArgs,
    /// Only the number of changes of each kind.
    #[arg(long)]
    pub summary: bool,
    #[command(flatten)]
    pub answer: AnswerArgs,
}

/// Arguments of `bundle`.
#[derive(Debug, Args)]
pub struct BundleArgs {
    /// Write the archive to this file instead of standard output.
    #[arg(short, long)]
    pub file: Option<PathBuf>,
    #[command(flatten)]
    pub look: LookArgs,
}

/// Arguments of `verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    #[command(flatten)]
    pub look: LookArgs,
    /// How long to compare again while the kernel differs, such as 60s or 2m.
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = parse_duration)]
    pub timeout: Duration,
    #[command(flatten)]
    pub answer: AnswerArgs,
}

/// Arguments of `explain`.
#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// What to explain.
    pub target: String,
    /// Only for this client: pod, node, outside, or its address.
    #[arg(long, value_name = "CLIENT")]
    pub from: Option<String>,
    /// Each decision on the way of a packet, and commands that show the kernel's own evidence; --from does that, too.
    #[arg(long)]
    pub steps: bool,
    #[command(flatten)]
    pub look: LookArgs,
    #[command(flatten)]
    pub answer: AnswerArgs,
}

/// Arguments of `trace`.
#[derive(Debug, Args)]
pub struct TraceArgs {
    /// What to trace.
    pub target: QueryTarget,
    /// Only packets of this client.
    #[arg(long, value_name = "CLIENT-IP")]
    pub from: Option<IpAddr>,
    /// How long to wait for packets.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub seconds: u64,
    /// End after so many packets, at most 1000.
    #[arg(long, default_value_t = 20, value_parser = parse_packets)]
    pub packets: usize,
    #[command(flatten)]
    pub answer: AnswerArgs,
}

/// What a command checks: the arguments of a start.
#[derive(Debug, Args)]
pub struct CheckedArgs {
    /// The configuration.
    #[command(flatten)]
    pub source: ConfigSource,
    /// The agent's `--objects`: the API server is then not checked.
    #[arg(long, value_name = "PATH")]
    pub objects: Option<PathBuf>,
    /// URL of the API server, instead of the kubeconfig's or the pod's.
    #[arg(long, value_name = "URL", conflicts_with = "objects")]
    pub master: Option<String>,
}

/// Arguments of `doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    #[command(flatten)]
    pub checked: CheckedArgs,
    #[command(flatten)]
    pub answer: AnswerArgs,
}

/// Arguments of `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The configuration.
    #[command(flatten)]
    pub source: ConfigSource,
    /// Read objects from this file or folder of YAML or JSON (the output of `kubectl get -o yaml`) instead of
    /// the Kubernetes API, and watch it for changes.
    #[arg(long, value_name = "PATH")]
    pub objects: Option<PathBuf>,
    /// URL of the API server, instead of the kubeconfig's or the pod's.
    #[arg(long, value_name = "URL", conflicts_with = "objects")]
    pub master: Option<String>,
    /// Set sysctls and IPVS timeouts and check the scheduler, then exit: for an init container with more
    /// privileges than the agent.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value_t = false,
          default_missing_value = "true", action = clap::ArgAction::Set)]
    pub init_only: bool,
    /// Remove the state of every mode of kube-proxy (ipvs, iptables, nftables, userspace), then exit; stop the
    /// agent first.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value_t = false,
          default_missing_value = "true", action = clap::ArgAction::Set)]
    pub cleanup: bool,
    /// Change nothing: print what would be changed, and again whenever that changes.
    #[arg(long)]
    pub dry_run: bool,
    /// Write the configuration in force to this file, then exit.
    #[arg(long, value_name = "FILE")]
    pub write_config_to: Option<PathBuf>,
}

/// The arguments of the configuration.
#[derive(Clone, Debug, Default, Args)]
pub struct ConfigSource {
    /// The configuration: a KubeProxyConfiguration (kubeproxy.config.k8s.io/v1alpha1), YAML or JSON.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// kube-proxy's flags.
    #[command(flatten)]
    pub flags: ConfigFlags,
}

impl ConfigSource {
    /// Whether nothing is given.
    pub fn is_empty(&self) -> bool {
        self.config.is_none() && self.flags.is_empty()
    }
}

/// Arguments of `config`.
#[derive(Debug, Args)]
pub struct ConfigArgs {
    #[command(flatten)]
    pub checked: CheckedArgs,
    /// Output format: `table` has the origin of each value; `yaml` and `json` are a KubeProxyConfiguration.
    #[arg(short, long, value_enum, default_value_t = ConfigFormat::Table)]
    pub output: ConfigFormat,
}

/// The format of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs, reason = "named after the format")]
pub enum ConfigFormat {
    Table,
    Yaml,
    Json,
}

/// Arguments of `cleanup`.
#[derive(Debug, Args)]
pub struct CleanupArgs {
    /// The configuration: virtual servers in its `ipvs.excludeCIDRs` are kept.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print what would be removed, and remove nothing.
    #[arg(long)]
    pub dry_run: bool,
}

/// Arguments of `list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Only this Service or VIP: NAMESPACE/NAME[:PORT-NAME], NAME, VIP or VIP:PORT.
    pub target: Option<QueryTarget>,
    /// Only Services of this namespace.
    #[arg(short, long)]
    pub namespace: Option<String>,
    /// Only this protocol.
    #[arg(long, value_enum, ignore_case = true)]
    pub protocol: Option<ProtocolName>,
    /// Only virtual servers with a real server of weight 0, which gets no new connections; of the real servers, only
    /// these.
    #[arg(long)]
    pub draining: bool,
    /// Only virtual servers without a real server that gets new connections.
    #[arg(long)]
    pub empty: bool,
    /// What is shown, instead of scheduler, weight and connections.
    #[command(flatten)]
    pub show: ShowArgs,
    /// With --stats and --rate: whole numbers instead of K, M, G and T.
    #[arg(long)]
    pub exact: bool,
    /// Keep the order of the kernel. Without this flag, the list is sorted as by ipvsadm.
    #[arg(long)]
    pub nosort: bool,
    /// Sort the list: the default.
    #[arg(long, conflicts_with = "nosort")]
    pub sort: bool,
    /// Output format; `wide` and `json` have the Service of each virtual server and the settings that are chosen for it, as
    /// the agent of this node reports them.
    #[arg(short, long, value_enum, default_value_t = ListFormat::Ipvsadm)]
    pub output: ListFormat,
}

/// What a list shows: one of these. JSON always has everything about virtual servers.
#[derive(Debug, Args)]
#[group(multiple = false)]
pub struct ShowArgs {
    /// Counters: connections, packets and bytes.
    #[arg(long)]
    pub stats: bool,
    /// The same per second.
    #[arg(long)]
    pub rate: bool,
    /// Limits of connections.
    #[arg(long)]
    pub thresholds: bool,
    /// Clients with a persistent real server.
    #[arg(long)]
    pub persistent_conn: bool,
    /// The connections themselves.
    #[arg(short = 'c', long = "connection", visible_alias = "connections")]
    pub connections: bool,
    /// The timeouts of connections, in seconds: TCP, TCP after a FIN, UDP.
    #[arg(long)]
    pub timeout: bool,
}

/// Arguments of `top`.
#[derive(Debug, Args)]
pub struct TopArgs {
    /// Only Services of this namespace.
    #[arg(short, long)]
    pub namespace: Option<String>,
    /// Time between two readings. The kernel adds up its counters every 2 s: rates over a shorter time jump.
    #[arg(long, value_name = "SECONDS", default_value_t = 2, value_parser = clap::value_parser!(u64).range(INTERVALS))]
    pub interval: u64,
    /// The order at the start.
    #[arg(long, value_enum, default_value_t)]
    pub sort: SortOrder,
    /// Print one table after one interval.
    #[arg(long)]
    pub once: bool,
}

/// A transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs, reason = "named after the protocol")]
pub enum ProtocolName {
    Tcp,
    Udp,
    Sctp,
}

impl From<ProtocolName> for Protocol {
    fn from(name: ProtocolName) -> Self {
        match name {
            ProtocolName::Tcp => Self::Tcp,
            ProtocolName::Udp => Self::Udp,
            ProtocolName::Sctp => Self::Sctp,
        }
    }
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    text.parse::<GoDuration>().map(|duration| duration.0).map_err(|error| error.to_string())
}

fn parse_packets(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|number| (1..=1000).contains(number));
    number.ok_or_else(|| "not a number from 1 to 1000".to_owned())
}
