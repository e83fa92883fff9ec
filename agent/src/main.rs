// SPDX-License-Identifier: Apache-2.0
//! The `kube-ipvs` binary: parse, run, exit.

use std::process::ExitCode;

use kube_ipvs::cli::{Cli, Command};
use kube_ipvs::commands::{cleanup, list, run, show_config};
use kube_ipvs::words;

fn main() -> ExitCode {
    let cli = match Cli::from_args(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    let result = match &cli.command {
        None => run::run(&cli.run),
        Some(Command::Run(args)) => run::run(args),
        Some(Command::List(args)) => list::run(args),
        Some(Command::Config(args)) => show_config::run(args),
        Some(Command::Cleanup(args)) => cleanup::run(args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kube-ipvs: {}", words::chain(&error));
            ExitCode::FAILURE
        }
    }
}
