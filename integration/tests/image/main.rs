// SPDX-License-Identifier: Apache-2.0
//! The image, run as the DaemonSets of manifests/ say: root file system, privileges, probes. An OCI
//! runtime starts it from outside; ipvsadm, ip, ipset and iptables of this machine look at the node.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod calls;
mod container;

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use container::{Container, Image, manifest};
use integration::lab::oracle::http_get;
use integration::lab::{Lab, Netns, Node, bound, nft_table};
use integration::objects::{list, node, service, slice};
use k8s_openapi::api::core::v1::{Capabilities, PodSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(60);
const NET_ADMIN: u64 = 1 << 12;
const NET_RAW: u64 = 1 << 13;
/// The limit for the files of the image without a base, in bytes.
const SMALL: u64 = 13_000_000;
const HINT: &str = "*mangle\n:KUBE-IPTABLES-HINT - [0:0]\nCOMMIT\n";

fn objects(of: &Node) -> Value {
    let (v4, v6) = (of.host.v4.to_string(), of.host.v6.to_string());
    list(vec![
        service("web", &["10.96.0.10", "fd00:96::10"], &["203.0.113.7"], &[("http", "TCP", 80)]),
        slice("web", &["10.244.1.5@node-a"], &[("http", "TCP", 8080)]),
        slice("web", &["fd00:244:1::5@node-a"], &[("http", "TCP", 8080)]),
        node(&of.name, &[&v4, &v6]),
    ])
}

fn wait_for(what: &str, container: &Container, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < LIMIT, "{what} did not happen; the container's log:\n{}", container.log());
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn rules(ns: &Netns, program: &str) -> String {
    ns.exec(&[program]).unwrap().stdout
}

/// Waits until the Service's virtual servers and addresses are in the kernel, by the output of the kernel's tools.
fn wait_balanced(ns: &Netns, container: &Container) {
    let wanted = ["10.96.0.10", "fd00:96::10", "203.0.113.7"].map(|ip| ip.parse().unwrap());
    wait_for("binding", container, || wanted.iter().all(|ip| bound(ns).contains(ip)));
    let servers = ns.exec(&["ipvsadm", "-Sn"]).unwrap().stdout;
    for line in [
        "-a -t 10.96.0.10:80 -r 10.244.1.5:8080 -m -w 1",
        "-a -t [fd00:96::10]:80 -r [fd00:244:1::5]:8080 -m",
    ] {
        assert!(servers.contains(line), "no {line} in\n{servers}");
    }
}

/// Waits until everything that the Service needs is in the kernel, with the sets as ipsets.
fn wait_programmed(ns: &Netns, container: &Container) {
    wait_balanced(ns, container);
    let sets = ns.exec(&["ipset", "save", "KUBE-CLUSTER-IP"]).unwrap().stdout;
    assert!(sets.contains("add KUBE-CLUSTER-IP 10.96.0.10,tcp:80"), "{sets}");
}

/// Waits until each probe of the container answers 200, as for the kubelet.
fn wait_probes(ns: &Netns, pod: &PodSpec, container: &Container) {
    let main = &pod.containers[0];
    for probe in [&main.startup_probe, &main.readiness_probe, &main.liveness_probe] {
        let get = probe.as_ref().unwrap().http_get.as_ref().unwrap();
        let port = match &get.port {
            IntOrString::Int(port) => *port,
            IntOrString::String(name) => {
                let ports = main.ports.as_ref().unwrap();
                ports.iter().find(|p| p.name.as_ref() == Some(name)).unwrap().container_port
            }
        };
        let (port, path) = (u16::try_from(port).unwrap(), get.path.clone().unwrap());
        let path = path.trim_start_matches('/').to_owned();
        wait_for(&format!("200 of /{path}"), container, || {
            let answer = ns.enter(|| http_get(port, &path)).unwrap();
            answer.is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
        });
    }
    let metrics = ns.enter(|| http_get(10249, "metrics")).unwrap().unwrap();
    assert!(metrics.contains("# TYPE kube_ipvs_draining_real_servers gauge"), "{metrics}");
}

/// The pod as it is in manifests/install, its init container run to its end.
fn prepared(image: &Image, of: &Node, name: &str) -> PodSpec {
    let pod = manifest(name);
    for init in pod.init_containers.iter().flatten() {
        image.run(of.ns(), &pod, init).unwrap();
    }
    pod
}

/// The privileges of a container's process in the kernel: these capabilities and no others.
fn check_privileges(container: &Container, capabilities: u64) {
    let status = container.status().unwrap();
    let capabilities = format!("{capabilities:016x}");
    for (field, expected) in [
        ("CapInh", "0000000000000000"),
        ("CapPrm", &capabilities),
        ("CapEff", &capabilities),
        ("CapBnd", &capabilities),
        ("CapAmb", "0000000000000000"),
        ("NoNewPrivs", "1"),
        // A filter.
        ("Seccomp", "2"),
    ] {
        assert_eq!(status.get(field).map(String::as_str), Some(expected), "{field} of {status:?}");
    }
}

#[test]
fn the_image_works_with_only_the_privileges_of_the_manifest() {
    let lab = Lab::new().unwrap();
    let node = lab.node("node-a").unwrap();
    let image = Image::unpack(&objects(&node)).unwrap();
    let ns = node.ns();
    ns.exec_with(&["iptables-nft-restore", "--noflush"], Some(HINT)).unwrap();
    let pod = prepared(&image, &node, "kube-ipvs");
    assert_eq!(ns.sysctl("net.ipv4.vs.conntrack").unwrap(), "1", "the init container set it");
    let container = image.start(ns, &pod, &pod.containers[0]).unwrap();
    wait_programmed(ns, &container);
    wait_probes(ns, &pod, &container);
    assert!(
        rules(ns, "iptables-nft-save").contains("-A PREROUTING")
            && rules(ns, "ip6tables-nft-save").contains(":KUBE-SERVICES")
    );
    assert!(!rules(ns, "iptables-legacy-save").contains("KUBE-SERVICES"));

    check_privileges(&container, NET_ADMIN | NET_RAW);
    assert_ne!(container.faults_of_children().unwrap(), 0, "it starts iptables");
    // Not even this test, which is root with every capability, can write where the container is.
    for path in
        ["/x", "/etc/os-release", "/etc/kube-ipvs/config.conf", "/proc/sys/net/ipv4/ip_forward", "/sys/x"]
    {
        let error = container
            .enter_files(|| fs::OpenOptions::new().write(true).create(true).truncate(false).open(path))
            .unwrap();
        assert_eq!(error.unwrap_err().raw_os_error(), Some(30), "{path} is read-only (EROFS)");
    }
}

#[test]
fn another_program_in_the_container_can_do_little() {
    let lab = Lab::new().unwrap();
    let node = lab.node("node-a").unwrap();
    let image = Image::unpack(&objects(&node)).unwrap();
    let pod = manifest("kube-ipvs");
    // Harmless operations. The first one is allowed.
    let attempts = [
        ("net_admin", "/busybox ip link add probe type dummy"),
        ("root", "/busybox touch /x"),
        ("sysctl", "echo 1 > /proc/sys/net/ipv4/ip_forward"),
        ("mount", "/busybox mount -t tmpfs none /tmp"),
        ("chroot", "/busybox chroot / /busybox true"),
        ("namespace", "/busybox unshare -n /busybox true"),
        ("device", "/busybox mknod /dev/device c 1 3"),
        ("owner", "/busybox touch /dev/shm/y && /busybox chown 1 /dev/shm/y"),
        ("host_name", "/busybox hostname $(/busybox hostname)"),
    ];
    let script: String = attempts
        .iter()
        .map(|(name, command)| format!("( {command} ) >/dev/null 2>&1 && echo {name}\n"))
        .collect();
    let worked = |container| {
        let text = image.run_probe(node.ns(), &pod, container, &script).unwrap();
        text.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(worked(&pod.containers[0]), ["net_admin"]);
    node.ns().ip("link del probe").unwrap();
    // The init container may do all but one of them: this shows that the attempts are valid.
    let all: Vec<&str> = attempts.iter().map(|(name, _)| *name).filter(|name| *name != "root").collect();
    assert_eq!(worked(&pod.init_containers.as_ref().unwrap()[0]), all);
}

#[test]
fn both_flavours_of_iptables_need_net_raw_and_report_it() {
    let lab = Lab::new().unwrap();
    let (nft, legacy) = (lab.node("node-a").unwrap(), lab.node("node-b").unwrap());
    let image = Image::unpack(&objects(&nft)).unwrap();
    let pod = manifest("kube-ipvs");
    let with_raw = &pod.containers[0];
    let mut without = with_raw.clone();
    let add = Some(vec!["NET_ADMIN".to_owned()]);
    let drop = Some(vec!["ALL".to_owned()]);
    without.security_context.as_mut().unwrap().capabilities = Some(Capabilities { add, drop });
    // On one node kubelet left no trace, and the image's default is nft; on the other it uses legacy.
    legacy.ns().exec_with(&["iptables-legacy-restore", "--noflush"], Some(HINT)).unwrap();
    for (node, program, other) in [
        (&nft, "iptables-nft-save", "iptables-legacy-save"),
        (&legacy, "iptables-legacy-save", "iptables-nft-save"),
    ] {
        let ns = node.ns();
        prepared(&image, node, "kube-ipvs");
        {
            let container = image.start(ns, &pod, &without).unwrap();
            let remedy = "needs the capabilities NET_ADMIN and NET_RAW";
            wait_for("the remedy", &container, || container.log().contains(remedy));
            assert!(bound(ns).is_empty(), "{program}: nothing is opened without its rules");
        }
        let container = image.start(ns, &pod, with_raw).unwrap();
        wait_programmed(ns, &container);
        assert!(rules(ns, program).contains("-A KUBE-SERVICES"), "{program}");
        assert!(!rules(ns, other).contains("KUBE-SERVICES"), "nothing in the other flavour: {other}");
    }
}

#[test]
fn the_daemon_set_of_kubeadm_works_with_only_the_image_changed() {
    let lab = Lab::new().unwrap();
    let node = lab.node("node-a").unwrap();
    let image = Image::unpack(&objects(&node)).unwrap();
    // What `kubectl set image` leaves: privileged, no probes, command and mounts of kube-proxy.
    let pod = container::daemon_set("kubeadm/kube-proxy.yaml");
    assert!(pod.init_containers.is_none());
    let container = image.start(node.ns(), &pod, &pod.containers[0]).unwrap();
    wait_programmed(node.ns(), &container);
    drop(container);
    // And with the overlay: the same command and mounts, fewer privileges.
    let other = lab.node("node-b").unwrap();
    let pod = prepared(&image, &other, "kubeadm");
    let container = image.start(other.ns(), &pod, &pod.containers[0]).unwrap();
    wait_programmed(other.ns(), &container);
    wait_probes(other.ns(), &pod, &container);
}

#[test]
fn the_image_without_a_base_holds_the_binary_and_its_other_names() {
    let image = Image::unpack_nftables(&list(Vec::new())).unwrap();
    let files = image.files().unwrap();
    let expected = [
        ("bin/sh", Some("../usr/local/bin/kube-ipvs")),
        ("go-runner", Some("usr/local/bin/kube-ipvs")),
        ("hyperkube", Some("usr/local/bin/kube-ipvs")),
        ("usr/local/bin/kube-ipvs", None),
        ("usr/local/bin/kube-proxy", Some("kube-ipvs")),
    ];
    let expected = expected.map(|(name, target)| (PathBuf::from(name), target.map(PathBuf::from)));
    assert_eq!(files.into_iter().collect::<Vec<_>>(), expected);
    let size = image.size("usr/local/bin/kube-ipvs").unwrap();
    assert!(size <= SMALL, "{size} bytes");
}

#[test]
fn the_image_without_a_base_works_with_net_admin_and_without_programs() {
    let lab = Lab::new().unwrap();
    let node = lab.node("node-a").unwrap();
    let image = Image::unpack_nftables(&objects(&node)).unwrap();
    let ns = node.ns();
    let pod = prepared(&image, &node, "nftables");
    assert_eq!(ns.sysctl("net.ipv4.vs.conntrack").unwrap(), "1", "the init container set it");
    let container = image.start(ns, &pod, &pod.containers[0]).unwrap();
    wait_balanced(ns, &container);
    wait_probes(ns, &pod, &container);
    let sets = nft_table::sets(ns).unwrap();
    for member in ["add KUBE-CLUSTER-IP 10.96.0.10,tcp:80", "add KUBE-6-CLUSTER-IP fd00:96::10,tcp:80"] {
        assert!(sets.contains(member), "no {member} in\n{sets}");
    }
    let written = nft_table::rules(ns).unwrap();
    for family in ["ip ", "ip6 "] {
        assert!(written.iter().any(|rule| rule.starts_with(family)), "{family}: {written:#?}");
    }
    for program in
        ["iptables-nft-save", "ip6tables-nft-save", "iptables-legacy-save", "ip6tables-legacy-save"]
    {
        assert!(!rules(ns, program).contains("KUBE-"), "{program}");
    }
    assert_eq!(ns.exec(&["ipset", "list", "-n"]).unwrap().stdout, "", "no ipset");
    check_privileges(&container, NET_ADMIN);
    let is_number = |name: &str| name.bytes().all(|byte| byte.is_ascii_digit());
    let processes: Vec<String> = container
        .enter_files(|| {
            let names = fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().file_name());
            names.filter_map(|name| name.into_string().ok()).filter(|name| is_number(name)).collect()
        })
        .unwrap();
    assert_eq!(processes, ["1"], "only the agent runs");
    assert_eq!(container.faults_of_children().unwrap(), 0, "it started no process");
}
