// SPDX-License-Identifier: Apache-2.0
//! What the checks of `kube-ipvs doctor` depend on: what an agent shall do here, and the state of the node.

use crate::config::Config;
use crate::core::model::settings::{RulesMode, Settings};
use crate::core::plan::cleanup_plan::Found;
use crate::inspect::owners::ServiceOwners;
use crate::kernel::host::links::NodeLink;
use crate::kernel::host::node_files::{FoundModules, FoundProcesses, FoundSysctls};
use crate::kernel::iptables::iptables_survey::IptablesSurvey;
use crate::kernel::ipvs::ipvs_survey::{IpvsGap, IpvsSurvey};
use crate::source::access_review::ApiSurvey;

/// What the agent of this node does, or shall do.
#[derive(Clone, Debug)]
pub struct Intent {
    pub config: Config,
    /// With the sysctls and IP families of this node.
    pub settings: Settings,
    /// `None`: the agent chooses at its start (`kubeIPVS.rules: auto`).
    pub rules: Option<RulesMode>,
    /// An agent runs: what it made is no finding.
    pub agent_runs: bool,
}

/// What is known about the API server.
#[derive(Clone, Debug)]
pub enum ApiFacts {
    /// Objects come from this path.
    Files(String),
    /// Why it is not known: the kubeconfig belongs to the container of the agent.
    Unread(String),
    /// What failed, and the remedy.
    Failed(String),
    Answered(ApiSurvey),
}

/// The state of the node. What could not be read is the reason why.
#[derive(Clone, Debug)]
pub struct DoctorFacts {
    /// As `uname -r` prints it.
    pub release: Result<String, String>,
    pub modules: FoundModules,
    pub sysctls: FoundSysctls,
    pub processes: FoundProcesses,
    /// The effective capabilities of this process, a bit each.
    pub capabilities: Option<u64>,
    pub is_root: bool,
    pub links: Result<Vec<NodeLink>, String>,
    pub ipvs: Result<IpvsSurvey, IpvsGap>,
    pub iptables: IptablesSurvey,
    /// Whether the kernel has nf_tables.
    pub nftables: Result<bool, String>,
    /// What the agent or kube-proxy left, and what of it could not be read.
    pub found: Result<(Found, Vec<String>), String>,
    /// The Services of virtual servers, as the running agent tells them.
    pub owners: Option<ServiceOwners>,
    /// Why the agent cannot listen at its addresses.
    pub ports: Vec<String>,
    pub api: ApiFacts,
    /// This node's clock, in seconds since 1970.
    pub time: i64,
}

impl DoctorFacts {
    /// Nothing is known.
    #[cfg(test)]
    pub(super) fn unknown(why: &str) -> Self {
        let why = why.to_owned();
        Self {
            release: Err(why.clone()),
            modules: FoundModules::default(),
            sysctls: FoundSysctls::default(),
            processes: FoundProcesses::default(),
            capabilities: None,
            is_root: false,
            links: Err(why.clone()),
            ipvs: Err(IpvsGap::Unread(why.clone())),
            iptables: IptablesSurvey {
                is_installed: true,
                programs: vec![(crate::core::model::Family::V4, Err(why.clone()))],
                ..IptablesSurvey::default()
            },
            nftables: Err(why.clone()),
            found: Err(why.clone()),
            owners: None,
            ports: Vec::new(),
            api: ApiFacts::Unread(why),
            time: 1_795_828_258,
        }
    }
}
