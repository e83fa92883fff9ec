// SPDX-License-Identifier: Apache-2.0
//! The log on standard error: text, or JSON with the keys of Kubernetes components. The level can be changed
//! at run time. No cause can fill a disk: lines beyond [`PER_SECOND`] are counted instead of written.

mod json;
mod limit;
pub mod text;

use std::io::IsTerminal;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::Registry;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;

use crate::reconcile::CHANGES;
pub use limit::{PER_SECOND, suppressed, tell_suppressed};

/// How lines look (`logging.format`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

impl FromStr for Format {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        match text {
            "text" => Ok(Format::Text),
            "json" => Ok(Format::Json),
            other => anyhow::bail!("{other:?} is not text or json"),
        }
    }
}

/// From here on every pass that changes something is logged.
const SYNCS: u32 = 2;
/// From here on every pass is logged.
const PASSES: u32 = 4;
/// From here on every operation is logged.
const OPERATIONS: u32 = 6;

/// Changes the level of the log that runs. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Verbosity {
    level: Arc<AtomicU32>,
    filter: Option<reload::Handle<Targets, Registry>>,
}

impl Verbosity {
    /// The level now, as with `-v`.
    pub fn get(&self) -> u32 {
        self.level.load(Ordering::Relaxed)
    }

    /// Logs as if started with `-v=LEVEL`.
    pub fn set(&self, level: u32) {
        if let Some(filter) = &self.filter
            && filter.reload(targets(level)).is_ok()
        {
            self.level.store(level, Ordering::Relaxed);
        }
    }
}

/// Starts the log of this process.
pub fn start(format: Format, verbosity: u32) -> Verbosity {
    let (filter, handle) = reload::Layer::new(targets(verbosity));
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_target(false);
    let layer = match format {
        Format::Text => layer.with_ansi(std::io::stderr().is_terminal()).event_format(text::Text).boxed(),
        Format::Json => layer.event_format(json::KubeJson).boxed(),
    };
    let layer = layer.with_filter(limit::Limit).with_filter(filter);
    // Only a second start in one process could fail.
    let _ = tracing_subscriber::registry().with(layer).try_init();
    Verbosity { level: Arc::new(AtomicU32::new(verbosity)), filter: Some(handle) }
}

/// What is logged at a level of `-v`.
pub(crate) fn targets(verbosity: u32) -> Targets {
    let level = match verbosity {
        0..PASSES => LevelFilter::INFO,
        PASSES..OPERATIONS => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    let changes = if verbosity < SYNCS { LevelFilter::INFO } else { LevelFilter::DEBUG };
    // Libraries speak up only about errors; kube-client repeats whole bodies in its own.
    Targets::new()
        .with_default(LevelFilter::ERROR)
        .with_target("kube_ipvs", level)
        .with_target(CHANGES, changes)
        .with_target("kube_client", LevelFilter::OFF)
        .with_target("kube_runtime", LevelFilter::OFF)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing::Level;

    #[test]
    fn levels_are_kube_proxys_and_libraries_stay_quiet() {
        let enabled = |verbosity, target, level: Level| targets(verbosity).would_enable(target, &level);
        assert!(enabled(0, "kube_ipvs::app", Level::INFO) && !enabled(3, "kube_ipvs::app", Level::DEBUG));
        assert!(enabled(4, "kube_ipvs::app", Level::DEBUG) && !enabled(5, "kube_ipvs::app", Level::TRACE));
        assert!(enabled(6, "kube_ipvs::app", Level::TRACE));
        assert!(!enabled(1, CHANGES, Level::DEBUG) && enabled(2, CHANGES, Level::DEBUG));
        assert!(!enabled(10, "kube_client::client", Level::ERROR) && !enabled(10, "hyper", Level::WARN));
    }

    #[test]
    fn formats_have_names() {
        assert_eq!("json".parse::<Format>().unwrap(), Format::Json);
        assert!("xml".parse::<Format>().unwrap_err().to_string().contains("text or json"));
    }
}
