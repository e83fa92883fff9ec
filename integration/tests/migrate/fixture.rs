// SPDX-License-Identifier: Apache-2.0
//! Nodes with the state of kube-proxy's modes and of unrelated programs. The names, rules and sizes are
//! those of kube-proxy; the hashes in chain names are made up.

use integration::lab::Netns;

use super::{EXTERNAL, NODE, NODE_PORT, VIP};

/// Programs, networks and words of one family.
struct Family {
    index: usize,
    restore: &'static str,
    host: &'static str,
    pods: &'static str,
    endpoints: [&'static str; 2],
    none: &'static str,
    loopback: &'static str,
    reject: &'static str,
    sets: &'static str,
    inet: &'static str,
}

const FAMILIES: [Family; 2] = [
    Family {
        index: 0,
        restore: "iptables-restore",
        host: "/32",
        pods: "10.244.0.0/16",
        endpoints: ["10.244.1.5", "10.244.2.6"],
        none: "10.96.0.11",
        loopback: "127.0.0.0/8",
        reject: "icmp-port-unreachable",
        sets: "KUBE-",
        inet: "inet",
    },
    Family {
        index: 1,
        restore: "ip6tables-restore",
        host: "/128",
        pods: "fd00:244::/32",
        endpoints: ["fd00:244:1::5", "fd00:244:2::6"],
        none: "fd00:96::11",
        loopback: "::1/128",
        reject: "icmp6-port-unreachable",
        sets: "KUBE-6-",
        inet: "inet6",
    },
];

fn place(address: &str, port: u16) -> String {
    if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
}

fn restore(ns: &Netns, family: &Family, text: &str) {
    ns.exec_with(&[family.restore, "--noflush"], Some(text)).unwrap();
}

/// What the kubelet, an operator and another load balancer have on the node.
pub fn others(ns: &Netns) {
    for family in &FAMILIES {
        let loopback = family.loopback;
        restore(
            ns,
            family,
            &format!(
                "*mangle\n:KUBE-IPTABLES-HINT - [0:0]\n:KUBE-KUBELET-CANARY - [0:0]\nCOMMIT\n\
             *nat\n:KUBE-KUBELET-CANARY - [0:0]\n:KUBE-MARK-DROP - [0:0]\n:MINE - [0:0]\n\
             -A PREROUTING -j MINE\n-A KUBE-MARK-DROP -j MARK --set-xmark 0x8000/0x8000\nCOMMIT\n\
             *filter\n:KUBE-FIREWALL - [0:0]\n:MINE - [0:0]\n-A INPUT -j KUBE-FIREWALL\n\
             -A OUTPUT -j KUBE-FIREWALL\n-A INPUT -j MINE\n\
             -A KUBE-FIREWALL ! -s {loopback} -d {loopback} -m comment --comment \"block incoming localnet \
             connections\" -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP\nCOMMIT\n"
            ),
        );
    }
    ns.exec_with(&["ipset", "restore"], Some("create mine hash:ip maxelem 65536\nadd mine 192.0.2.1\n"))
        .unwrap();
    let server = "-A -t 192.0.2.7:80 -s wlc\n-a -t 192.0.2.7:80 -r 192.0.2.8:80 -m -w 3\n";
    ns.exec_with(&["ipvsadm", "-R"], Some(server)).unwrap();
}

/// The rules of the iptables mode for the objects of these tests. `fresh`: its jumps are not there yet.
pub fn iptables_mode(ns: &Netns, fresh: bool) {
    for family in &FAMILIES {
        let text = filter_of_iptables_mode(family) + &nat_of_iptables_mode(family, fresh);
        restore(ns, family, &text);
    }
}

fn filter_of_iptables_mode(f: &Family) -> String {
    let (none, host, reject) = (f.none, f.host, f.reject);
    format!(
        r#"*mangle
:KUBE-PROXY-CANARY - [0:0]
COMMIT
*filter
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-PROXY-CANARY - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
:KUBE-SERVICES - [0:0]
-I INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes externally-visible service portals" -j KUBE-EXTERNAL-SERVICES
-I INPUT -m comment --comment "kubernetes health check service ports" -j KUBE-NODEPORTS
-I INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-I FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes externally-visible service portals" -j KUBE-EXTERNAL-SERVICES
-I FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-I FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-I FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-I OUTPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-I OUTPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding rules" -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding conntrack rule" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A KUBE-SERVICES -d {none}{host} -p tcp -m comment --comment "test/none:http has no endpoints" -m tcp --dport 80 -j REJECT --reject-with {reject}
COMMIT
"#
    )
}

fn nat_of_iptables_mode(f: &Family, fresh: bool) -> String {
    let (host, pods, [near, far]) = (f.host, f.pods, f.endpoints);
    let (vip, external) = (VIP[f.index], EXTERNAL[f.index]);
    let jumps = r#"-I PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-I OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-I POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
"#;
    let jumps = if fresh { jumps } else { "" };
    let sep = |name: &str, address: &str| {
        let to = place(address, 8080);
        format!(
            "-A KUBE-SEP-{name} -s {address}{host} -m comment --comment \"test/web:http\" -j KUBE-MARK-MASQ\n\
             -A KUBE-SEP-{name} -p tcp -m comment --comment \"test/web:http\" -m tcp -j DNAT --to-destination {to}\n"
        )
    };
    let seps = sep("NEARNEARNEARNEAR", near) + &sep("FARFARFARFARFARF", far);
    format!(
        r#"*nat
:KUBE-EXT-WEBWEBWEBWEBWEBW - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-PROXY-CANARY - [0:0]
:KUBE-SEP-FARFARFARFARFARF - [0:0]
:KUBE-SEP-NEARNEARNEARNEAR - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-WEBWEBWEBWEBWEBW - [0:0]
{jumps}-A KUBE-EXT-WEBWEBWEBWEBWEBW -m comment --comment "masquerade traffic for test/web:http external destinations" -j KUBE-MARK-MASQ
-A KUBE-EXT-WEBWEBWEBWEBWEBW -j KUBE-SVC-WEBWEBWEBWEBWEBW
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-NODEPORTS -p tcp -m comment --comment "test/web:http" -m tcp --dport {NODE_PORT} -j KUBE-EXT-WEBWEBWEBWEBWEBW
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully
{seps}-A KUBE-SERVICES -d {vip}{host} -p tcp -m comment --comment "test/web:http cluster IP" -m tcp --dport 80 -j KUBE-SVC-WEBWEBWEBWEBWEBW
-A KUBE-SERVICES -d {external}{host} -p tcp -m comment --comment "test/web:http external IP" -m tcp --dport 80 -j KUBE-EXT-WEBWEBWEBWEBWEBW
-A KUBE-SERVICES -m comment --comment "kubernetes service nodeports; NOTE: this must be the last rule in this chain" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
-A KUBE-SVC-WEBWEBWEBWEBWEBW ! -s {pods} -d {vip}{host} -p tcp -m comment --comment "test/web:http cluster IP" -m tcp --dport 80 -j KUBE-MARK-MASQ
-A KUBE-SVC-WEBWEBWEBWEBWEBW -m comment --comment "test/web:http" -m statistic --mode random --probability 0.50000000000 -j KUBE-SEP-NEARNEARNEARNEAR
-A KUBE-SVC-WEBWEBWEBWEBWEBW -m comment --comment "test/web:http" -j KUBE-SEP-FARFARFARFARFARF
COMMIT
"#
    )
}

/// The device, servers, sets and rules of the ipvs mode, written in kube-proxy's own order.
pub fn ipvs_mode(ns: &Netns) {
    let mut links = "link add kube-ipvs0 type dummy\n".to_owned();
    let (mut sets, mut servers) = (String::new(), String::new());
    for f in &FAMILIES {
        let addresses = [VIP[f.index], f.none, EXTERNAL[f.index]];
        for address in addresses {
            links.push_str(&format!("addr add {address}{} dev kube-ipvs0\n", f.host));
        }
        sets.push_str(&sets_of_ipvs_mode(f, &addresses));
        let ports = [(VIP[f.index], 80), (EXTERNAL[f.index], 80), (NODE[f.index], NODE_PORT)];
        for (address, port) in ports {
            let server = place(address, port);
            servers.push_str(&format!("-A -t {server} -s rr\n"));
            for endpoint in f.endpoints {
                servers.push_str(&format!("-a -t {server} -r {} -m -w 1\n", place(endpoint, 8080)));
            }
        }
        servers.push_str(&format!("-A -t {} -s rr\n", place(f.none, 80)));
    }
    ns.exec_with(&["ipset", "restore"], Some(&sets)).unwrap();
    for f in &FAMILIES {
        restore(ns, f, &rules_of_ipvs_mode(f));
    }
    ns.ip(&links).unwrap();
    ns.exec_with(&["ipvsadm", "-R"], Some(&servers)).unwrap();
    // kube-proxy sets them in its own namespace, which is the node's.
    ns.set_sysctls(&[("net.ipv4.vs.conntrack", "1")]).unwrap();
}

fn sets_of_ipvs_mode(f: &Family, addresses: &[&str; 3]) -> String {
    let mut text = String::new();
    let hash = |kind: &str| format!("{kind} family {} hashsize 1024 maxelem 65536", f.inet);
    let port = "bitmap:port range 0-65535".to_owned();
    let kinds = [
        ("LOOP-BACK", hash("hash:ip,port,ip")),
        ("CLUSTER-IP", hash("hash:ip,port")),
        ("EXTERNAL-IP", hash("hash:ip,port")),
        ("EXTERNAL-IP-LOCAL", hash("hash:ip,port")),
        ("LOAD-BALANCER", hash("hash:ip,port")),
        ("LOAD-BALANCER-FW", hash("hash:ip,port")),
        ("LOAD-BALANCER-LOCAL", hash("hash:ip,port")),
        ("LOAD-BALANCER-SOURCE-IP", hash("hash:ip,port,ip")),
        ("LOAD-BALANCER-SOURCE-CIDR", hash("hash:ip,port,net")),
        ("NODE-PORT-TCP", port.clone()),
        ("NODE-PORT-LOCAL-TCP", port.clone()),
        ("NODE-PORT-UDP", port.clone()),
        ("NODE-PORT-LOCAL-UDP", port.clone()),
        ("NODE-PORT-SCTP-HASH", hash("hash:ip,port")),
        ("NODE-PORT-LOCAL-SCTP-HASH", hash("hash:ip,port")),
        ("HEALTH-CHECK-NODE-PORT", port),
        ("IPVS-IPS", hash("hash:ip")),
    ];
    let name = |kind: &str| {
        let mut name = format!("{}{kind}", f.sets);
        name.truncate(31);
        name
    };
    for (kind, made) in kinds {
        text.push_str(&format!("create {} {made}\n", name(kind)));
    }
    let near = f.endpoints[0];
    text.push_str(&format!("add {} {near},tcp:8080,{near}\n", name("LOOP-BACK")));
    for address in [VIP[f.index], f.none] {
        text.push_str(&format!("add {} {address},tcp:80\n", name("CLUSTER-IP")));
    }
    text.push_str(&format!("add {} {},tcp:80\n", name("EXTERNAL-IP"), EXTERNAL[f.index]));
    text.push_str(&format!("add {} {NODE_PORT}\n", name("NODE-PORT-TCP")));
    for address in addresses {
        text.push_str(&format!("add {} {address}\n", name("IPVS-IPS")));
    }
    text
}

fn rules_of_ipvs_mode(f: &Family) -> String {
    let (set, loopback, pods, reject) = (f.sets, f.loopback, f.pods, f.reject);
    format!(
        r#"*nat
:KUBE-LOAD-BALANCER - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-NODE-PORT - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-SERVICES - [0:0]
-I OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-I PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-I POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-LOAD-BALANCER -j KUBE-MARK-MASQ
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-NODE-PORT -p tcp -m comment --comment "Kubernetes nodeport TCP port for masquerade purpose" -m set --match-set {set}NODE-PORT-TCP dst -j KUBE-MARK-MASQ
-A KUBE-POSTROUTING -m comment --comment "Kubernetes endpoints dst ip:port, source ip for solving hairpin purpose" -m set --match-set {set}LOOP-BACK dst,dst,src -j MASQUERADE
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully
-A KUBE-SERVICES -s {loopback} -j RETURN
-A KUBE-SERVICES ! -s {pods} -m comment --comment "Kubernetes service cluster ip + port for masquerade purpose" -m set --match-set {set}CLUSTER-IP dst,dst -j KUBE-MARK-MASQ
-A KUBE-SERVICES -m comment --comment "Kubernetes service external ip + port for masquerade and filter purpose" -m set --match-set {set}EXTERNAL-IP dst,dst -j KUBE-MARK-MASQ
-A KUBE-SERVICES -m comment --comment "Kubernetes service external ip + port for masquerade and filter purpose" -m set --match-set {set}EXTERNAL-IP dst,dst -m physdev ! --physdev-is-in -m addrtype ! --src-type LOCAL -j ACCEPT
-A KUBE-SERVICES -m comment --comment "Kubernetes service external ip + port for masquerade and filter purpose" -m set --match-set {set}EXTERNAL-IP dst,dst -m addrtype --dst-type LOCAL -j ACCEPT
-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODE-PORT
-A KUBE-SERVICES -m set --match-set {set}CLUSTER-IP dst,dst -j ACCEPT
COMMIT
*filter
:KUBE-FORWARD - [0:0]
:KUBE-IPVS-FILTER - [0:0]
:KUBE-IPVS-OUT-FILTER - [0:0]
:KUBE-NODE-PORT - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
:KUBE-SOURCE-RANGES-FIREWALL - [0:0]
-I FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-I INPUT -m comment --comment "kubernetes health check rules" -j KUBE-NODE-PORT
-I INPUT -m comment --comment "kube-proxy firewall rules" -j KUBE-PROXY-FIREWALL
-I FORWARD -m comment --comment "kube-proxy firewall rules" -j KUBE-PROXY-FIREWALL
-I INPUT -m comment --comment "kubernetes ipvs access filter" -j KUBE-IPVS-FILTER
-I OUTPUT -m comment --comment "kubernetes ipvs access filter" -j KUBE-IPVS-OUT-FILTER
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding rules" -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding conntrack rule" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A KUBE-IPVS-FILTER -m set --match-set {set}LOAD-BALANCER dst,dst -j RETURN
-A KUBE-IPVS-FILTER -m set --match-set {set}CLUSTER-IP dst,dst -j RETURN
-A KUBE-IPVS-FILTER -m set --match-set {set}EXTERNAL-IP dst,dst -j RETURN
-A KUBE-IPVS-FILTER -m set --match-set {set}EXTERNAL-IP-LOCAL dst,dst -j RETURN
-A KUBE-IPVS-FILTER -m set --match-set {set}HEALTH-CHECK-NODE-PORT dst -j RETURN
-A KUBE-IPVS-FILTER -m conntrack --ctstate NEW -m set --match-set {set}IPVS-IPS dst -j REJECT --reject-with {reject}
-A KUBE-NODE-PORT -m comment --comment "Kubernetes health check node port" -m set --match-set {set}HEALTH-CHECK-NODE-PORT dst -j ACCEPT
-A KUBE-SOURCE-RANGES-FIREWALL -j DROP
COMMIT
"#
    )
}

/// The table of the nftables mode, with the ClusterIPs of these tests.
pub fn nftables_mode(ns: &Netns) {
    let mut text = "table ip mine {\n}\n".to_owned();
    for f in &FAMILIES {
        let (ip, address) = if f.index == 0 { ("ip", "ipv4_addr") } else { ("ip6", "ipv6_addr") };
        let (vip, pods, [near, far]) = (VIP[f.index], f.pods, f.endpoints);
        let (to_near, to_far) = (place(near, 8080), place(far, 8080));
        text.push_str(&format!(
            "table {ip} kube-proxy {{
  comment \"rules for kube-proxy\"
  map service-ips {{
    type {address} . inet_proto . inet_service : verdict
    elements = {{ {vip} . tcp . 80 : goto service-WEB-test/web/tcp/http }}
  }}
  chain mark-for-masquerade {{ mark set mark or 0x4000; }}
  chain masquerading {{
    mark and 0x4000 == 0 return
    mark set mark xor 0x4000
    masquerade fully-random
  }}
  chain endpoint-NEAR {{
    {ip} saddr {near} jump mark-for-masquerade
    meta l4proto tcp dnat to {to_near}
  }}
  chain endpoint-FAR {{
    {ip} saddr {far} jump mark-for-masquerade
    meta l4proto tcp dnat to {to_far}
  }}
  chain service-WEB-test/web/tcp/http {{
    {ip} daddr {vip} tcp dport 80 {ip} saddr != {pods} jump mark-for-masquerade
    numgen random mod 2 vmap {{ 0 : goto endpoint-NEAR, 1 : goto endpoint-FAR }}
  }}
  chain services {{ {ip} daddr . meta l4proto . th dport vmap @service-ips; }}
  chain nat-prerouting {{ type nat hook prerouting priority dstnat; jump services; }}
  chain nat-output {{ type nat hook output priority -100; jump services; }}
  chain nat-postrouting {{ type nat hook postrouting priority srcnat; jump masquerading; }}
}}
"
        ));
    }
    ns.exec_with(&["nft", "-f", "-"], Some(&text)).unwrap();
}
