//! Time zones of a session: names of the IANA database and fixed offsets.

use std::fmt;

use chrono::{DateTime, MappedLocalTime, NaiveDateTime, Offset, TimeZone};
use chrono_tz::{TZ_VARIANTS, Tz};

const MICROS: i64 = 1_000_000;
/// Greatest distance from UTC that PostgreSQL takes, in seconds.
const OFFSET_SECONDS_MAX: i32 = 15 * 3600 + 59 * 60 + 59;

/// The time zone of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Zone {
    /// Seconds east of UTC.
    Fixed(i32),
    /// A zone of the IANA database.
    Named(Tz),
}

impl Zone {
    /// UTC.
    pub(crate) const UTC: Self = Self::Fixed(0);

    /// The zone of that name in any case, or of an offset such as `+05:30`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        if ["utc", "gmt", "z", "zulu", "etc/utc"].iter().any(|name| text.eq_ignore_ascii_case(name))
        {
            return Some(Self::UTC);
        }
        if let Some(seconds) = parse_offset(text.as_bytes()) {
            return Some(Self::Fixed(seconds));
        }
        if let Ok(zone) = text.parse::<Tz>() {
            return Some(Self::Named(zone));
        }
        TZ_VARIANTS
            .iter()
            .find(|zone| zone.name().eq_ignore_ascii_case(text))
            .copied()
            .map(Self::Named)
    }

    /// Seconds east of UTC at a moment, given in microseconds since the Unix epoch.
    pub(crate) fn offset_at(self, micros: i64) -> i32 {
        match self {
            Self::Fixed(seconds) => seconds,
            Self::Named(zone) => DateTime::from_timestamp_micros(micros).map_or(0, |moment| {
                zone.offset_from_utc_datetime(&moment.naive_utc()).fix().local_minus_utc()
            }),
        }
    }

    /// The moment at which clocks of the zone show `local`, in microseconds as if it were UTC.
    ///
    /// Of two such moments the earlier counts, as in PostgreSQL; in a gap, clocks go on as before it.
    pub(crate) fn to_utc(self, local: i64) -> Option<i64> {
        let offset = match self {
            Self::Fixed(seconds) => seconds,
            Self::Named(zone) => {
                let naive = DateTime::from_timestamp_micros(local)?.naive_utc();
                offset_of_local(zone, naive)
            }
        };
        local.checked_sub(i64::from(offset) * MICROS)
    }
}

fn offset_of_local(zone: Tz, naive: NaiveDateTime) -> i32 {
    match zone.offset_from_local_datetime(&naive) {
        MappedLocalTime::Single(offset) | MappedLocalTime::Ambiguous(offset, _) => {
            offset.fix().local_minus_utc()
        }
        MappedLocalTime::None => {
            let before = naive - chrono::TimeDelta::days(1);
            zone.offset_from_utc_datetime(&before).fix().local_minus_utc()
        }
    }
}

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(0) => f.write_str("UTC"),
            Self::Fixed(seconds) => {
                let sign = if *seconds < 0 { '-' } else { '+' };
                let seconds = seconds.abs();
                write!(f, "{sign}{:02}:{:02}", seconds / 3600, seconds / 60 % 60)
            }
            Self::Named(zone) => f.write_str(zone.name()),
        }
    }
}

/// Seconds east of UTC in `+05`, `+05:30`, `+0530`, `-04:56:02`; all of `text` must be it.
pub(crate) fn parse_offset(text: &[u8]) -> Option<i32> {
    let (sign, rest) = match text.split_first()? {
        (b'+', rest) => (1, rest),
        (b'-', rest) => (-1, rest),
        _ => return None,
    };
    let digits = |part: &[u8]| -> Option<i32> {
        let right = (1..=2).contains(&part.len()) && part.iter().all(u8::is_ascii_digit);
        right.then(|| part.iter().fold(0, |sum, digit| sum * 10 + i32::from(digit - b'0')))
    };
    let mut fields = [0; 3];
    if rest.contains(&b':') {
        let mut parts = rest.split(|byte| *byte == b':');
        for field in &mut fields {
            match parts.next() {
                Some(part) => *field = digits(part)?,
                None => break,
            }
        }
        if parts.next().is_some() {
            return None;
        }
    } else {
        // The last digits are minutes and seconds, in pairs.
        let pairs = rest.len().saturating_sub(1) / 2;
        let (hours, tail) = rest.split_at_checked(rest.len() - 2 * pairs.min(2))?;
        let parts = std::iter::once(hours).chain(tail.chunks(2));
        for (field, part) in fields.iter_mut().zip(parts) {
            *field = digits(part)?;
        }
    }
    let [hours, minutes, seconds] = fields;
    let total = hours * 3600 + minutes * 60 + seconds;
    (minutes < 60 && seconds < 60 && total <= OFFSET_SECONDS_MAX).then_some(sign * total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones_are_found_in_any_case() {
        assert_eq!(Zone::parse("utc"), Some(Zone::UTC));
        assert_eq!(Zone::parse("europe/paris"), Some(Zone::Named(Tz::Europe__Paris)));
        assert_eq!(Zone::parse("PST8PDT"), Some(Zone::Named(Tz::PST8PDT)));
        assert_eq!(Zone::parse("+05:30"), Some(Zone::Fixed(19_800)));
        assert_eq!(Zone::parse("Mars/Phobos"), None);
    }

    #[test]
    fn offsets_have_all_forms() {
        for (text, seconds) in [
            ("+5", 18_000),
            ("-08", -28_800),
            ("+0530", 19_800),
            ("+053015", 19_815),
            ("-04:56:02", -17_762),
        ] {
            assert_eq!(parse_offset(text.as_bytes()), Some(seconds), "{text}");
        }
        for text in ["", "+", "5", "+5:6:7:8", "+ab", "+16", "+05:60", "+1234567"] {
            assert_eq!(parse_offset(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn local_times_find_their_moment() {
        let paris = Zone::Named(Tz::Europe__Paris);
        let july = 1_720_000_000 * MICROS;
        assert_eq!(paris.offset_at(july), 7200);
        assert_eq!(paris.to_utc(july + 7200 * MICROS), Some(july));
        // 2024-03-31 02:30 does not exist there: clocks go on at +01.
        let gap = 1_711_852_200 * MICROS;
        assert_eq!(paris.to_utc(gap), Some(gap - 3600 * MICROS));
    }
}
