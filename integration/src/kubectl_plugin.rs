// SPDX-License-Identifier: Apache-2.0
//! Tests of `manifests/kubectl-ipvs` with a kubectl that only notes its arguments.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// Answers `get pods` with a pod of node-a, and prints the arguments of everything else.
const KUBECTL: &str = "#!/bin/sh
case \"$*\" in
*' get pods '*spec.nodeName=node-a,*) echo pod/kube-ipvs-x7 ;;
*' get pods '*) ;;
*) echo \"$@\"; exit 2 ;;
esac
";

fn run(args: &[&str]) -> Output {
    let folder = tempfile::tempdir().expect("a folder");
    let kubectl = folder.path().join("kubectl");
    std::fs::write(&kubectl, KUBECTL).expect("a program");
    std::fs::set_permissions(&kubectl, std::fs::Permissions::from_mode(0o755)).expect("a mode");
    let plugin = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests/kubectl-ipvs");
    let path = format!("{}:{}", folder.path().display(), std::env::var("PATH").unwrap_or_default());
    let mut command = Command::new(plugin);
    command.args(args).env("PATH", path).stdin(Stdio::null()).output().expect("the plugin")
}

#[test]
fn a_command_runs_in_the_agents_pod_of_the_node() {
    let output = run(&["node-a", "explain", "shop/web", "--from", "pod"]);
    let expected =
        "--namespace kube-system exec --stdin pod/kube-ipvs-x7 -- kube-ipvs explain shop/web --from pod\n";
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
    assert_eq!(output.status.code(), Some(2), "the exit code is that of the command");
}

#[test]
fn a_missing_pod_and_missing_arguments_are_named() {
    let output = run(&["node-b", "status"]);
    assert_eq!(output.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&output.stderr).contains("no running agent on node node-b"));
    let output = run(&["node-a"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("usage: kubectl ipvs NODE COMMAND"));
}
