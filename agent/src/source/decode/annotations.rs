// SPDX-License-Identifier: Apache-2.0
//! Annotations that choose settings of a single Service: `kube-ipvs.io/NAME`, and the names of kube-router.

use std::sync::Arc;
use std::time::Duration;

use super::tape::{Tape, TapeItem, UsedField, plain};
use crate::config::duration::GoDuration;
use crate::core::model::options::{
    DirectReturn, FLAGGED, SCHED_FALLBACK, SCHED_PORT, SCHEDULERS, Scheduler, ServiceOptions, usual_flags,
};
use crate::core::model::real_servers::ConnectionLimits;

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

/// The annotations of objects that are used.
pub(super) const ANNOTATIONS: &[UsedField] = &[
    plain(super::slice::TRIGGER_ANNOTATION),
    plain(super::endpoint_weights::WEIGHT),
    plain(SCHEDULER),
    plain(SCHEDULER_FLAGS),
    plain(DRAIN_DEADLINE),
    plain(HAIRPIN),
    plain(SLOW_START),
    plain(MAX_CONNECTIONS),
    plain(DIRECT_RETURN),
    plain(PROBE),
    plain(ROUTER_SCHEDULER),
    plain(ROUTER_FLAGS),
    plain(ROUTER_HAIRPIN),
    plain(ROUTER_DIRECT_RETURN),
];

/// The options of a Service. A wrong value is ignored, and the configuration holds.
pub(super) fn decode(tape: &Tape<'_>) -> Option<Arc<ServiceOptions>> {
    let annotations = Annotations(tape.at(&["metadata", "annotations"])?);
    let mut wrong = Vec::new();
    let drain_deadline = annotations.read(DRAIN_DEADLINE, deadline, &mut wrong);
    let hairpin = annotations.either(HAIRPIN, is_true, (ROUTER_HAIRPIN, |_| Ok(true)), &mut wrong);
    let slow_start = annotations.read(SLOW_START, slow_start, &mut wrong);
    let max_connections = annotations.read(MAX_CONNECTIONS, max_connections, &mut wrong);
    let direct_return =
        annotations.either(DIRECT_RETURN, direct_return, (ROUTER_DIRECT_RETURN, direct_return), &mut wrong);
    let probe = annotations.read(PROBE, str::parse, &mut wrong);
    let scheduler = annotations.scheduler(&mut wrong);
    let wrong = wrong.into_iter().map(Arc::from).collect();
    ServiceOptions {
        scheduler,
        drain_deadline,
        hairpin,
        slow_start,
        max_connections,
        direct_return,
        probe,
        wrong,
    }
    .kept()
}

/// Reads a value, or says what it must be.
type ValueReader<T> = fn(&str) -> Result<T, String>;

struct Annotations<'a>(TapeItem<'a>);

impl Annotations<'_> {
    fn read<T>(&self, name: &str, reader: ValueReader<T>, wrong: &mut Vec<String>) -> Option<T> {
        let text = self.0.get(name)?.text()?;
        match reader(text.trim()) {
            Ok(value) => Some(value),
            Err(wanted) => {
                wrong.push(format!("annotation {name}: {:?} is not {wanted}", beginning(text)));
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
        wrong: &mut Vec<String>,
    ) -> Option<T> {
        let own = self.read(name, reader, wrong);
        let other = self.read(other_name, other_reader, wrong);
        if own.is_some() && other.is_some() && own != other {
            wrong.push(format!("annotation {other_name}: {name} has another value, which is used"));
        }
        own.or(other)
    }

    fn scheduler(&self, wrong: &mut Vec<String>) -> Option<Scheduler> {
        let name = self.either(SCHEDULER, scheduler_name, (ROUTER_SCHEDULER, scheduler_name), wrong);
        let flags = self.either(SCHEDULER_FLAGS, flags, (ROUTER_FLAGS, router_flags), wrong);
        let Some(name) = name else {
            if flags.is_some() {
                wrong.push(format!("annotation {SCHEDULER_FLAGS}: it needs {SCHEDULER} beside it"));
            }
            return None;
        };
        let flags = flags.filter(|(_, text)| {
            let fits = FLAGGED.contains(&name) && text.is_none_or(|text| text == name);
            if !fits {
                wrong.push(format!("annotation {SCHEDULER_FLAGS}: the scheduler {name} has no such flag"));
            }
            fits
        });
        Some(Scheduler { name: name.into(), flags: flags.map_or(usual_flags(name), |(flags, _)| flags) })
    }
}

/// What is shown of a value: annotations may have 256 KiB, and the sentence is kept.
pub(super) fn beginning(text: &str) -> String {
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
        let mut options = service.options.as_deref().cloned().unwrap_or_default();
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
