// SPDX-License-Identifier: Apache-2.0
//! Text that no message may contain: internals of libraries or of the language, a second line, repeated text.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use kube_ipvs::log::render_text;
use tracing_subscriber::layer::{Context, Layer};

/// Text of libraries and of the language that means nothing to an operator.
const INTERNALS: &[&str] = &[
    "Status {",
    "(os error",
    "out of range integral",
    "use from_",
    "ApiError",
    "HyperError",
    "Some(",
    "Ok(",
    "Err(",
    "None,",
    "invalid type",
    "expected u8",
    "expected u16",
    "expected u32",
    "expected i32",
    "expected struct",
    "missing field",
    "unknown variant",
    "Elapsed",
    "ErrorResponse",
    "ConnectError",
    "hyper::",
    "hyper_util",
    "serde",
    "kube_ipvs::",
    "kube_client",
    "std::",
    "RecvError",
    "SendError",
    "panicked at",
    "tcp connect error",
    "Utf8Error",
    "ParseIntError",
    "invalid digit found in string",
    "deadline has elapsed",
    "\\n",
    "Duration",
    "IpAddr",
    "\u{1b}",
];

/// A part of a line of this length may not be repeated.
const REPEATED: usize = 24;

/// The problem of a message, if any.
pub fn complaint(message: &str) -> Option<String> {
    if let Some(internal) = INTERNALS.iter().find(|internal| message.contains(**internal)) {
        return Some(format!("says {internal:?}"));
    }
    if message.trim_end().contains('\n') {
        return Some("has more than one line".to_owned());
    }
    let mut seen = BTreeMap::new();
    let sentences =
        message.split("; ").flat_map(|part| part.split(": ")).flat_map(|part| part.split(['(', ')']));
    let mut parts = sentences.map(str::trim).filter(|part| part.len() >= REPEATED);
    let twice = parts.find(|part| seen.insert(*part, ()).is_some());
    twice.map(|part| format!("says {part:?} twice"))
}

/// The wrong lines in the log of an agent. Lines of level 4 and more are for developers.
pub fn complaints(log: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut for_operators = false;
    for line in log.lines() {
        let level = ["INFO", "WARN", "ERROR", "DEBUG", "TRACE"].into_iter().find(|level| starts(line, level));
        match level {
            Some(level) => for_operators = !matches!(level, "DEBUG" | "TRACE"),
            // Output of a wrapper or of a program of the node is not a message of the agent.
            None if for_operators && line.starts_with(' ') => {
                wrong.push(format!("has a second line: {line}"))
            }
            None => {}
        }
        if for_operators && let Some(complaint) = complaint(line) {
            wrong.push(format!("{complaint}: {line}"));
        }
    }
    wrong
}

/// Whether the line begins with a time and this level.
fn starts(line: &str, level: &str) -> bool {
    let mut words = line.split_whitespace();
    words.next().is_some_and(|time| time.contains('T') && time.ends_with('Z')) && words.next() == Some(level)
}

/// Keeps the messages of all events that are wrong.
#[derive(Clone, Debug, Default)]
pub struct Reader {
    wrong: Arc<Mutex<Vec<String>>>,
    read: Arc<Mutex<usize>>,
}

impl Reader {
    /// The wrong messages so far.
    pub fn wrong(&self) -> Vec<String> {
        self.wrong.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Number of messages.
    pub fn read(&self) -> usize {
        *self.read.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: tracing::Subscriber> Layer<S> for Reader {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        if *event.metadata().level() > tracing::Level::INFO {
            return;
        }
        *self.read.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        let message = render_text(event);
        if let Some(complaint) = complaint(&message) {
            let mut wrong = self.wrong.lock().unwrap_or_else(PoisonError::into_inner);
            wrong.push(format!("{complaint}: {message}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use kube_ipvs::config::{Config, ConfigFlags};
    use kube_ipvs::source::decode::decode;
    use kube_ipvs::store::Kind;
    use serde_json::{Value, json};

    use super::*;
    use crate::objects::{ServiceBuilder, config, node, slice};

    #[test]
    fn forbidden_text_in_messages_is_found() {
        for wrong in [
            "cannot list: Status { code: 500 }",
            "cannot bind: address in use (os error 98)",
            "port: out of range integral type conversion attempted",
            "first\nsecond",
            "cannot write the rules of IPv4: failed; cannot write the rules of IPv4: again",
        ] {
            assert!(complaint(wrong).is_some(), "{wrong}");
        }
        assert_eq!(
            complaint("cannot bind 10.96.0.10: IPv6 is disabled; set disable_ipv6 to 0 (3 others wait)"),
            None
        );
        let log = "2026-01-01T00:00:00Z DEBUG plan:\n  Ok(1)\n2026-01-01T00:00:00Z  WARN bad\n  more\n";
        assert_eq!(complaints(log), ["has a second line:   more"]);
    }

    /// Every place in a document.
    fn places(value: &Value, at: &str, all: &mut Vec<String>) {
        all.push(at.to_owned());
        match value {
            Value::Object(fields) => fields.iter().for_each(|(name, field)| {
                let name = name.replace('~', "~0").replace('/', "~1");
                places(field, &format!("{at}/{name}"), all);
            }),
            Value::Array(items) => {
                items.iter().enumerate().for_each(|(n, item)| places(item, &format!("{at}/{n}"), all));
            }
            _ => {}
        }
    }

    /// The document with an invalid value in each place.
    fn spoiled(good: &Value) -> Vec<Value> {
        let bad = [
            json!(null),
            json!(true),
            json!(-1),
            json!(70000),
            json!(1e300),
            json!("~"),
            json!("300.1.1.1"),
            json!(""),
            json!("-5s"),
            json!([]),
            json!([[1]]),
            json!({}),
            json!({"a": {"b": 1}}),
        ];
        let mut all = Vec::new();
        places(good, "", &mut all);
        let mut documents = Vec::new();
        for place in all {
            for bad in &bad {
                let mut document = good.clone();
                if let Some(value) = document.pointer_mut(&place) {
                    *value = bad.clone();
                    documents.push(document);
                }
            }
        }
        documents
    }

    #[test]
    fn messages_about_any_invalid_object_are_readable() {
        let service = ServiceBuilder::new("web", &["10.96.0.10", "fd00:96::10"], &[("http", "TCP", 80)])
            .node_ports(&[30080])
            .external_ips(&["203.0.113.7"])
            .load_balancer(&["203.0.113.9"])
            .external_policy("Local")
            .internal_policy("Local")
            .source_ranges(&["198.18.0.0/15"])
            .health_check_node_port(31000)
            .affinity(600)
            .build();
        let slice = slice("web", &["10.244.1.5@node-a"], &[("http", "TCP", 8080)]);
        let node = node("node-a", &["192.168.50.2"]);
        let mut refused = 0;
        for (kind, good) in [(Kind::Service, service), (Kind::EndpointSlice, slice), (Kind::Node, node)] {
            assert!(decode(kind, &good).is_ok());
            for document in spoiled(&good) {
                if let Err(error) = decode(kind, &document) {
                    refused += 1;
                    assert_eq!(complaint(&error), None, "{error}\n{document}");
                }
            }
        }
        assert!(refused > 100, "only {refused} documents were refused");
    }

    #[test]
    fn messages_about_any_invalid_configuration_are_readable() {
        let more = json!({
            "bindAddress": "0.0.0.0", "healthzBindAddress": "0.0.0.0:10256", "metricsBindAddress": "127.0.0.1:10249",
            "configSyncPeriod": "15m0s", "nodePortAddresses": ["192.168.50.0/24"], "featureGates": {"A": true},
            "clientConnection": {"kubeconfig": "/k", "qps": 5, "burst": 10},
            "iptables": {"masqueradeBit": 14, "masqueradeAll": false, "syncPeriod": "30s"},
            "ipvs": {"scheduler": "rr", "syncPeriod": "30s", "excludeCIDRs": ["10.0.0.0/8"], "strictARP": true,
                     "tcpTimeout": "0s", "tcpFinTimeout": "0s", "udpTimeout": "0s"},
            "kubeIPVS": {"protectedCIDRs": ["10.1.0.0/16"], "configReload": {"mode": "restart", "spread": "60s"}},
        });
        let good = config("node-a", &more);
        assert!(Config::parse(&good.to_string(), &ConfigFlags::default()).is_ok());
        let mut refused = 0;
        let texts = spoiled(&good).into_iter().map(|document| document.to_string());
        let cut = (1..200).map(|length| good.to_string()[..length].to_owned());
        for text in texts.chain(cut) {
            let error = match Config::parse(&text, &ConfigFlags::default()) {
                Err(error) => kube_ipvs::words::chain(&error),
                Ok(_) => continue,
            };
            refused += 1;
            assert_eq!(complaint(&error), None, "{error}\n{text}");
        }
        assert!(refused > 100, "only {refused} documents were refused");
    }
}
