// SPDX-License-Identifier: Apache-2.0
//! Objects from a file or a folder of YAML or JSON, watched by inotify.
//!
//! The content of all files together is one complete list. The last good content of a file that no longer parses stays
//! in force. The objects of a deleted file are removed. A file that is being written is read when it is closed.

pub mod parse;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;

use super::Source;
use crate::core::model::backoff::Backoff;
use crate::file_watch::FileWatch;
use crate::pace::FailurePace;
use crate::store::{Decoded, Kind, Store};
use crate::words;
use parse::{FileItem, ObjectFilter, parse};

/// The pauses after a failure.
const PAUSES: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));

/// Identifies a version of a file, also one that was replaced by rename.
type Stamp = (u64, i64, i64, u64);

#[derive(Debug)]
pub struct FileSource {
    path: PathBuf,
    filter: ObjectFilter,
    /// The good files: the version that was read and its objects.
    cache: BTreeMap<PathBuf, (Stamp, Vec<FileItem>)>,
    published: bool,
    /// The number of complete reads; the pauses are reset after one.
    reads: u64,
}

impl FileSource {
    /// Reads `path`, a file or a folder (without subfolders; its files that end in `.yaml`, `.yml` or `.json` and are not
    /// hidden). `node` is the name of this Node.
    pub fn new(path: impl Into<PathBuf>, node: &str) -> Self {
        let filter = ObjectFilter { node: node.to_owned(), proxy: None };
        Self { path: path.into(), filter, cache: BTreeMap::new(), published: false, reads: 0 }
    }

    /// Uses the Services whose label requests the proxy of this name; `None`: Services without that label.
    pub fn serving(mut self, proxy: Option<String>) -> Self {
        self.filter.proxy = proxy;
        self
    }

    /// Reads the changed files and publishes all objects as one change. Returns whether anything changed.
    ///
    /// # Errors
    /// The path itself cannot be read; the store is not changed.
    pub fn read(&mut self, store: &Store) -> anyhow::Result<bool> {
        self.read_complete(store, |path| fs::read_to_string(path).map(Some))
    }

    /// As [`Self::read`]; `read` returns `None` for a file that is being written: its old content stays in force, and
    /// the first list waits for the file.
    fn read_complete(
        &mut self,
        store: &Store,
        mut read: impl FnMut(&Path) -> io::Result<Option<String>>,
    ) -> anyhow::Result<bool> {
        let files = self.files().with_context(|| {
            let path = self.path.display();
            format!("cannot read the objects in {path}: check that it exists and that this user may read it")
        })?;
        let (known, mut is_complete) = (self.cache.len(), true);
        self.cache.retain(|path, _| files.contains(path));
        let mut changed = !self.published || self.cache.len() < known;
        for path in files {
            match self.read_file(&path, &mut read) {
                Ok(Some(new)) => changed |= new,
                Ok(None) => is_complete = false,
                // The node may have objects of that file programmed: the first list needs it.
                Err(error) if !self.published => {
                    return Err(error.context(format!("cannot use {}: fix the file", path.display())));
                }
                Err(error) => report_file(&path, &error, self.cache.contains_key(&path)),
            }
        }
        if !self.published && !is_complete {
            return Ok(false);
        }
        if changed {
            self.publish(store);
        }
        self.reads += 1;
        Ok(changed)
    }

    fn files(&self) -> std::io::Result<Vec<PathBuf>> {
        if !fs::metadata(&self.path)?.is_dir() {
            fs::File::open(&self.path)?;
            return Ok(vec![self.path.clone()]);
        }
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let path = entry?.path();
            let hidden = path.file_name().is_none_or(|name| name.to_string_lossy().starts_with('.'));
            let kind = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
            if !hidden && ["yaml", "yml", "json"].contains(&kind) && path.is_file() {
                files.push(path);
            }
        }
        files.sort();
        Ok(files)
    }

    /// Reads a file if it changed. Returns whether it did; `None`: it is being written.
    fn read_file(
        &mut self,
        path: &Path,
        read: &mut impl FnMut(&Path) -> io::Result<Option<String>>,
    ) -> anyhow::Result<Option<bool>> {
        let meta = fs::metadata(path)?;
        let stamp = (meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.size());
        if self.cache.get(path).is_some_and(|(known, _)| *known == stamp) {
            return Ok(Some(false));
        }
        let Some(text) = read(path)? else { return Ok(None) };
        let items = parse(&text, &self.filter)?;
        self.cache.insert(path.to_owned(), (stamp, items));
        Ok(Some(true))
    }

    fn publish(&mut self, store: &Store) {
        self.published = true;
        let mut peers: Vec<IpAddr> = Vec::new();
        store.update(|update| {
            for kind in Kind::ALL {
                update.begin_list(kind);
            }
            for item in self.cache.values().flat_map(|(_, items)| items) {
                match item {
                    FileItem::Object(kind, name, decoded) => {
                        update.put_decoded(*kind, name, Decoded::clone(decoded))
                    }
                    FileItem::Peer(addresses) => peers.extend(addresses),
                }
            }
            peers.sort_unstable();
            update.set_nodes(peers.into());
            for kind in Kind::ALL {
                update.finish_list(kind);
            }
        });
    }

    /// Watches and reads until the watch itself fails.
    fn follow(&mut self, store: &Store) -> anyhow::Result<()> {
        let mut watch = FileWatch::new()?;
        loop {
            // Watch before reading, so that no change is missed between the two.
            let files = self.files().unwrap_or_default();
            watch.cover(files.iter().map(PathBuf::as_path).chain([self.path.as_path()]))?;
            self.read_complete(store, |path| watch.read(path))?;
            watch.wait(None)?;
        }
    }
}

impl Source for FileSource {
    fn start(mut self: Box<Self>, store: Arc<Store>) -> anyhow::Result<()> {
        let run = move || {
            let start = Instant::now();
            let (mut pauses, mut pace) = (PAUSES, FailurePace::default());
            loop {
                let before = self.reads;
                if let Err(error) = self.follow(&store) {
                    let kept = if self.published { "; the objects read before stay in force" } else { "" };
                    let why = words::chain(&error);
                    if pace.failed(&why, start.elapsed()).is_some() {
                        tracing::error!("{why}{kept}; retried until it works");
                    }
                }
                std::thread::sleep(pauses.next_pause());
                if self.reads > before {
                    pauses.reset();
                }
            }
        };
        std::thread::Builder::new().name("objects".to_owned()).spawn(run)?;
        Ok(())
    }
}

fn report_file(path: &Path, error: &anyhow::Error, known: bool) {
    let kept = if known { "its last good content stays in force" } else { "the file is ignored" };
    let file = path.display();
    let why = words::chain(error);
    tracing::error!(%file, "cannot use this file: {why}; {kept}; it is read again when it is fixed");
}

#[cfg(test)]
#[path = "files_tests.rs"]
mod tests;
