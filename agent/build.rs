// SPDX-License-Identifier: Apache-2.0
//! What `--version` tells.

use std::process::Command;

fn main() {
    let commit = given("KUBE_IPVS_COMMIT").or_else(|| git(&["rev-parse", "--short=12", "HEAD"]));
    let date = given("KUBE_IPVS_DATE").or_else(|| git(&["log", "-1", "--format=%cs"]));
    let rustc = std::env::var("RUSTC").ok().and_then(|rustc| output(Command::new(rustc).arg("--version")));
    for (name, value) in [
        ("COMMIT", commit),
        ("DATE", date),
        ("RUSTC", rustc.map(|text| text.trim_start_matches("rustc ").to_owned())),
        ("TARGET", std::env::var("TARGET").ok()),
    ] {
        println!("cargo:rustc-env=KUBE_IPVS_BUILD_{name}={}", value.unwrap_or_else(|| "unknown".to_owned()));
    }
    for path in [git(&["rev-parse", "--git-path", "HEAD"]), git(&["rev-parse", "--git-path", "logs/HEAD"])] {
        path.iter().for_each(|path| println!("cargo:rerun-if-changed={path}"));
    }
    println!("cargo:rerun-if-changed=build.rs");
}

/// A value from outside, for builds without a repository.
fn given(name: &str) -> Option<String> {
    println!("cargo:rerun-if-env-changed={name}");
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn git(args: &[&str]) -> Option<String> {
    output(Command::new("git").args(args))
}

fn output(command: &mut Command) -> Option<String> {
    let output = command.output().ok().filter(|output| output.status.success())?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    Some(text).filter(|text| !text.is_empty())
}
