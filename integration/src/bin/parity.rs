// SPDX-License-Identifier: Apache-2.0
//! Plays recordings of kube-proxy to the agent and compares the kernel's state after every step.
//!
//! Exit code 0: all passed; 1: some failed, or there was no scenario; 2: wrong arguments or no corpus.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Parser;
use integration::messages::Reader;
use integration::parity::run::{Failure, Options, Source, play};
use integration::parity::scenario::{find, load};
use integration::parity::{Subsystem, faults};
use tracing_subscriber::layer::SubscriberExt as _;

/// Compare the agent with recordings of kube-proxy. Needs root and a kernel with IPVS.
#[derive(Debug, Parser)]
struct Args {
    /// The folder with the recordings, one folder each.
    #[arg(long)]
    corpus: PathBuf,
    /// Only these scenarios.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Do not compare these subsystems.
    #[arg(long, value_delimiter = ',', value_parser = subsystem)]
    skip_subsystems: Vec<Subsystem>,
    /// The source of the agent's objects.
    #[arg(long, value_delimiter = ',', value_parser = source, default_value = "files,api")]
    sources: Vec<Source>,
    /// The agent [default: `KUBE_IPVS_BIN`, then target/release/kube-ipvs].
    #[arg(long)]
    agent: Option<PathBuf>,
    /// Seconds that a step may take to reach its state.
    #[arg(long, default_value_t = 30)]
    deadline: u64,
    /// Instead of comparing: fail every op of every step once on a kernel in memory, and kill the agent
    /// between any two. Needs neither root nor a kernel with IPVS.
    #[arg(long)]
    faults: bool,
    /// Scenarios at a time.
    #[arg(long, default_value_t = 3)]
    jobs: usize,
}

fn subsystem(name: &str) -> Result<Subsystem, String> {
    Subsystem::from_name(name).ok_or_else(|| format!("no subsystem {name}"))
}

fn source(name: &str) -> Result<Source, String> {
    Source::from_name(name).ok_or_else(|| format!("no source {name}: files or api"))
}

/// The folders to play: all of the corpus, or those in the arguments.
fn chosen(args: &Args) -> Result<Vec<PathBuf>> {
    let mut folders = find(&args.corpus)?;
    if !args.only.is_empty() {
        let named =
            |folder: &Path, name: &String| folder.file_name().is_some_and(|file| file == name.as_str());
        for name in &args.only {
            // A missing scenario must not look like one that passed.
            let known = folders.iter().any(|folder| named(folder, name));
            ensure!(known, "no scenario {name} in {}", args.corpus.display());
        }
        folders.retain(|folder| args.only.iter().any(|name| named(folder, name)));
    }
    Ok(folders)
}

fn indent(text: &str) -> String {
    text.lines().map(|line| format!("    {line}\n")).collect()
}

fn report(name: &str, source: Source, failure: &Failure) -> String {
    let step = if failure.step == 0 { "before step-1".into() } else { format!("step-{}", failure.step) };
    let mut text = format!("FAIL {name} [{}] {step}\n{}", source.name(), indent(&failure.text));
    if !failure.log.is_empty() {
        text.push_str("    --- the agent's last words\n");
        text.push_str(&indent(&failure.log));
    }
    text
}

/// Plays one folder from every source. Returns what to print, and whether it passed.
fn play_folder(folder: &Path, args: &Args, options: &Options) -> (String, bool) {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    let started = Instant::now();
    let scenario = match load(folder, &args.skip_subsystems) {
        Ok(scenario) => scenario,
        Err(error) => return (format!("FAIL {name}\n{}", indent(&format!("{error:#}"))), false),
    };
    if args.faults {
        return match faults::sweep(&scenario) {
            Ok(faults::Survived { failures, kills }) => {
                (format!("PASS {name}: {failures} failed ops, {kills} kills\n"), true)
            }
            Err(error) => (format!("FAIL {name}\n{}", indent(&format!("{error:#}"))), false),
        };
    }
    let mut failures = String::new();
    for source in &args.sources {
        if let Err(failure) = play(&scenario, *source, options) {
            failures.push_str(&report(&name, *source, &failure));
        }
    }
    if !failures.is_empty() {
        return (failures, false);
    }
    let mut notices = String::new();
    for (index, step) in scenario.steps.iter().enumerate() {
        if let Some(why) = &step.unsettled {
            notices.push_str(&format!("     {name} step-{} is not compared: {why}\n", index + 1));
        }
    }
    let sources: Vec<&str> = args.sources.iter().map(|source| source.name()).collect();
    let seconds = started.elapsed().as_secs_f32();
    (format!("PASS {name} ({}) {seconds:.1}s\n{notices}", sources.join(", ")), true)
}

/// Plays all folders, several at a time: each has namespaces of its own. Returns how many passed.
fn play_all(folders: &[PathBuf], args: &Args) -> usize {
    let options = Options { agent: args.agent.clone(), deadline: Duration::from_secs(args.deadline) };
    let (next, passed) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let printing = Mutex::new(());
    thread::scope(|scope| {
        for _ in 0..args.jobs.max(1) {
            scope.spawn(|| {
                while let Some(folder) = folders.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let (text, good) = play_folder(folder, args, &options);
                    passed.fetch_add(usize::from(good), Ordering::Relaxed);
                    let _one_at_a_time = printing.lock();
                    print!("{text}");
                }
            });
        }
    });
    passed.into_inner()
}

fn main() -> ExitCode {
    let args = Args::parse();
    let folders = match chosen(&args) {
        Ok(folders) => folders,
        Err(error) => {
            eprintln!("parity: {error:#}");
            return ExitCode::from(2);
        }
    };
    let reader = Reader::default();
    if args.faults {
        // The recordings also check the messages: this is the only subscriber of the process.
        let _ = tracing::subscriber::set_global_default(tracing_subscriber::registry().with(reader.clone()));
    }
    let passed = play_all(&folders, &args);
    let failed = folders.len() - passed;
    let wrong = reader.wrong();
    wrong.iter().take(20).for_each(|message| println!("a message {message}"));
    if args.faults {
        println!("{} messages read, {} of them wrong", reader.read(), wrong.len());
    }
    println!("{passed} passed, {failed} failed");
    let good = failed == 0 && passed > 0 && wrong.is_empty() && (reader.read() > 0 || !args.faults);
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
