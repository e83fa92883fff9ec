// SPDX-License-Identifier: Apache-2.0
//! The Services of virtual servers and their settings, as the running agent knows them. The agent answers in pages, so that neither its loop
//! nor its memory feels the question.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::answers::AgentRequest;
use super::filter::Filter;
use super::socket::{AskError, ask};
use crate::core::model::{ObjectName, VsKey};
use crate::core::service::desired::Desired;
use crate::core::service::fragment::VirtualServer;
use crate::store::first_after;

/// Virtual servers of one page.
const PAGE: usize = 1000;

/// Settings of a Service: names of annotations without their prefix, and values.
pub type ChosenSettings = Map<String, Value>;

/// Lines of `PROTO ADDR:PORT NAMESPACE/NAME[:PORT]` in the order of virtual servers.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct OwnersPage {
    pub lines: Vec<String>,
    /// The settings that annotations or defaults choose, for virtual servers (`PROTO ADDR:PORT`) that have some.
    #[serde(default)]
    pub settings: Map<String, Value>,
    /// The last virtual server; `None`: no page follows.
    pub last: Option<VsKey>,
}

/// The virtual servers that a client wants; empty: all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnersOf {
    /// Only Services of this namespace.
    pub namespace: Option<String>,
    /// Only Services of this name.
    pub name: Option<String>,
}

impl OwnersOf {
    fn has(&self, service: &ObjectName) -> bool {
        self.name.as_ref().is_none_or(|name| **name == *service.name)
            && self.namespace.as_ref().is_none_or(|namespace| **namespace == *service.namespace)
    }
}

impl OwnersPage {
    /// The first virtual servers after `after`.
    pub fn build(desired: &Desired, after: Option<VsKey>, of: &OwnersOf) -> Self {
        Self::with_size(desired, after, of, PAGE)
    }

    fn with_size(desired: &Desired, after: Option<VsKey>, of: &OwnersOf, size: usize) -> Self {
        let wins = |key: &VsKey| desired.virtual_server(key).is_some_and(|vs| of.has(&vs.service));
        let keys = match of {
            // One Service is found without a search.
            OwnersOf { namespace: Some(namespace), name: Some(name) } => {
                let fragment = desired.fragment(&ObjectName::new(namespace, name));
                let keys = fragment.iter().flat_map(|fragment| &fragment.virtual_servers).map(|vs| vs.key);
                first_after(keys.filter(wins), after.as_ref(), size)
            }
            _ => {
                let wanted = desired.virtual_servers().filter(|vs| of.has(&vs.service));
                first_after(wanted.map(|vs| vs.key), after.as_ref(), size)
            }
        };
        let line = |vs: &Arc<VirtualServer>| format!("{} {}", vs.key, vs.owner());
        let servers = || keys.iter().filter_map(|key| desired.virtual_server(key));
        let settings = servers().filter_map(|vs| Some((vs.key.to_string(), vs.chosen_settings()?.into())));
        Self {
            lines: servers().map(line).collect(),
            settings: settings.collect(),
            last: keys.last().copied().filter(|_| keys.len() == size),
        }
    }
}

impl VirtualServer {
    /// `NAMESPACE/NAME[:PORT]`.
    pub fn owner(&self) -> String {
        let colon = if self.port_name.is_empty() { "" } else { ":" };
        format!("{}{colon}{}", self.service, self.port_name)
    }

    fn chosen_settings(&self) -> Option<ChosenSettings> {
        let values = self.options.as_ref()?.chosen_values();
        let settings = values.into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect();
        Some(settings).filter(|settings: &ChosenSettings| !settings.is_empty())
    }
}

/// The Services of virtual servers and their settings, as far as known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceOwners {
    services: HashMap<String, String>,
    settings: Map<String, Value>,
}

impl ServiceOwners {
    /// Asks the agent that runs in this network namespace.
    ///
    /// # Errors
    /// When no agent runs, or it does not answer.
    pub fn ask(of: &OwnersOf) -> Result<Self, AskError> {
        let (mut owners, mut after) = (Self::default(), None);
        loop {
            let OwnersPage { lines, settings, last } = ask(&AgentRequest::Owners { after, of: of.clone() })?;
            owners.settings.extend(settings);
            lines.iter().for_each(|line| owners.add(line));
            match last {
                Some(last) => after = Some(last),
                None => return Ok(owners),
            }
        }
    }

    fn add(&mut self, line: &str) {
        if let Some((server, service)) = line.rsplit_once(' ') {
            self.services.insert(server.to_owned(), service.to_owned());
        }
    }

    /// Lines of `PROTO ADDR:PORT NAMESPACE/NAME[:PORT]`.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn parse(text: &str) -> Self {
        let mut owners = Self::default();
        text.lines().for_each(|line| owners.add(line));
        owners
    }

    /// The virtual servers of a filter, in order.
    pub fn servers(&self, filter: &Filter) -> Vec<VsKey> {
        let keys = self.services.keys().filter_map(|server| {
            let (protocol, addr) = server.split_once(' ')?;
            let addr: SocketAddr = addr.parse().ok()?;
            Some(VsKey { protocol: protocol.parse().ok()?, addr: addr.ip(), port: addr.port() })
        });
        let mut servers: Vec<VsKey> = keys.filter(|key| filter.has(key, self)).collect();
        servers.sort_unstable();
        servers
    }

    /// The Service of a virtual server given as `PROTO ADDR:PORT`.
    pub fn get(&self, server: &str) -> Option<&str> {
        self.services.get(server).map(String::as_str)
    }

    /// The chosen settings of a virtual server given as `PROTO ADDR:PORT`.
    pub fn settings(&self, server: &str) -> Option<&ChosenSettings> {
        self.settings.get(server)?.as_object()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::model::changes::Changes;
    use crate::core::model::options::ServiceOptions;
    use crate::core::model::real_servers::WantedServers;
    use crate::core::model::{Protocol, VsSpec};
    use crate::core::service::fragment::Fragment;

    #[test]
    fn lines_are_parsed() {
        let owners =
            ServiceOwners::parse("TCP 10.96.0.1:443 default/kubernetes:https\nUDP [fd00::1]:53 a/b\n");
        assert_eq!(owners.get("TCP 10.96.0.1:443"), Some("default/kubernetes:https"));
        assert_eq!(owners.get("UDP [fd00::1]:53"), Some("a/b"));
        assert_eq!(owners.get("TCP 1.1.1.1:1"), None);
        let names = |filter| owners.servers(&filter).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(names(Filter::default()), ["TCP 10.96.0.1:443", "UDP [fd00::1]:53"]);
        let target = "a/b".parse().ok();
        assert_eq!(names(Filter { target, ..Filter::default() }), ["UDP [fd00::1]:53"]);
    }

    #[test]
    fn pages_have_every_virtual_server_once() {
        let mut desired = Desired::default();
        let options = ServiceOptions { hairpin: Some(false), ..ServiceOptions::default() };
        for n in 0..10u8 {
            let name = ObjectName::new("d", &n.to_string());
            let key = VsKey { protocol: Protocol::Tcp, addr: [10, 96, 0, n].into(), port: 80 };
            let server = VirtualServer {
                key,
                spec: VsSpec { scheduler: "rr".into(), flags: 0, timeout: 0 },
                real_servers: WantedServers::default(),
                entries: Default::default(),
                closed_to_node: false,
                created: 0,
                service: name.clone(),
                port_name: "".into(),
                options: (n == 7).then(|| Arc::new(options.clone())),
            };
            let fragment =
                Fragment { virtual_servers: [Arc::new(server)].into_iter().collect(), ..Fragment::default() };
            desired.update(&name, Some(fragment), &mut Changes::default());
        }
        for size in [1, 3, 5, 10, 11] {
            let (mut lines, mut after, mut pages) = (Vec::new(), None, 0);
            loop {
                let page = OwnersPage::with_size(&desired, after, &OwnersOf::default(), size);
                assert!(page.lines.len() <= size);
                lines.extend(page.lines);
                pages += 1;
                after = page.last;
                if after.is_none() {
                    break;
                }
            }
            let expected: Vec<String> = (0..10).map(|n| format!("TCP 10.96.0.{n}:80 d/{n}")).collect();
            assert_eq!(lines, expected, "pages of {size}");
            assert_eq!(pages, 10 / size + 1);
        }
        let of = |namespace: &str, name: &str| {
            let of = OwnersOf { namespace: Some(namespace.to_owned()), name: Some(name.to_owned()) };
            OwnersPage::build(&desired, None, &of).lines
        };
        let page = OwnersPage::build(&desired, None, &OwnersOf::default());
        assert_eq!(Value::from(page.settings), serde_json::json!({"TCP 10.96.0.7:80": {"hairpin": "false"}}));
        assert_eq!(of("d", "7"), ["TCP 10.96.0.7:80 d/7"]);
        assert!(of("e", "7").is_empty() && of("d", "77").is_empty());
    }
}
