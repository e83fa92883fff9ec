// SPDX-License-Identifier: Apache-2.0
//! A list of all Nodes: as a table, or as objects in pages.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use hyper::header::ACCEPT;
use kube::core::ListMeta;
use serde::Deserialize;
use smallvec::SmallVec;

use super::client::ApiClient;
use super::failure::ApiFailure;
use crate::core::model::address;

const PAGE: usize = 500;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// The columns of `kubectl get nodes -o wide`, about 400 bytes for each Node. A table has only the first address of
    /// each type. An API server without tables answers with objects.
    Table,
    Objects,
}

impl Form {
    fn accept(self) -> &'static str {
        match self {
            Form::Table => "application/json;as=Table;g=meta.k8s.io;v=v1,application/json",
            Form::Objects => "application/json",
        }
    }

    /// The query for the page after the one that ended with `token`.
    fn query(self, token: &str) -> String {
        match (self, token) {
            // Without a limit the API server answers from its cache instead of etcd.
            (Form::Table, _) => "resourceVersion=0&includeObject=None".to_owned(),
            (Form::Objects, "") => format!("limit={PAGE}"),
            (Form::Objects, token) => format!("limit={PAGE}&continue={}", escape(token)),
        }
    }
}

/// The addresses in all pages of a list.
#[derive(Debug, Default)]
pub(super) struct NodeAddresses {
    /// Every address of every Node.
    pub addresses: BTreeSet<IpAddr>,
    /// The number of Nodes.
    pub nodes: usize,
    /// The size of the answers.
    pub bytes: usize,
    /// The table shows no IPv4 address of some Node.
    pub lacks_v4: bool,
}

/// Lists all Nodes. `limit` is the timeout of one page.
pub(super) async fn list(api: &ApiClient, form: Form, limit: Duration) -> Result<NodeAddresses, ApiFailure> {
    let mut listed = NodeAddresses::default();
    let mut token = String::new();
    loop {
        let request = hyper::Request::get(format!("/api/v1/nodes?{}", form.query(&token)))
            .header(ACCEPT, form.accept())
            .body(Vec::new())
            .map_err(|error| ApiFailure::of(&kube::Error::HttpError(error), &api.route))?;
        let text = tokio::time::timeout(limit, api.client.request_text(request))
            .await
            .map_err(|_| ApiFailure::stalled(limit))?
            .map_err(|error| ApiFailure::of(&error, &api.route))?;
        let answer: NodeList = serde_json::from_str(&text)
            .map_err(|error| ApiFailure::of(&kube::Error::SerdeError(error), &api.route))?;
        listed.bytes += text.len();
        listed.nodes += answer.rows.len() + answer.items.len();
        listed.lacks_v4 |= answer.lacks_v4();
        listed.addresses.extend(answer.addresses());
        token = answer.metadata.continue_.unwrap_or_default();
        if token.is_empty() {
            return Ok(listed);
        }
    }
}

/// Escapes a token for a query: it is base64, and three characters of base64 have a meaning in a query.
fn escape(token: &str) -> String {
    token.replace('+', "%2B").replace('/', "%2F").replace('=', "%3D")
}

/// The answer to a list of Nodes: a table, or objects.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct NodeList {
    metadata: ListMeta,
    column_definitions: Vec<Column>,
    rows: Vec<TableRow>,
    items: Vec<NodeObject>,
}

#[derive(Deserialize)]
struct Column {
    name: String,
}

#[derive(Deserialize)]
struct TableRow {
    cells: Vec<serde_json::Value>,
}

#[derive(Deserialize)]
struct NodeObject {
    #[serde(default)]
    status: NodeStatus,
}

#[derive(Default, Deserialize)]
struct NodeStatus {
    #[serde(default)]
    addresses: Vec<Address>,
}

#[derive(Deserialize)]
struct Address {
    address: String,
}

impl NodeList {
    /// The addresses in each row of a table.
    fn rows(&self) -> impl Iterator<Item = SmallVec<[IpAddr; 2]>> + '_ {
        let has_address = |column: &Column| matches!(&*column.name, "Internal-IP" | "External-IP");
        let columns = self.column_definitions.iter().map(has_address);
        self.rows.iter().map(move |row| {
            let cells = row.cells.iter().zip(columns.clone()).filter(|(_, has_address)| *has_address);
            cells.filter_map(|(cell, _)| address::parse_ip(cell.as_str()?)).collect()
        })
    }

    /// Every address; host names are ignored.
    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let of_items = self.items.iter().flat_map(|item| &item.status.addresses);
        self.rows().flatten().chain(of_items.filter_map(|address| address::parse_ip(&address.address)))
    }

    /// Whether some row shows no IPv4 address. A dual-stack Node whose first address is IPv6 still has an IPv4 address.
    fn lacks_v4(&self) -> bool {
        // A row without any address is a Node that registered a moment ago.
        self.rows().any(|row| !row.is_empty() && !row.iter().any(IpAddr::is_ipv4))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> NodeList {
        serde_json::from_str(text).unwrap()
    }

    fn addresses(text: &str) -> Vec<String> {
        parse(text).addresses().map(|address| address.to_string()).collect()
    }

    const TABLE: &str = r#"{"kind":"Table","columnDefinitions":[{"name":"Name"},{"name":"Internal-IP"},{"name":"External-IP"}],
        "rows":[{"cells":["a","10.0.0.1","<none>"],"object":null},{"cells":["b","fd00::2","203.0.113.2"]}]}"#;

    #[test]
    fn a_table_and_objects_have_the_addresses() {
        assert_eq!(addresses(TABLE), ["10.0.0.1", "fd00::2", "203.0.113.2"]);
        let objects = r#"{"kind":"NodeList","items":[{"status":{"addresses":[{"type":"InternalIP","address":"10.0.0.1"},
            {"type":"InternalIP","address":"fd00::1"},{"type":"Hostname","address":"a"}]}},{"metadata":{}}]}"#;
        assert_eq!(addresses(objects), ["10.0.0.1", "fd00::1"]);
        assert!(addresses("{}").is_empty());
    }

    #[test]
    fn a_table_that_shows_only_ipv6_of_a_node_lacks_its_ipv4() {
        assert!(!parse(TABLE).lacks_v4());
        assert!(parse(&TABLE.replace("203.0.113.2", "<none>")).lacks_v4());
        assert!(!parse(&TABLE.replace("203.0.113.2", "<none>").replace("fd00::2", "<none>")).lacks_v4());
        assert!(
            !parse(r#"{"columnDefinitions":[{"name":"Internal-IP"}],"rows":[{"cells":[7]}]}"#).lacks_v4()
        );
        assert!(!parse("{}").lacks_v4());
    }
}
