// SPDX-License-Identifier: Apache-2.0
//! Reports a blocked sync loop, with the system call that blocks it.

use std::fs;
use std::io;
use std::time::Duration;

use nix::unistd::Pid;

use crate::serve::health::{LoopLag, SharedHealth};
use crate::words;

/// The time without an iteration that is reported.
const LIMIT: Duration = Duration::from_secs(10);
/// Pause between two checks.
const PERIOD: Duration = Duration::from_secs(1);

/// Starts the watchdog of the loop that runs in `thread`. `min_sync_period`: the time that changes may wait for the
/// next sync.
///
/// # Errors
/// When the thread cannot be started.
pub fn start(health: SharedHealth, thread: Pid, min_sync_period: Duration) -> io::Result<()> {
    let run = move || {
        let mut watchdog = Watchdog { limit: LIMIT.max(min_sync_period * 2), longest: None };
        loop {
            std::thread::sleep(PERIOD);
            match watchdog.check(health.lag()) {
                Some(Finding::Blocked(time)) => {
                    let (time, place) = (words::time(time), wait_of(thread));
                    tracing::error!(
                        "the sync loop has been blocked for {time} in {place} and programs no changes; \
                         /proc/{}/task/{thread}/stack shows what it waits for",
                        std::process::id()
                    );
                }
                Some(Finding::Late(time)) => {
                    let time = words::time(time);
                    tracing::error!(
                        "the sync loop runs but has not read a change of {time} ago; restart the agent and report this"
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

/// A change of the state of the loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Finding {
    /// The time without an iteration.
    Blocked(Duration),
    /// It iterates, but has not taken a change of this age.
    Late(Duration),
    /// It works again; the time that it was blocked or late.
    Over(Duration),
}

#[derive(Debug)]
struct Watchdog {
    limit: Duration,
    /// The delay at the last check, if it was reported.
    longest: Option<Duration>,
}

impl Watchdog {
    /// What to report: once at the beginning, and once at the end.
    fn check(&mut self, lag: LoopLag) -> Option<Finding> {
        let late = lag.silent.max(lag.waiting);
        if late < self.limit {
            return self.longest.take().map(Finding::Over);
        }
        let found =
            if lag.silent >= self.limit { Finding::Blocked(lag.silent) } else { Finding::Late(lag.waiting) };
        self.longest.replace(late).is_none().then_some(found)
    }
}

/// What a thread waits for.
fn wait_of(thread: Pid) -> String {
    let read = |name: &str| fs::read_to_string(format!("/proc/self/task/{thread}/{name}"));
    describe_wait(&read("syscall").unwrap_or_default(), &read("wchan").unwrap_or_default())
}

/// From the files of `/proc/PID/task/TID` (proc(5)). `syscall` starts with the number of the system call, or is
/// `running`; `wchan` is the kernel function that waits, `0` if unknown.
fn describe_wait(syscall: &str, wchan: &str) -> String {
    match syscall.split_whitespace().next().unwrap_or("unknown") {
        "running" => "the agent's own code (state running)".to_owned(),
        call => format!("system call {call} ({})", if wchan.is_empty() { "0" } else { wchan.trim() }),
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
        assert_eq!(watchdog.check(lag(9, 9)), None);
        assert_eq!(watchdog.check(lag(10, 10)), Some(Finding::Blocked(s(10))));
        assert_eq!(watchdog.check(lag(11, 12)), None);
        assert_eq!(watchdog.check(lag(0, 0)), Some(Finding::Over(s(12))));
        assert_eq!(watchdog.check(lag(0, 0)), None);
        assert_eq!(watchdog.check(lag(1, 15)), Some(Finding::Late(s(15))), "it turns");
    }

    #[test]
    fn the_wait_of_a_thread_is_a_system_call_and_a_kernel_function() {
        let wait = describe_wait("47 0x5 0x7f 0x0 0x0 0x0 0x0 0x7ffd 0x45\n", "netlink_recvmsg");
        assert_eq!(wait, "system call 47 (netlink_recvmsg)");
        assert_eq!(describe_wait("running\n", "0"), "the agent's own code (state running)");
        assert_eq!(describe_wait("", ""), "system call unknown (0)");
        let here = wait_of(nix::unistd::gettid());
        assert!(here.contains("running") || here.contains("system call"), "{here}");
    }
}
