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
struct Cached {
    stamp: Stamp,
    items: Vec<FileItem>,
}

#[derive(Debug)]
pub struct FileSource {
    path: PathBuf,
    filter: ObjectFilter,
    cache: BTreeMap<PathBuf, Cached>,
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
        let (mut changed, mut is_complete) = (!self.published, true);
        let gone: Vec<PathBuf> = self.cache.keys().filter(|path| !files.contains(path)).cloned().collect();
        for path in gone {
            self.cache.remove(&path);
            changed = true;
        }
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
        let stamp = stamp(path)?;
        if self.cache.get(path).is_some_and(|cached| cached.stamp == stamp) {
            return Ok(Some(false));
        }
        let Some(text) = read(path)? else { return Ok(None) };
        let items = parse(&text, &self.filter)?;
        self.cache.insert(path.to_owned(), Cached { stamp, items });
        Ok(Some(true))
    }

    fn publish(&mut self, store: &Store) {
        self.published = true;
        let mut peers: Vec<IpAddr> = Vec::new();
        store.update(|update| {
            for kind in Kind::ALL {
                update.begin_list(kind);
            }
            for item in self.cache.values().flat_map(|cached| &cached.items) {
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

fn stamp(path: &Path) -> std::io::Result<Stamp> {
    let meta = fs::metadata(path)?;
    Ok((meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.size()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inbox::Inbox;

    fn store() -> Arc<Store> {
        Arc::new(Store::new(Arc::new(Inbox::default())))
    }

    fn dirty(store: &Store) -> Vec<String> {
        store.take_dirty().iter().map(|d| format!("{} {}", d.name, d.service.is_some())).collect()
    }

    const YAML: &str = "kind: Service\nmetadata: {name: a}\nspec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}\n---\n---\n\
        kind: List\nitems:\n- kind: Service\n  metadata: {name: b, namespace: x}\n  spec: {clusterIP: 10.96.0.2}\n\
        - kind: ConfigMap\n  metadata: {name: c}\n- kind: Node\n  metadata: {name: other}\n";

    #[test]
    fn a_folder_is_one_list_and_a_removed_file_takes_its_objects() {
        let dir = tempfile::tempdir().unwrap();
        let (store, mut source) = (store(), FileSource::new(dir.path(), "n1"));
        fs::write(dir.path().join("a.yaml"), YAML).unwrap();
        let json =
            r#"{"kind":"ServiceList","items":[{"metadata":{"name":"j"},"spec":{"clusterIP":"10.96.0.3"}}]}"#;
        fs::write(dir.path().join("b.json"), json).unwrap();
        fs::write(dir.path().join(".hidden.yaml"), "kind: Service").unwrap();
        assert!(source.read(&store).unwrap());
        assert!(store.is_synced());
        assert_eq!(dirty(&store), ["default/a true", "default/j true", "x/b true"]);
        assert!(store.node().is_none(), "the object of another Node is ignored");
        assert!(!source.read(&store).unwrap(), "nothing changed");
        fs::remove_file(dir.path().join("b.json")).unwrap();
        assert!(source.read(&store).unwrap());
        assert_eq!(dirty(&store), ["default/j false"]);
    }

    #[test]
    fn services_are_selected_by_the_proxy_that_they_request() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.yaml");
        let labels = "labels: {service.kubernetes.io/service-proxy-name: mine}";
        let marked = format!(
            "\n---\nkind: Service\nmetadata: {{name: m, {labels}}}\nspec: {{clusterIP: 10.96.0.9}}\n"
        );
        fs::write(&path, format!("{YAML}{marked}")).unwrap();
        for (proxy, expected) in [
            (None, &["default/a true", "x/b true"][..]),
            (Some("mine"), &["default/m true"]),
            (Some("x"), &[]),
        ] {
            let store = store();
            FileSource::new(&path, "n1").serving(proxy.map(str::to_owned)).read(&store).unwrap();
            assert_eq!(dirty(&store), expected, "{proxy:?}");
        }
    }

    #[test]
    fn a_broken_file_keeps_its_last_good_content() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.yaml");
        let (store, mut source) = (store(), FileSource::new(&path, "n1"));
        fs::write(&path, YAML).unwrap();
        source.read(&store).unwrap();
        store.take_dirty();
        for broken in ["kind: [", "metadata: {name: a}", "{\"kind\": ", ""] {
            fs::write(&path, broken).unwrap();
            source.read(&store).unwrap();
            assert!(dirty(&store).is_empty(), "{broken:?}");
        }
    }

    #[test]
    fn before_the_first_list_every_file_must_be_readable() {
        let dir = tempfile::tempdir().unwrap();
        let (store, mut source) = (store(), FileSource::new(dir.path(), "n1"));
        fs::write(dir.path().join("a.yaml"), YAML).unwrap();
        for broken in ["", "kind: ["] {
            fs::write(dir.path().join("b.yaml"), broken).unwrap();
            let error = format!("{:#}", source.read(&store).unwrap_err());
            assert!(error.contains("b.yaml"), "{error}");
            assert!(!store.is_synced(), "a restart must not remove the Services of a broken file");
        }
        fs::write(dir.path().join("b.yaml"), "kind: List\nitems: []\n").unwrap();
        assert!(source.read(&store).unwrap() && store.is_synced());
    }

    #[test]
    fn a_malformed_object_is_counted_and_the_others_are_used() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.yaml");
        let (store, mut source) = (store(), FileSource::new(&path, "n1"));
        fs::write(&path, YAML).unwrap();
        source.read(&store).unwrap();
        store.take_dirty();
        fs::write(&path, YAML.replace("port: 80", "port: http").replace("10.96.0.2", "10.96.0.9")).unwrap();
        source.read(&store).unwrap();
        assert_eq!(dirty(&store), ["x/b true"]);
        assert_eq!(store.malformed(), 1);
    }

    #[test]
    fn a_kind_of_another_group_is_ignored() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.yaml");
        let (store, mut source) = (store(), FileSource::new(&path, "n1"));
        let knative = "\n---\napiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: a}\nspec: {template: {}}\n\
                       ---\napiVersion: serving.knative.dev/v1\nkind: ServiceList\nitems:\n- metadata: {name: b, namespace: x}\n  spec: {}\n";
        fs::write(&path, format!("{YAML}{knative}")).unwrap();
        source.read(&store).unwrap();
        assert_eq!(dirty(&store), ["default/a true", "x/b true"]);
        assert_eq!(store.malformed(), 0);
    }

    #[test]
    fn other_nodes_are_peers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.yaml");
        let node = |name: &str, ip: &str| {
            let addresses = format!("[{{type: InternalIP, address: {ip}}}]");
            format!("---\nkind: Node\nmetadata: {{name: {name}}}\nstatus: {{addresses: {addresses}}}\n")
        };
        fs::write(&path, node("n1", "10.0.0.1") + &node("n2", "10.0.0.2")).unwrap();
        let store = store();
        FileSource::new(&path, "n1").read(&store).unwrap();
        assert_eq!(*store.peers().nodes, [IpAddr::from([10, 0, 0, 2])]);
        assert!(store.node().is_some());
    }

    /// Waits until a Service is in the store.
    fn wait_for(store: &Store, vip: &str) {
        let has = |store: &Store| {
            let all = store.all();
            all.iter().any(|d| {
                d.service
                    .as_ref()
                    .is_some_and(|s| s.cluster_ips[crate::core::model::Family::V4] == vip.parse().ok())
            })
        };
        for _ in 0..500 {
            if has(store) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("{vip} is missing");
    }

    #[test]
    fn changes_of_a_link_target_are_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let (objects, elsewhere) = (dir.path().join("objects"), dir.path().join("elsewhere"));
        fs::create_dir(&objects).unwrap();
        fs::create_dir(&elsewhere).unwrap();
        fs::write(elsewhere.join("real"), YAML).unwrap();
        std::os::unix::fs::symlink("../elsewhere/real", objects.join("a.yaml")).unwrap();
        let store = store();
        Box::new(FileSource::new(&objects, "n1")).start(store.clone()).unwrap();
        wait_for(&store, "10.96.0.2");
        fs::write(elsewhere.join("real"), YAML.replace("10.96.0.2", "10.96.0.7")).unwrap();
        wait_for(&store, "10.96.0.7");
    }

    #[test]
    fn a_file_that_is_being_written_is_read_when_it_is_closed() {
        use std::io::Write;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.yaml");
        fs::write(&path, YAML).unwrap();
        let store = store();
        Box::new(FileSource::new(dir.path(), "n1")).start(store.clone()).unwrap();
        wait_for(&store, "10.96.0.2");
        // The first document is valid by itself, and another file changes meanwhile.
        let (first, rest) = YAML.split_once("---").unwrap();
        let mut file = fs::File::create(&path).unwrap();
        file.write_all(first.as_bytes()).unwrap();
        let other = "kind: Service\nmetadata: {name: o}\nspec: {clusterIP: 10.96.0.9}\n";
        fs::write(dir.path().join("b.yaml"), other).unwrap();
        wait_for(&store, "10.96.0.9");
        wait_for(&store, "10.96.0.2");
        file.write_all(format!("---{}", rest.replace("10.96.0.2", "10.96.0.7")).as_bytes()).unwrap();
        drop(file);
        wait_for(&store, "10.96.0.7");
    }

    #[test]
    fn the_first_list_waits_for_a_file_that_is_being_written() {
        use std::io::Write;
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.yaml"), YAML).unwrap();
        // The first part is valid by itself.
        let mut file = fs::File::create(dir.path().join("b.yaml")).unwrap();
        file.write_all(b"kind: List\nitems: []\n").unwrap();
        let store = store();
        Box::new(FileSource::new(dir.path(), "n1")).start(store.clone()).unwrap();
        std::thread::sleep(Duration::from_millis(300));
        assert!(!store.is_synced(), "a half-written file is no first list");
        file.write_all(b"---\nkind: Service\nmetadata: {name: o}\nspec: {clusterIP: 10.96.0.9}\n").unwrap();
        drop(file);
        wait_for(&store, "10.96.0.9");
        assert!(store.is_synced());
    }

    #[test]
    fn a_missing_path_is_an_error_and_no_list() {
        let (store, mut source) = (store(), FileSource::new("/nonexistent/objects", "n1"));
        let error = format!("{:#}", source.read(&store).unwrap_err());
        assert!(error.contains("/nonexistent/objects") && error.contains("check that it exists"), "{error}");
        assert!(!store.is_synced());
    }

    #[test]
    fn a_replacement_by_rename_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.yaml");
        fs::write(&path, YAML).unwrap();
        let store = store();
        Box::new(FileSource::new(&path, "n1")).start(store.clone()).unwrap();
        let wait_for = |want: &[&str]| {
            let mut got = Vec::new();
            for _ in 0..500 {
                got.extend(dirty(&store));
                if got.len() >= want.len() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            assert_eq!(got, want);
        };
        wait_for(&["default/a true", "x/b true"]);
        let temp = dir.path().join(".new");
        fs::write(&temp, YAML.replace("10.96.0.2", "10.96.0.7")).unwrap();
        fs::rename(&temp, &path).unwrap();
        wait_for(&["x/b true"]);
    }
}
