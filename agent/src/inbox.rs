// SPDX-License-Identifier: Apache-2.0
//! Messages of other threads to the reconcile loop, behind one condition variable.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::mpsc::Sender;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use ipnet::IpNet;

use crate::core::plan::subject::Part;
use crate::lock::lock;

#[derive(Debug, Default)]
struct InboxState {
    woken: bool,
    mail: Mail,
}

/// The messages that the loop takes at once.
#[derive(Debug, Default)]
pub struct Mail {
    /// Parts of the kernel that another program changed, or may have changed.
    pub changed: BTreeSet<Part>,
    pub audit: bool,
    /// The agent is to stop.
    pub stop: bool,
    /// Addresses that were added to `kube-ipvs0` (`true`) or removed from it (`false`).
    pub addresses: Vec<(IpNet, bool)>,
    /// Gateways of new routes.
    pub gateways: Vec<IpAddr>,
    /// Requests for the owners of the virtual servers: lines `PROTO ADDR:PORT NAMESPACE/NAME[:PORT]`.
    pub owner_requests: Vec<Sender<String>>,
}

#[derive(Debug, Default)]
pub struct Inbox {
    state: Mutex<InboxState>,
    condvar: Condvar,
}

impl Inbox {
    fn with(&self, change: impl FnOnce(&mut Mail)) {
        let mut state = lock(&self.state);
        change(&mut state.mail);
        state.woken = true;
        self.condvar.notify_one();
    }

    /// The store changed.
    pub fn wake(&self) {
        self.with(|_| {});
    }

    /// Another program changed this part of the kernel, or may have changed it.
    pub fn changed(&self, part: Part) {
        self.with(|mail| _ = mail.changed.insert(part));
    }

    pub fn audit(&self) {
        self.with(|mail| mail.audit = true);
    }

    /// An address was added to `kube-ipvs0` or removed from it.
    pub fn address(&self, net: IpNet, added: bool) {
        self.with(|mail| mail.addresses.push((net, added)));
    }

    /// Routes through these gateways were added.
    pub fn gateways(&self, gateways: Vec<IpAddr>) {
        self.with(|mail| mail.gateways.extend(gateways));
    }

    /// Requests the end of the agent.
    pub fn stop(&self) {
        self.with(|mail| mail.stop = true);
    }

    /// Requests the owners of all virtual servers.
    pub fn request_owners(&self, answer: Sender<String>) {
        self.with(|mail| mail.owner_requests.push(answer));
    }

    #[cfg(test)]
    pub fn is_woken(&self) -> bool {
        lock(&self.state).woken
    }

    /// Waits for a message, until `timeout`, and takes all messages. A requested stop stays.
    pub fn wait(&self, timeout: Option<Duration>) -> Mail {
        let state = lock(&self.state);
        let mut state = match timeout {
            None => self.condvar.wait_while(state, |s| !s.woken).unwrap_or_else(PoisonError::into_inner),
            Some(timeout) => {
                let waited = self.condvar.wait_timeout_while(state, timeout, |s| !s.woken);
                waited.unwrap_or_else(PoisonError::into_inner).0
            }
        };
        state.woken = false;
        let mail = std::mem::take(&mut state.mail);
        state.mail.stop = mail.stop;
        mail
    }
}
