// SPDX-License-Identifier: Apache-2.0
//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::inspect::list::Format;

/// Kubernetes Services on the kernel's IPVS load balancer, in place of kube-proxy's ipvs mode.
#[derive(Debug, Parser)]
#[command(name = "kube-ipvs", version, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the agent: keep this node's IPVS, addresses, ipsets and rules as the Services want them.
    ///
    /// SIGTERM stops the agent and leaves everything in the kernel as it is: connections go on, and
    /// the next start adopts what it finds.
    Run(RunArgs),
    /// Print the kernel's virtual servers and real servers, as `ipvsadm -Ln` does.
    ///
    /// `kube-ipvs -Ln` is the same.
    List(ListArgs),
}

/// Arguments of `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The configuration: a KubeProxyConfiguration (kubeproxy.config.k8s.io/v1alpha1), YAML or JSON.
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Take objects from this file or folder of YAML or JSON (the output of `kubectl get -o yaml`)
    /// instead of the Kubernetes API, and follow its changes.
    #[arg(long, value_name = "PATH")]
    pub objects: Option<PathBuf>,
    /// Name of this node's Node object [default: hostnameOverride of the configuration, then the
    /// host name].
    #[arg(long, value_name = "NAME")]
    pub hostname_override: Option<String>,
    /// Kubeconfig file [default: clientConnection.kubeconfig of the configuration, then the pod's
    /// service account].
    #[arg(long, value_name = "FILE", conflicts_with = "objects")]
    pub kubeconfig: Option<String>,
    /// URL of the API server, instead of the kubeconfig's.
    #[arg(long, value_name = "URL", conflicts_with = "objects")]
    pub master: Option<String>,
    /// How much to log: 0 changes and troubles, 2 and more every planned operation.
    #[arg(short, long, value_name = "LEVEL", default_value_t = 0)]
    pub v: u8,
}

/// Arguments of `list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// How to print; `wide` and `json` name the Service behind each virtual server, which the
    /// agent of this node is asked for.
    #[arg(short, long, value_enum, default_value_t = Format::Ipvsadm)]
    pub output: Format,
}

impl Cli {
    /// Parses the command line; `-Ln`, `-nL` and `-L -n` stand for `list`.
    pub fn from_args(args: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        let mut args: Vec<OsString> = args.into_iter().collect();
        let flags = args.iter().skip(1).take_while(|a| a.to_str().is_some_and(is_list_flag)).count();
        let has = |letter| args[1..=flags].iter().any(|a| a.to_string_lossy().contains(letter));
        if flags > 0 && (has('L') || has('l')) && has('n') {
            args.splice(1..=flags, [OsString::from("list")]);
        }
        Self::try_parse_from(args)
    }
}

/// `-L`, `-l`, `-n` and their combinations.
fn is_list_flag(arg: &str) -> bool {
    arg.strip_prefix('-').is_some_and(|rest| !rest.is_empty() && rest.chars().all(|c| "Lln".contains(c)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Cli, clap::Error> {
        Cli::from_args(std::iter::once(&"kube-ipvs").chain(args).map(OsString::from))
    }

    #[test]
    fn the_words_of_ipvsadm_list() {
        for args in [&["list"][..], &["-Ln"], &["-nL"], &["-L", "-n"], &["-ln"]] {
            assert!(matches!(parse(args).unwrap().command, Command::List(_)), "{args:?}");
        }
        let Command::List(list) = parse(&["-Ln", "-o", "json"]).unwrap().command else { panic!() };
        assert_eq!(list.output, Format::Json);
        assert!(parse(&["-n"]).is_err());
    }

    #[test]
    fn run_takes_the_flags_of_kube_proxys_daemon_set() {
        let cli = parse(&["run", "--config=/c", "--objects=/o", "--hostname-override=n", "-v=2"]).unwrap();
        let Command::Run(run) = cli.command else { panic!() };
        assert_eq!((run.config, run.v), (PathBuf::from("/c"), 2));
        assert!(parse(&["run"]).is_err(), "--config is required");
        assert!(parse(&["run", "--config=/c", "--objects=/o", "--master=http://x"]).is_err());
    }
}
