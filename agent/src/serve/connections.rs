// SPDX-License-Identifier: Apache-2.0
//! How many connections a server has at once: no one asker, and not all together, can take its memory and its
//! file descriptors.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Connections of one server, or of several that share a limit.
#[derive(Clone, Debug)]
pub struct Connections {
    open: Arc<Mutex<HashMap<IpAddr, usize>>>,
    all: usize,
    of_one: usize,
}

/// A place that is given back when the connection ends.
#[derive(Debug)]
pub struct Place {
    open: Arc<Mutex<HashMap<IpAddr, usize>>>,
    asker: IpAddr,
}

impl Connections {
    /// At most `all` connections, and at most `of_one` of one asker.
    pub fn new(all: usize, of_one: usize) -> Self {
        Self { open: Arc::default(), all, of_one }
    }

    /// A place for a connection of this address; `None`: there are too many.
    pub fn take(&self, peer: IpAddr) -> Option<Place> {
        let asker = asker(peer);
        let mut open = lock(&self.open);
        let (all, of_one) = (open.values().sum::<usize>(), open.get(&asker).copied().unwrap_or(0));
        if all >= self.all || of_one >= self.of_one {
            return None;
        }
        *open.entry(asker).or_default() += 1;
        Some(Place { open: self.open.clone(), asker })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = lock(&self.open);
        if let Some(count) = open.get_mut(&self.asker) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.asker);
            }
        }
    }
}

fn lock(open: &Mutex<HashMap<IpAddr, usize>>) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
    open.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One host may have all addresses of a /64.
fn asker(peer: IpAddr) -> IpAddr {
    match peer {
        IpAddr::V6(ip) => Ipv6Addr::from(u128::from(ip) >> 64 << 64).into(),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_asker_leaves_room_for_others_and_all_have_an_end() {
        let connections = Connections::new(3, 2);
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let first = connections.take(ip("fd00::1")).unwrap();
        let _second = connections.take(ip("fd00::2")).unwrap();
        assert!(connections.take(ip("fd00::3")).is_none(), "one host");
        let third = connections.take(ip("10.0.0.1")).unwrap();
        assert!(connections.take(ip("10.0.0.2")).is_none(), "all places are taken");
        drop((first, third));
        assert!(connections.take(ip("fd00::3")).is_some());
        assert_eq!(connections.open.lock().unwrap().len(), 1);
    }
}
