//! The flags of `floe serve` and `floe config` that are settings, made from the table of keys.
//!
//! They parse to plain text here; [`super::Config::check`] is what reads them, so that a wrong value gets the same
//! words whether it came from a flag, the environment or the file.

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};

use super::keys::{Default, KEYS, Key, Kind};
use super::{Layer, Origin, Raw};

/// Settings given as flags, not checked yet.
#[derive(Debug, Clone, Default)]
pub(crate) struct Flags(pub(crate) Layer);

impl Args for Flags {
    fn augment_args(command: Command) -> Command {
        flagged().fold(command, |command, (key, flag)| command.arg(arg(key, flag)))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Flags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = |(key, flag): (&'static Key, &'static str)| {
            let values: Vec<String> = matches.get_many::<String>(flag)?.cloned().collect();
            let raw = if key.kind.is_list() {
                Raw::Many(values)
            } else {
                Raw::One(values.into_iter().next_back()?)
            };
            Some((key.name, (raw, Origin::Flag(flag))))
        };
        Ok(Self(flagged().filter_map(given).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.0.extend(Self::from_arg_matches(matches)?.0);
        Ok(())
    }
}

fn flagged() -> impl Iterator<Item = (&'static Key, &'static str)> {
    KEYS.iter().filter_map(|key| key.flag.map(|flag| (key, flag)))
}

fn arg(key: &'static Key, flag: &'static str) -> Arg {
    let repeats = if key.kind.is_list() { " May be repeated; commas in the variable." } else { "" };
    let default = match key.default {
        Default::Is(value) => format!(" [default: {}]", value.trim_matches(['[', ']']).replace('"', "")),
        Default::Unset(_) => String::new(),
    };
    let help = format!("{}{repeats}{default} [config: {}] [env: {}]", key.about, key.name, key.env);
    let arg = Arg::new(flag).long(flag).help(help).help_heading("Settings");
    // The last one wins, so that a wrapper's flags can be overridden behind it.
    let arg = if key.kind.is_list() { arg } else { arg.overrides_with(flag) };
    match key.kind {
        // `--offline` alone means true; `--offline=false` takes the file's `true` back.
        Kind::Switch => {
            arg.num_args(0..=1).require_equals(true).default_missing_value("true").value_name("BOOL")
        }
        Kind::List(_) => arg.action(ArgAction::Append).value_name("MULTIADDR"),
        Kind::Address => arg.value_name("IP:PORT"),
        Kind::Choice(_) => arg.value_name("WORD"),
        Kind::Duration => arg.value_name("DURATION"),
        _ => arg.value_name("VALUE"),
    }
}
