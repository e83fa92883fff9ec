// SPDX-License-Identifier: Apache-2.0
//! A strict parser of the Prometheus text format. It also checks names and help as `promtool check metrics` does.

use std::collections::{BTreeMap, BTreeSet};

/// A parsed metric family.
#[derive(Debug, Default)]
pub struct MetricFamily {
    /// `counter`, `gauge` or `histogram`.
    pub kind: String,
    /// Label names of all samples, without `le`.
    pub labels: BTreeSet<String>,
    /// Bounds of the buckets, in order.
    pub buckets: Vec<String>,
    /// Samples by name and labels.
    pub samples: BTreeMap<String, f64>,
}

impl MetricFamily {
    /// The value of the sample with this text of name and labels.
    pub fn value(&self, sample: &str) -> f64 {
        *self.samples.get(sample).unwrap_or_else(|| panic!("no {sample} in {:?}", self.samples))
    }
}

/// Parses a whole text.
///
/// # Panics
/// If the text is invalid.
pub fn parse(text: &str) -> BTreeMap<String, MetricFamily> {
    assert!(text.ends_with('\n') && !text.contains("\r"), "lines end with a line feed");
    let mut families: BTreeMap<String, MetricFamily> = BTreeMap::new();
    let mut current = String::new();
    let mut help = None;
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, words) = rest.split_once(' ').expect("help after the name");
            assert!(!words.trim().is_empty(), "{name}: help is empty");
            help = Some(name.to_owned());
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a type after the name");
            assert_eq!(help.take().as_deref(), Some(name), "help comes first");
            check_name(name, kind);
            let family = MetricFamily { kind: kind.to_owned(), ..MetricFamily::default() };
            assert!(families.insert(name.to_owned(), family).is_none(), "{name} is declared twice");
            current = name.to_owned();
        } else {
            let family = families.get_mut(&current).expect("a type before samples");
            parse_sample(&current, line, family);
        }
    }
    families
        .iter()
        .filter(|(_, family)| family.kind == "histogram")
        .for_each(|(name, f)| check_histogram(name, f));
    families
}

fn is_name(text: &str) -> bool {
    let first = |c: char| c.is_ascii_alphabetic() || c == '_';
    text.chars().next().is_some_and(first) && text.chars().all(|c| first(c) || c.is_ascii_digit())
}

fn check_name(name: &str, kind: &str) {
    assert!(is_name(name) && name == name.to_lowercase(), "{name:?} is not a valid name");
    assert!(["counter", "gauge", "histogram"].contains(&kind), "{name} has the unknown type {kind}");
    assert!(kind != "counter" || name.ends_with("_total"), "{name} is a counter without _total");
    assert!(
        !["_count", "_sum", "_bucket"].iter().any(|end| name.ends_with(end)),
        "{name} ends like a sample of a histogram"
    );
}

fn parse_sample(family_name: &str, line: &str, family: &mut MetricFamily) {
    let (sample, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no value: {line}"));
    let value: f64 = value.replace("+Inf", "inf").parse().unwrap_or_else(|_| panic!("no number: {line}"));
    let (name, labels) = match sample.split_once('{') {
        Some((name, rest)) => (name, parse_labels(rest.strip_suffix('}').expect("a closing brace"))),
        None => (sample, Vec::new()),
    };
    let parts: &[&str] = if family.kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
    let fits = |part: &&str| name.strip_suffix(&**part) == Some(family_name);
    assert!(parts.iter().any(fits), "{name} among the samples of {family_name}");
    for (label, value) in labels {
        if label == "le" && name.ends_with("_bucket") {
            if !family.buckets.contains(&value) {
                family.buckets.push(value);
            }
        } else {
            family.labels.insert(label);
        }
    }
    assert!(family.kind != "counter" || value >= 0.0, "{line}");
    assert!(family.samples.insert(sample.to_owned(), value).is_none(), "{sample} is repeated");
}

/// `NAME="VALUE",…`; in values only a backslash, a quote and a line feed are escaped.
fn parse_labels(mut rest: &str) -> Vec<(String, String)> {
    let mut labels: Vec<(String, String)> = Vec::new();
    while !rest.is_empty() {
        let (name, after) = rest.split_once("=\"").expect("a value in quotes");
        assert!(is_name(name) && !name.starts_with("__"), "{name:?} is not a valid label");
        assert!(labels.iter().all(|(known, _)| known != name), "{name} is repeated");
        let (mut value, mut chars) = (String::new(), after.char_indices());
        let end = loop {
            match chars.next().expect("a closing quote") {
                (at, '"') => break at,
                (_, '\\') => match chars.next().expect("something after a backslash").1 {
                    'n' => value.push('\n'),
                    c @ ('\\' | '"') => value.push(c),
                    c => panic!("an unknown escape {c:?}"),
                },
                (_, c) => value.push(c),
            }
        };
        labels.push((name.to_owned(), value));
        rest = &after[end + 1..];
        rest = rest.strip_prefix(',').unwrap_or(rest);
    }
    labels
}

/// Buckets are cumulative, and `+Inf` counts every sample.
fn check_histogram(name: &str, family: &MetricFamily) {
    assert_eq!(family.buckets.last().map(String::as_str), Some("+Inf"), "{name}");
    let bounds: Vec<f64> = family.buckets.iter().map(|b| b.replace("+Inf", "inf").parse().unwrap()).collect();
    assert!(bounds.is_sorted(), "{name}: {bounds:?}");
    let counts = family.samples.iter().filter(|(sample, _)| sample.starts_with(&format!("{name}_count")));
    for (sample, count) in counts {
        let labels = sample.strip_prefix(&format!("{name}_count")).unwrap_or_default();
        let inner = labels.trim_matches(['{', '}']);
        let comma = if inner.is_empty() { "" } else { "," };
        let bucket = |le: &String| family.value(&format!("{name}_bucket{{{inner}{comma}le=\"{le}\"}}"));
        let cumulative: Vec<f64> = family.buckets.iter().map(bucket).collect();
        assert!(cumulative.is_sorted() && cumulative.last() == Some(count), "{sample}: {cumulative:?}");
        family.value(&format!("{name}_sum{labels}"));
    }
}

#[test]
fn invalid_text_is_rejected() {
    let good =
        "# HELP a_total x\n# TYPE a_total counter\na_total{b=\"c\\\"\\\\\\n,}\",d=\"\"} 1\na_total 2\n";
    assert_eq!(parse(good)["a_total"].labels.len(), 2);
    for (from, to) in [
        ("a_total{b", "b_total{b"),
        ("# HELP a_total x\n", ""),
        ("# TYPE a_total counter\n", ""),
        (" counter", " thing"),
        ("a_total", "a"),
        ("a_total 2", "a_total two"),
        ("a_total 2", "a_total -2"),
        ("a_total 2\n", "a_total{b=\"c\\\"\\\\\\n,}\",d=\"\"} 1\n"),
        ("d=\"\"", "b=\"\""),
        ("d=\"\"", "2=\"\""),
        ("\\n", "\\t"),
        ("a_total 2\n", "a_total 2"),
    ] {
        let bad = good.replace(from, to);
        assert_ne!(bad, good);
        assert!(std::panic::catch_unwind(|| parse(&bad)).is_err(), "{bad}");
    }
    let good =
        "# HELP h x\n# TYPE h histogram\nh_bucket{le=\"1\"} 1\nh_bucket{le=\"+Inf\"} 2\nh_sum 3\nh_count 2\n";
    assert_eq!(parse(good)["h"].buckets, ["1", "+Inf"]);
    for (from, to) in
        [("h_sum 3\n", ""), ("h_count 2", "h_count 3"), ("le=\"1\"} 1", "le=\"1\"} 4"), ("+Inf", "0")]
    {
        assert!(std::panic::catch_unwind(|| parse(&good.replace(from, to))).is_err(), "{from}");
    }
}
