// SPDX-License-Identifier: Apache-2.0
//! Watches the configuration file. A changed file is checked completely, and only one that a start could use leads to a
//! restart, after a random time, so that the nodes of a fleet do not restart together.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::chance::Chance;
use crate::config::Reload;
use crate::file_watch::FileWatch;
use crate::words;

/// A file that cannot be used is checked again after this time: the cause may be outside of the file.
const RETRY: Duration = Duration::from_secs(60);
/// The pause after a failed watch, and if the file is missing or being written when the restart is due.
const PAUSE: Duration = Duration::from_secs(5);

/// The last content that was checked.
#[derive(Debug)]
struct CheckedText {
    text: String,
    /// Why it cannot be used.
    error: Option<String>,
    at: Instant,
}

#[derive(Debug)]
pub struct ConfigReload<'a> {
    path: &'a Path,
    in_force: &'a str,
    reload: Reload,
    checked: Option<CheckedText>,
    due: Option<Instant>,
}

impl<'a> ConfigReload<'a> {
    /// Watches `path`; `in_force` is the content that was read at the start.
    pub fn new(path: &'a Path, in_force: &'a str, reload: Reload) -> Self {
        Self { path, in_force, reload, checked: None, due: None }
    }

    /// Returns when the restart is due. `check` returns why a content cannot be used.
    pub fn wait(&mut self, check: impl Fn(&str) -> Result<(), String>) {
        let mut reported = false;
        while let Err(error) = self.follow(&check) {
            let error = words::chain(&error);
            if !std::mem::replace(&mut reported, true) {
                tracing::warn!(
                    "cannot watch the configuration file, changes are not noticed: {error}; retried"
                );
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn follow(&mut self, check: &impl Fn(&str) -> Result<(), String>) -> anyhow::Result<()> {
        let mut watch = FileWatch::new()?;
        loop {
            // Watch before reading, so that no change is missed between the two.
            watch.cover([self.path])?;
            // A file that is missing or being written causes another event when it is complete.
            let text = watch.read(self.path).ok().flatten();
            let is_there = text.is_some();
            if let Some(text) = text {
                self.check_text(text, check);
            }
            let now = Instant::now();
            // A start would read the file: its content must be the one that was checked.
            if is_there && self.due.is_some_and(|due| due <= now) {
                return Ok(());
            }
            let failed = self.checked.as_ref().is_some_and(|checked| checked.error.is_some());
            let left = self.due.map(|due| due.saturating_duration_since(now));
            let left = left.map(|left| if left.is_zero() { PAUSE } else { left }).or(failed.then_some(RETRY));
            watch.wait(left)?;
        }
    }

    fn check_text(&mut self, text: String, check: impl Fn(&str) -> Result<(), String>) {
        if text == self.in_force {
            if self.checked.take().is_some() {
                self.due = None;
                tracing::info!("the configuration file has its old content again: no restart");
            }
            return;
        }
        let before = self.checked.as_ref().filter(|checked| checked.text == text);
        if before.is_some_and(|checked| checked.error.is_none() || checked.at.elapsed() < RETRY) {
            return;
        }
        let error = check(&text).err();
        let is_news = before.is_none_or(|checked| checked.error != error);
        self.due = None;
        match (&error, self.reload) {
            (Some(error), _) if is_news => tracing::error!(
                "the new content of {} cannot be used, the old one stays in force: {error}; fix the file",
                self.path.display()
            ),
            (Some(_), _) => {}
            (None, Reload::Ignore) => tracing::info!(
                "the configuration file changed: the change takes effect at the next start \
                 (kubeIPVS.configReload.mode: ignore)"
            ),
            (None, Reload::Restart(spread)) => {
                let pause = spread.mul_f64(Chance::default().of(0));
                self.due = Some(Instant::now() + pause);
                tracing::info!(
                    "the configuration file changed and is valid: restart in {}",
                    words::time(pause)
                );
            }
        }
        self.checked = Some(CheckedText { text, error, at: Instant::now() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;
    use std::sync::mpsc::{Receiver, channel};

    /// A mounted ConfigMap: a link to a link that is replaced.
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

    /// Watches in a thread; returns the checked contents and the thread.
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
    fn a_changed_config_map_is_checked_and_only_a_valid_one_leads_to_a_restart() {
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
    fn a_change_between_the_start_and_the_watch_is_noticed() {
        let mounted = Mounted::new("good");
        let (_checked, waiting) = follow(mounted.path("config.conf"), AT_ONCE);
        waiting.join().unwrap();
    }

    #[test]
    fn a_file_that_is_open_for_writing_is_checked_when_it_is_closed() {
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
    fn a_change_that_is_reverted_or_ignored_leads_to_no_restart() {
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
}
