// SPDX-License-Identifier: Apache-2.0
//! The value of every field and where it came from.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use serde_json::{Map, Value, json};

use super::duration::GoDuration;
use super::table::{Effect, FIELDS, Field, FieldType, find};

pub(super) const API_VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";
pub(super) const KIND: &str = "KubeProxyConfiguration";
/// The longest part of a value that an error quotes, in characters.
const QUOTED: usize = 60;

static NULL: Value = Value::Null;

#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::Display)]
#[strum(serialize_all = "lowercase")]
pub enum Origin {
    Default,
    File,
    /// The flag of this name.
    #[strum(to_string = "--{0}")]
    Flag(&'static str),
}

/// The value of every field, in one form for equal values: durations as Go prints them, whole numbers as integers.
#[derive(Clone, Debug, PartialEq)]
pub struct Values {
    values: BTreeMap<&'static str, (Value, Origin)>,
    pub(super) warnings: Vec<String>,
    /// The content of the file, if there is one.
    pub file_text: Option<String>,
}

impl Default for Values {
    fn default() -> Self {
        let default = |f: &'static Field| (f.path, (default(f), Origin::Default));
        Self { values: FIELDS.iter().map(default).collect(), warnings: Vec::new(), file_text: None }
    }
}

impl Values {
    /// Takes the fields of a file. Unknown fields become warnings.
    ///
    /// # Errors
    /// Names a field of the wrong type.
    pub(super) fn take_file(&mut self, file: &Value) -> anyhow::Result<()> {
        let Value::Object(fields) = file else { bail!("not a mapping of fields") };
        fields
            .iter()
            .filter(|(name, _)| *name != "apiVersion" && *name != "kind")
            .try_for_each(|(name, value)| self.take(name, value))
    }

    fn take(&mut self, path: &str, value: &Value) -> anyhow::Result<()> {
        if let Some(field) = find(path) {
            // A null is as good as an absent field.
            if !value.is_null() {
                let value = from_json(field.field_type, value).with_context(|| path.to_owned())?;
                if field.zero_is_value || !is_zero(field.field_type, &value) {
                    self.values.insert(field.path, (value, Origin::File));
                }
            }
            return Ok(());
        }
        let inside = format!("{path}.");
        if !FIELDS.iter().any(|f| f.path.starts_with(&inside)) {
            self.warnings.push(format!("unknown field {path} is ignored: check its spelling"));
            return Ok(());
        }
        match value {
            Value::Null => Ok(()),
            Value::Object(fields) => {
                fields.iter().try_for_each(|(name, value)| self.take(&format!("{inside}{name}"), value))
            }
            other => bail!("{path}: {} is not a mapping of fields", quoted(other)),
        }
    }

    /// Takes a field from the text of its flag.
    ///
    /// # Errors
    /// The text is not of the field's type.
    pub(super) fn take_flag(&mut self, field: &'static Field, text: &str) -> anyhow::Result<()> {
        let flag = field.flag.unwrap_or_default();
        let value = from_text(field.field_type, text).with_context(|| format!("--{flag}"))?;
        self.values.insert(field.path, (value, Origin::Flag(flag)));
        Ok(())
    }

    pub(super) fn set_default(&mut self, path: &'static str, text: &str) {
        if let Some(field) = find(path)
            && let Ok(value) = from_text(field.field_type, text)
        {
            self.values.insert(field.path, (value, Origin::Default));
        }
    }

    /// A warning for each field that is set, has an effect in kube-proxy and has none here.
    pub(super) fn missing(&self) -> impl Iterator<Item = String> + '_ {
        FIELDS.iter().filter_map(|field| match field.effect {
            Effect::Missing(instead) if *self.get(field.path) != default(field) => {
                Some(format!("{} has no effect: {instead}", field.path))
            }
            _ => None,
        })
    }

    pub(super) fn get(&self, path: &str) -> &Value {
        debug_assert!(self.values.contains_key(path), "{path} is not in the table");
        self.values.get(path).map_or(&NULL, |(value, _)| value)
    }

    pub(super) fn bool(&self, path: &str) -> bool {
        self.get(path).as_bool().unwrap_or_default()
    }

    pub(super) fn int(&self, path: &str) -> i64 {
        self.get(path).as_i64().unwrap_or_default()
    }

    pub(super) fn int_in(&self, path: &str, range: RangeInclusive<i64>) -> anyhow::Result<i64> {
        let value = self.int(path);
        ensure!(range.contains(&value), "{path}: {value} is not in {}–{}", range.start(), range.end());
        Ok(value)
    }

    pub(super) fn text(&self, path: &str) -> &str {
        self.get(path).as_str().unwrap_or_default()
    }

    pub(super) fn duration(&self, path: &str) -> Duration {
        self.text(path).parse::<GoDuration>().unwrap_or_default().0
    }

    pub(crate) fn list(&self, path: &str) -> Vec<&str> {
        self.get(path).as_array().into_iter().flatten().filter_map(Value::as_str).collect()
    }

    /// Everything as a `KubeProxyConfiguration`.
    pub fn document(&self) -> Value {
        let mut root = json!({"apiVersion": API_VERSION, "kind": KIND});
        for (path, (value, _)) in &self.values {
            let mut at = &mut root;
            for part in path.split('.') {
                if at.is_null() {
                    *at = Value::Object(Map::new());
                }
                at = &mut at[part];
            }
            *at = value.clone();
        }
        root
    }

    /// The name, the value and the origin of every field.
    pub fn lines(&self) -> impl Iterator<Item = (&'static str, String, Origin)> + '_ {
        self.values.iter().map(|(path, (value, origin))| (*path, value.to_string(), *origin))
    }
}

fn default(field: &Field) -> Value {
    // A test checks the texts of the table.
    from_text(field.field_type, field.default).unwrap_or_default()
}

fn is_zero(field_type: FieldType, value: &Value) -> bool {
    match field_type {
        FieldType::Any => false,
        FieldType::Duration => value == "0s",
        _ => [json!(false), json!(0), json!(""), json!([]), json!({})].contains(value),
    }
}

/// Checks the type of a value that is not null.
fn from_json(field_type: FieldType, value: &Value) -> anyhow::Result<Value> {
    let (is_right, wanted) = match field_type {
        FieldType::Bool => (value.is_boolean(), "true or false"),
        FieldType::Int => (value.is_i64(), "a whole number"),
        FieldType::Float => (value.is_number(), "a number"),
        FieldType::Text => (value.is_string(), "a text"),
        FieldType::Duration => (value.is_string(), "a duration such as \"30s\""),
        FieldType::List => {
            (value.as_array().is_some_and(|items| items.iter().all(Value::is_string)), "a list of texts")
        }
        FieldType::Entries => {
            (value.as_array().is_some_and(|items| items.iter().all(Value::is_object)), "a list of mappings")
        }
        FieldType::Gates => (
            value.as_object().is_some_and(|gates| gates.values().all(Value::is_boolean)),
            "a mapping from gates to true or false",
        ),
        FieldType::Any => (true, ""),
    };
    ensure!(is_right, "{} is not {wanted}", quoted(value));
    Ok(match field_type {
        FieldType::Duration => duration(value.as_str().unwrap_or_default())?,
        FieldType::Float => float(value.as_f64().unwrap_or_default()),
        _ => value.clone(),
    })
}

fn from_text(field_type: FieldType, text: &str) -> anyhow::Result<Value> {
    let items = || text.split(',').filter(|item| !item.is_empty());
    let not = |wanted: &str| anyhow!("{text:?} is not {wanted}");
    Ok(match field_type {
        FieldType::Bool => bool_from_text(text)?.into(),
        FieldType::Int => text.parse::<i64>().map_err(|_| not("a whole number"))?.into(),
        FieldType::Float => float(text.parse().map_err(|_| not("a number"))?),
        FieldType::Text => text.into(),
        FieldType::Duration => duration(text)?,
        FieldType::List | FieldType::Entries | FieldType::Any if text.is_empty() => Value::Null,
        FieldType::List => items().collect(),
        FieldType::Gates => {
            let gate = |item: &str| {
                let gate = item.split_once('=');
                let (name, on) = gate.with_context(|| format!("{item:?} is not Gate=true or Gate=false"))?;
                anyhow::Ok((name.trim().to_owned(), bool_from_text(on.trim())?.into()))
            };
            Value::Object(items().map(gate).collect::<anyhow::Result<_>>()?)
        }
        // No flag has this type.
        FieldType::Entries => return Err(not("a list of mappings")),
        FieldType::Any => text.into(),
    })
}

fn duration(text: &str) -> anyhow::Result<Value> {
    Ok(text.parse::<GoDuration>()?.to_string().into())
}

fn float(number: f64) -> Value {
    if number.fract() == 0.0 { (number as i64).into() } else { number.into() }
}

/// The words that Go accepts.
fn bool_from_text(text: &str) -> anyhow::Result<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        other => bail!("{other:?} is not true or false"),
    }
}

/// A value, cut to a length that fits into an error.
pub(super) fn quoted(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= QUOTED {
        return text;
    }
    text.chars().take(QUOTED).chain("…".chars()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_of_the_table_are_of_their_types() {
        for field in FIELDS {
            assert!(from_text(field.field_type, field.default).is_ok(), "{}", field.path);
        }
    }

    #[test]
    fn the_document_reads_back_as_itself() {
        let mut values = Values::default();
        values.take_file(&json!({"ipvs": {"syncPeriod": "90s"}, "oomScoreAdj": 0})).unwrap();
        let document = values.document();
        assert_eq!(document["ipvs"]["syncPeriod"], "1m30s");
        assert_eq!(document["conntrack"]["tcpEstablishedTimeout"], "24h0m0s");
        assert_eq!((&document["oomScoreAdj"], &document["ipvs"]["excludeCIDRs"]), (&json!(0), &Value::Null));
        let mut again = Values::default();
        again.take_file(&document).unwrap();
        assert_eq!(again.document(), document);
    }
}
