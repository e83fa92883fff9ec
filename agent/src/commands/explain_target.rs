// SPDX-License-Identifier: Apache-2.0
//! `kube-ipvs explain`: what a packet to an address meets on this node, and why.

use std::net::IpAddr;
use std::process::ExitCode;

use super::offline::Offline;
use super::show_status;
use crate::cli::{ExplainArgs, LookArgs};
use crate::inspect::answers::AgentRequest;
use crate::inspect::explain::{self, ExplainRequest, Explanation};
use crate::inspect::ipvs_table;
use crate::inspect::socket::{AskError, ask};

/// Prints the explanation. The code is 0 if there is one, 1 if the target does not exist, 3 if no agent answers.
///
/// # Errors
/// The output cannot be written.
pub fn run(args: &ExplainArgs) -> anyhow::Result<ExitCode> {
    let request = ExplainRequest { target: args.target.clone(), from: args.from.clone() };
    let asked = match args.look.is_empty() {
        true => ask(&AgentRequest::Explain(request)),
        false => explain_offline(&args.look, &request)?,
    };
    let mut explanation: Explanation = match asked {
        Ok(explanation) => explanation,
        Err(AskError::Refused(why)) => anyhow::bail!("{why}"),
        Err(error) => return Ok(show_status::no_agent(&error)),
    };
    add_connections(&mut explanation);
    let steps = args.from.is_some() || args.steps;
    super::print_answer(&explanation, args.answer.output, |layout| explanation.text(layout, steps))?;
    Ok(ExitCode::SUCCESS)
}

/// Explains what the kernel does now with these objects and this configuration, without an agent.
fn explain_offline(
    look: &LookArgs,
    request: &ExplainRequest,
) -> anyhow::Result<Result<Explanation, AskError>> {
    let mut offline = Offline::open(look)?;
    offline.preview()?;
    let found = explain::find(&offline.store, request);
    Ok(found.map(|found| explain::explain(&offline.state(), &found, request)).map_err(AskError::Refused))
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
