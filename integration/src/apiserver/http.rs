// SPDX-License-Identifier: Apache-2.0
//! Requests and answers.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream;
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::objects::Selector;
use super::{Request, Shared, State};

type Body = UnsyncBoxBody<Bytes, io::Error>;

/// Time between bookmarks of an idle watch.
const BOOKMARK: Duration = Duration::from_secs(1);

/// Resources that are served: plural, kind, apiVersion.
const RESOURCES: [(&str, &str, &str); 4] = [
    ("services", "Service", "v1"),
    ("nodes", "Node", "v1"),
    ("endpointslices", "EndpointSlice", "discovery.k8s.io/v1"),
    ("servicecidrs", "ServiceCIDR", "networking.k8s.io/v1"),
];

pub(super) async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((connection, _)) = listener.accept().await {
        let shared = shared.clone();
        tokio::spawn(async move {
            let answer = service_fn(move |request| answer(shared.clone(), request));
            // A client that goes away, and a fault, end the connection with an error.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(connection), answer).await;
        });
    }
}

/// What a request asks for.
struct Asked {
    plural: &'static str,
    kind: &'static str,
    api_version: &'static str,
    name: Option<String>,
    selector: Selector,
    query: HashMap<String, String>,
}

impl Asked {
    fn parse(uri: &hyper::Uri) -> Option<Self> {
        let parts: Vec<&str> = uri.path().trim_matches('/').split('/').collect();
        let rest = match parts.as_slice() {
            ["api", "v1", rest @ ..] | ["apis", _, "v1", rest @ ..] => rest,
            _ => return None,
        };
        let (namespace, rest) = match rest {
            ["namespaces", namespace, rest @ ..] => (Some(*namespace), rest),
            rest => (None, rest),
        };
        let (plural, kind, api_version) = *RESOURCES.iter().find(|r| Some(&r.0) == rest.first())?;
        let query: HashMap<String, String> = uri
            .query()
            .unwrap_or_default()
            .split('&')
            .filter_map(|p| p.split_once('='))
            .map(decode)
            .collect();
        let get = |name: &str| query.get(name).map(String::as_str).unwrap_or_default();
        let selector = Selector::new(get("labelSelector"), get("fieldSelector"), namespace);
        let name = rest.get(1).map(|name| (*name).to_owned());
        Some(Self { plural, kind, api_version, name, selector, query })
    }

    fn is(&self, flag: &str) -> bool {
        self.query.get(flag).is_some_and(|v| v == "true" || v == "1")
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.query.get(name).and_then(|v| v.parse().ok())
    }
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

async fn answer(
    shared: Arc<Shared>,
    request: hyper::Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let uri = request.uri().to_string();
    let index = {
        let mut state = shared.state();
        state.requests.push(Request { uri: uri.clone(), status: 0 });
        state.requests.len() - 1
    };
    let (delay, half_open) = {
        let state = shared.state();
        (state.faults.delay, state.faults.half_open)
    };
    if let Some(delay) = delay {
        tokio::time::sleep(delay).await;
    }
    if half_open {
        std::future::pending::<()>().await;
    }
    let response = if request.method() == Method::POST || request.method() == Method::PATCH {
        post(&shared, request).await
    } else {
        get(&shared, request.uri())
    };
    shared.state().requests[index].status = response.status().as_u16();
    Ok(response)
}

/// Takes Event objects and nothing else.
async fn post(shared: &Shared, request: hyper::Request<Incoming>) -> Response<Body> {
    let is_event = request.uri().path().ends_with("/events") || request.uri().path().contains("/events/");
    let body = request.into_body().collect().await.map(|b| b.to_bytes()).unwrap_or_default();
    match serde_json::from_slice::<Value>(&body) {
        Ok(event) if is_event => {
            shared.state().events.push(event.clone());
            whole(StatusCode::CREATED, &event)
        }
        _ => failure(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", "only events can be written"),
    }
}

fn get(shared: &Arc<Shared>, uri: &hyper::Uri) -> Response<Body> {
    if uri.path() == "/version" {
        return whole(StatusCode::OK, &json!({"major": "1", "minor": "36", "gitVersion": "v1.36.2"}));
    }
    let Some(asked) = Asked::parse(uri) else {
        return failure(StatusCode::NOT_FOUND, "NotFound", "the server has no such resource");
    };
    let mut state = shared.state();
    if let Some(status) = injected_status(&mut state, asked.plural) {
        return failure(status, "InjectedFailure", "injected failure");
    }
    if !asked.is("watch") {
        return list(&state, &asked);
    }
    if asked.is("sendInitialEvents") && state.faults.no_streaming_lists {
        let text = "sendInitialEvents: Forbidden: sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled";
        return failure(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", text);
    }
    let from = asked.number("resourceVersion").unwrap_or(0);
    if !asked.is("sendInitialEvents")
        && from > 0
        && state.objects.since(from, asked.kind).is_none()
        && state.faults.gone_as_status
    {
        return failure(StatusCode::GONE, "Expired", "too old resource version");
    }
    state.watches += 1;
    let generation = state.generation;
    drop(state);
    watch(shared.clone(), asked, from, generation)
}

fn injected_status(state: &mut State, plural: &str) -> Option<StatusCode> {
    let (resource, status, left) = state.faults.status.as_mut()?;
    if (!resource.is_empty() && resource != plural) || *left == 0 {
        return None;
    }
    *left -= 1;
    StatusCode::from_u16(*status).ok()
}

/// The items of a list carry no kind of their own, as from a real server.
fn list(state: &State, asked: &Asked) -> Response<Body> {
    let mut items = state.objects.list(asked.kind, &asked.selector);
    if let Some(name) = &asked.name {
        return match items.into_iter().find(|o| o["metadata"]["name"] == json!(name)) {
            Some(object) => whole(StatusCode::OK, &object),
            None => failure(StatusCode::NOT_FOUND, "NotFound", "not found"),
        };
    }
    let start = asked.number("continue").unwrap_or(0) as usize;
    let limit = asked.number("limit").filter(|n| *n > 0).map_or(usize::MAX, |n| n as usize);
    let end = start.saturating_add(limit);
    let next = if end < items.len() { end.to_string() } else { String::new() };
    items = items.into_iter().skip(start).take(limit).collect();
    for item in items.iter_mut().filter_map(Value::as_object_mut) {
        item.remove("kind");
        item.remove("apiVersion");
    }
    let metadata = json!({"resourceVersion": state.objects.version().to_string(), "continue": next});
    let kind = format!("{}List", asked.kind);
    whole(
        StatusCode::OK,
        &json!({"kind": kind, "apiVersion": asked.api_version, "metadata": metadata, "items": items}),
    )
}

/// One open watch.
struct Watching {
    shared: Arc<Shared>,
    asked: Asked,
    version: u64,
    generation: u64,
    /// Injected lines seen so far.
    injected: usize,
    /// The objects of a streaming list are still to be sent.
    initial: bool,
    /// Half a line was sent; the cut comes next.
    torn: bool,
    ended: bool,
    changed: tokio::sync::watch::Receiver<u64>,
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.shared.state().watches -= 1;
    }
}

fn watch(shared: Arc<Shared>, asked: Asked, from: u64, generation: u64) -> Response<Body> {
    let initial = asked.is("sendInitialEvents");
    let (injected, from) = {
        let state = shared.state();
        (state.injected.len(), if from == 0 { state.objects.version() } else { from })
    };
    let changed = shared.changed.subscribe();
    let watching = Watching {
        shared,
        asked,
        version: from,
        generation,
        injected,
        initial,
        torn: false,
        ended: false,
        changed,
    };
    let lines = stream::unfold(watching, |mut watching| async move {
        let chunk = watching.next().await?;
        Some((chunk.map(|text| Frame::data(Bytes::from(text))), watching))
    });
    let mut response = Response::new(StreamBody::new(lines).boxed_unsync());
    json_header(&mut response);
    response
}

impl Watching {
    /// The next lines; `None` ends the watch properly, an error cuts it off.
    async fn next(&mut self) -> Option<io::Result<String>> {
        loop {
            if self.ended {
                return None;
            }
            self.changed.borrow_and_update();
            if let Some(chunk) = self.due() {
                return Some(chunk);
            }
            tokio::select! {
                changed = self.changed.changed() => { changed.ok()?; }
                () = tokio::time::sleep(BOOKMARK), if self.asked.is("allowWatchBookmarks") => {
                    let state = self.shared.state();
                    if !state.faults.half_open {
                        self.version = self.version.max(state.objects.version());
                        return Some(Ok(self.bookmark(false)));
                    }
                }
            }
        }
    }

    /// What there is to send now.
    fn due(&mut self) -> Option<io::Result<String>> {
        let shared = self.shared.clone();
        let state = shared.state();
        if state.faults.half_open {
            return None;
        }
        if self.generation != state.generation {
            if state.torn && !std::mem::replace(&mut self.torn, true) {
                return Some(Ok("{\"type\":\"MODIF".to_owned()));
            }
            self.ended = true;
            return Some(Err(io::Error::other("cut off")));
        }
        let mut text = String::new();
        if std::mem::take(&mut self.initial) {
            for object in state.objects.list(self.asked.kind, &self.asked.selector) {
                text.push_str(&format!("{}\n", json!({"type": "ADDED", "object": object})));
            }
            self.version = state.objects.version();
            text.push_str(&self.bookmark(true));
        }
        let Some(changes) = state.objects.since(self.version, self.asked.kind) else {
            self.ended = true;
            let gone = status(410, "Expired", "too old resource version");
            return Some(Ok(format!("{}\n", json!({"type": "ERROR", "object": gone}))));
        };
        for change in &changes {
            self.version = change.version;
            if let Some(event) = self.asked.selector.event(change) {
                text.push_str(&format!("{event}\n"));
            }
        }
        for (resource, line) in &state.injected[self.injected..] {
            if resource == self.asked.plural {
                text.push_str(&format!("{line}\n"));
            }
        }
        self.injected = state.injected.len();
        (!text.is_empty()).then_some(Ok(text))
    }

    fn bookmark(&self, end_of_list: bool) -> String {
        let mut metadata = json!({"resourceVersion": self.version.to_string()});
        if end_of_list {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let object =
            json!({"kind": self.asked.kind, "apiVersion": self.asked.api_version, "metadata": metadata});
        format!("{}\n", json!({"type": "BOOKMARK", "object": object}))
    }
}

fn status(code: u16, reason: &str, message: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
           "message": message, "reason": reason, "code": code})
}

fn failure(code: StatusCode, reason: &str, message: &str) -> Response<Body> {
    whole(code, &status(code.as_u16(), reason, message))
}

fn whole(code: StatusCode, value: &Value) -> Response<Body> {
    let body = Full::new(Bytes::from(value.to_string())).map_err(|never| match never {});
    let mut response = Response::new(body.boxed_unsync());
    *response.status_mut() = code;
    json_header(&mut response);
    response
}

fn json_header(response: &mut Response<Body>) {
    let json = hyper::header::HeaderValue::from_static("application/json");
    response.headers_mut().insert(hyper::header::CONTENT_TYPE, json);
}
