// SPDX-License-Identifier: Apache-2.0
//! The connection-tracking table over nfnetlink, subsystem 1
//! (`<linux/netfilter/nfnetlink_conntrack.h>`): deletes UDP flows to removed endpoints.
//!
//! One dump and few sends of deletions for any number of flows. `conntrack -D` would need one process and one dump
//! for each VIP or endpoint.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_batch::{AttributeIter, Attributes, Counters, Error, Refusal, Socket};
use nix::errno::Errno;

use super::nfnetlink::{self, Request, attributes};
use crate::core::model::flows::{Flow, FlowFilter};
use crate::core::model::{Family, Protocol};

pub(super) const SUBSYSTEM: u16 = 1 << 8;
const MSG_GET: u16 = 1;
pub(super) const MSG_DELETE: u16 = 2;

pub(super) const CTA_TUPLE_ORIG: u16 = 1;
pub(in crate::kernel) const CTA_TUPLE_REPLY: u16 = 2;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_FILTER: u16 = 25;

const TUPLE_IP: u16 = 1;
const TUPLE_PROTO: u16 = 2;

const IP_V4_SRC: u16 = 1;
const IP_V4_DST: u16 = 2;
const IP_V6_SRC: u16 = 3;
const IP_V6_DST: u16 = 4;

const PROTO_NUM: u16 = 1;
const PROTO_SRC_PORT: u16 = 2;
const PROTO_DST_PORT: u16 = 3;

const FILTER_ORIG_FLAGS: u16 = 1;
/// Compares only the protocol number of the original direction.
const FILTER_BY_PROTOCOL: u32 = 1 << 3;

/// Errors of [`ConntrackClient`].
#[derive(Debug, thiserror::Error)]
pub enum ConntrackError {
    #[error(
        "the kernel has no netlink for connection tracking ({0}): load its module with \
         `modprobe nf_conntrack_netlink`"
    )]
    NoConntrack(Refusal),
    #[error("the kernel refused to delete {count} stale UDP flows; the first was {first}: {refusal}")]
    FlowsStay {
        /// Number of flows.
        count: usize,
        first: Flow,
        refusal: Refusal,
    },
    #[error(transparent)]
    Netlink(#[from] Error),
}

/// Client of the conntrack subsystem.
#[derive(Debug)]
pub struct ConntrackClient {
    socket: Socket,
    /// Whether dumps request UDP flows only.
    filtered: bool,
    entries: u64,
}

impl ConntrackClient {
    /// Opens a socket in the current network namespace; nothing is read yet.
    ///
    /// # Errors
    /// When the kernel has no netfilter netlink or the process may not open one.
    pub fn open() -> Result<Self, Error> {
        Ok(Self { socket: nfnetlink::open()?, filtered: true, entries: 0 })
    }

    pub fn counters(&self) -> Counters {
        self.socket.counters()
    }

    /// Entries received so far: since Linux 5.8 only those of UDP.
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// Deletes the flows that are stale for this filter and returns their number, without flows that ended by
    /// themselves meanwhile. An empty filter reads nothing.
    ///
    /// # Errors
    /// When the table cannot be read completely: nothing is deleted then. When the kernel refuses to delete a flow:
    /// the other flows are deleted.
    pub fn forget(&mut self, filter: &FlowFilter) -> Result<u64, ConntrackError> {
        if filter.is_empty() {
            return Ok(0);
        }
        let family = nf_family(filter.family);
        let (stale, requests): (Vec<Flow>, Vec<Request>) = self
            .stale(filter)?
            .into_iter()
            .map(|entry| {
                let kind = SUBSYSTEM | MSG_DELETE;
                (entry.flow, Request { kind, family, attrs: entry.identity, ..Request::default() })
            })
            .unzip();
        count_deleted(&stale, &self.socket.batch(&requests)?)
    }

    /// Reads the stale flows, in one dump.
    fn stale(&mut self, filter: &FlowFilter) -> Result<Vec<FlowEntry>, ConntrackError> {
        let mut stale = self.dump(filter);
        if self.filtered && matches!(&stale, Err(Error::Refused(refusal)) if is_unknown(refusal)) {
            // The kernel does not support the filter, or no conntrack dumps at all.
            self.filtered = false;
            stale = self.dump(filter);
            self.filtered = stale.is_err();
        }
        stale.map_err(|error| match error {
            Error::Refused(refusal) if is_unknown(&refusal) => ConntrackError::NoConntrack(refusal),
            other => other.into(),
        })
    }

    fn dump(&mut self, filter: &FlowFilter) -> Result<Vec<FlowEntry>, Error> {
        let attrs = if self.filtered { only_udp() } else { Attributes::default() };
        let kind = SUBSYSTEM | MSG_GET;
        let request = Request { kind, family: nf_family(filter.family), attrs, ..Request::default() };
        let entries = &mut self.entries;
        self.socket.dump(&request, |stale: &mut Vec<FlowEntry>, payload| {
            *entries += 1;
            let entry = parse_entry(attributes(payload))?;
            stale.extend(entry.filter(|entry| filter.is_stale(&entry.flow)));
            Ok(())
        })
    }
}

/// A UDP flow, and the attributes that identify it in a deletion.
#[derive(Debug)]
pub(in crate::kernel) struct FlowEntry {
    pub(in crate::kernel) flow: Flow,
    pub(in crate::kernel) identity: Attributes,
}

/// The number of deleted flows. A flow that does not exist any more is no error.
fn count_deleted(flows: &[Flow], refused: &[(usize, Refusal)]) -> Result<u64, ConntrackError> {
    let mut kept = refused.iter().filter(|(_, refusal)| refusal.errno() != Errno::ENOENT);
    match kept.clone().count() {
        0 => Ok((flows.len() - refused.len()) as u64),
        count => kept.next().map_or(Ok(0), |(index, refusal)| {
            Err(ConntrackError::FlowsStay { count, first: flows[*index], refusal: refusal.clone() })
        }),
    }
}

/// Whether the kernel does not support the request.
fn is_unknown(refusal: &Refusal) -> bool {
    matches!(refusal.errno(), Errno::EINVAL | Errno::EOPNOTSUPP)
}

fn nf_family(family: Family) -> u8 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}

/// Kernels before 5.8 ignore the filter and send all protocols.
fn only_udp() -> Attributes {
    let (mut proto, mut tuple, mut flags) =
        (Attributes::default(), Attributes::default(), Attributes::default());
    proto.put(PROTO_NUM, &[Protocol::Udp.number()]);
    tuple.nest(TUPLE_PROTO, &proto);
    flags.put(FILTER_ORIG_FLAGS, &FILTER_BY_PROTOCOL.to_ne_bytes());
    let mut attrs = Attributes::default();
    attrs.nest(CTA_TUPLE_ORIG, &tuple).nest(CTA_FILTER, &flags);
    attrs
}

/// One direction of an entry. Some protocols have no ports.
#[derive(Debug, Default)]
pub(super) struct Tuple {
    pub(super) protocol: Option<u8>,
    pub(super) src: Option<(IpAddr, u16)>,
    pub(super) dst: Option<(IpAddr, u16)>,
}

/// Reads one entry of a dump; `None` when it is not UDP.
pub(in crate::kernel) fn parse_entry(part: &[u8]) -> Result<Option<FlowEntry>, Error> {
    let (mut orig, mut reply, mut id, mut zone) = (None, None, None, None);
    for attr in AttributeIter::new(part) {
        match attr? {
            (CTA_TUPLE_ORIG, value) => orig = Some(value),
            (CTA_TUPLE_REPLY, value) => reply = Some(value),
            (CTA_ID, value) => id = Some(value),
            (CTA_ZONE, value) => zone = Some(value),
            _ => {}
        }
    }
    let (Some(orig_bytes), Some(reply)) = (orig, reply) else {
        return Err(Error::Malformed("a tracked connection without its two directions"));
    };
    let (orig, reply) = (parse_tuple(orig_bytes)?, parse_tuple(reply)?);
    if orig.protocol != Some(Protocol::Udp.number()) {
        return Ok(None);
    }
    let (Some((orig_dst, orig_dst_port)), Some((reply_src, reply_src_port))) = (orig.dst, reply.src) else {
        return Err(Error::Malformed("a tracked UDP flow without address or port"));
    };
    // The tuple is sent back unchanged. The id distinguishes the flow from a newer flow of the same tuple, which
    // goes to a current endpoint.
    let mut identity = Attributes::default();
    identity.nest_bytes(CTA_TUPLE_ORIG, orig_bytes);
    for (kind, value) in [(CTA_ID, id), (CTA_ZONE, zone)] {
        if let Some(value) = value {
            identity.put(kind, value);
        }
    }
    Ok(Some(FlowEntry { flow: Flow { orig_dst, orig_dst_port, reply_src, reply_src_port }, identity }))
}

pub(super) fn parse_tuple(bytes: &[u8]) -> Result<Tuple, Error> {
    let (mut src, mut dst, mut src_port, mut dst_port) = (None, None, None, None);
    let mut protocol = None;
    for attr in AttributeIter::new(bytes) {
        match attr? {
            (TUPLE_IP, value) => {
                for attr in AttributeIter::new(value) {
                    match attr? {
                        (IP_V4_SRC | IP_V6_SRC, ip) => src = Some(parse_ip(ip)?),
                        (IP_V4_DST | IP_V6_DST, ip) => dst = Some(parse_ip(ip)?),
                        _ => {}
                    }
                }
            }
            (TUPLE_PROTO, value) => {
                for attr in AttributeIter::new(value) {
                    match attr? {
                        (PROTO_NUM, [number]) => protocol = Some(*number),
                        (PROTO_SRC_PORT, [a, b]) => src_port = Some(u16::from_be_bytes([*a, *b])),
                        (PROTO_DST_PORT, [a, b]) => dst_port = Some(u16::from_be_bytes([*a, *b])),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Ok(Tuple { protocol, src: src.zip(src_port), dst: dst.zip(dst_port) })
}

fn parse_ip(bytes: &[u8]) -> Result<IpAddr, Error> {
    let v4 = || <[u8; 4]>::try_from(bytes).map(|ip| Ipv4Addr::from(ip).into());
    let v6 = || <[u8; 16]>::try_from(bytes).map(|ip| Ipv6Addr::from(ip).into());
    v4().or_else(|_| v6()).map_err(|_| Error::Malformed("an address has the wrong length"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::SocketAddr;

    fn socket(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn tuple(src: SocketAddr, dst: SocketAddr, protocol: u8) -> Attributes {
        let (mut ip, mut proto, mut tuple) =
            (Attributes::default(), Attributes::default(), Attributes::default());
        for (addr, v4, v6) in [(src, IP_V4_SRC, IP_V6_SRC), (dst, IP_V4_DST, IP_V6_DST)] {
            match addr.ip() {
                IpAddr::V4(addr) => ip.put(v4, &addr.octets()),
                IpAddr::V6(addr) => ip.put(v6, &addr.octets()),
            };
        }
        proto.put(PROTO_NUM, &[protocol]);
        proto.put(PROTO_SRC_PORT, &src.port().to_be_bytes()).put(PROTO_DST_PORT, &dst.port().to_be_bytes());
        tuple.nest(TUPLE_IP, &ip).nest(TUPLE_PROTO, &proto);
        tuple
    }

    /// An entry as in a dump, with attributes that the parser ignores.
    fn entry(protocol: u8, client: &str, vip: &str, pod: &str) -> Attributes {
        let (client, vip, pod) = (socket(client), socket(vip), socket(pod));
        let mut attrs = Attributes::default();
        attrs.nest(CTA_TUPLE_ORIG, &tuple(client, vip, protocol));
        attrs.nest(CTA_TUPLE_REPLY, &tuple(pod, client, protocol));
        attrs.put(3, &[0, 0, 0, 8]).put(7, &[0, 0, 0, 30]).put(CTA_ID, &[1, 2, 3, 4]);
        attrs
    }

    #[test]
    fn a_flow_has_its_original_destination_and_its_reply_source() {
        for (client, vip, pod) in [
            ("192.168.50.100:40000", "10.96.0.10:53", "10.244.1.5:5353"),
            ("[fd00:50::100]:40000", "[fd00:96::10]:53", "[fd00:244:1::5]:5353"),
        ] {
            let flow = parse_entry(entry(17, client, vip, pod).as_bytes()).unwrap().unwrap().flow;
            assert_eq!(SocketAddr::new(flow.orig_dst, flow.orig_dst_port), socket(vip));
            assert_eq!(SocketAddr::new(flow.reply_src, flow.reply_src_port), socket(pod));
            assert_eq!(flow.to_string(), format!("to {vip}, answered by {pod}"));
        }
    }

    #[test]
    fn a_flow_is_identified_by_tuple_id_and_zone() {
        let mut part = entry(17, "192.168.50.100:40000", "10.96.0.10:53", "10.244.1.5:5353");
        let identity = |part: &Attributes| parse_entry(part.as_bytes()).unwrap().unwrap().identity;
        let first_attr = AttributeIter::new(part.as_bytes()).next().unwrap().unwrap();
        let expected = [first_attr, (CTA_ID, &[1, 2, 3, 4][..])];
        let read: Vec<(u16, Vec<u8>)> = AttributeIter::new(identity(&part).as_bytes())
            .map(|attr| attr.map(|(kind, value)| (kind, value.to_vec())).unwrap())
            .collect();
        assert_eq!(read, expected.map(|(kind, value)| (kind, value.to_vec())));
        part.put(CTA_ZONE, &[0, 7]);
        let with_zone = identity(&part);
        let zone = AttributeIter::new(with_zone.as_bytes()).last().unwrap().unwrap();
        assert_eq!(zone, (CTA_ZONE, &[0, 7][..]));
    }

    #[test]
    fn a_flow_that_ended_by_itself_is_no_error() {
        let flow = |pod| {
            parse_entry(entry(17, "10.0.0.1:1", "10.96.0.10:53", pod).as_bytes()).unwrap().unwrap().flow
        };
        let flows = [flow("10.244.1.5:53"), flow("10.244.1.6:53"), flow("10.244.1.7:53")];
        let refused = |index, errno: Errno| (index, Refusal::new(errno as i32, None));
        assert_eq!(count_deleted(&flows, &[refused(1, Errno::ENOENT)]).unwrap(), 2);
        let all = [refused(0, Errno::ENOENT), refused(1, Errno::EBUSY), refused(2, Errno::EACCES)];
        let busy = count_deleted(&flows, &all).unwrap_err().to_string();
        assert!(
            busy.contains("2 stale UDP flows") && busy.contains("answered by 10.244.1.6:53: Device or"),
            "{busy}"
        );
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn the_udp_filter_has_the_expected_bytes() {
        let expected = [
            16, 0, 1, 0x80, 12, 0, 2, 0x80, 5, 0, 1, 0, 17, 0, 0, 0, // the tuple: protocol 17
            12, 0, 25, 0x80, 8, 0, 1, 0, 8, 0, 0, 0, // which of its parts count
        ];
        assert_eq!(only_udp().as_bytes(), expected);
    }

    #[test]
    fn other_protocols_are_ignored() {
        let part = entry(6, "192.168.50.100:40000", "10.96.0.10:53", "10.244.1.5:5353");
        assert!(parse_entry(part.as_bytes()).unwrap().is_none());
        let (mut icmp, mut only_number, mut tuple) =
            (Attributes::default(), Attributes::default(), Attributes::default());
        only_number.put(PROTO_NUM, &[1]).put(4, &[0, 1]);
        tuple.nest(TUPLE_PROTO, &only_number);
        icmp.nest(CTA_TUPLE_ORIG, &tuple).nest(CTA_TUPLE_REPLY, &tuple);
        assert!(parse_entry(icmp.as_bytes()).unwrap().is_none());
    }

    #[test]
    fn a_malformed_entry_is_an_error_and_no_other_flow() {
        let bytes = |change: &dyn Fn(&mut Attributes)| {
            let mut attrs = Attributes::default();
            change(&mut attrs);
            attrs.as_bytes().to_vec()
        };
        let whole = tuple(socket("10.0.0.1:1"), socket("10.0.0.2:2"), 17);
        let (mut ip, mut bad_address) = (Attributes::default(), Attributes::default());
        ip.put(IP_V4_SRC, &[10, 0, 0]);
        bad_address.nest(TUPLE_IP, &ip);
        let (mut number, mut no_address) = (Attributes::default(), Attributes::default());
        number.put(PROTO_NUM, &[17]);
        no_address.nest(TUPLE_PROTO, &number);
        for bad in [
            Vec::new(),
            bytes(&|a| _ = a.nest(CTA_TUPLE_ORIG, &whole)),
            bytes(&|a| _ = a.nest(CTA_TUPLE_ORIG, &whole).nest(CTA_TUPLE_REPLY, &bad_address)),
            bytes(&|a| _ = a.nest(CTA_TUPLE_ORIG, &no_address).nest(CTA_TUPLE_REPLY, &whole)),
            entry(17, "10.0.0.1:1", "10.0.0.2:2", "10.0.0.3:3").as_bytes()[..50].to_vec(),
        ] {
            assert!(matches!(parse_entry(&bad), Err(Error::Malformed(_))), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn no_input_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_entry(&bytes);
        }

        #[test]
        fn no_damaged_entry_panics(at in 0..200usize, with: u8, end in 0..200usize) {
            let mut bytes = entry(17, "[fd00::1]:1", "[fd00::2]:2", "[fd00::3]:3").as_bytes().to_vec();
            let (at, end) = (at % bytes.len(), end % (bytes.len() + 1));
            bytes[at] = with;
            let _ = parse_entry(&bytes[..end]);
        }
    }
}
