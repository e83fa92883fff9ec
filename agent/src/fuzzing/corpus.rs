// SPDX-License-Identifier: Apache-2.0
//! Replays the inputs in `fuzz/corpus`.

use std::collections::BTreeSet;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use super::{LONGEST, targets};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus")
}

/// The entries of a folder, sorted.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

#[test]
fn every_target_has_a_corpus_and_every_corpus_a_target() {
    let names: BTreeSet<String> = targets().iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(names.len(), targets().len(), "two targets have the same name");
    let folders = entries(&folder());
    let of_folders = folders.iter().map(|path| path.file_name().unwrap().to_string_lossy().into_owned());
    assert_eq!(of_folders.collect::<BTreeSet<_>>(), names);
    for folder in folders {
        assert!(!entries(&folder).is_empty(), "{} is empty", folder.display());
    }
}

#[test]
fn the_corpus_is_small() {
    for path in entries(&folder()).iter().flat_map(|folder| entries(folder)) {
        let length = fs::metadata(&path).unwrap().len();
        assert!(length <= LONGEST as u64, "{}: {length} bytes are more than fuzzing tries", path.display());
    }
}

#[test]
fn every_input_of_the_corpus_passes() {
    let mut failed = Vec::new();
    for (name, read) in targets() {
        for path in entries(&folder().join(name)) {
            // After a crash, the last path printed is the input.
            println!("{}", path.display());
            let input = fs::read(&path).unwrap();
            if catch_unwind(AssertUnwindSafe(|| read(&input))).is_err() {
                failed.push(path.display().to_string());
            }
        }
    }
    assert!(failed.is_empty(), "the decoders fail on these inputs, see above:\n{}", failed.join("\n"));
}
