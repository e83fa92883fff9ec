// SPDX-License-Identifier: Apache-2.0
//! Notices that files changed, wherever symbolic links lead, and which of them are being written just now.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::fd::AsFd;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};

/// Quiet time after which a change is taken for complete, and how many times it may be put off: an editor that
/// moves the old file away and writes a new one is one change.
const SETTLE: Duration = Duration::from_millis(20);
const MAX_SETTLES: usize = 25;
/// A file that somebody has open and does not write to for so long is complete.
const QUIET: Duration = Duration::from_secs(2);
/// Links that are followed, as by the kernel.
const LINKS: usize = 40;

/// Watches folders: a file that is replaced by a rename shows up there, not on the file.
#[derive(Debug)]
pub struct FileWatch {
    inotify: Inotify,
    folders: BTreeMap<PathBuf, WatchDescriptor>,
    /// Files that were written to and not closed, and when last.
    writing: BTreeMap<PathBuf, Instant>,
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
        Ok(Self { inotify, folders: BTreeMap::new(), writing: BTreeMap::new() })
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

    /// Whether somebody writes to this file. It is to be left alone: another change comes when it is complete.
    pub fn is_being_written(&self, path: &Path) -> bool {
        !self.writing.is_empty() && fs::canonicalize(path).is_ok_and(|path| self.writing.contains_key(&path))
    }

    /// Whether somebody writes to any file.
    pub fn is_anything_written(&self) -> bool {
        !self.writing.is_empty()
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
            let quiet = (!self.writing.is_empty()).then_some(QUIET / 4);
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
            if changed || self.writing.len() < before {
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
    fn a_file_that_is_being_written_is_known_until_it_is_closed_or_quiet() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.yaml");
        let mut watch = FileWatch::new().unwrap();
        watch.cover([dir.path()]).unwrap();
        let mut file = fs::File::create(&path).unwrap();
        file.write_all(b"half").unwrap();
        let other = dir.path().join("b.yaml");
        fs::write(&other, "whole").unwrap();
        watch.wait(None).unwrap();
        assert!(watch.is_being_written(&path) && !watch.is_being_written(&other));
        drop(file);
        watch.wait(None).unwrap();
        assert!(!watch.is_being_written(&path));
        let file = fs::OpenOptions::new().append(true).open(&path).unwrap();
        (&file).write_all(b"more").unwrap();
        let start = Instant::now();
        watch.wait(None).unwrap();
        assert!(
            !watch.is_being_written(&path) && start.elapsed() >= QUIET,
            "who keeps it open is not waited for"
        );
        fs::rename(&path, dir.path().join("c.yaml")).unwrap();
        watch.wait(None).unwrap();
    }
}
