// SPDX-License-Identifier: Apache-2.0
//! The stored objects with their history.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write;
use std::ops::Bound;
use std::sync::Arc;

use serde_json::{Value, json};

use super::selector::Selector;

/// Default length of the history.
const HISTORY: usize = 65_536;

/// Kind, namespace, name.
type Key = (String, String, String);

/// An object with its text, which is sent many times.
#[derive(Debug, PartialEq)]
pub struct Stored {
    /// The object.
    pub value: Value,
    text: String,
    /// Where the fields after kind and version begin in the text.
    body: usize,
}

impl Stored {
    fn new(value: Value) -> Self {
        let head = ["kind", "apiVersion"];
        let add = |text: &mut String, name: &str, field: &Value| {
            let comma = if text.len() > 1 { "," } else { "" };
            // Writing to a string does not fail.
            let _ = write!(text, "{comma}{}:{field}", Value::from(name));
        };
        let mut text = "{".to_owned();
        for name in head {
            if let Some(field) = value.get(name) {
                add(&mut text, name, field);
            }
        }
        // After the comma, if there is one.
        let body = if text.len() > 1 { text.len() + 1 } else { 1 };
        let fields = value.as_object().into_iter().flatten();
        for (name, field) in fields.filter(|(name, _)| !head.contains(&name.as_str())) {
            add(&mut text, name, field);
        }
        text.push('}');
        Self { body: body.min(text.len() - 1), value, text }
    }

    /// The whole object.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Without the opening brace, and without kind and version, as the items of a list are.
    pub fn item(&self) -> &str {
        &self.text[self.body..]
    }
}

/// A change: the version it made, and the object before and after.
#[derive(Clone, Debug)]
pub struct Change {
    /// The version it made.
    pub version: u64,
    /// The object before; `None`: it is new.
    pub before: Option<Arc<Stored>>,
    /// The object after; `None`: it was deleted.
    pub after: Option<Arc<Stored>>,
    key: Key,
}

/// All objects and the history of their changes.
#[derive(Debug)]
pub struct Objects {
    stored: BTreeMap<Key, Arc<Stored>>,
    history: VecDeque<Change>,
    limit: usize,
    version: u64,
    /// The history begins after this version.
    oldest: u64,
}

impl Default for Objects {
    fn default() -> Self {
        // Version 0 means "any" to clients, so there is no such version.
        Self { stored: BTreeMap::new(), history: VecDeque::new(), limit: HISTORY, version: 1, oldest: 1 }
    }
}

/// The text at a JSON pointer; empty when there is none.
pub fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// Sets the resource version of an object.
pub fn set_version(object: &mut Value, version: u64) {
    object["metadata"]["resourceVersion"] = json!(version.to_string());
}

fn key(object: &Value) -> Key {
    let field = |pointer| text(object, pointer).to_owned();
    (field("/kind"), field("/metadata/namespace"), field("/metadata/name"))
}

impl Objects {
    /// The version of the last change.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Replaces all objects.
    pub fn replace_all(&mut self, objects: Vec<Value>) {
        let keys: BTreeSet<Key> = objects.iter().map(key).collect();
        let gone: Vec<Key> = self.stored.keys().filter(|k| !keys.contains(*k)).cloned().collect();
        for (kind, namespace, name) in gone {
            self.delete(&kind, &namespace, &name);
        }
        for object in objects {
            self.apply(object);
        }
    }

    /// Adds an object or replaces its earlier version; one that is the same is no change.
    pub fn apply(&mut self, mut object: Value) {
        let key = key(&object);
        let before = self.stored.get(&key).cloned();
        // The version is the server's own: an object that differs in nothing else is unchanged.
        if let Some(before) = &before {
            object["metadata"]["resourceVersion"] = before.value["metadata"]["resourceVersion"].clone();
            if before.value == object {
                return;
            }
        }
        set_version(&mut object, self.version + 1);
        let after = Arc::new(Stored::new(object));
        self.stored.insert(key.clone(), after.clone());
        self.record(key, before, Some(after));
    }

    /// Removes an object, if it exists.
    pub fn delete(&mut self, kind: &str, namespace: &str, name: &str) {
        let key = (kind.to_owned(), namespace.to_owned(), name.to_owned());
        if let Some(before) = self.stored.remove(&key) {
            self.record(key, Some(before), None);
        }
    }

    fn record(&mut self, key: Key, before: Option<Arc<Stored>>, after: Option<Arc<Stored>>) {
        self.version += 1;
        self.history.push_back(Change { version: self.version, before, after, key });
        self.trim();
    }

    fn trim(&mut self) {
        while self.history.len() > self.limit {
            self.oldest = self.history.pop_front().map_or(self.version, |change| change.version);
        }
    }

    /// Sets the length of the history.
    pub fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
        self.trim();
    }

    /// Deletes the history and starts a new version, so that every earlier version is too old.
    pub fn compact(&mut self) {
        self.version += 1;
        self.oldest = self.version;
        self.history.clear();
    }

    /// Restores these objects at this version, without history.
    pub fn restore(&mut self, objects: Vec<Value>, version: u64) {
        let stored = |mut object: Value| {
            set_version(&mut object, version);
            (key(&object), Arc::new(Stored::new(object)))
        };
        self.stored = objects.into_iter().map(stored).collect();
        self.history.clear();
        (self.version, self.oldest) = (version, version);
    }

    /// One object.
    pub fn get(&self, kind: &str, namespace: &str, name: &str) -> Option<&Value> {
        self.stored.get(&(kind.to_owned(), namespace.to_owned(), name.to_owned())).map(|stored| &stored.value)
    }

    /// The objects of a kind that a selector takes, in the order of their names, as they were at a
    /// version; `None` when it is too old.
    pub fn list(&self, kind: &str, selector: &Selector, version: u64) -> Option<Vec<Arc<Stored>>> {
        if version < self.oldest {
            return None;
        }
        let namespace = selector.namespace();
        let asked = |key: &Key| key.0 == kind && namespace.is_none_or(|namespace| key.1 == namespace);
        // A real server finds the objects of a namespace without looking at all others, too.
        let first = (kind.to_owned(), namespace.unwrap_or_default().to_owned(), String::new());
        let from_first = self.stored.range((Bound::Included(first), Bound::Unbounded));
        let mut objects: BTreeMap<&Key, &Arc<Stored>> =
            from_first.take_while(|(key, _)| asked(key)).collect();
        let undone = self.history.iter().rev().take_while(|change| change.version > version);
        for change in undone.filter(|change| asked(&change.key)) {
            match &change.before {
                Some(before) => objects.insert(&change.key, before),
                None => objects.remove(&change.key),
            };
        }
        Some(objects.into_values().filter(|object| selector.takes(&object.value)).cloned().collect())
    }

    /// The changes of a kind after a version; `None` when it is too old.
    pub fn since(&self, version: u64, kind: &str) -> Option<impl Iterator<Item = &Change>> {
        if version < self.oldest {
            return None;
        }
        let after = self.history.partition_point(|change| change.version <= version);
        Some(self.history.range(after..).filter(move |change| change.key.0 == kind))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(name: &str, labels: Value) -> Value {
        json!({"kind": "Service", "metadata": {"name": name, "namespace": "d", "labels": labels}})
    }

    fn names(objects: &Objects, version: u64) -> Vec<String> {
        let all = objects.list("Service", &Selector::default(), version).unwrap();
        all.iter().map(|o| text(&o.value, "/metadata/name").to_owned()).collect()
    }

    #[test]
    fn an_object_that_leaves_the_selection_is_deleted_for_the_watcher() {
        let mut objects = Objects::default();
        let selector = Selector::new("!proxy", "", None, &[]).unwrap();
        objects.apply(object("a", json!({})));
        objects.apply(object("a", json!({})));
        objects.apply(object("a", json!({"proxy": "x"})));
        objects.apply(object("a", json!({})));
        let parse = |line: String| {
            assert!(line.starts_with("{\"type\":"), "{line}");
            serde_json::from_str(&line).unwrap()
        };
        let events: Vec<Value> =
            objects.since(1, "Service").unwrap().filter_map(|c| selector.event(c)).map(parse).collect();
        let kinds: Vec<&str> = events.iter().map(|e| text(e, "/type")).collect();
        assert_eq!(kinds, ["ADDED", "DELETED", "ADDED"]);
        let versions: Vec<&str> =
            events.iter().map(|e| text(e, "/object/metadata/resourceVersion")).collect();
        assert_eq!(versions, ["2", "3", "4"]);
        objects.compact();
        assert!(objects.since(4, "Service").is_none());
        assert!(objects.since(5, "Service").is_some());
    }

    #[test]
    fn only_differences_are_changes_and_old_versions_can_be_listed() {
        let mut objects = Objects::default();
        objects.replace_all(vec![object("a", json!({})), object("b", json!({}))]);
        let before = objects.version();
        objects.replace_all(vec![object("b", json!({})), object("c", json!({})), object("c", json!({}))]);
        assert_eq!(objects.version(), before + 2, "a goes and c comes");
        assert_eq!(names(&objects, before), ["a", "b"]);
        assert_eq!(names(&objects, objects.version()), ["b", "c"]);
    }

    #[test]
    fn objects_are_rendered_with_kind_first_and_items_without_kind() {
        for (value, text, item) in [
            (
                json!({"a": 1, "apiVersion": "v1", "kind": "K", "z": {}}),
                r#"{"kind":"K","apiVersion":"v1","a":1,"z":{}}"#,
                r#""a":1,"z":{}}"#,
            ),
            (json!({"kind": "K", "z": 1}), r#"{"kind":"K","z":1}"#, r#""z":1}"#),
            (json!({"z": 1}), r#"{"z":1}"#, r#""z":1}"#),
            (json!({"kind": "K"}), r#"{"kind":"K"}"#, "}"),
            (json!({}), "{}", "}"),
        ] {
            let stored = Stored::new(value);
            assert_eq!((stored.text(), stored.item()), (text, item));
        }
    }

    #[test]
    fn history_is_limited() {
        let mut objects = Objects::default();
        objects.set_limit(2);
        objects.replace_all(vec![object("a", json!({})), object("b", json!({})), object("c", json!({}))]);
        assert!(objects.since(1, "Service").is_none());
        assert_eq!(objects.since(2, "Service").unwrap().count(), 2);
    }
}
