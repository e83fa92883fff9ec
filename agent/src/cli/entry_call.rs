// SPDX-License-Identifier: Apache-2.0
//! How the image's entry point was called. Distributions start kube-proxy by its name, through kube-log-runner
//! (`/go-runner --log-file=FILE kube-proxy …`), through hyperkube, or through a shell (`/bin/sh -c "kube-proxy … 1>>FILE
//! 2>&1"`). The image has a link to the agent for each of these programs and none of the programs: the agent
//! understands these calls and refuses all others.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use super::shell_words::{ShellCommand, parse_command};
use crate::kernel::host::log_output::{LogOutput, OutputSink};

/// The names under which the agent is started.
const AGENT: [&str; 2] = ["kube-proxy", "kube-ipvs"];

/// A call, as the call of the agent alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryCall {
    /// The arguments of the agent, after its name.
    pub args: Vec<OsString>,
    /// Where its output goes.
    pub output: LogOutput,
}

impl EntryCall {
    /// Reads the arguments of the process. `variable` is its environment.
    ///
    /// # Errors
    /// What the call asks for that no program of the image does.
    pub fn read(
        args: impl IntoIterator<Item = OsString>,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, String> {
        let mut args = args.into_iter();
        let name = args.next().unwrap_or_else(|| "kube-ipvs".into());
        let rest: Vec<OsString> = args.collect();
        match base_name(&name).as_str() {
            "go-runner" => log_runner(&rest),
            "hyperkube" => hyperkube(&rest),
            "sh" => shell(&rest, variable),
            _ => Ok(Self::plain(name, &rest)),
        }
    }

    /// The agent with these arguments. The first one may repeat its name: that of a pod with `args` and no `command`.
    fn plain(name: OsString, rest: &[OsString]) -> Self {
        let rest = if rest.first().is_some_and(|first| is_agent(first)) { &rest[1..] } else { rest };
        let args = std::iter::once(name).chain(rest.iter().cloned()).collect();
        Self { args, output: LogOutput::default() }
    }
}

fn base_name(path: &OsStr) -> String {
    Path::new(path).file_name().unwrap_or(path).to_string_lossy().into_owned()
}

fn is_agent(program: &OsStr) -> bool {
    AGENT.contains(&base_name(program).as_str())
}

/// `go-runner [FLAGS] [--] kube-proxy ARGUMENTS`. The flags end with the first word that is none, as in Go.
fn log_runner(args: &[OsString]) -> Result<EntryCall, String> {
    let (mut file, mut also_stdout, mut redirect_stderr) = (None, false, true);
    let mut words = args.iter();
    let program = loop {
        let Some(word) = words.next() else {
            return Err("go-runner: the program to start is missing".to_owned());
        };
        let text = word.to_str().unwrap_or_default();
        if text == "--" {
            break words.next().ok_or("go-runner: the program to start is missing")?;
        }
        let Some(flag) = text.strip_prefix("--").or_else(|| text.strip_prefix('-')) else { break word };
        let (name, value) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (flag, None),
        };
        let mut next = || words.next().map(|word| word.to_string_lossy().into_owned());
        match name {
            "log-file" => {
                let path = value.or_else(&mut next).ok_or("go-runner: --log-file needs a path")?;
                file = (!path.is_empty()).then(|| PathBuf::from(path));
            }
            "also-stdout" => also_stdout = boolean(name, value.as_deref())?,
            "redirect-stderr" => redirect_stderr = boolean(name, value.as_deref())?,
            // The file grows without a limit: what rotates the logs of the node rotates it.
            "log-file-size" | "log-file-age" | "flush-interval" => {
                value.or_else(&mut next).ok_or_else(|| format!("go-runner: --{name} needs a value"))?;
            }
            _ => return Err(format!("go-runner has no flag --{name}")),
        }
    };
    if !is_agent(program) {
        return Err(only_kube_proxy("go-runner", program));
    }
    let rest: Vec<OsString> = words.cloned().collect();
    let output = match file {
        Some(file) if also_stdout => LogOutput::Copied { file, stderr: redirect_stderr },
        Some(path) => {
            let stdout = OutputSink::File { path, append: true };
            let stderr = if redirect_stderr { stdout.clone() } else { OutputSink::Stderr };
            LogOutput::Redirected { stdout, stderr }
        }
        None => {
            let stderr = if redirect_stderr { OutputSink::Stdout } else { OutputSink::Stderr };
            LogOutput::Redirected { stdout: OutputSink::Stdout, stderr }
        }
    };
    Ok(EntryCall { output, ..EntryCall::plain(program.clone(), &rest) })
}

/// A flag of Go that is true or false.
fn boolean(name: &str, value: Option<&str>) -> Result<bool, String> {
    match value {
        None | Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Ok(true),
        Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Ok(false),
        Some(other) => Err(format!("go-runner: --{name}={other} is neither true nor false")),
    }
}

/// `hyperkube proxy ARGUMENTS` and `hyperkube kube-proxy ARGUMENTS`.
fn hyperkube(args: &[OsString]) -> Result<EntryCall, String> {
    match args.split_first() {
        Some((program, rest)) if program == "proxy" || is_agent(program) => {
            Ok(EntryCall::plain("kube-proxy".into(), rest))
        }
        Some((program, _)) => Err(only_kube_proxy("hyperkube", program)),
        None => Err("hyperkube: the program to start is missing".to_owned()),
    }
}

/// `sh -c "[exec] kube-proxy ARGUMENTS [REDIRECTIONS]"`.
fn shell(args: &[OsString], variable: impl Fn(&str) -> Option<String>) -> Result<EntryCall, String> {
    let script = match args {
        [flag, script, ..] if is_command_flag(flag) => script,
        _ => {
            return Err("this image has no shell: its /bin/sh understands only sh -c \"kube-proxy FLAGS\"; \
                        start a command of the agent without a shell, for example kube-ipvs status"
                .to_owned());
        }
    };
    let script = script.to_str().ok_or("sh: the command is not UTF-8")?;
    let ShellCommand { words, stdout, stderr } = parse_command(script, variable).map_err(|why| {
        format!("this image has no shell: sh -c understands one call of kube-proxy, and no {why}")
    })?;
    let words = if words.first().is_some_and(|word| word == "exec") { &words[1..] } else { &words[..] };
    let Some((program, rest)) = words.split_first() else {
        return Err("sh: the program to start is missing".to_owned());
    };
    if !is_agent(OsStr::new(program)) {
        return Err(only_kube_proxy("sh", OsStr::new(program)));
    }
    let rest: Vec<OsString> = rest.iter().map(OsString::from).collect();
    Ok(EntryCall {
        output: LogOutput::Redirected { stdout, stderr },
        ..EntryCall::plain(program.into(), &rest)
    })
}

/// `-c`, also with other letters such as in `-ec`.
fn is_command_flag(flag: &OsStr) -> bool {
    flag.to_str().and_then(|flag| flag.strip_prefix('-')).is_some_and(|letters| {
        letters.ends_with('c') && letters.chars().all(|letter| "celux".contains(letter))
    })
}

fn only_kube_proxy(caller: &str, program: &OsStr) -> String {
    format!("{caller} of this image starts only kube-proxy, not {}", program.to_string_lossy())
}

#[cfg(test)]
#[path = "entry_call_tests.rs"]
mod tests;
