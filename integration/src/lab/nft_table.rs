// SPDX-License-Identifier: Apache-2.0
//! The tables of rules mode `nftables`, read by nft(8).

use anyhow::{Context, Result};
use serde_json::Value;

use super::netns::Netns;

const TABLE: &str = "kube-ipvs";

/// The sets in the place of ipsets, as lines of `ipset save`.
///
/// # Errors
/// When `nft` fails.
pub fn sets(ns: &Netns) -> Result<String> {
    Ok(save(&ruleset(ns)?))
}

/// The rules, and the elements of the sets that have no ipset: a line for each.
///
/// # Errors
/// When `nft` fails.
pub fn rules(ns: &Netns) -> Result<Vec<String>> {
    let (mut lines, mut members) = (Vec::new(), Vec::new());
    for object in ruleset(ns)?["nftables"].as_array().into_iter().flatten() {
        let (rule, set) = (&object["rule"], &object["set"]);
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        if rule["table"] == TABLE {
            lines.push(format!("{} {}: {}", text(&rule["family"]), text(&rule["chain"]), rule["expr"]));
        }
        let name = text(&set["name"]);
        if set["table"] == TABLE && !name.starts_with("KUBE-") {
            let elements = set["elem"].as_array().into_iter().flatten();
            members.extend(elements.map(|element| format!("{} @{name}: {element}", text(&set["family"]))));
        }
    }
    // The order of rules in a chain counts. That of tables is that of their creation, and that of elements is that of a
    // hash table.
    lines.sort_by_key(|line: &String| line.split(": ").next().map(str::to_owned));
    members.sort();
    lines.extend(members);
    Ok(lines)
}

fn ruleset(ns: &Netns) -> Result<Value> {
    let output = ns.exec(&["nft", "-j", "list", "ruleset"])?.stdout;
    serde_json::from_str(&output).context("the output of nft -j")
}

fn save(ruleset: &Value) -> String {
    let mut text = String::new();
    let objects = ruleset["nftables"].as_array().into_iter().flatten();
    for set in objects.map(|object| &object["set"]).filter(|set| set["table"] == TABLE) {
        let name = set["name"].as_str().unwrap_or_default();
        if !name.starts_with("KUBE-") {
            continue;
        }
        let fields = set["type"].as_array().map_or(1, Vec::len);
        let family = if set["family"] == "ip6" { "inet6" } else { "inet" };
        let kind = match fields {
            1 if set["type"] == "inet_service" => "bitmap:port range 0-65535".to_owned(),
            1 => format!("hash:ip family {family}"),
            3 => format!("hash:ip,port family {family}"),
            4 => format!("hash:ip,port,ip family {family}"),
            _ => format!("hash:ip,port,net family {family}"),
        };
        text.push_str(&format!("create {name} {kind}\n"));
        for element in set["elem"].as_array().into_iter().flatten() {
            text.push_str(&format!("add {name} {}\n", entry(element)));
        }
    }
    text
}

/// An element in the notation of ipset: networks of a single address without their length.
fn entry(element: &Value) -> String {
    let word = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let fields: Vec<String> = match element["concat"].as_array() {
        Some(fields) => fields.iter().map(word).collect(),
        None => return word(element),
    };
    match &fields[..] {
        [ip, protocol, port] => format!("{ip},{protocol}:{port}"),
        [ip, protocol, port, other] => format!("{ip},{protocol}:{port},{other}"),
        [ip, protocol, port, net, len] if len == "32" && !net.contains(':') || len == "128" => {
            format!("{ip},{protocol}:{port},{net}")
        }
        [ip, protocol, port, net, len] => format!("{ip},{protocol}:{port},{net}/{len}"),
        other => other.join(","),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn elements_are_those_of_ipset() {
        let set = |name: &str, types: Value, elements: Value| json!({"set": {"family": "ip", "table": "kube-ipvs", "name": name, "type": types, "elem": elements}});
        let concat = |fields: Value| json!([{"concat": fields}]);
        let ruleset = json!({"nftables": [
            {"metainfo": {}},
            set("KUBE-IPVS-IPS", json!("ipv4_addr"), json!(["10.96.0.1"])),
            set("KUBE-NODE-PORT-TCP", json!("inet_service"), json!([30080])),
            set("KUBE-X", json!(["a", "b", "c"]), concat(json!(["10.96.0.1", "tcp", 80]))),
            set("KUBE-Y", json!(["a", "b", "c", "d", "e"]), concat(json!(["10.96.0.1", "tcp", 80, "10.0.0.0", 8]))),
            set("node-addresses", json!("ipv4_addr"), json!(["10.0.0.1"])),
        ]});
        assert_eq!(
            save(&ruleset),
            "create KUBE-IPVS-IPS hash:ip family inet\nadd KUBE-IPVS-IPS 10.96.0.1\n\
             create KUBE-NODE-PORT-TCP bitmap:port range 0-65535\nadd KUBE-NODE-PORT-TCP 30080\n\
             create KUBE-X hash:ip,port family inet\nadd KUBE-X 10.96.0.1,tcp:80\n\
             create KUBE-Y hash:ip,port,net family inet\nadd KUBE-Y 10.96.0.1,tcp:80,10.0.0.0/8\n"
        );
    }
}
