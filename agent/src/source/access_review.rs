// SPDX-License-Identifier: Apache-2.0
//! Asks the API server what an agent needs to know before it starts: version, clock, this Node, the ranges of ClusterIPs,
//! and whether the credentials have the permissions. For `kube-ipvs doctor`. Answers are plain JSON: the objects are
//! few, and a type of each would make the binary larger.

use std::net::IpAddr;
use std::time::Duration;

use http_body_util::{BodyExt as _, Limited};
use hyper::header::{CONTENT_TYPE, DATE};
use hyper::{Method, Request};
use ipnet::IpNet;
use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimeParser;
use kube::client::Body;
use kube::core::Status;
use serde_json::{Value, json};

use super::client::ApiClient;
use super::failure::ApiFailure;

/// Longest answer in bytes.
const LONGEST: usize = 4 << 20;
/// Timeout of the resolver for the server's name.
const RESOLVE: Duration = Duration::from_secs(5);

/// What a request needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Permission {
    pub verb: &'static str,
    pub group: &'static str,
    pub resource: &'static str,
}

/// The permissions of an agent; `follows_service_cidrs`: it reads the ranges of ClusterIPs from the API, too.
pub fn permissions(follows_service_cidrs: bool) -> Vec<Permission> {
    let mut read = vec![("", "services"), ("", "nodes"), ("discovery.k8s.io", "endpointslices")];
    if follows_service_cidrs {
        read.push(("networking.k8s.io", "servicecidrs"));
    }
    let of = |(group, resource): (&'static str, &'static str)| {
        ["list", "watch"].map(|verb| Permission { verb, group, resource })
    };
    let events =
        ["create", "patch"].map(|verb| Permission { verb, group: "events.k8s.io", resource: "events" });
    read.into_iter().flat_map(of).chain(events).collect()
}

/// What the API server answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiSurvey {
    /// The route to the server, as messages name it.
    pub server: String,
    /// The addresses of the server, or of the proxy to it.
    pub addresses: Vec<IpAddr>,
    pub version: String,
    /// The server's clock, in seconds since 1970.
    pub time: Option<i64>,
    /// Whether the Node exists, or why that is not known.
    pub node: Result<bool, String>,
    /// The ranges of ClusterIPs. Empty if the server does not tell.
    pub service_cidrs: Vec<IpNet>,
    /// Each permission, and whether it is granted or why that is not known.
    pub permissions: Vec<(Permission, Result<bool, String>)>,
}

/// The status of an answer, the server's clock and the body.
type Answer = (u16, Option<i64>, Value);

/// Asks the server.
///
/// # Errors
/// The server does not answer its version; says what failed and the remedy.
pub async fn survey(api: &ApiClient, node: &str, wanted: &[Permission]) -> Result<ApiSurvey, String> {
    let (code, time, version) = get(api, "/version").await?;
    if code != 200 {
        return Err(refusal(code, version));
    }
    let mut reviews = Vec::new();
    for permission in wanted {
        reviews.push((*permission, review(api, permission).await));
    }
    let ranges = get(api, "/apis/networking.k8s.io/v1/servicecidrs").await;
    Ok(ApiSurvey {
        server: api.route.described(),
        addresses: addresses(api).await,
        version: version["gitVersion"].as_str().unwrap_or("of an unknown version").to_owned(),
        time,
        node: match get(api, &format!("/api/v1/nodes/{node}")).await {
            Ok((200, ..)) => Ok(true),
            Ok((404, ..)) => Ok(false),
            Ok((code, _, body)) => Err(refusal(code, body)),
            Err(failure) => Err(failure),
        },
        // A server before Kubernetes 1.31 has none.
        service_cidrs: ranges.map(|(_, _, list)| service_cidrs(&list)).unwrap_or_default(),
        permissions: reviews,
    })
}

async fn review(api: &ApiClient, permission: &Permission) -> Result<bool, String> {
    let Permission { verb, group, resource } = permission;
    let attributes = json!({"verb": verb, "group": group, "resource": resource});
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": attributes},
    });
    let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    match send(api, Method::POST, path, Some(&review)).await? {
        (200 | 201, _, answer) => Ok(answer["status"]["allowed"] == true),
        (code, _, body) => Err(refusal(code, body)),
    }
}

async fn get(api: &ApiClient, path: &str) -> Result<Answer, String> {
    send(api, Method::GET, path, None).await
}

async fn send(api: &ApiClient, method: Method, path: &str, body: Option<&Value>) -> Result<Answer, String> {
    let body = body.map(Value::to_string).unwrap_or_default();
    let request = Request::builder().method(method).uri(path).header(CONTENT_TYPE, "application/json");
    let request = request.body(Body::from(body.into_bytes())).map_err(|error| error.to_string())?;
    let answer = api.client.send(request).await;
    let answer = answer.map_err(|error| ApiFailure::of(&error, &api.route).text())?;
    let date = answer.headers().get(DATE).and_then(|date| date.to_str().ok());
    let (code, time) = (answer.status().as_u16(), date.and_then(seconds));
    let body = Limited::new(answer.into_body(), LONGEST).collect().await;
    let body = body.map_err(|_| format!("the answer to {path} was interrupted, or is too long"))?;
    Ok((code, time, serde_json::from_slice(&body.to_bytes()).unwrap_or_default()))
}

/// Why the server refused, and the remedy.
fn refusal(code: u16, body: Value) -> String {
    let mut status: Status = serde_json::from_value(body).unwrap_or_default();
    status.code = code;
    ApiFailure::of_status(&status).text()
}

/// A date such as `Sat, 28 Nov 2026 01:10:58 GMT`.
fn seconds(date: &str) -> Option<i64> {
    let time: Timestamp = DateTimeParser::new().parse_timestamp(date).ok()?;
    Some(time.as_second())
}

async fn addresses(api: &ApiClient) -> Vec<IpAddr> {
    let mut found = Vec::new();
    for (host, port) in api.route.hosts() {
        let resolved = tokio::time::timeout(RESOLVE, tokio::net::lookup_host((host, port))).await;
        if let Ok(Ok(resolved)) = resolved {
            found.extend(resolved.map(|address| address.ip().to_canonical()));
        }
    }
    found.sort_unstable();
    found.dedup();
    found
}

/// The ranges in a list of ServiceCIDRs.
fn service_cidrs(list: &Value) -> Vec<IpNet> {
    let items = list["items"].as_array().into_iter().flatten();
    let texts = items.flat_map(|item| item["spec"]["cidrs"].as_array().into_iter().flatten());
    texts.filter_map(|text| text.as_str()?.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read() {
        assert_eq!(seconds("Sat, 28 Nov 2026 01:10:58 GMT"), Some(1_795_828_258));
        assert_eq!(seconds("yesterday"), None);
        let list = json!({"items": [{"spec": {"cidrs": ["10.96.0.0/12", "fd00::/112", "x"]}}, {}]});
        assert_eq!(service_cidrs(&list), ["10.96.0.0/12".parse().unwrap(), "fd00::/112".parse().unwrap()]);
        assert_eq!(service_cidrs(&Value::Null), []);
        let refused = refusal(403, json!({"kind": "Status", "message": "no", "reason": "Forbidden"}));
        assert!(refused.starts_with("the API server answered 403 Forbidden: no; "), "{refused}");
        assert!(refusal(502, Value::Null).starts_with("the API server answered 502; "));
    }

    #[test]
    fn the_permissions_are_those_of_the_manifests_role() {
        let role = include_str!("../../../manifests/base/rbac.yaml");
        for Permission { verb, group, resource } in permissions(true) {
            let rule = role.split("- apiGroups:").find(|rule| rule.contains(resource));
            let rule = rule.unwrap_or_default();
            assert!(rule.contains(verb) && rule.contains(group), "{verb} {resource} of {group:?}");
        }
        assert_eq!(permissions(false).len() + 2, permissions(true).len());
    }
}
