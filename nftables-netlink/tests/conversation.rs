// SPDX-License-Identifier: Apache-2.0
//! Conversations with a peer that says what a kernel would.
#![allow(clippy::unwrap_used, reason = "the helpers of tests, too")]

use std::collections::VecDeque;
use std::io;

use nftables_netlink::netlink_batch::{Channel, Errno};
use nftables_netlink::*;

const ERROR: u16 = 2;
const DONE: u16 = 3;
const MULTI: u16 = 2;

/// Says datagrams, then nothing.
#[derive(Debug, Default)]
struct Peer {
    says: VecDeque<Result<Vec<u8>, Errno>>,
}

impl Channel for Peer {
    fn send(&mut self, _: &[u8]) -> io::Result<()> {
        Ok(())
    }

    fn receive(&mut self, buffer: &mut Vec<u8>) -> io::Result<usize> {
        let datagram = self.says.pop_front().unwrap_or(Err(Errno::EAGAIN))?;
        buffer.extend_from_slice(&datagram);
        Ok(datagram.len())
    }
}

fn client(says: impl IntoIterator<Item = Result<Vec<u8>, Errno>>) -> Client<Peer> {
    Client::over(Peer { says: says.into_iter().collect() })
}

fn message(kind: u16, seq: u32, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(16 + payload.len()).unwrap();
    let mut bytes = [&len.to_ne_bytes()[..], &kind.to_ne_bytes(), &MULTI.to_ne_bytes()].concat();
    bytes.extend_from_slice(&seq.to_ne_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(payload);
    bytes
}

/// A refusal of a message, with code 0 an acknowledgement.
fn status(seq: u32, code: i32) -> Result<Vec<u8>, Errno> {
    Ok(message(ERROR, seq, &[&(-code).to_ne_bytes()[..], &[0; 16]].concat()))
}

/// Begins with sequence number 1: a table, 3000 elements in two messages, a chain.
fn transaction() -> Transaction {
    let (family, table, set) = (Family::Ipv4, "t".to_owned(), "s".to_owned());
    let elements = (0..3000u32).map(|n| Element::new(n.to_be_bytes())).collect();
    [
        Command::AddTable(Table::new(family, "t")),
        Command::AddElements { family, table, set, elements },
        Command::DeleteChain { family, table: "t".to_owned(), chain: "c".to_owned() },
    ]
    .into_iter()
    .collect()
}

#[test]
fn an_acknowledged_transaction_was_applied() {
    let mut client = client([status(5, 0)]);
    client.commit(&transaction()).unwrap();
    assert_eq!((client.counters().sends, client.counters().commands), (1, 4));
    client.commit(&Transaction::new()).unwrap();
    assert_eq!(client.counters().sends, 1, "nothing to do");
}

#[test]
fn refusals_are_those_of_commands() {
    let errnos = [Errno::ENOENT as i32, Errno::ENOENT as i32, Errno::EBUSY as i32];
    let mut client = client([status(3, errnos[0]), status(4, errnos[1]), status(5, errnos[2])]);
    let error = client.commit(&transaction()).unwrap_err();
    let text = "the kernel refused the transaction: cannot add elements to ip t s: No such file or directory \
                (and 1 more)";
    assert_eq!(error.to_string(), text);
    let CommitError::Refused { commands, incomplete: false } = error else { panic!("{error}") };
    let found: Vec<_> = commands.iter().map(|refused| (refused.index, refused.refusal.errno())).collect();
    assert_eq!(found, [(1, Errno::ENOENT), (2, Errno::EBUSY)]);
}

#[test]
fn a_transaction_can_be_refused_as_a_whole() {
    let whole = |errno: Errno| client([status(1, errno as i32)]).commit(&transaction()).unwrap_err();
    assert!(matches!(whole(Errno::ERESTART), CommitError::GenerationChanged));
    assert!(matches!(whole(Errno::EOPNOTSUPP), CommitError::NotSupported));
    assert!(matches!(whole(Errno::EPERM), CommitError::Netlink(Error::NotPermitted)));
    assert!(matches!(whole(Errno::EINVAL), CommitError::Netlink(Error::Refused(_))));
    let error = client([]).commit(&transaction()).unwrap_err();
    assert!(matches!(error, CommitError::Netlink(Error::Timeout)));
}

#[test]
fn lost_refusals_are_a_refusal() {
    let error = client([Err(Errno::ENOBUFS)]).commit(&transaction()).unwrap_err();
    assert_eq!(error.to_string(), "the kernel refused the transaction: the details were lost");
    assert!(matches!(error, CommitError::Refused { incomplete: true, .. }));
}

/// A list in two datagrams: each part of a generation, with a name.
fn list(seq: u32, parts: [(u8, u8); 2]) -> Vec<Result<Vec<u8>, Errno>> {
    let part = |(generation, name): (u8, u8)| {
        let attribute = [&6u16.to_ne_bytes()[..], &1u16.to_ne_bytes(), &[name, 0, 0, 0]].concat();
        message(0xa00, seq, &[&[2, 0, 0, generation], &attribute[..]].concat())
    };
    vec![Ok(part(parts[0])), Ok(part(parts[1])), Ok(message(DONE, seq, &[0; 4]))]
}

#[test]
fn a_list_of_two_generations_is_read_again() {
    let says = [list(1, [(1, b'a'), (2, b'b')]), list(2, [(2, b'b'), (2, b'c')])].concat();
    let tables = client(says).tables(Scope::All).unwrap();
    assert_eq!(tables.iter().map(|table| table.name.as_str()).collect::<Vec<_>>(), ["b", "c"]);
    let says = (1..4).flat_map(|seq| list(seq, [(1, b'a'), (2, b'b')]));
    assert!(matches!(client(says).tables(Scope::All), Err(Error::Interrupted)));
}

#[test]
fn a_list_of_one_table_has_only_its_objects() {
    let tables = client(list(1, [(1, b'a'), (1, b'b')])).tables(Scope::Table(Family::Ipv4, "b")).unwrap();
    assert_eq!(tables, [Table::new(Family::Ipv4, "b")]);
    let missing = Ok(message(DONE, 1, &(-(Errno::ENOENT as i32)).to_ne_bytes()));
    assert!(client([missing]).sets(Scope::Table(Family::Ipv4, "t")).unwrap().is_empty());
    assert!(matches!(
        client([status(1, Errno::ENOENT as i32)]).elements(Family::Ipv4, "t", "s"),
        Err(Error::Refused(_))
    ));
}

/// A list of elements without attributes but their keys, of 1 byte.
fn elements(seq: u32, keys: &[u8]) -> Vec<Result<Vec<u8>, Errno>> {
    let attribute = |kind: u16, value: &[u8]| {
        let len = u16::try_from(4 + value.len()).unwrap();
        let mut bytes = [&len.to_ne_bytes()[..], &kind.to_ne_bytes(), value].concat();
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    };
    let one = |key: &u8| attribute(1, &attribute(1, &attribute(1, &[*key])));
    let list = attribute(3, &keys.iter().flat_map(one).collect::<Vec<u8>>());
    let part = message(0xa0c, seq, &[&[2, 0, 0, 1], &list[..]].concat());
    vec![Ok(part), Ok(message(DONE, seq, &[0; 4]))]
}

#[test]
fn a_list_of_elements_that_were_mixed_up_is_read_again() {
    let says = [elements(1, &[7, 8, 7]), elements(2, &[9, 8, 7])].concat();
    let read = client(says).elements(Family::Ipv4, "t", "s").unwrap();
    assert_eq!(read, [9, 8, 7].map(|key| Element::new([key])));
    let says = (1..4).flat_map(|seq| elements(seq, &[7, 7]));
    assert!(matches!(client(says).elements(Family::Ipv4, "t", "s"), Err(Error::Interrupted)));
}

#[test]
fn the_generation_is_one_answer() {
    let number = [&8u16.to_ne_bytes()[..], &1u16.to_ne_bytes(), &[0, 0, 1, 2]].concat();
    let answer = message(0xa0f, 1, &[&[0, 0, 1, 2], &number[..]].concat());
    assert_eq!(client([Ok(answer)]).generation().unwrap().id, 258);
    assert!(matches!(client([status(1, Errno::EINVAL as i32)]).generation(), Err(Error::Refused(_))));
}
