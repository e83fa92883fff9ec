// SPDX-License-Identifier: Apache-2.0
//! Reading the real kernel, a piece at a time.

use std::net::IpAddr;
use std::time::Duration;

use ipvs_netlink as ipvs;
use ipvs_netlink::{Client, Destination, ErrorKind, Service, ServiceList};

use super::linux::{LinuxKernel, service_id, vs_key};
use super::table::{Shown, TableReader};
use super::{ObserveError, nft_tables, sysctl};
use crate::core::audit::{Addresses, Piece, Rest, Step};
use crate::core::model::{RsKey, VsKey, VsSpec};
use crate::core::observed::{ObservedServer, RsState};
use crate::core::sets::SetId;
use crate::core::settings::Timeouts;

/// Datagrams of the list of virtual servers in one piece, some 130 virtual servers each.
const LISTED: usize = 4;
/// Pages of the kernel's table in one piece, some 10 virtual servers each.
const SHOWN: usize = 12;
/// Pause between looks whether the programs that print rules have ended.
const RULES_PAUSE: Duration = Duration::from_millis(2);
/// Schedulers whose virtual servers may have flags (`IP_VS_SVC_F_SCHED*`).
const FLAGGED: [&str; 2] = ["mh", "sh"];

/// How far a reading is.
#[derive(Debug)]
pub(super) enum Reading {
    /// Over a socket of its own: a socket has one dump at a time, and commands go on meanwhile.
    Listed(Box<(Client, ServiceList)>),
    Shown(Box<TableReader>),
    /// So many sets have been read.
    Sets(usize),
    Addresses,
    Rest,
    Rules,
    End,
}

fn unreadable(what: &'static str) -> impl Fn(&dyn std::fmt::Display) -> ObserveError {
    move |error| ObserveError { what, message: error.to_string() }
}

impl LinuxKernel {
    pub(super) fn begin_reading(&mut self, step: Step) -> Result<Reading, ObserveError> {
        // The programs run while everything else is read.
        self.rules.begin(&mut self.nft, &mut self.iptables, &self.families);
        // The table shows everything but the flags that two schedulers have.
        if step == Step::Compare && !FLAGGED.contains(&&*self.scheduler) {
            return self.begin_table();
        }
        self.lists += 1;
        let list = Client::open().and_then(|mut lister| {
            let list = lister.begin_services()?;
            Ok((lister, list))
        });
        list.map(Box::new).map(Reading::Listed).map_err(|error| unreadable("IPVS")(&error))
    }

    fn begin_table(&mut self) -> Result<Reading, ObserveError> {
        self.tables += 1;
        let table = TableReader::open(self.scheduler.clone()).map_err(|error| unreadable("IPVS")(&error))?;
        Ok(Reading::Shown(Box::new(table)))
    }

    /// The next piece, and where the reading is then.
    pub(super) fn read_piece(&mut self, reading: Reading) -> Result<(Option<Piece>, Reading), ObserveError> {
        match reading {
            Reading::Listed(mut list) => match self.read_listed(&mut list)? {
                Some(piece) => Ok((Some(piece), Reading::Listed(list))),
                None => {
                    let table = self.begin_table()?;
                    self.read_piece(table)
                }
            },
            Reading::Shown(mut table) => {
                match table.next(SHOWN).map_err(|error| unreadable("IPVS")(&error))? {
                    Some(shown) => Ok((Some(shown_piece(shown)), Reading::Shown(table))),
                    None => self.read_piece(Reading::Sets(0)),
                }
            }
            Reading::Sets(n) => match self.families.iter().flat_map(|family| SetId::all(*family)).nth(n) {
                Some(id) => {
                    let set = self.sets.get(id).map_err(|error| unreadable("ipsets")(&error))?;
                    Ok((Some(Piece::Set(id, set)), Reading::Sets(n + 1)))
                }
                None => self.read_piece(Reading::Addresses),
            },
            Reading::Addresses => Ok((Some(self.read_addresses()?), Reading::Rest)),
            Reading::Rest => Ok((Some(self.read_rest()?), Reading::Rules)),
            Reading::Rules if !self.rules.is_ready() => {
                std::thread::sleep(RULES_PAUSE);
                Ok((Some(Piece::Awaited), Reading::Rules))
            }
            Reading::Rules => {
                let rules = self.rules.end(&self.families, &mut self.families_tried);
                match rules.map_err(|error| unreadable("iptables rules")(&error))? {
                    Some((families, rules)) => {
                        self.families.clone_from(&families);
                        Ok((Some(Piece::Rules(families, Box::new(rules))), Reading::End))
                    }
                    None => Ok((None, Reading::End)),
                }
            }
            Reading::End => Ok((None, Reading::End)),
        }
    }

    fn read_listed(
        &mut self,
        (lister, list): &mut (Client, ServiceList),
    ) -> Result<Option<Piece>, ObserveError> {
        let mut listed = None;
        for _ in 0..LISTED {
            let more = lister.more_services(list).map_err(|error| unreadable("IPVS")(&error))?;
            let Some(services) = more else { break };
            // A service by fwmark, or of a protocol that Services cannot have, is somebody else's.
            let ours = services.iter().filter_map(|service| Some((vs_key(&service.id)?, self.spec(service))));
            listed.get_or_insert_with(Vec::new).extend(ours);
        }
        Ok(listed.map(Piece::Listed))
    }

    fn spec(&self, service: &Service) -> VsSpec {
        let usual = *service.scheduler == *self.scheduler;
        VsSpec {
            scheduler: if usual { self.scheduler.clone() } else { service.scheduler.as_str().into() },
            flags: service.flags.without_hashed().bits(),
            timeout: service.timeout,
        }
    }

    pub(super) fn look_up_one(&mut self, vs: &VsKey) -> Result<Option<ObservedServer>, ObserveError> {
        let id = service_id(vs);
        let service = match self.ipvs.service(&id) {
            Ok(service) => service,
            Err(ipvs::Error::Command(error)) if error.kind == ErrorKind::NoSuchService => return Ok(None),
            Err(error) => return Err(unreadable("IPVS")(&error)),
        };
        let destinations = self.ipvs.destinations(&id).map_err(|error| unreadable("IPVS")(&error))?;
        Ok(Some(ObservedServer {
            spec: self.spec(&service),
            real_servers: destinations.iter().map(real_server).collect(),
        }))
    }

    fn read_addresses(&mut self) -> Result<Piece, ObserveError> {
        let unreadable = |error| unreadable("addresses")(&error);
        let all = self.device.addresses().map_err(unreadable)?;
        Ok(Piece::Addresses(Addresses {
            device: all.own.is_some(),
            bound: all.own.unwrap_or_default().into_iter().collect(),
            elsewhere: node_addresses(all.elsewhere.iter().map(|a| a.addr.addr())),
        }))
    }

    fn read_rest(&mut self) -> Result<Piece, ObserveError> {
        let config = self.ipvs.config().map_err(|error| unreadable("IPVS")(&error))?;
        Ok(Piece::Rest(Rest {
            timeouts: Timeouts { tcp: config.tcp, tcp_fin: config.tcp_fin, udp: config.udp },
            sysctls: self.sysctls.iter().filter_map(|path| Some((*path, sysctl::read(path)?))).collect(),
            next_hops: self.device.next_hops().map_err(|error| unreadable("routes")(&error))?,
            // Only a table that is there matters, and an unclear answer shows none.
            nft_tables: nft_tables::find(&mut self.nft).unwrap_or_default(),
        }))
    }
}

fn shown_piece(shown: Vec<Shown>) -> Piece {
    Piece::Shown(shown.into_iter().map(|shown| (shown.key, shown.spec, shown.real_servers)).collect())
}

fn real_server(dest: &Destination) -> (RsKey, RsState) {
    let state = RsState { weight: dest.weight, forward: dest.forward.into() };
    (RsKey { addr: dest.addr, port: dest.port }, state)
}

/// The addresses of the node that matter: sorted, without loopback.
fn node_addresses(all: impl Iterator<Item = IpAddr>) -> Vec<IpAddr> {
    let mut addresses: Vec<IpAddr> = all.filter(|ip| !ip.is_loopback()).collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_addresses_leave_out_what_every_node_has() {
        let all =
            ["fe80::1", "10.0.0.2", "::1", "127.0.0.1", "10.0.0.1", "fd00::1", "169.254.1.1", "10.0.0.1"];
        let got = node_addresses(all.iter().map(|a| a.parse().unwrap()));
        let got: Vec<String> = got.iter().map(ToString::to_string).collect();
        assert_eq!(got, ["10.0.0.1", "10.0.0.2", "169.254.1.1", "fd00::1", "fe80::1"]);
    }
}
