// SPDX-License-Identifier: Apache-2.0
//! The only external programs: `iptables-save`, `iptables-restore` and their IPv6 twins.

use std::io::{ErrorKind, Read, Write};
use std::process::{Command, Stdio};
use std::thread::JoinHandle;

use super::OpError;
use super::flavour::Flavour;
use super::nft_watch::Children;
use crate::core::model::Family;
use crate::core::op::RulesOp;
use crate::core::removal::Removal;
use crate::core::rules::render_restore;
use crate::core::save::{ObservedRules, parse_save};

/// How a rule that needs the match `ipvs` (module `xt_ipvs`) looks.
pub const IPVS_MATCH: &str = "-m ipvs ";

/// Runs the programs and counts how many it started.
#[derive(Debug, Default)]
pub struct Iptables {
    started: u64,
    children: Children,
    /// Found out when it is first needed.
    flavour: Option<Flavour>,
}

impl Iptables {
    /// Processes started so far.
    pub fn started(&self) -> u64 {
        self.started
    }

    /// Reads the rules of the families, all at once, beside the caller; a result each, in their order. An
    /// error names the program and what it said.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn begin_reading(
        &mut self,
        families: &[Family],
    ) -> std::io::Result<JoinHandle<Vec<Result<Saved, String>>>> {
        self.started += families.len() as u64;
        let (flavour, families) = (self.flavour(), families.to_vec());
        let read = move || at_once(&families, |family| read(&flavour.program(*family, "save")));
        std::thread::Builder::new().name("rules-save".to_owned()).spawn(read)
    }

    /// Writes the rules of families, all at once, each table atomically, and returns a result each:
    /// what the program said; the tables that it did not reach stay as they were.
    pub fn write(&mut self, rules: &[&RulesOp]) -> Vec<Result<(), OpError>> {
        self.started += rules.len() as u64;
        let flavour = self.flavour();
        at_once(rules, |rules| write(&flavour.program(rules.family, "restore"), rules, &self.children))
    }

    fn flavour(&mut self) -> Flavour {
        *self.flavour.get_or_insert_with(|| Flavour::of_node(save))
    }

    /// The rules of a family as text.
    ///
    /// # Errors
    /// Names the program and what it said.
    pub fn save(&mut self, family: Family) -> Result<String, String> {
        self.started += 1;
        save(&self.flavour().program(family, "save"))
    }

    /// Takes chains and jumps out, each table at once.
    ///
    /// # Errors
    /// Names the program and what it said; the tables that it did not reach stay as they were.
    pub fn remove(&mut self, family: Family, removal: &Removal) -> Result<(), String> {
        self.started += 1;
        restore(&self.flavour().program(family, "restore"), &removal.render(), &self.children)
    }

    /// The processes that write rules for this agent.
    pub fn children(&self) -> Children {
        self.children.clone()
    }
}

/// Does the work for each item on a thread of its own; threads stay in the network namespace.
fn at_once<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = items.iter().map(|item| scope.spawn(|| work(item))).collect();
        threads.into_iter().map(|t| t.join().unwrap_or_else(|e| std::panic::resume_unwind(e))).collect()
    })
}

/// What a family has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Saved {
    /// The rules.
    pub rules: ObservedRules,
    /// They are in nf_tables.
    pub in_nft: bool,
}

fn read(name: &str) -> Result<Saved, String> {
    let text = save(name)?;
    Ok(Saved { rules: parse_save(&text), in_nft: is_in_nft(&text) })
}

/// The first line names the program by what it is, not by how it was called.
fn is_in_nft(text: &str) -> bool {
    text.lines().next().is_some_and(|line| line.contains("-nft-save") || line.contains("xtables-save"))
}

fn save(name: &str) -> Result<String, String> {
    run(Command::new(name).stdin(Stdio::null()), name, "", &Children::default())
}

fn write(name: &str, rules: &RulesOp, children: &Children) -> Result<(), OpError> {
    let input = render_restore(&rules.chains, &rules.jumps);
    // The first table may have been written before the second failed.
    let Err(error) = restore(name, &input, children) else { return Ok(()) };
    let (kept, left_out): (Vec<&str>, Vec<&str>) = input.lines().partition(|l| !l.contains(IPVS_MATCH));
    if left_out.is_empty() {
        return Err(OpError::doubt(error));
    }
    // The guard must stand, even where one match is missing.
    match restore(name, &(kept.join("\n") + "\n"), children) {
        Ok(()) => Err(OpError::degraded(format!(
            "{error}; all rules are in place but those that keep this node itself from load balancers whose \
             source ranges leave it out: load the module xt_ipvs"
        ))),
        Err(_) => Err(OpError::doubt(error)),
    }
}

fn restore(name: &str, input: &str, children: &Children) -> Result<(), String> {
    let mut command = Command::new(name);
    command.args(["-w", "5", "--noflush"]).stdin(Stdio::piped());
    run(&mut command, name, input, children).map(drop)
}

fn run(command: &mut Command, name: &str, input: &str, children: &Children) -> Result<String, String> {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.map_err(|error| match error.kind() {
        ErrorKind::NotFound => format!("{name} is not installed: install the iptables package"),
        _ => format!("cannot start {name}: {error}"),
    })?;
    children.add(child.id());
    if let Some(mut stdin) = child.stdin.take() {
        // A program that ends early closes the pipe; its own message says why.
        let _ = stdin.write_all(input.as_bytes());
    }
    let mut errors = child.stderr.take();
    let stderr = std::thread::spawn(move || {
        let mut text = String::new();
        let _ = errors.as_mut().map(|e| e.read_to_string(&mut text));
        text
    });
    let output = child.wait_with_output().map_err(|error| format!("{name}: {error}"))?;
    let stderr = stderr.join().unwrap_or_default();
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let stderr = stderr.trim();
    // Its own remedy, to be root, is of no use to a container. Legacy tables are reached through a raw
    // socket, and in both flavours the match `set` asks for the numbers of sets through one.
    let denied = ["you must be root", "open socket to ipset"].iter().any(|text| stderr.contains(text));
    let remedy = if denied { "; it needs the capabilities NET_ADMIN and NET_RAW" } else { "" };
    Err(format!("{name} failed ({}): {stderr}{remedy}", output.status))
}
