// SPDX-License-Identifier: Apache-2.0
//! Messages of other threads to the reconcile loop, behind one condition variable.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use ipnet::IpNet;

use crate::core::loop_state::Question;
use crate::core::model::RsKey;
use crate::core::plan::subject::Part;
use crate::lock::lock;

/// The messages that the loop takes at once.
#[derive(Default)]
pub struct Mail {
    /// A message came since the loop took the messages.
    woken: bool,
    /// Parts of the kernel that another program changed, or may have changed.
    pub changed: BTreeSet<Part>,
    pub audit: bool,
    /// The agent is to stop.
    pub stop: bool,
    /// Addresses that were added to `kube-ipvs0` (`true`) or removed from it (`false`).
    pub addresses: Vec<(IpNet, bool)>,
    /// Gateways of new routes.
    pub gateways: Vec<IpAddr>,
    /// Checked endpoints that changed: whether each is dead.
    pub checked: Vec<(RsKey, bool)>,
    /// Questions about the state of the loop.
    pub questions: Vec<Question>,
}

#[derive(Debug, Default)]
pub struct Inbox {
    mail: Mutex<Mail>,
    condvar: Condvar,
}

impl fmt::Debug for Mail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mail").field("woken", &self.woken).finish_non_exhaustive()
    }
}

impl Inbox {
    fn with(&self, change: impl FnOnce(&mut Mail)) {
        let mut mail = lock(&self.mail);
        change(&mut mail);
        mail.woken = true;
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

    /// Checks of endpoints found these changes: whether each is dead.
    pub fn checked(&self, changes: Vec<(RsKey, bool)>) {
        self.with(|mail| mail.checked.extend(changes));
    }

    /// Requests the end of the agent.
    pub fn stop(&self) {
        self.with(|mail| mail.stop = true);
    }

    /// The loop answers the question soon.
    pub fn ask(&self, question: Question) {
        self.with(|mail| mail.questions.push(question));
    }

    #[cfg(test)]
    pub fn is_woken(&self) -> bool {
        lock(&self.mail).woken
    }

    /// Waits for a message, until `timeout`, and takes all messages. A requested stop stays.
    pub fn wait(&self, timeout: Option<Duration>) -> Mail {
        let timeout = timeout.unwrap_or(Duration::MAX);
        let waited = self.condvar.wait_timeout_while(lock(&self.mail), timeout, |mail| !mail.woken);
        let mut mail = waited.unwrap_or_else(PoisonError::into_inner).0;
        let stop = mail.stop;
        std::mem::replace(&mut mail, Mail { stop, ..Mail::default() })
    }
}
