// SPDX-License-Identifier: Apache-2.0
//! `make bench`, `make bench-quick` and `make benchmarks`: see [`integration::bench`].

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};
use integration::bench::allocations::Counting;
use integration::bench::node::Size;
use integration::bench::plot::{from_csv, to_svg};
use integration::bench::table::{self, Row};
use integration::bench::{counts, rows, series};

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
    },
    /// Counts; fails above their limits.
    Quick,
    /// The cost of one endpoint on small and large nodes, by a clock that counts instructions.
    Endpoint {
        #[arg(long, value_delimiter = ',', default_values_t = [100, 1000, 10_000, 50_000])]
        sizes: Vec<u32>,
    },
    /// Costs at many sizes, as CSV; by a clock that counts instructions.
    Series {
        /// Numbers of Services.
        #[arg(long, value_delimiter = ',')]
        sizes: Vec<u32>,
        /// The file; existing samples of other sizes stay.
        #[arg(long)]
        csv: PathBuf,
    },
    /// Draws a CSV.
    Plot {
        /// The CSV.
        csv: PathBuf,
        /// The SVG.
        svg: PathBuf,
    },
}

fn main() -> Result<()> {
    match Args::parse().what {
        What::Table { services, endpoints, idle } => {
            judge(&rows::measure(Size { services, endpoints }, idle)?)
        }
        What::Quick => {
            let (rows, too_few) = counts::measure()?;
            judge(&rows)?;
            ensure!(too_few.is_empty(), "less than the work that is wanted: {}", too_few.join("; "));
            Ok(())
        }
        What::Endpoint { sizes } => judge(&series::endpoint_rows(&sizes)?),
        What::Series { sizes, csv } => series::write(&sizes, &csv),
        What::Plot { csv, svg } => {
            let text = std::fs::read_to_string(&csv).with_context(|| csv.display().to_string())?;
            std::fs::write(&svg, to_svg(&from_csv(&text)?)?).with_context(|| svg.display().to_string())
        }
    }
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
        let What::Series { sizes, .. } = parse(&["series", "--sizes=100,300", "--csv=x"]).unwrap() else {
            panic!("another command")
        };
        assert_eq!(sizes, [100, 300]);
        let What::Endpoint { sizes } = parse(&["endpoint"]).unwrap() else { panic!("another command") };
        assert_eq!(sizes, [100, 1000, 10_000, 50_000]);
    }

    #[test]
    fn invalid_arguments_are_rejected() {
        for words in [
            &["table", "--idle=0"][..],
            &["table", "--services=3"],
            &["table", "--endpoints=6"],
            &["endpoint", "--sizes=many"],
            &["series", "--sizes=1"],
            &[],
        ] {
            assert!(parse(words).is_err(), "{words:?}");
        }
    }
}
