// SPDX-License-Identifier: Apache-2.0
//! Injected faults of the API server and of the agent's programs, and flushes by other programs.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use fastrand::Rng;
use serde_json::Value;

use crate::apiserver::{ApiServer, Faults, Streaming};
use crate::lab::Netns;
use crate::objects;

/// By how many versions a restored store goes back: more than the changes until the next list of the agent.
const BACK: u64 = 1000;

/// Makes the API server or a program fail. Returns the name of the fault.
///
/// # Errors
/// When a file cannot be written.
pub fn begin(
    rng: &mut Rng,
    server: &ApiServer,
    objects: &[Value],
    programs: &Programs,
) -> Result<&'static str> {
    let resource = ["services", "endpointslices", "nodes", ""][rng.usize(..4)].to_owned();
    let streaming = |streaming| Faults { streaming, ..Faults::default() };
    let (name, faults) = match rng.u8(..13) {
        0 => {
            server.cut_watches(false);
            return Ok("cut watch");
        }
        1 => {
            server.cut_watches(true);
            return Ok("torn watch");
        }
        2 => {
            server.compact();
            return Ok("compacted history");
        }
        3 => {
            server.restore(objects.to_vec(), server.version().saturating_sub(BACK));
            return Ok("restored store");
        }
        4 => {
            programs.fail(true)?;
            return Ok("failing iptables-restore");
        }
        5 => ("silent API server", Faults { half_open: true, ..Faults::default() }),
        6 => ("answer 503", Faults { status: Some((resource, 503, 5)), ..Faults::default() }),
        7 => {
            let faults =
                Faults { status: Some((resource, 429, 3)), retry_after: Some(1), ..Faults::default() };
            ("answer 429", faults)
        }
        8 => ("answer 403", Faults { status: Some((resource, 403, 3)), ..Faults::default() }),
        9 => ("slow API server", Faults { delay: Some(Duration::from_millis(700)), ..Faults::default() }),
        10 => ("list that breaks off", Faults { truncate_list_body: true, ..Faults::default() }),
        11 => ("store without progress requests", streaming(Streaming::NoProgress)),
        _ => ("streamed list that breaks off", streaming(Streaming::BreaksOff)),
    };
    server.set_faults(faults);
    // An open watch notices most of these faults only when it is opened again.
    if rng.bool() {
        server.cut_watches(false);
    }
    Ok(name)
}

/// Ends all faults of [`begin`].
///
/// # Errors
/// When a file cannot be removed.
pub fn end(server: &ApiServer, programs: &Programs) -> Result<()> {
    server.set_faults(Faults::default());
    programs.fail(false)
}

/// Wrappers of the real programs that fail while a file exists.
#[derive(Debug)]
pub struct Programs {
    folder: PathBuf,
}

impl Programs {
    /// Writes them into a folder that comes first in the agent's PATH.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn new(folder: &Path) -> Result<Self> {
        use std::os::unix::fs::PermissionsExt as _;
        for name in ["iptables-restore", "ip6tables-restore"] {
            let path = folder.join(name);
            let failing = folder.join("failing").display().to_string();
            let text = format!(
                "#!/bin/sh\nif [ -e {failing} ]; then echo no luck >&2; exit 1; fi\nexec /usr/sbin/{name} \"$@\"\n"
            );
            std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).context("permissions")?;
        }
        Ok(Self { folder: folder.to_owned() })
    }

    /// The agent's PATH.
    pub fn path(&self) -> String {
        format!("{}:{}", self.folder.display(), std::env::var("PATH").unwrap_or_default())
    }

    fn fail(&self, fail: bool) -> Result<()> {
        let path = self.folder.join("failing");
        if fail {
            return std::fs::write(&path, "").context("cannot make programs fail");
        }
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).context("cannot end failures")
            }
            _ => Ok(()),
        }
    }
}

/// A removal by another program: name and command.
type Flush = (&'static str, &'static [&'static str]);

const FLUSHES: [Flush; 3] = [
    ("ipvsadm -C", &["ipvsadm", "-C"]),
    ("ip addr flush", &["ip", "addr", "flush", "dev", "kube-ipvs0"]),
    ("ip link del kube-ipvs0", &["ip", "link", "del", "kube-ipvs0"]),
];

/// In rules mode `iptables`.
const IPTABLES_FLUSHES: [Flush; 5] = [
    ("ipset flush", &["ipset", "flush"]),
    ("ipset flush KUBE-IPVS-IPS", &["ipset", "flush", "KUBE-IPVS-IPS"]),
    ("iptables -F", &["iptables", "-w", "-F"]),
    ("iptables -t nat -F", &["iptables", "-w", "-t", "nat", "-F"]),
    ("ip6tables -F", &["ip6tables", "-w", "-F"]),
];

/// In rules mode `nftables`. A flush of the whole ruleset would remove the counters of the test, too.
const NFTABLES_FLUSHES: [Flush; 5] = [
    ("nft delete table", &["nft", "delete", "table", "ip", "kube-ipvs"]),
    ("nft delete table, IPv6", &["nft", "delete", "table", "ip6", "kube-ipvs"]),
    ("nft flush table", &["nft", "flush", "table", "ip", "kube-ipvs"]),
    ("nft flush set", &["nft", "flush", "set", "ip", "kube-ipvs", "KUBE-IPVS-IPS"]),
    ("nft flush chain", &["nft", "flush", "chain", "ip", "kube-ipvs", "KUBE-SERVICES"]),
];

/// Removes objects of the agent as another program does. Returns the name, and whether it was a virtual
/// server.
///
/// # Errors
/// When the program is missing.
pub fn flush(rng: &mut Rng, ns: &Netns) -> Result<(&'static str, bool)> {
    let of_rules = if objects::in_nftables() { NFTABLES_FLUSHES } else { IPTABLES_FLUSHES };
    let flushes: Vec<Flush> = FLUSHES.into_iter().chain(of_rules).collect();
    let (name, command) = flushes[rng.usize(..flushes.len())];
    // The agent may have been killed before it created the object.
    ns.try_exec(command, None)?;
    Ok((name, command[0] == "ipvsadm"))
}
