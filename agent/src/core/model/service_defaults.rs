// SPDX-License-Identifier: Apache-2.0
//! Defaults for settings of Services, chosen by namespace and by labels: `kubeIPVS.serviceDefaults`.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Service;
use super::options::ServiceOptions;

/// Labels of an object, as key and value.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Labels(pub Box<[(Arc<str>, Arc<str>)]>);

impl Labels {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(name, _)| &**name == key).map(|(_, value)| &**value)
    }
}

/// One entry: the Services that it selects, and their settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceDefault {
    pub namespaces: Namespaces,
    /// All of them must hold.
    pub requirements: Vec<LabelRequirement>,
    /// Services without options of their own share it.
    pub options: Arc<ServiceOptions>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Namespaces {
    All,
    /// Names; with a `*` at the end, all names that begin so.
    Some(Vec<String>),
}

impl Namespaces {
    fn has(&self, namespace: &str) -> bool {
        let matches = |pattern: &String| match pattern.strip_suffix('*') {
            Some(beginning) => namespace.starts_with(beginning),
            None => namespace == pattern,
        };
        match self {
            Namespaces::All => true,
            Namespaces::Some(patterns) => patterns.iter().any(matches),
        }
    }
}

/// What a label selector requires of the label `key`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelRequirement {
    pub key: String,
    pub operator: LabelOperator,
}

/// The operators of `matchExpressions`, with their values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LabelOperator {
    In(Vec<String>),
    /// An object without the label matches, too.
    NotIn(Vec<String>),
    Exists,
    DoesNotExist,
}

impl LabelRequirement {
    fn is_met(&self, labels: &Labels) -> bool {
        let value = labels.get(&self.key);
        let is_one_of = |values: &[String]| value.is_some_and(|value| values.iter().any(|one| one == value));
        match &self.operator {
            LabelOperator::In(values) => is_one_of(values),
            LabelOperator::NotIn(values) => !is_one_of(values),
            LabelOperator::Exists => value.is_some(),
            LabelOperator::DoesNotExist => value.is_none(),
        }
    }
}

impl ServiceDefault {
    pub fn selects(&self, service: &Service) -> bool {
        let none = Labels::default();
        let labels = service.labels.as_deref().unwrap_or(&none);
        self.namespaces.has(&service.name.namespace)
            && self.requirements.iter().all(|requirement| requirement.is_met(labels))
    }
}

/// The keys of the labels that selectors name, sorted.
pub fn label_keys(defaults: &[ServiceDefault]) -> Vec<&str> {
    let requirements = defaults.iter().flat_map(|default| &default.requirements);
    let mut keys: Vec<&str> = requirements.map(|requirement| requirement.key.as_str()).collect();
    keys.sort_unstable();
    keys.dedup();
    keys
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::model::ObjectName;

    fn default(namespaces: Namespaces, requirements: &[(&str, LabelOperator)]) -> ServiceDefault {
        let requirement = |(key, operator): &(&str, LabelOperator)| LabelRequirement {
            key: (*key).to_owned(),
            operator: operator.clone(),
        };
        ServiceDefault {
            namespaces,
            requirements: requirements.iter().map(requirement).collect(),
            options: Arc::default(),
        }
    }

    fn service(namespace: &str, labels: &[(&str, &str)]) -> Service {
        let labels = labels.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
        Service {
            name: ObjectName::new(namespace, "web"),
            labels: Some(Arc::new(Labels(labels))),
            ..Service::default()
        }
    }

    #[test]
    fn namespaces_are_names_or_beginnings_of_names() {
        let some = |names: &[&str]| {
            let names = names.iter().map(|name| (*name).to_owned()).collect();
            default(Namespaces::Some(names), &[])
        };
        let selected = |default: &ServiceDefault| {
            let all = ["shop", "shop-2", "web-", "web-a", "web"];
            all.into_iter().filter(|name| default.selects(&service(name, &[]))).collect::<Vec<_>>()
        };
        assert_eq!(selected(&some(&["shop", "web-*"])), ["shop", "web-", "web-a"]);
        assert_eq!(selected(&some(&["*"])).len(), 5);
        assert_eq!(selected(&default(Namespaces::All, &[])).len(), 5);
    }

    #[test]
    fn each_operator_matches_as_in_kubernetes() {
        let values = || vec!["a".to_owned(), "b".to_owned()];
        let selected = |operator: LabelOperator| {
            let default = default(Namespaces::All, &[("tier", operator)]);
            let services = [
                Service { labels: None, ..service("n", &[]) },
                service("n", &[("other", "a")]),
                service("n", &[("other", "x"), ("tier", "a")]),
                service("n", &[("tier", "c")]),
            ];
            services.map(|service| default.selects(&service))
        };
        assert_eq!(selected(LabelOperator::In(values())), [false, false, true, false]);
        assert_eq!(selected(LabelOperator::NotIn(values())), [true, true, false, true]);
        assert_eq!(selected(LabelOperator::Exists), [false, false, true, true]);
        assert_eq!(selected(LabelOperator::DoesNotExist), [true, true, false, false]);
    }

    #[test]
    fn all_requirements_must_hold_and_each_key_is_named_once() {
        let both = default(
            Namespaces::Some(vec!["n".to_owned()]),
            &[
                ("tier", LabelOperator::Exists),
                ("app", LabelOperator::DoesNotExist),
                ("tier", LabelOperator::NotIn(vec!["a".to_owned()])),
            ],
        );
        assert!(both.selects(&service("n", &[("tier", "b")])));
        assert!(!both.selects(&service("m", &[("tier", "b")])));
        assert!(!both.selects(&service("n", &[("tier", "a")])));
        assert!(!both.selects(&service("n", &[("tier", "b"), ("app", "")])));
        assert_eq!(label_keys(&[both.clone(), both]), ["app", "tier"]);
    }
}
