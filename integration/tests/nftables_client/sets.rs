// SPDX-License-Identifier: Apache-2.0
//! Sets: plain, of intervals, of concatenated intervals, and large ones.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use nftables_netlink::*;
use serde_json::json;

use super::{TABLE, commit, in_netns, listed};

const FAMILY: Family = Family::Ipv4;
const KEY: [KeyField; 3] = [KeyField::Ipv4Addr, KeyField::InetProto, KeyField::InetService];

fn add(set: &str, elements: Vec<Element>) -> Command {
    Command::AddElements { family: FAMILY, table: TABLE.to_owned(), set: set.to_owned(), elements }
}

fn delete(set: &str, elements: Vec<Element>) -> Command {
    Command::DeleteElements { family: FAMILY, table: TABLE.to_owned(), set: set.to_owned(), elements }
}

fn flush(set: &str) -> Command {
    Command::FlushSet { family: FAMILY, table: TABLE.to_owned(), set: set.to_owned() }
}

fn read(client: &mut Client, set: &str) -> BTreeSet<Element> {
    let elements = client.elements(FAMILY, TABLE, set).unwrap();
    let count = elements.len();
    let elements: BTreeSet<Element> = elements.into_iter().collect();
    assert_eq!(elements.len(), count, "an element came twice");
    elements
}

fn service(addr: [u8; 4], port: u16) -> Element {
    Element::new(Key::new().addr(addr).proto(6).port(port))
}

#[test]
fn sets_are_read_as_they_were_written() {
    in_netns(|ns, client| {
        let mut sized = Set::new(FAMILY, TABLE, "sized", &KEY);
        sized.size = Some(3);
        let elements = vec![service([10, 0, 0, 1], 80), service([10, 0, 0, 2], 443)];
        let sets = [
            Set::new(FAMILY, TABLE, "ports", &[KeyField::InetService]),
            Set::intervals(FAMILY, TABLE, "networks", &[KeyField::Ipv4Addr]),
            sized,
        ];
        commit(client, FAMILY, sets.iter().cloned().map(Command::CreateSet));
        commit(client, FAMILY, [add("sized", elements.clone())]);
        let mut found = client.sets(Scope::Table(FAMILY, TABLE)).unwrap();
        found.iter_mut().for_each(|set| assert!(set.handle.take().is_some()));
        assert_eq!(found, sets);
        assert_eq!(read(client, "sized"), elements.iter().cloned().collect());
        let shown = listed(ns, "set");
        assert_eq!(shown[2]["type"], json!(["ipv4_addr", "inet_proto", "inet_service"]));
        let mut elems = shown[2]["elem"].as_array().unwrap().clone();
        elems.sort_by_key(ToString::to_string);
        assert_eq!(
            elems,
            [json!({"concat": ["10.0.0.1", "tcp", 80]}), json!({"concat": ["10.0.0.2", "tcp", 443]})]
        );
        // Existing elements may be added again, and one may be removed.
        commit(client, FAMILY, [add("sized", elements.clone()), delete("sized", elements[..1].to_vec())]);
        assert_eq!(read(client, "sized"), elements[1..].iter().cloned().collect());
        commit(client, FAMILY, [flush("sized")]);
        assert!(read(client, "sized").is_empty());
        let gone = Command::DeleteSet { family: FAMILY, table: TABLE.to_owned(), set: "sized".to_owned() };
        commit(client, FAMILY, [gone]);
        assert!(matches!(client.elements(FAMILY, TABLE, "sized"), Err(Error::Refused(_))));
        assert!(client.sets(Scope::Table(FAMILY, "none")).unwrap().is_empty());
    });
}

#[test]
fn intervals_with_one_field() {
    in_netns(|ns, client| {
        let ten = Element::interval([10, 0, 0, 0], Some(vec![11, 0, 0, 0]));
        let last = Element::interval([240, 0, 0, 0], None);
        let elements: Vec<Element> = ten.chain(last).collect();
        let set = Command::AddSet(Set::intervals(FAMILY, TABLE, "networks", &[KeyField::Ipv4Addr]));
        commit(client, FAMILY, [set, add("networks", elements.clone())]);
        assert_eq!(read(client, "networks"), elements.into_iter().collect());
        let prefix = |addr: &str, len: u8| json!({"prefix": {"addr": addr, "len": len}});
        assert_eq!(listed(ns, "set")[0]["elem"], json!([prefix("10.0.0.0", 8), prefix("240.0.0.0", 4)]));
    });
}

#[test]
fn concatenated_intervals() {
    in_netns(|ns, client| {
        let key = [KeyField::Ipv4Addr, KeyField::InetProto, KeyField::InetService, KeyField::Ipv4Addr];
        let bound =
            |service: [u8; 4], source: [u8; 4]| Key::new().addr(service).proto(6).port(80).addr(source);
        let elements: Vec<Element> = (0..200u8)
            .map(|n| {
                Element::range(
                    bound([10, 0, 0, n], [192, 168, n, 0]),
                    bound([10, 0, 0, n], [192, 168, n, 255]),
                )
            })
            .collect();
        let set = Set::intervals(FAMILY, TABLE, "sources", &key);
        commit(client, FAMILY, [Command::AddSet(set.clone()), add("sources", elements.clone())]);
        let found = client.sets(Scope::Table(FAMILY, TABLE)).unwrap();
        assert_eq!((found[0].flags, &found[0].fields), (set.flags, &set.fields));
        assert_eq!(read(client, "sources"), elements.iter().cloned().collect());
        let shown = listed(ns, "set")[0]["elem"].as_array().unwrap().clone();
        let seven =
            json!({"concat": ["10.0.0.7", "tcp", 80, {"prefix": {"addr": "192.168.7.0", "len": 24}}]});
        assert!(shown.len() == 200 && shown.contains(&seven), "{shown:?}");
        let inside =
            ["nft", "get", "element", "ip", TABLE, "sources", "{ 10.0.0.7 . tcp . 80 . 192.168.7.9 }"];
        assert!(ns.try_exec(&inside, None).unwrap().status.success());
        commit(client, FAMILY, [delete("sources", elements[7..8].to_vec())]);
        assert!(!ns.try_exec(&inside, None).unwrap().status.success());
        assert_eq!(read(client, "sources").len(), 199);
    });
}

#[test]
fn a_hundred_thousand_elements_in_one_transaction() {
    in_netns(|ns, client| {
        const COUNT: u32 = 100_000;
        let elements: Vec<Element> = (0..COUNT)
            .map(|n| {
                let addr = Ipv4Addr::from(0x0a00_0000 + n / 4);
                Element::new(Key::new().addr(addr).proto(6).port(u16::try_from(n % 4).unwrap()))
            })
            .collect();
        let mut set = Set::new(FAMILY, TABLE, "vips", &KEY);
        set.size = Some(COUNT);
        let before = client.counters();
        commit(client, FAMILY, [Command::AddSet(set), add("vips", elements.clone())]);
        let after = client.counters();
        assert_eq!(after.sends - before.sends, 1, "{} bytes", after.bytes_sent - before.bytes_sent);
        assert_eq!(read(client, "vips"), elements.iter().cloned().collect());
        let one = ["nft", "get", "element", "ip", TABLE, "vips", "{ 10.0.0.1 . tcp . 2 }"];
        assert!(ns.try_exec(&one, None).unwrap().status.success());
        // All but a few are removed, and the set is full again.
        commit(client, FAMILY, [delete("vips", elements[5..].to_vec())]);
        assert_eq!(read(client, "vips"), elements[..5].iter().cloned().collect());
        commit(client, FAMILY, [add("vips", elements[5..].to_vec())]);
        let more = [add("vips", vec![service([1, 1, 1, 1], 1)])].into_iter().collect();
        let error = client.commit(&more).unwrap_err();
        assert!(
            matches!(&error, CommitError::Refused { commands, .. } if commands[0].refusal.errno() == netlink_batch::Errno::ENFILE),
            "{error}"
        );
    });
}
