// SPDX-License-Identifier: Apache-2.0
//! The usual rules of kubelet, flannel, Calico, the CNI plugin portmap and a firewall beside those of the agent, in both
//! rules modes: Services work, host ports work, and no rule of another program changes.

use integration::lab::traffic::ask_tcp;
use integration::lab::{Lab, Setup, at};
use integration::objects::{ServiceBuilder, slice};
use serde_json::json;

use super::{ANSWER, PORTS, TARGETS, backend};

/// Pod 9 has the host port 80. flannel accepts the traffic of pods, which the policy drops otherwise.
const RULES: &str = r#"*mangle
:KUBE-IPTABLES-HINT - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
COMMIT
*raw
:cali-PREROUTING - [0:0]
-A PREROUTING -m comment --comment "cali:6gwbT8clXdHdC1b1" -j cali-PREROUTING
-A cali-PREROUTING -m comment --comment "cali:XFX5xbM8B9qR10JG" -j MARK --set-xmark 0x0/0xf0000
COMMIT
*nat
:FLANNEL-POSTRTG - [0:0]
:CNI-HOSTPORT-DNAT - [0:0]
:CNI-HOSTPORT-MASQ - [0:0]
:cali-POSTROUTING - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A OUTPUT -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A POSTROUTING -m comment --comment "cali:O3lYWMrLQYEMJtB5" -j cali-POSTROUTING
-A POSTROUTING -m comment --comment "CNI portfwd requiring masquerade" -j CNI-HOSTPORT-MASQ
-A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG
-A CNI-HOSTPORT-DNAT -p tcp -m comment --comment "dnat name: \"cbr0\"" -m tcp --dport 80 -j DNAT --to-destination 10.244.1.9:8080
-A CNI-HOSTPORT-MASQ -m mark --mark 0x2000/0x2000 -j MASQUERADE
-A FLANNEL-POSTRTG -s 10.244.0.0/16 -d 10.244.0.0/16 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.244.0.0/16 ! -d 224.0.0.0/4 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
-A FLANNEL-POSTRTG ! -s 10.244.0.0/16 -d 10.244.1.0/24 -m comment --comment "flanneld masq" -j RETURN
COMMIT
*filter
:FORWARD DROP [0:0]
:KUBE-FIREWALL - [0:0]
:FLANNEL-FWD - [0:0]
:cali-FORWARD - [0:0]
-A INPUT -j KUBE-FIREWALL
-A OUTPUT -j KUBE-FIREWALL
-A FORWARD -m comment --comment "cali:wUHhoiAYhphO9Mso" -j cali-FORWARD
-A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD
-A cali-FORWARD -m comment --comment "cali:vjrMJCRpqwy5oRoX" -j MARK --set-xmark 0x0/0xe0000
-A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP
-A FLANNEL-FWD -s 10.244.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT
-A FLANNEL-FWD -d 10.244.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT
COMMIT
"#;

const FIREWALL: &str = "table inet firewall {
    chain input { type filter hook input priority 10; policy accept; tcp dport 9999 drop; }
    chain forward { type filter hook forward priority 10; policy accept; ct state invalid drop; }
    }";

/// An `ACCEPT` in the rules of iptables does not stop such a chain.
const REDIRECT: &str = "table inet port81 {
    chain prerouting { type nat hook prerouting priority -90; tcp dport 80 redirect to :81; }
    }";

fn services_work_beside(mode: &str) {
    let lab = Lab::new().unwrap();
    let node = lab.node("node-a").unwrap();
    let client = lab.client("outside").unwrap();
    client.route("198.51.100.0/24", &node.host).unwrap();
    let (pod, host_port, asker) = (node.pod(5).unwrap(), node.pod(9).unwrap(), node.pod(7).unwrap());
    let (_web, _host) = (backend(&pod, "web"), backend(&host_port, "host"));
    node.ns().exec_with(&["iptables-restore", "--noflush"], Some(RULES)).unwrap();
    node.ns().exec_with(&["nft", "-f", "-"], Some(FIREWALL)).unwrap();
    if mode == "nftables" {
        node.ns().exec_with(&["nft", "-f", "-"], Some(REDIRECT)).unwrap();
    }
    let foreign = || -> Vec<String> {
        let saved = node.ns().exec(&["iptables-save"]).unwrap().stdout;
        let ours = |line: &str| line.contains("kube-proxy") || line.contains("kubernetes");
        let rules = saved.lines().filter(|line| line.starts_with("-A") && !line.starts_with("-A KUBE-"));
        rules.filter(|line| !ours(line)).map(str::to_owned).collect()
    };
    let before = (foreign(), node.ns().exec(&["nft", "list", "table", "inet", "firewall"]).unwrap().stdout);
    let web = ServiceBuilder::new("web", &["10.96.0.10"], &PORTS[..1])
        .external_ips(&["198.51.100.10"])
        .node_ports(&[30080]);
    let objects = vec![web.build(), slice("web", &["10.244.1.5@node-a"], &TARGETS[..1])];
    let setup = Setup::start(&node, &json!({"kubeIPVS": {"rules": mode}}), objects).unwrap();
    setup.wait_bound(&["10.96.0.10", "198.51.100.10"]).unwrap();
    for (from, to, port, name) in [
        (&asker.ns, "10.96.0.10", 80, "web"),
        (node.ns(), "10.96.0.10", 80, "web"),
        (&pod.ns, "10.96.0.10", 80, "web"),
        (&asker.ns, "198.51.100.10", 80, "web"),
        (&client.ns, "198.51.100.10", 80, "web"),
        (&client.ns, "192.168.50.2", 30080, "web"),
        (&client.ns, "192.168.50.2", 80, "host"),
    ] {
        let answer = ask_tcp(from, at(to, port), ANSWER);
        let answer = answer.unwrap_or_else(|error| panic!("from {} to {to}:{port}: {error}", from.name()));
        assert_eq!(answer.name, name, "from {} to {to}:{port}", from.name());
    }
    let after = (foreign(), node.ns().exec(&["nft", "list", "table", "inet", "firewall"]).unwrap().stdout);
    assert_eq!(before, after);
}

#[test]
fn services_work_beside_the_rules_of_others_with_iptables() {
    services_work_beside("iptables");
}

#[test]
fn services_work_beside_the_rules_of_others_with_nftables() {
    services_work_beside("nftables");
}
