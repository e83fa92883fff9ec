// SPDX-License-Identifier: Apache-2.0
//! Label and field selectors, and the watch events of a change under a selector.

use std::fmt;
use std::sync::Arc;

use serde_json::Value;

use super::objects::{Change, Stored, set_version, text};

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

impl Term {
    fn parse(term: &str) -> Result<Self, String> {
        let is_name = |b: u8| b.is_ascii_alphanumeric() || b"-_./".contains(&b);
        let own = |name: &str| {
            let name = name.trim();
            // Set-based terms (`key in (a,b)`) are not implemented; a real server accepts them.
            if name.bytes().all(is_name) {
                return Ok(name.to_owned());
            }
            Err(format!("unable to parse requirement: unexpected '{name}'"))
        };
        if let Some((key, value)) = term.split_once("!=") {
            Ok(Self::IsNot(own(key)?, own(value)?))
        } else if let Some((key, value)) = term.split_once("==").or_else(|| term.split_once('=')) {
            Ok(Self::Is(own(key)?, own(value)?))
        } else if let Some(key) = term.strip_prefix('!') {
            Ok(Self::HasNot(own(key)?))
        } else {
            Ok(Self::Has(own(term)?))
        }
    }

    fn key(&self) -> &str {
        match self {
            Self::Has(key) | Self::HasNot(key) | Self::Is(key, _) | Self::IsNot(key, _) => key,
        }
    }

    fn holds(&self, value: Option<&str>) -> bool {
        match self {
            Self::Has(_) => value.is_some(),
            Self::HasNot(_) => value.is_none(),
            Self::Is(_, wanted) => value == Some(wanted),
            Self::IsNot(_, wanted) => value != Some(wanted),
        }
    }
}

fn terms(text: &str) -> Result<Vec<Term>, String> {
    text.split(',').map(str::trim).filter(|t| !t.is_empty()).map(Term::parse).collect()
}

impl Selector {
    /// The selector of a request.
    ///
    /// # Errors
    /// What a real server would say: a term that cannot be read, or a field that is not in `known`.
    pub fn new(labels: &str, fields: &str, namespace: Option<&str>, known: &[&str]) -> Result<Self, String> {
        let fields = terms(fields)?;
        for term in &fields {
            if !matches!(term, Term::Is(..) | Term::IsNot(..)) {
                return Err(format!("invalid selector: '{}'; can't understand it", term.key()));
            }
            if !known.contains(&term.key()) {
                return Err(format!("field label not supported: {}", term.key()));
            }
        }
        Ok(Self { labels: terms(labels)?, fields, namespace: namespace.map(str::to_owned) })
    }

    /// The fields that it names.
    pub fn fields(&self) -> impl Iterator<Item = &str> {
        self.fields.iter().map(Term::key)
    }

    /// The namespace, if only one is selected.
    pub fn namespace(&self) -> Option<&str> {
        self.namespace.as_deref()
    }

    /// Whether nothing but a namespace is selected.
    pub fn is_everything(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    /// Whether an object is selected.
    pub fn takes(&self, object: &Value) -> bool {
        let label = |key: &str| object["metadata"]["labels"].get(key).and_then(Value::as_str);
        // A field that is absent is empty; a label that is absent is absent.
        let at = |key: &str| key.split('.').try_fold(object, |value, part| value.get(part));
        let field = |key: &str| at(key).and_then(Value::as_str).unwrap_or_default();
        self.labels.iter().all(|t| t.holds(label(t.key())))
            && self.fields.iter().all(|t| t.holds(Some(field(t.key()))))
            && self.namespace.as_ref().is_none_or(|ns| text(object, "/metadata/namespace") == ns)
    }

    /// The text of the watch event of a change under this selector.
    pub fn event(&self, change: &Change) -> Option<String> {
        let taken = |object: &Option<Arc<Stored>>| object.clone().filter(|o| self.takes(&o.value));
        let (kind, object) = match (taken(&change.before), taken(&change.after)) {
            (None, None) => return None,
            // Its version is the one that the change made.
            (None, Some(after)) => return Some(render_event("ADDED", after.text())),
            (Some(_), Some(after)) => return Some(render_event("MODIFIED", after.text())),
            (Some(before), None) => ("DELETED", before),
        };
        let mut object = object.value.clone();
        set_version(&mut object, change.version);
        Some(render_event(kind, &object))
    }
}

/// A watch event, in the order of a real server: the type first.
pub fn render_event(kind: &str, object: impl fmt::Display) -> String {
    format!("{{\"type\":\"{kind}\",\"object\":{object}}}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const KNOWN: [&str; 3] = ["metadata.name", "metadata.namespace", "spec.clusterIP"];

    fn object(name: &str, labels: Value) -> Value {
        json!({"kind": "Service", "metadata": {"name": name, "namespace": "d", "labels": labels},
               "spec": {"clusterIP": "10.0.0.1"}})
    }

    fn selector(labels: &str, fields: &str, namespace: Option<&str>) -> Selector {
        Selector::new(labels, fields, namespace, &KNOWN).unwrap()
    }

    #[test]
    fn selectors_of_kube_proxy() {
        let ours = selector("!service.kubernetes.io/service-proxy-name", "spec.clusterIP!=None", None);
        assert!(ours.takes(&object("a", json!({}))));
        assert!(!ours.takes(&object("a", json!({"service.kubernetes.io/service-proxy-name": "x"}))));
        let mut service = object("a", json!({}));
        service["spec"] = json!({});
        assert!(ours.takes(&service), "no clusterIP is not None");
        service["spec"]["clusterIP"] = json!("None");
        assert!(!ours.takes(&service));
    }

    #[test]
    fn all_forms_of_terms() {
        let taken = |labels: &str| selector(labels, "", None).takes(&object("x", json!({"a": "b", "c": ""})));
        for labels in ["a", "a=b", "a==b", "!z", "a!=z", "z!=a", "a=b,c", "c=", ""] {
            assert!(taken(labels), "{labels}");
        }
        for labels in ["z", "a=z", "!a", "a!=b", "a=b,z", "z="] {
            assert!(!taken(labels), "{labels}");
        }
        let named = "metadata.name=x,metadata.namespace!=e";
        assert!(selector("", named, Some("d")).takes(&object("x", json!({}))));
        assert!(!selector("", named, None).takes(&object("y", json!({}))));
        assert!(!selector("", "", Some("e")).takes(&object("x", json!({}))));
    }

    #[test]
    fn invalid_selectors_are_rejected() {
        assert!(Selector::new("a in (b)", "", None, &KNOWN).is_err());
        assert!(Selector::new("", "spec.ports=1", None, &KNOWN).unwrap_err().contains("not supported"));
        assert!(Selector::new("", "metadata.name", None, &KNOWN).is_err());
    }
}
