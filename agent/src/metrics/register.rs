// SPDX-License-Identifier: Apache-2.0
//! Declares metrics. A metric is registered where it is declared, so none can be forgotten.

use std::time::SystemTime;

use prometheus::{
    Gauge, GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, Result,
};

use crate::core::model::{Family, PerFamily};

/// A kind of metric that [`declare`] knows.
pub(super) trait Metric: Sized {
    fn register(registry: &Registry, opts: Opts, labels: &[&str], buckets: Vec<f64>) -> Result<Self>;
}

macro_rules! kinds {
    ($($kind:ident: |$opts:ident, $labels:ident, $buckets:ident| $new:expr;)*) => {$(
        impl Metric for $kind {
            fn register(registry: &Registry, $opts: Opts, $labels: &[&str], $buckets: Vec<f64>) -> Result<Self> {
                let metric = $new?;
                registry.register(Box::new(metric.clone()))?;
                Ok(metric)
            }
        }
    )*};
}

kinds! {
    IntCounter: |opts, _labels, _buckets| IntCounter::with_opts(opts);
    IntCounterVec: |opts, labels, _buckets| IntCounterVec::new(opts, labels);
    IntGauge: |opts, _labels, _buckets| IntGauge::with_opts(opts);
    IntGaugeVec: |opts, labels, _buckets| IntGaugeVec::new(opts, labels);
    Gauge: |opts, _labels, _buckets| Gauge::with_opts(opts);
    GaugeVec: |opts, labels, _buckets| GaugeVec::new(opts, labels);
    HistogramVec: |opts, labels, buckets| HistogramVec::new(HistogramOpts::from(opts).buckets(buckets), labels);
}

/// Gauges with the label `ip_family`.
impl Metric for PerFamily<IntGauge> {
    fn register(registry: &Registry, opts: Opts, labels: &[&str], buckets: Vec<f64>) -> Result<Self> {
        let gauges = IntGaugeVec::register(registry, opts, labels, buckets)?;
        Ok(PerFamily::of(|family| gauges.with_label_values(&[label(family)])))
    }
}

/// Declares a struct of metrics and its function `register`. A metric is
/// `pub field: Kind = "name" ["label", …], buckets => "help";` `pub`, labels and buckets are optional. `with` adds other
/// fields.
macro_rules! declare {
    ($(#[$meta:meta])* $visibility:vis struct $struct:ident {
        $(
            $(#[$field_meta:meta])* $field_visibility:vis $field:ident: $kind:ty = $name:literal $([$($label:literal),*])?
            $(, $buckets:expr)? => $help:literal;
        )*
    } $(with { $($(#[$state_meta:meta])* $state:ident: $state_type:ty = $init:expr;)* })?) => {
        $(#[$meta])*
        #[derive(Debug)]
        $visibility struct $struct {
            $($(#[$field_meta])* $field_visibility $field: $kind,)*
            $($($(#[$state_meta])* $state: $state_type,)*)?
        }

        impl $struct {
            pub fn register(registry: &prometheus::Registry) -> prometheus::Result<Self> {
                Ok(Self {
                    $($field: $crate::metrics::register::Metric::register(
                        registry,
                        prometheus::Opts::new($name, $help),
                        &[$($($label),*)?],
                        Vec::<Vec<f64>>::from([$($buckets)?]).concat(),
                    )?,)*
                    $($($state: $init,)*)?
                })
            }
        }
    };
}
pub(super) use declare;

/// The value of the label `ip_family`, as in kube-proxy.
pub(super) fn label(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}

/// Raises a counter to a total that is counted elsewhere and never falls.
pub(super) fn catch_up(counter: &IntCounter, total: u64) {
    counter.inc_by(total.saturating_sub(counter.get()));
}

/// Seconds since the epoch.
pub(super) fn seconds(at: SystemTime) -> f64 {
    at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}
