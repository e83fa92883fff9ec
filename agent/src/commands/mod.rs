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
use std::path::Path;

use anyhow::ensure;
use tokio::runtime::Runtime;

use crate::cli::AnswerFormat;
use crate::config::Config;
use crate::core::model::service_defaults::label_keys;
use crate::inspect::layout::Layout;
use crate::source::api::ApiSource;
use crate::source::client::ApiClient;
use crate::source::decode::selected_labels;
use crate::source::files::FileSource;

/// Reads what the configuration needs of objects. Call it before the first object is read.
fn select_labels(config: &Config) {
    selected_labels::select(&label_keys(&config.settings.service_defaults));
}

/// The objects of the API server, as the configuration selects them.
fn api_source(config: &Config, api: ApiClient, node: &str, runtime: &Runtime) -> ApiSource {
    select_labels(config);
    let source = ApiSource::new(api, node, runtime.handle().clone());
    let source = source.for_proxy(config.service_proxy_name.as_deref());
    source.with_service_cidrs(config.follows_service_cidrs)
}

/// The objects of files, as the configuration selects them.
///
/// # Errors
/// The configuration needs objects that only the API has.
fn file_source(config: &Config, path: &Path, node: &str) -> anyhow::Result<FileSource> {
    ensure!(
        !config.follows_service_cidrs,
        "kubeIPVS.clusterIPs: route reads the ranges of ClusterIPs from the Kubernetes API, but --objects reads files: \
         list the ranges in kubeIPVS.serviceCIDRs"
    );
    select_labels(config);
    Ok(FileSource::new(path, node).serving(config.service_proxy_name.clone()))
}

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
