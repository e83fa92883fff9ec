// SPDX-License-Identifier: Apache-2.0
//! Reads `/proc/net/ip_vs`: every virtual server with its real servers and their connections, a few pages at a time
//! (`ip_vs_info_seq_show` in the kernel's `ip_vs_ctl.c`). This costs a fraction of one dump for each virtual server;
//! docs/performance.md has the numbers.

use std::fs::File;
use std::io::{Error, Read, Result};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use crate::core::mirror::RealServers;
use crate::core::model::map::Map;
use crate::core::model::real_servers::RsState;
use crate::core::model::{ONE_PACKET, PERSISTENT, Protocol, RsKey, VsKey, VsSpec};

/// The table of this thread's network namespace.
const TABLE: &str = "/proc/thread-self/net/ip_vs";
/// The kernel returns one page for each read, or one virtual server if that is longer.
const READ_BYTES: usize = 64 * 1024;
/// Number of heading lines.
const HEADINGS: u8 = 3;

/// A virtual server as the table shows it, without the flags of its scheduler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    pub key: VsKey,
    pub spec: VsSpec,
    /// Without limits of connections, which the table does not have.
    pub real_servers: RealServers,
    /// The real servers that have active or inactive connections.
    pub busy: Vec<RsKey>,
}

/// A reading of the table. A virtual server may be read twice or not at all: additions and removals meanwhile shift
/// positions in the table, and virtual servers of other network namespaces have positions too, but only until the next
/// page begins (`ip_vs_info_array` counts those of one namespace, `ip_vs_info_seq_next` counts all).
#[derive(Debug)]
pub struct TableReader {
    file: File,
    parser: Parser,
    buffer: Vec<u8>,
    ended: bool,
}

impl TableReader {
    /// Opens the table of this thread's network namespace. `usual`: the string for the most common scheduler.
    ///
    /// # Errors
    /// When there is no table.
    pub fn open(usual: Arc<str>) -> Result<Self> {
        let (file, parser) = (File::open(TABLE)?, Parser { usual, ..Parser::default() });
        Ok(Self { file, parser, buffer: vec![0; READ_BYTES], ended: false })
    }

    /// The virtual servers of the next `pages`, `None` at the end.
    ///
    /// # Errors
    /// When the table cannot be read or parsed.
    pub fn next(&mut self, pages: usize) -> Result<Option<Vec<Shown>>> {
        if self.ended {
            return Ok(None);
        }
        let unknown = || Error::other(format!("{TABLE} has an unknown format"));
        let mut shown = Vec::new();
        for _ in 0..pages {
            let len = self.file.read(&mut self.buffer)?;
            if len == 0 {
                self.ended = true;
                self.parser.finish(&mut shown).ok_or_else(unknown)?;
                break;
            }
            self.parser.take(&self.buffer[..len], &mut shown).ok_or_else(unknown)?;
        }
        Ok(Some(shown))
    }
}

/// The virtual servers that the table shows, with those of their real servers that have connections.
///
/// # Errors
/// When the table cannot be read or parsed.
pub fn read_busy() -> Result<Map<VsKey, Vec<RsKey>>> {
    let mut reader = TableReader::open(Arc::default())?;
    let mut busy = Map::default();
    while let Some(shown) = reader.next(usize::MAX)? {
        busy.extend(shown.into_iter().map(|shown| (shown.key, shown.busy)));
    }
    Ok(busy)
}

/// Parses lines and groups them by virtual server.
#[derive(Debug, Default)]
pub(in crate::kernel) struct Parser {
    headings: u8,
    /// The beginning of an incomplete line.
    rest: Vec<u8>,
    current: Option<Shown>,
    usual: Arc<str>,
    rows: Vec<(RsKey, RsState)>,
}

impl Parser {
    pub(in crate::kernel) fn take(&mut self, mut bytes: &[u8], shown: &mut Vec<Shown>) -> Option<()> {
        while let Some(end) = bytes.iter().position(|b| *b == b'\n') {
            let (line, more) = (&bytes[..end], &bytes[end + 1..]);
            bytes = more;
            if self.rest.is_empty() {
                self.line(line, shown)?;
            } else {
                let mut whole = std::mem::take(&mut self.rest);
                whole.extend_from_slice(line);
                self.line(&whole, shown)?;
            }
        }
        self.rest.extend_from_slice(bytes);
        Some(())
    }

    pub(in crate::kernel) fn finish(&mut self, shown: &mut Vec<Shown>) -> Option<()> {
        self.end_server(shown);
        self.rest.is_empty().then_some(())
    }

    fn end_server(&mut self, shown: &mut Vec<Shown>) {
        if let Some(mut server) = self.current.take() {
            server.real_servers = self.rows.drain(..).collect();
            shown.push(server);
        }
        self.rows.clear();
    }

    /// `rr`, `wlc ops`, `rr persistent 600 FFFFFFFF`.
    fn spec<'a>(&self, words: &mut impl Iterator<Item = &'a [u8]>) -> Option<VsSpec> {
        let scheduler = std::str::from_utf8(words.next()?).ok()?;
        let usual = *scheduler == *self.usual;
        let scheduler = if usual { self.usual.clone() } else { scheduler.into() };
        let mut spec = VsSpec { scheduler, flags: 0, timeout: 0 };
        while let Some(word) = words.next() {
            match word {
                b"ops" => spec.flags |= ONE_PACKET,
                b"persistent" => {
                    spec.flags |= PERSISTENT;
                    spec.timeout = number(words.next()?)?;
                    // The mask.
                    words.next()?;
                }
                _ => return None,
            }
        }
        Some(spec)
    }

    fn line(&mut self, line: &[u8], shown: &mut Vec<Shown>) -> Option<()> {
        if self.headings < HEADINGS {
            self.headings += 1;
            return Some(());
        }
        let mut words = line.split(|b| *b == b' ').filter(|word| !word.is_empty());
        match words.next() {
            Some(b"->") => {
                let target = words.next()?;
                let forward = forward(words.next()?)?;
                let weight = number(words.next()?)?;
                let connections = number(words.next()?)?.saturating_add(number(words.next()?)?);
                if let Some(server) = &mut self.current {
                    let (addr, port) = address(target)?;
                    let rs = RsKey { addr, port };
                    self.rows.push((rs, RsState { weight, forward, ..RsState::USUAL }));
                    if connections > 0 {
                        server.busy.push(rs);
                    }
                }
            }
            Some(protocol) => {
                self.end_server(shown);
                self.current = match virtual_server(protocol, words.next()?)? {
                    Some(key) => {
                        let spec = self.spec(&mut words)?;
                        Some(Shown { key, spec, real_servers: RealServers::default(), busy: Vec::new() })
                    }
                    None => None,
                };
            }
            None => {}
        }
        Some(())
    }
}

/// The key of a virtual server; the inner `None`: a fwmark or another protocol, which we ignore.
fn virtual_server(protocol: &[u8], target: &[u8]) -> Option<Option<VsKey>> {
    let protocol = match protocol {
        b"TCP" => Protocol::Tcp,
        b"UDP" => Protocol::Udp,
        b"SCTP" => Protocol::Sctp,
        _ => return Some(None),
    };
    let (addr, port) = address(target)?;
    Some(Some(VsKey { protocol, addr, port }))
}

/// Converts the name of `ip_vs_fwd_name` to the number in netlink (`IP_VS_CONN_F_*`).
fn forward(name: &[u8]) -> Option<u32> {
    let names: [&[u8]; 5] = [b"Masq", b"Local", b"Tunnel", b"Route", b"Bypass"];
    names.iter().zip(0..).find_map(|(known, number)| (*known == name).then_some(number))
}

fn number(digits: &[u8]) -> Option<u32> {
    digits.iter().try_fold(0u32, |number, digit| {
        let digit = digit.checked_sub(b'0').filter(|d| *d < 10)?;
        number.checked_mul(10)?.checked_add(digit.into())
    })
}

fn hex(digits: &[u8]) -> Option<u32> {
    let digit = |d: &u8| char::from(*d).to_digit(16);
    (1..=8).contains(&digits.len()).then_some(())?;
    digits.iter().try_fold(0, |number, d| Some(number << 4 | digit(d)?))
}

/// `0A600001:01BB` or `[fd00:0096:0000:0000:0000:0000:0000:0001]:01BB`, all in hexadecimal.
fn address(text: &[u8]) -> Option<(IpAddr, u16)> {
    let (addr, port) = text.split_at_checked(text.len().checked_sub(5)?)?;
    let port = u16::try_from(hex(port.strip_prefix(b":")?)?).ok()?;
    let Some(v6) = addr.strip_prefix(b"[") else {
        return Some((IpAddr::V4(Ipv4Addr::from(hex(addr)?)), port));
    };
    let mut groups = [0; 8];
    let mut texts = v6.strip_suffix(b"]")?.split(|b| *b == b':');
    for group in &mut groups {
        *group = u16::try_from(hex(texts.next()?)?).ok()?;
    }
    texts.next().is_none().then_some((IpAddr::V6(Ipv6Addr::from(groups)), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port Forward Weight ActiveConn InActConn
TCP  0A60000A:0050 rr persistent 600 FFFFFFFF
  -> 0AF40106:1F90      Masq    0      0          1         \x20
  -> 0AF40105:1F90      Masq    1      70000      0         \x20
  -> 0AF40107:1F90      Route   7      0          0         \x20
FWM  00000007 rr\x20
  -> 0AF40109:0000      Masq    1      5          0         \x20
UDP  0A60000B:0035 wlc ops\x20
TCP  [fd00:0096:0000:0000:0000:0000:0000:0010]:0050 rr\x20
  -> [fd00:0244:0001:0000:0000:0000:0000:0005]:1F90      Masq    1      2          0         \x20
";

    /// Parses the text in pieces of `piece` bytes.
    fn parse(text: &str, piece: usize) -> Option<Vec<Shown>> {
        let (mut parser, mut shown) = (Parser::default(), Vec::new());
        text.as_bytes().chunks(piece).try_for_each(|bytes| parser.take(bytes, &mut shown))?;
        parser.finish(&mut shown)?;
        Some(shown)
    }

    #[test]
    fn pieces_of_any_size_give_the_same_servers() {
        let shown = parse(TABLE, TABLE.len()).unwrap();
        let text = |s: &Shown| {
            let rs = |(rs, state): (RsKey, RsState)| format!("{rs} {} {}", state.weight, state.forward);
            let VsSpec { scheduler, flags, timeout } = &s.spec;
            let servers: Vec<String> = s.real_servers.iter().map(rs).collect();
            format!("{} {scheduler} {flags} {timeout} {servers:?}", s.key)
        };
        assert_eq!(
            shown.iter().map(text).collect::<Vec<_>>(),
            [
                r#"TCP 10.96.0.10:80 rr 1 600 ["10.244.1.5:8080 1 0", "10.244.1.6:8080 0 0", "10.244.1.7:8080 7 3"]"#,
                r#"UDP 10.96.0.11:53 wlc 4 0 []"#,
                r#"TCP [fd00:96::10]:80 rr 0 0 ["[fd00:244:1::5]:8080 1 0"]"#,
            ]
        );
        for piece in 1..200 {
            assert_eq!(parse(TABLE, piece).as_ref(), Some(&shown), "{piece}");
        }
    }

    #[test]
    fn real_servers_with_connections_are_found() {
        let shown = parse(TABLE, 100).unwrap();
        let busy = shown.iter().flat_map(|s| s.busy.iter().map(|rs| format!("{} {rs}", s.key)));
        let mut found: Vec<String> = busy.collect();
        found.sort();
        assert_eq!(
            found,
            [
                "TCP 10.96.0.10:80 10.244.1.5:8080",
                "TCP 10.96.0.10:80 10.244.1.6:8080",
                "TCP [fd00:96::10]:80 [fd00:244:1::5]:8080",
            ]
        );
    }

    #[test]
    fn an_unknown_format_is_an_error_and_never_an_idle_server() {
        for broken in ["0A60000A", "XYZ:0050", "[fd00::1:0050", "[fd00::1]:0050", "100A60000A:0050"] {
            assert_eq!(parse(&TABLE.replacen("0A60000A:0050", broken, 1), 50), None, "{broken}");
        }
        for (known, broken) in [
            ("70000", "many"),
            ("70000", "99999999999"),
            ("Route", "Teleport"),
            ("ops", "odd"),
            ("persistent 600", "persistent many"),
        ] {
            assert_eq!(parse(&TABLE.replacen(known, broken, 1), 50), None, "{broken}");
        }
        assert_eq!(parse(TABLE.trim_end_matches('\n'), 50), None, "the last line is incomplete");
    }
}
