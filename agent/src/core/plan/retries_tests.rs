// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::net::IpAddr;

use super::*;
use crate::core::model::real_servers::RsState;
use crate::core::model::{Protocol, RsKey, VsKey};

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn s(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn ip(n: u8) -> IpAddr {
    [10, 96, 0, n].into()
}

fn vs(n: u8) -> VsKey {
    VsKey { protocol: Protocol::Tcp, addr: ip(n), port: 80 }
}

fn refused() -> Outcome {
    Outcome::Failed(OpError::plain(Cause::InvalidArgument, "no"))
}

/// A sync of these ops with these outcomes.
fn pass(retries: &mut Retries, ops: &[(Op, Outcome)], now: Duration) -> Changes {
    let (mut keys, mut pending) = (Changes::default(), Changes::default());
    retries.begin(now, &mut keys);
    ops.iter().for_each(|(op, _)| keys.add_op(op));
    let plan = Plan { ops: ops.iter().map(|(op, _)| op.clone()).collect(), priority: 0 };
    retries.expedite(&plan);
    let report = Report { outcomes: ops.iter().map(|(_, outcome)| outcome.clone()).collect() };
    retries.record(&keys, &plan, &report, now, &mut pending);
    pending
}

#[test]
fn pauses_double_to_half_a_minute_and_differ_between_agents() {
    let op = Op::Bind(ip(1));
    let mut firsts = BTreeSet::new();
    for seed in 0..50 {
        let (mut retries, mut now, mut pauses) = (Retries::new(seed), s(5), Vec::new());
        for _ in 0..12 {
            let _ = pass(&mut retries, &[(op.clone(), refused())], now);
            let next = retries.next_at().unwrap();
            pauses.push((next - now).as_millis());
            assert!(retries.holds(&op, next - ms(1)).is_some() && retries.holds(&op, next).is_none());
            now = next;
        }
        for (i, pause) in pauses.iter().enumerate().take(7) {
            let least = 250 << i;
            assert!((least..=least * 5 / 4).contains(pause), "{pauses:?}");
        }
        assert!(pauses.iter().all(|pause| *pause <= 30_000) && pauses[11] >= 24_000, "{pauses:?}");
        firsts.insert(pauses[0]);
    }
    assert!(firsts.len() > 10, "{firsts:?}");
}

#[test]
fn failures_of_one_sync_are_retried_together() {
    let mut retries = Retries::new(7);
    let ops: Vec<(Op, Outcome)> = (1..=3).map(|n| (Op::Bind(ip(n)), refused())).collect();
    let _ = pass(&mut retries, &ops, s(1));
    let mut keys = Changes::default();
    assert!(!retries.begin(s(1) + ms(200), &mut keys) && keys.is_empty());
    // Another change meanwhile neither retries nor delays them.
    let next = retries.next_at().unwrap();
    assert!(pass(&mut retries, &[(Op::Bind(ip(9)), Outcome::Done)], s(1) + ms(200)).is_empty());
    assert_eq!(retries.next_at(), Some(next));
    assert!(retries.begin(next, &mut keys));
    assert_eq!(keys.addresses.len(), 3);
}

#[test]
fn another_op_than_the_failed_one_is_retried_soon() {
    let mut retries = Retries::new(7);
    let rs = RsKey { addr: ip(5), port: 80 };
    let mut now = s(1);
    for _ in 0..8 {
        let _ = pass(&mut retries, &[(Op::AddRealServer(vs(1), rs, RsState::USUAL), refused())], now);
        now = retries.next_at().unwrap();
    }
    let _ = pass(&mut retries, &[(Op::AddRealServer(vs(1), rs, RsState::USUAL), refused())], now);
    assert!(retries.next_at().unwrap() > now + s(20));
    let removal = Op::RemoveRealServer(vs(1), rs);
    let _ = pass(&mut retries, &[(removal.clone(), Outcome::Waiting)], now + ms(100));
    assert_eq!(retries.next_at(), Some(now + MIN_BACKOFF));
    assert!(retries.holds(&removal, now + MIN_BACKOFF).is_none());
}

#[test]
fn a_blocked_subject_is_retried_with_its_cause_or_when_the_cause_is_repaired() {
    let mut retries = Retries::new(7);
    let ops = [
        (
            Op::AddVirtualServer(
                vs(1),
                crate::core::model::VsSpec { scheduler: "rr".into(), flags: 0, timeout: 0 },
            ),
            refused(),
        ),
        (Op::Bind(ip(1)), Outcome::Blocked(Subject::VirtualServer(vs(1)))),
    ];
    assert!(pass(&mut retries, &ops, s(1)).is_empty(), "no retry before its time");
    let mut keys = Changes::default();
    assert!(retries.begin(s(2), &mut keys));
    assert!(keys.virtual_servers.contains(&vs(1)) && keys.addresses.contains(&ip(1)));
    // Another sync repairs the cause: the next sync compares the blocked subject.
    let mut retries = Retries::new(7);
    let _ = pass(&mut retries, &ops, s(1));
    let done = [(ops[0].0.clone(), Outcome::Done)];
    let pending = pass(&mut retries, &done, s(1) + ms(10));
    assert!(pending.addresses.contains(&ip(1)));
    assert!(retries.is_empty());
}

#[test]
fn a_chain_of_blocked_subjects_is_retried_at_once() {
    use crate::core::model::sets::SetKind;
    let set = crate::core::model::sets::SetId { kind: SetKind::LoopBack, family: Family::V4 };
    let rules = Op::WriteRules(Box::new(crate::core::plan::op::RulesOp {
        family: Family::V4,
        chains: Default::default(),
        jumps: Vec::new(),
        tidy: false,
        is_takeover: false,
    }));
    let ops = [
        (Op::CreateSet(set), refused()),
        (rules, Outcome::Blocked(Subject::Set(set))),
        (Op::Bind(ip(1)), Outcome::Blocked(Subject::Rules(Family::V4))),
    ];
    let mut retries = Retries::new(7);
    assert!(pass(&mut retries, &ops, s(1)).is_empty(), "no sync follows by itself");
    assert!(!retries.guard_is_ready(Family::V4, &|_| true) && retries.guard_is_ready(Family::V6, &|_| true));
    assert_eq!(retries.tries(&Subject::Address(ip(1))), 1);
    let counts = retries.counts();
    assert_eq!(counts[&(SubjectKind::Set, Cause::InvalidArgument)], 1);
    assert_eq!(counts[&(SubjectKind::Address, Cause::Blocked)], 1);
    let mut keys = Changes::default();
    assert!(retries.begin(s(2), &mut keys) && keys.common && keys.addresses.contains(&ip(1)));
}

#[test]
fn failures_of_unwanted_subjects_end() {
    let mut retries = Retries::new(7);
    let _ = pass(&mut retries, &[(Op::Bind(ip(1)), refused())], s(1));
    assert_eq!(retries.take_news().began.len(), 1);
    // Its Service is gone: the plan has no op for it.
    let (mut keys, mut pending) = (Changes::default(), Changes::default());
    keys.addresses.insert(ip(1));
    retries.record(&keys, &Plan::default(), &Report::default(), s(1), &mut pending);
    assert!(retries.is_empty() && pending.is_empty());
    assert_eq!(retries.take_news().ended.len(), 1);
}

#[test]
fn many_failures_are_retried_in_batches() {
    let mut retries = Retries::new(7);
    let ops: Vec<(Op, Outcome)> =
        (0..1200u16).map(|n| (Op::Bind([10, 97, (n >> 8) as u8, n as u8].into()), refused())).collect();
    let _ = pass(&mut retries, &ops, s(1));
    let mut sizes = Vec::new();
    for n in 0..4 {
        let mut keys = Changes::default();
        retries.begin(s(2) + ms(n), &mut keys);
        sizes.push(keys.addresses.len());
    }
    assert_eq!(sizes, [512, 512, 176, 0]);
}

#[test]
fn a_running_program_holds_its_subject_back_until_it_ends() {
    let rules = |tidy| {
        Op::WriteRules(Box::new(crate::core::plan::op::RulesOp {
            family: Family::V6,
            chains: Default::default(),
            jumps: Vec::new(),
            tidy,
            is_takeover: false,
        }))
    };
    let subject = Subject::Rules(Family::V6);
    let mut retries = Retries::new(7);
    let ops = [(rules(false), Outcome::Started), (Op::Bind(ip(1)), Outcome::Blocked(subject))];
    let _ = pass(&mut retries, &ops, s(1));
    assert!(retries.is_running() && !retries.guard_is_ready(Family::V6, &|_| true));
    assert_eq!(retries.holds(&rules(true), s(100)), Some(true));
    assert!(retries.counts().is_empty(), "a running op has not failed");
    let (mut keys, error) = (Changes::default(), OpError::uncertain(Cause::TimedOut, "killed"));
    assert!(retries.finish(&subject, &Err(error), s(20), &mut keys).is_some());
    assert!(keys.is_empty() && retries.fails(&subject));
    assert_eq!(retries.counts()[&(SubjectKind::Address, Cause::Blocked)], 1);
    let mut due = Changes::default();
    assert!(retries.begin(s(21), &mut due) && due.addresses.contains(&ip(1)));
    let ops = [(rules(false), Outcome::Started), (Op::Bind(ip(1)), Outcome::Blocked(subject))];
    let plan = Plan { ops: ops.iter().map(|(op, _)| op.clone()).collect(), priority: 0 };
    let report = Report { outcomes: ops.iter().map(|(_, outcome)| outcome.clone()).collect() };
    retries.record(&due, &plan, &report, s(21), &mut keys);
    assert!(retries.finish(&subject, &Ok(()), s(22), &mut keys).is_some());
    assert!(keys.addresses.contains(&ip(1)) && retries.is_empty());
    assert!(retries.finish(&subject, &Ok(()), s(22), &mut keys).is_none(), "once");
}

#[test]
fn reads_are_retried_independently() {
    let part = Part::Rules(Family::V6);
    let error = OpError::plain(Cause::ProgramFailed, "no luck");
    let mut retries = Retries::new(7);
    let mut tries = 0;
    let mut now = Duration::ZERO;
    while now < s(300) {
        retries.fail_reading(part, &error, now);
        tries += 1;
        now = retries.next_at().unwrap();
        assert_eq!(retries.due_readings(now), [part]);
        assert_eq!(retries.due_readings(now), [], "it is being read");
    }
    assert!((14..20).contains(&tries), "{tries} in five minutes");
    let mut keys = Changes::default();
    retries.read(part, &mut keys);
    assert!(retries.is_empty());
}

#[test]
fn began_and_ended_failures_are_reported_once() {
    let mut retries = Retries::new(7);
    let op = Op::Bind(ip(1));
    let fail = |retries: &mut Retries, outcome: Outcome, now| {
        let _ = pass(retries, &[(op.clone(), outcome)], now);
        retries.take_news()
    };
    assert_eq!(fail(&mut retries, refused(), s(1)).began.len(), 1);
    assert!(fail(&mut retries, refused(), s(40)).is_empty());
    let other = Outcome::Failed(OpError::plain(Cause::NotPermitted, "other"));
    assert_eq!(fail(&mut retries, other, s(80)).began.len(), 1, "another cause");
    let news = fail(&mut retries, Outcome::Done, s(120));
    assert_eq!((news.ended.len(), news.ended[0].1.tries, news.ended[0].1.since), (1, 3, s(1)));
    assert!(retries.is_empty());
}

#[test]
fn subjects_that_block_each_other_do_not_loop() {
    let mut retries = Retries::default();
    let blocked = |cause: Subject| Outcome::Blocked(cause);
    let address = Op::Bind(ip(1));
    let server = Op::AddRealServer(vs(1), RsKey { addr: ip(9), port: 80 }, RsState::USUAL);
    let ops = [(address.clone(), blocked(server.subject())), (server.clone(), blocked(address.subject()))];
    let _ = pass(&mut retries, &ops, s(1));
    assert_eq!((retries.tries(&address.subject()), retries.tries(&server.subject())), (0, 0));
}
