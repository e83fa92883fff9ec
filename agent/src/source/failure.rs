// SPDX-License-Identifier: Apache-2.0
//! Failures of requests to the API server: what failed, in one line, and the remedy. Both depend on the status of the
//! answer and the kind of the error, never on the words of a text.

use std::error::Error;
use std::io;
use std::iter;
use std::time::Duration;

use kube::core::Status;

use super::route::Route;
use crate::words;

/// The longest text of a server that is quoted, in characters.
const LONGEST: usize = 300;

/// A failed list or watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ApiFailure {
    /// The status of the answer, if one came.
    pub code: Option<u16>,
    pub refused_connection: bool,
    pub what: String,
    pub remedy: String,
}

impl ApiFailure {
    /// A failure that is no error of the client.
    pub fn new(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { code: None, refused_connection: false, what: what.into(), remedy: remedy.into() }
    }

    /// What failed and the remedy, as a part of a log line.
    pub fn text(&self) -> String {
        format!("{}; {}", self.what, self.remedy)
    }

    /// A watch ended too soon to be of use.
    pub fn short_watch() -> Self {
        Self::new("a watch ended as soon as it began", "see the API server's log")
    }

    /// A list took longer than `limit`.
    pub fn stalled(limit: Duration) -> Self {
        let what = format!("a list did not end within {}", words::time(limit));
        Self::new(what, "check the load of the API server and the network to it")
    }

    /// The status of an answer, or of an event of a watch.
    pub fn of_status(status: &Status) -> Self {
        let (reason, message) = (status.reason.trim(), cut(status.message.trim()));
        let mut what = format!("the API server answered {}", status.code);
        if !reason.is_empty() && !message.eq_ignore_ascii_case(reason) {
            what.push_str(&format!(" {reason}"));
        }
        if !message.is_empty() {
            what.push_str(&format!(": {message}"));
        }
        Self { code: Some(status.code), ..Self::new(what, remedy_of_status(status.code)) }
    }

    /// An error of the client on this route to the server.
    pub fn of(error: &kube::Error, route: &Route) -> Self {
        if let kube::Error::Api(status) = error {
            return Self::of_status(status);
        }
        let refused = |error: &io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
        Self { refused_connection: io_errors(error).any(refused), ..explain(error, route) }
    }

    pub fn is_expired(&self) -> bool {
        self.code == Some(410)
    }

    /// Whether a streamed list is worth another try after this failure. As in client-go: the server did not get the
    /// request, or it requested a pause.
    pub fn may_stream_again(&self) -> bool {
        self.refused_connection || self.code == Some(429)
    }
}

fn remedy_of_status(code: u16) -> &'static str {
    match code {
        401 => "check the token or client certificate",
        403 => "the service account needs get, list and watch on services, endpointslices and nodes",
        404..=406 => "check that the server is a Kubernetes API server of version 1.21 or later",
        407 => "the proxy requires a user and a password",
        410 => "listing again",
        429 => "the API server is overloaded",
        502..=504 => "the API server is starting or overloaded, or a load balancer cannot reach it",
        500..=599 => "see the API server's log",
        _ => "check that the server's address is that of a Kubernetes API server",
    }
}

/// Each error in the chain, including those that an I/O error wraps.
fn chain(error: &kube::Error) -> impl Iterator<Item = &(dyn Error + 'static)> {
    iter::successors(Some(error as &(dyn Error + 'static)), |&error| {
        // The source of an I/O error is that of the wrapped error, so the wrapped one would be skipped.
        let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        wrapped.map(|wrapped| wrapped as &(dyn Error + 'static)).or_else(|| error.source())
    })
}

fn find<T: Error + 'static>(error: &kube::Error) -> Option<&T> {
    chain(error).find_map(|error| error.downcast_ref())
}

fn io_errors(error: &kube::Error) -> impl Iterator<Item = &io::Error> {
    chain(error).filter_map(|error| error.downcast_ref())
}

fn explain(error: &kube::Error, route: &Route) -> ApiFailure {
    if find::<tower::timeout::error::Elapsed>(error).is_some() {
        let what = format!("{} does not answer", route.server);
        return ApiFailure::new(what, route.remedy("check whether the API server is overloaded or hangs"));
    }
    let server = route.described();
    if let Some(tls) = find::<rustls::Error>(error) {
        let (why, remedy) = explain_tls(tls);
        return ApiFailure::new(format!("TLS to {server} failed: {why}"), remedy);
    }
    let last_io = io_errors(error).last();
    let why = || cut(&last_io.map_or_else(|| last(error), words::io_error));
    let client = find::<hyper_util::client::legacy::Error>(error);
    if client.is_some_and(hyper_util::client::legacy::Error::is_connect) {
        return ApiFailure::new(
            format!("cannot connect to {server}: {}", why()),
            remedy_of_io(last_io, route),
        );
    }
    if matches!(error, kube::Error::SerdeError(_) | kube::Error::FromUtf8(_)) {
        let what = format!("{server} answered with something else than a Kubernetes object");
        return ApiFailure::new(
            what,
            route.remedy("check that this is the address of a Kubernetes API server"),
        );
    }
    if matches!(error, kube::Error::Auth(_)) {
        let what = format!("no credentials for the API server: {}", cut(&last(error)));
        return ApiFailure::new(what, "check the users of the kubeconfig");
    }
    if let Some(hyper) = find::<hyper::Error>(error).filter(|hyper| hyper.is_parse()) {
        let what = format!("{server} does not speak HTTP: {}", cut(&hyper.to_string()));
        return ApiFailure::new(
            what,
            "check its address, and whether its URL begins with http:// or https://",
        );
    }
    let remedy = route.remedy("programmed Services keep working; check the API server if this lasts");
    ApiFailure::new(format!("the connection to {server} was lost: {}", why()), remedy)
}

fn remedy_of_io(error: Option<&io::Error>, route: &Route) -> String {
    route.remedy(match error.map(io::Error::kind) {
        Some(io::ErrorKind::ConnectionRefused) => {
            "check that the API server runs and that its address is correct"
        }
        Some(
            io::ErrorKind::TimedOut | io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable,
        ) => "check the route and the firewalls to it; the node must reach it without a ClusterIP",
        _ => "check that the server's address is correct and that the node reaches it without a ClusterIP",
    })
}

/// Why TLS failed and the remedy. The library's own texts are names of its types.
fn explain_tls(error: &rustls::Error) -> (String, &'static str) {
    use rustls::CertificateError as Bad;
    use rustls::Error::{AlertReceived, InvalidCertificate, InvalidMessage};
    let (why, remedy) = match error {
        InvalidCertificate(Bad::UnknownIssuer | Bad::BadSignature) => {
            ("its certificate is not signed by the configured CA", "check the CA of the kubeconfig")
        }
        InvalidCertificate(Bad::Expired | Bad::ExpiredContext { .. }) => {
            ("its certificate has expired", "renew the certificate, or correct this node's clock")
        }
        InvalidCertificate(Bad::NotValidYet | Bad::NotValidYetContext { .. }) => {
            ("its certificate is not valid yet", "correct this node's clock")
        }
        InvalidCertificate(Bad::NotValidForName | Bad::NotValidForNameContext { .. }) => (
            "its certificate is for another name",
            "use an address of the certificate, or set tls-server-name in the kubeconfig",
        ),
        AlertReceived(_) => {
            ("the server rejected this client", "check the client certificate of the kubeconfig")
        }
        InvalidMessage(_) => ("it does not speak TLS", "check that the port is the API server's"),
        other => return (other.to_string(), "check the certificates of the kubeconfig and of the server"),
    };
    (why.to_owned(), remedy)
}

/// The text of the innermost error: the outer ones name layers of the client.
fn last(error: &kube::Error) -> String {
    chain(error).last().map(ToString::to_string).unwrap_or_default()
}

/// A text of a server in one line of limited length; an HTML page is not quoted.
fn cut(text: &str) -> String {
    if text.trim_start().starts_with('<') {
        return "a web page".to_owned();
    }
    let line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(proxy: Option<&str>) -> Route {
        Route { server: "https://192.0.2.1:6443".to_owned(), proxy: proxy.map(str::to_owned) }
    }

    fn status(code: u16, reason: &str, message: &str) -> Status {
        Status { code, ..Status::failure(message, reason) }
    }

    #[test]
    fn a_status_gives_code_reason_and_message_once_and_a_remedy() {
        for (code, reason, message, text) in [
            (
                403,
                "Forbidden",
                "services is forbidden: User \"x\" cannot list",
                "answered 403 Forbidden: services is",
            ),
            (401, "Unauthorized", "Unauthorized", "answered 401: Unauthorized; check the token"),
            (404, "NotFound", "the server could not find it", "version 1.21"),
            (429, "TooManyRequests", "later", "overloaded"),
            (500, "InternalError", "the required storage feature is disabled", "see the API server's log"),
            (502, "", "<html>bad gateway</html>", "502: a web page; the API server is starting"),
        ] {
            let failure = ApiFailure::of_status(&status(code, reason, message));
            assert!(failure.text().contains(text), "{}", failure.text());
            assert_eq!(failure.code, Some(code));
        }
        assert!(ApiFailure::of_status(&status(410, "Expired", "x")).is_expired());
        let long = ApiFailure::of_status(&status(500, "", &"x\n".repeat(5000))).text();
        assert!(long.len() < 500 && !long.contains('\n'), "{long}");
        // Another status in the text has no effect.
        let text =
            ApiFailure::of_status(&status(500, "InternalError", "403 Forbidden certificate 401")).text();
        assert!(text.ends_with("see the API server's log"), "{text}");
    }

    fn read(error: io::Error) -> kube::Error {
        kube::Error::ReadEvents(io::Error::other(error))
    }

    #[test]
    fn the_kind_of_an_error_decides_and_the_text_has_no_internals() {
        let expired = rustls::Error::InvalidCertificate(rustls::CertificateError::Expired);
        let unknown = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        let boxed = |error: rustls::Error| kube::Error::Service(Box::new(io::Error::other(error)));
        let serde = serde_json::from_str::<u8>("x").unwrap_err();
        for (error, parts) in [
            (boxed(expired), ["TLS to https://192.0.2.1:6443 failed", "clock"]),
            (boxed(unknown), ["TLS to", "CA of the kubeconfig"]),
            (read(io::Error::from_raw_os_error(104)), ["was lost: Connection reset by peer", "keep working"]),
            (kube::Error::SerdeError(serde), ["else than a Kubernetes object", "address"]),
            (
                kube::Error::Service(Box::new(tower::timeout::error::Elapsed::new())),
                ["https://192.0.2.1:6443 does not answer", "hangs"],
            ),
        ] {
            let text = ApiFailure::of(&error, &route(None)).text();
            for part in parts {
                assert!(text.contains(part), "{part}: {text}");
            }
            for internal in ["os error", "Error:", "{", "hyper", "Expired", "Unknown"] {
                assert!(!text.contains(internal), "{text}");
            }
        }
    }

    #[tokio::test]
    async fn a_refused_connection_is_reported_with_its_proxy() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let access =
            crate::source::client::ApiAccess { kubeconfig: None, master: Some(format!("http://{free}")) };
        let api = access.client(std::sync::Arc::new(()), Duration::from_secs(10)).await.unwrap();
        let error = api.client.apiserver_version().await.unwrap_err();
        let plain = ApiFailure::of(&error, &api.route);
        let expected = format!(
            "cannot connect to http://{free}: Connection refused; check that the API server runs and that its \
             address is correct"
        );
        assert_eq!(plain.text(), expected);
        assert!(plain.may_stream_again());
        let text = ApiFailure::of(&error, &route(Some("http://192.0.2.9:3128 of HTTPS_PROXY"))).text();
        assert!(
            text.contains("through the proxy http://192.0.2.9:3128 of HTTPS_PROXY: Connection refused"),
            "{text}"
        );
        assert!(text.contains("NO_PROXY"), "{text}");
    }
}
