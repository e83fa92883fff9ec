// SPDX-License-Identifier: Apache-2.0
//! Containers of the image in a node's namespace, started by crun.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use integration::image::{Host, Manifest, read, runtime_spec, unpack};
use integration::lab::{Netns, Process, write_objects};
use k8s_openapi::api::core::v1::{Container as Wanted, PodSpec};
use nix::sched::{CloneFlags, setns, unshare};
use serde_json::{Value, json};

const MANIFESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests");
/// Limit for every wait, for an emulated guest.
const LIMIT: Duration = Duration::from_secs(60);

/// The pod of a DaemonSet in a file of `manifests/`.
pub fn daemon_set(file: &str) -> PodSpec {
    let sets = read(&Path::new(MANIFESTS).join(file)).unwrap().into_iter();
    let mut sets = sets.filter_map(|o| if let Manifest::DaemonSet(set) = o { Some(set) } else { None });
    sets.next().unwrap().spec.unwrap().template.spec.unwrap()
}

/// The pod of the DaemonSet of `manifests/install/NAME.yaml`.
pub fn manifest(name: &str) -> PodSpec {
    daemon_set(&format!("install/{name}.yaml"))
}

/// A file of the build that these tests belong to: `target/NAME`.
fn built(name: &str) -> Result<PathBuf> {
    let me = std::env::current_exe().context("own path")?;
    let found = me.ancestors().skip(1).take(4).map(|folder| folder.join(name)).find(|path| path.is_file());
    found.with_context(|| format!("no target/{name}: run `make image` and integration/guest/install.sh"))
}

/// The unpacked image and the node on which its containers run.
pub struct Image {
    dir: tempfile::TempDir,
    host: Host,
    containers: Cell<usize>,
}

impl Image {
    /// Unpacks the image. Its agents read `objects` from a file.
    pub fn unpack(objects: &Value) -> Result<Self> {
        Self::of("kube-ipvs.tar", "base/config.conf", objects)
    }

    /// Unpacks the image without a base, for rules mode `nftables`.
    pub fn unpack_nftables(objects: &Value) -> Result<Self> {
        Self::of("kube-ipvs-nftables.tar", "nftables/config.conf", objects)
    }

    fn of(archive: &str, config: &str, objects: &Value) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let folder = |name: &str| -> Result<PathBuf> {
            let path = dir.path().join(name);
            fs::create_dir(&path)?;
            Ok(path)
        };
        let root = folder("root")?;
        let image_env = unpack(&built(&format!("image/{archive}"))?, &root)?;
        write_objects(&folder("objects")?.join("objects.json"), objects)?;
        let (ours, kubeadms) = (folder("config")?, folder("kube-proxy")?);
        let logs = folder("logs")?;
        for (file, folder) in [(config, &ours), ("examples/config.yaml", &kubeadms)] {
            let text = fs::read_to_string(Path::new(MANIFESTS).join(file))?;
            // The size of the connection table cannot be set in a network namespace that is not the first.
            fs::write(folder.join("config.conf"), text + "conntrack: {maxPerCore: 0}\n")?;
        }
        let host = Host {
            node: "node-a".to_owned(),
            root,
            image_env,
            seccomp: serde_json::from_slice(&fs::read(built("guest/seccomp.json")?)?)?,
            config_maps: BTreeMap::from([("config".to_owned(), ours), ("kube-proxy".to_owned(), kubeadms)]),
            host_paths: BTreeMap::from([
                ("/lib/modules".to_owned(), modules()?),
                ("/var/log".to_owned(), logs),
            ]),
        };
        Ok(Self { dir, host, containers: Cell::new(0) })
    }

    /// The content of a file in `/var/log` of the node; empty if there is none.
    pub fn log_file(&self, name: &str) -> String {
        let file = fs::read(self.dir.path().join("logs").join(name)).unwrap_or_default();
        String::from_utf8_lossy(&file).into_owned()
    }

    /// Removes such a file.
    pub fn remove_log_file(&self, name: &str) {
        // There may be none.
        let _ = fs::remove_file(self.dir.path().join("logs").join(name));
    }

    /// The files and links of the image, with the target of each link.
    pub fn files(&self) -> Result<BTreeMap<PathBuf, Option<PathBuf>>> {
        let mut files = BTreeMap::new();
        let mut folders = vec![self.host.root.clone()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder)? {
                let path = entry?.path();
                if path.is_dir() && !path.is_symlink() {
                    folders.push(path);
                    continue;
                }
                let target = path.is_symlink().then(|| fs::read_link(&path)).transpose()?;
                files.insert(path.strip_prefix(&self.host.root)?.to_owned(), target);
            }
        }
        Ok(files)
    }

    /// The size of a file of the image.
    pub fn size(&self, path: &str) -> Result<u64> {
        Ok(fs::metadata(self.host.root.join(path))?.len())
    }

    /// Starts a container of a pod as in the manifest, with objects from a file.
    pub fn start(&self, ns: &Netns, pod: &PodSpec, wanted: &Wanted) -> Result<Container> {
        let mut spec = runtime_spec(pod, wanted, &self.host)?;
        let args = &mut spec["process"]["args"];
        if args[1] == "-c" {
            // A shell's own arguments are not those of the command.
            args[2] = json!(format!("{} --objects=/objects -v=2", args[2].as_str().context("a command")?));
        } else {
            append(args, json!("--objects=/objects"))?;
            append(args, json!("-v=2"))?;
        }
        append(&mut spec["mounts"], self.bind("/objects", &self.dir.path().join("objects")))?;
        self.launch(ns, &spec)
    }

    /// Runs a container of a pod, which must succeed.
    pub fn run(&self, ns: &Netns, pod: &PodSpec, wanted: &Wanted) -> Result<()> {
        let mut container = self.start(ns, pod, wanted)?;
        let status = container.process.wait(LIMIT)?;
        ensure!(status.success(), "{} ended with {status}:\n{}", wanted.name, container.log());
        Ok(())
    }

    /// Runs a shell script where a container of a pod would run, with its privileges; busybox is
    /// at `/busybox`. Returns what it printed.
    pub fn run_probe(&self, ns: &Netns, pod: &PodSpec, wanted: &Wanted, script: &str) -> Result<String> {
        let mut spec = runtime_spec(pod, wanted, &self.host)?;
        spec["process"]["args"] = json!(["/busybox", "sh", "-c", script]);
        let busybox =
            ["/bin/busybox", "/usr/bin/busybox"].map(PathBuf::from).into_iter().find(|p| p.is_file());
        append(&mut spec["mounts"], self.bind("/busybox", &busybox.context("no busybox-static")?))?;
        let mut container = self.launch(ns, &spec)?;
        container.process.wait(LIMIT)?;
        Ok(container.log())
    }

    fn bind(&self, target: &str, source: &Path) -> Value {
        json!({"destination": target, "type": "bind", "source": source, "options": ["bind", "ro"]})
    }

    fn launch(&self, ns: &Netns, spec: &Value) -> Result<Container> {
        let number = self.containers.replace(self.containers.get() + 1);
        let id = format!("kube-ipvs-{}-{number}", std::process::id());
        let bundle = self.dir.path().join(&id);
        fs::create_dir(&bundle)?;
        fs::write(bundle.join("config.json"), serde_json::to_vec_pretty(spec)?)?;
        let (state, log) = (self.dir.path().join("state"), bundle.join("log"));
        let mut command = crun(&state);
        let output = File::options().create(true).append(true).open(&log)?;
        command.arg("run").arg("--bundle").arg(&bundle).arg(&id).stdin(Stdio::null());
        command.stdout(output.try_clone()?).stderr(output);
        Ok(Container { process: ns.spawn(command)?, state, log, id })
    }
}

fn append(list: &mut Value, value: Value) -> Result<()> {
    list.as_array_mut().context("a list")?.push(value);
    Ok(())
}

/// Runs crun without control groups: no manifest limits resources, and the guest has none.
fn crun(state: &Path) -> Command {
    let mut command = Command::new("crun");
    command.arg("--cgroup-manager=disabled").arg("--root").arg(state);
    command
}

/// The modules of the running kernel lie elsewhere in a guest, behind a link that containers cannot follow.
fn modules() -> Result<PathBuf> {
    let version = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let path = Path::new("/lib/modules").join(version.trim()).canonicalize();
    let path = path.unwrap_or_else(|_| PathBuf::from("/lib/modules/none"));
    Ok(path.parent().context("a folder of modules")?.to_path_buf())
}

/// A container; killed when dropped.
pub struct Container {
    process: Process,
    state: PathBuf,
    log: PathBuf,
    id: String,
}

impl Container {
    /// Its output so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    fn pid(&self) -> Result<i64> {
        let output = crun(&self.state).args(["state", &self.id]).output().context("crun")?;
        let state: Value = serde_json::from_slice(&output.stdout).with_context(|| self.log())?;
        match state["pid"].as_i64() {
            Some(pid) if pid > 0 => Ok(pid),
            _ => bail!("the container does not run: {state}; its log:\n{}", self.log()),
        }
    }

    /// Ends it as a kubelet does, with SIGTERM to its first process. Returns its exit code.
    pub fn stop(&mut self) -> Result<Option<i32>> {
        let output = crun(&self.state).args(["kill", &self.id, "TERM"]).output().context("crun")?;
        ensure!(output.status.success(), "crun kill: {}", String::from_utf8_lossy(&output.stderr));
        self.wait()
    }

    /// Waits until it has ended. Returns its exit code.
    pub fn wait(&mut self) -> Result<Option<i32>> {
        Ok(self.process.wait(LIMIT)?.code())
    }

    /// `/proc/PID/status` of its process.
    pub fn status(&self) -> Result<BTreeMap<String, String>> {
        let text = fs::read_to_string(format!("/proc/{}/status", self.pid()?))?;
        let pairs = text.lines().filter_map(|line| line.split_once(':'));
        Ok(pairs.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect())
    }

    /// The page faults of processes that it started and that have ended. 0: it has started none.
    pub fn faults_of_children(&self) -> Result<u64> {
        let text = fs::read_to_string(format!("/proc/{}/stat", self.pid()?))?;
        // The name of the program, in parentheses, can have spaces. `cminflt` is the ninth field after it.
        let fields = text.rsplit_once(')').map_or("", |(_, fields)| fields);
        fields.split_whitespace().nth(8).context("cminflt")?.parse().context("cminflt")
    }

    /// Runs a command in its mount namespace, with the privileges of this process.
    pub fn enter_files<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let mounts = File::open(format!("/proc/{}/ns/mnt", self.pid()?))?;
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| -> Result<T> {
                unshare(CloneFlags::CLONE_FS)?;
                setns(&mounts, CloneFlags::CLONE_NEWNS)?;
                Ok(work())
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- log of {}:\n{}--- end of the log", self.id, self.log());
        }
        // It may have ended by itself.
        let _ = crun(&self.state).args(["delete", "--force", &self.id]).output();
        let _ = self.process.wait(Duration::from_secs(5));
    }
}
