//! Settings that clients are told without asking: at startup, and whenever they change.

use crate::{Settings, settings::SERVER_VERSION};

/// Names as clients know them, the session's names, and values where the session has none.
const REPORTED: [(&str, &str, &str); 12] = [
    ("server_version", "server_version", SERVER_VERSION),
    ("server_encoding", "server_encoding", "UTF8"),
    ("client_encoding", "client_encoding", "UTF8"),
    ("application_name", "application_name", ""),
    ("is_superuser", "is_superuser", "on"),
    ("session_authorization", "session_authorization", crate::server::USER),
    ("default_transaction_read_only", "default_transaction_read_only", "off"),
    ("DateStyle", "datestyle", "ISO, MDY"),
    ("IntervalStyle", "intervalstyle", "postgres"),
    ("TimeZone", "timezone", "UTC"),
    ("integer_datetimes", "integer_datetimes", "on"),
    ("standard_conforming_strings", "standard_conforming_strings", "on"),
];

/// What the client was told.
#[derive(Debug, Default)]
pub(super) struct Reported {
    values: [Option<String>; REPORTED.len()],
}

impl Reported {
    /// Name and value of the settings that the client does not know yet.
    pub(super) fn changed(&mut self, settings: &Settings) -> Vec<(&'static str, String)> {
        let mut changed = Vec::new();
        for (known, (name, key, default)) in self.values.iter_mut().zip(REPORTED) {
            let value = settings.get(key).unwrap_or(default);
            if known.as_deref() != Some(value) {
                *known = Some(value.to_owned());
                changed.push((name, value.to_owned()));
            }
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_settings_are_reported_once() {
        let mut reported = Reported::default();
        let settings = Settings::default();
        let first = reported.changed(&settings);
        assert_eq!(first.len(), REPORTED.len());
        assert!(first.contains(&("server_encoding", "UTF8".to_owned())));
        assert!(reported.changed(&settings).is_empty());
    }
}
