// SPDX-License-Identifier: Apache-2.0

use std::time::Duration;

use super::*;
use crate::config::{Config, ConfigFlags};
use crate::core::model::ProbeSpec;
use crate::core::model::options::{DirectReturn, SCHED_FALLBACK, SCHED_PORT, Scheduler};
use crate::core::model::real_servers::ConnectionLimits;

fn parse(entries: &str) -> anyhow::Result<Arc<[ServiceDefault]>> {
    let head = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
    let text = format!("{head}kubeIPVS:\n  serviceDefaults: {entries}\n");
    Ok(Config::parse(&text, &ConfigFlags::default())?.settings.service_defaults)
}

fn requirement(key: &str, operator: LabelOperator) -> LabelRequirement {
    LabelRequirement { key: key.to_owned(), operator }
}

#[test]
fn an_entry_has_namespaces_a_selector_and_settings() {
    let defaults = parse(
        "
  - namespaces: [shop, web-*]
    selector:
      matchLabels: {tier: frontend, app.example/team: ''}
      matchExpressions:
      - {key: a, operator: In, values: [x, z]}
      - {key: b, operator: NotIn, values: [z]}
      - {key: c, operator: Exists}
      - {key: d, operator: DoesNotExist, values: []}
    settings: {scheduler: mh, schedulerFlags: 'mh-port,mh-fallback', drainDeadline: 30s, hairpin: false,
      slowStart: 1m, maxConnections: 1000, directReturn: tunnel, probe: true}
  - {settings: {hairpin: 'true', scheduler: null}}
  - {namespaces: null, selector: {}, settings: {scheduler: mh}}",
    )
    .unwrap();
    let texts = |all: &[&str]| all.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    let expected = ServiceDefault {
        namespaces: Namespaces::Some(texts(&["shop", "web-*"])),
        requirements: vec![
            requirement("app.example/team", LabelOperator::In(texts(&[""]))),
            requirement("tier", LabelOperator::In(texts(&["frontend"]))),
            requirement("a", LabelOperator::In(texts(&["x", "z"]))),
            requirement("b", LabelOperator::NotIn(texts(&["z"]))),
            requirement("c", LabelOperator::Exists),
            requirement("d", LabelOperator::DoesNotExist),
        ],
        options: Arc::new(ServiceOptions {
            scheduler: Some(Scheduler { name: "mh".into(), flags: SCHED_PORT | SCHED_FALLBACK }),
            drain_deadline: Some(Duration::from_secs(30)),
            hairpin: Some(false),
            slow_start: Some(Duration::from_secs(60)),
            max_connections: Some(ConnectionLimits { upper: 1000, lower: 0 }),
            direct_return: Some(DirectReturn::Tunnel),
            probe: Some(ProbeSpec::default()),
            wrong: Vec::new(),
        }),
    };
    assert_eq!(defaults[0], expected);
    let all = |options: ServiceOptions| ServiceDefault {
        namespaces: Namespaces::All,
        requirements: Vec::new(),
        options: Arc::new(options),
    };
    assert_eq!(defaults[1], all(ServiceOptions { hairpin: Some(true), ..ServiceOptions::default() }));
    let scheduler = Some(Scheduler { name: "mh".into(), flags: SCHED_PORT });
    assert_eq!(defaults[2], all(ServiceOptions { scheduler, ..ServiceOptions::default() }));
    for none in ["null", "[]"] {
        assert_eq!(parse(none).unwrap().len(), 0);
    }
}

#[test]
fn every_annotation_of_ours_has_a_setting() {
    let names: Vec<String> = annotations::setting_names().collect();
    for name in [
        "scheduler",
        "schedulerFlags",
        "drainDeadline",
        "hairpin",
        "slowStart",
        "maxConnections",
        "directReturn",
        "probe",
    ] {
        assert!(names.iter().any(|known| known == name), "{names:?}");
    }
    assert!(names.iter().all(|name| name.chars().all(|c| c.is_ascii_alphabetic())), "{names:?}");
}

#[test]
fn each_wrong_entry_is_named() {
    for (entries, expected) in [
        ("{settings: {}}", ": {\"settings\":{}} is not a list of mappings"),
        ("[a]", ": [\"a\"] is not a list of mappings"),
        ("[{}]", "[0].settings is missing"),
        ("[{settings: {hairpin: true}}, {settings: {}}]", "[1].settings is empty: choose a setting"),
        ("[{settings: {hairpin: null}}]", "[0].settings is empty: choose a setting"),
        ("[{settings: mh}]", "[0].settings: \"mh\" is not a mapping of fields"),
        (
            "[{labels: {}, settings: {hairpin: true}}]",
            "[0].labels is unknown: the fields are namespaces, selector, settings",
        ),
        (
            "[{settings: {hairpin: true}}, {settings: {scheduler: fastest}}]",
            "[1].settings.scheduler: \"fastest\" is not a scheduler of IPVS: rr, wrr",
        ),
        ("[{settings: {sheduler: rr}}]", "[0].settings.sheduler is unknown: the settings are scheduler, "),
        ("[{settings: {scheduler-flags: mh-port}}]", "[0].settings.scheduler-flags is unknown"),
        (
            "[{settings: {schedulerFlags: mh-port}}]",
            "[0].settings.schedulerFlags: it needs scheduler beside it",
        ),
        (
            "[{settings: {scheduler: rr, schedulerFlags: mh-port}}]",
            "[0].settings.schedulerFlags: the scheduler rr has no such flag",
        ),
        ("[{settings: {drainDeadline: 30}}]", "[0].settings.drainDeadline: \"30\" is not a duration"),
        ("[{settings: {hairpin: 1}}]", "[0].settings.hairpin: \"1\" is not true or false"),
        (
            "[{settings: {hairpin: [true]}}]",
            "[0].settings.hairpin: [true] is not a text, true, false or a number",
        ),
    ] {
        wrong(entries, expected);
    }
}

#[test]
fn each_wrong_selection_is_named() {
    for (selection, expected) in [
        ("namespaces: shop", "[0].namespaces: \"shop\" is not a list"),
        ("namespaces: []", "[0].namespaces is empty: leave it out"),
        ("namespaces: [a, 1]", "[0].namespaces[1]: 1 is not a text"),
        ("namespaces: [a, '*b']", "[0].namespaces[1]: \"*b\" is not the name of a namespace"),
        ("namespaces: ['']", "[0].namespaces[0]: \"\" is not the name of a namespace"),
        ("namespaces: [Shop]", "[0].namespaces[0]: \"Shop\" is not the name of a namespace"),
        ("selector: tier", "[0].selector: \"tier\" is not a mapping"),
        ("selector: {tier: a}", "[0].selector.tier is unknown: the fields are matchLabels, matchExpressions"),
        ("selector: {matchLabels: [tier]}", "[0].selector.matchLabels: [\"tier\"] is not a mapping"),
        ("selector: {matchLabels: {tier: true}}", "[0].selector.matchLabels.tier: true is not a text"),
        (
            "selector: {matchLabels: {tier: a b}}",
            "[0].selector.matchLabels.tier: \"a b\" is not a valid value",
        ),
        (
            "selector: {matchLabels: {a/b/c: d}}",
            "[0].selector.matchLabels.a/b/c: \"a/b/c\" is not a valid key",
        ),
        ("selector: {matchLabels: {A.b/c: d}}", "\"A.b/c\" is not a valid key of a label"),
        (
            "selector: {matchExpressions: {key: a}}",
            "[0].selector.matchExpressions: {\"key\":\"a\"} is not a list",
        ),
        (
            "selector: {matchExpressions: [{operator: Exists}]}",
            "[0].selector.matchExpressions[0].key is missing",
        ),
        ("selector: {matchExpressions: [{key: a}]}", "[0].selector.matchExpressions[0].operator is missing"),
        (
            "selector: {matchExpressions: [{key: '', operator: Exists}]}",
            "[0].selector.matchExpressions[0].key: \"\" is not a valid key of a label",
        ),
        (
            "selector: {matchExpressions: [{key: a, operator: Exists}, {key: a, operator: Is}]}",
            "[0].selector.matchExpressions[1].operator: \"Is\" is not In, NotIn, Exists or DoesNotExist",
        ),
        (
            "selector: {matchExpressions: [{key: a, operator: In}]}",
            "[0].selector.matchExpressions[0].values: In needs a value",
        ),
        (
            "selector: {matchExpressions: [{key: a, operator: NotIn, values: []}]}",
            "[0].selector.matchExpressions[0].values: NotIn needs a value",
        ),
        (
            "selector: {matchExpressions: [{key: a, operator: In, values: [b, 1]}]}",
            "[0].selector.matchExpressions[0].values[1]: 1 is not a text",
        ),
        (
            "selector: {matchExpressions: [{key: a, operator: DoesNotExist, values: [b]}]}",
            "[0].selector.matchExpressions[0].values: DoesNotExist has no values",
        ),
        (
            "selector: {matchExpressions: [{key: a, operator: Exists, value: b}]}",
            "[0].selector.matchExpressions[0].value is unknown: the fields are key, operator, values",
        ),
    ] {
        wrong(&format!("[{{{selection}, settings: {{hairpin: true}}}}]"), expected);
    }
}

fn wrong(entries: &str, expected: &str) {
    let error = format!("{:#}", parse(entries).unwrap_err());
    assert!(error.starts_with(PATH) && error.contains(expected), "{entries} gave {error:?}");
}
