// SPDX-License-Identifier: Apache-2.0
//! `kubeIPVS.serviceDefaults`: the parser of its entries. Errors name the field with the index of its entry.

use std::borrow::Cow;
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use serde_json::{Map, Value};

use super::annotations;
use super::fields::is_label_name;
use super::values::{Values, quoted};
use crate::core::model::options::ServiceOptions;
use crate::core::model::service_defaults::{LabelOperator, LabelRequirement, Namespaces, ServiceDefault};

const PATH: &str = "kubeIPVS.serviceDefaults";

pub(super) fn service_defaults(v: &Values) -> anyhow::Result<Vec<ServiceDefault>> {
    let entries = v.get(PATH).as_array().into_iter().flatten().enumerate();
    entries.map(|(index, value)| entry(&format!("{PATH}[{index}]"), value)).collect()
}

fn entry(path: &str, value: &Value) -> anyhow::Result<ServiceDefault> {
    let entry = Mapping::read(path, value, &["namespaces", "selector", "settings"])?;
    let namespaces = match entry.get("namespaces") {
        Some((path, value)) => Namespaces::Some(namespaces(&path, value)?),
        None => Namespaces::All,
    };
    let requirements = entry.get("selector").map(|(path, value)| requirements(&path, value)).transpose()?;
    let (path, settings) = entry.get("settings").with_context(|| format!("{path}.settings is missing"))?;
    Ok(ServiceDefault {
        namespaces,
        requirements: requirements.unwrap_or_default(),
        options: Arc::new(settings_of(&path, settings)?),
    })
}

/// A mapping with known fields.
struct Mapping<'a> {
    path: &'a str,
    fields: &'a Map<String, Value>,
}

impl<'a> Mapping<'a> {
    fn read(path: &'a str, value: &'a Value, known: &[&str]) -> anyhow::Result<Self> {
        let fields = mapping(path, value)?;
        if let Some(name) = fields.keys().find(|name| !known.contains(&name.as_str())) {
            bail!("{path}.{name} is unknown: the fields are {}", known.join(", "));
        }
        Ok(Self { path, fields })
    }

    /// The path and the value of a field. A null is as good as an absent field.
    fn get(&self, name: &str) -> Option<(String, &'a Value)> {
        let value = self.fields.get(name).filter(|value| !value.is_null())?;
        Some((format!("{}.{name}", self.path), value))
    }
}

fn mapping<'a>(path: &str, value: &'a Value) -> anyhow::Result<&'a Map<String, Value>> {
    value.as_object().with_context(|| format!("{path}: {} is not a mapping of fields", quoted(value)))
}

fn text<'a>(path: &str, value: &'a Value) -> anyhow::Result<&'a str> {
    value.as_str().with_context(|| format!("{path}: {} is not a text", quoted(value)))
}

fn items<'a>(path: &str, value: &'a Value) -> anyhow::Result<impl Iterator<Item = (String, &'a Value)>> {
    let list = value.as_array().with_context(|| format!("{path}: {} is not a list", quoted(value)))?;
    Ok(list.iter().enumerate().map(move |(index, item)| (format!("{path}[{index}]"), item)))
}

fn namespaces(path: &str, value: &Value) -> anyhow::Result<Vec<String>> {
    let pattern = |(path, item): (String, &Value)| {
        let pattern = text(&path, item)?;
        let name = pattern.strip_suffix('*').unwrap_or(pattern);
        let is_part = name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
        ensure!(
            is_part && !pattern.is_empty() && name.len() <= 63,
            "{path}: {pattern:?} is not the name of a namespace, nor the beginning of names followed by *"
        );
        Ok(pattern.to_owned())
    };
    let patterns: Vec<String> = items(path, value)?.map(pattern).collect::<anyhow::Result<_>>()?;
    ensure!(!patterns.is_empty(), "{path} is empty: leave it out for all namespaces");
    Ok(patterns)
}

/// The requirements of a LabelSelector (`metav1`).
fn requirements(path: &str, value: &Value) -> anyhow::Result<Vec<LabelRequirement>> {
    let selector = Mapping::read(path, value, &["matchLabels", "matchExpressions"])?;
    let mut all = Vec::new();
    if let Some((path, labels)) = selector.get("matchLabels") {
        for (key, value) in mapping(&path, labels)? {
            let path = format!("{path}.{key}");
            let operator = LabelOperator::In(vec![label_value(&path, value)?]);
            all.push(LabelRequirement { key: label_key(&path, key)?, operator });
        }
    }
    if let Some((path, expressions)) = selector.get("matchExpressions") {
        for (path, expression) in items(&path, expressions)? {
            all.push(requirement(&path, expression)?);
        }
    }
    Ok(all)
}

fn requirement(path: &str, value: &Value) -> anyhow::Result<LabelRequirement> {
    let expression = Mapping::read(path, value, &["key", "operator", "values"])?;
    let text_of = |name: &str| {
        let (path, value) = expression.get(name).with_context(|| format!("{path}.{name} is missing"))?;
        Ok::<_, anyhow::Error>((text(&path, value)?, path))
    };
    let (key, key_path) = text_of("key")?;
    let (operator, operator_path) = text_of("operator")?;
    let values = match expression.get("values") {
        Some((path, list)) => items(&path, list)?
            .map(|(path, item)| label_value(&path, item))
            .collect::<anyhow::Result<Vec<_>>>()?,
        None => Vec::new(),
    };
    let needs_values = matches!(operator, "In" | "NotIn");
    let is_known = needs_values || matches!(operator, "Exists" | "DoesNotExist");
    ensure!(is_known, "{operator_path}: {operator:?} is not In, NotIn, Exists or DoesNotExist");
    ensure!(!needs_values || !values.is_empty(), "{path}.values: {operator} needs a value");
    ensure!(needs_values || values.is_empty(), "{path}.values: {operator} has no values");
    let operator = match operator {
        "In" => LabelOperator::In(values),
        "NotIn" => LabelOperator::NotIn(values),
        "Exists" => LabelOperator::Exists,
        _ => LabelOperator::DoesNotExist,
    };
    Ok(LabelRequirement { key: label_key(&key_path, key)?, operator })
}

fn label_value(path: &str, value: &Value) -> anyhow::Result<String> {
    let value = text(path, value)?;
    ensure!(value.is_empty() || is_label_name(value), "{path}: {value:?} is not a valid value of a label");
    Ok(value.to_owned())
}

fn label_key(path: &str, key: &str) -> anyhow::Result<String> {
    let (prefix, name) = key.split_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    let is_domain = |prefix: &str| prefix.len() <= 253 && prefix.split('.').all(is_domain_part);
    ensure!(
        is_label_name(name) && prefix.is_none_or(is_domain),
        "{path}: {key:?} is not a valid key of a label"
    );
    Ok(key.to_owned())
}

fn is_domain_part(part: &str) -> bool {
    is_label_name(part) && part.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
}

fn settings_of(path: &str, value: &Value) -> anyhow::Result<ServiceOptions> {
    let settings = mapping(path, value)?;
    let mut texts = Vec::new();
    for (name, value) in settings {
        let is_known = annotations::setting_names().any(|known| known == *name);
        if !is_known {
            let known: Vec<String> = annotations::setting_names().collect();
            bail!("{path}.{name} is unknown: the settings are {}", known.join(", "));
        }
        let text = match value {
            Value::Null => continue,
            Value::String(text) => Cow::Borrowed(text.as_str()),
            Value::Bool(_) | Value::Number(_) => Cow::Owned(value.to_string()),
            other => bail!("{path}.{name}: {} is not a text, true, false or a number", quoted(other)),
        };
        texts.push((name, text));
    }
    ensure!(!texts.is_empty(), "{path} is empty: choose a setting");
    let text = |name: &str| texts.iter().find(|(known, _)| *known == name).map(|(_, text)| &**text);
    match annotations::of_settings(text) {
        Ok(options) => Ok(options),
        Err((name, why)) => bail!("{path}.{name}: {why}"),
    }
}

#[cfg(test)]
#[path = "default_entry_tests.rs"]
mod tests;
