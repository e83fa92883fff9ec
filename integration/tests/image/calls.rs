// SPDX-License-Identifier: Apache-2.0
//! The image, called as distributions call kube-proxy: docs/recipes/calls.md has the same rows.

use integration::lab::Lab;
use k8s_openapi::api::core::v1::{Container as Wanted, PodSpec};
use serde_json::{Value, from_value, json, to_value};

use crate::container::{self, Container, Image};
use crate::{objects, wait_for, wait_programmed};

const LOG: &str = "kube-proxy.log";
/// Lines of every start and of every end.
const FIRST: &str = "starts on node node-a";
const READY: &str = "ready: ";
const LAST: &str = "stopped; everything stays in the kernel";
const CONFIG: &str = "--config=/var/lib/kube-proxy/config.conf";
const NODE: &str = "--hostname-override=$(NODE_NAME)";

/// Where the log of a call is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LogPlace {
    Streams,
    File,
    Both,
}

/// kubeadm's pod with the folder of logs and another command.
fn pod(command: &[&str]) -> (PodSpec, Wanted) {
    let mut pod = to_value(container::daemon_set("kubeadm/kube-proxy.yaml")).unwrap();
    let push = |list: &mut Value, value| list.as_array_mut().unwrap().push(value);
    push(&mut pod["volumes"], json!({"name": "varlog", "hostPath": {"path": "/var/log"}}));
    pod["containers"][0]["command"] = json!(command);
    push(&mut pod["containers"][0]["volumeMounts"], json!({"name": "varlog", "mountPath": "/var/log"}));
    let pod: PodSpec = from_value(pod).unwrap();
    let wanted = pod.containers[0].clone();
    (pod, wanted)
}

/// Starts the image with each command. One after the other on one node, so that only the first start has to program.
fn check_calls(rows: &[(&[&str], LogPlace)]) {
    let lab = Lab::new().unwrap();
    let node = lab.node("node-a").unwrap();
    let image = Image::unpack(&objects(&node)).unwrap();
    for (command, place) in rows {
        println!("{command:?}");
        image.remove_log_file(LOG);
        let (pod, wanted) = pod(command);
        let mut container = image.start(node.ns(), &pod, &wanted).unwrap();
        let has = |container: &Container, line: &str| {
            let (streams, file) = (container.log().contains(line), image.log_file(LOG).contains(line));
            match place {
                LogPlace::Streams => streams && !file,
                LogPlace::File => file && !streams,
                LogPlace::Both => streams && file,
            }
        };
        wait_for("the first line of the log", &container, || has(&container, FIRST));
        wait_for("the end of the start", &container, || has(&container, READY));
        wait_programmed(node.ns(), &container);
        // The agent gets the signal and ends by itself, and its last line arrives.
        assert_eq!(container.stop().unwrap(), Some(0), "{command:?}: {}", container.log());
        wait_for("the last line of the log", &container, || has(&container, LAST));
    }
}

#[test]
fn the_image_understands_how_distributions_call_kube_proxy() {
    let quoted = format!("exec kube-proxy '{CONFIG}' --hostname-override=\"${{NODE_NAME}}\"");
    check_calls(&[
        (&["/usr/local/bin/kube-proxy", CONFIG, NODE], LogPlace::Streams),
        (&["kube-proxy", CONFIG, NODE], LogPlace::Streams),
        (&["/usr/local/bin/kube-ipvs", "kube-proxy", CONFIG, NODE], LogPlace::Streams),
        (&["/hyperkube", "proxy", CONFIG, NODE], LogPlace::Streams),
        (&["/go-runner", "/usr/local/bin/kube-proxy", CONFIG, NODE], LogPlace::Streams),
        (&["/bin/sh", "-c", &quoted], LogPlace::Streams),
    ]);
}

/// The flags of kops, RKE2, Talos and GCE, which use no file of configuration. Without `--master` of kops and GCE: the
/// objects come from a file.
#[test]
fn the_image_takes_the_flags_that_distributions_pass() {
    const KUBECONFIG: &str = "--kubeconfig=/var/lib/kube-proxy/kubeconfig.conf";
    const CIDR: &str = "--cluster-cidr=10.244.0.0/16";
    let in_shell = format!(
        "kube-proxy {KUBECONFIG} {CIDR} {NODE} --proxy-mode=ipvs --oom-score-adj=-998 \
         --v=2 --ipvs-sync-period=1m --ipvs-min-sync-period=10s 1>>/var/log/{LOG} 2>&1"
    );
    let log_file = format!("--log-file=/var/log/{LOG}");
    let kops =
        ["/go-runner", &log_file, "--also-stdout", "/usr/local/bin/kube-proxy", CIDR, NODE, KUBECONFIG]
            .into_iter()
            .chain(["--conntrack-max-per-core=131072", "--oom-score-adj=-998"])
            .chain(["--proxy-mode=ipvs", "--v=2"]);
    let rke2 =
        ["kube-proxy", CIDR, NODE, KUBECONFIG, "--proxy-mode=ipvs", "--healthz-bind-address=127.0.0.1"]
            .into_iter()
            .chain(["--conntrack-max-per-core=0", "--conntrack-tcp-timeout-close-wait=0s"])
            .chain(["--conntrack-tcp-timeout-established=0s"]);
    let talos = ["/usr/local/bin/kube-proxy", CIDR, NODE, KUBECONFIG, "--proxy-mode=ipvs"]
        .into_iter()
        .chain(["--conntrack-max-per-core=0"]);
    check_calls(&[
        (&kops.collect::<Vec<_>>(), LogPlace::Both),
        (&rke2.collect::<Vec<_>>(), LogPlace::Streams),
        (&talos.collect::<Vec<_>>(), LogPlace::Streams),
        (&["/bin/sh", "-c", &in_shell], LogPlace::File),
    ]);
}

#[test]
fn the_log_goes_where_distributions_want_it() {
    let in_shell = format!("kube-proxy {CONFIG} {NODE} 1>>/var/log/{LOG} 2>&1");
    let log_file = format!("--log-file=/var/log/{LOG}");
    check_calls(&[
        (
            &["/go-runner", &log_file, "--also-stdout", "/usr/local/bin/kube-proxy", CONFIG, NODE],
            LogPlace::Both,
        ),
        (&["/go-runner", &log_file, "--", "kube-proxy", CONFIG, NODE], LogPlace::File),
        (&["/bin/sh", "-c", &in_shell], LogPlace::File),
    ]);
}

#[test]
fn the_image_has_no_shell() {
    let lab = Lab::new().unwrap();
    let node = lab.node("node-a").unwrap();
    let image = Image::unpack(&objects(&node)).unwrap();
    for (command, why) in [
        (&["/bin/sh", "/script/cleanup.sh"][..], "this image has no shell"),
        (&["/bin/sh", "-c", "kube-proxy --version; sleep 1"], "no second command"),
        (&["/go-runner", "/usr/sbin/modprobe", "ip_vs"], "starts only kube-proxy, not /usr/sbin/modprobe"),
    ] {
        let (pod, wanted) = pod(command);
        let mut container = image.start(node.ns(), &pod, &wanted).unwrap();
        assert_eq!(container.wait().unwrap(), Some(2), "{command:?}: {}", container.log());
        assert!(container.log().contains(why), "{command:?}: {}", container.log());
    }
}
