// SPDX-License-Identifier: Apache-2.0
//! Notices that files changed, wherever symbolic links lead, and which of them are being written just now: those
//! that another program has open for writing, and where the kernel does not tell that (see `lease`), those that were
//! written to a moment ago.

mod lease;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};

use crate::words;

/// Quiet time after which a change is taken for complete, and how many times it may be put off: an editor that
/// moves the old file away and writes a new one is one change.
const SETTLE: Duration = Duration::from_millis(20);
const MAX_SETTLES: usize = 25;
/// A file that nobody wrote to for so long is complete, unless it is known to be open for writing.
const QUIET: Duration = Duration::from_secs(2);
/// A file that is open for writing for longer is named in the log.
const NOTICE: Duration = Duration::from_secs(5);
/// A file that is open for longer is read as it is: whoever has it open does not write it, or never ends to.
const PATIENCE: Duration = Duration::from_secs(60);
/// Pause between looks at a file that an agent needs for its start.
const PAUSE: Duration = Duration::from_millis(100);
/// Links that are followed, as by the kernel.
const LINKS: usize = 40;

/// Watches folders: a file that is replaced by a rename shows up there, not on the file.
#[derive(Debug)]
pub struct FileWatch {
    inotify: Inotify,
    folders: BTreeMap<PathBuf, WatchDescriptor>,
    /// Files that were written to and not closed, and when last.
    writing: BTreeMap<PathBuf, Instant>,
    /// Files that were to be read while another program had them open for writing.
    open: BTreeMap<PathBuf, Opened>,
}

/// Since when a file is known to be open for writing, and whether that was told.
#[derive(Clone, Copy, Debug)]
struct Opened {
    since: Instant,
    told: bool,
    was_overdue: bool,
}

impl Opened {
    fn now() -> Self {
        Self { since: Instant::now(), told: false, was_overdue: false }
    }

    /// What is to be told now, once.
    fn notice(&mut self, path: &Path) -> Option<String> {
        if self.told || self.since.elapsed() < NOTICE {
            return None;
        }
        self.told = true;
        let file = path.display();
        Some(format!(
            "{file} is still open for writing by another program: it is read when that program closes it, or \
             as it is after {}; `fuser -v {file}` names the program",
            words::time(PATIENCE)
        ))
    }

    /// Whether the file is read as it is.
    fn is_overdue(&self) -> bool {
        self.since.elapsed() >= PATIENCE
    }

    /// The text of the file; `None`: another program has it open for writing, and not for too long.
    fn read(&self, path: &Path) -> io::Result<Option<String>> {
        match lease::read(path)? {
            None if self.is_overdue() => fs::read_to_string(path).map(Some),
            text => Ok(text),
        }
    }
}

/// The text of a file once no other program has it open for writing. `tell` gets a line if that takes long.
///
/// # Errors
/// When the file cannot be read.
pub fn read_complete(path: &Path, tell: impl Fn(&str)) -> io::Result<String> {
    let mut opened = Opened::now();
    loop {
        if let Some(text) = opened.read(path)? {
            return Ok(text);
        }
        if let Some(line) = opened.notice(path) {
            tell(&line);
        }
        std::thread::sleep(PAUSE);
    }
}

impl FileWatch {
    /// Watches nothing yet.
    ///
    /// # Errors
    /// When the kernel gives no inotify instance.
    pub fn new() -> anyhow::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).context(
            "cannot use inotify: raise fs.inotify.max_user_instances if other programs use them all",
        )?;
        Ok(Self { inotify, folders: BTreeMap::new(), writing: BTreeMap::new(), open: BTreeMap::new() })
    }

    /// Watches every folder that one of these paths leads through: those of links and of what they point at.
    /// A path that is a folder is watched itself.
    ///
    /// # Errors
    /// Names the folder that cannot be watched.
    pub fn cover<'a>(&mut self, paths: impl IntoIterator<Item = &'a Path>) -> anyhow::Result<()> {
        let mut wanted = BTreeSet::new();
        for path in paths {
            folders(path, &mut wanted);
        }
        let flags = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_MODIFY
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_CREATE
            // Permissions, which may make it readable.
            | AddWatchFlags::IN_ATTRIB
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_ONLYDIR;
        for (folder, watch) in std::mem::take(&mut self.folders) {
            if wanted.remove(&folder) {
                self.folders.insert(folder, watch);
            } else {
                // It may be gone, and its watch with it.
                let _ = self.inotify.rm_watch(watch);
            }
        }
        for folder in wanted {
            let watch = self.inotify.add_watch(&folder, flags);
            let watch = watch.with_context(|| {
                format!("cannot watch {}: check that the folder exists", folder.display())
            })?;
            self.folders.insert(folder, watch);
        }
        Ok(())
    }

    /// The text of a file; `None`: somebody writes to it. It is to be left alone: another change comes when it is
    /// complete.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn read(&mut self, path: &Path) -> io::Result<Option<String>> {
        if self.was_written_to(path) {
            return Ok(None);
        }
        let opened = self.open.get(path).copied().unwrap_or_else(Opened::now);
        let text = opened.read(path)?;
        if text.is_none() {
            self.open.insert(path.to_owned(), opened);
        } else if !opened.is_overdue() {
            self.open.remove(path);
        }
        Ok(text)
    }

    /// Whether somebody wrote to this file a moment ago and did not close it.
    fn was_written_to(&self, path: &Path) -> bool {
        !self.writing.is_empty() && fs::canonicalize(path).is_ok_and(|path| self.writing.contains_key(&path))
    }

    /// Forgets the files that nobody has open for writing any more: true when there are some, or one is overdue. An
    /// event does not tell that: it comes before the file counts as closed, and for each of several writers.
    fn forget_closed(&mut self) -> bool {
        let before = self.open.len();
        self.open.retain(|path, _| lease::is_open_for_writing(path));
        let mut is_overdue = false;
        for (path, opened) in &mut self.open {
            if let Some(line) = opened.notice(path) {
                tracing::warn!("{line}");
            }
            is_overdue |= opened.is_overdue() && !std::mem::replace(&mut opened.was_overdue, true);
        }
        is_overdue || self.open.len() < before
    }

    /// Waits until something changed and all is quiet for a moment, or a file that was being written is
    /// complete: true. False when nothing did within `limit`.
    ///
    /// # Errors
    /// When a watched folder was removed or moved away, and when the kernel cannot be asked.
    pub fn wait(&mut self, limit: Option<Duration>) -> anyhow::Result<bool> {
        let start = Instant::now();
        loop {
            let left = limit.map(|limit| limit.saturating_sub(start.elapsed()));
            let is_written = !self.writing.is_empty() || !self.open.is_empty();
            let quiet = is_written.then_some(QUIET / 4);
            let patience = [left, quiet].into_iter().flatten().min();
            let mut changed = self.poll(patience)? && self.take()?;
            for _ in 0..MAX_SETTLES {
                if !self.poll(Some(SETTLE))? {
                    break;
                }
                changed |= self.take()?;
            }
            let before = self.writing.len();
            self.writing.retain(|_, last| last.elapsed() < QUIET);
            let is_calm = self.writing.len() < before;
            if self.forget_closed() || changed || is_calm {
                return Ok(true);
            }
            if left.is_some_and(|left| left <= SETTLE) {
                return Ok(false);
            }
        }
    }

    fn poll(&self, limit: Option<Duration>) -> anyhow::Result<bool> {
        let limit =
            limit.map_or(PollTimeout::NONE, |limit| PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX));
        let mut fds = [PollFd::new(self.inotify.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, limit) {
            Ok(ready) => Ok(ready > 0),
            Err(nix::errno::Errno::EINTR) => Ok(false),
            Err(error) => Err(error).context("inotify"),
        }
    }

    /// Takes the events that are there; true when one of them is more than a write that goes on.
    fn take(&mut self) -> anyhow::Result<bool> {
        let mut changed = false;
        for event in self.inotify.read_events().context("inotify")? {
            changed |= self.event(&event)?;
        }
        Ok(changed)
    }

    fn event(&mut self, event: &InotifyEvent) -> anyhow::Result<bool> {
        let folder = self.folders.iter().find(|(_, watch)| **watch == event.wd).map(|(folder, _)| folder);
        // One that is not watched any more.
        let Some(folder) = folder else { return Ok(event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW)) };
        let lost = AddWatchFlags::IN_IGNORED | AddWatchFlags::IN_DELETE_SELF | AddWatchFlags::IN_MOVE_SELF;
        if event.mask.intersects(lost) {
            let folder = folder.clone();
            self.folders.remove(&folder);
            bail!("{} was removed or moved away", folder.display());
        }
        let Some(name) = &event.name else { return Ok(true) };
        let path = folder.join(name);
        if event.mask.intersects(AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CREATE) {
            // A link, a folder and a second name of a file come complete.
            if fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_file()) {
                self.writing.insert(path, Instant::now());
                return Ok(false);
            }
            return Ok(true);
        }
        if !event.mask.contains(AddWatchFlags::IN_ATTRIB) {
            self.writing.remove(&path);
        }
        Ok(true)
    }
}

/// Adds the folders that a path leads through where it has links, and the last one, without links in their own
/// paths.
fn folders(path: &Path, found: &mut BTreeSet<PathBuf>) {
    let mut path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    'links: for _ in 0..LINKS {
        let mut prefix = PathBuf::new();
        let components: Vec<Component<'_>> = path.components().collect();
        for (index, component) in components.iter().enumerate() {
            if *component == Component::ParentDir {
                prefix.pop();
                continue;
            }
            let parent = prefix.clone();
            prefix.push(component);
            if let Ok(target) = fs::read_link(&prefix) {
                let rest: PathBuf = components[index + 1..].iter().collect();
                path = parent.join(target).join(rest);
                found.insert(parent);
                continue 'links;
            }
        }
        if !prefix.is_dir() {
            prefix.pop();
        }
        found.insert(prefix);
        return;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::fs::symlink;

    fn names(path: &Path, root: &Path) -> Vec<String> {
        let mut found = BTreeSet::new();
        folders(path, &mut found);
        let root = fs::canonicalize(root).unwrap();
        let inside = found.iter().filter_map(|folder| folder.strip_prefix(&root).ok());
        inside.map(|folder| folder.display().to_string()).collect()
    }

    #[test]
    fn every_folder_on_the_way_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(dir.path()).unwrap();
        let at = |name: &str| root.join(name);
        for folder in ["objects", "map/v1", "map/v2"] {
            fs::create_dir_all(at(folder)).unwrap();
        }
        fs::write(at("map/v1/a.yaml"), "").unwrap();
        symlink("v1", at("map/..data")).unwrap();
        symlink("../map/..data/a.yaml", at("objects/a.yaml")).unwrap();
        symlink("objects", at("link")).unwrap();
        assert_eq!(names(&at("link/a.yaml"), &root), ["", "map", "map/v1", "objects"]);
        assert_eq!(names(&at("objects"), &root), ["objects"]);
        assert_eq!(names(&at("objects/missing.yaml"), &root), ["objects"]);
        symlink("loop", at("loop")).unwrap();
        assert_eq!(names(&at("loop"), &root), [""], "a circle ends");
    }

    #[test]
    fn a_file_that_is_being_written_is_known_until_it_is_closed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.yaml");
        let mut watch = FileWatch::new().unwrap();
        watch.cover([dir.path()]).unwrap();
        let mut file = fs::File::create(&path).unwrap();
        file.write_all(b"half").unwrap();
        let other = dir.path().join("b.yaml");
        fs::write(&other, "whole").unwrap();
        watch.wait(None).unwrap();
        assert!(watch.read(&path).unwrap().is_none() && watch.read(&other).unwrap().is_some());
        drop(file);
        watch.wait(None).unwrap();
        assert_eq!(watch.read(&path).unwrap().as_deref(), Some("half"));
        let file = fs::OpenOptions::new().append(true).open(&path).unwrap();
        (&file).write_all(b" more").unwrap();
        // Who writes nothing for a while and keeps it open is waited for.
        while watch.open.is_empty() {
            watch.wait(None).unwrap();
            assert!(watch.read(&path).unwrap().is_none());
        }
        assert!(!watch.wait(Some(QUIET / 2)).unwrap());
        drop(file);
        // The event may come before the kernel counts the file as closed.
        while watch.read(&path).unwrap().is_none() {
            watch.wait(None).unwrap();
        }
        fs::rename(&path, dir.path().join("c.yaml")).unwrap();
        watch.wait(None).unwrap();
    }

    #[test]
    fn a_file_that_was_open_before_the_watch_is_read_when_the_last_writer_closes_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.yaml");
        let writers = [fs::File::create(&path).unwrap(), fs::File::create(&path).unwrap()];
        let mut watch = FileWatch::new().unwrap();
        watch.cover([dir.path()]).unwrap();
        assert!(watch.read(&path).unwrap().is_none());
        let [first, second] = writers;
        drop(first);
        watch.wait(None).unwrap();
        assert!(watch.read(&path).unwrap().is_none());
        drop(second);
        while watch.read(&path).unwrap().is_none() {
            watch.wait(None).unwrap();
        }
        assert!(watch.open.is_empty());
    }

    #[test]
    fn a_file_that_stays_open_is_named_once() {
        let mut opened = Opened::now();
        assert_eq!(opened.notice(Path::new("/a.yaml")), None);
        opened.since = Instant::now().checked_sub(NOTICE).unwrap();
        let line = opened.notice(Path::new("/a.yaml")).unwrap();
        assert!(line.starts_with("/a.yaml is still open for writing by another program"), "{line}");
        assert_eq!(opened.notice(Path::new("/a.yaml")), None);
    }

    #[test]
    fn a_file_that_stays_open_for_long_is_read_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.yaml");
        fs::write(&path, "half").unwrap();
        let keeps = fs::OpenOptions::new().append(true).open(&path).unwrap();
        let mut watch = FileWatch::new().unwrap();
        watch.cover([dir.path()]).unwrap();
        assert!(watch.read(&path).unwrap().is_none());
        watch.open.get_mut(&path).unwrap().since = Instant::now().checked_sub(PATIENCE).unwrap();
        assert!(watch.wait(Some(QUIET)).unwrap(), "somebody who waits is woken");
        assert_eq!(watch.read(&path).unwrap().as_deref(), Some("half"));
        assert!(!watch.wait(Some(QUIET)).unwrap(), "once");
        drop(keeps);
    }

    #[test]
    fn a_start_waits_for_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.yaml");
        let mut file = fs::File::create(&path).unwrap();
        file.write_all(b"half").unwrap();
        let reader = std::thread::spawn({
            let path = path.clone();
            move || read_complete(&path, |_| {}).unwrap()
        });
        std::thread::sleep(PAUSE * 2);
        file.write_all(b" and half").unwrap();
        drop(file);
        assert_eq!(reader.join().unwrap(), "half and half");
        assert!(read_complete(&dir.path().join("missing"), |_| {}).is_err());
    }
}
