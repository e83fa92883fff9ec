// SPDX-License-Identifier: Apache-2.0
//! `/metrics` scraped by Prometheus while everything changes: checked with the queries of dashboards and alerts
//! for kube-proxy, and compared with the counters of the kernel.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use integration::apiserver::ApiServer;
use integration::lab::oracle::http_get;
use integration::lab::traffic::{Backend, ask_tcp};
use integration::lab::{Agent, AgentSpec, Lab, Netns, Process, Setup, at};
use integration::objects::{config, service, slice};
use serde_json::{Value, json};

/// Prometheus is a large program, and the guest is slow.
const LIMIT: Duration = Duration::from_secs(150);
const METRICS: u16 = 10249;
const PROMETHEUS: u16 = 9090;
const SERVICES: u8 = 40;
const PORT: [(&str, &str, u16); 1] = [("http", "TCP", 80)];

/// Queries of the dashboards and the alert of the kubernetes-mixin, with a short range.
const QUERIES: [&str; 14] = [
    r#"up{job="kube-proxy"} == 1"#,
    r#"sum(rate(kubeproxy_sync_proxy_rules_duration_seconds_count{job="kube-proxy"}[1m])) > 0"#,
    r#"histogram_quantile(0.99,rate(kubeproxy_sync_proxy_rules_duration_seconds_bucket{job="kube-proxy"}[1m])) > 0"#,
    r#"sum(rate(kubeproxy_network_programming_duration_seconds_count{job="kube-proxy"}[1m])) > 0"#,
    r#"histogram_quantile(0.99,sum(rate(kubeproxy_network_programming_duration_seconds_bucket{job="kube-proxy"}[1m])) by (instance,le)) > 0"#,
    r#"sum(rate(rest_client_requests_total{job="kube-proxy",code=~"2.."}[1m])) >= 0"#,
    r#"sum(rest_client_requests_total{job="kube-proxy",code=~"2.."}) > 0"#,
    r#"sum(rest_client_request_duration_seconds_bucket{job="kube-proxy",verb="GET"}) by (verb,le) > 0"#,
    r#"process_resident_memory_bytes{job="kube-proxy"} > 1e6"#,
    r#"rate(process_cpu_seconds_total{job="kube-proxy"}[1m]) >= 0"#,
    r#"time() - kubeproxy_sync_proxy_rules_last_timestamp_seconds{job="kube-proxy"} < 60"#,
    r#"count(kubernetes_build_info{job="kube-proxy"}) by (git_version)"#,
    r#"sum(kube_ipvs_watch_state{state="following"}) == 3"#,
    r#"sum(rate(kube_ipvs_operations_total{result="done"}[1m])) > 0"#,
];

/// A program of Prometheus, fetched by `install.sh`.
fn tool(name: &str) -> PathBuf {
    let me = std::env::current_exe().unwrap();
    let found =
        me.ancestors().map(|folder| folder.join("guest/prometheus").join(name)).find(|path| path.is_file());
    found.unwrap_or_else(|| {
        panic!("no guest/prometheus/{name} above {}; run integration/guest/install.sh", me.display())
    })
}

fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").map_or("", |(_, body)| body)
}

fn scrape(ns: &Netns) -> String {
    let answer = ns.enter(|| http_get(METRICS, "metrics")).unwrap().unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.contains("content-type: text/plain; version=0.0.4"),
        "{answer}"
    );
    body(&answer).to_owned()
}

/// The sum over the samples of a family that have all of these in their labels.
fn sum(text: &str, family: &str, labels: &[&str]) -> f64 {
    let samples = text.lines().filter(|line| line.split(['{', ' ']).next() == Some(family));
    let samples = samples.filter(|line| labels.iter().all(|label| line.contains(label)));
    samples.map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()).sum()
}

/// A node whose agent follows an API server inside of its namespace.
struct Cluster {
    ns: Netns,
    server: ApiServer,
    dir: tempfile::TempDir,
}

impl Cluster {
    fn new() -> Self {
        let ns = Netns::new("node-a").unwrap();
        let server = ApiServer::start(ns.listen("127.0.0.1:0").unwrap()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let kubeconfig = dir.path().join("kubeconfig");
        std::fs::write(&kubeconfig, server.kubeconfig()).unwrap();
        let more = json!({"clientConnection": {"kubeconfig": kubeconfig}, "kubeIPVS": {"metrics": {"perService": true}}});
        std::fs::write(dir.path().join("config.yaml"), config("node-a", &more).to_string()).unwrap();
        Self { ns, server, dir }
    }

    fn start_agent(&self) -> Agent {
        let config = self.dir.path().join("config.yaml");
        Agent::start(&self.ns, &AgentSpec { config, ..AgentSpec::default() }).unwrap()
    }

    fn start_prometheus(&self) -> Process {
        let file = self.dir.path().join("prometheus.yml");
        let job = json!({"job_name": "kube-proxy", "static_configs": [{"targets": [format!("127.0.0.1:{METRICS}")]}]});
        let interval = json!({"scrape_interval": "2s", "scrape_timeout": "2s"});
        std::fs::write(&file, json!({"global": interval, "scrape_configs": [job]}).to_string()).unwrap();
        let mut command = Command::new(tool("prometheus"));
        command.arg(format!("--config.file={}", file.display()));
        command.arg(format!("--storage.tsdb.path={}", self.dir.path().join("tsdb").display()));
        command.arg(format!("--web.listen-address=127.0.0.1:{PROMETHEUS}")).arg("--log.level=warn");
        command.stdin(Stdio::null());
        self.ns.spawn(command).unwrap()
    }

    /// The answer to a query; nothing while Prometheus does not answer.
    fn query(&self, query: &str) -> Vec<Value> {
        let encoded: String = query.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let path = format!("api/v1/query?query={encoded}");
        let answer = self.ns.enter(|| http_get(PROMETHEUS, &path)).unwrap().unwrap_or_default();
        let answer = dechunk(body(&answer), answer.contains("chunked"));
        let answer: Value = serde_json::from_str(&answer).unwrap_or_default();
        assert_ne!(answer["status"], "error", "{query}: {answer}");
        answer["data"]["result"].as_array().cloned().unwrap_or_default()
    }
}

/// Long answers come in chunks.
fn dechunk(body: &str, chunked: bool) -> String {
    let (mut whole, mut rest) = (String::new(), body);
    if !chunked {
        return body.to_owned();
    }
    while let Some((size, after)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        whole.push_str(&after[..size]);
        rest = after[size..].trim_start_matches("\r\n");
    }
    whole
}

/// Everything with the endpoints of a round, which just happened.
fn objects(round: u32) -> Vec<Value> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let time =
        Command::new("date").args(["-u", "-d", &format!("@{now}"), "+%FT%TZ"]).output().unwrap().stdout;
    let time = String::from_utf8(time).unwrap().trim().to_owned();
    let mut all = Vec::new();
    for n in 1..=SERVICES {
        let (name, vip) = (format!("s{n}"), format!("10.96.0.{n}"));
        all.push(service(&name, &[&vip], &[], &PORT));
        let mut slice = slice(&name, &[&format!("10.244.{}.{n}", round % 200)], &PORT);
        slice["metadata"]["annotations"] = json!({"endpoints.kubernetes.io/last-change-trigger-time": time});
        all.push(slice);
    }
    all
}

/// What `promtool check metrics` says; only kube-proxy may have names that it does not like.
fn check(text: &str, ns: &Netns) {
    let promtool = tool("promtool");
    let output = ns.try_exec(&[promtool.to_str().unwrap(), "check", "metrics"], Some(text)).unwrap();
    let complaints: Vec<&str> = output.stderr.lines().chain(output.stdout.lines()).collect();
    assert!(matches!(output.status.code(), Some(0 | 3)), "{complaints:?}");
    assert!(complaints.iter().all(|line| line.starts_with("kubeproxy_")), "{complaints:?}");
}

#[test]
fn prometheus_scrapes_the_agent_and_queries_for_kube_proxy_work() {
    let cluster = Cluster::new();
    cluster.server.replace_all(objects(0));
    let agent = cluster.start_agent();
    let _prometheus = cluster.start_prometheus();
    let (done, start) = (AtomicBool::new(false), Instant::now());
    std::thread::scope(|scope| {
        // Objects change all the time, and other clients scrape too.
        scope.spawn(|| {
            for round in 1.. {
                if done.load(Ordering::Relaxed) {
                    return;
                }
                cluster.server.replace_all(objects(round));
                std::thread::sleep(Duration::from_millis(500));
            }
        });
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let answer = cluster.ns.enter(|| http_get(METRICS, "metrics")).unwrap();
                    // It may fail to answer only before it listens.
                    if let Ok(answer) = answer {
                        assert!(answer.ends_with('\n') && answer.starts_with("HTTP/1.1 200"), "{answer}");
                    }
                    std::thread::sleep(Duration::from_millis(50));
                }
            });
        }
        let mut open: Vec<&str> = QUERIES.to_vec();
        while !open.is_empty() && start.elapsed() < LIMIT {
            open.retain(|query| cluster.query(query).is_empty());
            std::thread::sleep(Duration::from_secs(1));
        }
        done.store(true, Ordering::Relaxed);
        assert!(
            open.is_empty(),
            "no answers to {open:#?}; up: {:?}; log:\n{}",
            cluster.query("up"),
            agent.log_tail(30)
        );
    });
    let text = scrape(&cluster.ns);
    check(&text, &cluster.ns);
    assert!(sum(&text, "kubeproxy_network_programming_duration_seconds_count", &[]) >= f64::from(SERVICES));
    assert_eq!(sum(&text, "kube_ipvs_operations_total", &["result=\"failed\""]), 0.0);
    assert_eq!(sum(&text, "kube_ipvs_services", &[]), f64::from(SERVICES));
    assert_eq!(sum(&text, "kube_ipvs_virtual_servers", &["IPv4"]), f64::from(SERVICES));
}

/// Connections, packets and bytes of virtual servers as `ipvsadm` has them: in, then out.
fn ipvsadm_stats(ns: &Netns, servers: &[&str]) -> [f64; 5] {
    let shown = ns.exec(&["ipvsadm", "-Ln", "--stats", "--exact"]).unwrap().stdout;
    let mut sums = [0.0; 5];
    for line in shown.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()) {
        if line.len() == 7 && servers.contains(&line[1]) {
            let numbers = line[2..].iter().map(|word| word.parse::<f64>().unwrap());
            sums.iter_mut().zip(numbers).for_each(|(sum, number)| *sum += number);
        }
    }
    sums
}

fn agent_stats(text: &str, service: &str) -> [f64; 5] {
    let service = format!("service=\"{service}\"");
    let of = |family: &str, labels: &[&str]| {
        let labels: Vec<&str> = labels.iter().copied().chain([&*service]).collect();
        sum(text, &format!("kube_ipvs_service_{family}_total"), &labels)
    };
    let (incoming, outgoing) = (&["direction=\"in\""][..], &["direction=\"out\""][..]);
    [
        of("connections", &[]),
        of("packets", incoming),
        of("packets", outgoing),
        of("bytes", incoming),
        of("bytes", outgoing),
    ]
}

#[test]
fn traffic_counters_equal_the_kernel_and_never_decrease() {
    let lab = Lab::new().unwrap();
    let node = lab.node("node-a").unwrap();
    let pod = node.pod(5).unwrap();
    let _backend = Backend::new(&pod.ns, "near").tcp(8080).unwrap();
    let target = [("http", "TCP", 8080)];
    let web = || {
        [
            service("web", &["10.96.0.10"], &["10.0.0.168"], &PORT),
            slice("web", &["10.244.1.5@node-a"], &target),
        ]
    };
    let dns = || [service("dns", &["10.96.0.20"], &[], &PORT), slice("dns", &["10.244.1.5@node-a"], &target)];
    let limit = json!({"kubeIPVS": {"metrics": {"perService": true, "maxServices": 1}}});
    let setup = Setup::start(&node, &limit, [web(), dns()].concat()).unwrap();
    setup.wait_bound(&["10.96.0.10", "10.96.0.20", "10.0.0.168"]).unwrap();
    let ask = |vip: &str, times: u32| {
        (0..times).for_each(|_| _ = ask_tcp(node.ns(), at(vip, 80), Duration::from_secs(10)).unwrap());
    };
    let (own, other) = ("dns", "other");
    // The kernel sums up its counters every two seconds.
    let equal = |what: &str, base: [f64; 5], connections: [f64; 2]| {
        let kernel = |servers: &[&str]| ipvsadm_stats(node.ns(), servers);
        setup.wait(what, || {
            let text = scrape(node.ns());
            let mut web = kernel(&["10.96.0.10:80", "10.0.0.168:80"]);
            web.iter_mut().zip(base).for_each(|(sum, base)| *sum += base);
            let dns = kernel(&["10.96.0.20:80"]);
            agent_stats(&text, own) == dns
                && agent_stats(&text, other) == web
                && [dns[0], web[0]] == connections
        })
    };
    ask("10.96.0.10", 3);
    ask("10.0.0.168", 2);
    ask("10.96.0.20", 4);
    equal("the kernel's numbers", [0.0; 5], [4.0, 5.0]).unwrap();
    let before = agent_stats(&scrape(node.ns()), other);
    assert!(before.iter().all(|number| *number > 0.0), "{before:?}");

    // Its virtual servers are removed and added again: the kernel counts from 0, the metric does not decrease.
    setup.write(dns().to_vec()).unwrap();
    setup.wait_ipvs("-A -t 10.96.0.10:80", false).unwrap();
    assert_eq!(agent_stats(&scrape(node.ns()), other), before);
    setup.write([web(), dns()].concat()).unwrap();
    setup.wait_bound(&["10.96.0.10", "10.0.0.168"]).unwrap();
    ask("10.96.0.10", 1);
    equal("the old numbers and the new ones", before, [4.0, 6.0]).unwrap();
}

#[test]
fn the_metrics_port_has_the_endpoints_of_kube_proxy() {
    let lab = Lab::new().unwrap();
    let node = lab.node("node-a").unwrap();
    let udp = [("dns", "UDP", 53)];
    let objects =
        vec![service("dns", &["10.96.0.10"], &[], &udp), slice("dns", &["10.244.1.5@node-a"], &udp)];
    let setup = Setup::start(&node, &json!({}), objects).unwrap();
    setup.wait_bound(&["10.96.0.10"]).unwrap();
    let get = |path: &str| node.ns().enter(|| http_get(METRICS, path)).unwrap().unwrap();
    let mode = get("proxyMode");
    assert_eq!(body(&mode), "ipvs");
    assert!(mode.contains("content-type: text/plain; charset=utf-8") && mode.contains("nosniff"), "{mode}");
    assert_eq!(body(&get("healthz")), "ok");
    let configz: Value = serde_json::from_str(body(&get("configz"))).unwrap();
    assert_eq!(configz["kubeproxy.config.k8s.io"]["mode"], "ipvs");
    assert!(get("livez").starts_with("HTTP/1.1 404"));
    // Binding is not the last step of a sync.
    let health = |path| node.ns().enter(|| http_get(10256, path)).unwrap().unwrap_or_default();
    setup.wait("readiness", || health("readyz").starts_with("HTTP/1.1 200")).unwrap();
    setup.wait("health", || health("healthz").starts_with("HTTP/1.1 200")).unwrap();
    let text = scrape(node.ns());
    assert!(sum(&text, "kubeproxy_proxy_healthz_total", &["200"]) >= 1.0, "{text}");
    assert!(
        sum(&text, "kubeproxy_conntrack_reconciler_sync_duration_seconds_count", &["IPv4"]) >= 1.0,
        "{text}"
    );
    assert!(!text.contains("kube_ipvs_service_"), "off unless asked for");
}
