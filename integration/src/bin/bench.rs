// SPDX-License-Identifier: Apache-2.0
//! `make bench`, `make bench-quick` and `make benchmarks`: see [`integration::bench`].

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand, ValueEnum};
use integration::bench::allocations::Counting;
use integration::bench::mode::Mode;
use integration::bench::node::Size;
use integration::bench::plot::{from_csv, to_svg};
use integration::bench::rows::Group;
use integration::bench::table::{self, Row};
use integration::bench::{counts, instructions, rows, series};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[derive(Parser)]
#[command(about = "What the agent costs, beside a raw replay of the same commands in the same boot")]
struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Times, memory and delays, in multiples of the limit; fails above it.
    Table {
        #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(100..))]
        services: u32,
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=5))]
        endpoints: u32,
        /// Seconds to watch the agent idle at least, with the default sync period.
        #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
        idle: u64,
        /// Measure only these rows. Default: all.
        #[arg(long, value_enum, value_delimiter = ',', default_values_t = Group::value_variants().to_vec())]
        only: Vec<Group>,
        /// Write the rows to this file, for `show`, instead of judging them.
        #[arg(long)]
        rows: Option<PathBuf>,
    },
    /// Counts; fails above their limits.
    Quick,
    /// The cost of one endpoint on small and large nodes, and of starts, by a clock that counts instructions.
    Instructions {
        /// Services of the nodes of one endpoint.
        #[arg(long, value_delimiter = ',', default_values_t = [100, 1000, 10_000, 50_000])]
        sizes: Vec<u32>,
        /// Services of a first sync.
        #[arg(long, default_value_t = 50_000, value_parser = clap::value_parser!(u32).range(100..))]
        cold: u32,
        /// Services of a restart.
        #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(100..))]
        warm: u32,
        /// Write the rows to this file, for `show`, instead of judging them.
        #[arg(long)]
        rows: Option<PathBuf>,
    },
    /// Prints the rows of files as one table; fails above a limit.
    Show {
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// Costs at many sizes, as CSV; by a clock that counts instructions.
    Series {
        /// Rules mode and what makes ClusterIPs local, such as nftables-route.
        #[arg(long)]
        mode: Mode,
        /// Numbers of Services.
        #[arg(long, value_delimiter = ',')]
        sizes: Vec<u32>,
        /// The file; existing samples of other sizes stay.
        #[arg(long)]
        csv: PathBuf,
    },
    /// Draws a CSV.
    Plot {
        /// What it is about, for the title.
        #[arg(long)]
        mode: Mode,
        /// The CSV.
        csv: PathBuf,
        /// The SVG.
        svg: PathBuf,
    },
}

fn main() -> Result<()> {
    match Args::parse().what {
        What::Table { services, endpoints, idle, only, rows } => {
            finish(&rows::measure(Size { services, endpoints }, idle, &only)?, rows.as_deref())
        }
        What::Quick => {
            let (rows, too_few) = counts::measure()?;
            judge(&rows)?;
            ensure!(too_few.is_empty(), "less than the work that is wanted: {}", too_few.join("; "));
            Ok(())
        }
        What::Instructions { sizes, cold, warm, rows } => {
            let mut all = instructions::warm_rows(warm)?;
            all.extend(instructions::cold_rows(cold)?);
            all.extend(series::endpoint_rows(&sizes)?);
            finish(&all, rows.as_deref())
        }
        What::Show { files } => {
            let rows = files.iter().map(|file| table::read(file)).collect::<Result<Vec<_>>>()?;
            judge(&rows.concat())
        }
        What::Series { mode, sizes, csv } => series::write(mode, &sizes, &csv),
        What::Plot { mode, csv, svg } => {
            let text = std::fs::read_to_string(&csv).with_context(|| csv.display().to_string())?;
            std::fs::write(&svg, to_svg(mode, &from_csv(&text)?)?).with_context(|| svg.display().to_string())
        }
    }
}

/// Writes the rows to the file, or judges them.
fn finish(rows: &[Row], file: Option<&Path>) -> Result<()> {
    file.map_or_else(|| judge(rows), |file| table::write(rows, file))
}

/// Prints the rows. Fails if a value exceeds its limit.
fn judge(rows: &[Row]) -> Result<()> {
    print!("{}", table::render(rows));
    ensure!(rows.iter().all(Row::holds), "not everything is as good as it must be");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<What> {
        Ok(Args::try_parse_from([&["bench"], words].concat())?.what)
    }

    #[test]
    fn sizes_are_lists() {
        let What::Series { sizes, .. } =
            parse(&["series", "--mode=nftables-route", "--sizes=100,300", "--csv=x"]).unwrap()
        else {
            panic!("another command")
        };
        assert_eq!(sizes, [100, 300]);
        let What::Instructions { sizes, .. } = parse(&["instructions"]).unwrap() else {
            panic!("another command")
        };
        assert_eq!(sizes, [100, 1000, 10_000, 50_000]);
    }

    #[test]
    fn invalid_arguments_are_rejected() {
        for words in [
            &["table", "--idle=0"][..],
            &["table", "--services=3"],
            &["table", "--endpoints=6"],
            &["table", "--only=rest"],
            &["instructions", "--sizes=many"],
            &["instructions", "--cold=3"],
            &["show"],
            &["series", "--sizes=1"],
            &[],
        ] {
            assert!(parse(words).is_err(), "{words:?}");
        }
    }
}
