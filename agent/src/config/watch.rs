// SPDX-License-Identifier: Apache-2.0
//! Notices that the configuration file has other content than the one in force.

use std::path::{Path, PathBuf};

use anyhow::Context;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::{Config, ConfigFlags};

/// Watches the folder of a configuration file: files are replaced by renames, and a ConfigMap that is
/// mounted by the swap of a symbolic link beside it.
pub struct ConfigWatch {
    path: PathBuf,
    flags: ConfigFlags,
    content: String,
    inotify: Inotify,
}

impl ConfigWatch {
    /// Watches the file whose content is in force.
    ///
    /// # Errors
    /// When the file cannot be read or watched.
    pub fn start(path: &Path, flags: &ConfigFlags) -> anyhow::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC).context("inotify")?;
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let events = AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_CREATE;
        inotify.add_watch(folder, events).with_context(|| format!("cannot watch {}", folder.display()))?;
        let content = std::fs::read_to_string(path)?;
        Ok(Self { path: path.to_owned(), flags: flags.clone(), content, inotify })
    }

    /// Waits until the file has other content that can be used. What cannot be used is logged, and
    /// what is in force stays in force.
    ///
    /// # Errors
    /// When the watch itself fails.
    pub fn wait(&mut self) -> anyhow::Result<()> {
        loop {
            self.inotify.read_events().context("inotify")?;
            // A file that is away for a moment comes with another event.
            let Ok(content) = std::fs::read_to_string(&self.path) else { continue };
            if content == self.content {
                continue;
            }
            match Config::parse(&content, &self.flags) {
                Ok(_) => return Ok(()),
                Err(error) => tracing::error!(
                    "the new content of {} cannot be used: {error:#}; the old one stays in force until it can",
                    self.path.display()
                ),
            }
            self.content = content;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const HEAD: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

    #[test]
    fn a_config_map_that_is_swapped_is_noticed_and_a_broken_one_is_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let write = |version: &str, body: &str| {
            fs::create_dir(path(version)).unwrap();
            fs::write(path(version).join("config.conf"), format!("{HEAD}{body}")).unwrap();
            std::os::unix::fs::symlink(version, path("..data_tmp")).unwrap();
            fs::rename(path("..data_tmp"), path("..data")).unwrap();
        };
        write("v1", "");
        std::os::unix::fs::symlink("..data/config.conf", path("config.conf")).unwrap();
        let mut watch = ConfigWatch::start(&path("config.conf"), &ConfigFlags::default()).unwrap();
        let waiting = std::thread::spawn(move || watch.wait().map(|()| watch.content));
        write("v2", "");
        write("v3", "mode: iptables\n");
        // The watch must have seen the broken content before the good one comes.
        std::thread::sleep(std::time::Duration::from_millis(200));
        assert!(!waiting.is_finished(), "neither the same nor a broken content counts");
        write("v4", "ipvs: {scheduler: lc}\n");
        waiting.join().unwrap().unwrap();
    }
}
