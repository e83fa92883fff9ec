// SPDX-License-Identifier: Apache-2.0
//! The command line: that of kube-proxy, and a few subcommands.

mod arguments;
pub mod entry_call;
#[cfg(test)]
mod reference;
mod removed_flags;
mod shell_words;

use std::ffi::OsString;

use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;

pub use arguments::*;

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
    /// TARGET is NAMESPACE/NAME[:PORT-NAME], VIP:PORT, NODE-IP:NODEPORT, or the address of a VIP or of a pod. Asks
    /// the running agent; with --objects, --master or a configuration it reads objects and kernel itself. Exits with 1 if
    /// there is no such Service, 3 if no agent answers.
    Explain(ExplainArgs),
    /// Follow real packets to a Service through the rules of this node and IPVS, for some seconds.
    ///
    /// TARGET is VIP:PORT, NODE-IP:NODEPORT, or NAMESPACE/NAME[:PORT-NAME] if an agent runs. Tells each rule of nf_tables,
    /// iptables-nft included, that the first packet of a connection meets, and the real server that IPVS chose; of UDP, any
    /// packet. Adds one table of nf_tables, kube-ipvs-trace, which marks these packets, and nothing else; the kernel
    /// removes it when the command ends or is killed (before Linux 5.12 the command itself does; after a
    /// SIGKILL, the next trace). Needs root. Exits with 1 if no packet came.
    Trace(TraceArgs),
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
    /// Print the completion script of a shell: `source <(kube-ipvs completion bash)`.
    Completion {
        /// The shell.
        shell: Shell,
    },
    /// Remove everything that the agent programmed on this node; stop the agent first.
    ///
    /// Also removes the state of kube-proxy's ipvs mode, which has the same names. Keeps chains that rules of
    /// kube-proxy's iptables mode use.
    Cleanup(CleanupArgs),
}

impl Cli {
    /// Parses the command line; the flags of `ipvsadm -L` and `-l` stand for `list`, and `-n` is then not the namespace but
    /// ipvsadm's word for numbers, of which lists consist anyway. As in kube-proxy a long flag may be written with
    /// underscores.
    pub fn from_args(args: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        let args: Vec<OsString> = args.into_iter().map(with_dashes).collect();
        Self::try_parse_from(as_subcommand(&args).unwrap_or(args)).map_err(explain_removed)
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

/// The completion script of a shell.
pub fn completion(shell: Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "kube-ipvs", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

/// A flag that kube-proxy does not have any more gets a sentence about what to use instead.
fn explain_removed(error: clap::Error) -> clap::Error {
    let flag = match error.get(clap::error::ContextKind::InvalidArg) {
        Some(clap::error::ContextValue::String(flag)) if error.kind() == ErrorKind::UnknownArgument => flag,
        _ => return error,
    };
    let name = flag.trim_start_matches('-').split('=').next().unwrap_or_default();
    match removed_flags::instead_of(name) {
        Some(instead) => {
            let text = format!("--{name} is no flag of kube-proxy any more: {instead}\n");
            Cli::command().error(ErrorKind::UnknownArgument, text)
        }
        None => error,
    }
}

fn with_dashes(arg: OsString) -> OsString {
    let Some(flag) = arg.to_str().filter(|text| text.starts_with("--")) else { return arg };
    let (name, value) = flag.split_at(flag.find('=').unwrap_or(flag.len()));
    (name.replace('_', "-") + value).into()
}

#[cfg(test)]
#[path = "cli_tests.rs"]
mod tests;
