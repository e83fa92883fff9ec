// SPDX-License-Identifier: Apache-2.0
//! The connections that IPVS knows (`/proc/net/ip_vs_conn`), as `ipvsadm -Lnc` prints them, or as JSON.

use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::Context;

use super::filter::Filter;
use super::owners::ServiceOwners;
use crate::core::model::{Protocol, VsKey};
use crate::words;

const FILE: &str = "/proc/net/ip_vs_conn";

/// A connection through a virtual server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IpvsConnection {
    /// `TCP`, `UDP`, `SCTP`; `IP` for a persistence template of a firewall mark.
    pub protocol: String,
    pub client: SocketAddr,
    pub vip: SocketAddr,
    pub real_server: SocketAddr,
    pub state: String,
    /// Seconds until it is forgotten if no packet comes.
    pub expires: u64,
}

impl IpvsConnection {
    /// Reads a line after the title of the file.
    pub fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split_ascii_whitespace();
        let protocol = fields.next()?.to_owned();
        let mut address = || {
            let (addr, port) = (address(fields.next()?)?, u16::from_str_radix(fields.next()?, 16).ok()?);
            Some(SocketAddr::new(addr, port))
        };
        let (client, vip, real_server) = (address()?, address()?, address()?);
        let (state, expires) = (fields.next()?.to_owned(), fields.next()?.parse().ok()?);
        Some(Self { protocol, client, vip, real_server, state, expires })
    }

    /// The virtual server; `None` for a protocol that no Service has.
    pub fn virtual_server(&self) -> Option<VsKey> {
        let protocol = Protocol::ALL.into_iter().find(|protocol| protocol.to_string() == self.protocol)?;
        Some(VsKey { protocol, addr: self.vip.ip(), port: self.vip.port() })
    }
}

/// IPv4 as eight digits of base 16 and IPv6 as usual.
fn address(text: &str) -> Option<IpAddr> {
    if text.contains(':') {
        return text.trim_matches(['[', ']']).parse().ok();
    }
    u32::from_str_radix(text, 16).ok().map(|bits| Ipv4Addr::from_bits(bits).into())
}

/// Calls `each` with every connection of the filter, in the order of the kernel.
///
/// # Errors
/// The file cannot be read.
pub fn read(
    filter: &Filter,
    owners: &ServiceOwners,
    mut each: impl FnMut(&IpvsConnection),
) -> anyhow::Result<()> {
    let file = std::fs::File::open(FILE).map_err(|error| anyhow::anyhow!(words::io_error(&error)));
    let file = file.with_context(|| format!("cannot read {FILE} (is the module ip_vs loaded?)"))?;
    for line in BufReader::new(file).lines().skip(1) {
        let line = line.with_context(|| format!("cannot read {FILE}"))?;
        let Some(connection) = IpvsConnection::parse(&line) else { continue };
        let is_shown = match connection.virtual_server() {
            Some(key) => filter.has(&key, owners),
            None => filter.is_everything(),
        };
        if is_shown {
            each(&connection);
        }
    }
    Ok(())
}

/// The text of `ipvsadm -Lnc`.
///
/// # Errors
/// See [`read`].
pub fn text(filter: &Filter, owners: &ServiceOwners, with_service: bool) -> anyhow::Result<String> {
    let mut text = "IPVS connection entries\n".to_owned();
    text.push_str("pro expire state       source             virtual            destination\n");
    read(filter, owners, |connection| {
        let IpvsConnection { protocol, client, vip, real_server, state, expires } = connection;
        let [client, vip] = [client, vip].map(ToString::to_string);
        let expires = format!("{:02}:{:02}", expires / 60, expires % 60);
        let line = format!("{protocol:<3} {expires:<6} {state:<11} {client:<18} {vip:<18} {real_server}");
        text.push_str(&line);
        if with_service {
            let owner = connection.virtual_server().and_then(|key| owners.get(&key.to_string()));
            text.push_str(&format!("  # {}", owner.unwrap_or("-")));
        }
        text.push('\n');
    })?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_both_families_are_read() {
        let v4 = "TCP 0AF40105 B2C4 0A600001 01BB 0A000064 192B ESTABLISHED     899";
        let connection = IpvsConnection::parse(v4).unwrap();
        assert_eq!(connection.client.to_string(), "10.244.1.5:45764");
        assert_eq!(connection.vip.to_string(), "10.96.0.1:443");
        assert_eq!(connection.real_server.to_string(), "10.0.0.100:6443");
        assert_eq!((&*connection.state, connection.expires), ("ESTABLISHED", 899));
        let v6 = "UDP fd00:0:0:0:0:0:0:1 0035 fd00::2 0035 fd00::3 1000 UDP 20 extra";
        let connection = IpvsConnection::parse(v6).unwrap();
        assert_eq!(connection.virtual_server().unwrap().to_string(), "UDP [fd00::2]:53");
        for bad in ["", "TCP", "TCP 0AF40105 B2C4 0A600001 01BB 0A000064 192B ESTABLISHED x"] {
            assert_eq!(IpvsConnection::parse(bad), None);
        }
    }
}
