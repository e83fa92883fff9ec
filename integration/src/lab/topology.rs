// SPDX-License-Identifier: Apache-2.0
//! Nodes, pods and clients, joined by veth pairs.
//!
//! ```text
//!   pod 10.244.1.5 -- node-a 192.168.50.2 --+
//!   pod 10.244.2.6 -- node-b 192.168.50.3 --+-- br0 192.168.50.1
//!                     client 192.168.50.100 +
//! ```
//! IPv6 is alike: `fd00:244:N::x` for pods, `fd00:50::x` for the rest. Pods are routed, not bridged, so
//! that nothing depends on `bridge-nf-call-iptables`; each node is its pods' gateway.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicU8, Ordering};

use anyhow::{Result, ensure};

use super::netns::Netns;

/// Number of nodes to whose pods routes exist from the start.
const MAX_NODES: u8 = 8;

/// The network between nodes: a bridge in a namespace of its own, and its address `.1`.
#[derive(Debug)]
pub struct Lab {
    bridge: Netns,
    nodes: AtomicU8,
    clients: AtomicU8,
}

/// A host with a namespace and one address of each family.
#[derive(Debug)]
pub struct Host {
    /// Its namespace.
    pub ns: Netns,
    /// Its IPv4 address, on `eth0`.
    pub v4: Ipv4Addr,
    /// Its IPv6 address, on `eth0`.
    pub v6: Ipv6Addr,
}

/// A node: forwards, and is the gateway of its pods.
#[derive(Debug)]
pub struct Node {
    /// Its namespace and addresses.
    pub host: Host,
    /// Its name.
    pub name: String,
    /// Which node it is, from 1: its pods are 10.244.N.0/24 and fd00:244:N::/64.
    pub number: u8,
}

/// A pod.
pub type Pod = Host;

/// The node of the recordings, and the gateway of its default routes.
#[derive(Debug)]
pub struct ConformanceNode {
    /// The node's namespace.
    pub ns: Netns,
    /// The other end of `eth0`: 192.168.50.1 and fd00:50::1.
    pub gateway: Netns,
}

/// Sysctls of namespaces that forward traffic, as a network plugin sets them.
fn prepare(ns: &Netns, forward: bool) -> Result<()> {
    ns.set_sysctls(&[
        // New namespaces inherit defaults of the machine: these values are the same everywhere.
        ("net.ipv4.conf.all.rp_filter", "0"),
        ("net.ipv4.conf.default.rp_filter", "0"),
        ("net.ipv4.conf.all.send_redirects", "0"),
        ("net.ipv4.conf.default.send_redirects", "0"),
        // Forwarded IPv6 needs a link-local address for neighbour solicitations.
        ("net.ipv6.conf.all.addr_gen_mode", "0"),
        ("net.ipv6.conf.default.addr_gen_mode", "0"),
        // The kernel limits ICMP errors to six in a row and then one per second: tests need more.
        ("net.ipv4.icmp_ratelimit", "0"),
        ("net.ipv6.icmp.ratelimit", "0"),
    ])?;
    let value = if forward { "1" } else { "0" };
    ns.set_sysctls(&[("net.ipv4.ip_forward", value), ("net.ipv6.conf.all.forwarding", value)])
}

fn node_v4(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 168, 50, number + 1)
}

/// An IPv6 address whose last part reads like the decimal number: `fd00:50::10` for 10.
fn v6(prefix: [u16; 3], host: u8) -> Ipv6Addr {
    let host = u16::from(host);
    let digits = ((host / 100) << 8) | ((host / 10 % 10) << 4) | (host % 10);
    Ipv6Addr::new(prefix[0], prefix[1], prefix[2], 0, 0, 0, 0, digits)
}

fn outer_v6(host: u8) -> Ipv6Addr {
    v6([0xfd00, 0x50, 0], host)
}

impl Lab {
    /// An empty network.
    ///
    /// # Errors
    /// When the kernel refuses (root is needed).
    pub fn new() -> Result<Self> {
        let bridge = Netns::new("bridge")?;
        prepare(&bridge, true)?;
        bridge.ip("link add br0 type bridge forward_delay 0\n\
                   link set br0 up\n\
                   addr add 192.168.50.1/24 dev br0\n\
                   addr add fd00:50::1/64 dev br0 nodad")?;
        // Absent when br_netfilter is not loaded.
        let _ = bridge.set_sysctls(&[
            ("net.bridge.bridge-nf-call-iptables", "0"),
            ("net.bridge.bridge-nf-call-ip6tables", "0"),
        ]);
        bridge.ip(&(1..=MAX_NODES).map(pod_routes).collect::<String>())?;
        Ok(Self { bridge, nodes: AtomicU8::new(0), clients: AtomicU8::new(0) })
    }

    /// The namespace of the bridge.
    pub fn bridge(&self) -> &Netns {
        &self.bridge
    }

    /// Another node: the first is 192.168.50.2 with pods in 10.244.1.0/24, and so on.
    ///
    /// # Errors
    /// When the kernel refuses, or there are too many nodes.
    pub fn node(&self, name: &str) -> Result<Node> {
        let number = self.nodes.fetch_add(1, Ordering::Relaxed) + 1;
        ensure!(number <= MAX_NODES, "no more than {MAX_NODES} nodes in a lab");
        let host = self.join(name, true, number + 1)?;
        let others: String = (1..=MAX_NODES).filter(|other| *other != number).map(pod_routes).collect();
        host.ns.ip(&others)?;
        Ok(Node { host, name: name.to_owned(), number })
    }

    /// A machine outside the cluster, from 192.168.50.100. It has no route to Services; see
    /// [`Host::route`].
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn client(&self, name: &str) -> Result<Host> {
        let number = self.clients.fetch_add(1, Ordering::Relaxed);
        ensure!(number < 100, "no more than 100 clients in a lab");
        self.join(name, false, 100 + number)
    }

    /// A namespace on the bridge with 192.168.50.`host` and fd00:50::`host`.
    fn join(&self, name: &str, forward: bool, host: u8) -> Result<Host> {
        let ns = Netns::new(name)?;
        prepare(&ns, forward)?;
        let (v4, v6) = (Ipv4Addr::new(192, 168, 50, host), outer_v6(host));
        self.bridge.ip(&format!(
            "link add port{host} type veth peer name eth0 netns {}\n\
             link set port{host} master br0 up",
            ns.name()
        ))?;
        ns.ip(&format!(
            "addr add {v4}/24 dev eth0\n\
             addr add {v6}/64 dev eth0 nodad\n\
             link set eth0 up\n\
             route add default via 192.168.50.1\n\
             route add ::/0 via fd00:50::1"
        ))?;
        Ok(Host { ns, v4, v6 })
    }
}

/// `ip` commands that route the pods of a node through it.
fn pod_routes(node: u8) -> String {
    format!(
        "route add 10.244.{node}.0/24 via {}\nroute add {}/64 via {}\n",
        node_v4(node),
        v6([0xfd00, 0x244, u16::from(node)], 0),
        outer_v6(node + 1)
    )
}

impl Host {
    /// Sends packets for `network` (either family) to `via`, for example a Service range to a node.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn route(&self, network: &str, via: &Host) -> Result<()> {
        if network.contains(':') {
            self.ns.ip(&format!("route replace {network} via {}", via.v6))
        } else {
            self.ns.ip(&format!("route replace {network} via {}", via.v4))
        }
    }
}

impl Node {
    /// Its namespace.
    pub fn ns(&self) -> &Netns {
        &self.host.ns
    }

    /// A pod on this node with 10.244.N.`host` and fd00:244:N::`host` (2 to 250).
    ///
    /// # Errors
    /// When the kernel refuses, or the pod is there already.
    pub fn pod(&self, host: u8) -> Result<Pod> {
        ensure!((2..=250).contains(&host), "no pod with number {host}");
        let number = self.number;
        let prefix = [0xfd00, 0x244, u16::from(number)];
        let (v4, pod_v6) = (Ipv4Addr::new(10, 244, number, host), v6(prefix, host));
        let (gate4, gate6) = (Ipv4Addr::new(10, 244, number, 1), v6(prefix, 1));
        let ns = Netns::new(&format!("pod-{number}-{host}"))?;
        prepare(&ns, false)?;
        self.ns().ip(&format!(
            "link add pod{host} type veth peer name eth0 netns {}\n\
             addr add {gate4}/32 dev pod{host}\n\
             addr add {gate6}/128 dev pod{host} nodad\n\
             link set pod{host} up\n\
             route add {v4}/32 dev pod{host}\n\
             route add {pod_v6}/128 dev pod{host}",
            ns.name()
        ))?;
        ns.ip(&format!(
            "addr add {v4}/32 dev eth0\n\
             addr add {pod_v6}/128 dev eth0 nodad\n\
             link set eth0 up\n\
             route add {gate4}/32 dev eth0\n\
             route add default via {gate4} src {v4}\n\
             route add {gate6}/128 dev eth0\n\
             route add ::/0 via {gate6} src {pod_v6}"
        ))?;
        Ok(Pod { ns, v4, v6: pod_v6 })
    }
}

/// The node of the recordings: `eth0` with 192.168.50.2/24 and fd00:50::2/64 and default routes, `eth1`,
/// a dummy device, with 10.77.0.5/16, and no IPv6 link-local addresses.
///
/// # Errors
/// When the kernel refuses (root is needed).
pub fn conformance_node() -> Result<ConformanceNode> {
    let gateway = Netns::new("gateway")?;
    let ns = Netns::new("node-a")?;
    gateway.ip(&format!(
        "link add node type veth peer name eth0 netns {}\n\
         addr add 192.168.50.1/24 dev node\n\
         addr add fd00:50::1/64 dev node nodad\n\
         link set node up",
        ns.name()
    ))?;
    ns.ip("link add eth1 type dummy\n\
           addr add 192.168.50.2/24 dev eth0\n\
           addr add fd00:50::2/64 dev eth0 nodad\n\
           addr add 10.77.0.5/16 dev eth1\n\
           link set eth0 up\n\
           link set eth1 up\n\
           route add default via 192.168.50.1\n\
           route add ::/0 via fd00:50::1")?;
    Ok(ConformanceNode { ns, gateway })
}
