// SPDX-License-Identifier: Apache-2.0
//! Unpacks an image archive: an OCI layout in a tar file.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// Unpacks the layers of the archive's one image into `root`, in their order, and returns the
/// environment of its configuration, as `NAME=value`.
///
/// # Errors
/// When it is no such archive, or `tar` fails.
pub fn unpack(archive: &Path, root: &Path) -> Result<Vec<String>> {
    let folder = tempfile::tempdir().context("folder")?;
    tar(&["-xf", &text(archive)?, "-C", &text(folder.path())?])?;
    let json = |path: &str| -> Result<Value> {
        let bytes =
            std::fs::read(folder.path().join(path)).with_context(|| format!("{path} of the image"))?;
        serde_json::from_slice(&bytes).with_context(|| format!("{path} of the image"))
    };
    let blob = |part: &Value| -> Result<String> {
        let digest = part["digest"].as_str().context("a digest")?;
        Ok(format!("blobs/{}", digest.replacen(':', "/", 1)))
    };
    let manifest = json(&blob(&json("index.json")?["manifests"][0])?)?;
    let layers = manifest["layers"].as_array().context("layers")?;
    ensure!(!layers.is_empty(), "an image without layers");
    for layer in layers {
        let path = folder.path().join(blob(layer)?);
        tar(&["-xzf", &text(&path)?, "-C", &text(root)?])?;
    }
    let config = json(&blob(&manifest["config"])?)?;
    let env = config["config"]["Env"].as_array().context("Env")?;
    Ok(env.iter().filter_map(Value::as_str).map(str::to_owned).collect())
}

fn text(path: &Path) -> Result<String> {
    Ok(path.to_str().context("a path in UTF-8")?.to_owned())
}

fn tar(args: &[&str]) -> Result<()> {
    let output = Command::new("tar").args(args).output().context("cannot start tar")?;
    ensure!(output.status.success(), "tar {args:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
