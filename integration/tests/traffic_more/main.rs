// SPDX-License-Identifier: Apache-2.0
//! Real connections through Services with filters, affinity and changes: one agent on a node of
//! the lab, over IPv4 and IPv6. `traffic_matrix.rs` has the plain cases.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod affinity;
mod change;
mod direct_return;
mod filter;
mod hashing;
mod neighbours;
mod options;
mod protocol;
mod real_servers;
mod reshape;
mod routed;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use integration::lab::traffic::{Answer, Backend, NoAnswer, ask_tcp};
use integration::lab::{Host, Netns};
use integration::objects::Port;

/// Limit for an expected answer: long, because the guest is slow.
const ANSWER: Duration = Duration::from_secs(15);
/// How long to wait if no answer is expected: includes the first retransmission after 1 s.
const SILENCE: Duration = Duration::from_millis(2500);

const PORTS: [Port<'static>; 3] = [("tcp", "TCP", 80), ("udp", "UDP", 53), ("sctp", "SCTP", 9)];
const TARGETS: [Port<'static>; 3] = [("tcp", "TCP", 8080), ("udp", "UDP", 5353), ("sctp", "SCTP", 9000)];

/// A backend for all of [`TARGETS`].
fn backend<'a>(pod: &'a Host, name: &str) -> Backend<'a> {
    Backend::new(&pod.ns, name).tcp(8080).unwrap().udp(5353).unwrap().sctp(9000).unwrap()
}

/// The backends that answer several requests.
fn names(ask: impl Fn() -> Result<Answer, NoAnswer>, times: usize) -> BTreeSet<String> {
    (0..times).map(|_| ask().unwrap_or_else(|e| panic!("{e}")).name).collect()
}

/// A set of names.
fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// No answer and no refusal may come from these addresses. All are tested at the same time.
fn assert_silent(asked: &[(&Netns, SocketAddr)]) {
    std::thread::scope(|scope| {
        let ask = |(ns, address): (&Netns, SocketAddr)| {
            (ns.name().to_owned(), address, ask_tcp(ns, address, SILENCE))
        };
        let threads: Vec<_> = asked.iter().map(|pair| scope.spawn(move || ask(*pair))).collect();
        for thread in threads {
            let (from, to, result) = thread.join().unwrap();
            assert!(matches!(result, Err(NoAnswer::Timeout)), "from {from} to {to}: {result:?}");
        }
    });
}

/// The connection must be refused before a timeout.
fn assert_refused(ns: &Netns, address: SocketAddr) {
    let result = ask_tcp(ns, address, ANSWER);
    assert!(matches!(result, Err(NoAnswer::Refused)), "from {} to {address}: {result:?}", ns.name());
}
