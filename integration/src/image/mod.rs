// SPDX-License-Identifier: Apache-2.0
//! The agent's image and its manifests, without a cluster: reads what `kubectl apply` would send, and
//! starts its containers as a kubelet with containerd would, through an OCI runtime.

mod archive;
mod manifest;
mod seccomp;
mod spec;

pub use archive::unpack;
pub use manifest::{Manifest, read};
pub use spec::{Host, runtime_spec};
