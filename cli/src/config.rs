//! Settings in layers: a flag over the environment over a TOML file over the default.
//!
//! clap does the first two; a verb's settings are one struct of options that both clap and the file fill, so that
//! the keys of the file cannot differ from the flags.

use std::{fmt, path::Path};

use anyhow::Context;
use clap::Command;
use serde::de::DeserializeOwned;

/// A wrong use of the command line or of a configuration file: exit code 2.
#[derive(Debug)]
pub(crate) struct UsageError(pub(crate) String);

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UsageError {}

/// The error of a wrong use that says `message`.
pub(crate) fn usage(message: impl fmt::Display) -> anyhow::Error {
    UsageError(message.to_string()).into()
}

/// Settings that a file can hold as well.
pub(crate) trait Layer: clap::Args + DeserializeOwned {
    /// What is set here, and for the rest what is set in `file`.
    fn or(self, file: Self) -> Self;
}

/// Puts `given` over the settings of the file, when there is one.
pub(crate) fn layered<T: Layer>(given: T, file: Option<&Path>) -> anyhow::Result<T> {
    let Some(file) = file else { return Ok(given) };
    let text = std::fs::read_to_string(file)
        .with_context(|| format!("read configuration file {}", file.display()))?;
    let parsed =
        parse::<T>(&text).map_err(|error| usage(format_args!("{}: {error}", file.display())))?;
    Ok(given.or(parsed))
}

/// A required setting, or the error that says how to give it.
pub(crate) fn required<T>(value: Option<T>, key: &str) -> anyhow::Result<T> {
    let variable = key.to_uppercase().replace('-', "_");
    value.ok_or_else(|| {
        usage(format_args!("{key} is not set: give --{key}, HYPERTIDE_{variable} or {key} in the configuration file"))
    })
}

fn parse<T: Layer>(text: &str) -> Result<T, String> {
    let table: toml::Table = toml::from_str(text).map_err(|error| error.to_string())?;
    let command = T::augment_args(Command::new("keys"));
    let known: Vec<&str> =
        command.get_arguments().filter_map(|argument| argument.get_long()).collect();
    if let Some(unknown) = table.keys().find(|key| !known.contains(&key.as_str())) {
        return Err(unknown_key(unknown, &known));
    }
    table.try_into().map_err(|error: toml::de::Error| error.to_string())
}

fn unknown_key(unknown: &str, known: &[&str]) -> String {
    let nearest = known.iter().min_by_key(|key| strsim::damerau_levenshtein(unknown, key));
    match nearest {
        Some(nearest) => format!("unknown key {unknown:?}, did you mean {nearest:?}?"),
        None => format!("unknown key {unknown:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default, PartialEq, clap::Args, serde::Deserialize)]
    #[serde(default, rename_all = "kebab-case")]
    struct Sample {
        #[arg(long)]
        flight: Option<String>,
        #[arg(long)]
        memory_mib: Option<u32>,
    }

    impl Layer for Sample {
        fn or(self, file: Self) -> Self {
            Self {
                flight: self.flight.or(file.flight),
                memory_mib: self.memory_mib.or(file.memory_mib),
            }
        }
    }

    fn sample(flight: Option<&str>, memory_mib: Option<u32>) -> Sample {
        Sample { flight: flight.map(str::to_owned), memory_mib }
    }

    #[test]
    fn a_flag_stands_over_the_file() {
        let file = parse::<Sample>("flight = \"a:1\"\nmemory-mib = 7").expect("it is valid");
        assert_eq!(sample(Some("b:2"), None).or(file), sample(Some("b:2"), Some(7)));
    }

    #[test]
    fn an_unknown_key_names_the_nearest() {
        let error = parse::<Sample>("fligth = \"a:1\"").expect_err("it is misspelt");
        assert_eq!(error, "unknown key \"fligth\", did you mean \"flight\"?");
    }

    #[test]
    fn a_wrong_type_is_refused() {
        assert!(parse::<Sample>("memory-mib = \"much\"").is_err());
        assert!(parse::<Sample>("memory-mib = ").is_err());
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let error = layered(sample(None, None), Some(Path::new("/nowhere/h.toml")));
        assert!(format!("{:#}", error.expect_err("there is no file")).contains("/nowhere/h.toml"));
    }
}
