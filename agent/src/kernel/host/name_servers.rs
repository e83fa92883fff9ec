// SPDX-License-Identifier: Apache-2.0
//! The DNS and DHCP servers of this node, from the files of the resolver (`resolv.conf(5)`) and of DHCP clients
//! (systemd-networkd, NetworkManager, dhclient).

use std::fs::{self, File};
use std::io::Read;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// Files of the resolver. The second has the upstream servers of systemd-resolved.
const RESOLVER: [&str; 2] = ["etc/resolv.conf", "run/systemd/resolve/resolv.conf"];
/// Folders with leases.
const LEASES: [&str; 4] =
    ["run/systemd/netif/leases", "var/lib/NetworkManager", "var/lib/dhcp", "var/lib/dhclient"];
/// Limits: files of a folder, and bytes of each.
const FILES: usize = 64;
const BYTES: u64 = 256 << 10;

/// Addresses in the files; sorted, each once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamedHosts {
    /// DNS and DHCP servers.
    pub servers: Vec<IpAddr>,
    /// Routers of leases.
    pub routers: Vec<IpAddr>,
}

impl NamedHosts {
    /// Reads the files under `root`, which is `/` except in tests. Missing and unreadable files are ignored.
    pub fn read(root: &Path) -> Self {
        let mut named = Self::default();
        let folders = LEASES.iter().flat_map(|folder| files_of(&root.join(folder)));
        for path in RESOLVER.iter().map(|file| root.join(file)).chain(folders) {
            named.take(&text(&path).unwrap_or_default());
        }
        for list in [&mut named.servers, &mut named.routers] {
            list.sort_unstable();
            list.dedup();
        }
        named
    }

    /// Adds the addresses of a file in any of the formats, which are distinct.
    pub(in crate::kernel) fn take(&mut self, text: &str) {
        for line in text.lines() {
            let line = line.trim().trim_end_matches(';');
            if let Some(rest) = line.strip_prefix("nameserver") {
                self.servers.extend(addresses(rest));
            } else if let Some((option, rest)) =
                line.strip_prefix("option ").and_then(|rest| rest.split_once(' '))
            {
                self.add(option, rest);
            } else if let Some((key, rest)) = line.split_once('=') {
                self.add(key, rest);
            }
        }
    }

    fn add(&mut self, key: &str, value: &str) {
        match key {
            "dhcp-server-identifier"
            | "domain-name-servers"
            | "dhcp6.name-servers"
            | "SERVER_ADDRESS"
            | "DNS" => {
                self.servers.extend(addresses(value));
            }
            "routers" | "ROUTER" => self.routers.extend(addresses(value)),
            _ => {}
        }
    }
}

/// The addresses in a list. Zones of link-local addresses and other words are ignored.
fn addresses(list: &str) -> impl Iterator<Item = IpAddr> + '_ {
    let words = list.split([' ', '\t', ',']).filter(|word| !word.is_empty());
    words.filter_map(|word| word.split('%').next()?.parse().ok())
}

/// The entries of a folder.
fn files_of(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    entries.filter_map(|entry| Some(entry.ok()?.path())).take(FILES).collect()
}

fn text(path: &Path) -> Option<String> {
    if !fs::metadata(path).ok()?.is_file() {
        return None;
    }
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(BYTES).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_is_read() {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in [
            (
                "etc/resolv.conf",
                "# nameserver 192.0.2.9\nsearch x\nnameserver 127.0.0.53\nnameserver\tfe80::1%eth0\n",
            ),
            ("run/systemd/resolve/resolv.conf", "nameserver 10.0.0.53\n"),
            (
                "run/systemd/netif/leases/2",
                "ADDRESS=10.0.0.7\nROUTER=10.0.0.1\nSERVER_ADDRESS=10.0.0.2\nDNS=10.0.0.53 10.0.0.54\n",
            ),
            (
                "var/lib/dhcp/dhclient.eth0.leases",
                "lease {\n  fixed-address 10.0.0.7;\n  option routers 10.0.0.3;\n  option dhcp-server-identifier 10.0.0.4;\n  \
                 option domain-name-servers 10.0.0.5, 10.0.0.6;\n  option dhcp6.name-servers fd00::5;\n}\n",
            ),
            ("var/lib/dhcp/broken", "option\nDNS\n=\noption routers\nDNS=x y,z\n"),
        ] {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        fs::create_dir_all(root.path().join("var/lib/dhcp/folder")).unwrap();
        let named = NamedHosts::read(root.path());
        let texts = |list: &[IpAddr]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
        let servers =
            ["10.0.0.2", "10.0.0.4", "10.0.0.5", "10.0.0.6", "10.0.0.53", "10.0.0.54", "127.0.0.53"];
        assert_eq!(texts(&named.servers), [&servers[..], &["fd00::5", "fe80::1"]].concat());
        assert_eq!(texts(&named.routers), ["10.0.0.1", "10.0.0.3"]);
        assert_eq!(NamedHosts::read(Path::new("/nonexistent")), NamedHosts::default());
    }
}
