// SPDX-License-Identifier: Apache-2.0
//! The value of every field and where it came from.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde_json::{Map, Value, json};

use super::duration::GoDuration;
use super::table::{Effect, FIELDS, Field, Kind, find};

/// A value of one of the types of the table.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Setting {
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    Duration(GoDuration),
    /// `None`: null.
    List(Option<Vec<String>>),
    Gates(BTreeMap<String, bool>),
    Any(Value),
}

/// Where a value came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The default.
    Default,
    /// The configuration file.
    File,
    /// The flag of this name.
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File => f.write_str("file"),
            Origin::Flag(name) => write!(f, "--{name}"),
        }
    }
}

/// Every field's value.
#[derive(Clone, Debug, PartialEq)]
pub struct Values {
    values: BTreeMap<&'static str, (Setting, Origin)>,
    /// What is worth a warning.
    pub(super) warnings: Vec<String>,
    /// The file that it was read from.
    pub(super) file_text: Option<String>,
}

impl Default for Values {
    fn default() -> Self {
        let default = |f: &'static Field| (f.path, (default(f), Origin::Default));
        Self { values: FIELDS.iter().map(default).collect(), warnings: Vec::new(), file_text: None }
    }
}

impl Values {
    /// The content of the file, if there is one.
    pub fn file_text(&self) -> Option<&str> {
        self.file_text.as_deref()
    }

    /// Takes the fields of a file. Unknown ones become warnings.
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
            let setting = from_json(field.kind, value).with_context(|| path.to_owned())?;
            match setting {
                Some(setting) if field.zero_counts || !is_zero(&setting) => {
                    self.values.insert(field.path, (setting, Origin::File));
                }
                _ => {}
            }
            return Ok(());
        }
        let inside = format!("{path}.");
        if !FIELDS.iter().any(|f| f.path.starts_with(&inside)) {
            self.warnings.push(format!("unknown field {path} is passed over: check its spelling"));
            return Ok(());
        }
        match value {
            Value::Null => Ok(()),
            Value::Object(fields) => {
                fields.iter().try_for_each(|(name, value)| self.take(&format!("{inside}{name}"), value))
            }
            other => bail!("{path}: {} is not a mapping of fields", shown(other)),
        }
    }

    /// Takes a field from the text of its flag.
    ///
    /// # Errors
    /// When the text is not of the field's type.
    pub(super) fn take_flag(
        &mut self,
        field: &'static Field,
        flag: &'static str,
        text: &str,
    ) -> anyhow::Result<()> {
        let setting = from_text(field.kind, text).with_context(|| format!("--{flag}"))?;
        self.values.insert(field.path, (setting, Origin::Flag(flag)));
        Ok(())
    }

    /// Gives a field another default.
    pub(super) fn set_default(&mut self, path: &'static str, text: &str) {
        if let Some(field) = find(path)
            && let Ok(setting) = from_text(field.kind, text)
        {
            self.values.insert(field.path, (setting, Origin::Default));
        }
    }

    /// Fields that are set to something that would have mattered, with what to do instead.
    pub(super) fn missing(&self) -> impl Iterator<Item = String> + '_ {
        FIELDS.iter().filter_map(|field| match (field.effect, self.values.get(field.path)) {
            (Effect::Missing(instead), Some((setting, _))) if *setting != default(field) => {
                Some(format!("{} has no effect: {instead}", field.path))
            }
            _ => None,
        })
    }

    fn get(&self, path: &str) -> Option<&Setting> {
        debug_assert!(self.values.contains_key(path), "{path} is not in the table");
        self.values.get(path).map(|(setting, _)| setting)
    }

    pub(super) fn bool(&self, path: &str) -> bool {
        matches!(self.get(path), Some(Setting::Bool(true)))
    }

    pub(super) fn int(&self, path: &str) -> i64 {
        if let Some(Setting::Int(n)) = self.get(path) { *n } else { 0 }
    }

    pub(super) fn text(&self, path: &str) -> &str {
        if let Some(Setting::Text(text)) = self.get(path) { text } else { "" }
    }

    pub(super) fn duration(&self, path: &str) -> Duration {
        if let Some(Setting::Duration(d)) = self.get(path) { d.0 } else { Duration::ZERO }
    }

    /// `None`: null.
    pub(crate) fn list(&self, path: &str) -> Option<&[String]> {
        if let Some(Setting::List(list)) = self.get(path) { list.as_deref() } else { None }
    }

    pub(super) fn gates(&self, path: &str) -> BTreeMap<String, bool> {
        if let Some(Setting::Gates(gates)) = self.get(path) { gates.clone() } else { BTreeMap::new() }
    }

    /// Everything as a `KubeProxyConfiguration`.
    pub fn document(&self) -> Value {
        let mut root = json!({
            "apiVersion": super::API_VERSION,
            "kind": super::KIND,
        });
        for (path, (setting, _)) in &self.values {
            let mut at = &mut root;
            for part in path.split('.') {
                if at.is_null() {
                    *at = Value::Object(Map::new());
                }
                at = &mut at[part];
            }
            *at = to_json(setting);
        }
        root
    }

    /// One line per field: its name, its value, where that came from.
    pub fn lines(&self) -> impl Iterator<Item = (&'static str, String, Origin)> + '_ {
        self.values.iter().map(|(path, (setting, origin))| (*path, to_json(setting).to_string(), *origin))
    }
}

fn default(field: &Field) -> Setting {
    // The table's own texts are checked by a test.
    from_text(field.kind, field.default).unwrap_or(Setting::Any(Value::Null))
}

fn is_zero(setting: &Setting) -> bool {
    match setting {
        Setting::Bool(value) => !value,
        Setting::Int(n) => *n == 0,
        Setting::Float(n) => *n == 0.0,
        Setting::Text(text) => text.is_empty(),
        Setting::Duration(d) => d.0.is_zero(),
        Setting::List(list) => list.as_ref().is_none_or(Vec::is_empty),
        Setting::Gates(gates) => gates.is_empty(),
        Setting::Any(value) => value.is_null(),
    }
}

/// `None`: null, which is as good as absent.
fn from_json(kind: Kind, value: &Value) -> anyhow::Result<Option<Setting>> {
    if value.is_null() {
        return Ok(None);
    }
    let wrong = |wanted: &str| anyhow::anyhow!("{} is not {wanted}", shown(value));
    let text = || value.as_str().map(str::to_owned);
    Ok(Some(match kind {
        Kind::Bool => Setting::Bool(value.as_bool().ok_or_else(|| wrong("true or false"))?),
        Kind::Int => Setting::Int(value.as_i64().ok_or_else(|| wrong("a whole number"))?),
        Kind::Float => Setting::Float(value.as_f64().ok_or_else(|| wrong("a number"))?),
        Kind::Text => Setting::Text(text().ok_or_else(|| wrong("a text"))?),
        Kind::Duration => {
            Setting::Duration(text().ok_or_else(|| wrong("a duration such as \"30s\""))?.parse()?)
        }
        Kind::List => {
            let items = value.as_array().ok_or_else(|| wrong("a list of texts"))?;
            let texts = items.iter().map(|item| item.as_str().map(str::to_owned));
            Setting::List(Some(texts.collect::<Option<_>>().ok_or_else(|| wrong("a list of texts"))?))
        }
        Kind::Gates => {
            let gates = value.as_object().ok_or_else(|| wrong("a mapping from gates to true or false"))?;
            let gates = gates.iter().map(|(name, on)| Some((name.clone(), on.as_bool()?)));
            Setting::Gates(gates.collect::<Option<_>>().ok_or_else(|| wrong("true or false for each gate"))?)
        }
        Kind::Any => Setting::Any(value.clone()),
    }))
}

fn from_text(kind: Kind, text: &str) -> anyhow::Result<Setting> {
    let items = || text.split(',').filter(|item| !item.is_empty());
    Ok(match kind {
        Kind::Bool => Setting::Bool(bool_from_text(text)?),
        Kind::Int => Setting::Int(text.parse().with_context(|| format!("{text:?} is not a whole number"))?),
        Kind::Float => Setting::Float(text.parse().with_context(|| format!("{text:?} is not a number"))?),
        Kind::Text => Setting::Text(text.to_owned()),
        Kind::Duration => Setting::Duration(text.parse()?),
        Kind::List => {
            Setting::List(Some(items().map(str::to_owned).collect()).filter(|l: &Vec<_>| !l.is_empty()))
        }
        Kind::Gates => {
            let mut gates = BTreeMap::new();
            for item in items() {
                let gate = item.split_once('=');
                let (name, on) = gate.with_context(|| format!("{item:?} is not Gate=true or Gate=false"))?;
                gates.insert(name.trim().to_owned(), bool_from_text(on.trim())?);
            }
            Setting::Gates(gates)
        }
        Kind::Any if text.is_empty() => Setting::Any(Value::Null),
        Kind::Any => Setting::Any(text.into()),
    })
}

/// The words that Go takes.
fn bool_from_text(text: &str) -> anyhow::Result<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        other => bail!("{other:?} is not true or false"),
    }
}

fn to_json(setting: &Setting) -> Value {
    match setting {
        Setting::Bool(value) => json!(value),
        Setting::Int(n) => json!(n),
        Setting::Float(n) if n.fract() == 0.0 => json!(*n as i64),
        Setting::Float(n) => json!(n),
        Setting::Text(text) => json!(text),
        Setting::Duration(d) => json!(d.to_string()),
        Setting::List(list) => json!(list),
        Setting::Gates(gates) => json!(gates),
        Setting::Any(value) => value.clone(),
    }
}

/// A value short enough for an error.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= 60 { text } else { text.chars().take(60).chain("…".chars()).collect() }
}

/// Refuses a field outside of a range.
pub(super) fn in_range(path: &str, value: i64, range: std::ops::RangeInclusive<i64>) -> anyhow::Result<i64> {
    ensure!(range.contains(&value), "{path}: {value} is not in {}–{}", range.start(), range.end());
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_of_the_table_are_of_their_types() {
        for field in FIELDS {
            assert!(from_text(field.kind, field.default).is_ok(), "{}", field.path);
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
