// SPDX-License-Identifier: Apache-2.0

use super::*;
use crate::inbox::Inbox;

fn store() -> Arc<Store> {
    Arc::new(Store::new(Arc::new(Inbox::default())))
}

fn dirty(store: &Store) -> Vec<String> {
    store.take_dirty(|| false).iter().map(|d| format!("{} {}", d.name, d.service.is_some())).collect()
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
    let marked =
        format!("\n---\nkind: Service\nmetadata: {{name: m, {labels}}}\nspec: {{clusterIP: 10.96.0.9}}\n");
    fs::write(&path, format!("{YAML}{marked}")).unwrap();
    for (proxy, expected) in
        [(None, &["default/a true", "x/b true"][..]), (Some("mine"), &["default/m true"]), (Some("x"), &[])]
    {
        let store = store();
        FileSource::new(&path, "n1").serving(proxy.map(str::to_owned)).read(&store).unwrap();
        assert_eq!(dirty(&store), expected, "{proxy:?}");
    }
}

/// A file of [`YAML`] that has been read: its folder and path, and where its objects are.
fn known_file() -> (tempfile::TempDir, PathBuf, Arc<Store>, FileSource) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.yaml");
    let (store, mut source) = (store(), FileSource::new(&path, "n1"));
    fs::write(&path, YAML).unwrap();
    source.read(&store).unwrap();
    store.take_dirty(|| false);
    (dir, path, store, source)
}

#[test]
fn a_broken_file_keeps_its_last_good_content() {
    let (_dir, path, store, mut source) = known_file();
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
    let (_dir, path, store, mut source) = known_file();
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
fn json_may_name_its_kind_after_its_items() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.json");
    let service = |name: &str, head: &str| {
        format!(r#"{{"spec":{{"clusterIP":"10.96.0.{name}"}},"metadata":{{"name":"{name}"}}{head}}}"#)
    };
    let head = r#","kind":"Service","apiVersion":"v1""#;
    let no_version = r#","kind":"Service""#;
    let knative = r#","kind":"Service","apiVersion":"serving.knative.dev/v1""#;
    let list = |items: &[String], of: &str| {
        format!(r#"{{"apiVersion":"v1","items":[{}],"kind":"{of}List"}}"#, items.join(","))
    };
    let read = |text: String| {
        fs::write(&path, text).unwrap();
        let store = store();
        FileSource::new(&path, "n1").read(&store).map(|_| dirty(&store)).map_err(|error| format!("{error:#}"))
    };
    for (text, expected) in [
        (list(&[service("1", head), service("2", no_version), service("3", knative)], ""), "1 2"),
        (list(&[service("1", ""), "null".to_owned()], "Service"), "1"),
        (list(&[list(&[service("1", ""), service("2", "")], "Service"), service("3", head)], ""), "1 2 3"),
        (format!("{}\n{} null", service("1", head), service("2", no_version)), "1 2"),
        (list(&[service("1", "")], "Secret"), ""),
        (r#"{"kind":"Widget","items":{"a":[1]},"apiVersion":"x/v1"}"#.to_owned(), ""),
        (r#"{"kind":"Widget","items":7,"apiVersion":"x/v1"}"#.to_owned(), ""),
    ] {
        let names: Vec<String> = expected.split_whitespace().map(|n| format!("default/{n} true")).collect();
        assert_eq!(read(text.clone()), Ok(names), "{text}");
    }
    for (text, expected) in [
        (r#"{"kind":"List","items":null}"#.to_owned(), "a List has no items"),
        (list(&[service("1", "")], ""), "an object has no kind"),
        (r#"{"kind":"List","items":[5]}"#.to_owned(), "integer `5`, expected an object with a kind"),
        (r#"{"kind":"List","items":[}"#.to_owned(), "it is not valid JSON: "),
        (r#"{"kind":"List","#.to_owned(), "it is not valid JSON: EOF"),
    ] {
        let error = read(text.clone()).unwrap_err();
        assert!(error.contains(expected) && error.contains("a.json"), "{text}: {error}");
    }
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
