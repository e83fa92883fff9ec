// SPDX-License-Identifier: Apache-2.0
//! Start, `init`, and restart after a change of the configuration.

use std::os::unix::fs::symlink;

use super::*;
use integration::apiserver::ApiServer;
use integration::lab::agent_binary;

const CONFIG_MAP: &str = include_str!("kubeadm-configmap.yaml");
const DAEMON_SET: &str = include_str!("kubeadm-daemonset.yaml");
const CA: &str = include_str!("ca.crt");

/// A shell script that gives its own mount namespace the container's files and becomes the container's
/// process, as the kubelet would start it.
fn container(files: &Files, server: &ApiServer) -> PathBuf {
    let map: Value = serde_saphyr::from_str(CONFIG_MAP).unwrap();
    for (name, text) in map["data"].as_object().unwrap() {
        let text = text.as_str().unwrap().replace("SERVER", &server.url());
        std::fs::write(files.path(name), text).unwrap();
    }
    std::fs::write(files.path("ca.crt"), CA).unwrap();
    std::fs::write(files.path("token"), "secret").unwrap();
    let set: Value = serde_saphyr::from_str(DAEMON_SET).unwrap();
    let container = &set["spec"]["template"]["spec"]["containers"][0];
    let words = container["command"].as_array().unwrap().iter();
    let command: Vec<String> =
        words.map(|w| format!("'{}'", w.as_str().unwrap().replace("$(NODE_NAME)", "node-a"))).collect();
    let secrets = "/var/run/secrets/kubernetes.io/serviceaccount";
    let script = format!(
        "#!/bin/bash\nset -e\nmount --make-rprivate /\n\
         mount -t tmpfs none /var/lib && mkdir /var/lib/kube-proxy\n\
         cp '{dir}/config.conf' '{dir}/kubeconfig.conf' /var/lib/kube-proxy/\n\
         mkdir -p {secrets} && cp '{dir}/ca.crt' '{dir}/token' {secrets}/\n\
         mount -t tmpfs none /usr/local/bin && cp '{agent}' /usr/local/bin/kube-ipvs\n\
         ln -s kube-ipvs /usr/local/bin/kube-proxy\n\
         exec {command}\n",
        dir = files.0.path().display(),
        agent = agent_binary().unwrap().display(),
        command = command.join(" "),
    );
    std::fs::write(files.path("container"), script).unwrap();
    files.path("container")
}

#[test]
fn the_config_map_and_daemon_set_of_kubeadm_start_the_agent_unchanged() {
    let ns = Netns::new("node-a").unwrap();
    let server = ApiServer::start(ns.listen("127.0.0.1:0").unwrap()).unwrap();
    let node = integration::objects::node("node-a", &["192.168.50.2"]);
    server.replace_all([one_service(), vec![node]].concat());
    let files = Files::new(&json!({}), vec![]);
    let mut command = Command::new("unshare");
    command.args(["-m", "bash"]).arg(container(&files, &server));
    let mut agent = Agent::spawn(&ns, command).unwrap();
    wait_for("the first sync", &agent, || is_bound(&ns, "10.96.0.10/32"));
    let saved = run(&ns, &["ipvsadm", "-Sn"]);
    assert!(saved.contains("-A -t 10.96.0.10:80 -s rr"), "{saved}");
    let rules = run(&ns, &["iptables-save", "-t", "nat"]);
    assert!(rules.contains("! -s 10.244.0.0/16"), "clusterCIDR: {rules}");
    wait_for("health", &agent, || get(&ns, 10256, "healthz").0 == 200);
    assert_eq!(get(&ns, 10249, "proxyMode").1.lines().last(), Some("ipvs"));
    assert!(!agent.log().contains("WARN"), "no warning:\n{}", agent.log());
    let adj = std::fs::read_to_string(format!("/proc/{}/oom_score_adj", agent.pid())).unwrap();
    assert_eq!(adj.trim(), "-999");
    let configz = get(&ns, 10249, "configz").1;
    assert!(configz.contains("\"syncPeriod\":\"30s\"") && configz.contains("10.244.0.0/16"), "{configz}");
    assert!(agent.stop().unwrap().success());
    assert!(is_bound(&ns, "10.96.0.10/32"), "programmed objects outlive the process");
}

#[test]
fn flags_without_a_file_start_the_agent() {
    let ns = Netns::new("node-a").unwrap();
    let server = ApiServer::start(ns.listen("127.0.0.1:0").unwrap()).unwrap();
    server.replace_all(one_service());
    let mut command = Command::new(agent_binary().unwrap());
    command.args(["--proxy-mode=ipvs", "--ipvs-scheduler=lc", "--hostname_override=Node-A", "--v", "2"]);
    command.args([&format!("--master={}", server.url()), "--logging-format=json", "--healthz-port=0"]);
    let agent = Agent::spawn(&ns, command).unwrap();
    wait_for("the address", &agent, || is_bound(&ns, "10.96.0.10/32"));
    assert!(run(&ns, &["ipvsadm", "-Sn"]).contains("-A -t 10.96.0.10:80 -s lc"));
    assert_eq!(get(&ns, 10256, "healthz").0, 0, "--healthz-port=0");
    for line in agent.log().lines() {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        assert!(line["msg"].is_string() && line["ts"].is_number() && line["v"].is_number(), "{line}");
    }
    let metrics = "127.0.0.1:10249".parse().unwrap();
    let put = ns.enter(|| oracle::http(metrics, "PUT", "debug/flags/v", "6")).unwrap().unwrap();
    assert!(put.starts_with("HTTP/1.1 200"), "{put}");
    server.apply(slice("web", &["10.244.1.6"], &[("http", "TCP", 8080)]));
    wait_for("a plan in the log", &agent, || agent.log().contains("plan:"));
}

#[test]
fn init_only_sets_sysctls_and_creates_nothing() {
    let ns = Netns::new("node-a").unwrap();
    let more = json!({"ipvs": {"strictARP": true, "tcpFinTimeout": "77s"}, "conntrack": {"maxPerCore": 0, "tcpBeLiberal": true}});
    let files = Files::new(&more, one_service());
    let config = format!("--config={}", files.path("config.yaml").display());
    let binary = agent_binary().unwrap();
    ns.exec(&[binary.to_str().unwrap(), "--init-only", &config]).unwrap();
    assert_eq!(ns.sysctl("net.ipv4.vs.conntrack").unwrap(), "1");
    assert_eq!(ns.sysctl("net.ipv4.conf.all.arp_ignore").unwrap(), "1");
    assert_eq!(ns.sysctl("net.netfilter.nf_conntrack_tcp_be_liberal").unwrap(), "1");
    assert!(run(&ns, &["ipvsadm", "-Ln", "--timeout"]).contains(" 77 "));
    assert_eq!(run(&ns, &["ipvsadm", "-Sn"]), "");
    assert_eq!(run(&ns, &["ipset", "list", "-n"]), "");
    assert_eq!(run(&ns, &["ip", "link", "show", "dev", "kube-ipvs0"]), "");
    assert!(!run(&ns, &["iptables-save"]).contains("KUBE"));
    // The size of the table belongs to the first namespace: a node in a container cannot set it.
    let more = json!({"conntrack": {"maxPerCore": 50000, "min": 77777}});
    let files = Files::new(&more, one_service());
    let config = format!("--config={}", files.path("config.yaml").display());
    let output = ns.exec(&[binary.to_str().unwrap(), "--init-only", &config]).unwrap();
    assert!(output.stderr.contains("nf_conntrack_max: it is "), "{}", output.stderr);
}

#[test]
fn a_changed_configuration_restarts_the_agent_and_an_invalid_one_does_not() {
    let ns = Netns::new("node-a").unwrap();
    let files = Files::new(&json!({}), one_service());
    // By default the restarts of a cluster's agents spread over a minute.
    let soon = json!({"kubeIPVS": {"configReload": {"spread": "1s"}}});
    let write = |version: &str, more: &Value| {
        let folder = files.path(version);
        std::fs::create_dir(&folder).unwrap();
        let mut content = config("node-a", &soon);
        content.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        std::fs::write(folder.join("config.yaml"), content.to_string()).unwrap();
        symlink(version, files.path("..new")).unwrap();
        std::fs::rename(files.path("..new"), files.path("..data")).unwrap();
    };
    // As the kubelet mounts a ConfigMap.
    std::fs::remove_file(files.path("config.yaml")).unwrap();
    write("..1", &json!({}));
    symlink("..data/config.yaml", files.path("config.yaml")).unwrap();
    let mut agent = files.start(&ns);
    wait_for("the address", &agent, || is_bound(&ns, "10.96.0.10/32"));
    write("..2", &json!({"mode": "iptables"}));
    wait_for("the error in the log", &agent, || agent.log().contains("cannot be used"));
    assert!(agent.ended().unwrap().is_none(), "the agent keeps running");
    // Only the kernel knows that the scheduler does not exist.
    write("..2b", &json!({"ipvs": {"scheduler": "nonesuch"}}));
    wait_for("the second error in the log", &agent, || agent.log().contains("nonesuch"));
    assert!(agent.ended().unwrap().is_none(), "the agent keeps running");
    let told = ["config", "--config", files.path("config.yaml").to_str().unwrap()].map(str::to_owned);
    let objects = format!("--objects={}", files.path("objects.json").display());
    let binary = agent_binary().unwrap();
    let command = [binary.to_str().unwrap(), &told[0], &told[1], &told[2], &objects];
    let output = ns.try_exec(&command, None).unwrap();
    assert!(output.stderr.contains("nonesuch"), "the command says what a start would: {}", output.stderr);
    assert!(output.success("config").is_err());
    write("..3", &json!({"ipvs": {"scheduler": "lc"}}));
    let start = Instant::now();
    let status = loop {
        if let Some(status) = agent.ended().unwrap() {
            break status;
        }
        assert!(start.elapsed() < LIMIT, "still running:\n{}", agent.log());
        std::thread::sleep(Duration::from_millis(100));
    };
    assert_eq!(status.code(), Some(1));
    assert!(agent.log().contains("content of the proxy server's configuration file was updated"));
    assert!(is_bound(&ns, "10.96.0.10/32"), "the kernel keeps everything");
    let agent = files.start(&ns);
    wait_for("the other scheduler", &agent, || run(&ns, &["ipvsadm", "-Sn"]).contains("-s lc"));
}

#[test]
fn a_port_in_use_is_retried_or_ends_the_agent_with_bind_address_hard_fail() {
    let ns = Netns::new("node-a").unwrap();
    let taken = ns.listen("0.0.0.0:10256").unwrap();
    let files = Files::new(&json!({}), one_service());
    let agent = files.start(&ns);
    wait_for("the error in the log", &agent, || agent.log().contains("cannot listen at 0.0.0.0:10256"));
    wait_for("the address", &agent, || is_bound(&ns, "10.96.0.10/32"));
    drop(taken);
    wait_for("health", &agent, || get(&ns, 10256, "livez").0 == 200);
    drop(agent);
    let _taken = ns.listen("127.0.0.1:10249").unwrap();
    let files = Files::new(&json!({"bindAddressHardFail": true}), one_service());
    let mut agent = files.start(&ns);
    wait_for("the end", &agent, || agent.log().contains("bindAddressHardFail is set"));
    let start = Instant::now();
    while agent.ended().unwrap().is_none_or(|status| status.code() != Some(1)) {
        assert!(start.elapsed() < LIMIT, "still running:\n{}", agent.log());
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn an_unusable_kernel_is_an_event_on_the_node() {
    let ns = Netns::new("node-a").unwrap();
    let server = ApiServer::start(ns.listen("127.0.0.1:0").unwrap()).unwrap();
    server.replace_all(one_service());
    let mut command = Command::new("setpriv");
    command.args(["--inh-caps=-net_admin", "--bounding-set=-net_admin"]).arg(agent_binary().unwrap());
    command.args(["--hostname-override=node-a", &format!("--master={}", server.url())]);
    let agent = Agent::spawn(&ns, command).unwrap();
    wait_for("the Event", &agent, || server.events().iter().any(|e| e["reason"] == "KernelNotUsable"));
    let events = server.events();
    let event = events.iter().find(|e| e["reason"] == "KernelNotUsable").unwrap();
    assert_eq!(
        (&event["regarding"]["kind"], &event["regarding"]["name"]),
        (&json!("Node"), &json!("node-a"))
    );
    assert!(event["note"].as_str().unwrap().contains("CAP_NET_ADMIN"), "{event}");
    assert_eq!(get(&ns, 10256, "readyz").0, 503);
    let binary = agent_binary().unwrap();
    let status = ns.try_exec(&[binary.to_str().unwrap(), "status"], None).unwrap();
    assert_eq!(status.status.code(), Some(1), "{}{}", status.stdout, status.stderr);
    assert!(status.stdout.contains("CAP_NET_ADMIN"), "{}", status.stdout);
}
