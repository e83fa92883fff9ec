// SPDX-License-Identifier: Apache-2.0
//! The device and its addresses.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_batch::{Counters, Packet, Refusal, Socket, protocols};
use netlink_packet_core::{Emitable, NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::address::AddressMessage;
use nix::errno::Errno;

use crate::error::{AddressError, Error};
use crate::message::{
    self, IFF_UP, RTM_DELADDR, RTM_DELLINK, RTM_GETADDR, RTM_GETLINK, RTM_NEWADDR, RTM_NEWLINK,
};
use crate::watch::Watch;

/// The object must not exist yet.
const NEW: u16 = NLM_F_CREATE | NLM_F_EXCL;

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
    socket: Socket,
    /// Its index when it was last found. The kernel gives the index of a removed device to no other one.
    known: Option<u32>,
}

impl DummyDevice {
    /// Opens a handle; nothing is requested or changed yet.
    ///
    /// # Errors
    /// [`Error::InvalidName`], or when there is no rtnetlink socket.
    pub fn open(name: &str) -> Result<Self, Error> {
        check_name(name)?;
        Ok(Self { name: name.to_owned(), socket: Socket::open(protocols::NETLINK_ROUTE)?, known: None })
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What went over the socket so far.
    pub fn counters(&self) -> Counters {
        self.socket.counters()
    }

    fn link(&mut self) -> Result<Option<message::Link>, Error> {
        self.known = None;
        match self.socket.ask(&Packet::new(RTM_GETLINK, message::link_by_name(&self.name)))? {
            Ok(payload) => {
                let link = message::parse_link(&payload)?;
                self.known = (link.kind.as_deref() == Some("dummy")).then_some(link.index);
                Ok(Some(link))
            }
            Err(refusal) if refusal.errno() == Errno::ENODEV => Ok(None),
            Err(refusal) => Err(refusal.into()),
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

    /// Sends one request and waits for its acknowledgement; `Some` when it was refused.
    fn request(
        &mut self,
        kind: u16,
        flags: u16,
        body: impl Emitable + Send,
    ) -> Result<Option<Refusal>, Error> {
        Ok(self.socket.batch([Packet { kind, flags, body }])?.pop().map(|(_, refusal)| refusal))
    }

    /// Creates the device, which stays down; false when it was there. Like `ip link add NAME type dummy`.
    ///
    /// # Errors
    /// [`Error::WrongKind`], [`Error::NoDummySupport`], [`Error::Netlink`] without `CAP_NET_ADMIN`.
    pub fn create(&mut self) -> Result<bool, Error> {
        if self.state()?.is_some() {
            return Ok(false);
        }
        let Some(refusal) = self.request(RTM_NEWLINK, NEW, message::new_dummy(&self.name))? else {
            return Ok(true);
        };
        match refusal.errno() {
            // Another program was faster: what matters is the kind.
            Errno::EEXIST => self.index().map(|_| false),
            Errno::EOPNOTSUPP => Err(Error::NoDummySupport),
            _ => Err(refusal.into()),
        }
    }

    /// Deletes the device with its addresses; false when it was not there. Like `ip link delete NAME`.
    ///
    /// # Errors
    /// [`Error::WrongKind`]: only a dummy is deleted.
    pub fn delete(&mut self) -> Result<bool, Error> {
        let Some(state) = self.state()? else { return Ok(false) };
        // By index: the name may be another device's by now.
        match self.request(RTM_DELLINK, 0, message::link_by_index(state.index))? {
            None => Ok(true),
            Some(refusal) if refusal.errno() == Errno::ENODEV => Ok(false),
            Some(refusal) => Err(refusal.into()),
        }
    }

    /// All addresses of the namespace, in one dump. Works without the device, too.
    ///
    /// # Errors
    /// A list that could not be read whole.
    pub fn addresses(&mut self) -> Result<Addresses, Error> {
        let link = self.link()?;
        let index = link.as_ref().map(|link| link.index);
        let request = Packet::new(RTM_GETADDR, AddressMessage::default());
        let all: Vec<HostAddress> = self.socket.dump(&request, |found: &mut Vec<_>, payload| {
            found.extend(message::parse_address(payload)?);
            Ok::<(), Error>(())
        })?;
        let (own, elsewhere): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|found| Some(found.index) == index);
        let is_ours = link.is_some_and(|link| link.kind.as_deref() == Some("dummy"));
        let own = own.into_iter().map(|found| found.addr).filter(|addr| !is_link_local(addr));
        Ok(Addresses { own: is_ours.then(|| own.collect()), elsewhere })
    }

    /// Adds addresses as `/32` or `/128`, scope global; one that is there is fine. Returns those
    /// refused, by their index. Like `ip addr add ADDR dev NAME` for each.
    ///
    /// # Errors
    /// [`Error::NoDevice`]; after [`Error::Netlink`] it is unknown which addresses were added.
    pub fn add_addresses(&mut self, addrs: &[IpAddr]) -> Result<Vec<(usize, AddressError)>, Error> {
        let nets: Vec<IpNet> = addrs.iter().map(|addr| IpNet::from(*addr)).collect();
        self.change(RTM_NEWADDR, NEW, &nets, &[Errno::EEXIST])
    }

    /// Deletes addresses with exactly these prefixes; one that is not there is fine. Returns those
    /// refused, by their index. Like `ip addr del ADDR dev NAME` for each.
    ///
    /// # Errors
    /// [`Error::NoDevice`]; after [`Error::Netlink`] it is unknown which addresses were deleted.
    pub fn delete_addresses(&mut self, addrs: &[IpNet]) -> Result<Vec<(usize, AddressError)>, Error> {
        self.change(RTM_DELADDR, 0, addrs, &[Errno::EADDRNOTAVAIL, Errno::ENXIO])
    }

    fn change(
        &mut self,
        kind: u16,
        flags: u16,
        nets: &[IpNet],
        fine: &[Errno],
    ) -> Result<Vec<(usize, AddressError)>, Error> {
        if nets.is_empty() {
            return Ok(Vec::new());
        }
        let known = self.known;
        let index = known.map_or_else(|| self.index(), Ok)?;
        let mut refused = self.send_addresses(kind, flags, index, nets)?;
        // The device may have been made anew.
        if known.is_some() && refused.iter().any(|(_, refusal)| refusal.errno() == Errno::ENODEV) {
            let index = self.index()?;
            refused = self.send_addresses(kind, flags, index, nets)?;
        }
        let refused = refused.into_iter().filter(|(_, refusal)| !fine.contains(&refusal.errno()));
        Ok(refused
            .filter_map(|(i, refusal)| Some((i, AddressError::new(nets.get(i)?.addr(), refusal))))
            .collect())
    }

    fn send_addresses(
        &mut self,
        kind: u16,
        flags: u16,
        index: u32,
        nets: &[IpNet],
    ) -> Result<Vec<(usize, Refusal)>, Error> {
        let requests = nets.iter().map(|net| Packet { kind, flags, body: message::address(index, *net) });
        Ok(self.socket.batch(requests)?)
    }

    /// Watches the device and its addresses; see [`Watch`]. Changes made through this handle are left out as far as
    /// the kernel says who made them.
    ///
    /// # Errors
    /// When there is no rtnetlink socket, or the device cannot be read.
    pub fn watch(&self) -> Result<Watch, Error> {
        Watch::open(&self.name, self.socket.port_number())
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
