// SPDX-License-Identifier: Apache-2.0
//! `kube-ipvs status`: the state of the running agent.

use std::process::ExitCode;

use crate::cli::AnswerArgs;
use crate::config::host;
use crate::inspect::answers::AgentRequest;
use crate::inspect::ipvs_table;
use crate::inspect::socket::{AskError, ask};
use crate::inspect::status::Status;
use crate::kernel::iptables;

/// The code when no agent answers.
pub const NO_AGENT: u8 = 3;

/// Prints the status. The code is 0 if all is well, 1 if not, 3 if no agent answers.
///
/// # Errors
/// The output cannot be written.
pub fn run(args: &AnswerArgs) -> anyhow::Result<ExitCode> {
    let mut status: Status = match ask(&AgentRequest::Status) {
        Ok(status) => status,
        Err(error) => return Ok(no_agent(&error)),
    };
    status.versions.kernel = host::kernel_release().unwrap_or_default();
    status.versions.ipvs = ipvs_table::version().ok();
    if status.rules_mode == "iptables" {
        status.versions.iptables = iptables::version();
    }
    super::print_answer(&status, args.output, |layout| status.text(layout))?;
    Ok(ExitCode::from(status.exit_code()))
}

/// Says that no agent answers.
pub(super) fn no_agent(error: &AskError) -> ExitCode {
    eprintln!(
        "kube-ipvs: {error}; see `kubectl -n kube-system get pods -o wide` and the log of the agent's pod"
    );
    ExitCode::from(NO_AGENT)
}
