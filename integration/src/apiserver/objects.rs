// SPDX-License-Identifier: Apache-2.0
//! The stored objects with their history, and selectors.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// Kind, namespace, name.
type Key = (String, String, String);

/// A change: the version it made, and the object before and after.
#[derive(Clone, Debug)]
pub struct Change {
    pub version: u64,
    pub kind: String,
    pub before: Option<Value>,
    pub after: Option<Value>,
}

#[derive(Debug, Default)]
pub struct Objects {
    stored: BTreeMap<Key, Value>,
    history: Vec<Change>,
    version: u64,
    oldest: u64,
}

fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn key(object: &Value) -> Key {
    let field = |pointer| text(object, pointer).to_owned();
    (field("/kind"), field("/metadata/namespace"), field("/metadata/name"))
}

impl Objects {
    pub fn version(&self) -> u64 {
        self.version
    }

    pub fn replace_all(&mut self, objects: Vec<Value>) {
        let keys: Vec<Key> = objects.iter().map(key).collect();
        let gone: Vec<Key> = self.stored.keys().filter(|k| !keys.contains(k)).cloned().collect();
        for (kind, namespace, name) in gone {
            self.delete(&kind, &namespace, &name);
        }
        for object in objects {
            self.apply(object);
        }
    }

    pub fn apply(&mut self, mut object: Value) {
        let key = key(&object);
        let before = self.stored.get(&key).cloned();
        // The version is the server's own: an object that differs in nothing else is unchanged.
        if let Some(before) = &before {
            set_version(&mut object, text(before, "/metadata/resourceVersion"));
            if *before == object {
                return;
            }
        }
        self.version += 1;
        set_version(&mut object, &self.version.to_string());
        self.stored.insert(key.clone(), object.clone());
        self.history.push(Change { version: self.version, kind: key.0, before, after: Some(object) });
    }

    pub fn delete(&mut self, kind: &str, namespace: &str, name: &str) {
        let key = (kind.to_owned(), namespace.to_owned(), name.to_owned());
        if let Some(before) = self.stored.remove(&key) {
            self.version += 1;
            self.history.push(Change {
                version: self.version,
                kind: key.0,
                before: Some(before),
                after: None,
            });
        }
    }

    pub fn compact(&mut self) {
        self.version += 1;
        self.oldest = self.version;
        self.history.clear();
    }

    /// The objects of a kind that a selector takes, in the order of their names.
    pub fn list(&self, kind: &str, selector: &Selector) -> Vec<Value> {
        let of_kind = self.stored.iter().filter(|(key, _)| key.0 == kind).map(|(_, object)| object);
        of_kind.filter(|object| selector.takes(object)).cloned().collect()
    }

    /// The changes after a version; `None` when it is too old.
    pub fn since(&self, version: u64, kind: &str) -> Option<Vec<Change>> {
        if version < self.oldest {
            return None;
        }
        let after = self.history.partition_point(|change| change.version <= version);
        Some(self.history[after..].iter().filter(|change| change.kind == kind).cloned().collect())
    }
}

fn set_version(object: &mut Value, version: &str) {
    object["metadata"]["resourceVersion"] = json!(version);
}

/// Labels and fields that an object must or must not have.
#[derive(Clone, Debug, Default)]
pub struct Selector {
    labels: Vec<Term>,
    fields: Vec<Term>,
    namespace: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Term {
    Has(String),
    HasNot(String),
    Is(String, String),
    IsNot(String, String),
}

fn terms(text: &str) -> Vec<Term> {
    let term = |term: &str| {
        let own = str::to_owned;
        if let Some((key, value)) = term.split_once("!=") {
            Term::IsNot(own(key), own(value))
        } else if let Some((key, value)) = term.split_once("==").or_else(|| term.split_once('=')) {
            Term::Is(own(key), own(value))
        } else if let Some(key) = term.strip_prefix('!') {
            Term::HasNot(own(key))
        } else {
            Term::Has(own(term))
        }
    };
    text.split(',').map(str::trim).filter(|t| !t.is_empty()).map(term).collect()
}

impl Selector {
    pub fn new(labels: &str, fields: &str, namespace: Option<&str>) -> Self {
        Self { labels: terms(labels), fields: terms(fields), namespace: namespace.map(str::to_owned) }
    }

    pub fn takes(&self, object: &Value) -> bool {
        let label = |key: &str| object["metadata"]["labels"].get(key).and_then(Value::as_str);
        let field =
            |key: &str| object.pointer(&format!("/{}", key.replace('.', "/"))).and_then(Value::as_str);
        let holds = |term: &Term, value: &dyn Fn(&str) -> Option<String>| match term {
            Term::Has(key) => value(key).is_some(),
            Term::HasNot(key) => value(key).is_none(),
            Term::Is(key, wanted) => value(key).as_ref() == Some(wanted),
            Term::IsNot(key, wanted) => value(key).as_ref() != Some(wanted),
        };
        self.labels.iter().all(|t| holds(t, &|key| label(key).map(str::to_owned)))
            && self.fields.iter().all(|t| holds(t, &|key| field(key).map(str::to_owned)))
            && self.namespace.as_ref().is_none_or(|ns| text(object, "/metadata/namespace") == ns)
    }

    /// The watch event that a change is for somebody with this selector.
    pub fn event(&self, change: &Change) -> Option<Value> {
        let taken = |object: &Option<Value>| object.clone().filter(|o| self.takes(o));
        let (kind, mut object) = match (taken(&change.before), taken(&change.after)) {
            (None, None) => return None,
            (None, Some(after)) => ("ADDED", after),
            (Some(_), Some(after)) => ("MODIFIED", after),
            (Some(before), None) => ("DELETED", before),
        };
        set_version(&mut object, &change.version.to_string());
        Some(json!({"type": kind, "object": object}))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(name: &str, labels: Value) -> Value {
        json!({"kind": "Service", "metadata": {"name": name, "namespace": "d", "labels": labels},
               "spec": {"clusterIP": "10.0.0.1"}})
    }

    #[test]
    fn selectors_of_kube_proxy() {
        let selector = Selector::new("!proxy", "spec.clusterIP!=None", None);
        assert!(selector.takes(&object("a", json!({}))));
        assert!(!selector.takes(&object("a", json!({"proxy": "x"}))));
        let mut headless = object("a", json!({}));
        headless["spec"]["clusterIP"] = json!("None");
        assert!(!selector.takes(&headless));
        assert!(
            Selector::new("a=b,c", "metadata.name=x", Some("d"))
                .takes(&object("x", json!({"a": "b", "c": ""})))
        );
        assert!(!Selector::new("", "", Some("e")).takes(&object("x", json!({}))));
    }

    #[test]
    fn an_object_that_leaves_the_selection_is_deleted_for_the_watcher() {
        let mut objects = Objects::default();
        let selector = Selector::new("!proxy", "", None);
        objects.apply(object("a", json!({})));
        objects.apply(object("a", json!({})));
        objects.apply(object("a", json!({"proxy": "x"})));
        objects.apply(object("a", json!({})));
        let kinds: Vec<Value> = objects
            .since(0, "Service")
            .unwrap()
            .iter()
            .filter_map(|c| selector.event(c))
            .map(|e| e["type"].clone())
            .collect();
        assert_eq!(kinds, ["ADDED", "DELETED", "ADDED"]);
        objects.compact();
        assert!(objects.since(1, "Service").is_none());
    }
}
