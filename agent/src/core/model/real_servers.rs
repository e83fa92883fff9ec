// SPDX-License-Identifier: Apache-2.0
//! The wanted real servers of a virtual server. Nearly all have the usual state, which takes no memory.

use std::fmt;
use std::sync::Arc;

use super::RsKey;

/// `IP_VS_CONN_F_MASQ`
pub const MASQUERADE: u32 = 0;
/// `IP_VS_CONN_F_TUNNEL`
pub const TUNNEL: u32 = 2;
/// `IP_VS_CONN_F_DROUTE`
pub const DIRECT_ROUTE: u32 = 3;

/// State of a real server in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RsState {
    /// Weight; a real server of weight 0 gets no new connections.
    pub weight: u32,
    /// Forwarding method, `IP_VS_CONN_F_*`; 0 is masquerading.
    pub forward: u32,
    /// Limits of its connections.
    pub limits: ConnectionLimits,
}

/// The number of connections of a real server from which on it gets no new ones, and below which it gets them again. 0: no
/// limit; a lower limit of 0: three quarters of the upper one. Inactive connections count, too (`ip_vs_dest_totalconns`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ConnectionLimits {
    /// `IPVS_DEST_ATTR_U_THRESH`
    pub upper: u32,
    /// `IPVS_DEST_ATTR_L_THRESH`
    pub lower: u32,
}

impl RsState {
    /// The usual state, as in kube-proxy: weight 1, masqueraded.
    pub const USUAL: RsState =
        RsState { weight: 1, forward: MASQUERADE, limits: ConnectionLimits { upper: 0, lower: 0 } };
    /// The state of a draining real server: it gets no new connections.
    pub const DRAINING: RsState = RsState { weight: 0, ..Self::USUAL };

    /// As `weight 3, masqueraded, at most 100 connections`.
    pub fn text(&self) -> String {
        let forward = match self.forward {
            MASQUERADE => "masqueraded".to_owned(),
            TUNNEL => "tunnelled".to_owned(),
            DIRECT_ROUTE => "routed directly".to_owned(),
            other => format!("forwarding method {other}"),
        };
        let limits = match self.limits.upper {
            0 => String::new(),
            upper => format!(", at most {upper} connections"),
        };
        format!("weight {}, {forward}{limits}", self.weight)
    }

    /// Whether `/proc/net/ip_vs` shows this state as `shown`: the file has no limits.
    pub fn looks_like(&self, shown: &RsState) -> bool {
        (self.weight, self.forward) == (shown.weight, shown.forward)
    }
}

/// What differs from the usual state, after a blank: ` weight 3, masqueraded`.
impl fmt::Display for RsState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::USUAL { Ok(()) } else { write!(f, " {}", self.text()) }
    }
}

/// The wanted real servers of a virtual server, sorted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WantedServers {
    /// All in the usual state.
    Usual(Arc<[RsKey]>),
    Other(Arc<OtherServers>),
}

/// Real servers with the state of each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtherServers {
    keys: Box<[RsKey]>,
    states: Box<[RsState]>,
}

impl WantedServers {
    /// Sorted real servers without duplicates, each with its state.
    pub fn new(sorted: Vec<(RsKey, RsState)>) -> Self {
        if sorted.iter().all(|(_, state)| *state == RsState::USUAL) {
            return Self::Usual(sorted.into_iter().map(|(rs, _)| rs).collect());
        }
        let (keys, states): (Vec<_>, Vec<_>) = sorted.into_iter().unzip();
        Self::Other(Arc::new(OtherServers { keys: keys.into(), states: states.into() }))
    }

    pub fn keys(&self) -> &[RsKey] {
        match self {
            Self::Usual(keys) => keys,
            Self::Other(other) => &other.keys,
        }
    }

    /// The state of the real server at this index of [`Self::keys`].
    pub fn state(&self, index: usize) -> RsState {
        match self {
            Self::Usual(_) => RsState::USUAL,
            Self::Other(other) => other.states[index],
        }
    }

    pub fn contains(&self, rs: &RsKey) -> bool {
        self.keys().binary_search(rs).is_ok()
    }

    pub fn iter(&self) -> impl Iterator<Item = (RsKey, RsState)> + '_ {
        self.keys().iter().enumerate().map(|(index, rs)| (*rs, self.state(index)))
    }

    /// Whether some of them get new connections.
    pub fn have_open(&self) -> bool {
        match self {
            Self::Usual(keys) => !keys.is_empty(),
            Self::Other(other) => other.states.iter().any(|state| state.weight > 0),
        }
    }

    /// Whether some of them have limits of connections.
    pub fn have_limits(&self) -> bool {
        let Self::Other(other) = self else { return false };
        other.states.iter().any(|state| state.limits != ConnectionLimits::default())
    }

    pub fn len(&self) -> usize {
        self.keys().len()
    }

    pub fn is_empty(&self) -> bool {
        self.keys().is_empty()
    }

    /// The same real servers, each in another state.
    #[must_use]
    pub fn map(&self, state: impl Fn(&RsKey, RsState) -> RsState) -> Self {
        Self::new(self.iter().map(|(rs, before)| (rs, state(&rs, before))).collect())
    }
}

impl Default for WantedServers {
    fn default() -> Self {
        Self::Usual(Arc::default())
    }
}

/// Real servers in the usual state, sorted.
impl FromIterator<RsKey> for WantedServers {
    fn from_iter<I: IntoIterator<Item = RsKey>>(sorted: I) -> Self {
        Self::Usual(sorted.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn real_servers_in_the_usual_state_take_no_more_memory_than_their_keys() {
        assert_eq!(size_of::<WantedServers>(), size_of::<Arc<[RsKey]>>());
        let rs = |n: u8| RsKey { addr: [10, 244, 0, n].into(), port: 80 };
        let usual = WantedServers::new(vec![(rs(1), RsState::USUAL), (rs(2), RsState::USUAL)]);
        assert!(matches!(usual, WantedServers::Usual(_)));
        let heavy = RsState { weight: 3, ..RsState::USUAL };
        let mixed = usual.map(|key, state| if *key == rs(2) { heavy } else { state });
        assert_eq!(mixed.iter().collect::<Vec<_>>(), [(rs(1), RsState::USUAL), (rs(2), heavy)]);
        assert!(!mixed.contains(&rs(3)));
        assert_eq!(mixed.map(|_, _| RsState::USUAL), usual);
    }
}
