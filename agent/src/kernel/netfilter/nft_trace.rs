// SPDX-License-Identifier: Apache-2.0
//! Follows packets through the rules of nf_tables: one table of our own marks them for tracing, and the kernel reports
//! each rule that they meet (`meta nftrace`).

use std::net::IpAddr;
use std::time::Duration;

use netlink_batch::{Error, Listener};
use nftables_netlink::{
    BaseChain, Chain, Client, CmpOp, Command, CommitError, Expression, Hook, MetaKey, PayloadBase, Register,
    Rule, Scope, Table, TableFlags, Transaction, listen_traces,
};
use nix::errno::Errno;

pub use nftables_netlink::{Family as NftFamily, Policy, TraceEvent, TraceKind, TraceVerdict, Verdict};

use super::nft_rule_text::rule_summary;
use super::nft_tables::{nft_family, remove};
use crate::core::model::{Family, Protocol, VsKey};

/// The table that marks packets, and the only thing that a trace adds.
pub const TRACE_TABLE: &str = "kube-ipvs-trace";
/// Before `raw`, so that the rules of all usual base chains are seen.
const PRIORITY: i32 = -350;
const R0: Register = Register::R0;
/// SYN without ACK in the flags of TCP.
const SYN: u8 = 0x02;
const SYN_ACK: u8 = 0x12;
/// The chunk of SCTP that begins an association.
const SCTP_INIT: u8 = 1;

/// Why packets cannot be traced.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    #[error(
        "the kernel has no nf_tables, and only its rules can be traced: load the module with `modprobe nf_tables`"
    )]
    NoNfTables,
    #[error("tracing needs root (CAP_NET_ADMIN): run this command as root")]
    NotPermitted,
    #[error(
        "another `kube-ipvs trace` runs on this node: wait until it ends, `nft list tables` shows its table"
    )]
    Busy,
    #[error("cannot add the table {TRACE_TABLE}")]
    Table(#[source] CommitError),
    #[error("cannot receive traces")]
    Netlink(#[source] Error),
}

impl From<Error> for TraceError {
    fn from(error: Error) -> Self {
        match error {
            Error::NotPermitted => TraceError::NotPermitted,
            Error::Io(cause) if cause.kind() == std::io::ErrorKind::PermissionDenied => {
                TraceError::NotPermitted
            }
            other => TraceError::Netlink(other),
        }
    }
}

/// Where a base chain sees packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookedChain {
    pub family: NftFamily,
    pub table: String,
    pub chain: String,
    /// The hook as nft(8) names it.
    pub hook: &'static str,
}

/// A rule of nf_tables as far as it can be told in a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleSummary {
    pub family: NftFamily,
    pub table: String,
    pub handle: u64,
    pub text: String,
    /// It answers with an error message or a reset.
    pub rejects: bool,
}

/// The trace of packets to some virtual servers. The kernel removes the table when this is dropped or the process ends;
/// before Linux 5.12 only [`Self::stop`] and dropping do that.
#[derive(Debug)]
pub struct PacketTracer {
    client: Client,
    listener: Listener,
    families: Vec<Family>,
}

impl PacketTracer {
    /// Adds the table, and begins to listen.
    ///
    /// # Errors
    /// The kernel has no nf_tables, a privilege is missing, or another trace runs.
    pub fn start(targets: &[VsKey], from: Option<IpAddr>) -> Result<Self, TraceError> {
        let mut client = Client::open()?;
        match client.generation() {
            Err(Error::Refused(_)) => return Err(TraceError::NoNfTables),
            other => other?,
        };
        // Before the table: no packet is missed.
        let listener = listen_traces()?;
        let of = |family: &Family| targets.iter().any(|target| target.family() == *family);
        let families: Vec<Family> = Family::ALL.into_iter().filter(of).collect();
        add_table(&mut client, &families, targets, from)?;
        Ok(Self { client, listener, families })
    }

    /// The next steps of packets; none if none came within `timeout`. The second value: notifications were lost.
    ///
    /// # Errors
    /// The socket fails.
    pub fn receive(&mut self, timeout: Duration) -> Result<(Vec<TraceEvent>, bool), TraceError> {
        self.listener.set_timeout(timeout)?;
        let mut events = Vec::new();
        let messages = match self.listener.receive() {
            Ok(messages) => messages,
            Err(Error::Timeout) => return Ok((events, false)),
            Err(Error::Overrun | Error::Truncated) => return Ok((events, true)),
            Err(error) => return Err(error.into()),
        };
        for message in messages {
            events.extend(TraceEvent::parse(&message?)?);
        }
        Ok((events, false))
    }

    /// Removes the table; steps of marked packets can still come.
    pub fn stop(&mut self) {
        for family in std::mem::take(&mut self.families) {
            // The table may be gone by a flush of all rules; otherwise the kernel removes it with the socket.
            let _ = remove(&mut self.client, family, TRACE_TABLE);
        }
    }

    /// The base chains of all tables. None if they cannot be read: steps are then told without their hook.
    pub fn hooked_chains(&mut self) -> Vec<HookedChain> {
        let chains = self.client.chains(Scope::All).unwrap_or_default();
        let hooked = chains.into_iter().filter_map(|chain| {
            let hook = hook_name(chain.base.as_ref()?.hook)?;
            Some(HookedChain { family: chain.family, table: chain.table, chain: chain.name, hook })
        });
        hooked.collect()
    }

    /// The rules of a table. None if they cannot be read: steps then have only the handles of rules.
    pub fn rules(&mut self, family: NftFamily, table: &str) -> Vec<RuleSummary> {
        let rules = self.client.rules(Scope::Table(family, table)).unwrap_or_default();
        let summary = |rule: &Rule| {
            let (text, rejects) = rule_summary(rule);
            Some(RuleSummary { family, table: table.to_owned(), handle: rule.handle?, text, rejects })
        };
        rules.iter().filter_map(summary).collect()
    }
}

impl Drop for PacketTracer {
    fn drop(&mut self) {
        self.stop();
    }
}

fn hook_name(hook: Hook) -> Option<&'static str> {
    Some(match hook {
        Hook::Prerouting => "prerouting",
        Hook::Input => "input",
        Hook::Forward => "forward",
        Hook::Output => "output",
        Hook::Postrouting => "postrouting",
        _ => return None,
    })
}

/// Adds the table to each family, in one transaction.
fn add_table(
    client: &mut Client,
    families: &[Family],
    targets: &[VsKey],
    from: Option<IpAddr>,
) -> Result<(), TraceError> {
    let mut flags = TableFlags::OWNER;
    // Without the flag, and without a table that a killed command left before Linux 5.12.
    for _ in 0..3 {
        let errno = match client.commit(&commands(families, targets, from, flags)) {
            Ok(()) => return Ok(()),
            Err(CommitError::NotSupported) => return Err(TraceError::NoNfTables),
            Err(CommitError::Netlink(error)) => return Err(error.into()),
            Err(CommitError::Refused { commands, incomplete }) => match commands.first() {
                Some(first) if first.index == 0 || first.refusal.errno() == Errno::EEXIST => {
                    first.refusal.errno()
                }
                _ => return Err(TraceError::Table(CommitError::Refused { commands, incomplete })),
            },
            Err(error) => return Err(TraceError::Table(error)),
        };
        match errno {
            Errno::EPERM => return Err(TraceError::Busy),
            Errno::EEXIST => families.iter().for_each(|family| _ = remove(client, *family, TRACE_TABLE)),
            _ => flags = TableFlags::default(),
        }
    }
    client.commit(&commands(families, targets, from, flags)).map_err(TraceError::Table)
}

fn commands(families: &[Family], targets: &[VsKey], from: Option<IpAddr>, flags: TableFlags) -> Transaction {
    let mut transaction = Transaction::new();
    for family in families {
        let nft = nft_family(*family);
        let mut table = Table::new(nft, TRACE_TABLE);
        table.flags = flags;
        transaction.push(Command::CreateTable(table));
        for (name, hook) in [("prerouting", Hook::Prerouting), ("output", Hook::Output)] {
            let base = BaseChain::filter(hook, PRIORITY);
            transaction.push(Command::CreateChain(Chain::base(nft, TRACE_TABLE, name, base)));
            for target in targets.iter().filter(|target| target.family() == *family) {
                transaction.push(Command::AddRule(Rule::new(nft, TRACE_TABLE, name, mark(target, from))));
            }
        }
    }
    transaction
}

/// The rule that marks packets to a virtual server: of TCP and SCTP those that begin a connection, of UDP all.
fn mark(target: &VsKey, from: Option<IpAddr>) -> Vec<Expression> {
    let [source, destination] = match target.family() {
        Family::V4 => [12, 16],
        Family::V6 => [8, 24],
    };
    let mut rule = Vec::new();
    if let Some(from) = from {
        rule.extend(equal(PayloadBase::Network, source, octets(from)));
    }
    rule.extend(equal(PayloadBase::Network, destination, octets(target.addr)));
    rule.push(Expression::Meta { register: R0, key: MetaKey::L4Proto });
    rule.push(Expression::Cmp { register: R0, op: CmpOp::Eq, data: vec![target.protocol.number()] });
    rule.extend(equal(PayloadBase::Transport, 2, target.port.to_be_bytes().to_vec()));
    match target.protocol {
        Protocol::Tcp => {
            let [load, compare] = equal(PayloadBase::Transport, 13, vec![SYN]);
            let mask = Expression::Bitwise { source: R0, destination: R0, mask: vec![SYN_ACK], xor: vec![0] };
            rule.extend([load, mask, compare]);
        }
        Protocol::Sctp => rule.extend(equal(PayloadBase::Transport, 12, vec![SCTP_INIT])),
        Protocol::Udp => {}
    }
    rule.push(Expression::Immediate { register: R0, data: vec![1] });
    rule.push(Expression::SetMeta { register: R0, key: MetaKey::NfTrace });
    rule
}

/// Compares a part of the packet with a value.
fn equal(base: PayloadBase, offset: u32, data: Vec<u8>) -> [Expression; 2] {
    let load = Expression::Payload { register: R0, base, offset, len: data.len() as u32 };
    [load, Expression::Cmp { register: R0, op: CmpOp::Eq, data }]
}

fn octets(addr: IpAddr) -> Vec<u8> {
    match addr {
        IpAddr::V4(addr) => addr.octets().to_vec(),
        IpAddr::V6(addr) => addr.octets().to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(protocol: Protocol, addr: &str) -> VsKey {
        VsKey { protocol, addr: addr.parse().unwrap(), port: 80 }
    }

    /// Offset and value of each comparison with a part of the packet.
    fn compared(rule: &[Expression]) -> Vec<(u32, Vec<u8>)> {
        let mut offset = None;
        let mut found = Vec::new();
        for expression in rule {
            match expression {
                Expression::Payload { offset: at, .. } => offset = Some(*at),
                Expression::Cmp { data, .. } => found.extend(offset.take().map(|at| (at, data.clone()))),
                _ => {}
            }
        }
        found
    }

    #[test]
    fn only_packets_that_begin_a_connection_are_marked() {
        let rule = mark(&target(Protocol::Tcp, "10.96.0.10"), "10.244.1.9".parse().ok());
        let expected =
            [(12, vec![10, 244, 1, 9]), (16, vec![10, 96, 0, 10]), (2, vec![0, 80]), (13, vec![SYN])];
        assert_eq!(compared(&rule), expected);
        assert!(rule.contains(&Expression::SetMeta { register: R0, key: MetaKey::NfTrace }));
        let rule = mark(&target(Protocol::Udp, "::2"), None);
        let address = [vec![0; 15], vec![2]].concat();
        assert_eq!(compared(&rule), [(24, address), (2, vec![0, 80])]);
        let rule = mark(&target(Protocol::Sctp, "::2"), None);
        assert_eq!(compared(&rule).last(), Some(&(12, vec![SCTP_INIT])));
    }

    #[test]
    fn each_family_has_its_table_with_its_targets() {
        let targets = [
            target(Protocol::Tcp, "10.96.0.10"),
            target(Protocol::Udp, "10.96.0.10"),
            target(Protocol::Tcp, "::2"),
        ];
        let transaction = commands(&Family::ALL, &targets, None, TableFlags::OWNER);
        let text: Vec<String> = transaction.commands().iter().map(ToString::to_string).collect();
        let rules = |family: &str| {
            let rules = format!("add rule to {family} kube-ipvs-trace prerouting");
            text.iter().filter(|command| **command == rules).count()
        };
        assert_eq!((rules("ip"), rules("ip6")), (2, 1));
        let owned =
            |command: &Command| matches!(command, Command::CreateTable(t) if t.flags == TableFlags::OWNER);
        assert_eq!(transaction.commands().iter().filter(|command| owned(command)).count(), 2);
    }
}
