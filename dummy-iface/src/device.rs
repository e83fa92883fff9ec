// SPDX-License-Identifier: Apache-2.0
//! The device and its addresses.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::error::{AddressError, Error};
use crate::frame::NEW;
use crate::message::{
    self, IFF_UP, RTM_DELADDR, RTM_DELLINK, RTM_GETADDR, RTM_GETLINK, RTM_NEWADDR, RTM_NEWLINK,
};
use crate::route::{self, RTM_GETROUTE};
use crate::socket::{Counters, RouteSocket};

const EEXIST: i32 = 17;
const ENXIO: i32 = 6;
const ENODEV: i32 = 19;
const EOPNOTSUPP: i32 = 95;
const EADDRNOTAVAIL: i32 = 99;

/// What [`DummyDevice::ensure`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ensured {
    /// The device was made.
    Created,
    /// It was there.
    AlreadyThere,
}

/// The state of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LinkState {
    /// Interface index.
    pub index: u32,
    /// Whether it is administratively up (`IFF_UP`).
    pub up: bool,
}

/// An address on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct HostAddress {
    /// The address with its prefix.
    pub addr: IpNet,
    /// Index of the interface that has it.
    pub index: u32,
    /// Where the address is valid (`RT_SCOPE_*`): 0 everywhere, 253 on the link, 254 on this host.
    pub scope: u8,
}

/// All addresses of a network namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Addresses {
    /// Those on the device, but for IPv6 link-local ones, which are the kernel's own; `None` when there
    /// is no dummy of that name.
    pub own: Option<Vec<IpNet>>,
    /// Those on all devices of another name.
    pub elsewhere: Vec<HostAddress>,
}

/// A dummy device by name. It need not exist yet. All calls are about the network namespace that
/// the handle was opened in.
#[derive(Debug)]
pub struct DummyDevice {
    name: String,
    socket: RouteSocket,
}

impl DummyDevice {
    /// Opens a handle; nothing is asked or changed yet.
    ///
    /// # Errors
    /// [`Error::InvalidName`], or when there is no rtnetlink socket.
    pub fn open(name: &str) -> Result<Self, Error> {
        check_name(name)?;
        Ok(Self { name: name.to_owned(), socket: RouteSocket::open()? })
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The netlink port of this handle: notifications of changes made through it carry it.
    pub fn port_number(&self) -> u32 {
        self.socket.port()
    }

    /// What went over the socket so far.
    pub fn counters(&self) -> Counters {
        self.socket.counters
    }

    fn link(&mut self) -> Result<Option<message::Link>, Error> {
        match self.socket.ask(RTM_GETLINK, &message::link_by_name(&self.name))? {
            Ok(payload) => Ok(Some(message::parse_link(&payload)?)),
            Err(refusal) if refusal.errno == ENODEV => Ok(None),
            Err(refusal) => Err(Error::refused(refusal)),
        }
    }

    /// The device, if it exists. Like `ip link show dev NAME`.
    ///
    /// # Errors
    /// [`Error::WrongKind`] when a device of that name is no dummy.
    pub fn state(&mut self) -> Result<Option<LinkState>, Error> {
        let Some(link) = self.link()? else { return Ok(None) };
        match link.kind.as_deref() {
            Some("dummy") => Ok(Some(LinkState { index: link.index, up: link.flags & IFF_UP != 0 })),
            kind => {
                Err(Error::WrongKind { name: self.name.clone(), kind: kind.unwrap_or("physical").to_owned() })
            }
        }
    }

    fn index(&mut self) -> Result<u32, Error> {
        self.state()?.map(|state| state.index).ok_or_else(|| Error::NoDevice(self.name.clone()))
    }

    /// Makes the device unless it is there; it stays down. Like `ip link add NAME type dummy`.
    ///
    /// # Errors
    /// [`Error::WrongKind`], [`Error::NoDummySupport`], [`Error::PermissionDenied`].
    pub fn ensure(&mut self) -> Result<Ensured, Error> {
        if self.state()?.is_some() {
            return Ok(Ensured::AlreadyThere);
        }
        match self.socket.request(RTM_NEWLINK, NEW, &message::new_dummy(&self.name))? {
            None => Ok(Ensured::Created),
            // Somebody else was faster: what matters is the kind.
            Some(refusal) if refusal.errno == EEXIST => self.index().map(|_| Ensured::AlreadyThere),
            Some(refusal) if refusal.errno == EOPNOTSUPP => Err(Error::NoDummySupport),
            Some(refusal) => Err(Error::refused(refusal)),
        }
    }

    /// Removes the device with its addresses; false when it was not there. Like `ip link delete NAME`.
    ///
    /// # Errors
    /// [`Error::WrongKind`]: only a dummy is removed.
    pub fn remove(&mut self) -> Result<bool, Error> {
        let Some(state) = self.state()? else { return Ok(false) };
        // By index: the name may be another device's by now.
        match self.socket.request(RTM_DELLINK, 0, &message::link_by_index(state.index))? {
            None => Ok(true),
            Some(refusal) if refusal.errno == ENODEV => Ok(false),
            Some(refusal) => Err(Error::refused(refusal)),
        }
    }

    /// Every IPv4 and IPv6 address of the namespace.
    fn dump(&mut self) -> Result<Vec<HostAddress>, Error> {
        let request = netlink_packet_route::address::AddressMessage::default();
        let found = std::cell::RefCell::new(Vec::new());
        self.socket.dump(
            "addresses",
            RTM_GETADDR,
            &request,
            &mut || found.borrow_mut().clear(),
            &mut |payload| {
                found.borrow_mut().extend(message::parse_address(payload)?);
                Ok(())
            },
        )?;
        Ok(found.into_inner())
    }

    /// All addresses on the device, but for IPv6 link-local ones, which are the kernel's own.
    ///
    /// # Errors
    /// [`Error::NoDevice`]; a list that could not be read whole.
    pub fn list(&mut self) -> Result<Vec<IpNet>, Error> {
        let index = self.index()?;
        let all = self.dump()?;
        Ok(all
            .into_iter()
            .filter(|found| found.index == index && !is_link_local(&found.addr))
            .map(|found| found.addr)
            .collect())
    }

    /// All addresses of the namespace, in one list. Works without the device, too.
    ///
    /// # Errors
    /// A list that could not be read whole.
    pub fn addresses(&mut self) -> Result<Addresses, Error> {
        let link = self.link()?;
        let index = link.as_ref().map(|link| link.index);
        let (own, elsewhere): (Vec<_>, Vec<_>) =
            self.dump()?.into_iter().partition(|found| Some(found.index) == index);
        let is_ours = link.is_some_and(|link| link.kind.as_deref() == Some("dummy"));
        let own = own.into_iter().map(|found| found.addr).filter(|addr| !is_link_local(addr));
        Ok(Addresses { own: is_ours.then(|| own.collect()), elsewhere })
    }

    /// Every gateway of the namespace's routes, in all tables and of both families, sorted and each
    /// once: what `ip route show table all` has after `via`. Works without the device, too.
    ///
    /// A route that names a nexthop object has the gateways of that object in it, unless the sysctl
    /// `net.ipv4.nexthop_compat_mode` is 0.
    ///
    /// # Errors
    /// A list that could not be read whole.
    pub fn next_hops(&mut self) -> Result<Vec<IpAddr>, Error> {
        let request = netlink_packet_route::route::RouteMessage::default();
        let found = std::cell::RefCell::new(Vec::new());
        self.socket.dump(
            "routes",
            RTM_GETROUTE,
            &request,
            &mut || found.borrow_mut().clear(),
            &mut |payload| route::parse_gateways(payload, &mut found.borrow_mut()),
        )?;
        let mut gateways = found.into_inner();
        gateways.sort_unstable();
        gateways.dedup();
        Ok(gateways)
    }

    /// Adds addresses as `/32` or `/128`, scope global; one that is there is fine. Returns those
    /// refused, by their index. Like `ip addr add ADDR dev NAME` for each.
    ///
    /// # Errors
    /// [`Error::NoDevice`]; [`Error::Lost`] and [`Error::Timeout`] when nobody knows what ran.
    pub fn add(&mut self, addrs: &[IpAddr]) -> Result<Vec<(usize, AddressError)>, Error> {
        let nets: Vec<IpNet> = addrs.iter().map(|addr| IpNet::from(*addr)).collect();
        self.change(RTM_NEWADDR, NEW, &nets, &[EEXIST])
    }

    /// Removes addresses with exactly these prefixes; one that is not there is fine. Returns those
    /// refused, by their index. Like `ip addr del ADDR dev NAME` for each.
    ///
    /// # Errors
    /// [`Error::NoDevice`]; [`Error::Lost`] and [`Error::Timeout`] when nobody knows what ran.
    pub fn remove_addrs(&mut self, addrs: &[IpNet]) -> Result<Vec<(usize, AddressError)>, Error> {
        self.change(RTM_DELADDR, 0, addrs, &[EADDRNOTAVAIL, ENXIO])
    }

    fn change(
        &mut self,
        kind: u16,
        flags: u16,
        nets: &[IpNet],
        fine: &[i32],
    ) -> Result<Vec<(usize, AddressError)>, Error> {
        if nets.is_empty() {
            return Ok(Vec::new());
        }
        let index = self.index()?;
        let bodies: Vec<_> = nets.iter().map(|net| message::address(index, *net)).collect();
        let refused = self.socket.batch(kind, flags, &bodies)?;
        let refused = refused.into_iter().filter(|(_, refusal)| !fine.contains(&refusal.errno));
        Ok(refused
            .filter_map(|(i, refusal)| Some((i, AddressError::new(nets.get(i)?.addr(), refusal))))
            .collect())
    }
}

fn check_name(name: &str) -> Result<(), Error> {
    let fits = (1..=15).contains(&name.len()) && name != "." && name != "..";
    if fits && !name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace() || c == '\0') {
        return Ok(());
    }
    Err(Error::InvalidName(name.to_owned()))
}

pub(crate) fn is_link_local(net: &IpNet) -> bool {
    matches!(net.addr(), IpAddr::V6(ip) if ip.is_unicast_link_local())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_kernels() {
        for good in ["kube-ipvs0", "a", "fifteen-bytes--"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["", "sixteen-bytes---", "a/b", "a b", ".", "..", "a:b"] {
            assert!(matches!(DummyDevice::open(bad), Err(Error::InvalidName(_))), "{bad}");
        }
    }
}
