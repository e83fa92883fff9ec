// SPDX-License-Identifier: Apache-2.0
//! `kube-ipvs explain`: what a packet to an address meets on this node, and why.

use std::net::IpAddr;
use std::process::ExitCode;

use super::show_status;
use crate::cli::ExplainArgs;
use crate::inspect::answers::AgentRequest;
use crate::inspect::explain::{ExplainRequest, Explanation};
use crate::inspect::ipvs_table;
use crate::inspect::socket::{AskError, ask};

/// Prints the explanation. The code is 0 if there is one, 1 if the target does not exist, 3 if no agent answers.
///
/// # Errors
/// The output cannot be written.
pub fn run(args: &ExplainArgs) -> anyhow::Result<ExitCode> {
    let request = ExplainRequest { target: args.target.clone(), from: args.from.clone() };
    let mut explanation: Explanation = match ask(&AgentRequest::Explain(request)) {
        Ok(explanation) => explanation,
        Err(AskError::Refused(why)) => anyhow::bail!("{why}"),
        Err(error) => return Ok(show_status::no_agent(&error)),
    };
    add_connections(&mut explanation);
    let steps = args.from.is_some() || args.steps;
    super::print_answer(&explanation, args.answer.output, |layout| explanation.text(layout, steps))?;
    Ok(ExitCode::SUCCESS)
}

/// Adds the connections of the moment, which only the kernel knows.
fn add_connections(explanation: &mut Explanation) {
    for frontend in &mut explanation.frontends {
        let (Ok(addr), Ok(protocol)) = (frontend.address.parse::<IpAddr>(), frontend.protocol.parse()) else {
            continue;
        };
        let key = crate::core::model::VsKey { protocol, addr, port: frontend.port };
        let Ok(connections) = ipvs_table::connections(&key) else { continue };
        for endpoint in &mut frontend.endpoints {
            let Ok(addr) = endpoint.address.parse::<IpAddr>() else { continue };
            if let Some((_, active, inactive)) =
                connections.iter().find(|(rs, ..)| (rs.addr, rs.port) == (addr, endpoint.port))
            {
                endpoint.active_connections = Some(*active);
                endpoint.inactive_connections = Some(*inactive);
            }
        }
    }
}
