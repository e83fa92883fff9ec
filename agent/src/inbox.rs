// SPDX-License-Identifier: Apache-2.0
//! How other threads reach the reconcile loop: flags and questions behind one condition variable.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::mpsc::Sender;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ipnet::IpNet;

use crate::core::plan::subject::Part;

/// Which Service is behind which virtual server, as text lines `PROTO ADDR:PORT NAMESPACE/NAME[:PORT]`.
pub type Owners = String;

#[derive(Debug, Default)]
struct State {
    woken: bool,
    changed: BTreeSet<Part>,
    audit: bool,
    stop: bool,
    addresses: Vec<(IpNet, bool)>,
    gateways: Vec<IpAddr>,
    questions: Vec<Sender<Owners>>,
}

/// What the loop found in its inbox.
#[derive(Debug, Default)]
pub struct Mail {
    /// Parts of the kernel that another program changed, or may have.
    pub changed: BTreeSet<Part>,
    /// Everything is to be read again soon.
    pub audit: bool,
    /// The agent is to end.
    pub stop: bool,
    /// Addresses that came to (`true`) or went from (`false`) `kube-ipvs0`.
    pub addresses: Vec<(IpNet, bool)>,
    /// Gateways of routes that came.
    pub gateways: Vec<IpAddr>,
    /// Who wants to know the owners of the virtual servers.
    pub questions: Vec<Sender<Owners>>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Inbox {
    state: Mutex<State>,
    condvar: Condvar,
}

impl Inbox {
    fn with(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.lock();
        change(&mut state);
        state.woken = true;
        self.condvar.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The store changed.
    pub fn wake(&self) {
        self.with(|_| {});
    }

    /// Another program changed this part of the kernel, or may have.
    pub fn changed(&self, part: Part) {
        self.with(|state| _ = state.changed.insert(part));
    }

    /// Asks for an audit soon.
    pub fn audit(&self) {
        self.with(|state| state.audit = true);
    }

    /// An address came to `kube-ipvs0` (`added`) or went from it.
    pub fn address(&self, net: IpNet, added: bool) {
        self.with(|state| state.addresses.push((net, added)));
    }

    /// A route through these gateways came.
    pub fn gateways(&self, gateways: Vec<IpAddr>) {
        self.with(|state| state.gateways.extend(gateways));
    }

    /// The agent is to end.
    pub fn stop(&self) {
        self.with(|state| state.stop = true);
    }

    /// Asks for the owners of all virtual servers.
    pub fn ask(&self, answer: Sender<Owners>) {
        self.with(|state| state.questions.push(answer));
    }

    /// Whether somebody has called.
    #[cfg(test)]
    pub fn is_woken(&self) -> bool {
        self.lock().woken
    }

    /// Waits until somebody calls or `timeout` is over, and takes what is there.
    pub fn wait(&self, timeout: Option<Duration>) -> Mail {
        let state = self.lock();
        let mut state = match timeout {
            None => self.condvar.wait_while(state, |s| !s.woken).unwrap_or_else(PoisonError::into_inner),
            Some(timeout) => {
                let waited = self.condvar.wait_timeout_while(state, timeout, |s| !s.woken);
                waited.unwrap_or_else(PoisonError::into_inner).0
            }
        };
        state.woken = false;
        Mail {
            changed: std::mem::take(&mut state.changed),
            audit: std::mem::take(&mut state.audit),
            stop: state.stop,
            addresses: std::mem::take(&mut state.addresses),
            gateways: std::mem::take(&mut state.gateways),
            questions: std::mem::take(&mut state.questions),
        }
    }
}
