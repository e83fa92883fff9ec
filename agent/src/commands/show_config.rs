// SPDX-License-Identifier: Apache-2.0
//! `kube-ipvs config`: the effective configuration.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, ensure};

use crate::cli::{ConfigArgs, ConfigFormat};
use crate::config::Config;
use crate::trial::{self, Tester};

/// Prints the configuration and checks it.
///
/// # Errors
/// When it cannot be read, is invalid, or a start with it would fail.
pub fn run(args: &ConfigArgs) -> anyhow::Result<()> {
    let config = Config::read(args.checked.source.config.as_deref(), &args.checked.source.flags)?;
    super::print(&render(&config, args.output)?)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let api = args.checked.objects.is_none().then_some(&args.checked.master);
    let findings = trial::check(&config, Tester::Person, api, runtime.handle());
    for note in config.warnings.iter().chain(&findings.notes) {
        eprintln!("kube-ipvs: {note}");
    }
    ensure!(findings.errors.is_empty(), "a start would fail: {}", findings.errors.join("; "));
    Ok(())
}

/// Writes the configuration as YAML (`--write-config-to`).
///
/// # Errors
/// When the file cannot be written.
pub fn write(config: &Config, path: &Path) -> anyhow::Result<()> {
    let text = render(config, ConfigFormat::Yaml)?;
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    eprintln!("kube-ipvs: wrote the effective configuration to {}", path.display());
    Ok(())
}

fn render(config: &Config, format: ConfigFormat) -> anyhow::Result<String> {
    let document = config.values.document();
    Ok(match format {
        ConfigFormat::Yaml => serde_saphyr::to_string(&document)?,
        ConfigFormat::Json => format!("{}\n", serde_json::to_string_pretty(&document)?),
        ConfigFormat::Table => {
            let lines: Vec<_> = config.values.lines().collect();
            let width = |texts: &mut dyn Iterator<Item = usize>| texts.max().unwrap_or(0);
            let names = width(&mut lines.iter().map(|(name, ..)| name.len()));
            let values = width(&mut lines.iter().map(|(_, value, _)| value.len())).min(40);
            let mut text = format!("{:names$}  {:values$}  FROM\n", "FIELD", "VALUE");
            for (name, value, origin) in lines {
                let _ = writeln!(text, "{name:names$}  {value:values$}  {origin}");
            }
            text
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ConfigFlags;

    #[test]
    fn every_format_tells_values_and_the_table_their_origin() {
        let text = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nipvs: {scheduler: lc}\n";
        let config = Config::parse(text, &ConfigFlags::of(&[("hostname-override", "n1")])).unwrap();
        let table = render(&config, ConfigFormat::Table).unwrap();
        let line = |name: &str| {
            let line = table.lines().find(|l| l.starts_with(name)).unwrap();
            line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(line("ipvs.scheduler"), ["ipvs.scheduler", "\"lc\"", "file"]);
        assert_eq!(line("hostnameOverride"), ["hostnameOverride", "\"n1\"", "--hostname-override"]);
        assert_eq!(line("oomScoreAdj"), ["oomScoreAdj", "-999", "default"]);
        for format in [ConfigFormat::Yaml, ConfigFormat::Json] {
            let printed = render(&config, format).unwrap();
            let again = Config::parse(&printed, &ConfigFlags::default()).unwrap();
            assert_eq!(again.values.document(), config.values.document(), "{printed}");
        }
    }

    #[test]
    fn a_file_is_written_whole() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config::read(None, &ConfigFlags::default()).unwrap();
        write(&config, &dir.path().join("c")).unwrap();
        let text = std::fs::read_to_string(dir.path().join("c")).unwrap();
        assert!(text.contains("kind: KubeProxyConfiguration"), "{text}");
        let error = format!("{:#}", write(&config, &dir.path().join("no/c")).unwrap_err());
        assert!(error.contains("no/c"), "{error}");
    }
}
