// SPDX-License-Identifier: Apache-2.0
//! The commands of the program.

pub mod cleanup;
pub mod diagnose;
pub mod explain_target;
pub mod init;
pub mod list;
pub mod run;
pub mod show_config;
pub mod show_status;

use std::io::{ErrorKind, Write as _};

use crate::cli::AnswerFormat;
use crate::inspect::layout::Layout;

/// Prints an answer: as text for people, or as a document.
fn print_answer<T: serde::Serialize>(
    answer: &T,
    format: AnswerFormat,
    text: impl FnOnce(Layout) -> String,
) -> anyhow::Result<()> {
    print(&match format {
        AnswerFormat::Text => text(Layout::of_stdout()),
        AnswerFormat::Json => format!("{}\n", serde_json::to_string_pretty(answer)?),
        AnswerFormat::Yaml => serde_saphyr::to_string(answer)?,
    })
}

/// Writes to standard output. A closed pipe is no error.
fn print(text: &str) -> anyhow::Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}
