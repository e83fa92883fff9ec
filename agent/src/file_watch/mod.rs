// SPDX-License-Identifier: Apache-2.0
//! Watches files for changes, through symbolic links, and detects files that are being written: those that another
//! program has open for writing, or if the kernel does not report that (see `lease`), those written to a moment ago.

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

/// A change is complete after this time without another event, which may extend it `MAX_SETTLES` times: an editor that
/// moves the old file away and writes a new one makes one change.
const SETTLE: Duration = Duration::from_millis(20);
const MAX_SETTLES: usize = 25;
/// A file that was not written to for this long is complete, unless it is known to be open for writing.
const QUIET: Duration = Duration::from_secs(2);
/// A file that is open for writing for longer is reported in the log.
const NOTICE: Duration = Duration::from_secs(5);
/// A file that is open for longer is read as it is: its writer may never close it.
const PATIENCE: Duration = Duration::from_secs(60);
/// The interval of checks of a file that the start needs.
const PAUSE: Duration = Duration::from_millis(100);
/// The most symbolic links in a path, as in the kernel.
const LINKS: usize = 40;

/// Watches folders, because the replacement of a file by rename is an event of the folder, not of the file.
#[derive(Debug)]
pub struct FileWatch {
    inotify: Inotify,
    folders: BTreeMap<PathBuf, WatchDescriptor>,
    /// Files that were written to and not closed, with the time of the last write.
    writing: BTreeMap<PathBuf, Instant>,
    /// Files that could not be read because another program has them open for writing.
    open: BTreeMap<PathBuf, Opened>,
}

#[derive(Clone, Copy, Debug)]
struct Opened {
    since: Instant,
    reported: bool,
    was_overdue: bool,
}

impl Opened {
    fn now() -> Self {
        Self { since: Instant::now(), reported: false, was_overdue: false }
    }

    /// A line for the log, once, if the file is open for long.
    fn notice(&mut self, path: &Path) -> Option<String> {
        if self.reported || self.since.elapsed() < NOTICE {
            return None;
        }
        self.reported = true;
        let file = path.display();
        Some(format!(
            "{file} is still open for writing by another program: it is read when that program closes it, or \
             as it is after {}; find the program with `fuser -v {file}`",
            words::time(PATIENCE)
        ))
    }

    /// Whether the file is read as it is.
    fn is_overdue(&self) -> bool {
        self.since.elapsed() >= PATIENCE
    }

    /// The text of the file; `None`: another program has it open for writing, and is not overdue.
    fn read(&self, path: &Path) -> io::Result<Option<String>> {
        match lease::read(path)? {
            None if self.is_overdue() => fs::read_to_string(path).map(Some),
            text => Ok(text),
        }
    }
}

/// Waits until no other program has a file open for writing, and returns its text. `report` gets a line if that takes
/// long.
///
/// # Errors
/// The file cannot be read.
pub fn read_complete(path: &Path, report: impl Fn(&str)) -> io::Result<String> {
    let mut opened = Opened::now();
    loop {
        if let Some(text) = opened.read(path)? {
            return Ok(text);
        }
        if let Some(line) = opened.notice(path) {
            report(&line);
        }
        std::thread::sleep(PAUSE);
    }
}

impl FileWatch {
    /// Watches nothing yet.
    ///
    /// # Errors
    /// The kernel refuses an inotify instance.
    pub fn new() -> anyhow::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).context(
            "cannot use inotify: raise fs.inotify.max_user_instances if other programs use them all",
        )?;
        Ok(Self { inotify, folders: BTreeMap::new(), writing: BTreeMap::new(), open: BTreeMap::new() })
    }

    /// Watches every folder of these paths: those of links and of their targets. A path that is a folder is watched
    /// itself.
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
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_CREATE
            // New permissions may make a file readable.
            | AddWatchFlags::IN_ATTRIB
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_ONLYDIR;
        for (folder, watch) in std::mem::take(&mut self.folders) {
            if wanted.remove(&folder) {
                self.folders.insert(folder, watch);
            } else {
                // Fails if the folder was deleted.
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

    /// The text of a file; `None`: it is being written, and [`Self::wait`] reports a change when it is complete.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn read(&mut self, path: &Path) -> io::Result<Option<String>> {
        // It was written to a moment ago and not closed.
        if !self.writing.is_empty()
            && fs::canonicalize(path).is_ok_and(|path| self.writing.contains_key(&path))
        {
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

    /// Drops the files that no program has open for writing any more. Returns whether there are such files or one is
    /// overdue. The event is not enough: it comes before the kernel counts the file as closed, and once for each writer.
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

    /// Waits until a file changed or a file that was being written is complete. Returns false if neither happened within
    /// `limit`.
    ///
    /// # Errors
    /// A watched folder was removed or moved away, or a system call failed.
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

    /// Reads the waiting events. Returns whether any of them is more than a write to a file that stays open.
    fn take(&mut self) -> anyhow::Result<bool> {
        let mut changed = false;
        for event in self.inotify.read_events().context("inotify")? {
            changed |= self.event(&event)?;
        }
        Ok(changed)
    }

    fn event(&mut self, event: &InotifyEvent) -> anyhow::Result<bool> {
        let folder = self.folders.iter().find(|(_, watch)| **watch == event.wd).map(|(folder, _)| folder);
        // An event of a folder that is no longer watched.
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
            // Links, folders and hard links are complete when they appear.
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

/// Adds the folders of all links in a path and the folder at its end, as paths without links.
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
    fn every_folder_of_a_path_is_found() {
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
    fn a_file_that_is_being_written_is_not_read_until_it_is_closed() {
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
        // A writer that pauses and keeps the file open is waited for.
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
    fn a_file_that_was_open_before_the_watch_is_read_when_its_last_writer_closes_it() {
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
    fn a_file_that_stays_open_is_reported_once() {
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
        assert!(watch.wait(Some(QUIET)).unwrap(), "the wait ends");
        assert_eq!(watch.read(&path).unwrap().as_deref(), Some("half"));
        assert!(!watch.wait(Some(QUIET)).unwrap(), "once");
        drop(keeps);
    }

    #[test]
    fn the_start_waits_for_its_file() {
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
