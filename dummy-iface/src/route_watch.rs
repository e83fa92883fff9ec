// SPDX-License-Identifier: Apache-2.0
//! Notifications of new routes.

use std::net::IpAddr;

use crate::error::Error;
use crate::route::parse_gateways;
use crate::socket::RouteSocket;

/// `RTNLGRP_IPV4_ROUTE`, `RTNLGRP_IPV6_ROUTE`
const GROUPS: [u32; 2] = [7, 11];
const RTM_NEWROUTE: u16 = 24;

/// Watches the routes of the network namespace that it was opened in.
#[derive(Debug)]
pub struct RouteWatch {
    socket: RouteSocket,
}

impl RouteWatch {
    /// Begins to watch.
    ///
    /// # Errors
    /// When there is no rtnetlink socket.
    pub fn open() -> Result<Self, Error> {
        Ok(Self { socket: RouteSocket::listen(&GROUPS)? })
    }

    /// Waits until routes with gateways come, and returns the gateways.
    ///
    /// # Errors
    /// [`Error::Lost`] when the kernel dropped notifications; when the socket fails or one cannot be read.
    pub fn next_gateways(&mut self) -> Result<Vec<IpAddr>, Error> {
        loop {
            let mut gateways = Vec::new();
            for message in self.socket.receive()?.iter().filter(|message| message.kind == RTM_NEWROUTE) {
                parse_gateways(message.payload, &mut gateways)?;
            }
            if !gateways.is_empty() {
                return Ok(gateways);
            }
        }
    }
}
