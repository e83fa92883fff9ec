// SPDX-License-Identifier: Apache-2.0
//! Parsed requests.

use std::collections::HashMap;
use std::time::Duration;

use super::selector::Selector;

/// A resource that is served.
#[derive(Debug)]
pub struct Resource {
    /// Its name in paths.
    pub plural: &'static str,
    /// Its kind.
    pub kind: &'static str,
    /// Its group and version.
    pub api_version: &'static str,
    namespaced: bool,
    fields: &'static [&'static str],
}

const RESOURCES: [Resource; 4] = [
    Resource {
        plural: "services",
        kind: "Service",
        api_version: "v1",
        namespaced: true,
        fields: &["metadata.name", "metadata.namespace", "spec.clusterIP", "spec.type"],
    },
    Resource {
        plural: "nodes",
        kind: "Node",
        api_version: "v1",
        namespaced: false,
        fields: &["metadata.name", "spec.unschedulable"],
    },
    Resource {
        plural: "endpointslices",
        kind: "EndpointSlice",
        api_version: "discovery.k8s.io/v1",
        namespaced: true,
        fields: &["metadata.name", "metadata.namespace"],
    },
    Resource {
        plural: "servicecidrs",
        kind: "ServiceCIDR",
        api_version: "networking.k8s.io/v1",
        namespaced: false,
        fields: &["metadata.name", "metadata.namespace"],
    },
];

/// Why a request is rejected.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The status of the answer.
    pub code: u16,
    /// The reason, in the words of Kubernetes.
    pub reason: &'static str,
    /// The message.
    pub message: String,
}

impl Refusal {
    /// A refusal with its status.
    pub fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into() }
    }

    /// An invalid combination of options.
    pub fn forbidden(option: &str, why: &str) -> Self {
        let message = format!("ListOptions.meta.k8s.io \"\" is invalid: {option}: Forbidden: {why}");
        Self::new(422, "Invalid", message)
    }

    /// A version that is no longer in the history.
    pub fn expired(version: u64, now: u64) -> Self {
        Self::new(410, "Expired", format!("too old resource version: {version} ({now})"))
    }
}

/// The objects of a path.
#[derive(Debug)]
pub struct Target {
    /// Their resource.
    pub resource: &'static Resource,
    /// Their namespace, when the path has one.
    pub namespace: Option<String>,
    /// The one object, when the path has a name.
    pub name: Option<String>,
}

impl Target {
    /// Reads a path; `None` when there is nothing there.
    pub fn parse(path: &str) -> Option<Self> {
        let parts: Vec<&str> = path.strip_prefix('/')?.split('/').collect();
        let (group, rest) = match parts.as_slice() {
            ["api", "v1", rest @ ..] => ("v1".to_owned(), rest),
            ["apis", group, version, rest @ ..] => (format!("{group}/{version}"), rest),
            _ => return None,
        };
        let (namespace, rest) = match rest {
            ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (Some(*namespace), rest),
            rest => (None, rest),
        };
        let plural = *rest.first()?;
        let resource = RESOURCES.iter().find(|r| r.plural == plural && r.api_version == group)?;
        let name = match rest {
            [_] => None,
            [_, name] => Some((*name).to_owned()),
            _ => return None,
        };
        let fits = match resource.namespaced {
            true => name.is_none() || namespace.is_some(),
            false => namespace.is_none(),
        };
        fits.then(|| Self { resource, namespace: namespace.map(str::to_owned), name })
    }
}

/// The options of a list or watch.
#[derive(Debug)]
pub struct Options {
    /// Which objects.
    pub selector: Selector,
    /// Events instead of a list.
    pub watch: bool,
    /// With bookmarks.
    pub bookmarks: bool,
    /// A list as the first events of a watch.
    pub initial: bool,
    /// The version; 0 is any.
    pub version: Option<u64>,
    /// The list must be the one of exactly that version.
    pub exact: bool,
    /// The size of a page.
    pub limit: Option<usize>,
    /// Version and first item of a later page.
    pub token: Option<(u64, usize)>,
    /// The end of a watch.
    pub timeout: Option<Duration>,
}

impl Options {
    /// Reads the query of a request for these objects, as strictly as a real server.
    ///
    /// # Errors
    /// The error of a real server.
    pub fn parse(query: &str, target: &Target) -> Result<Self, Refusal> {
        let query: HashMap<String, String> =
            query.split('&').filter_map(|p| p.split_once('=')).map(decode).collect();
        let get = |name: &str| query.get(name).map(String::as_str).unwrap_or_default();
        let is = |name: &str| matches!(get(name), "true" | "1");
        let bad = |message: String| Refusal::new(400, "BadRequest", message);
        let number = |name: &str| match get(name) {
            "" => Ok(None),
            text => text.parse().map(Some).map_err(|_| bad(format!("invalid {name}: {text:?}"))),
        };
        let token = match get("continue") {
            "" => None,
            text => Some(parse_token(text).ok_or_else(|| bad("continue key is not valid".to_owned()))?),
        };
        let selector = Selector::new(
            get("labelSelector"),
            get("fieldSelector"),
            target.namespace.as_deref(),
            target.resource.fields,
        );
        let options = Self {
            selector: selector.map_err(bad)?,
            watch: is("watch"),
            bookmarks: is("allowWatchBookmarks"),
            initial: is("sendInitialEvents"),
            version: number("resourceVersion")?,
            exact: get("resourceVersionMatch") == "Exact",
            limit: number("limit")?.filter(|n| *n > 0).map(|n| n as usize),
            token,
            timeout: number("timeoutSeconds")?.filter(|n| *n > 0).map(Duration::from_secs),
        };
        options.check(get("resourceVersionMatch"), query.contains_key("sendInitialEvents"))?;
        Ok(options)
    }

    fn check(&self, version_match: &str, initial_given: bool) -> Result<(), Refusal> {
        let forbid = |option: &str, why: &str| Err(Refusal::forbidden(option, why));
        if self.watch {
            return match (initial_given, version_match) {
                (true, "NotOlderThan") | (false, "") => Ok(()),
                (true, _) => forbid(
                    "resourceVersionMatch",
                    "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
                ),
                (false, _) => forbid(
                    "resourceVersionMatch",
                    "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
                ),
            };
        }
        if initial_given {
            return forbid("sendInitialEvents", "sendInitialEvents is forbidden for list");
        }
        let any = self.version.unwrap_or(0) == 0;
        if self.token.is_some() && !any {
            let message = "specifying resource version is not allowed when using continue";
            return Err(Refusal::new(400, "BadRequest", message));
        }
        match version_match {
            "" => Ok(()),
            _ if self.token.is_some() => {
                forbid("resourceVersionMatch", "resourceVersionMatch is forbidden when continue is provided")
            }
            _ if self.version.is_none() => forbid(
                "resourceVersionMatch",
                "resourceVersionMatch is forbidden unless resourceVersion is provided",
            ),
            "Exact" if any => {
                forbid("resourceVersionMatch", "\"Exact\" is forbidden for resourceVersion \"0\"")
            }
            _ => Ok(()),
        }
    }
}

/// The token of the page that starts with this item.
pub fn render_token(version: u64, start: usize) -> String {
    format!("v{version}-{start}")
}

fn parse_token(token: &str) -> Option<(u64, usize)> {
    let (version, start) = token.strip_prefix('v')?.split_once('-')?;
    Some((version.parse().ok()?, start.parse().ok()?))
}

/// Percent-decoding of one query parameter.
fn decode((key, value): (&str, &str)) -> (String, String) {
    let mut bytes = Vec::new();
    let mut rest = value.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digits = [rest.next().unwrap_or(b'0'), rest.next().unwrap_or(b'0')];
                u8::from_str_radix(&String::from_utf8_lossy(&digits), 16).unwrap_or(b'?')
            }
            other => other,
        });
    }
    (key.to_owned(), String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        let is = |path: &str| Target::parse(path).map(|t| (t.resource.kind, t.namespace, t.name));
        let own = |text: &str| Some(text.to_owned());
        assert_eq!(is("/api/v1/services"), Some(("Service", None, None)));
        assert_eq!(is("/api/v1/namespaces/d/services"), Some(("Service", own("d"), None)));
        assert_eq!(is("/api/v1/namespaces/d/services/a"), Some(("Service", own("d"), own("a"))));
        assert_eq!(is("/api/v1/nodes/n"), Some(("Node", None, own("n"))));
        assert_eq!(is("/apis/discovery.k8s.io/v1/endpointslices"), Some(("EndpointSlice", None, None)));
        for nothing in [
            "/",
            "/api/v1/endpointslices",
            "/apis/discovery.k8s.io/v1beta1/endpointslices",
            "/api/v1/services/a",
            "/api/v1/namespaces/d/nodes",
            "/api/v1/namespaces/d/services/a/status",
            "/api/v1/pods",
        ] {
            assert_eq!(is(nothing), None, "{nothing}");
        }
    }

    #[test]
    fn conflicting_options_are_rejected() {
        let target = Target::parse("/api/v1/services").unwrap();
        let code = |query: &str| Options::parse(query, &target).map(|_| ()).map_err(|r| r.code);
        for good in [
            "",
            "limit=5&resourceVersion=0",
            "continue=v1-5&limit=5",
            "watch=true&resourceVersion=5&allowWatchBookmarks=true&timeoutSeconds=3",
            "watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan",
            "resourceVersion=5&resourceVersionMatch=Exact",
            "labelSelector=%21a%2Cb%3Dc&fieldSelector=spec.clusterIP%21%3DNone",
        ] {
            assert_eq!(code(good), Ok(()), "{good}");
        }
        for (bad, status) in [
            ("resourceVersion=x", 400),
            ("continue=x", 400),
            ("continue=v1-5&resourceVersion=7", 400),
            ("fieldSelector=spec.ports%3D1", 400),
            ("watch=true&sendInitialEvents=true", 422),
            ("watch=true&resourceVersionMatch=NotOlderThan", 422),
            ("sendInitialEvents=true", 422),
            ("resourceVersionMatch=NotOlderThan", 422),
        ] {
            assert_eq!(code(bad), Err(status), "{bad}");
        }
    }
}
