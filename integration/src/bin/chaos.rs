// SPDX-License-Identifier: Apache-2.0
//! `make chaos`: kills agents and injects faults while traffic flows, and counts failures that users notice.
//!
//! Exit code 0: every count is within its limit; 1: one is not, or the expected state was not reached.

use std::process::ExitCode;

use clap::Parser;
use integration::chaos::{Options, run};

/// Kill agents and inject faults while traffic flows. Needs root and a kernel with IPVS.
#[derive(Debug, Parser)]
struct Args {
    /// Number of agents to kill.
    #[arg(long, default_value_t = 25)]
    kills: u64,
    /// Seed of the random numbers: the same seed makes the same changes and faults.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn main() -> ExitCode {
    let Args { kills, seed } = Args::parse();
    match run(Options { kills, seed }) {
        Ok((report, wrong)) => {
            println!("chaos: {kills} kills, seed {seed}\n{report}");
            if wrong.is_empty() {
                println!("chaos: every count is as it may be");
                return ExitCode::SUCCESS;
            }
            println!("chaos: wrong: {}", wrong.join("; "));
        }
        Err(error) => println!("chaos: seed {seed}: {error:#}"),
    }
    ExitCode::FAILURE
}
