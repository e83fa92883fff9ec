// SPDX-License-Identifier: Apache-2.0
//! The commands of the program.

pub mod cleanup;
pub mod collect_bundle;
pub mod diagnose;
pub mod explain_target;
pub mod init;
pub mod list;
mod offline;
pub mod plan_start;
pub mod run;
pub mod show_config;
pub mod show_status;
mod top_terminal;
pub mod trace_packets;
pub mod verify_node;
pub mod watch_traffic;

use std::io::{ErrorKind, Write as _};

use crate::cli::AnswerFormat;
use crate::inspect::layout::Layout;

/// Prints an answer: as text for people, or as a document.
fn print_answer<T: serde::Serialize>(
    answer: &T,
    format: AnswerFormat,
    text: impl FnOnce(Layout) -> String,
) -> anyhow::Result<()> {
    // One conversion for both documents: the program stays small.
    let document = || serde_json::to_value(answer);
    print(&match format {
        AnswerFormat::Text => text(Layout::of_stdout()),
        AnswerFormat::Json => format!("{:#}\n", document()?),
        AnswerFormat::Yaml => serde_saphyr::to_string(&document()?)?,
    })
}

/// Writes to standard output. A closed pipe is no error.
pub fn print(text: &str) -> anyhow::Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}
