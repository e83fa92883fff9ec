// SPDX-License-Identifier: Apache-2.0
//! docs/commands.md, from the definitions of the commands and the examples in docs/examples.

use std::fmt::Write as _;
use std::path::Path;

use clap::{Arg, Command, CommandFactory as _};

use super::Cli;
use crate::config::table::FIELDS;

/// The examples of each command: the command line, and the file with its output.
const EXAMPLES: [(&str, &str, &str); 14] = [
    ("run", "kube-ipvs run --dry-run --config=other.yaml", "run.txt"),
    ("status", "kube-ipvs status", "status.txt"),
    ("explain", "kube-ipvs explain test/web", "explain.txt"),
    ("explain", "kube-ipvs explain 203.0.113.7:80 --from 198.51.100.9", "explain-from.txt"),
    ("plan", "kube-ipvs plan --config=other.yaml", "plan.txt"),
    ("verify", "kube-ipvs verify --timeout=20s", "verify.txt"),
    ("list", "kube-ipvs list -o wide", "list.txt"),
    ("top", "kube-ipvs top --once --interval=1", "top.txt"),
    ("doctor", "kube-ipvs doctor", "doctor.txt"),
    ("bundle", "kube-ipvs bundle --file=bundle.tar && tar -tf bundle.tar", "bundle.txt"),
    ("trace", "kube-ipvs trace test/web --packets=1", "trace.txt"),
    ("config", "kube-ipvs config --config=other.yaml", "config.txt"),
    ("completion", "kube-ipvs completion bash > /usr/share/bash-completion/completions/kube-ipvs", ""),
    ("cleanup", "kube-ipvs cleanup --dry-run", "cleanup.txt"),
];

const HEAD: &str = "# Commands

Run them on the node, or in the agent's pod: `kubectl -n kube-system exec POD -- kube-ipvs status`. `manifests/kubectl-ipvs`
is a plugin that finds the pod of a node: `kubectl ipvs NODE status`.

`status`, `explain`, `top`, `trace` and `list -o wide` ask the running agent at the socket `@kube-ipvs/agent`, which only root may use. No
command but `run`, `cleanup` and `trace` changes the kernel. Output is coloured on a terminal only, and never if `NO_COLOR` is set; lines
wrap at the width of the terminal or at `COLUMNS`. `-o json` has a `schemaVersion`, which changes only when a field is removed or
means something else; the schemas are in [schemas](schemas).

| code | meaning |
|---|---|
| 0 | well: the node is ready, nothing differs, no finding is an error |
| 1 | the command failed, or what it checks is not well; `trace`: no packet came |
| 2 | `plan`: a start would change something; every command: wrong arguments |
| 3 | `status`, `explain`: no agent answers |

This page follows from the program's own definitions, and the examples from a test on a real kernel
(`integration/tests/commands.rs`).
";

/// The whole page.
pub(super) fn text() -> String {
    let mut text = HEAD.to_owned();
    let cli = Cli::command();
    for command in cli.get_subcommands().filter(|command| !command.is_hide_set()) {
        let name = command.get_name();
        let about = command.get_long_about().or(command.get_about()).map(ToString::to_string);
        let _ = write!(text, "\n## kube-ipvs {name}\n\n{}\n", about.unwrap_or_default());
        arguments(&mut text, command);
        let examples: Vec<_> = EXAMPLES.iter().filter(|(of, ..)| *of == name).collect();
        assert!(!examples.is_empty(), "{name} has no example");
        for (_, line, file) in examples {
            let _ = write!(text, "\n```\n# {line}\n{}```\n", output(file));
        }
    }
    text
}

/// What the command of an example printed; nothing if it has no file.
fn output(file: &str) -> String {
    if file.is_empty() {
        return String::new();
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/examples").join(file);
    let output = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{file}: {error}"));
    output.trim_end().to_owned() + "\n"
}

/// The arguments of a command without those of the configuration, which docs/configuration.md has.
fn arguments(text: &mut String, command: &Command) {
    let is_field = |arg: &&Arg| FIELDS.iter().any(|field| field.flag == Some(arg.get_id().as_str()));
    let has_fields = command.get_arguments().any(|arg| is_field(&arg));
    let own = command.get_arguments().filter(|arg| !is_field(arg) && !arg.is_hide_set());
    let own = own.filter(|arg| !["help", "healthz-port", "metrics-port"].contains(&arg.get_id().as_str()));
    for (i, arg) in own.enumerate() {
        if i == 0 {
            text.push_str("\n| argument | |\n|---|---|\n");
        }
        let help = arg.get_long_help().or(arg.get_help()).map(ToString::to_string).unwrap_or_default();
        let values: Vec<String> =
            arg.get_possible_values().iter().map(|value| value.get_name().to_owned()).collect();
        let takes = arg.get_action().takes_values() && values != ["true", "false"];
        let values =
            if values.is_empty() || !takes { String::new() } else { format!(" ({})", values.join(", ")) };
        let _ = writeln!(
            text,
            "| `{}` | {}{values} |",
            shown(arg, takes),
            help.replace('\n', " ").replace('|', "\\|")
        );
    }
    if has_fields {
        text.push_str("\nIt also takes the flags of [the configuration](configuration.md).\n");
    }
}

fn shown(arg: &Arg, takes: bool) -> String {
    let value = arg.get_value_names().map(|names| names.join(" ")).unwrap_or_default();
    let short = arg.get_short().map(|short| format!("-{short}, ")).unwrap_or_default();
    match arg.get_long() {
        Some(long) if takes => format!("{short}--{long} {value}"),
        Some(long) => format!("{short}--{long}"),
        None if takes && arg.get_short().is_none() => value,
        None => short.trim_end_matches(", ").to_owned(),
    }
}
