// SPDX-License-Identifier: Apache-2.0
//! The log on standard error. The level can be changed at run time. At most [`PER_SECOND`] lines a second are
//! written; the others are counted, so no cause can fill a disk.

mod format;
mod levels;
mod limit;
mod ring;

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::Registry;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;

pub use format::{LogFormat, render_text};
pub use levels::{CHANGES, READY};
use levels::{OPERATIONS, PASSES, SYNCS};
pub use limit::{PER_SECOND, report_suppressed, suppressed};
pub use ring::recent;

/// Reads and changes the level of the running log. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Verbosity {
    level: Arc<AtomicU32>,
    filter: reload::Handle<Targets, Registry>,
}

impl Verbosity {
    /// The level now, as with `-v`.
    pub fn get(&self) -> u32 {
        self.level.load(Ordering::Relaxed)
    }

    /// Logs as if started with `-v=LEVEL`.
    pub fn set(&self, level: u32) {
        if self.filter.reload(targets(level)).is_ok() {
            self.level.store(level, Ordering::Relaxed);
        }
    }
}

/// Starts the log of this process.
pub fn start(format: LogFormat, verbosity: u32) -> Verbosity {
    let (filter, handle) = reload::Layer::new(targets(verbosity));
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .event_format(format)
        .with_filter(limit::Limit)
        .with_filter(filter);
    // The ring has what the limit suppresses, but no more than the level shows by default.
    let ring = ring::Ring.with_filter(targets(0));
    // Only a second start in one process could fail.
    let _ = tracing_subscriber::registry().with(layer).with(ring).try_init();
    Verbosity { level: Arc::new(AtomicU32::new(verbosity)), filter: handle }
}

/// The lines that a level of `-v` shows.
pub(crate) fn targets(verbosity: u32) -> Targets {
    let level = match verbosity {
        0..PASSES => LevelFilter::INFO,
        PASSES..OPERATIONS => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    let changes = if verbosity < SYNCS { LevelFilter::INFO } else { LevelFilter::DEBUG };
    // Libraries log errors only; kube-client repeats whole bodies in its own.
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
}
