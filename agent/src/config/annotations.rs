// SPDX-License-Identifier: Apache-2.0
//! Annotations that choose settings of a single Service: `kube-ipvs.io/NAME`, and the names of kube-router. In
//! `kubeIPVS.serviceDefaults` the same settings have their names without the prefix, in camelCase.

use std::sync::Arc;
use std::time::Duration;

use super::duration::GoDuration;
use crate::core::model::options::{
    DirectReturn, FLAGGED, SCHED_FALLBACK, SCHED_PORT, SCHEDULERS, Scheduler, ServiceOptions, usual_flags,
};
use crate::core::model::real_servers::ConnectionLimits;

const PREFIX: &str = "kube-ipvs.io/";
const SCHEDULER: &str = "kube-ipvs.io/scheduler";
const SCHEDULER_FLAGS: &str = "kube-ipvs.io/scheduler-flags";
const DRAIN_DEADLINE: &str = "kube-ipvs.io/drain-deadline";
const HAIRPIN: &str = "kube-ipvs.io/hairpin";
const SLOW_START: &str = "kube-ipvs.io/slow-start";
const MAX_CONNECTIONS: &str = "kube-ipvs.io/max-connections";
const DIRECT_RETURN: &str = "kube-ipvs.io/direct-return";
const PROBE: &str = "kube-ipvs.io/probe";
const ROUTER_SCHEDULER: &str = "kube-router.io/service.scheduler";
const ROUTER_FLAGS: &str = "kube-router.io/service.schedflags";
const ROUTER_HAIRPIN: &str = "kube-router.io/service.hairpin";
const ROUTER_DIRECT_RETURN: &str = "kube-router.io/service.dsr";

const SHORTEST_SLOW_START: Duration = Duration::from_secs(1);
const LONGEST_SLOW_START: Duration = Duration::from_secs(3600);

/// The kernel compares with the sum of two numbers of 31 bits.
const MOST_CONNECTIONS: u32 = i32::MAX as u32;

/// Characters of a wrong value that are shown.
const SHOWN: usize = 40;

/// The annotations of Services that are used.
pub const NAMES: &[&str] = &[
    SCHEDULER,
    SCHEDULER_FLAGS,
    DRAIN_DEADLINE,
    HAIRPIN,
    SLOW_START,
    MAX_CONNECTIONS,
    DIRECT_RETURN,
    PROBE,
    ROUTER_SCHEDULER,
    ROUTER_FLAGS,
    ROUTER_HAIRPIN,
    ROUTER_DIRECT_RETURN,
];

/// The options that annotations choose; `text` finds the value of an annotation. A wrong value has no effect.
pub fn of_annotations<'a>(text: impl Fn(&str) -> Option<&'a str>) -> Option<Arc<ServiceOptions>> {
    let annotations = Annotations { text: &text, shown: &str::to_owned };
    let mut wrong = Vec::new();
    let options = annotations.options(&mut wrong);
    let sentence = |(name, why): (String, String)| format!("annotation {name}: {why}").into();
    ServiceOptions { wrong: wrong.into_iter().map(sentence).collect(), ..options }.kept()
}

/// The options of an entry of `kubeIPVS.serviceDefaults`; `text` finds the value of a setting.
///
/// # Errors
/// The setting that is wrong, and why.
pub fn of_settings<'a>(text: impl Fn(&str) -> Option<&'a str>) -> Result<ServiceOptions, (String, String)> {
    let text = |name: &str| text(&setting_name(name)?);
    let shown = |name: &str| setting_name(name).unwrap_or_default();
    let mut wrong = Vec::new();
    let options = Annotations { text: &text, shown: &shown }.options(&mut wrong);
    wrong.into_iter().next().map_or(Ok(options), Err)
}

/// The name of each setting, e.g. `drainDeadline`.
pub fn setting_names() -> impl Iterator<Item = String> {
    NAMES.iter().filter_map(|name| setting_name(name))
}

/// The name of the setting that an annotation of ours chooses.
fn setting_name(annotation: &str) -> Option<String> {
    let mut words = annotation.strip_prefix(PREFIX)?.split('-');
    let first = words.next()?.to_owned();
    Some(words.fold(first, |name, word| {
        let (initial, rest) = word.split_at(1);
        name + &initial.to_ascii_uppercase() + rest
    }))
}

/// Names of settings, and why each is wrong.
type WrongSettings = Vec<(String, String)>;

/// Reads a value, or says what it must be.
type ValueReader<T> = fn(&str) -> Result<T, String>;

struct Annotations<'f, 'a> {
    /// The value of the annotation of this name.
    text: &'f dyn Fn(&str) -> Option<&'a str>,
    /// The name under which errors show the annotation.
    shown: &'f dyn Fn(&str) -> String,
}

impl Annotations<'_, '_> {
    fn options(&self, wrong: &mut WrongSettings) -> ServiceOptions {
        ServiceOptions {
            drain_deadline: self.read(DRAIN_DEADLINE, deadline, wrong),
            hairpin: self.either(HAIRPIN, is_true, (ROUTER_HAIRPIN, |_| Ok(true)), wrong),
            slow_start: self.read(SLOW_START, slow_start, wrong),
            max_connections: self.read(MAX_CONNECTIONS, max_connections, wrong),
            direct_return: self.either(
                DIRECT_RETURN,
                direct_return,
                (ROUTER_DIRECT_RETURN, direct_return),
                wrong,
            ),
            probe: self.read(PROBE, str::parse, wrong),
            scheduler: self.scheduler(wrong),
            wrong: Vec::new(),
        }
    }

    fn read<T>(&self, name: &str, reader: ValueReader<T>, wrong: &mut WrongSettings) -> Option<T> {
        let text = (self.text)(name)?;
        match reader(text.trim()) {
            Ok(value) => Some(value),
            Err(wanted) => {
                wrong.push(((self.shown)(name), format!("{:?} is not {wanted}", beginning(text))));
                None
            }
        }
    }

    /// The value of our name, else that of kube-router's name.
    fn either<T: PartialEq>(
        &self,
        name: &str,
        reader: ValueReader<T>,
        (other_name, other_reader): (&str, ValueReader<T>),
        wrong: &mut WrongSettings,
    ) -> Option<T> {
        let own = self.read(name, reader, wrong);
        let other = self.read(other_name, other_reader, wrong);
        if own.is_some() && other.is_some() && own != other {
            wrong.push(((self.shown)(other_name), format!("{name} has another value, which is used")));
        }
        own.or(other)
    }

    fn scheduler(&self, wrong: &mut WrongSettings) -> Option<Scheduler> {
        let name = self.either(SCHEDULER, scheduler_name, (ROUTER_SCHEDULER, scheduler_name), wrong);
        let (of, flags) = self.flags(wrong);
        let Some(name) = name else {
            // A wrong scheduler has its sentence already.
            if flags.is_some() && [SCHEDULER, ROUTER_SCHEDULER].iter().all(|name| (self.text)(name).is_none())
            {
                wrong.push(((self.shown)(of), format!("it needs {} beside it", (self.shown)(SCHEDULER))));
            }
            return None;
        };
        let flags = flags.filter(|(bits, text)| {
            let fits = FLAGGED.contains(&name) && text.is_none_or(|text| text == name);
            if !fits && *bits != 0 {
                wrong.push(((self.shown)(of), format!("the scheduler {name} has no such flag")));
            }
            fits
        });
        Some(Scheduler { name: name.into(), flags: flags.map_or(usual_flags(name), |(flags, _)| flags) })
    }

    /// The flags of our name, else those of kube-router's name, and that name.
    fn flags(&self, wrong: &mut WrongSettings) -> (&'static str, Option<Flags>) {
        let own = self.read(SCHEDULER_FLAGS, flags, wrong);
        let other = self.read(ROUTER_FLAGS, router_flags, wrong);
        match (own, other) {
            (None, other) => (ROUTER_FLAGS, other),
            (Some(own), other) => {
                if other.is_some_and(|other| other.0 != own.0) {
                    let why = format!("{SCHEDULER_FLAGS} has another value, which is used");
                    wrong.push(((self.shown)(ROUTER_FLAGS), why));
                }
                (SCHEDULER_FLAGS, Some(own))
            }
        }
    }
}

/// What is shown of a value: annotations may have 256 KiB, and the sentence is kept.
pub fn beginning(text: &str) -> String {
    let shown: String = text.chars().take(SHOWN).collect();
    if shown.len() == text.len() { shown } else { shown + "…" }
}

fn scheduler_name(text: &str) -> Result<&'static str, String> {
    let known = SCHEDULERS.into_iter().find(|name| *name == text);
    known.ok_or_else(|| format!("a scheduler of IPVS: {}", SCHEDULERS.join(", ")))
}

/// Flags, and the scheduler that they are named after.
type Flags = (u32, Option<&'static str>);

fn flags(text: &str) -> Result<Flags, String> {
    const NAMES: [(&str, u32, &str); 4] = [
        ("sh-fallback", SCHED_FALLBACK, "sh"),
        ("sh-port", SCHED_PORT, "sh"),
        ("mh-fallback", SCHED_FALLBACK, "mh"),
        ("mh-port", SCHED_PORT, "mh"),
    ];
    let mut all: Flags = (0, None);
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let known = NAMES.into_iter().find(|(name, ..)| *name == part);
        let Some((_, flag, of)) = known.filter(|(.., of)| all.1.is_none_or(|before| before == *of)) else {
            return Err("a list of sh-fallback and sh-port, or of mh-fallback and mh-port".to_owned());
        };
        all = (all.0 | flag, Some(of));
    }
    Ok(all)
}

fn router_flags(text: &str) -> Result<Flags, String> {
    const NAMES: [(&str, u32); 3] = [("flag-1", SCHED_FALLBACK), ("flag-2", SCHED_PORT), ("flag-3", 0x20)];
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    let flag = |part: &str| NAMES.into_iter().find(|(name, _)| *name == part).map(|(_, flag)| flag);
    let all = parts.map(flag).try_fold(0, |all, flag| Some(all | flag?));
    all.map(|all| (all, None)).ok_or_else(|| "a list of flag-1, flag-2 and flag-3".to_owned())
}

fn deadline(text: &str) -> Result<Duration, String> {
    let parsed: Result<GoDuration, _> = text.parse();
    parsed.map(|duration| duration.0).map_err(|_| "a duration such as 30s or 1h; 0s: no deadline".to_owned())
}

fn slow_start(text: &str) -> Result<Duration, String> {
    let parsed = text.parse::<GoDuration>().ok().map(|duration| duration.0);
    let valid = parsed.filter(|time| (SHORTEST_SLOW_START..=LONGEST_SLOW_START).contains(time));
    valid.ok_or_else(|| "a duration from 1s to 1h".to_owned())
}

/// `UPPER` or `UPPER,LOWER`. The kernel refuses a lower limit above the upper one.
fn max_connections(text: &str) -> Result<ConnectionLimits, String> {
    let number =
        |text: &str| text.trim().parse::<u32>().ok().filter(|number| (1..=MOST_CONNECTIONS).contains(number));
    let limits = match text.split_once(',') {
        None => number(text).map(|upper| ConnectionLimits { upper, lower: 0 }),
        Some((upper, lower)) => {
            number(upper).zip(number(lower)).map(|(upper, lower)| ConnectionLimits { upper, lower })
        }
    };
    let valid = limits.filter(|limits| limits.lower <= limits.upper);
    valid.ok_or_else(|| {
        "a number of connections, or UPPER,LOWER with a lower number below which they come again".to_owned()
    })
}

fn direct_return(text: &str) -> Result<DirectReturn, String> {
    text.parse().map_err(|_| "route or tunnel".to_owned())
}

fn is_true(text: &str) -> Result<bool, String> {
    text.parse().map_err(|_| "true or false".to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::source::decode::RawObject;
    use crate::store::{Kind, Object};

    /// The options of a Service with these annotations, and what is wrong.
    fn read(annotations: &serde_json::Value) -> (ServiceOptions, Vec<Arc<str>>) {
        let service = json!({
            "metadata": {"name": "web", "annotations": annotations},
            "spec": {"clusterIP": "10.96.0.10", "ports": [{"port": 80}]},
        });
        let raw = RawObject::read(Kind::Service, &service).unwrap();
        let decoded = raw.decode(&raw.name());
        let Ok(Object::Service(service)) = decoded.object else { panic!("{decoded:?}") };
        let mut options = service.own_options.as_deref().cloned().unwrap_or_default();
        let wrong = std::mem::take(&mut options.wrong);
        (options, wrong)
    }

    fn scheduler(name: &str, flags: u32) -> Option<Scheduler> {
        Some(Scheduler { name: name.into(), flags })
    }

    #[test]
    fn each_annotation_chooses_its_setting() {
        let (options, wrong) = read(&json!({
            "kube-ipvs.io/scheduler": "mh", "kube-ipvs.io/scheduler-flags": "mh-port, mh-fallback",
            "kube-ipvs.io/drain-deadline": "30s", "kube-ipvs.io/hairpin": "false",
            "kube-ipvs.io/slow-start": "1m", "kube-ipvs.io/max-connections": "1000, 800",
            "kube-ipvs.io/direct-return": "route", "kube-ipvs.io/probe": "interval=5s,threshold=2",
        }));
        assert!(wrong.is_empty(), "{wrong:?}");
        assert_eq!(options.scheduler, scheduler("mh", 0x18));
        assert_eq!(options.drain_deadline, Some(Duration::from_secs(30)));
        assert_eq!(options.hairpin, Some(false));
        assert_eq!(options.slow_start, Some(Duration::from_secs(60)));
        assert_eq!(options.max_connections, Some(ConnectionLimits { upper: 1000, lower: 800 }));
        assert_eq!(options.direct_return, Some(DirectReturn::Route));
        let probe = options.probe.unwrap();
        assert_eq!((probe.interval, probe.threshold), (Duration::from_secs(5), 2));
        let of = |name: &str| read(&json!({"kube-ipvs.io/scheduler": name})).0.scheduler;
        assert_eq!(
            (of("mh"), of("sh"), of("lc")),
            (scheduler("mh", 0x10), scheduler("sh", 0), scheduler("lc", 0))
        );
        assert_eq!(read(&json!({"other": "x"})), (ServiceOptions::default(), Vec::new()));
    }

    #[test]
    fn names_of_kube_router_are_read_and_a_conflict_is_told() {
        let (options, wrong) = read(&json!({
            "kube-router.io/service.scheduler": "sh", "kube-router.io/service.schedflags": "flag-1,flag-2",
            "kube-router.io/service.hairpin": "", "kube-router.io/service.dsr": "tunnel",
        }));
        assert_eq!((options.scheduler, options.hairpin), (scheduler("sh", 0x18), Some(true)));
        assert_eq!(options.direct_return, Some(DirectReturn::Tunnel));
        assert!(wrong.is_empty(), "{wrong:?}");
        let both = json!({"kube-ipvs.io/scheduler": "lc", "kube-router.io/service.scheduler": "sh"});
        let (options, wrong) = read(&both);
        assert_eq!(options.scheduler, scheduler("lc", 0));
        assert_eq!(wrong.len(), 1);
        assert!(
            wrong[0].contains("service.scheduler: kube-ipvs.io/scheduler has another value"),
            "{wrong:?}"
        );
    }

    #[test]
    fn sentences_name_the_annotation_that_the_service_has() {
        let told = |annotations: serde_json::Value| read(&annotations).1;
        let same = json!({"kube-ipvs.io/scheduler": "sh", "kube-ipvs.io/scheduler-flags": "sh-port",
            "kube-router.io/service.schedflags": "flag-2"});
        assert!(told(same).is_empty(), "the same flag under two names");
        let unfit = json!({"kube-ipvs.io/scheduler": "rr", "kube-router.io/service.schedflags": "flag-1"});
        let [only] = &told(unfit)[..] else { panic!("not one sentence") };
        assert!(
            only.contains("kube-router.io/service.schedflags: the scheduler rr has no such flag"),
            "{only}"
        );
        let empty =
            json!({"kube-router.io/service.scheduler": "rr", "kube-router.io/service.schedflags": ""});
        assert!(told(empty).is_empty());
        let both = json!({"kube-ipvs.io/scheduler": "fastest", "kube-ipvs.io/scheduler-flags": "sh-port"});
        assert_eq!(told(both).len(), 1, "the wrong scheduler alone");
    }

    #[test]
    fn a_wrong_value_is_named_and_the_configuration_holds() {
        for (name, value, told) in [
            ("scheduler", "fastest", "\"fastest\" is not a scheduler of IPVS: rr, wrr"),
            ("scheduler-flags", "sh-port", "it needs kube-ipvs.io/scheduler"),
            ("drain-deadline", "soon", "\"soon\" is not a duration"),
            ("drain-deadline", "-1s", "is not a duration"),
            ("hairpin", "yes", "\"yes\" is not true or false"),
            ("slow-start", "0s", "\"0s\" is not a duration from 1s to 1h"),
            ("slow-start", "2h", "is not a duration from 1s to 1h"),
            ("max-connections", "0", "\"0\" is not a number of connections"),
            ("max-connections", "10,20", "is not a number of connections"),
            ("max-connections", "4294967295", "is not a number of connections"),
            ("probe", "interval=0s", "\"interval=0s\" is not true, or a list such as interval=10s"),
            ("direct-return", "masq", "\"masq\" is not route or tunnel"),
        ] {
            let (options, wrong) = read(&json!({format!("kube-ipvs.io/{name}"): value}));
            assert_eq!(options, ServiceOptions::default(), "{name}");
            assert!(wrong.len() == 1 && wrong[0].contains(told), "{wrong:?}");
        }
        let (_, wrong) = read(&json!({"kube-ipvs.io/scheduler": "x".repeat(250_000)}));
        assert!(wrong[0].len() < 300 && wrong[0].contains("xxx…"), "{wrong:?}");
        for (scheduler, flags) in
            [("rr", "sh-port"), ("mh", "sh-port"), ("sh", "sh-port,mh-port"), ("sh", "x")]
        {
            let both = json!({"kube-ipvs.io/scheduler": scheduler, "kube-ipvs.io/scheduler-flags": flags});
            let (options, wrong) = read(&both);
            assert_eq!(options.scheduler.unwrap().flags, usual_flags(scheduler));
            assert_eq!(wrong.len(), 1, "{wrong:?}");
        }
    }
}
