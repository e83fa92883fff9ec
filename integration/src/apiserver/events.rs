// SPDX-License-Identifier: Apache-2.0
//! Posted Events, with the validation of a real server.

use serde_json::{Map, Value};

use super::objects::text;
use super::request::Refusal;

/// The group whose Events are validated. Events of the core group are not.
const GROUP: &str = "events.k8s.io";
/// The longest note, and the longest of the other texts, in bytes.
const NOTE_BYTES: usize = 1024;
const TEXT_BYTES: usize = 128;
/// Required fields of an Event of the group.
const REQUIRED: [&str; 6] =
    ["eventTime", "reportingController", "reportingInstance", "action", "reason", "type"];

/// The target of a path.
#[derive(Debug, PartialEq, Eq)]
pub struct EventPath<'a> {
    group: &'a str,
    namespace: &'a str,
    /// The name of a single Event, if the path has one.
    name: Option<&'a str>,
}

impl<'a> EventPath<'a> {
    /// Parses a path of Events of either group. `None`: another path.
    pub fn parse(path: &'a str) -> Option<Self> {
        let parts: Vec<&str> = path.strip_prefix('/')?.split('/').collect();
        let (group, rest) = match parts.as_slice() {
            ["apis", GROUP, "v1", rest @ ..] => (GROUP, rest),
            ["api", "v1", rest @ ..] => ("", rest),
            _ => return None,
        };
        match rest {
            ["namespaces", namespace, "events"] => Some(Self { group, namespace, name: None }),
            ["namespaces", namespace, "events", name] => Some(Self { group, namespace, name: Some(name) }),
            _ => None,
        }
    }
}

/// All Events, in the order in which they were created.
#[derive(Debug, Default)]
pub struct Events(Vec<Value>);

impl Events {
    /// The Events as they are now.
    pub fn all(&self) -> &[Value] {
        &self.0
    }

    /// Takes a new Event.
    ///
    /// # Errors
    /// The error of a real server.
    pub fn create(&mut self, path: &EventPath<'_>, mut event: Value) -> Result<&Value, Refusal> {
        let name = text(&event, "/metadata/name").to_owned();
        if name.is_empty() {
            return Err(invalid("metadata.name", "Required value: name or generateName is required"));
        }
        if !["", path.namespace].contains(&text(&event, "/metadata/namespace")) {
            let message =
                "the namespace of the provided object does not match the namespace sent on the request";
            return Err(Refusal::new(400, "BadRequest", message));
        }
        if self.position(path.namespace, &name).is_some() {
            return Err(Refusal::new(409, "AlreadyExists", format!("events \"{name}\" already exists")));
        }
        if path.group == GROUP {
            check(path, &event)?;
        }
        event["metadata"]["namespace"] = path.namespace.into();
        self.0.push(event);
        Ok(self.0.last().unwrap_or(&Value::Null))
    }

    /// Changes an Event by a merge patch.
    ///
    /// # Errors
    /// The error of a real server.
    pub fn patch(&mut self, path: &EventPath<'_>, patch: Value) -> Result<&Value, Refusal> {
        let name = path.name.unwrap_or_default();
        let missing = || Refusal::new(404, "NotFound", format!("events \"{name}\" not found"));
        let position = self.position(path.namespace, name).ok_or_else(missing)?;
        let before = self.0[position].clone();
        let mut after = before.clone();
        merge(&mut after, patch);
        let fixed = |event: &Value| {
            let mut fields = event.as_object().cloned().unwrap_or_default();
            fields.retain(|field, _| field != "series" && field != "metadata");
            fields
        };
        if path.group == GROUP && fixed(&before) != fixed(&after) {
            return Err(invalid("event", "Invalid value: field is immutable"));
        }
        self.0[position] = after;
        Ok(&self.0[position])
    }

    /// Deletes all Events, as a server does when they expire.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    fn position(&self, namespace: &str, name: &str) -> Option<usize> {
        let is = |event: &Value| {
            text(event, "/metadata/namespace") == namespace && text(event, "/metadata/name") == name
        };
        self.0.iter().position(is)
    }
}

fn invalid(field: &str, why: &str) -> Refusal {
    Refusal::new(422, "Invalid", format!("Event \"\" is invalid: {field}: {why}"))
}

fn check(path: &EventPath<'_>, event: &Value) -> Result<(), Refusal> {
    for field in REQUIRED {
        let value = event[field].as_str().unwrap_or_default();
        if value.is_empty() || value.len() > TEXT_BYTES {
            return Err(invalid(field, "Required value, or too long"));
        }
    }
    if event["note"].as_str().unwrap_or_default().len() > NOTE_BYTES {
        return Err(invalid("note", "can have at most 1024 characters"));
    }
    let about = text(event, "/regarding/namespace");
    if about != path.namespace && !(about.is_empty() && path.namespace == "default") {
        return Err(invalid("regarding.namespace", "Invalid value: does not match event.namespace"));
    }
    if !matches!(text(event, "/type"), "Normal" | "Warning") {
        return Err(invalid("type", "Invalid value: has invalid value"));
    }
    Ok(())
}

/// A JSON merge patch (RFC 7386): objects are merged, null removes, all else replaces.
fn merge(value: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *value = patch;
        return;
    };
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    let Some(fields) = value.as_object_mut() else { return };
    for (field, patch) in patch {
        if patch.is_null() {
            fields.remove(&field);
        } else {
            merge(fields.entry(field).or_insert(Value::Null), patch);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const PATH: &str = "/apis/events.k8s.io/v1/namespaces/d/events";

    fn event() -> Value {
        json!({"metadata": {"name": "e"}, "eventTime": "2026-01-01T00:00:00.000000Z", "action": "Sync",
               "reportingController": "c", "reportingInstance": "i", "reason": "R", "type": "Warning",
               "regarding": {"namespace": "d"}, "note": "x"})
    }

    #[test]
    fn paths() {
        let path = EventPath::parse(PATH).unwrap();
        assert_eq!(path, EventPath { group: GROUP, namespace: "d", name: None });
        assert_eq!(EventPath::parse("/api/v1/namespaces/d/events/e").unwrap().name, Some("e"));
        for other in ["/api/v1/events", "/apis/apps/v1/namespaces/d/events", "/api/v1/namespaces/d/pods"] {
            assert_eq!(EventPath::parse(other), None, "{other}");
        }
    }

    #[test]
    fn invalid_requests_are_rejected() {
        let mut events = Events::default();
        let path = EventPath::parse(PATH).unwrap();
        let without = |field: &str| {
            let mut event = event();
            event[field] = Value::Null;
            event
        };
        for field in REQUIRED {
            assert_eq!(events.create(&path, without(field)).unwrap_err().code, 422, "{field}");
        }
        let set = |field: &str, value: Value| {
            let mut event = event();
            event[field] = value;
            event
        };
        for (bad, code) in [
            (set("note", "x".repeat(1025).into()), 422),
            (set("regarding", json!({"namespace": "other"})), 422),
            (set("type", "Bad".into()), 422),
            (set("metadata", json!({})), 422),
            (set("metadata", json!({"name": "e", "namespace": "other"})), 400),
        ] {
            assert_eq!(events.create(&path, bad).unwrap_err().code, code);
        }
        assert!(events.create(&path, event()).is_ok());
        assert_eq!(events.create(&path, event()).unwrap_err().code, 409);
        assert_eq!(events.all().len(), 1);
    }

    #[test]
    fn a_patch_may_only_change_the_count() {
        let mut events = Events::default();
        events.create(&EventPath::parse(PATH).unwrap(), event()).unwrap();
        let named = format!("{PATH}/e");
        let path = EventPath::parse(&named).unwrap();
        assert_eq!(events.patch(&path, json!({"note": "y"})).unwrap_err().code, 422);
        events.patch(&path, json!({"series": {"count": 2}})).unwrap();
        events.patch(&path, json!({"series": {"lastObservedTime": "t"}})).unwrap();
        assert_eq!(events.all()[0]["series"], json!({"count": 2, "lastObservedTime": "t"}));
        events.patch(&path, json!({"series": null})).unwrap();
        assert!(events.all()[0].get("series").is_none());
        events.clear();
        assert_eq!(events.patch(&path, json!({})).unwrap_err().code, 404);
    }
}
