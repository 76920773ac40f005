//! Settings of a session: what SET, RESET and SHOW know.
//!
//! Every setting has a row in [`KNOWN`]: its name as SHOW prints it, its default, and which values it takes. Names of
//! other classes (`myapp.user`) take any text, as in PostgreSQL.

use std::collections::BTreeMap;

use crate::{Error, SqlState, sql::text::TextStyle, sql::zone::Zone};

/// Version that clients are told: that of PostgreSQL whose behaviour we follow.
pub(crate) const SERVER_VERSION: &str = concat!("15.0 (Hypertide ", env!("CARGO_PKG_VERSION"), ")");
/// Longest duration in milliseconds, as in PostgreSQL.
const MILLIS_MAX: i64 = i32::MAX as i64;
/// Prefixes whose settings must be known.
const OWN_CLASSES: [&str; 2] = ["hypertide.", "timescaledb."];

/// What a setting takes.
#[derive(Clone, Copy, Debug)]
enum Kind {
    /// Any text.
    Text,
    /// on, off and their spellings.
    Bool,
    /// Milliseconds, or a number with a unit.
    Millis,
    /// A whole number in these bounds.
    Int(i64, i64),
    /// One of these.
    Enum(&'static [&'static str]),
    /// A level of isolation that there is.
    Isolation,
    /// A time zone.
    Zone,
    /// UTF8 in any spelling.
    Encoding,
    /// ISO with an order of fields.
    DateStyle,
    /// A UUID, or nothing.
    WriteId,
    /// Cannot be set.
    Fixed,
}

/// A setting: name, default, values.
struct Known(&'static str, &'static str, Kind);

const LEVELS: &[&str] =
    &["debug5", "debug4", "debug3", "debug2", "debug1", "log", "notice", "warning", "error"];
/// The isolation whose statements each read what is committed when they begin.
pub(crate) const READ_COMMITTED: &str = "read committed";
/// The isolation whose statements all read by one snapshot, and change only what nobody changed since.
pub(crate) const REPEATABLE_READ: &str = "repeatable read";
const SERIALIZABLE: &str = "serializable";
const ISOLATION: &[&str] = &[READ_COMMITTED, REPEATABLE_READ, "read uncommitted"];

/// Every setting, sorted by its name in lower case.
const KNOWN: &[Known] = &[
    Known("application_name", "", Kind::Text),
    Known("backslash_quote", "safe_encoding", Kind::Text),
    Known("bytea_output", "hex", Kind::Enum(&["hex", "escape"])),
    Known("check_function_bodies", "on", Kind::Bool),
    Known("client_encoding", "UTF8", Kind::Encoding),
    Known("client_min_messages", "notice", Kind::Enum(LEVELS)),
    Known("DateStyle", "ISO, MDY", Kind::DateStyle),
    Known("default_table_access_method", "heap", Kind::Text),
    Known("default_tablespace", "", Kind::Text),
    Known("default_transaction_deferrable", "off", Kind::Bool),
    Known("default_transaction_isolation", READ_COMMITTED, Kind::Isolation),
    Known("default_transaction_read_only", "off", Kind::Bool),
    Known("escape_string_warning", "on", Kind::Bool),
    Known("extra_float_digits", "1", Kind::Int(-15, 3)),
    Known("hypertide.enable_hedged_reads", "on", Kind::Bool),
    Known("hypertide.enable_pushdown", "on", Kind::Bool),
    Known("hypertide.enable_summaries", "on", Kind::Bool),
    Known(
        "hypertide.read_consistency",
        "linearizable",
        Kind::Enum(&["local", "session", "linearizable"]),
    ),
    Known("hypertide.write_id", "", Kind::WriteId),
    Known("idle_in_transaction_session_timeout", "1min", Kind::Millis),
    Known("idle_session_timeout", "0", Kind::Millis),
    Known("in_hot_standby", "off", Kind::Fixed),
    Known("integer_datetimes", "on", Kind::Fixed),
    Known("IntervalStyle", "postgres", Kind::Enum(&["postgres"])),
    Known("is_superuser", "on", Kind::Fixed),
    Known("jit", "off", Kind::Bool),
    Known("lc_collate", "C", Kind::Fixed),
    Known("lc_ctype", "C", Kind::Fixed),
    Known("lc_messages", "C", Kind::Text),
    Known("lc_monetary", "C", Kind::Text),
    Known("lc_numeric", "C", Kind::Text),
    Known("lc_time", "C", Kind::Text),
    Known("lock_timeout", "0", Kind::Millis),
    Known("maintenance_work_mem", "64MB", Kind::Text),
    Known("max_identifier_length", "63", Kind::Fixed),
    Known("max_index_keys", "32", Kind::Fixed),
    Known("row_security", "on", Kind::Bool),
    Known("search_path", "\"$user\", public", Kind::Text),
    Known("server_encoding", "UTF8", Kind::Fixed),
    Known("server_version", SERVER_VERSION, Kind::Fixed),
    Known("server_version_num", "150000", Kind::Fixed),
    Known("session_authorization", "", Kind::Fixed),
    Known("standard_conforming_strings", "on", Kind::Enum(&["on"])),
    Known("statement_timeout", "0", Kind::Millis),
    Known("synchronous_commit", "on", Kind::Text),
    Known("TimeZone", "UTC", Kind::Zone),
    Known("timescaledb.enable_2pc", "on", Kind::Bool),
    Known("timescaledb.enable_async_append", "on", Kind::Bool),
    Known("timescaledb.enable_chunk_append", "on", Kind::Bool),
    Known("timescaledb.enable_client_ddl_on_data_nodes", "off", Kind::Bool),
    Known("timescaledb.enable_connection_binary_data", "on", Kind::Bool),
    Known("timescaledb.enable_distributed_insert_with_copy", "on", Kind::Bool),
    Known("timescaledb.enable_now_constify", "on", Kind::Bool),
    Known("timescaledb.enable_parameterized_data_node_scan", "on", Kind::Bool),
    Known("timescaledb.enable_per_data_node_queries", "on", Kind::Bool),
    Known("timescaledb.enable_remote_explain", "off", Kind::Bool),
    Known("timescaledb.enable_runtime_exclusion", "on", Kind::Bool),
    Known("timescaledb.enable_skipscan", "on", Kind::Bool),
    Known("timescaledb.dist_copy_transfer_format", "auto", Kind::Enum(&["auto", "binary", "text"])),
    Known(
        "timescaledb.hypertable_distributed_default",
        "auto",
        Kind::Enum(&["auto", "local", "distributed"]),
    ),
    Known("timescaledb.hypertable_replication_factor_default", "1", Kind::Int(1, 32_767)),
    Known("timescaledb.max_cached_chunks_per_hypertable", "1024", Kind::Int(0, 65_536)),
    Known("timescaledb.max_insert_batch_size", "1000", Kind::Int(0, 65_536)),
    Known("timescaledb.max_open_chunks_per_insert", "1024", Kind::Int(0, 65_536)),
    Known("timescaledb.passfile", "", Kind::Text),
    Known(
        "timescaledb.remote_data_fetcher",
        "auto",
        Kind::Enum(&["auto", "copy", "cursor", "prepared"]),
    ),
    Known("timescaledb.ssl_dir", "", Kind::Text),
    Known("timescaledb.telemetry_level", "off", Kind::Text),
    Known("timescaledb_experimental.enable_distributed_ddl", "off", Kind::Bool),
    Known("transaction_deferrable", "off", Kind::Bool),
    Known("transaction_isolation", READ_COMMITTED, Kind::Isolation),
    Known("transaction_read_only", "off", Kind::Bool),
    Known("transform_null_equals", "off", Kind::Bool),
    Known("work_mem", "4MB", Kind::Text),
    Known("xmloption", "content", Kind::Text),
];

/// How long a value holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Until the session ends.
    Session,
    /// Until the transaction block ends.
    Local,
}

/// Values of the settings, as SET left them.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    changed: BTreeMap<String, String>,
    local: BTreeMap<String, String>,
    /// What was set before the open transaction block.
    saved: Option<BTreeMap<String, String>>,
}

fn known(name: &str) -> Option<&'static Known> {
    KNOWN.iter().find(|known| known.0.eq_ignore_ascii_case(name))
}

impl Settings {
    /// The value now, or `None` when there is no such setting. The name is taken in any case.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        let lower = name.to_ascii_lowercase();
        let set = self.local.get(&lower).or_else(|| self.changed.get(&lower));
        set.map(String::as_str).or_else(|| known(name).map(|known| known.1))
    }

    /// Sets a value after checking it: 42704 when there is no such setting, 22023 when it does not take the value.
    pub fn set(&mut self, name: &str, value: &str, scope: Scope) -> Result<(), Error> {
        let lower = name.to_ascii_lowercase();
        let value = match known(name) {
            Some(known) => check(known, value)?,
            None if is_custom(&lower) => value.to_owned(),
            None => return Err(unknown(name)),
        };
        match scope {
            Scope::Session => {
                self.local.remove(&lower);
                self.changed.insert(lower, value);
            }
            Scope::Local => {
                self.local.insert(lower, value);
            }
        }
        Ok(())
    }

    /// Gives a setting its default again.
    pub fn reset(&mut self, name: &str) -> Result<(), Error> {
        let lower = name.to_ascii_lowercase();
        match known(name) {
            None if !is_custom(&lower) => Err(unknown(name)),
            Some(Known(name, _, Kind::Fixed)) => Err(fixed(name)),
            _ => {
                self.changed.remove(&lower);
                self.local.remove(&lower);
                Ok(())
            }
        }
    }

    /// Gives all settings their defaults again.
    pub fn reset_all(&mut self) {
        self.changed.clear();
        self.local.clear();
    }

    /// The name as SHOW prints it.
    #[must_use]
    pub fn shown_name(name: &str) -> String {
        known(name).map_or_else(|| name.to_owned(), |known| known.0.to_owned())
    }

    /// The value that SHOW prints.
    pub fn show(&self, name: &str) -> Result<&str, Error> {
        self.get(name).ok_or_else(|| unknown(name))
    }

    /// All settings that are known, with their values.
    pub fn all(&self) -> impl Iterator<Item = (&str, &str)> {
        KNOWN.iter().map(|known| (known.0, self.get(known.0).unwrap_or(known.1)))
    }

    /// Whether a boolean setting is on.
    #[must_use]
    pub fn on(&self, name: &str) -> bool {
        self.get(name) == Some("on")
    }

    /// A duration in milliseconds; zero when it is off.
    #[must_use]
    pub fn millis(&self, name: &str) -> u64 {
        self.get(name)
            .and_then(parse_millis)
            .and_then(|millis| u64::try_from(millis).ok())
            .unwrap_or(0)
    }

    /// The time zone.
    pub(crate) fn zone(&self) -> Zone {
        self.get("timezone").and_then(Zone::parse).unwrap_or(Zone::UTC)
    }

    /// What the text of values depends on.
    pub(crate) fn text_style(&self) -> TextStyle {
        TextStyle { zone: self.zone(), bytea_escape: self.get("bytea_output") == Some("escape") }
    }

    /// Remembers the values, because a transaction block begins.
    pub(crate) fn begin(&mut self) {
        self.saved = Some(self.changed.clone());
    }

    /// Ends the block: local values go, and without `commit` all that were set in it.
    pub(crate) fn end(&mut self, commit: bool) {
        self.local.clear();
        if let Some(saved) = self.saved.take()
            && !commit
        {
            self.changed = saved;
        }
    }
}

/// Whether a name belongs to a class of its own, which the server need not know.
fn is_custom(lower: &str) -> bool {
    lower.contains('.') && !OWN_CLASSES.iter().any(|class| lower.starts_with(class))
}

fn unknown(name: &str) -> Error {
    let message = format_args!("unrecognized configuration parameter \"{name}\"");
    let mut error = Error::new(SqlState("42704"), message);
    let lower = name.to_ascii_lowercase();
    let nearest = KNOWN
        .iter()
        .map(|known| (distance(&lower, &known.0.to_ascii_lowercase()), known.0))
        .min()
        .filter(|(distance, name)| *distance <= name.len() / 2);
    error.hint = nearest.map(|(_, name)| format!("Perhaps you meant \"{name}\"."));
    error
}

fn fixed(name: &str) -> Error {
    Error::new(SqlState("55P02"), format_args!("parameter \"{name}\" cannot be changed"))
}

/// Letters to insert, remove or replace to make one word of another.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        if let Some(first) = row.first_mut() {
            *first = left;
        }
        for (cell, y) in row.iter_mut().skip(1).zip(b.bytes()) {
            let replaced = diagonal + usize::from(x != y);
            diagonal = *cell;
            left = replaced.min(diagonal + 1).min(left + 1);
            *cell = left;
        }
    }
    row.last().copied().unwrap_or(0)
}

/// The boolean in any of PostgreSQL's spellings.
pub(crate) fn parse_bool(value: &str) -> Option<bool> {
    match value.trim().to_ascii_lowercase().as_str() {
        "on" | "true" | "t" | "tr" | "tru" | "yes" | "y" | "ye" | "1" => Some(true),
        "off" | "of" | "false" | "f" | "fa" | "fal" | "fals" | "no" | "n" | "0" => Some(false),
        _ => None,
    }
}

/// Milliseconds in `250`, `250ms`, `5s`, `2min`, `1h`, `1d`.
fn parse_millis(value: &str) -> Option<i64> {
    let value = value.trim();
    let digits = value.find(|c: char| !c.is_ascii_digit() && c != '-').unwrap_or(value.len());
    let (number, unit) = value.split_at(digits);
    let factor = match unit.trim() {
        "" | "ms" => 1,
        "s" => 1000,
        "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    let millis = number.parse::<i64>().ok()?.checked_mul(factor)?;
    (0..=MILLIS_MAX).contains(&millis).then_some(millis)
}

/// The value as it is kept, if the setting takes it.
fn check(known: &Known, value: &str) -> Result<String, Error> {
    let Known(name, _, kind) = known;
    let kept = match kind {
        Kind::Text => Some(value.to_owned()),
        Kind::Bool => parse_bool(value).map(|on| if on { "on" } else { "off" }.to_owned()),
        Kind::Millis => parse_millis(value).map(|_| value.trim().to_owned()),
        Kind::Int(min, max) => value
            .trim()
            .parse::<i64>()
            .ok()
            .filter(|number| (min..=max).contains(&number))
            .map(|number| number.to_string()),
        Kind::Enum(words) => one_of(words, value),
        Kind::Isolation if value.eq_ignore_ascii_case(SERIALIZABLE) => {
            return Err(no_serializable());
        }
        Kind::Isolation => one_of(ISOLATION, value),
        Kind::Zone => Zone::parse(value).map(|zone| zone.to_string()),
        Kind::Encoding => {
            let plain = value.to_ascii_lowercase().replace(['-', '_'], "");
            ["utf8", "unicode", "sqlascii"].contains(&plain.as_str()).then(|| "UTF8".to_owned())
        }
        Kind::DateStyle => date_style(value),
        Kind::WriteId => {
            let empty = value.is_empty();
            (empty || uuid::Uuid::parse_str(value).is_ok()).then(|| value.to_owned())
        }
        Kind::Fixed => return Err(fixed(name)),
    };
    kept.ok_or_else(|| {
        let message = format_args!("invalid value for parameter \"{name}\": \"{value}\"");
        let mut error = Error::new(SqlState("22023"), message);
        let words = match kind {
            Kind::Enum(words) => words,
            Kind::Isolation => ISOLATION,
            _ => return error,
        };
        error.hint = Some(format!("Available values: {}.", words.join(", ")));
        error
    })
}

/// The answer to who asks for SERIALIZABLE: nothing weaker is given for it.
pub(crate) fn no_serializable() -> Error {
    Error::unsupported("isolation level SERIALIZABLE")
        .with_hint("REPEATABLE READ is the strongest: snapshot isolation.")
}

fn one_of(words: &[&str], value: &str) -> Option<String> {
    words.iter().find(|word| word.eq_ignore_ascii_case(value)).map(|word| (*word).to_owned())
}

/// Only the style ISO is known; the order of fields is kept and matters to nothing that is not ISO.
fn date_style(value: &str) -> Option<String> {
    let mut order = "MDY";
    for word in value.split(',').map(|word| word.trim().to_ascii_uppercase()) {
        order = match word.as_str() {
            "ISO" | "DEFAULT" | "" => order,
            "MDY" | "US" | "NONEURO" | "NONEUROPEAN" => "MDY",
            "DMY" | "EURO" | "EUROPEAN" => "DMY",
            "YMD" => "YMD",
            _ => return None,
        };
    }
    Some(format!("ISO, {order}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_checked_and_kept_in_one_spelling() {
        let mut settings = Settings::default();
        settings.set("TIMEZONE", "europe/paris", Scope::Session).expect("a zone");
        assert_eq!(settings.get("TimeZone"), Some("Europe/Paris"));
        settings.set("hypertide.enable_pushdown", "FALSE", Scope::Session).expect("a boolean");
        assert!(!settings.on("hypertide.enable_pushdown"));
        settings.set("statement_timeout", "2s", Scope::Session).expect("a duration");
        assert_eq!(settings.millis("statement_timeout"), 2000);
        settings.set("myapp.user", "x", Scope::Session).expect("a class of its own");
        let error =
            settings.set("client_encoding", "LATIN1", Scope::Session).expect_err("not UTF8");
        assert_eq!(error.state, SqlState("22023"));
        let error = settings.set("server_version", "1", Scope::Session).expect_err("it is fixed");
        assert_eq!(error.state, SqlState("55P02"));
    }

    #[test]
    fn unknown_settings_name_the_nearest() {
        let error = Settings::default().set("timezon", "UTC", Scope::Session).expect_err("a typo");
        assert_eq!(error.state, SqlState("42704"));
        assert_eq!(error.message, "unrecognized configuration parameter \"timezon\"");
        assert_eq!(error.hint.as_deref(), Some("Perhaps you meant \"TimeZone\"."));
        assert!(Settings::default().set("hypertide.pushdown", "on", Scope::Session).is_err());
    }

    #[test]
    fn local_values_end_with_the_block() {
        let mut settings = Settings::default();
        settings.begin();
        settings.set("application_name", "a", Scope::Local).expect("text");
        settings.set("bytea_output", "escape", Scope::Session).expect("a word");
        assert_eq!(settings.get("application_name"), Some("a"));
        settings.end(true);
        assert_eq!(settings.get("application_name"), Some(""));
        assert_eq!(settings.get("bytea_output"), Some("escape"));
        settings.begin();
        settings.reset_all();
        settings.end(false);
        assert_eq!(settings.get("bytea_output"), Some("escape"));
    }
}
