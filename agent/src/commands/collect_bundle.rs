// SPDX-License-Identifier: Apache-2.0
//! `kube-ipvs bundle`: one archive for a bug report.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{IsTerminal as _, Write};

use anyhow::{Context, ensure};
use jiff::Timestamp;
use serde_json::Value;

use super::offline::Offline;
use crate::cli::BundleArgs;
use crate::config::host;
use crate::inspect::answers::{AgentRequest, Setup};
use crate::inspect::filter::Filter;
use crate::inspect::ipvs_table::{self, IpvsTable};
use crate::inspect::ipvsadm::Columns;
use crate::inspect::kernel_text;
use crate::inspect::layout::Layout;
use crate::inspect::owners::{OwnersOf, ServiceOwners};
use crate::inspect::socket::ask;
use crate::inspect::status::Status;
use crate::kernel::iptables;
use crate::words;

/// Width of texts.
const LAYOUT: Layout = Layout { width: usize::MAX, color: false };
/// Folders of sysctls that matter to Services, below `/proc/sys`.
const SYSCTLS: [&str; 6] = [
    "net/ipv4/vs",
    "net/netfilter",
    "net/ipv4/conf/all",
    "net/ipv6/conf/all",
    "net/ipv4/conf/kube-ipvs0",
    "net/bridge",
];
/// Words in keys whose values are not written.
const SECRETS: [&str; 4] = ["token", "password", "secret", "key"];

/// Writes the archive. What cannot be read is named in its file README.txt.
///
/// # Errors
/// The archive cannot be written.
pub fn run(args: &BundleArgs) -> anyhow::Result<()> {
    let mut bundle = Bundle::default();
    bundle.add("version.txt", versions());
    bundle.try_add("config.yaml", || {
        let setup: Setup = ask(&AgentRequest::Setup)?;
        Ok(serde_saphyr::to_string(&without_secrets(setup.config))?)
    });
    bundle.try_add("status.json", || Ok(format!("{:#}\n", ask::<Value>(&AgentRequest::Status)?)));
    bundle.try_add("status.txt", || Ok(ask::<Status>(&AgentRequest::Status)?.text(LAYOUT)));
    bundle.try_add("log.txt", || Ok(ask::<Vec<String>>(&AgentRequest::Log)?.join("\n") + "\n"));
    bundle.try_add("metrics.txt", || Ok(ask::<String>(&AgentRequest::Metrics)?));
    bundle.try_add("ipvs.txt", || {
        let owners = ServiceOwners::ask(&OwnersOf::default()).unwrap_or_default();
        let table = IpvsTable::read(&Filter::default(), &owners, true)?;
        Ok(table.text(Columns::Usual, Some(&owners))
            + "\n"
            + &table.text(Columns::Stats { exact: true }, None))
    });
    bundle.add("sysctls.txt", SYSCTLS.iter().map(|folder| sysctls(folder)).collect());
    bundle.add("modules.txt", std::fs::read_to_string("/proc/modules").unwrap_or_default());
    bundle.add_kernel(args);
    bundle.write(args)
}

/// The files of the archive.
#[derive(Default)]
struct Bundle {
    files: Vec<(String, String)>,
    /// What could not be read.
    missing: Vec<String>,
}

impl Bundle {
    fn add(&mut self, name: &str, text: String) {
        self.files.push((name.to_owned(), text));
    }

    fn try_add(&mut self, name: &str, text: impl FnOnce() -> anyhow::Result<String>) {
        match text() {
            Ok(text) => self.add(name, text),
            Err(error) => self.missing.push(format!("{name}: {}", words::chain(&error))),
        }
    }

    /// The plan of a start, and the kernel state that it was made from.
    fn add_kernel(&mut self, args: &BundleArgs) {
        let look = || {
            let mut offline = Offline::open(&args.look)?;
            let preview = offline.preview()?;
            let plan = offline.report(&preview).text(LAYOUT, true);
            anyhow::Ok((plan, kernel_text::files(&offline.state())))
        };
        match look() {
            Ok((plan, files)) => {
                self.add("plan.txt", plan);
                self.files.extend(files);
            }
            Err(error) => self.missing.push(format!("plan.txt and kernel/: {}", words::chain(&error))),
        }
    }

    fn write(mut self, args: &BundleArgs) -> anyhow::Result<()> {
        let mut readme = format!("kube-ipvs bundle of {}\n\n", Timestamp::now());
        for (name, text) in &self.files {
            let _ = writeln!(readme, "{name}: {} bytes", text.len());
        }
        self.missing.iter().for_each(|missing| _ = writeln!(readme, "missing: {missing}"));
        self.missing.iter().for_each(|missing| eprintln!("kube-ipvs: not in the bundle: {missing}"));
        self.files.insert(0, ("README.txt".to_owned(), readme));
        let archive = self.archive()?;
        match &args.file {
            Some(path) => {
                let write = || File::create(path)?.write_all(&archive);
                write().with_context(|| format!("cannot write {}", path.display()))?;
                eprintln!("kube-ipvs: wrote {}, {}", path.display(), words::count(self.files.len(), "file"));
            }
            None => {
                ensure!(
                    !std::io::stdout().is_terminal(),
                    "the bundle is an archive: redirect standard output to a file, or give --file=FILE"
                );
                std::io::stdout().write_all(&archive).context("cannot write the archive")?;
            }
        }
        Ok(())
    }

    fn archive(&self) -> anyhow::Result<Vec<u8>> {
        let mut archive = tar::Builder::new(Vec::new());
        let now = u64::try_from(Timestamp::now().as_second()).unwrap_or_default();
        for (name, text) in &self.files {
            let mut header = tar::Header::new_gnu();
            header.set_size(text.len() as u64);
            header.set_mode(0o644);
            header.set_mtime(now);
            archive.append_data(&mut header, format!("kube-ipvs-bundle/{name}"), text.as_bytes())?;
        }
        Ok(archive.into_inner()?)
    }
}

fn versions() -> String {
    let or = |version: Option<String>| version.unwrap_or_else(|| "-".to_owned());
    format!(
        "kube-ipvs {}\nLinux {}\nIPVS {}\niptables {}\n",
        crate::cli::LONG_VERSION,
        host::kernel_release().unwrap_or_default(),
        or(ipvs_table::version().ok()),
        or(iptables::version())
    )
}

/// The document without the values of keys that sound like secrets.
fn without_secrets(mut document: Value) -> Value {
    match &mut document {
        Value::Object(fields) => {
            for (key, value) in fields {
                let key = key.to_ascii_lowercase();
                let is_secret = value.is_string() && SECRETS.iter().any(|secret| key.contains(secret));
                *value = if is_secret { "removed".into() } else { without_secrets(value.take()) };
            }
        }
        Value::Array(values) => values.iter_mut().for_each(|value| *value = without_secrets(value.take())),
        _ => {}
    }
    document
}

/// The values of a folder below `/proc/sys`, one in a line.
fn sysctls(folder: &str) -> String {
    let mut lines: Vec<String> = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/sys/{folder}")).into_iter().flatten().flatten() {
        if let Ok(value) = std::fs::read_to_string(entry.path()) {
            let name = entry.file_name().to_string_lossy().into_owned();
            lines.push(format!("{}.{name} = {}\n", folder.replace('/', "."), value.trim()));
        }
    }
    lines.sort_unstable();
    lines.concat()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn secrets_are_removed_and_the_rest_stays() {
        let document = json!({"clientConnection": {"kubeconfig": "/k", "bearerToken": "abc"}, "list": [{"password": "x"}],
                              "masqueradeBit": 14});
        let expected = json!({"clientConnection": {"kubeconfig": "/k", "bearerToken": "removed"},
                              "list": [{"password": "removed"}], "masqueradeBit": 14});
        assert_eq!(without_secrets(document), expected);
    }

    #[test]
    fn an_archive_has_its_files_and_names_what_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bundle.tar");
        let mut bundle = Bundle::default();
        bundle.add("version.txt", "1\n".to_owned());
        bundle.try_add("log.txt", || anyhow::bail!("no agent"));
        let args = BundleArgs { file: Some(path.clone()), look: crate::cli::LookArgs::default() };
        bundle.write(&args).unwrap();
        let mut archive = tar::Archive::new(File::open(path).unwrap());
        let mut names = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut text = String::new();
            std::io::Read::read_to_string(&mut entry, &mut text).unwrap();
            names.push((entry.path().unwrap().display().to_string(), text));
        }
        assert_eq!(names[1], ("kube-ipvs-bundle/version.txt".to_owned(), "1\n".to_owned()));
        assert!(names[0].1.contains("missing: log.txt: no agent"), "{names:?}");
    }
}
