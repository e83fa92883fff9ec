// SPDX-License-Identifier: Apache-2.0
//! The normal form of tool output, equal for equal states of the kernel.
//!
//! It ignores counters, set sizes, hash seeds, and the order of virtual servers, real servers and chains. It keeps the
//! order of rules within a chain.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::Subsystem;

/// The normal form of `raw`.
pub fn normal(subsystem: Subsystem, raw: &str) -> String {
    match subsystem {
        Subsystem::Ipvs => ipvs(raw),
        Subsystem::Addrs => addrs(raw),
        Subsystem::Link => link(raw),
        Subsystem::Ipset => ipset(raw),
        Subsystem::Iptables | Subsystem::Ip6tables => iptables(raw),
        Subsystem::Timeouts => timeouts(raw),
        Subsystem::Sysctl => sysctl(raw),
        Subsystem::Health => health(raw),
    }
}

fn lines_to_text<T: AsRef<str>>(lines: impl IntoIterator<Item = T>) -> String {
    let mut text = String::new();
    for line in lines {
        text.push_str(line.as_ref());
        text.push('\n');
    }
    // An empty state is an empty line, as in the recordings.
    if text.is_empty() { "\n".into() } else { text }
}

fn ipvs(raw: &str) -> String {
    let mut blocks: Vec<(&str, Vec<&str>)> = Vec::new();
    for line in raw.lines().map(str::trim) {
        if line.starts_with("-A") {
            blocks.push((line, Vec::new()));
        } else if line.starts_with("-a")
            && let Some((_, servers)) = blocks.last_mut()
        {
            servers.push(line);
        }
    }
    blocks.sort();
    lines_to_text(blocks.into_iter().flat_map(|(service, mut servers)| {
        servers.sort_unstable();
        std::iter::once(service).chain(servers)
    }))
}

fn addrs(raw: &str) -> String {
    let mut out: Vec<String> = raw.lines().filter_map(address).collect();
    out.sort();
    lines_to_text(out)
}

/// `inet 10.96.0.1/32 global` of a line of `ip -o addr`.
fn address(line: &str) -> Option<String> {
    let mut words = line.split_whitespace();
    let family = words.find(|word| *word == "inet" || *word == "inet6")?;
    let address = words.next()?;
    words.find(|word| *word == "scope")?;
    Some(format!("{family} {address} {}", words.next()?))
}

fn link(raw: &str) -> String {
    let Some((_, rest)) = raw.split_once("kube-ipvs0: <") else { return "absent\n".into() };
    let Some((flags, rest)) = rest.split_once('>') else { return "absent\n".into() };
    let first_line = rest.lines().next().unwrap_or_default();
    let mut words = first_line.split_whitespace();
    let Some(state) = words.find(|word| *word == "state").and_then(|_| words.next()) else {
        return "absent\n".into();
    };
    let flags: BTreeSet<&str> = flags.split(',').collect();
    let flags: Vec<&str> = flags.into_iter().collect();
    let dummy = raw
        .lines()
        .any(|line| line.starts_with(char::is_whitespace) && line.split_whitespace().next() == Some("dummy"));
    let kind = if dummy { "dummy" } else { "?" };
    format!("flags {} state {state} kind {kind}\n", flags.join(","))
}

fn ipset(raw: &str) -> String {
    let (mut sets, mut entries) = (Vec::new(), Vec::new());
    for line in raw.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [verb, name, third, ..] = words[..] else { continue };
        if !name.starts_with("KUBE") {
            continue;
        }
        let after = |key| words.iter().skip_while(|word| **word != key).nth(1);
        match verb {
            "create" => {
                let shape = after("family").or_else(|| after("range")).copied().unwrap_or_default();
                sets.push(format!("create {name} {third} {shape}"));
            }
            "add" => entries.push(format!("add {name} {third}")),
            _ => {}
        }
    }
    sets.sort();
    entries.sort();
    lines_to_text(sets.into_iter().chain(entries))
}

/// One table of rules during normalization.
#[derive(Default)]
struct Table<'a> {
    name: &'a str,
    chains: Vec<&'a str>,
    rules: BTreeMap<&'a str, Vec<&'a str>>,
}

impl<'a> Table<'a> {
    fn close(mut self, out: &mut Vec<String>) {
        if self.name.is_empty() || (self.chains.is_empty() && self.rules.is_empty()) {
            return;
        }
        self.chains.sort_unstable();
        out.push(format!("*{}", self.name));
        out.extend(self.chains.iter().map(|chain| format!(":{chain}")));
        out.extend(self.rules.into_values().flatten().map(str::to_owned));
    }
}

fn iptables(raw: &str) -> String {
    let mut out = Vec::new();
    let mut table = Table::default();
    for line in raw.lines() {
        if let Some(name) = line.strip_prefix('*') {
            std::mem::replace(&mut table, Table { name, ..Table::default() }).close(&mut out);
        } else if let Some(chain) = line.strip_prefix(':') {
            let chain = chain.split_whitespace().next().unwrap_or_default();
            if chain.starts_with("KUBE-") {
                table.chains.push(chain);
            }
        } else if line.starts_with("-A") {
            let chain = line.split_whitespace().nth(1).unwrap_or_default();
            if chain.starts_with("KUBE-") || line.contains("-j KUBE-") {
                table.rules.entry(chain).or_default().push(line.trim());
            }
        }
    }
    table.close(&mut out);
    lines_to_text(out)
}

fn timeouts(raw: &str) -> String {
    let found = raw.lines().find_map(|line| line.split_once("Timeout (tcp tcpfin udp): "));
    format!("{}\n", found.map_or("?", |(_, values)| values.trim()))
}

fn sysctl(raw: &str) -> String {
    let setting = |line: &str| {
        let (name, value) = line.trim().split_once('=')?;
        Some(format!("{} = {}", name.trim_end(), value.trim_start()))
    };
    let mut out: Vec<String> = raw.lines().filter_map(setting).collect();
    out.sort();
    lines_to_text(out)
}

fn health(raw: &str) -> String {
    let mut out: Vec<String> = raw.split("## ").skip(1).map(health_answer).collect();
    out.sort();
    lines_to_text(out)
}

/// `PORT/PATH CODE BODY[ weight=N]` of one HTTP answer.
fn health_answer(part: &str) -> String {
    let (place, rest) = part.split_once('\n').unwrap_or((part, ""));
    let code = rest.split_once("HTTP/").and_then(|(_, status)| status.split_whitespace().nth(1));
    let body = rest.find('{').and_then(|from| Some(&rest[from..=rest.rfind('}').filter(|to| *to > from)?]));
    let body = body.map_or(String::new(), |body| match serde_json::from_str(body) {
        Ok(value) => python_json(&value),
        Err(_) => "not json".into(),
    });
    let weight = rest.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        let ours = name.eq_ignore_ascii_case("x-load-balancing-endpoint-weight");
        ours.then(|| format!(" weight={}", value.trim()))
    });
    format!("{place} {} {body}{}", code.unwrap_or("no answer"), weight.unwrap_or_default())
}

/// JSON with sorted keys, formatted as Python does, without timestamps, as in the recordings.
fn python_json(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let sorted: BTreeMap<&String, &Value> =
                map.iter().filter(|(key, _)| *key != "lastUpdated" && *key != "currentTime").collect();
            let members: Vec<String> = sorted
                .into_iter()
                .map(|(key, value)| format!("{}: {}", Value::from(key.as_str()), python_json(value)))
                .collect();
            format!("{{{}}}", members.join(", "))
        }
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(python_json).collect();
            format!("[{}]", items.join(", "))
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
#[path = "normal_tests.rs"]
mod tests;
