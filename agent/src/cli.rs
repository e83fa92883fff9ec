// SPDX-License-Identifier: Apache-2.0
//! The command line: that of kube-proxy, and a few subcommands.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::config::ConfigFlags;
use crate::config::duration::GoDuration;
use crate::core::model::Protocol;
use crate::inspect::filter::QueryTarget;
use crate::inspect::ipvs_table::ListFormat;
use crate::inspect::top::top_state::INTERVALS;
use crate::inspect::top::traffic_order::SortOrder;

/// The version, and what it was built from.
pub const LONG_VERSION: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    "\ncommit ",
    env!("KUBE_IPVS_BUILD_COMMIT"),
    " of ",
    env!("KUBE_IPVS_BUILD_DATE"),
    "\ntarget ",
    env!("KUBE_IPVS_BUILD_TARGET"),
    "\nrustc ",
    env!("KUBE_IPVS_BUILD_RUSTC")
);

/// Kubernetes Services on the kernel's IPVS load balancer: a replacement for kube-proxy's ipvs mode.
///
/// Without a command, runs the agent: it programs IPVS, addresses, ipsets and rules of this node for the Services.
/// SIGTERM stops it and leaves the kernel's state in place: connections continue, and the next start adopts
/// the state.
#[derive(Debug, Parser)]
#[command(name = "kube-ipvs", version, long_version = LONG_VERSION, max_term_width = 100, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// The command.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The arguments of the agent.
    #[command(flatten)]
    pub run: RunArgs,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the agent, as without a command.
    Run(RunArgs),
    /// Print the kernel's virtual servers and real servers, as `ipvsadm -Ln` does.
    ///
    /// `kube-ipvs -Ln` is the same, and takes the other flags of `ipvsadm -Ln`, too.
    List(ListArgs),
    /// Watch the traffic of Services and of their real servers, as `top` does for processes.
    ///
    /// Prints one table if the output is no terminal. The key h lists the keys.
    Top(TopArgs),
    /// Show the state of the agent of this node on one screen.
    ///
    /// Exits with 0 if all is well, 1 if the node is not ready or something is not as it should be, 3 if no agent answers.
    Status(AnswerArgs),
    /// Explain what a packet to an address meets on this node, and why each endpoint serves or does not.
    ///
    /// TARGET is NAMESPACE/NAME[:PORT-NAME], VIP:PORT, NODE-IP:NODEPORT, or the address of a VIP or of a pod. Exits with 1 if
    /// there is no such Service, 3 if no agent answers.
    Explain(ExplainArgs),
    /// Show what a start would change on this node, without changing anything.
    ///
    /// Compares the kernel with the objects and the configuration of the running agent, or with those that arguments name;
    /// without an agent, with the objects of the API server. Exits with 0 if a start would change nothing, 2 if
    /// something, 1 if it cannot tell.
    Plan(PlanArgs),
    /// Check that the kernel equals what the objects ask for.
    ///
    /// Compares again until it does or --timeout is over. Exits with 0 if it does, 1 if not or if it cannot tell.
    Verify(VerifyArgs),
    /// Collect one archive (tar) for a bug report.
    ///
    /// It has the configuration without secrets, the status, the plan of a start, the kernel state of every kind, sysctls,
    /// the last log lines, metrics and versions: names and addresses of Services, and no content of packets.
    Bundle(BundleArgs),
    /// Check this node, before the agent is installed or any time after: kernel, settings, other proxies, networks and the
    /// API server.
    ///
    /// Writes nothing. Takes the flags of the agent; without --config and without flags it uses the configuration of the
    /// running agent. Exits with 1 if there is an error.
    Doctor(DoctorArgs),
    /// Print the configuration in force with the origin of each value, and check whether a start would work.
    ///
    /// Takes the flags of the agent. Exits with 1 if a start would fail: it tries the scheduler on this machine's
    /// kernel, listens at the addresses and sends a request to the API server.
    Config(ConfigArgs),
    /// Remove everything that the agent programmed on this node; stop the agent first.
    ///
    /// Also removes the state of kube-proxy's ipvs mode, which has the same names. Keeps chains that rules of
    /// kube-proxy's iptables mode use.
    Cleanup(CleanupArgs),
}

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
    /// Whether no configuration is given.
    pub fn has_no_config(&self) -> bool {
        self.source.config.is_none() && self.source.flags.is_empty()
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
    pub timeout: std::time::Duration,
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
    pub answer: AnswerArgs,
}

/// Arguments of `doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// The configuration.
    #[command(flatten)]
    pub source: ConfigSource,
    /// The agent's `--objects`: the API server is then not checked.
    #[arg(long, value_name = "PATH")]
    pub objects: Option<PathBuf>,
    /// URL of the API server, instead of the kubeconfig's or the pod's.
    #[arg(long, value_name = "URL", conflicts_with = "objects")]
    pub master: Option<String>,
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

/// Arguments of `config`.
#[derive(Debug, Args)]
pub struct ConfigArgs {
    /// The configuration.
    #[command(flatten)]
    pub source: ConfigSource,
    /// The agent's `--objects`: the API server is then not checked.
    #[arg(long, value_name = "PATH")]
    pub objects: Option<PathBuf>,
    /// URL of the API server, instead of the kubeconfig's or the pod's.
    #[arg(long, value_name = "URL", conflicts_with = "objects")]
    pub master: Option<String>,
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
    /// Output format; `wide` and `json` have the Service of each virtual server, as the agent of this node
    /// reports it.
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

impl Cli {
    /// Parses the command line; the flags of `ipvsadm -L` and `-l` stand for `list`, and `-n` is then not the namespace but
    /// ipvsadm's word for numbers, of which lists consist anyway. As in kube-proxy a long flag may be written with
    /// underscores.
    pub fn from_args(args: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        let args: Vec<OsString> = args.into_iter().map(with_dashes).collect();
        Self::try_parse_from(as_subcommand(&args).unwrap_or(args))
    }
}

/// `ipvsadm`'s flags as the subcommand `list`, if the first argument is `-L`, `-l`, or `-n` and later one of them.
fn as_subcommand(args: &[OsString]) -> Option<Vec<OsString>> {
    let letters = |arg: &OsString| {
        let letters = arg.to_str()?.strip_prefix('-')?;
        (!letters.is_empty() && letters.chars().all(|c| "Llnc".contains(c))).then(|| letters.to_owned())
    };
    let (program, rest) = args.split_first()?;
    let leading: Vec<String> = rest.iter().map_while(letters).collect();
    if !leading.iter().any(|letters| letters.contains(['L', 'l'])) {
        return None;
    }
    let mut list = vec![program.clone(), "list".into()];
    for arg in rest {
        match letters(arg) {
            Some(letters) => list.extend(letters.contains('c').then(|| "-c".into())),
            None if arg == "--numeric" => {}
            None => list.push(arg.clone()),
        }
    }
    Some(list)
}

fn parse_duration(text: &str) -> Result<std::time::Duration, String> {
    text.parse::<GoDuration>().map(|duration| duration.0).map_err(|error| error.to_string())
}

fn with_dashes(arg: OsString) -> OsString {
    let Some(flag) = arg.to_str().filter(|text| text.starts_with("--")) else { return arg };
    let (name, value) = flag.split_at(flag.find('=').unwrap_or(flag.len()));
    (name.replace('_', "-") + value).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn parse(args: &[&str]) -> Result<Cli, clap::Error> {
        Cli::from_args(std::iter::once(&"kube-ipvs").chain(args).map(OsString::from))
    }

    #[test]
    fn the_words_of_ipvsadm_list() {
        for args in [&["list"][..], &["-Ln"], &["-nL"], &["-L", "-n"], &["-ln"]] {
            assert!(matches!(parse(args).unwrap().command, Some(Command::List(_))), "{args:?}");
        }
        let list = |args: &[&str]| {
            let Some(Command::List(list)) = parse(args).unwrap().command else { panic!("{args:?}") };
            list
        };
        assert_eq!(list(&["-Ln", "-o", "json"]).output, ListFormat::Json);
        for args in [&["-Lnc"][..], &["-L", "-n", "-c"], &["-L", "--connection", "-n"], &["list", "-c"]] {
            let list = list(args);
            assert!(list.show.connections && list.namespace.is_none(), "{args:?}");
        }
        let stats = list(&["-L", "--stats", "--exact", "--numeric"]);
        assert!(stats.show.stats && stats.exact);
        let selected = list(&["list", "-n", "shop", "--protocol=TCP", "web"]);
        assert_eq!(selected.namespace.as_deref(), Some("shop"));
        assert_eq!(selected.protocol, Some(ProtocolName::Tcp));
        assert!(selected.target.is_some());
        for args in
            [&["-n"][..], &["list", "--stats", "--rate"], &["list", "a/b/c"], &["list", "--sort", "--nosort"]]
        {
            assert!(parse(args).is_err(), "{args:?}");
        }
    }

    #[test]
    fn the_arguments_of_top() {
        let top = |args: &[&str]| match parse(args).unwrap().command {
            Some(Command::Top(top)) => top,
            _ => panic!("{args:?}"),
        };
        let usual = top(&["top"]);
        assert_eq!((usual.interval, usual.sort, usual.once), (2, SortOrder::Connections, false));
        let all = top(&["top", "-n", "shop", "--interval=5", "--sort=bytes", "--once"]);
        assert_eq!((all.namespace.as_deref(), all.interval, all.sort), (Some("shop"), 5, SortOrder::Bytes));
        for wrong in ["--interval=0", "--interval=3601", "--interval=x", "--sort=size", "web"] {
            assert!(parse(&["top", wrong]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_agent_runs_with_and_without_the_subcommand() {
        let flags = ["--config=/c", "--objects=/o", "--hostname_override=n", "-v=2"];
        let with: Vec<&str> = std::iter::once("run").chain(flags).collect();
        let Some(Command::Run(run)) = parse(&with).unwrap().command else { panic!() };
        let cli = parse(&flags).unwrap();
        assert!(cli.command.is_none());
        for run in [run, cli.run] {
            assert_eq!(run.source.config, Some(PathBuf::from("/c")));
            let config = Config::parse(HEAD, &run.source.flags).unwrap();
            assert_eq!((config.hostname_override.as_str(), config.verbosity), ("n", 2));
        }
        assert!(parse(&["run", "--config=/c", "--objects=/o", "--master=http://x"]).is_err());
        assert!(parse(&["list", "--config=/c"]).is_err());
        assert!(parse(&["something"]).is_err(), "arguments that are no flags are refused");
    }

    #[test]
    fn cleanup_is_a_subcommand_and_a_flag() {
        let Some(Command::Cleanup(args)) = parse(&["cleanup", "--config=/c", "--dry-run"]).unwrap().command
        else {
            panic!()
        };
        assert!(args.dry_run && args.config == Some(PathBuf::from("/c")));
        assert!(parse(&["--config=/c", "--cleanup"]).unwrap().run.cleanup);
        assert!(!parse(&["--cleanup=false"]).unwrap().run.cleanup);
    }

    const HEAD: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

    fn flags(args: &[&str]) -> ConfigFlags {
        parse(args).unwrap_or_else(|error| panic!("{args:?}: {error}")).run.source.flags
    }

    #[test]
    fn flags_alone_are_a_configuration() {
        let config = Config::read(
            None,
            &flags(&[
                "--proxy-mode=ipvs",
                "--ipvs-scheduler",
                "lc",
                "--masquerade-all",
                "--ipvs-strict-arp=false",
                "--nodeport-addresses=10.0.0.0/8",
                "--nodeport-addresses=192.0.2.0/24",
                "--oom-score-adj",
                "-500",
                "--feature-gates=AllowServiceExternalIPs=false,ContextualLogging=true",
                "--conntrack-tcp-timeout-established=1h",
                "--machine-id-file=/x",
            ]),
        )
        .unwrap();
        assert_eq!((&*config.settings.scheduler, config.oom_score_adj), ("lc", -500));
        assert!(config.settings.masquerade_all && !config.strict_arp);
        assert_eq!(config.min_sync_period.as_secs(), 1, "0s in a file, 1s for flags, as in kube-proxy");
        assert_eq!(config.values.list("nodePortAddresses").len(), 2);
        assert_eq!(config.conntrack.tcp_established, 3600);
        assert_eq!(config.settings.external_ips, crate::core::model::settings::ExternalIps::None);
        assert!(config.warnings.is_empty(), "{:?}", config.warnings);
        let last = Config::read(None, &flags(&["--ipvs-scheduler=lc", "--ipvs-scheduler=sh"])).unwrap();
        assert_eq!(&*last.settings.scheduler, "sh", "the last flag is used");
    }

    #[test]
    fn with_a_file_only_overriding_flags_are_used() {
        let given =
            flags(&["--config=/c", "--ipvs-scheduler=lc", "--hostname-override=a", "--logging-format=json"]);
        let config = Config::parse(&format!("{HEAD}hostnameOverride: b\n"), &given).unwrap();
        assert_eq!((&*config.settings.scheduler, config.hostname_override.as_str()), ("rr", "a"));
        assert_eq!(config.log_format, crate::log::LogFormat::Json);
        assert!(config.warnings.iter().any(|w| w.contains("--ipvs-scheduler")), "{:?}", config.warnings);
    }

    #[test]
    fn wrong_flags_are_named() {
        for (args, expected) in [
            (&["--ipvs-sync-period=fast"][..], "--ipvs-sync-period"),
            (&["--oom-score-adj=5000"], "oomScoreAdj"),
            (&["--masquerade-all=maybe"], "--masquerade-all"),
            (&["--feature-gates=X"], "--feature-gates"),
            (&["--proxy-mode=iptables"], "mode"),
            (&["--healthz-bind-address=here"], "healthzBindAddress"),
        ] {
            let error = format!("{:#}", Config::read(None, &flags(args)).unwrap_err());
            assert!(error.contains(expected), "{args:?} gave {error}");
        }
        for args in [&["--metrics-port=0"][..], &["--nonsense"], &["--healthz-port=70000"], &["stray"]] {
            assert!(parse(args).is_err(), "{args:?}");
        }
        let off = Config::read(None, &flags(&["--healthz-port=0"])).unwrap();
        assert_eq!(off.healthz_address, None);
        let bare =
            Config::read(None, &flags(&["--healthz-bind-address=", "--metrics-bind-address=::1"])).unwrap();
        assert_eq!(bare.healthz_address.map(|a| a.to_string()).as_deref(), Some("0.0.0.0:10256"));
        assert_eq!(bare.metrics_address.to_string(), "[::1]:10249");
    }
}
