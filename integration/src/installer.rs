// SPDX-License-Identifier: Apache-2.0
//! Tests of `integration/guest/install.sh` with fake apt programs.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

/// Runs the script as root on a machine where these packages are missing; `removes`: what apt would remove.
fn install(dir: &Path, removes: &str) -> (Output, String) {
    let calls = dir.join("calls");
    let apt =
        format!("echo \"$@\" >> {}\n[[ \" $* \" == *' -s '* ]] && echo '{removes}'\nexit 0", calls.display());
    for (name, text) in [("apt-get", apt.as_str()), ("dpkg-query", "exit 1"), ("id", "echo 0")] {
        let path = dir.join(name);
        std::fs::write(&path, format!("#!/bin/bash\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("guest/install.sh");
    let path = format!("{}:{}", dir.display(), std::env::var("PATH").unwrap());
    let output = Command::new("bash")
        .args([script.to_str().unwrap(), "--tools"])
        .env("PATH", path)
        .env("CARGO_TARGET_DIR", dir.join("target"))
        .output()
        .unwrap();
    (output, std::fs::read_to_string(calls).unwrap_or_default())
}

#[test]
fn no_installed_package_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let (output, calls) = install(dir.path(), "Remv qemu-utils [1:10.0.2]");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("apt would remove qemu-utils"), "{said}");
    assert!(!calls.lines().any(|call| call.starts_with("install") && !call.contains(" -s ")), "{calls}");
}

#[test]
fn apt_is_called_without_removals() {
    let dir = tempfile::tempdir().unwrap();
    let (_, calls) = install(dir.path(), "Inst ipvsadm (1:1.31)");
    let install = calls.lines().find(|call| call.starts_with("install") && !call.contains(" -s "));
    assert!(install.is_some_and(|call| call.contains("--no-remove")), "{calls}");
}
