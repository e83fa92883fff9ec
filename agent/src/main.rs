// SPDX-License-Identifier: Apache-2.0
//! The `kube-ipvs` binary: parse, run, exit.

use std::process::ExitCode;

use kube_ipvs::cli::{Cli, Command};
use kube_ipvs::{app, cleanup, show, words};

fn main() -> ExitCode {
    let cli = match Cli::from_args(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    let result = match &cli.command {
        None => app::run(&cli.run),
        Some(Command::Run(args)) => app::run(args),
        Some(Command::List(args)) => app::list(args),
        Some(Command::Config(args)) => show::run(args),
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
