// SPDX-License-Identifier: Apache-2.0
//! kube-proxy's flags for the fields of the configuration, made from the table.

use clap::error::ErrorKind;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, Error, FromArgMatches};

use super::table::{FIELDS, Field, FieldType, IDLE_FLAGS};

const HEADING: &str = "Configuration without a file (flags of kube-proxy; most are ignored with --config)";
const HEALTHZ_PORT: &str = "healthz-port";
const METRICS_PORT: &str = "metrics-port";

/// The flags that set the configuration.
#[derive(Clone, Debug, Default)]
pub struct ConfigFlags {
    /// The fields of the given flags, with the texts of the flags.
    pub(super) given: Vec<(&'static Field, String)>,
    /// `--healthz-port`; 0: no health server.
    pub(super) healthz_port: Option<u16>,
}

impl ConfigFlags {
    /// Whether none is given.
    pub fn is_empty(&self) -> bool {
        self.given.is_empty() && self.healthz_port.is_none()
    }

    /// The flags as if given on the command line, e.g. `("ipvs-scheduler", "lc")`; unknown flags are ignored.
    pub fn of(flags: &[(&str, &str)]) -> Self {
        let given = flags.iter().filter_map(|(name, text)| {
            let field = FIELDS.iter().find(|f| f.flag == Some(name))?;
            Some((field, (*text).to_owned()))
        });
        Self { given: given.collect(), ..Self::default() }
    }
}

fn build_arg(field: &'static Field, flag: &'static str) -> Arg {
    let default =
        if field.default.is_empty() { String::new() } else { format!(" [default: {}]", field.default) };
    let arg = Arg::new(flag)
        .long(flag)
        .action(ArgAction::Append)
        .allow_negative_numbers(true)
        .help(format!("Sets {}{default}", field.path))
        .help_heading(if field.flag_overrides { None } else { Some(HEADING) });
    match field.field_type {
        _ if flag == "v" => arg
            .short('v')
            .value_name("LEVEL")
            .help("Log level: 0 changes and failures, 4 every sync, 6 every operation"),
        _ if flag == "hostname-override" => arg.value_name("NAME").help(
            "Name of this node's Node object [default: hostnameOverride of the configuration, then the host name]",
        ),
        // As in Go, a boolean flag without `=` is true and takes no value.
        FieldType::Bool => {
            arg.value_name("BOOL").num_args(0..=1).require_equals(true).default_missing_value("true")
        }
        FieldType::Int | FieldType::Float => arg.value_name("NUMBER"),
        FieldType::Duration => arg.value_name("DURATION"),
        FieldType::List => arg.value_name("CIDR,..."),
        FieldType::Gates => arg.value_name("GATE=BOOL,..."),
        FieldType::Text | FieldType::Entries | FieldType::Any => arg.value_name("TEXT"),
    }
}

fn port_arg(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name)
        .long(name)
        .action(ArgAction::Append)
        .value_name("PORT")
        .help(help)
        .help_heading(HEADING)
        .value_parser(clap::value_parser!(u16))
}

impl Args for ConfigFlags {
    fn augment_args(mut command: Command) -> Command {
        for field in FIELDS {
            if let Some(flag) = field.flag {
                command = command.arg(build_arg(field, flag));
            }
        }
        for flag in IDLE_FLAGS {
            let arg = Arg::new(flag).long(flag).action(ArgAction::Append).num_args(0..=1).hide(true);
            command = command.arg(arg.require_equals(true).default_missing_value("true"));
        }
        command
            .arg(port_arg(HEALTHZ_PORT, "0 disables the health server; any other number has no effect"))
            .arg(port_arg(METRICS_PORT, "Has no effect; use --metrics-bind-address"))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for ConfigFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let last = |name: &str| matches.get_many::<u16>(name).and_then(|ports| ports.copied().last());
        let mut flags = Self { given: Vec::new(), healthz_port: last(HEALTHZ_PORT) };
        for field in FIELDS {
            let Some(flag) = field.flag else { continue };
            let Some(texts) = matches.get_many::<String>(flag) else { continue };
            let texts: Vec<&str> = texts.map(String::as_str).collect();
            let text = match field.field_type {
                FieldType::List | FieldType::Gates => texts.join(","),
                _ => texts.last().map(ToString::to_string).unwrap_or_default(),
            };
            flags.given.push((field, text));
        }
        if last(METRICS_PORT) == Some(0) {
            let text = "--metrics-port=0: the metrics server cannot be disabled; use --metrics-bind-address";
            return Err(Error::raw(ErrorKind::ValueValidation, format!("{text}\n")));
        }
        Ok(flags)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
