// SPDX-License-Identifier: Apache-2.0
//! Objects from a file or a folder of YAML or JSON, followed by inotify.
//!
//! The content of all files together is one complete list. A file that no longer parses keeps its
//! last good content in force; a file that is gone takes its objects with it.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use serde_json::Value;

use super::Source;
use super::decode::RawObject;
use crate::core::model::ObjectName;
use crate::store::{Kind, Object, Store};

const MIN_PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// Quiet time after which a change is taken for complete, and how many times it may be put off.
const SETTLE_MS: u8 = 20;
const MAX_SETTLES: usize = 25;

/// What a file held: objects, and those that could not be decoded.
#[derive(Clone, Debug)]
enum Item {
    Object(Object),
    Malformed(Kind, ObjectName, String),
}

/// Tells one version of a file from the next, a replacement by rename included.
type Stamp = (u64, i64, i64, u64);

#[derive(Debug)]
struct Cached {
    stamp: Stamp,
    items: Vec<Item>,
}

/// Which objects count.
#[derive(Debug)]
struct Ours {
    node: String,
    /// The name of this proxy, as Services ask for one; `None`: those that ask for none.
    proxy: Option<String>,
}

/// Objects from files.
#[derive(Debug)]
pub struct FileSource {
    path: PathBuf,
    ours: Ours,
    cache: BTreeMap<PathBuf, Cached>,
    published: bool,
    /// Complete reads so far: tells a lasting trouble from a passing one.
    reads: u64,
}

impl FileSource {
    /// Objects from `path`, a file or a folder (not its subfolders; files ending in `.yaml`,
    /// `.yml` or `.json`, hidden ones left out). Of the Nodes only the one named `node` counts.
    pub fn new(path: impl Into<PathBuf>, node: &str) -> Self {
        let ours = Ours { node: node.to_owned(), proxy: None };
        Self { path: path.into(), ours, cache: BTreeMap::new(), published: false, reads: 0 }
    }

    /// With the Services that are for the proxy of this name; without one, those for none in particular.
    pub fn serving(mut self, proxy: Option<String>) -> Self {
        self.ours.proxy = proxy;
        self
    }

    /// Reads what changed and publishes everything as one change. Returns whether anything did.
    ///
    /// # Errors
    /// When the path itself cannot be read; the store is then left as it is.
    pub fn read(&mut self, store: &Store) -> anyhow::Result<bool> {
        let files = self.files().with_context(|| {
            let path = self.path.display();
            format!("cannot read the objects in {path}: check that it exists and that this user may read it")
        })?;
        let mut changed = !self.published;
        let gone: Vec<PathBuf> = self.cache.keys().filter(|path| !files.contains(path)).cloned().collect();
        for path in gone {
            self.cache.remove(&path);
            changed = true;
        }
        for path in files {
            match self.read_file(&path) {
                Ok(new) => changed |= new,
                // What the node holds may come from that file: without it there is no first list.
                Err(error) if !self.published => {
                    return Err(error.context(format!("cannot use {}: fix it", path.display())));
                }
                Err(error) => report_file(&path, &error, self.cache.contains_key(&path)),
            }
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

    /// Reads a file if it is not the one read before; keeps the old content when that fails.
    fn read_file(&mut self, path: &Path) -> anyhow::Result<bool> {
        let read = || -> anyhow::Result<(Stamp, Option<Vec<Item>>)> {
            let stamp = stamp(path)?;
            if self.cache.get(path).is_some_and(|cached| cached.stamp == stamp) {
                return Ok((stamp, None));
            }
            Ok((stamp, Some(parse(&fs::read_to_string(path)?, &self.ours)?)))
        };
        let (stamp, items) = read()?;
        let Some(items) = items else { return Ok(false) };
        self.cache.insert(path.to_owned(), Cached { stamp, items });
        Ok(true)
    }

    fn publish(&mut self, store: &Store) {
        self.published = true;
        store.update(|update| {
            for kind in Kind::ALL {
                update.begin_list(kind);
            }
            for item in self.cache.values().flat_map(|cached| &cached.items) {
                match item {
                    Item::Object(object) => update.put(object.clone()),
                    Item::Malformed(kind, name, error) => update.malformed(*kind, name, error),
                }
            }
            for kind in Kind::ALL {
                update.finish_list(kind);
            }
        });
    }

    /// The folder whose entries are watched: a rename shows up there, not on the file.
    fn folder(&self) -> PathBuf {
        if self.path.is_dir() {
            return self.path.clone();
        }
        match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        }
    }

    /// Watches and reads until something about the watch itself fails.
    fn follow(&mut self, inotify: &Inotify, store: &Store) -> anyhow::Result<()> {
        let folder = self.folder();
        let flags = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_CREATE
            // Permissions, which may make it readable.
            | AddWatchFlags::IN_ATTRIB
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_ONLYDIR;
        inotify
            .add_watch(&folder, flags)
            .with_context(|| format!("cannot watch {}: check that the folder exists", folder.display()))?;
        // The watch stands before the first read, so no change falls between the two.
        self.read(store)?;
        loop {
            let events = inotify.read_events().context("inotify")?;
            settle(inotify);
            let lost =
                AddWatchFlags::IN_IGNORED | AddWatchFlags::IN_DELETE_SELF | AddWatchFlags::IN_MOVE_SELF;
            if events.iter().any(|event| event.mask.intersects(lost)) {
                anyhow::bail!("{} was removed or moved away", folder.display());
            }
            self.read(store)?;
        }
    }
}

impl Source for FileSource {
    fn start(mut self: Box<Self>, store: Arc<Store>) -> anyhow::Result<()> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC).context(
            "cannot use inotify: raise fs.inotify.max_user_instances if other programs use them all",
        )?;
        let run = move || {
            let mut pause = MIN_PAUSE;
            loop {
                let before = self.reads;
                if let Err(error) = self.follow(&inotify, &store) {
                    let kept = if self.published { "; the objects read before stay in force" } else { "" };
                    tracing::error!("{error:#}{kept}; trying again in {pause:?}");
                }
                std::thread::sleep(pause);
                pause = if self.reads > before { MIN_PAUSE } else { (pause * 2).min(MAX_PAUSE) };
            }
        };
        std::thread::Builder::new().name("objects".to_owned()).spawn(run)?;
        Ok(())
    }
}

fn report_file(path: &Path, error: &anyhow::Error, known: bool) {
    let kept = if known { "its last good content stays in force" } else { "it is left out" };
    let file = path.display();
    tracing::error!(%file, "cannot use this file: {error:#}; {kept}; fix it and it is read again");
}

/// Waits until no event came for a moment: an editor that moves the old file away and writes a new
/// one is one change.
fn settle(inotify: &Inotify) {
    for _ in 0..MAX_SETTLES {
        let mut fds = [PollFd::new(inotify.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, SETTLE_MS) {
            Ok(n) if n > 0 => drop(inotify.read_events()),
            _ => return,
        }
    }
}

fn stamp(path: &Path) -> std::io::Result<Stamp> {
    let meta = fs::metadata(path)?;
    Ok((meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.size()))
}

/// Parses a file: JSON values or YAML documents; a list contributes its items.
fn parse(text: &str, ours: &Ours) -> anyhow::Result<Vec<Item>> {
    // A file that is just being rewritten in place; a list without items says so.
    anyhow::ensure!(!text.trim().is_empty(), "the file is empty");
    let documents: Vec<Value> = if text.trim_start().starts_with('{') {
        serde_json::Deserializer::from_str(text).into_iter().collect::<Result<_, _>>()?
    } else {
        // The file is the operator's own: a large one is no attack.
        let options = serde_saphyr::options! { budget: None };
        serde_saphyr::from_multiple_with_options(text, options)?
    };
    let mut items = Vec::new();
    for document in &documents {
        collect(document, ours, &mut items)?;
    }
    Ok(items)
}

fn collect(value: &Value, ours: &Ours, items: &mut Vec<Item>) -> anyhow::Result<()> {
    if value.is_null() {
        return Ok(());
    }
    let kind = value.get("kind").and_then(Value::as_str).unwrap_or_default();
    if kind == "List" || kind.ends_with("List") {
        let list = value.get("items").and_then(Value::as_array);
        let list = list.with_context(|| format!("a {kind} without items"))?;
        // Items of a typed list (ServiceList) carry no kind of their own.
        let of_items = kind.strip_suffix("List").filter(|k| !k.is_empty());
        for item in list {
            match of_items {
                Some(of_items) => collect_object(item, of_items, ours, items)?,
                None => collect(item, ours, items)?,
            }
        }
        return Ok(());
    }
    anyhow::ensure!(
        !kind.is_empty(),
        "an object without a kind: is this the output of `kubectl get -o yaml`?"
    );
    collect_object(value, kind, ours, items)
}

fn collect_object(value: &Value, kind: &str, ours: &Ours, items: &mut Vec<Item>) -> anyhow::Result<()> {
    let Some(kind) = Kind::ALL.into_iter().find(|k| k.to_string() == kind) else {
        tracing::debug!(kind, "passed over: not a Service, EndpointSlice or Node");
        return Ok(());
    };
    let object = RawObject::read(kind, value)?;
    let name = object.name();
    let passed_over = match kind {
        Kind::Node => *name.name != *ours.node,
        Kind::Service => object.proxy() != ours.proxy.as_deref(),
        Kind::EndpointSlice => false,
    };
    if passed_over {
        return Ok(());
    }
    items.push(match object.decode(&name) {
        Ok(object) => Item::Object(object),
        Err(error) => Item::Malformed(kind, name, error),
    });
    Ok(())
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
        assert!(store.node().is_none(), "another node's object is not ours");
        assert!(!source.read(&store).unwrap(), "nothing changed");
        fs::remove_file(dir.path().join("b.json")).unwrap();
        assert!(source.read(&store).unwrap());
        assert_eq!(dirty(&store), ["default/j false"]);
    }

    #[test]
    fn services_are_picked_by_the_proxy_that_they_ask_for() {
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
            assert!(!store.is_synced(), "a restart must not take a broken file for removed Services");
        }
        fs::write(dir.path().join("b.yaml"), "kind: List\nitems: []\n").unwrap();
        assert!(source.read(&store).unwrap() && store.is_synced());
    }

    #[test]
    fn one_malformed_object_is_counted_and_the_rest_goes_on() {
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
    fn a_path_that_is_missing_is_an_error_and_no_list() {
        let (store, mut source) = (store(), FileSource::new("/nonexistent/objects", "n1"));
        let error = format!("{:#}", source.read(&store).unwrap_err());
        assert!(error.contains("/nonexistent/objects") && error.contains("check that it exists"), "{error}");
        assert!(!store.is_synced());
    }

    #[test]
    fn a_replacement_by_rename_is_followed() {
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
