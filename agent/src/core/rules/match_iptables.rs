// SPDX-License-Identifier: Apache-2.0
//! Whether a rule of iptables, as `iptables-save` prints it, matches the first packet of a connection, and what it does.

use std::iter::Peekable;
use std::net::IpAddr;

use ipnet::IpNet;

use super::match_nft::entry;
use super::walk::{Fate, Packet, RuleEffect, RuleFacts, has_range};
use crate::core::model::sets::{SetId, SetType};

/// What the rule does if it matches. A rule that is not understood has an unknown effect.
pub(super) fn effect(rule: &str, packet: &Packet, facts: &dyn RuleFacts) -> Option<RuleEffect> {
    let words = split(rule);
    let mut words = words.iter().map(String::as_str).peekable();
    let mut all = true;
    while let Some(word) = words.next() {
        let negated = word == "!";
        let word = if negated { words.next().unwrap_or_default() } else { word };
        let holds = match word {
            "-m" => {
                words.next();
                continue;
            }
            "--comment" => {
                words.next();
                continue;
            }
            "-j" => {
                let effect = target(&mut words, packet);
                return all.then_some(effect);
            }
            _ => holds(word, &mut words, packet, facts),
        };
        match holds {
            Some(holds) => all &= holds != negated,
            None => return Some(RuleEffect::Unknown),
        }
    }
    Some(RuleEffect::Unknown)
}

/// Whether a condition holds; `None`: not understood.
fn holds<'a>(
    word: &str,
    words: &mut Peekable<impl Iterator<Item = &'a str>>,
    packet: &Packet,
    facts: &dyn RuleFacts,
) -> Option<bool> {
    if word == "--physdev-is-in" {
        // Our packets come in by no bridge port that netfilter shows.
        return Some(false);
    }
    let value = words.next()?;
    Some(match word {
        "-s" => network(value)?.contains(&packet.source),
        "-d" => network(value)?.contains(&packet.destination),
        "-p" => packet.protocol.lower() == value,
        "-i" => packet.input.as_deref().is_some_and(|input| match value.strip_suffix('+') {
            Some(prefix) => input.starts_with(prefix),
            None => input == value,
        }),
        "--match-set" => is_member(value, words.next()?, packet, facts)?,
        "--mark" => {
            let (mark, mask) = value.split_once('/')?;
            packet.mark & number(mask)? == number(mark)?
        }
        "--ctstate" => value.split(',').any(|state| state == "NEW"),
        "--dst-type" if value == "LOCAL" => facts.is_local(packet.destination),
        "--src-type" if value == "LOCAL" => facts.is_local(packet.source),
        "--vproto" => packet.protocol.number().to_string() == value,
        "--vaddr" => network(value)?.contains(&packet.destination),
        "--vport" => packet.port.to_string() == value,
        _ => return None,
    })
}

fn is_member(name: &str, fields: &str, packet: &Packet, facts: &dyn RuleFacts) -> Option<bool> {
    let set = SetId::from_name(name)?;
    if set.kind.set_type() == SetType::HashIpPortNet {
        return Some(has_range(facts, set, packet));
    }
    let first = if fields.starts_with("src") { packet.source } else { packet.destination };
    Some(facts.has_entry(set, &entry(set, first, packet)))
}

fn target<'a>(words: &mut Peekable<impl Iterator<Item = &'a str>>, packet: &Packet) -> RuleEffect {
    match words.next() {
        Some("ACCEPT") => RuleEffect::End(Fate::Accepted),
        Some("DROP") => RuleEffect::End(Fate::Dropped),
        Some("REJECT") => RuleEffect::End(Fate::Rejected),
        Some("MASQUERADE") => RuleEffect::End(Fate::Masqueraded),
        Some("RETURN") => RuleEffect::Return,
        Some("MARK") => {
            let change = words.next().filter(|word| *word == "--set-xmark").and_then(|_| words.next());
            let change = change.and_then(|text| text.split_once('/'));
            match change.and_then(|(value, mask)| Some((number(value)?, number(mask)?))) {
                // `(mark & ~mask) ^ value`, xt_mark(8).
                Some((value, mask)) => RuleEffect::Mark((packet.mark & !mask) ^ value),
                None => RuleEffect::Unknown,
            }
        }
        Some(chain) if chain.starts_with("KUBE-") => RuleEffect::Jump(chain.to_owned()),
        _ => RuleEffect::Unknown,
    }
}

fn network(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

fn number(text: &str) -> Option<u32> {
    match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

/// The words of a rule; quotes keep a comment together.
fn split(rule: &str) -> Vec<String> {
    let (mut words, mut word, mut quoted, mut escaped) = (Vec::new(), String::new(), false, false);
    for letter in rule.chars() {
        match letter {
            _ if escaped => {
                word.push(letter);
                escaped = false;
            }
            '\\' => escaped = true,
            '"' => quoted = !quoted,
            ' ' if !quoted => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
            }
            _ => word.push(letter),
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}
