// SPDX-License-Identifier: Apache-2.0
//! The `kube-ipvs` binary: how it was called, parse, run, exit.

use std::process::ExitCode;

use kube_ipvs::cli::entry_call::EntryCall;
use kube_ipvs::cli::{Cli, Command, completion};
use kube_ipvs::commands::{
    self, cleanup, collect_bundle, diagnose, explain_target, list, plan_start, run, show_config, show_status,
    trace_packets, verify_node, watch_traffic,
};
use kube_ipvs::words;

fn main() -> ExitCode {
    let call = match EntryCall::read(std::env::args_os(), |name| std::env::var(name).ok()) {
        Ok(call) => call,
        Err(why) => {
            eprintln!("kube-ipvs: {why}");
            return ExitCode::from(2);
        }
    };
    match call.output.start(&call.args) {
        Ok(None) => {}
        Ok(Some(code)) => return ExitCode::from(code),
        Err(error) => {
            eprintln!("kube-ipvs: {}", words::chain(&error));
            return ExitCode::FAILURE;
        }
    }
    let cli = match Cli::from_args(call.args) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    let result = match &cli.command {
        None => done(run::run(&cli.run)),
        Some(Command::Run(args)) => done(run::run(args)),
        Some(Command::List(args)) => done(list::run(args)),
        Some(Command::Top(args)) => done(watch_traffic::run(args)),
        Some(Command::Status(args)) => show_status::run(args),
        Some(Command::Explain(args)) => explain_target::run(args),
        Some(Command::Trace(args)) => trace_packets::run(args),
        Some(Command::Plan(args)) => plan_start::run(args),
        Some(Command::Verify(args)) => verify_node::run(args),
        Some(Command::Bundle(args)) => done(collect_bundle::run(args)),
        Some(Command::Doctor(args)) => diagnose::run(args),
        Some(Command::Config(args)) => done(show_config::run(args)),
        Some(Command::Completion { shell }) => done(commands::print(&completion(*shell))),
        Some(Command::Cleanup(args)) => done(cleanup::run(args)),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("kube-ipvs: {}", words::chain(&error));
            ExitCode::FAILURE
        }
    }
}

fn done(result: anyhow::Result<()>) -> anyhow::Result<ExitCode> {
    result.map(|()| ExitCode::SUCCESS)
}
