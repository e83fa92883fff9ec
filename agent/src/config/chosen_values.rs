// SPDX-License-Identifier: Apache-2.0
//! The settings of a Service as values of annotations: the opposite of `annotations.rs`.

use super::duration::GoDuration;
use crate::core::model::ProbeSpec;
use crate::core::model::options::{FLAGGED, SCHED_FALLBACK, SCHED_PORT, Scheduler, ServiceOptions};
use crate::core::model::real_servers::ConnectionLimits;

impl ServiceOptions {
    /// What is chosen: names of annotations without `kube-ipvs.io/`, and values of annotations that choose the same.
    pub fn chosen_values(&self) -> Vec<(&'static str, String)> {
        let duration = |time| GoDuration(time).to_string();
        let scheduler = self.scheduler.as_ref();
        let values = [
            ("scheduler", scheduler.map(|scheduler| scheduler.name.to_string())),
            ("scheduler-flags", scheduler.and_then(flags)),
            ("drain-deadline", self.drain_deadline.map(duration)),
            ("hairpin", self.hairpin.map(|on| on.to_string())),
            ("slow-start", self.slow_start.map(duration)),
            ("max-connections", self.max_connections.map(limits)),
            ("direct-return", self.direct_return.map(|how| how.to_string())),
            ("probe", self.probe.map(probe)),
        ];
        values.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
    }
}

fn flags(scheduler: &Scheduler) -> Option<String> {
    let name = FLAGGED.into_iter().find(|name| **name == *scheduler.name)?;
    let flags = [(SCHED_FALLBACK, "fallback"), (SCHED_PORT, "port")];
    let set = flags.into_iter().filter(|(flag, _)| scheduler.flags & flag != 0);
    Some(set.map(|(_, flag)| format!("{name}-{flag}")).collect::<Vec<_>>().join(","))
}

fn limits(limits: ConnectionLimits) -> String {
    let ConnectionLimits { upper, lower } = limits;
    if lower == 0 { upper.to_string() } else { format!("{upper},{lower}") }
}

fn probe(spec: ProbeSpec) -> String {
    let ProbeSpec { interval, timeout, threshold } = spec;
    format!("interval={},timeout={},threshold={threshold}", GoDuration(interval), GoDuration(timeout))
}

#[cfg(test)]
mod tests {
    use crate::config::annotations::of_annotations;

    #[test]
    fn the_values_choose_the_same_again() {
        for annotations in [
            &[("scheduler", "mh"), ("scheduler-flags", "mh-fallback,mh-port")][..],
            &[("scheduler", "mh"), ("scheduler-flags", "")],
            &[("scheduler", "sh"), ("scheduler-flags", "sh-fallback")],
            &[("scheduler", "lc"), ("drain-deadline", "1h0m0s"), ("hairpin", "false")],
            &[("drain-deadline", "0s"), ("hairpin", "true"), ("slow-start", "30s")],
            &[("max-connections", "1000,800"), ("direct-return", "tunnel")],
            &[("max-connections", "1000"), ("probe", "interval=5s,timeout=500ms,threshold=2")],
        ] {
            let value = |wanted: &str| {
                let of = |(name, value): &(&'static str, &'static str)| {
                    (wanted.strip_prefix("kube-ipvs.io/") == Some(*name)).then_some(*value)
                };
                annotations.iter().find_map(of)
            };
            let options = of_annotations(value).unwrap();
            assert!(options.wrong.is_empty(), "{:?}", options.wrong);
            let values = options.chosen_values();
            let values: Vec<_> = values.iter().map(|(name, value)| (*name, &**value)).collect();
            assert_eq!(values, annotations);
        }
    }
}
