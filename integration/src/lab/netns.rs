// SPDX-License-Identifier: Apache-2.0
//! One network namespace.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

use super::command::{Output, Process, run};

/// Where `ip netns` looks for names.
const NAMES: &str = "/run/netns";
/// How long one command of a test may take. The guest is slow, but not that slow.
const LIMIT: Duration = Duration::from_secs(30);

/// A network namespace with a name that `ip netns` knows; deleted when dropped.
///
/// It has `lo` up and makes no IPv6 link-local addresses, as the node of the recordings.
#[derive(Debug)]
pub struct Netns {
    name: String,
    file: File,
}

impl Netns {
    /// A fresh namespace. The label is only for people; the name is unique.
    ///
    /// # Errors
    /// When the user is not root, or the kernel refuses.
    pub fn new(label: &str) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("kube-{}-{number}-{label}", std::process::id());
        let path = Path::new(NAMES).join(&name);
        fs::create_dir_all(NAMES).with_context(|| format!("cannot create {NAMES}"))?;
        File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
        // What `ip netns add` does, without starting a process: a thread of its own gets the new
        // namespace, and a bind mount keeps it alive once the thread is gone.
        let made = on_thread(|| -> Result<File> {
            unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace (root is needed)")?;
            let flags = MsFlags::MS_BIND;
            mount(Some("/proc/thread-self/ns/net"), &path, None::<&str>, flags, None::<&str>)
                .with_context(|| format!("cannot mount {}", path.display()))?;
            File::open(&path).with_context(|| format!("cannot open {}", path.display()))
        })?;
        let file = match made {
            Ok(file) => file,
            Err(error) => {
                let _ = fs::remove_file(&path);
                return Err(error);
            }
        };
        let ns = Self { name, file };
        // Before any device exists: new devices inherit `default`.
        ns.set_sysctls(&[
            ("net.ipv6.conf.all.addr_gen_mode", "1"),
            ("net.ipv6.conf.default.addr_gen_mode", "1"),
            ("net.ipv6.conf.all.accept_dad", "0"),
            ("net.ipv6.conf.default.accept_dad", "0"),
        ])?;
        ns.ip("link set lo up")?;
        Ok(ns)
    }

    /// Its name for `ip netns`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for it, under `/run/netns`.
    pub fn path(&self) -> PathBuf {
        Path::new(NAMES).join(&self.name)
    }

    /// Runs `work` on a thread inside of the namespace. Sockets made and processes started there belong
    /// to it for good, also when they are used elsewhere afterwards.
    ///
    /// # Errors
    /// When the namespace cannot be entered. A panic of `work` continues in the caller.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        on_thread(|| {
            setns(&self.file, CloneFlags::CLONE_NEWNET)
                .with_context(|| format!("cannot enter namespace {}", self.name))?;
            Ok(work())
        })?
    }

    /// Runs a program in the namespace; its failure is an error with the command and its stderr.
    ///
    /// # Errors
    /// When it cannot start, fails or takes longer than 30 seconds.
    pub fn exec(&self, command: &[&str]) -> Result<Output> {
        self.exec_with(command, None)
    }

    /// As [`Netns::exec`], with text on the program's standard input.
    ///
    /// # Errors
    /// As [`Netns::exec`].
    pub fn exec_with(&self, command: &[&str], input: Option<&str>) -> Result<Output> {
        self.try_exec(command, input)?.success(&format!("[{}] {}", self.name, command.join(" ")))
    }

    /// Runs a program in the namespace. A failure of the program is not an error.
    ///
    /// # Errors
    /// When it cannot start, or takes longer than 30 seconds.
    pub fn try_exec(&self, command: &[&str], input: Option<&str>) -> Result<Output> {
        let (program, args) = command.split_first().context("an empty command")?;
        // A child is in the namespace of the thread that starts it: `ip netns exec` is not needed.
        self.enter(|| run(Command::new(program).args(args), input, LIMIT))?
    }

    /// Runs lines of `ip` commands (without the word `ip`), all in one process.
    ///
    /// # Errors
    /// When one of them fails; those before it were done.
    pub fn ip(&self, lines: &str) -> Result<()> {
        let command = ["ip", "-batch", "-"];
        let shown = format!("[{}] ip -batch: {}", self.name, lines.trim().replace('\n', "; "));
        self.try_exec(&command, Some(lines))?.success(&shown)?;
        Ok(())
    }

    /// Starts a program in the namespace.
    ///
    /// # Errors
    /// When it cannot start.
    pub fn spawn(&self, mut command: Command) -> Result<Process> {
        self.enter(|| Process::start(&mut command))?
    }

    /// Writes sysctls of the namespace, given as names with dots.
    ///
    /// # Errors
    /// When the kernel does not have one or refuses the value.
    pub fn set_sysctls(&self, settings: &[(&str, &str)]) -> Result<()> {
        self.enter(|| {
            for (name, value) in settings {
                fs::write(sysctl_path(name), value)
                    .with_context(|| format!("cannot set {name} to {value}"))?;
            }
            Ok(())
        })?
    }

    /// Reads a sysctl of the namespace.
    ///
    /// # Errors
    /// When the kernel does not have it.
    pub fn sysctl(&self, name: &str) -> Result<String> {
        let text = self.enter(|| fs::read_to_string(sysctl_path(name)))?;
        Ok(text.with_context(|| format!("cannot read {name}"))?.trim().to_owned())
    }

    /// A TCP listener inside of the namespace, for a server on a thread of this process.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub fn listen(&self, address: &str) -> Result<TcpListener> {
        self.enter(|| TcpListener::bind(address))?
            .with_context(|| format!("[{}] cannot listen on {address}", self.name))
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        // Lazily: a process left in there does not keep the name.
        let _ = umount2(&self.path(), MntFlags::MNT_DETACH);
        let _ = fs::remove_file(self.path());
    }
}

fn sysctl_path(name: &str) -> PathBuf {
    Path::new("/proc/sys").join(name.replace('.', "/"))
}

/// Runs `work` on a thread of its own, whose namespace dies with it.
fn on_thread<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("netns".into()).spawn_scoped(scope, work);
        let thread = thread.map_err(|error| anyhow!("cannot start a thread: {error}"))?;
        match thread.join() {
            Ok(value) => Ok(value),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}
