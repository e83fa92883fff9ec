// SPDX-License-Identifier: Apache-2.0

use std::path::PathBuf;

use super::*;
use crate::config::{Config, ConfigFlags};
use crate::inspect::ipvs_table::ListFormat;
use crate::inspect::top::traffic_order::SortOrder;
use crate::testing::golden;

fn parse(args: &[&str]) -> Result<Cli, clap::Error> {
    Cli::from_args(std::iter::once(&"kube-ipvs").chain(args).map(OsString::from))
}

#[test]
fn the_words_of_ipvsadm_list() {
    for args in [&["list"][..], &["-Ln"], &["-nL"], &["-L", "-n"], &["-ln"]] {
        assert!(matches!(parse(args).unwrap().command, Some(Command::List(_))), "{args:?}");
    }
    let list = |args: &[&str]| {
        let Some(Command::List(list)) = parse(args).unwrap().command else { panic!("{args:?}") };
        list
    };
    assert_eq!(list(&["-Ln", "-o", "json"]).output, ListFormat::Json);
    for args in [&["-Lnc"][..], &["-L", "-n", "-c"], &["-L", "--connection", "-n"], &["list", "-c"]] {
        let list = list(args);
        assert!(list.show.connections && list.namespace.is_none(), "{args:?}");
    }
    let stats = list(&["-L", "--stats", "--exact", "--numeric"]);
    assert!(stats.show.stats && stats.exact);
    let selected = list(&["list", "-n", "shop", "--protocol=TCP", "web"]);
    assert_eq!(selected.namespace.as_deref(), Some("shop"));
    assert_eq!(selected.protocol, Some(ProtocolName::Tcp));
    assert!(selected.target.is_some());
    for args in
        [&["-n"][..], &["list", "--stats", "--rate"], &["list", "a/b/c"], &["list", "--sort", "--nosort"]]
    {
        assert!(parse(args).is_err(), "{args:?}");
    }
}

#[test]
fn the_arguments_of_top() {
    let top = |args: &[&str]| match parse(args).unwrap().command {
        Some(Command::Top(top)) => top,
        _ => panic!("{args:?}"),
    };
    let usual = top(&["top"]);
    assert_eq!((usual.interval, usual.sort, usual.once), (2, SortOrder::Connections, false));
    let all = top(&["top", "-n", "shop", "--interval=5", "--sort=bytes", "--once"]);
    assert_eq!((all.namespace.as_deref(), all.interval, all.sort), (Some("shop"), 5, SortOrder::Bytes));
    for wrong in ["--interval=0", "--interval=3601", "--interval=x", "--sort=size", "web"] {
        assert!(parse(&["top", wrong]).is_err(), "{wrong}");
    }
}

#[test]
fn the_agent_runs_with_and_without_the_subcommand() {
    let flags = ["--config=/c", "--objects=/o", "--hostname_override=n", "-v=2"];
    let with: Vec<&str> = std::iter::once("run").chain(flags).collect();
    let Some(Command::Run(run)) = parse(&with).unwrap().command else { panic!() };
    let cli = parse(&flags).unwrap();
    assert!(cli.command.is_none());
    for run in [run, cli.run] {
        assert_eq!(run.source.config, Some(PathBuf::from("/c")));
        let config = Config::parse(HEAD, &run.source.flags).unwrap();
        assert_eq!((config.hostname_override.as_str(), config.verbosity), ("n", 2));
    }
    assert!(parse(&["run", "--config=/c", "--objects=/o", "--master=http://x"]).is_err());
    assert!(parse(&["list", "--config=/c"]).is_err());
    assert!(parse(&["something"]).is_err(), "arguments that are no flags are refused");
}

#[test]
fn cleanup_is_a_subcommand_and_a_flag() {
    let Some(Command::Cleanup(args)) = parse(&["cleanup", "--config=/c", "--dry-run"]).unwrap().command
    else {
        panic!()
    };
    assert!(args.dry_run && args.config == Some(PathBuf::from("/c")));
    assert!(parse(&["--config=/c", "--cleanup"]).unwrap().run.cleanup);
    assert!(!parse(&["--cleanup=false"]).unwrap().run.cleanup);
}

const HEAD: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

fn flags(args: &[&str]) -> ConfigFlags {
    parse(args).unwrap_or_else(|error| panic!("{args:?}: {error}")).run.source.flags
}

#[test]
fn flags_alone_are_a_configuration() {
    let config = Config::read(
        None,
        &flags(&[
            "--proxy-mode=ipvs",
            "--ipvs-scheduler",
            "lc",
            "--masquerade-all",
            "--ipvs-strict-arp=false",
            "--nodeport-addresses=10.0.0.0/8",
            "--nodeport-addresses=192.0.2.0/24",
            "--oom-score-adj",
            "-500",
            "--feature-gates=AllowServiceExternalIPs=false,ContextualLogging=true",
            "--conntrack-tcp-timeout-established=1h",
            "--machine-id-file=/x",
        ]),
    )
    .unwrap();
    assert_eq!((&*config.settings.scheduler, config.oom_score_adj), ("lc", -500));
    assert!(config.settings.masquerade_all && !config.strict_arp);
    assert_eq!(config.min_sync_period.as_secs(), 1, "0s in a file, 1s for flags, as in kube-proxy");
    assert_eq!(config.values.list("nodePortAddresses").len(), 2);
    assert_eq!(config.conntrack.tcp_established, 3600);
    assert_eq!(config.settings.external_ips, crate::core::model::settings::ExternalIps::None);
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
    let last = Config::read(None, &flags(&["--ipvs-scheduler=lc", "--ipvs-scheduler=sh"])).unwrap();
    assert_eq!(&*last.settings.scheduler, "sh", "the last flag is used");
}

#[test]
fn with_a_file_only_overriding_flags_are_used() {
    let given =
        flags(&["--config=/c", "--ipvs-scheduler=lc", "--hostname-override=a", "--logging-format=json"]);
    let config = Config::parse(&format!("{HEAD}hostnameOverride: b\n"), &given).unwrap();
    assert_eq!((&*config.settings.scheduler, config.hostname_override.as_str()), ("rr", "a"));
    assert_eq!(config.log_format, crate::log::LogFormat::Json);
    assert!(config.warnings.iter().any(|w| w.contains("--ipvs-scheduler")), "{:?}", config.warnings);
}

#[test]
fn wrong_flags_are_named() {
    for (args, expected) in [
        (&["--ipvs-sync-period=fast"][..], "--ipvs-sync-period"),
        (&["--oom-score-adj=5000"], "oomScoreAdj"),
        (&["--masquerade-all=maybe"], "--masquerade-all"),
        (&["--feature-gates=X"], "--feature-gates"),
        (&["--proxy-mode=iptables"], "mode"),
        (&["--healthz-bind-address=here"], "healthzBindAddress"),
    ] {
        let error = format!("{:#}", Config::read(None, &flags(args)).unwrap_err());
        assert!(error.contains(expected), "{args:?} gave {error}");
    }
    for args in [&["--metrics-port=0"][..], &["--nonsense"], &["--healthz-port=70000"], &["stray"]] {
        assert!(parse(args).is_err(), "{args:?}");
    }
    let off = Config::read(None, &flags(&["--healthz-port=0"])).unwrap();
    assert_eq!(off.healthz_address, None);
    let bare =
        Config::read(None, &flags(&["--healthz-bind-address=", "--metrics-bind-address=::1"])).unwrap();
    assert_eq!(bare.healthz_address.map(|a| a.to_string()).as_deref(), Some("0.0.0.0:10256"));
    assert_eq!(bare.metrics_address.to_string(), "[::1]:10249");
}

#[test]
fn flags_that_kube_proxy_had_once_get_a_sentence() {
    for (flag, instead) in removed_flags::REMOVED {
        for args in [&[&*format!("--{flag}=1")][..], &["run", &format!("--{}", flag.replace('-', "_"))]] {
            let error = parse(args).unwrap_err().to_string();
            assert!(error.contains(instead) && error.contains(flag), "{args:?}: {error}");
        }
    }
    let error = parse(&["--no-such-flag"]).unwrap_err().to_string();
    assert!(error.contains("unexpected argument"), "{error}");
}

#[test]
fn version_tells_what_it_was_built_from() {
    let text = parse(&["--version"]).unwrap_err().to_string();
    for word in [env!("CARGO_PKG_VERSION"), "commit ", "target ", "rustc 1."] {
        assert!(text.contains(word), "{word} is missing in {text}");
    }
}

#[test]
fn every_shell_gets_a_completion_with_every_command() {
    for shell in ["bash", "zsh", "fish"] {
        let Some(Command::Completion { shell }) = parse(&["completion", shell]).unwrap().command else {
            panic!()
        };
        let text = completion(shell);
        for name in Cli::command().get_subcommands().map(|command| command.get_name().to_owned()) {
            assert!(text.contains(&name), "{shell}: {name} is missing");
        }
    }
}

/// docs/commands.md: every command with its arguments and an example.
#[test]
fn the_documentation_has_every_command() {
    golden::compare("docs/commands.md", &reference::text());
}
