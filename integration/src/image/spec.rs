// SPDX-License-Identifier: Apache-2.0
//! From a container of a pod to the configuration of an OCI runtime, as kubelet and containerd translate
//! security context, mounts, environment and command. Only fields that the manifests use are known; any
//! other field is an error, so that none is ignored.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::core::v1::{Container, PodSpec, SecurityContext, Volume, VolumeMount};
use serde_json::{Value, json};

use super::seccomp;

/// Default capabilities of containerd, without `CAP_`.
const DEFAULT_CAPABILITIES: &[&str] = &[
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];
const MORE_CAPABILITIES: &[&str] = &[
    "DAC_READ_SEARCH",
    "LINUX_IMMUTABLE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "LEASE",
    "AUDIT_CONTROL",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];
const MASKED: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
];
const READ_ONLY: &[&str] = &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// The machine of the pod.
#[derive(Clone, Debug)]
pub struct Host {
    /// The node's name.
    pub node: String,
    /// The image, unpacked.
    pub root: PathBuf,
    /// The image's environment, as `NAME=value`.
    pub image_env: Vec<String>,
    /// The runtime's default seccomp profile.
    pub seccomp: Value,
    /// Folders with the files of ConfigMaps, by the names of the volumes.
    pub config_maps: BTreeMap<String, PathBuf>,
    /// Paths of this machine that replace paths of the node.
    pub host_paths: BTreeMap<String, PathBuf>,
}

/// The configuration (`config.json`) of a container of a pod. Variables from ConfigMaps are left out.
///
/// # Errors
/// If a field is unknown here.
pub fn runtime_spec(pod: &PodSpec, container: &Container, host: &Host) -> Result<Value> {
    ensure!(pod.host_network == Some(true), "only pods in the node's network are known");
    let default = SecurityContext::default();
    let context = container.security_context.as_ref().unwrap_or(&default);
    let privileged = context.privileged == Some(true);
    let capabilities = capabilities(context)?;
    let mut linux = json!({
        // The network and the host name of the node.
        "namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "mount"}, {"type": "cgroup"}],
    });
    if !privileged {
        linux["maskedPaths"] = json!(MASKED);
        linux["readonlyPaths"] = json!(READ_ONLY);
    }
    let profile = context.seccomp_profile.as_ref().map(|profile| profile.type_.as_str());
    match profile {
        Some("RuntimeDefault") if !privileged => {
            linux["seccomp"] = seccomp::filter(&host.seccomp, &capabilities)?
        }
        None | Some("Unconfined") => {}
        other => bail!("seccomp profile {other:?} is not known here"),
    }
    let caps = json!({"bounding": capabilities, "effective": capabilities, "permitted": capabilities});
    Ok(json!({
        "ociVersion": "1.0.2",
        "root": {"path": host.root, "readonly": context.read_only_root_filesystem == Some(true)},
        "process": {
            "user": {"uid": 0, "gid": 0},
            "cwd": "/",
            "args": arguments(container, &environment(container, host)?)?,
            "env": environment(container, host)?.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>(),
            "capabilities": caps,
            "noNewPrivileges": context.allow_privilege_escalation == Some(false),
        },
        "mounts": mounts(pod, container, host, privileged)?,
        "linux": linux,
    }))
}

fn capabilities(context: &SecurityContext) -> Result<Vec<String>> {
    ensure!(context.run_as_user.is_none() && context.proc_mount.is_none(), "users are not known here");
    let all = || DEFAULT_CAPABILITIES.iter().chain(MORE_CAPABILITIES).map(|name| (*name).to_owned());
    let known = |name: &String| {
        ensure!(all().any(|n| n == *name), "no capability {name}");
        Ok(name.clone())
    };
    let mut names: Vec<String> = DEFAULT_CAPABILITIES.iter().map(|name| (*name).to_owned()).collect();
    if let Some(wanted) = &context.capabilities {
        for dropped in wanted.drop.iter().flatten() {
            names.retain(|name| name != dropped && dropped != "ALL");
        }
        for added in wanted.add.iter().flatten() {
            names.push(known(added)?);
        }
    }
    if context.privileged == Some(true) {
        names = all().collect();
    }
    Ok(names.iter().map(|name| format!("CAP_{name}")).collect())
}

fn environment(container: &Container, host: &Host) -> Result<Vec<(String, String)>> {
    let split = |pair: &String| pair.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned()));
    let mut env: Vec<(String, String)> = host.image_env.iter().filter_map(split).collect();
    for var in container.env.iter().flatten() {
        let field = var.value_from.as_ref().and_then(|from| from.field_ref.as_ref());
        let value = match (&var.value, field.map(|field| field.field_path.as_str())) {
            (Some(value), None) => value.clone(),
            (None, Some("spec.nodeName")) => host.node.clone(),
            _ => bail!("the value of {} is not known here", var.name),
        };
        env.push((var.name.clone(), value));
    }
    Ok(env)
}

/// Command and arguments, with `$(NAME)` replaced.
fn arguments(container: &Container, env: &[(String, String)]) -> Result<Vec<String>> {
    let words = container.command.iter().chain(container.args.iter()).flatten();
    let args: Vec<String> = words
        .map(|word| env.iter().fold(word.clone(), |word, (k, v)| word.replace(&format!("$({k})"), v)))
        .collect();
    ensure!(!args.is_empty(), "no command");
    Ok(args)
}

fn mounts(pod: &PodSpec, container: &Container, host: &Host, privileged: bool) -> Result<Vec<Value>> {
    let system = |target: &str, kind: &str, options: &[&str]| json!({"destination": target, "type": kind, "source": kind, "options": options});
    let sys = if privileged { "rw" } else { "ro" };
    let mut mounts = vec![
        system("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        system("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        system("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]),
        system("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
        system("/sys", "sysfs", &["nosuid", "noexec", "nodev", sys]),
    ];
    for mount in container.volume_mounts.iter().flatten() {
        let volume = pod.volumes.iter().flatten().find(|volume| volume.name == mount.name);
        let volume = volume.with_context(|| format!("no volume {}", mount.name))?;
        let access = if mount.read_only == Some(true) || volume.config_map.is_some() { "ro" } else { "rw" };
        mounts.push(json!({
            "destination": mount.mount_path,
            "type": "bind",
            "source": source(volume, mount, host)?,
            "options": ["rbind", "rprivate", access],
        }));
    }
    Ok(mounts)
}

/// The file or folder of a volume.
fn source(volume: &Volume, mount: &VolumeMount, host: &Host) -> Result<PathBuf> {
    ensure!(mount.sub_path.is_none() && mount.mount_propagation.is_none(), "plain mounts only are known");
    match (&volume.host_path, &volume.config_map) {
        (Some(path), None) => {
            let here = host.host_paths.get(&path.path).cloned().unwrap_or_else(|| PathBuf::from(&path.path));
            if path.type_.as_deref() == Some("FileOrCreate") && !here.exists() {
                std::fs::write(&here, "").with_context(|| format!("cannot make {}", here.display()))?;
            }
            if path.type_.as_deref() == Some("DirectoryOrCreate") && !here.exists() {
                std::fs::create_dir_all(&here).with_context(|| format!("cannot make {}", here.display()))?;
            }
            // A runtime wants the real path.
            here.canonicalize().with_context(|| format!("the node has no {}", path.path))
        }
        (None, Some(_)) => {
            let folder = host.config_maps.get(&volume.name);
            folder
                .map(|f| Path::to_path_buf(f))
                .with_context(|| format!("no files for the volume {}", volume.name))
        }
        _ => bail!("the kind of volume {} is not known here", volume.name),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    fn spec(container: Value) -> Result<Value> {
        let pod: PodSpec = serde_json::from_value(json!({
            "hostNetwork": true,
            "containers": [container],
            "volumes": [{"name": "config", "configMap": {"name": "c"}}, {"name": "odd", "emptyDir": {}}],
        }))
        .unwrap();
        let host = Host {
            node: "node-a".to_owned(),
            root: "/image".into(),
            image_env: vec!["PATH=/bin".to_owned()],
            seccomp: json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": []}),
            config_maps: BTreeMap::from([("config".to_owned(), "/maps/c".into())]),
            host_paths: BTreeMap::new(),
        };
        runtime_spec(&pod, &pod.containers[0], &host)
    }

    #[test]
    fn a_container_with_few_settings() {
        let spec = spec(json!({
            "name": "a", "command": ["/agent", "--name=$(NODE)"],
            "env": [{"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}],
            "volumeMounts": [{"name": "config", "mountPath": "/etc/a"}],
            "securityContext": {
                "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
                "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN"]},
                "seccompProfile": {"type": "RuntimeDefault"},
            },
        }))
        .unwrap();
        assert_eq!(spec["process"]["args"], json!(["/agent", "--name=node-a"]));
        assert_eq!(spec["process"]["env"], json!(["PATH=/bin", "NODE=node-a"]));
        assert_eq!(spec["process"]["capabilities"]["bounding"], json!(["CAP_NET_ADMIN"]));
        assert_eq!(spec["process"]["noNewPrivileges"], true);
        assert_eq!(spec["root"]["readonly"], true);
        assert!(spec["linux"]["seccomp"].is_object());
        assert!(spec["linux"]["readonlyPaths"].as_array().unwrap().contains(&json!("/proc/sys")));
        let last = spec["mounts"].as_array().unwrap().last().unwrap();
        assert_eq!((&last["source"], &last["options"][2]), (&json!("/maps/c"), &json!("ro")));
    }

    #[test]
    fn a_privileged_container_and_one_without_settings() {
        let privileged =
            spec(json!({"name": "a", "command": ["/a"], "securityContext": {"privileged": true}})).unwrap();
        assert_eq!(privileged["process"]["capabilities"]["effective"].as_array().unwrap().len(), 41);
        assert!(privileged["linux"]["seccomp"].is_null() && privileged["linux"]["readonlyPaths"].is_null());
        let plain = spec(json!({"name": "a", "command": ["/a"]})).unwrap();
        assert_eq!(plain["process"]["capabilities"]["effective"].as_array().unwrap().len(), 14);
        assert_eq!(plain["process"]["noNewPrivileges"], false);
    }

    #[test]
    fn unknown_fields_are_errors() {
        for container in [
            json!({"name": "a"}),
            json!({"name": "a", "command": ["/a"], "volumeMounts": [{"name": "none", "mountPath": "/x"}]}),
            json!({"name": "a", "command": ["/a"], "volumeMounts": [{"name": "odd", "mountPath": "/x"}]}),
            json!({"name": "a", "command": ["/a"], "securityContext": {"capabilities": {"add": ["NET_ALL"]}}}),
            json!({"name": "a", "command": ["/a"], "securityContext": {"seccompProfile": {"type": "Localhost"}}}),
            json!({"name": "a", "command": ["/a"], "securityContext": {"runAsUser": 5}}),
            json!({"name": "a", "command": ["/a"], "env": [{"name": "X", "valueFrom": {"secretKeyRef": {"key": "k"}}}]}),
        ] {
            assert!(spec(container.clone()).is_err(), "{container}");
        }
    }
}
