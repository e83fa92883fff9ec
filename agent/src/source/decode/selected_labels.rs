// SPDX-License-Identifier: Apache-2.0
//! The labels of Services by which `kubeIPVS.serviceDefaults` selects. The configuration names them, so the lists of used
//! fields that have them are made at the start. Without such labels nothing is read.

use std::sync::{Arc, OnceLock};

use super::tape::{Tape, UsedField, plain};
use super::used_fields::UsedFields;
use super::{intern, service, untyped};
use crate::core::model::service_defaults::Labels;

static SELECTED: OnceLock<SelectedLabels> = OnceLock::new();

struct SelectedLabels {
    keys: Vec<&'static str>,
    service: &'static [UsedField],
    untyped: &'static [UsedField],
}

/// Reads the labels with these keys of all Services from now on. Call it before the first object is read: a further call
/// has no effect, because the configuration is read once in the life of a process.
pub fn select(keys: &[&str]) {
    if keys.is_empty() {
        return;
    }
    SELECTED.get_or_init(|| {
        // The lists of used fields live as long as the process.
        let keys: Vec<&'static str> = keys.iter().map(|key| &*String::leak((*key).to_owned())).collect();
        let service = with_labels(service::RawService::FIELDS, &keys);
        let untyped = with_labels(&untyped::ALL_FIELDS, &keys);
        SelectedLabels { keys, service, untyped }
    });
}

/// The used fields of a Service.
pub(super) fn service_fields() -> &'static [UsedField] {
    SELECTED.get().map_or(service::RawService::FIELDS, |selected| selected.service)
}

/// The used fields of an object of any kind.
pub(super) fn untyped_fields() -> &'static [UsedField] {
    SELECTED.get().map_or(&untyped::ALL_FIELDS, |selected| selected.untyped)
}

/// The selected labels of an object; `None` if it has none.
pub(super) fn of_object(tape: &Tape<'_>) -> Option<Arc<Labels>> {
    let selected = SELECTED.get()?;
    let labels = tape.at(&["metadata", "labels"])?;
    let label = |key: &&str| Some((intern::text(key), intern::text(labels.get(key)?.text()?)));
    intern::labels(Labels(selected.keys.iter().filter_map(label).collect()))
}

/// The fields, with the labels of these keys in the metadata.
fn with_labels(fields: &[UsedField], keys: &[&'static str]) -> &'static [UsedField] {
    let field = |field: &UsedField| match *field {
        UsedField(name @ "metadata", inside) => UsedField(name, with_labels(inside, keys)),
        UsedField(name @ "labels", known) => {
            let new = keys.iter().filter(|key| known.iter().all(|field| field.0 != **key)).copied();
            UsedField(name, Vec::leak(known.iter().copied().chain(new.map(plain)).collect()))
        }
        other => other,
    };
    Vec::leak(fields.iter().map(field).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::store::{Kind, Object};
    use crate::testing::LABEL_KEYS;

    fn labels(value: Value) -> Option<Arc<Labels>> {
        let service = json!({
            "metadata": {"name": "web", "labels": value},
            "spec": {"clusterIP": "10.96.0.10", "ports": [{"port": 80}]},
        });
        let Object::Service(service) = super::super::decode(Kind::Service, &service).unwrap() else {
            panic!()
        };
        service.labels
    }

    #[test]
    fn only_selected_labels_are_kept_and_equal_ones_are_shared() {
        select(&LABEL_KEYS);
        let both = json!({"app.example/team": "a", "other": "x", "tier": "b", "k8s-app": "c"});
        let label = |key: &str, value: &str| (Arc::from(key), Arc::from(value));
        let kept = labels(both.clone()).unwrap();
        assert_eq!(*kept.0, [label("app.example/team", "a"), label("tier", "b")]);
        assert!(Arc::ptr_eq(&kept, &labels(both).unwrap()));
        for none in [json!({"other": "x"}), json!({}), Value::Null, json!({"tier": 1}), json!(["tier"])] {
            assert_eq!(labels(none), None);
        }
    }

    #[test]
    fn the_labels_of_selectors_are_added_to_those_that_are_always_read() {
        let find = |fields: &[UsedField], name: &str| fields.iter().find(|field| field.0 == name).copied();
        for fields in [service::RawService::FIELDS, &untyped::ALL_FIELDS] {
            let more = with_labels(fields, &["k8s-app", "tier"]);
            let names = |fields: &[UsedField]| fields.iter().map(|field| field.0).collect::<Vec<_>>();
            assert_eq!(names(more), names(fields));
            let known = find(find(fields, "metadata").unwrap().1, "labels").unwrap().1;
            let labels = find(find(more, "metadata").unwrap().1, "labels").unwrap().1;
            assert_eq!(names(labels), [names(known), vec!["tier"]].concat());
        }
    }
}
