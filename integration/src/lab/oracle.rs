// SPDX-License-Identifier: Apache-2.0
//! The kernel state of a namespace, as the output of the kernel's tools.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use super::netns::Netns;
use super::nft_table;
use crate::objects::in_nftables;
use crate::parity::Subsystem;

/// Limit for an answer of a health endpoint.
const HTTP_LIMIT: Duration = Duration::from_secs(20);

/// The raw state of one subsystem. `expected` is its recording: it names the sysctls, or the ports and
/// paths of the health servers to read.
///
/// # Errors
/// When a tool is missing or fails.
pub fn raw(ns: &Netns, subsystem: Subsystem, expected: &str) -> Result<String> {
    let command: &[&str] = match subsystem {
        Subsystem::Ipvs => &["ipvsadm", "-Sn"],
        // Without the device both programs fail, and the state is empty.
        Subsystem::Addrs => return optional(ns, &["ip", "-o", "addr", "show", "dev", "kube-ipvs0"]),
        Subsystem::Link => return optional(ns, &["ip", "-d", "link", "show", "dev", "kube-ipvs0"]),
        Subsystem::Ipset => return sets(ns),
        Subsystem::Iptables => &["iptables-save"],
        Subsystem::Ip6tables => &["ip6tables-save"],
        Subsystem::Timeouts => &["ipvsadm", "-Ln", "--timeout"],
        Subsystem::Sysctl => return sysctls(ns, expected),
        Subsystem::Health => return health(ns, expected),
    };
    Ok(ns.exec(command)?.stdout)
}

/// Writes the raw state into `folder`, one `NAME.raw` per subsystem.
///
/// # Errors
/// When a tool fails or a file cannot be written.
pub fn dump(ns: &Netns, folder: &Path, wanted: &[(Subsystem, &str)]) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    for (subsystem, expected) in wanted {
        let path = folder.join(format!("{}.raw", subsystem.name()));
        fs::write(&path, raw(ns, *subsystem, expected)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// The sets, as `ipset save` prints them, in either rules mode.
///
/// # Errors
/// When a tool is missing or fails.
pub fn sets(ns: &Netns) -> Result<String> {
    if in_nftables() {
        return nft_table::sets(ns);
    }
    Ok(ns.exec(&["ipset", "save"])?.stdout)
}

/// The agent's rules, in either rules mode: a line for each.
///
/// # Errors
/// When a tool is missing or fails.
pub fn rules(ns: &Netns) -> Result<Vec<String>> {
    if in_nftables() {
        return nft_table::rules(ns);
    }
    let mut rules = Vec::new();
    for program in ["iptables-save", "ip6tables-save"] {
        let text = ns.exec(&[program])?.stdout;
        let own = text.lines().filter(|line| line.starts_with("-A") && line.contains("KUBE-"));
        rules.extend(own.map(|line| format!("{program}: {line}")));
    }
    Ok(rules)
}

fn optional(ns: &Netns, command: &[&str]) -> Result<String> {
    Ok(ns.try_exec(command, None)?.stdout)
}

/// What `sysctl -e NAMES` prints, without starting it: names that the kernel lacks are left out.
fn sysctls(ns: &Netns, expected: &str) -> Result<String> {
    let names: Vec<&str> = expected.lines().filter_map(|line| line.split(" = ").next()).collect();
    ns.enter(|| {
        let mut text = String::new();
        for name in names {
            let path = Path::new("/proc/sys").join(name.replace('.', "/"));
            if let Ok(value) = fs::read_to_string(path) {
                text.push_str(&format!("{name} = {}\n", value.trim_end()));
            }
        }
        text
    })
}

/// A line `## PORT/PATH` and the HTTP answer, for each port and path of the recording.
fn health(ns: &Netns, expected: &str) -> Result<String> {
    let mut text = String::new();
    for place in expected.lines().filter_map(|line| line.split(' ').next()) {
        let (port, path) = place.split_once('/').context("PORT/PATH in a health recording")?;
        let port = port.parse().with_context(|| format!("port of {place}"))?;
        // No answer is also a state.
        let answer = ns.enter(|| http_get(port, path))?.unwrap_or_default();
        text.push_str(&format!("## {place}\n{answer}\n"));
    }
    Ok(text)
}

/// The whole answer to `GET /PATH` from a port of this thread's loopback.
///
/// # Errors
/// If there is no answer.
pub fn http_get(port: u16, path: &str) -> std::io::Result<String> {
    http(SocketAddr::from((Ipv4Addr::LOCALHOST, port)), "GET", path, "")
}

/// The whole answer to `METHOD /PATH` with a body, from this thread's network namespace.
///
/// # Errors
/// If there is no answer.
pub fn http(address: SocketAddr, method: &str, path: &str, body: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, HTTP_LIMIT)?;
    stream.set_read_timeout(Some(HTTP_LIMIT))?;
    let length = body.len();
    stream.write_all(
        format!(
            "{method} /{path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
        )
        .as_bytes(),
    )?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
