// SPDX-License-Identifier: Apache-2.0
//! Tests, demo, comparison and benches of kube-ipvs: all that needs a kernel with IPVS.
//!
//! [`lab`] makes nodes, pods and clients of network namespaces and sends traffic between them;
//! [`parity`] compares an agent's work with recordings of the real kube-proxy. The shell scripts in
//! `guest/` bring the kernel.

pub mod apiserver;
pub mod bench;
pub mod chaos;
pub mod image;
#[cfg(test)]
mod installer;
#[cfg(test)]
mod kubectl_plugin;
pub mod lab;
pub mod messages;
pub mod objects;
pub mod parity;
pub mod replay;
pub mod suite;
