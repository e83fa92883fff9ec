// SPDX-License-Identifier: Apache-2.0
//! Reports a sync loop that is blocked, with the system call that blocks it. The loop cannot report that itself.

use std::fs;
use std::io;
use std::time::Duration;

use nix::unistd::Pid;

use crate::serve::health::{LoopLag, SharedHealth};
use crate::words;

/// A loop that has not turned for so long is reported.
const LIMIT: Duration = Duration::from_secs(10);
/// Pause between two looks.
const PERIOD: Duration = Duration::from_secs(1);

/// Starts the watchdog of the loop that runs in `thread`. `min_sync_period`: how long changes may wait for the
/// next sync on purpose.
///
/// # Errors
/// When no thread can be started.
pub fn start(health: SharedHealth, thread: Pid, min_sync_period: Duration) -> io::Result<()> {
    let run = move || {
        let mut watchdog = Watchdog { limit: LIMIT.max(min_sync_period * 2), longest: None };
        loop {
            std::thread::sleep(PERIOD);
            let mut lag = health.lag();
            lag.waiting = health.with(|health| health.waiting(lag));
            match watchdog.look(lag) {
                Some(Finding::Blocked(time)) => {
                    let (time, place) = (words::time(time), Place::of(thread));
                    tracing::error!(
                        "the sync loop has been blocked for {time} in {place}: no change is programmed meanwhile; \
                         /proc/{}/task/{thread}/stack shows what it waits for",
                        std::process::id()
                    );
                }
                Some(Finding::Late(time)) => {
                    let time = words::time(time);
                    tracing::error!(
                        "the sync loop runs but has not read a change of {time} ago: restart the agent and report this"
                    );
                }
                Some(Finding::Over(time)) => {
                    tracing::info!("the sync loop works again after {}", words::time(time));
                }
                None => {}
            }
        }
    };
    std::thread::Builder::new().name("watchdog".to_owned()).spawn(run).map(drop)
}

/// What is new about the loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Finding {
    /// It has not turned for so long.
    Blocked(Duration),
    /// It turns and has not taken a change for so long.
    Late(Duration),
    /// It was blocked or late for so long.
    Over(Duration),
}

#[derive(Debug)]
struct Watchdog {
    limit: Duration,
    /// How late the loop was at the last look, if that was reported.
    longest: Option<Duration>,
}

impl Watchdog {
    /// What is to be reported: once when it begins, and once when it is over.
    fn look(&mut self, lag: LoopLag) -> Option<Finding> {
        let late = lag.silent.max(lag.waiting);
        if late < self.limit {
            return self.longest.take().map(Finding::Over);
        }
        let found =
            if lag.silent >= self.limit { Finding::Blocked(lag.silent) } else { Finding::Late(lag.waiting) };
        self.longest.replace(late).is_none().then_some(found)
    }
}

/// Where a thread is, as in `/proc/PID/task/TID` (proc(5)).
#[derive(Debug, PartialEq, Eq)]
struct Place {
    /// The number of its system call, or `running`.
    call: String,
    /// The function of the kernel in which it waits; `0` where the kernel does not say.
    function: String,
}

impl Place {
    fn of(thread: Pid) -> Self {
        let read = |name: &str| fs::read_to_string(format!("/proc/self/task/{thread}/{name}"));
        Self::parse(&read("syscall").unwrap_or_default(), &read("wchan").unwrap_or_default())
    }

    fn parse(syscall: &str, wchan: &str) -> Self {
        let call = syscall.split_whitespace().next().unwrap_or("unknown").to_owned();
        Self { call, function: if wchan.is_empty() { "0".to_owned() } else { wchan.trim().to_owned() } }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.call.as_str() {
            "running" => f.write_str("the agent's own code (state running)"),
            call => write!(f, "system call {call} ({})", self.function),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lag(silent: u64, waiting: u64) -> LoopLag {
        LoopLag { silent: Duration::from_secs(silent), waiting: Duration::from_secs(waiting) }
    }

    #[test]
    fn a_blocked_loop_is_reported_once_and_its_end_too() {
        let s = Duration::from_secs;
        let mut watchdog = Watchdog { limit: s(10), longest: None };
        assert_eq!(watchdog.look(lag(9, 9)), None);
        assert_eq!(watchdog.look(lag(10, 10)), Some(Finding::Blocked(s(10))));
        assert_eq!(watchdog.look(lag(11, 12)), None);
        assert_eq!(watchdog.look(lag(0, 0)), Some(Finding::Over(s(12))));
        assert_eq!(watchdog.look(lag(0, 0)), None);
        assert_eq!(watchdog.look(lag(1, 15)), Some(Finding::Late(s(15))), "it turns");
    }

    #[test]
    fn a_place_is_a_system_call_and_what_it_waits_for() {
        let place = Place::parse("47 0x5 0x7f 0x0 0x0 0x0 0x0 0x7ffd 0x45\n", "netlink_recvmsg");
        assert_eq!(place.to_string(), "system call 47 (netlink_recvmsg)");
        assert_eq!(Place::parse("running\n", "0").to_string(), "the agent's own code (state running)");
        assert_eq!(Place::parse("", "").to_string(), "system call unknown (0)");
        let here = Place::of(nix::unistd::gettid()).to_string();
        assert!(here.contains("running") || here.contains("system call"), "{here}");
    }
}
