// SPDX-License-Identifier: Apache-2.0
//! Writes the man pages and the completion scripts of every command into a folder: `make pages`.

use std::path::{Path, PathBuf};

use clap::CommandFactory as _;
use clap_complete::Shell;
use kube_ipvs::cli::{Cli, completion};

fn main() -> anyhow::Result<()> {
    let folder = PathBuf::from(std::env::args_os().nth(1).unwrap_or_else(|| "target/pages".into()));
    let man = folder.join("man1");
    std::fs::create_dir_all(&man)?;
    clap_mangen::generate_to(Cli::command(), &man)?;
    for (shell, file) in [
        (Shell::Bash, "completions/bash/kube-ipvs"),
        (Shell::Zsh, "completions/zsh/_kube-ipvs"),
        (Shell::Fish, "completions/fish/kube-ipvs.fish"),
    ] {
        let path = folder.join(file);
        std::fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
        std::fs::write(path, completion(shell))?;
    }
    println!("{}", folder.display());
    Ok(())
}
