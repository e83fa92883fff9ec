// SPDX-License-Identifier: Apache-2.0
//! One object keeps failing on a real kernel: all others are programmed as fast as without the failure, the agent uses
//! no CPU and starts no programs for it, the log stays short, and the health endpoints answer correctly.

use integration::bench::process::cost;
use integration::lab::oracle;

use super::*;

/// Largest additional delay of a change of another Service, compared with a node without failures. A change that waits for
/// what fails takes seconds; the rest is for the tests that run beside this one.
const LATER: Duration = Duration::from_millis(500);
/// Number of measured changes; the median counts.
const CHANGES: u8 = 9;
/// How long the CPU time and the processes of the agent are measured.
const WATCHED: Duration = Duration::from_secs(10);

/// A node with a failure.
struct Day {
    ns: Netns,
    files: Files,
    objects: Vec<Value>,
}

/// The Services: a dual-stack one, and one with a load balancer with source ranges.
fn everyday() -> Vec<Value> {
    let mut lb = service("lb", &["10.96.0.30"], &[], &PORT);
    lb["spec"]["type"] = json!("LoadBalancer");
    lb["spec"]["loadBalancerSourceRanges"] = json!(["198.18.0.0/15"]);
    lb["status"] = json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.9"}]}});
    let mut all = one_service();
    all.extend([lb, service("both", &["10.96.0.20", "fd00:96::20"], &[], &PORT)]);
    all.push(integration::objects::node("node-a", &["192.168.50.2"]));
    all
}

fn answer(ns: &Netns, path: &str) -> u16 {
    let at = ([127, 0, 0, 1], 10256).into();
    let answer = ns.enter(|| oracle::http(at, "GET", path, "")).unwrap().unwrap_or_default();
    answer.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0)
}

/// The first page of the table of virtual servers, which is all of a small table. Only one read is complete: the next one
/// skips entries while other network namespaces have virtual servers.
fn first_page() -> String {
    let mut page = vec![0; 4096];
    let mut table = std::fs::File::open("/proc/thread-self/net/ip_vs").unwrap();
    let len = std::io::Read::read(&mut table, &mut page).unwrap();
    String::from_utf8_lossy(&page[..len]).into_owned()
}

impl Day {
    fn new() -> Self {
        let ns = Netns::new("node-a").unwrap();
        ns.ip("link add eth0 type dummy\naddr add 192.168.50.2/24 dev eth0\nlink set eth0 up").unwrap();
        let more = json!({"ipvs": {"syncPeriod": "5s"}, "conntrack": {"maxPerCore": 0}});
        let mut files = Files::new(&more, everyday());
        files.wrap("exec \"$AGENT\" \"$@\"");
        Self { ns, files, objects: everyday() }
    }

    /// A program in the place of the real one, which counts its starts in `NAME.starts` and does `text` where
    /// the file `broken` exists.
    fn break_program(&mut self, name: &str, text: &str) {
        let (broken, starts) = (self.files.path("broken"), self.files.path(&format!("{name}.starts")));
        self.files.script(
            name,
            &format!(
                "echo . >>{}\n[[ ! -e {} ]] || {{ {text}\n}}\nexec /usr/sbin/{name} \"$@\"",
                starts.display(),
                broken.display()
            ),
        );
    }

    fn set_broken(&self, broken: bool) {
        let path = self.files.path("broken");
        if broken { std::fs::write(path, "").unwrap() } else { std::fs::remove_file(path).unwrap() }
    }

    /// From now on `iptables-restore` does `text`, and has rules to restore.
    fn break_restore(&mut self, text: &str) {
        self.break_program("iptables-restore", text);
        self.set_broken(true);
        self.ns.exec(&["iptables", "-w", "-F", "KUBE-SERVICES", "-t", "nat"]).unwrap();
    }

    fn starts(&self, name: &str) -> usize {
        let text = std::fs::read_to_string(self.files.path(&format!("{name}.starts"))).unwrap_or_default();
        text.lines().count()
    }

    /// Starts an agent with the default log level.
    fn start(&self) -> Agent {
        let spec = AgentSpec {
            config: self.files.path("config.yaml"),
            objects: Some(self.files.path("objects.json")),
            binary: self.files.wrapper.clone(),
            ..AgentSpec::default()
        };
        Agent::start(&self.ns, &spec).unwrap()
    }

    /// Median time of changes of another Service from the file to the kernel.
    fn latency(&self, agent: &Agent, round: u8) -> Duration {
        let mut times: Vec<Duration> = (1..=CHANGES).map(|n| self.change(agent, round, n)).collect();
        times.sort_unstable();
        times[times.len() / 2]
    }

    fn change(&self, agent: &Agent, round: u8, n: u8) -> Duration {
        let port = [("http", "TCP", 8080)];
        let mut all = self.objects.clone();
        all.extend([
            service("other", &["10.96.0.99"], &[], &PORT),
            slice("other", &[&format!("10.244.{round}.{n}")], &port),
        ]);
        let shown = format!("0AF4{round:02X}{n:02X}:1F90");
        self.files.write(all);
        let start = Instant::now();
        while !self.ns.enter(first_page).unwrap().contains(&shown) {
            assert!(start.elapsed() < LIMIT, "{shown} does not come; {}", self.describe(agent));
            std::thread::sleep(Duration::from_millis(2));
        }
        start.elapsed()
    }

    /// What the node and the agent's threads do.
    fn describe(&self, agent: &Agent) -> String {
        let ready = self.ns.enter(|| oracle::http_get(10256, "readyz?verbose")).unwrap();
        let mut threads = String::new();
        for task in std::fs::read_dir(format!("/proc/{}/task", agent.pid())).unwrap().flatten() {
            let read = |name: &str| std::fs::read_to_string(task.path().join(name)).unwrap_or_default();
            let (name, wchan, syscall) = (read("comm"), read("wchan"), read("syscall"));
            threads += &format!("{} {} {}\n", name.trim(), wchan.trim(), syscall.trim());
        }
        let objects = std::fs::read_to_string(self.files.path("objects.json")).unwrap_or_default();
        format!(
            "readyz {ready:?}\n{}threads:\n{threads}objects: {} bytes\nlog:\n{}",
            run(&self.ns, &["ipvsadm", "-Sn"]),
            objects.len(),
            agent.log()
        )
    }

    /// Measures a good day, then a day on which `begin` made `complaint` fail from the start, and the end of
    /// that. `healthz`: its code meanwhile.
    fn compare(mut self, begin: impl Fn(&mut Self), complaint: &str, healthz: u16, end: impl Fn(&Self)) {
        let mut agent = self.start();
        wait_for("a good start", &agent, || answer(&self.ns, "readyz") == 200);
        let good = self.latency(&agent, 10);
        agent.stop().unwrap();
        begin(&mut self);
        self.files.write(self.objects.clone());
        let agent = self.start();
        wait_for(complaint, &agent, || agent.log().contains(complaint));
        wait_for("the first try of everything", &agent, || answer(&self.ns, "healthz") == healthz);
        let bad = self.latency(&agent, 20);
        assert!(bad <= good + LATER, "{complaint}: {bad:?} instead of {good:?}; log:\n{}", agent.log());
        let (cpu, lines) = (cost(agent.pid()).unwrap().ticks, agent.log().lines().count());
        let programs = self.starts("iptables-restore") + self.starts("ip6tables-save");
        std::thread::sleep(WATCHED);
        assert_eq!((answer(&self.ns, "livez"), answer(&self.ns, "healthz")), (200, healthz), "{complaint}");
        let spent = cost(agent.pid()).unwrap().ticks - cpu;
        assert!(spent < 150, "{complaint}: {spent} hundredths of a second of CPU in {WATCHED:?}");
        let more = agent.log().lines().count() - lines;
        assert!(more <= 10, "{complaint}: {more} lines in {WATCHED:?}:\n{}", agent.log());
        let programs = self.starts("iptables-restore") + self.starts("ip6tables-save") - programs;
        assert!(programs <= 12, "{complaint}: {programs} programs in {WATCHED:?}");
        end(&self);
        wait_for("the end of it", &agent, || {
            agent.log().contains("no longer failing") && answer(&self.ns, "readyz?verbose") == 200
        });
    }
}

#[test]
fn disabled_ipv6_does_not_delay_ipv4() {
    let disable = |day: &Day, value| {
        day.ns.set_sysctls(&[("net.ipv6.conf.kube-ipvs0.disable_ipv6", value)]).unwrap();
    };
    let begin = |day: &mut Day| disable(day, "1");
    Day::new().compare(begin, "IPv6 is disabled", 200, |day| disable(day, "0"));
}

#[test]
fn a_device_of_another_kind_delays_no_other_object() {
    let begin = |day: &mut Day| day.ns.ip("link del kube-ipvs0\nlink add kube-ipvs0 type bridge").unwrap();
    // No address can be bound on this node: load balancers must use other nodes.
    Day::new().compare(begin, "bridge", 503, |day| day.ns.ip("link del kube-ipvs0").unwrap());
}

/// Creates a set of another type with the name of ours, and a foreign rule that matches it.
fn misuse(day: &Day, set: &str) {
    // The kernel releases the set some time after the last rule that matched it.
    let destroy = format!("for i in $(seq 50); do ipset destroy {set} && exit; sleep 0.1; done; exit 1");
    for command in [&["sh", "-c", &destroy][..], &["ipset", "create", set, "hash:ip"]] {
        day.ns.exec(command).unwrap();
    }
    rule_over(day, set, "-I");
}

fn rule_over(day: &Day, set: &str, verb: &str) {
    let set = ["-m", "set", "--match-set", set, "src"];
    day.ns.exec(&[&["iptables", "-w", verb, "INPUT"], &set[..], &["-j", "ACCEPT"]].concat()).unwrap();
}

#[test]
fn an_ipset_of_another_type_in_use_delays_no_other_object() {
    let begin = |day: &mut Day| {
        day.ns.exec(&["iptables", "-w", "-t", "nat", "-F", "KUBE-POSTROUTING"]).unwrap();
        misuse(day, "KUBE-LOOP-BACK");
    };
    Day::new().compare(begin, "KUBE-LOOP-BACK", 503, |day| rule_over(day, "KUBE-LOOP-BACK", "-D"));
}

#[test]
fn a_failing_ipset_that_no_service_needs_keeps_the_node_healthy() {
    let set = "KUBE-NODE-PORT-LOCAL-UDP";
    Day::new().compare(|day| misuse(day, set), set, 200, |day| rule_over(day, set, "-D"));
}

#[test]
fn a_failing_iptables_restore_delays_no_other_object() {
    let begin = |day: &mut Day| day.break_restore("echo no luck >&2; exit 1;");
    Day::new().compare(begin, "no luck", 503, |day| day.set_broken(false));
}

#[test]
fn a_hanging_iptables_restore_is_killed_and_delays_no_other_object() {
    let begin = |day: &mut Day| day.break_restore("sleep 3600;");
    Day::new().compare(begin, "did not end within", 503, |day| day.set_broken(false));
}

#[test]
fn a_failing_ip6tables_save_does_not_delay_ipv4() {
    let begin = |day: &mut Day| {
        day.break_program("ip6tables-save", "echo no such table >&2; exit 1;");
        day.set_broken(true);
    };
    Day::new().compare(begin, "failed: reading IPv6 rules", 503, |day| day.set_broken(false));
}

#[test]
fn an_unwritable_sysctl_delays_no_other_object() {
    let begin = |day: &mut Day| {
        day.files.wrap(
            "exec unshare -m bash -c 'mount --bind /proc/sys /proc/sys && mount -o remount,ro,bind /proc/sys && \
             exec \"$0\" \"$@\"' \"$AGENT\" \"$@\"",
        );
        day.ns.set_sysctls(&[("net.ipv4.vs.expire_nodest_conn", "0")]).unwrap();
    };
    let end = |day: &Day| day.ns.set_sysctls(&[("net.ipv4.vs.expire_nodest_conn", "1")]).unwrap();
    Day::new().compare(begin, "expire_nodest_conn: it is 0 and must be 1", 200, end);
}

/// IPVS rejects broadcast addresses of local routes. The API server accepts them.
#[test]
fn an_endpoint_at_a_broadcast_address_is_logged_once_and_keeps_the_node_healthy() {
    let begin = |day: &mut Day| {
        day.objects.push(service("wild", &["10.96.0.50"], &[], &PORT));
        let endpoints = ["255.255.255.255", "192.168.50.255", "10.244.1.8"];
        day.objects.push(slice("wild", &endpoints, &[("http", "TCP", 8080)]));
    };
    // Without the subnet the address is no longer a broadcast address.
    let end = |day: &Day| {
        day.ns.ip("addr del 192.168.50.2/24 dev eth0\naddr add 192.168.50.2/32 dev eth0").unwrap()
    };
    Day::new().compare(begin, "192.168.50.255", 200, end);
}

/// The save began before the flush and ends after it.
#[test]
fn rules_flushed_during_a_read_are_restored() {
    let mut day = Day::new();
    let config = config("node-a", &json!({"ipvs": {"syncPeriod": "1h"}}));
    std::fs::write(day.files.path("config.yaml"), config.to_string()).unwrap();
    day.break_program("iptables-save", "text=$(/usr/sbin/iptables-save); sleep 4; echo \"$text\"; exit 0;");
    let agent = day.start();
    wait_for("a good start", &agent, || answer(&day.ns, "readyz") == 200);
    let nat = |args: &[&str]| day.ns.exec(&[&["iptables", "-w", "-t", "nat"], args].concat()).unwrap();
    let somebodys = ["PREROUTING", "-s", "192.0.2.9", "-j", "ACCEPT"];
    nat(&[&["-A"], &somebodys[..]].concat());
    // An earlier save may still run.
    std::thread::sleep(Duration::from_secs(3));
    day.set_broken(true);
    let before = day.starts("iptables-save");
    // A foreign rule is deleted: the rules are read, and nothing needs a repair.
    nat(&[&["-D"], &somebodys[..]].concat());
    wait_for("the slow reading", &agent, || day.starts("iptables-save") > before);
    std::thread::sleep(Duration::from_secs(2));
    nat(&["-F", "KUBE-SERVICES"]);
    wait_for("the rules", &agent, || run(&day.ns, &["iptables-save"]).contains("-A KUBE-SERVICES "));
}
