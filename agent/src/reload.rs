// SPDX-License-Identifier: Apache-2.0
//! A configuration file that changed: it is tried completely, and only what a start could use leads to a
//! restart, at a random time, so that the nodes of a fleet do not restart together.

use std::hash::{BuildHasher, RandomState};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::config::Reload;
use crate::file_watch::FileWatch;
use crate::words;

/// What could not be used is tried again after so long: the file may be right and something else wrong.
const RETRY: Duration = Duration::from_secs(60);
/// Pause after a watch that failed, and where a file is away or being written when it is time to restart.
const PAUSE: Duration = Duration::from_secs(5);

/// What was last found in the file.
#[derive(Debug)]
struct Tried {
    text: String,
    /// Why it cannot be used.
    error: Option<String>,
    at: Instant,
}

/// Follows one file.
#[derive(Debug)]
pub struct ConfigReload<'a> {
    path: &'a Path,
    in_force: &'a str,
    reload: Reload,
    tried: Option<Tried>,
    /// When the restart is due.
    due: Option<Instant>,
}

impl<'a> ConfigReload<'a> {
    /// Follows `path`, whose content `in_force` was read before.
    pub fn new(path: &'a Path, in_force: &'a str, reload: Reload) -> Self {
        Self { path, in_force, reload, tried: None, due: None }
    }

    /// Returns when it is time to restart. `check` tells why a content cannot be used.
    pub fn wait(&mut self, check: impl Fn(&str) -> Result<(), String>) {
        let mut told = false;
        while let Err(error) = self.follow(&check) {
            let error = words::chain(&error);
            if !std::mem::replace(&mut told, true) {
                tracing::warn!(
                    "cannot watch the configuration file: {error}; its changes are not noticed; retried"
                );
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn follow(&mut self, check: &impl Fn(&str) -> Result<(), String>) -> anyhow::Result<()> {
        let mut watch = FileWatch::new()?;
        loop {
            // The watch stands before the file is read, so no change falls between the two.
            watch.cover([self.path])?;
            // A file that is away for a moment, or is being written, comes with another event.
            let text = watch.read(self.path).ok().flatten();
            let is_there = text.is_some();
            if let Some(text) = text {
                self.look(text, check);
            }
            let now = Instant::now();
            // A start would read what is there then: it must be what was tried.
            if is_there && self.due.is_some_and(|due| due <= now) {
                return Ok(());
            }
            let failed = self.tried.as_ref().is_some_and(|tried| tried.error.is_some());
            let left = self.due.map(|due| due.saturating_duration_since(now));
            let left = left.map(|left| if left.is_zero() { PAUSE } else { left }).or(failed.then_some(RETRY));
            watch.wait(left)?;
        }
    }

    fn look(&mut self, text: String, check: impl Fn(&str) -> Result<(), String>) {
        if text == self.in_force {
            if self.tried.take().is_some() {
                self.due = None;
                tracing::info!("the configuration file is again as it was at the start: no restart");
            }
            return;
        }
        let before = self.tried.as_ref().filter(|tried| tried.text == text);
        if before.is_some_and(|tried| tried.error.is_none() || tried.at.elapsed() < RETRY) {
            return;
        }
        let error = check(&text).err();
        let is_news = before.is_none_or(|tried| tried.error != error);
        self.due = None;
        match (&error, self.reload) {
            (Some(error), _) if is_news => tracing::error!(
                "the new content of {} cannot be used: {error}; the old one stays in force; fix the file",
                self.path.display()
            ),
            (Some(_), _) => {}
            (None, Reload::Ignore) => tracing::info!(
                "the configuration file changed: it counts from the next start \
                 (kubeIPVS.configReload.mode: ignore)"
            ),
            (None, Reload::Restart(spread)) => {
                let pause = spread.mul_f64(random());
                self.due = Some(Instant::now() + pause);
                tracing::info!(
                    "the configuration file changed and can be used: restart in {}",
                    words::time(pause)
                );
            }
        }
        self.tried = Some(Tried { text, error, at: Instant::now() });
    }
}

/// From 0 to 1.
fn random() -> f64 {
    (RandomState::new().hash_one(0) % 1000) as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;
    use std::sync::mpsc::{Receiver, channel};

    /// A ConfigMap that is mounted: a link to a link that is swapped.
    struct Mounted(tempfile::TempDir);

    impl Mounted {
        fn new(text: &str) -> Self {
            let mounted = Self(tempfile::tempdir().unwrap());
            mounted.swap("v0", text);
            symlink("..data/config.conf", mounted.path("config.conf")).unwrap();
            mounted
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn swap(&self, version: &str, text: &str) {
            fs::create_dir(self.path(version)).unwrap();
            fs::write(self.path(version).join("config.conf"), text).unwrap();
            symlink(version, self.path("..data_tmp")).unwrap();
            fs::rename(self.path("..data_tmp"), self.path("..data")).unwrap();
        }
    }

    /// Follows in a thread of its own; what was checked, and the end.
    fn follow(path: PathBuf, reload: Reload) -> (Receiver<String>, std::thread::JoinHandle<()>) {
        let (sender, checked) = channel();
        let follow = move || {
            ConfigReload::new(&path, "old", reload).wait(|text| {
                sender.send(text.to_owned()).unwrap();
                if text.contains("bad") { Err("no such scheduler".to_owned()) } else { Ok(()) }
            });
        };
        (checked, std::thread::spawn(follow))
    }

    const AT_ONCE: Reload = Reload::Restart(Duration::ZERO);
    const LIMIT: Duration = Duration::from_secs(10);

    #[test]
    fn a_config_map_that_is_swapped_is_tried_and_only_a_good_one_leads_to_a_restart() {
        let mounted = Mounted::new("old");
        let (checked, waiting) = follow(mounted.path("config.conf"), AT_ONCE);
        mounted.swap("v1", "old");
        mounted.swap("v2", "bad");
        assert_eq!(checked.recv_timeout(LIMIT).unwrap(), "bad");
        assert!(!waiting.is_finished(), "neither the same nor a bad content counts");
        mounted.swap("v3", "good");
        assert_eq!(checked.recv_timeout(LIMIT).unwrap(), "good");
        waiting.join().unwrap();
    }

    #[test]
    fn a_change_between_the_start_and_the_first_look_is_noticed() {
        let mounted = Mounted::new("good");
        let (_checked, waiting) = follow(mounted.path("config.conf"), AT_ONCE);
        waiting.join().unwrap();
    }

    #[test]
    fn a_file_that_is_open_for_writing_is_tried_when_it_is_closed() {
        use std::io::Write;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.conf");
        let mut file = fs::File::create(&path).unwrap();
        file.write_all(b"go").unwrap();
        let (checked, waiting) = follow(path, AT_ONCE);
        assert!(checked.recv_timeout(Duration::from_millis(300)).is_err(), "it was open before the watch");
        file.write_all(b"od").unwrap();
        drop(file);
        assert_eq!(checked.recv_timeout(LIMIT).unwrap(), "good");
        waiting.join().unwrap();
    }

    #[test]
    fn a_change_that_is_taken_back_or_ignored_leads_to_no_restart() {
        for reload in [Reload::Ignore, Reload::Restart(Duration::from_secs(3600))] {
            let mounted = Mounted::new("old");
            let (checked, waiting) = follow(mounted.path("config.conf"), reload);
            mounted.swap("v1", "good");
            assert_eq!(checked.recv_timeout(LIMIT).unwrap(), "good");
            mounted.swap("v2", "old");
            mounted.swap("v3", "good again");
            assert_eq!(checked.recv_timeout(LIMIT).unwrap(), "good again");
            assert!(!waiting.is_finished());
        }
    }

    #[test]
    fn restarts_are_spread() {
        let values: Vec<f64> = (0..100).map(|_| random()).collect();
        assert!(values.iter().any(|v| *v < 0.3) && values.iter().any(|v| *v > 0.7));
        assert!(values.iter().all(|v| (0.0..1.0).contains(v)));
    }
}
