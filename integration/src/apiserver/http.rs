// SPDX-License-Identifier: Apache-2.0
//! Requests and answers.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream;
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::time::sleep;

use super::events::EventPath;
use super::request::{Options, Refusal, Target, render_token};
use super::watch::{self, FLUSH, Watching};
use super::{RequestRecord, Shared, State};

type Body = UnsyncBoxBody<Bytes, io::Error>;

/// Pause after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);

/// Pause between checks whether an answer is still held back.
const HELD_PAUSE: Duration = Duration::from_millis(10);

/// Default seconds in `Retry-After` of a 429.
const RETRY_SECONDS: u64 = 1;

pub(super) async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        let Ok((connection, _)) = listener.accept().await else {
            sleep(ACCEPT_PAUSE).await;
            continue;
        };
        // Lines of a watch are small and must not wait for each other.
        let _ = connection.set_nodelay(true);
        let shared = shared.clone();
        tokio::spawn(async move {
            let answer = service_fn(move |request| answer(shared.clone(), request));
            // A client that goes away, and a fault, end the connection with an error.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(connection), answer).await;
        });
    }
}

async fn answer(
    shared: Arc<Shared>,
    request: hyper::Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let (index, delay, half_open) = {
        let mut state = shared.state();
        state.requests.push(RequestRecord {
            method: request.method().to_string(),
            path: request.uri().path().to_owned(),
            query: request.uri().query().unwrap_or_default().to_owned(),
            status: 0,
        });
        (state.requests.len() - 1, state.faults.delay, state.faults.half_open)
    };
    if let Some(delay) = delay {
        sleep(delay).await;
    }
    if half_open {
        std::future::pending::<()>().await;
    }
    let path = request.uri().path().to_owned();
    while is_held(&shared.state(), &path) {
        sleep(HELD_PAUSE).await;
    }
    let injected = injected_status(&mut shared.state(), &path);
    let response = match injected {
        Some(response) => response,
        None => respond(&shared, request).await.unwrap_or_else(|refusal| failure(&refusal)),
    };
    shared.state().requests[index].status = response.status().as_u16();
    Ok(response)
}

async fn respond(shared: &Arc<Shared>, request: hyper::Request<Incoming>) -> Result<Response<Body>, Refusal> {
    let uri = request.uri().clone();
    let method = request.method().clone();
    if EventPath::parse(uri.path()).is_some() && (method == Method::POST || method == Method::PATCH) {
        return take_event(shared, request).await;
    }
    if method != Method::GET {
        let message = "the server does not allow this method on the requested resource";
        return Err(Refusal::new(405, "MethodNotAllowed", message));
    }
    match uri.path() {
        "/version" => {
            return Ok(whole(StatusCode::OK, &json!({"major": "1", "minor": "36", "gitVersion": "v1.36.2"})));
        }
        "/readyz" | "/livez" | "/healthz" => {
            let mut response = Response::new(full(Bytes::from_static(b"ok")));
            response
                .headers_mut()
                .insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
            return Ok(response);
        }
        _ => {}
    }
    let target = Target::parse(uri.path())
        .ok_or_else(|| Refusal::new(404, "NotFound", "the server could not find the requested resource"))?;
    if let Some(name) = &target.name {
        return one(&shared.state(), &target, name);
    }
    let options = Options::parse(uri.query().unwrap_or_default(), &target)?;
    let has_spec = options.selector.fields().any(|field| field.starts_with("spec."));
    if has_spec && target.resource.plural == "services" && shared.state().faults.no_service_fields {
        let message =
            r#""spec.clusterIP" is not a known field selector: only "metadata.name", "metadata.namespace""#;
        return Err(Refusal::new(400, "BadRequest", message));
    }
    if !options.watch {
        let accepts = request.headers().get(ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
        if target.resource.plural == "nodes" && accepts.starts_with("application/json;as=Table") {
            return Ok(table(&shared.state(), &options));
        }
        return list(&shared.state(), &target, &options);
    }
    watch::check(&shared.state(), &target, &options)?;
    let lines = Watching::new(shared, target, options).lines();
    let mut response = Response::new(StreamBody::new(lines).boxed_unsync());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

async fn take_event(shared: &Shared, request: hyper::Request<Incoming>) -> Result<Response<Body>, Refusal> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map(|b| b.to_bytes()).unwrap_or_default();
    let body: Value = serde_json::from_slice(&body)
        .map_err(|e| Refusal::new(400, "BadRequest", format!("the body is not JSON: {e}")))?;
    let mut state = shared.state();
    match (EventPath::parse(parts.uri.path()), parts.method) {
        (Some(path), Method::POST) => Ok(whole(StatusCode::CREATED, state.events.create(&path, body)?)),
        (Some(path), _) => Ok(whole(StatusCode::OK, state.events.patch(&path, body)?)),
        (None, _) => Err(Refusal::new(404, "NotFound", "the server could not find the requested resource")),
    }
}

/// Whether a fault holds this answer back.
fn is_held(state: &State, path: &str) -> bool {
    let held = state.faults.held.as_deref();
    Target::parse(path).is_some_and(|t| t.namespace.is_none() && held == Some(t.resource.plural))
}

/// The answer that a fault sets for this path.
fn injected_status(state: &mut State, path: &str) -> Option<Response<Body>> {
    let retry_after = state.faults.retry_after;
    let (resource, code, left) = state.faults.status.as_mut()?;
    let plural = match Target::parse(path) {
        Some(target) => target.resource.plural,
        None if EventPath::parse(path).is_some() => "events",
        None => "",
    };
    if (!resource.is_empty() && resource != plural) || *left == 0 {
        return None;
    }
    *left -= 1;
    let (reason, message) = match *code {
        400 => ("BadRequest", "injected failure"),
        401 => ("Unauthorized", "Unauthorized"),
        403 => ("Forbidden", "forbidden: User \"test\" cannot do this at the cluster scope"),
        404 => ("NotFound", "the server could not find the requested resource"),
        410 => ("Expired", "too old resource version: injected failure"),
        429 => (
            "TooManyRequests",
            "the server has received too many requests and has asked us to try again later",
        ),
        503 => ("ServiceUnavailable", "apiserver not ready"),
        504 => ("Timeout", "the request timed out"),
        _ => ("InternalError", "an error on the server has prevented the request from succeeding"),
    };
    let mut response = failure(&Refusal::new(*code, reason, message));
    if let Some(seconds) = retry_after.or((*code == 429).then_some(RETRY_SECONDS)) {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    Some(response)
}

fn one(state: &State, target: &Target, name: &str) -> Result<Response<Body>, Refusal> {
    let namespace = target.namespace.as_deref().unwrap_or_default();
    let object = state.objects.get(target.resource.kind, namespace, name);
    let missing =
        || Refusal::new(404, "NotFound", format!("{} \"{name}\" not found", target.resource.plural));
    object.map(|object| whole(StatusCode::OK, object)).ok_or_else(missing)
}

/// The items of a list carry no kind of their own, as from a real server.
fn list(state: &State, target: &Target, options: &Options) -> Result<Response<Body>, Refusal> {
    let now = state.objects.version();
    let asked = options.version.unwrap_or(0);
    if asked > now {
        return Err(Refusal::new(
            504,
            "Timeout",
            format!("Too large resource version: {asked}, current: {now}"),
        ));
    }
    // Later pages are of the same moment as the first one.
    let (version, start) = options.token.unwrap_or((if options.exact { asked } else { now }, 0));
    let objects = state.objects.list(target.resource.kind, &options.selector, version);
    let objects = objects.ok_or_else(|| match options.token {
        Some(_) => Refusal::new(410, "Expired", "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter."),
        None => Refusal::expired(version, now),
    })?;
    // A list of any version comes from a cache that knows no pages.
    let limit = options.limit.filter(|_| options.version != Some(0)).unwrap_or(usize::MAX);
    let end = start.saturating_add(limit).min(objects.len());
    let mut metadata = json!({"resourceVersion": version.to_string()});
    if end < objects.len() {
        metadata["continue"] = json!(render_token(version, end));
        if options.selector.is_everything() {
            metadata["remainingItemCount"] = json!(objects.len() - end);
        }
    }
    let mut list = format!(
        r#"{{"kind":"{}List","apiVersion":"{}","metadata":{metadata},"items":["#,
        target.resource.kind, target.resource.api_version
    );
    for (index, object) in objects.iter().take(end).skip(start).enumerate() {
        list.push_str(if index == 0 { "{" } else { ",{" });
        list.push_str(object.item());
    }
    list.push_str("]}");
    Ok(if state.faults.truncate_list_body { truncated(list) } else { sent(StatusCode::OK, list) })
}

/// Nodes in the form of `kubectl get nodes -o wide`.
fn table(state: &State, options: &Options) -> Response<Body> {
    let version = state.objects.version();
    let nodes = state.objects.list("Node", &options.selector, version).unwrap_or_default();
    let names = ["Name", "Status", "Roles", "Age", "Version", "Internal-IP", "External-IP", "OS-Image"];
    let columns: Vec<Value> = names
        .iter()
        .map(|name| json!({"name": name, "type": "string", "format": "", "description": "", "priority": 0}))
        .collect();
    let row = |node: &Value| {
        let address = |kind: &str| {
            let all = node["status"]["addresses"].as_array().into_iter().flatten();
            all.filter(|a| a["type"] == kind)
                .find_map(|a| a["address"].as_str())
                .unwrap_or("<none>")
                .to_owned()
        };
        let name = node["metadata"]["name"].as_str().unwrap_or_default();
        let (internal, external) = (address("InternalIP"), address("ExternalIP"));
        json!({"cells": [name, "Ready", "<none>", "1d", "v1.36.2", internal, external, "Debian"], "object": null})
    };
    let rows: Vec<Value> = nodes.iter().map(|node| row(&node.value)).collect();
    let metadata = json!({"resourceVersion": version.to_string()});
    let table = json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
                       "columnDefinitions": columns, "rows": rows});
    whole(StatusCode::OK, &table)
}

pub(super) fn status(refusal: &Refusal) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
           "message": refusal.message, "reason": refusal.reason, "code": refusal.code})
}

fn failure(refusal: &Refusal) -> Response<Body> {
    whole(StatusCode::from_u16(refusal.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), &status(refusal))
}

fn full(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

fn whole(code: StatusCode, value: &Value) -> Response<Body> {
    sent(code, value.to_string())
}

fn sent(code: StatusCode, text: String) -> Response<Body> {
    let mut response = Response::new(full(Bytes::from(text)));
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// An answer that announces its whole length and ends in the middle.
fn truncated(text: String) -> Response<Body> {
    let mut text = text.into_bytes();
    let length = text.len();
    text.truncate(length / 2);
    let parts = stream::unfold(Some(text), |half| async move {
        match half {
            Some(half) if !half.is_empty() => Some((Ok(Frame::data(Bytes::from(half))), Some(Vec::new()))),
            Some(_) => {
                sleep(FLUSH).await;
                Some((Err(io::Error::other("cut off")), None))
            }
            None => None,
        }
    });
    let mut response = Response::new(StreamBody::new(parts).boxed_unsync());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(length));
    response
}
