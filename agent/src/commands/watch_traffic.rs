// SPDX-License-Identifier: Apache-2.0
//! `kube-ipvs top`: the traffic of Services, live or as one table.
//!
//! One thread reads the table, one the keyboard, one waits for signals; the main thread takes their messages and draws. So
//! keys work while a reading is slow.

use std::io::{self, IsTerminal as _};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use jiff::Timestamp;

use super::top_terminal::{TopMessage, TopTerminal, watch_keyboard, watch_signals};
use crate::cli::TopArgs;
use crate::config::host;
use crate::inspect::answers::{AgentRequest, Setup};
use crate::inspect::filter::Filter;
use crate::inspect::ipvs_table::IpvsTable;
use crate::inspect::layout::Layout;
use crate::inspect::owners::{OwnersOf, ServiceOwners};
use crate::inspect::socket::{AskError, ask};
use crate::inspect::top::once_table::once_table;
use crate::inspect::top::rate_meter::RateMeter;
use crate::inspect::top::table_reading::TableReading;
use crate::inspect::top::top_state::{Top, TopAction};
use crate::words;

/// The agent is asked for Services at most this often: an answer takes time of its loop.
const ASK: Duration = Duration::from_secs(10);
/// How long the loop sleeps when it is paused or waits for a reading.
const IDLE: Duration = Duration::from_secs(10);

/// Shows traffic until a key or a signal ends it, or prints one table.
///
/// # Errors
/// The kernel has no IPVS, a privilege is missing, the terminal cannot be controlled, or a namespace is given and no agent
/// runs that knows Services.
pub fn run(args: &TopArgs) -> anyhow::Result<()> {
    let mut reader = TopReader::new(args.namespace.clone());
    let known = reader.ask();
    if args.namespace.is_some() {
        known.context("cannot select by Service")?;
    }
    let is_terminal = io::stdout().is_terminal() && io::stdin().is_terminal();
    match args.once || !is_terminal {
        true => once(args, reader),
        false => live(args, reader),
    }
}

fn once(args: &TopArgs, mut reader: TopReader) -> anyhow::Result<()> {
    if let Some(problem) = &reader.problem {
        eprintln!("kube-ipvs: {problem}");
    }
    let mut meter = RateMeter::default();
    // Rates need a reading before.
    meter.add(reader.read()?);
    thread::sleep(Duration::from_secs(args.interval));
    super::print(&once_table(&meter.add(reader.read()?), args.sort))
}

fn live(args: &TopArgs, reader: TopReader) -> anyhow::Result<()> {
    let mut top = Top::new(node_name(), args.namespace.clone(), args.interval, args.sort);
    let has_color = Layout::of_stdout().color;
    let (sender, messages) = mpsc::channel();
    watch_signals(sender.clone())?;
    let orders = start_reader(reader, sender.clone())?;
    let mut terminal = TopTerminal::open(has_color)
        .context("cannot control the terminal: use `kubectl exec -it`, or --once for one table")?;
    watch_keyboard(sender)?;
    // An error means that the terminal is gone, and nobody is left to read it.
    let _ = follow(&mut top, &mut terminal, &messages, &orders);
    Ok(())
}

/// Draws until the end. `orders` starts a reading.
fn follow(
    top: &mut Top,
    terminal: &mut TopTerminal,
    messages: &Receiver<TopMessage>,
    orders: &Sender<()>,
) -> io::Result<()> {
    let mut meter = RateMeter::default();
    // `None`: a reading runs.
    let mut next = Some(Instant::now());
    terminal.draw(top)?;
    loop {
        let now = Instant::now();
        if !top.is_paused && next.is_some_and(|next| next <= now) {
            if orders.send(()).is_err() {
                return Ok(());
            }
            next = None;
        }
        let until = next.filter(|_| !top.is_paused).map(|next| next.saturating_duration_since(now));
        let message = match messages.recv_timeout(until.unwrap_or(IDLE)) {
            Ok(message) => message,
            Err(RecvTimeoutError::Timeout) => continue,
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        };
        match message {
            TopMessage::Read(began, outcome) => {
                next = Some(began + top.pause());
                take(top, &mut meter, outcome);
                terminal.draw(top)?;
            }
            TopMessage::Key(key) => {
                let before = top.pause();
                match top.key(key) {
                    TopAction::Quit => return Ok(()),
                    TopAction::Draw => terminal.draw(top)?,
                    TopAction::Repaint => terminal.repaint(top)?,
                }
                next = next.map(|next| (next + top.pause()).checked_sub(before).unwrap_or(next));
            }
            TopMessage::Resized => terminal.draw(top)?,
            TopMessage::Stop => return Ok(()),
        }
    }
}

fn take(top: &mut Top, meter: &mut RateMeter, outcome: ReadOutcome) {
    top.problems.clear();
    match outcome.reading {
        Ok(reading) => {
            top.time = Timestamp::now().strftime("%H:%M:%S UTC").to_string();
            top.update(meter.add(reading));
        }
        Err(error) => top.problems.push(words::chain(&error)),
    }
    top.problems.extend(outcome.problem);
}

/// What a reading found.
#[derive(Debug)]
pub(super) struct ReadOutcome {
    reading: anyhow::Result<TableReading>,
    /// Why Services are unknown or may be old.
    problem: Option<String>,
}

fn start_reader(mut reader: TopReader, sender: Sender<TopMessage>) -> anyhow::Result<Sender<()>> {
    let (orders, ordered) = mpsc::channel();
    thread::Builder::new().name("readings".to_owned()).spawn(move || {
        while ordered.recv().is_ok() {
            let began = Instant::now();
            let reading = reader.read();
            let outcome = ReadOutcome { reading, problem: reader.problem.clone() };
            if sender.send(TopMessage::Read(began, outcome)).is_err() {
                return;
            }
        }
    })?;
    Ok(orders)
}

/// Reads the table, and the Services of virtual servers from time to time.
struct TopReader {
    filter: Filter,
    owners: ServiceOwners,
    began: Instant,
    asked: Option<Instant>,
    problem: Option<String>,
}

impl TopReader {
    fn new(namespace: Option<String>) -> Self {
        Self {
            filter: Filter { namespace, ..Filter::default() },
            owners: ServiceOwners::default(),
            began: Instant::now(),
            asked: None,
            problem: None,
        }
    }

    /// Asks the agent for Services. If it does not answer, those of the last answer stay.
    fn ask(&mut self) -> Result<(), AskError> {
        self.asked = Some(Instant::now());
        match ServiceOwners::ask(&OwnersOf::default()) {
            Ok(owners) => {
                (self.owners, self.problem) = (owners, None);
                Ok(())
            }
            Err(error) => {
                let missing = match self.owners == ServiceOwners::default() {
                    true => "Services are not shown",
                    false => "new Services are not shown",
                };
                self.problem = Some(format!("{missing}: {error}"));
                Err(error)
            }
        }
    }

    fn read(&mut self) -> anyhow::Result<TableReading> {
        if self.asked.is_none_or(|asked| asked.elapsed() >= ASK) {
            // What went wrong is shown beside the table.
            let _ = self.ask();
        }
        let at = self.began.elapsed();
        let table = IpvsTable::read(&self.filter, &self.owners, false)?;
        Ok(TableReading::new(at, &table, &self.owners))
    }
}

/// The name that the agent has, else that of the host.
fn node_name() -> String {
    let setup: Result<Setup, AskError> = ask(&AgentRequest::Setup);
    setup.map(|setup| setup.node).or_else(|_| host::node_name("")).unwrap_or_else(|_| "this node".to_owned())
}
