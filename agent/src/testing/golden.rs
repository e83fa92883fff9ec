// SPDX-License-Identifier: Apache-2.0
//! Texts that are kept in files. With `UPDATE_GOLDEN=1` a test writes them instead.

use std::path::Path;

/// Compares a text with a file; `path` begins at the folder of the repository.
pub fn compare(path: &str, text: &str) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, text).unwrap();
    }
    let kept = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(
        kept == text,
        "{path} differs from what the program prints; look at it, and accept it with UPDATE_GOLDEN=1:\n{text}"
    );
}
