// SPDX-License-Identifier: Apache-2.0
//! The call of the program, configuration, addresses, `iptables-save`, files of `/proc`, and the answer of a running agent.

use std::ffi::OsString;

use super::{Target, text_of};
use crate::cli::entry_call::EntryCall;
use crate::config::duration::GoDuration;
use crate::config::flags::ConfigFlags;
use crate::config::{Config, host};
use crate::core::model::address::{parse_ip, parse_net, parse_socket, useless};
use crate::core::rules::chains::{CHAINS, JUMPS};
use crate::core::rules::removal::{Extent, find_removal, iptables_mode_is_active};
use crate::core::rules::save::{ObservedRules, parse_save};
use crate::inspect::owners::ServiceOwners;
use crate::metrics::process;
use crate::yaml::{self, DuplicateKeyPolicy};

pub(super) const TARGETS: &[Target] = &[
    ("address", address),
    ("config", config),
    ("duration", duration),
    ("entry-call", entry_call),
    ("iptables-save", iptables_save),
    ("owners", owners),
    ("proc", proc_files),
    ("yaml", yaml),
];

/// Addresses, socket addresses and networks are equal after a round trip.
fn address(bytes: &[u8]) {
    let text = text_of(bytes);
    if let Some(ip) = parse_ip(&text) {
        assert_eq!(parse_ip(&ip.to_string()), Some(ip));
        assert_eq!(ip, ip.to_canonical(), "no IPv4-mapped address");
        let _ = useless(ip);
    }
    if let Some(socket) = parse_socket(&text) {
        assert_eq!(parse_socket(&socket.to_string()), Some(socket));
    }
    if let Some(net) = parse_net(&text) {
        assert_eq!(parse_net(&net.to_string()), Some(net));
        assert_eq!(net, net.trunc(), "no host bits");
    }
}

/// A configuration is equal after a round trip.
fn config(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let flags = ConfigFlags::default();
    let Ok(config) = Config::parse(text, &flags) else { return };
    let document = config.values.document();
    let again = Config::parse(&document.to_string(), &flags).unwrap();
    assert_eq!(again.values.document(), document);
    let read = |c: &Config| format!("{:?}", (c.conntrack, c.sync_period, &c.settings));
    assert_eq!(read(&again), read(&config));
    let _ = config.conntrack.sysctls(8);
    assert!(config.values.lines().count() > 0);
}

/// A duration is equal after a round trip.
fn duration(bytes: &[u8]) {
    let Ok(duration) = text_of(bytes).parse::<GoDuration>() else { return };
    assert_eq!(duration.to_string().parse::<GoDuration>().unwrap(), duration);
}

/// A command of a shell is read or refused, and words in quotes are the arguments.
fn entry_call(bytes: &[u8]) {
    let text = text_of(bytes);
    let read = |args: &[&str]| EntryCall::read(args.iter().map(OsString::from), |_| None);
    let _ = read(&["sh", "-c", &text]);
    let words: Vec<&str> = text.split('\0').collect();
    let _ = read(&[&["go-runner"], &words[..]].concat());
    let quoted: String = words.iter().map(|word| format!(" '{}'", word.replace('\'', r"'\''"))).collect();
    let call = read(&["sh", "-c", &format!("kube-proxy --{quoted}")]).unwrap();
    assert!(call.args.iter().skip(2).eq(words.iter()));
}

/// Only our chains are observed, a printed observation is observed again, and only existing rules are removed.
fn iptables_save(bytes: &[u8]) {
    let text = text_of(bytes);
    let observed = parse_save(&text);
    for (table, chain) in observed.chains.keys() {
        assert!(CHAINS.contains(&(*table, chain.as_str())), "{chain} is not ours");
    }
    let again = parse_save(&print(&observed));
    assert_eq!((&again.chains, &again.jumps), (&observed.chains, &observed.jumps));
    let mut fixed = observed.clone();
    fixed.fix_jumps(&observed.broken_jumps());
    assert!(fixed.broken_jumps().is_empty());
    for extent in [Extent::OtherModes, Extent::Ours, Extent::OursAlone, Extent::EveryMode] {
        let removal = find_removal(&text, extent);
        for (table, of_table) in &removal.tables {
            assert!(text.contains(&format!("*{table}")));
            assert!(of_table.chains.iter().all(|chain| text.contains(&format!(":{chain}"))));
            assert!(of_table.rules.iter().all(|(chain, rule)| text.contains(&format!("-A {chain} {rule}"))));
        }
        assert!(removal.render().len() <= 4 * text.len() + 64 * removal.tables.len());
    }
    let _ = iptables_mode_is_active(&text);
    let _ = crate::kernel::kernel_inputs::flavour(&text);
}

/// Our rules, as `iptables-save` prints them.
fn print(rules: &ObservedRules) -> String {
    let chains = rules.chains.iter().map(|((table, chain), of_chain)| {
        let lines: String = of_chain.iter().map(|rule| format!("-A {chain} {rule}\n")).collect();
        format!("*{}\n:{chain} - [0:0]\n{lines}COMMIT\n", table.name())
    });
    let jumps = rules.jumps.iter().map(|((table, from), present)| {
        let lines: String = present.iter().map(|i| format!("-A {from} {}\n", JUMPS[*i].spec())).collect();
        format!("*{}\n{lines}COMMIT\n", table.name())
    });
    chains.chain(jumps).collect()
}

/// The last line of a virtual server counts.
fn owners(bytes: &[u8]) {
    let text = text_of(bytes);
    let owners = ServiceOwners::parse(&text);
    for line in text.lines() {
        if let Some((server, _)) = line.rsplit_once(' ') {
            assert!(owners.get(server).is_some_and(|service| text.contains(service)), "{server}");
        }
    }
}

/// Files of `/proc` and `/sys`.
fn proc_files(bytes: &[u8]) {
    let text = text_of(bytes);
    let _ = (host::parse_version(&text), host::parse_cpus(&text));
    let _ = (process::address_space(&text), process::octets(&text));
}

/// Input that is valid when read strictly has the same value when read leniently; an error is one line.
fn yaml(bytes: &[u8]) {
    let text = text_of(bytes);
    let lenient = yaml::read(&text, DuplicateKeyPolicy::LastWins);
    match yaml::read(&text, DuplicateKeyPolicy::Error) {
        Ok(value) => assert_eq!(lenient.as_ref(), Ok(&value)),
        Err(error) => assert!(!error.contains('\n'), "{error}"),
    }
    if let Err(error) = yaml::read_all(&text) {
        assert!(!error.contains('\n'), "{error}");
    }
}
