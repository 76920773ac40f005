//! Reads dates and timestamps as PostgreSQL does: ISO 8601 with or without a zone, `M/D/YYYY`, `YYYYMMDD`, BC years,
//! and the words `epoch`, `infinity`, `now`, `today`, `tomorrow`, `yesterday`.

use std::time::{SystemTime, UNIX_EPOCH};

use super::{
    civil::{self, DATE_END, DATE_MIN, DAY_MICROS, SECOND_MICROS, TIMESTAMP_END, TIMESTAMP_MIN},
    fast,
    zone::{self, Zone},
};

/// Why a text is no date or timestamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It has another form: 22007.
    Syntax,
    /// A field or the whole is out of range: 22008.
    Range,
    /// The zone is not known: 22023.
    Zone,
}

/// A date and time as written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Parsed {
    days: i64,
    micros: i64,
    zone: Option<Zone>,
}

/// Reads a `timestamptz`: a text without a zone is in `session`.
pub(crate) fn parse_timestamptz(text: &str, session: Zone) -> Result<i64, Fault> {
    if let Some((micros, zoned)) = fast::moment(text) {
        return if zoned { Ok(micros) } else { session.to_utc(micros).ok_or(Fault::Range) };
    }
    parse_any_timestamptz(text, session)
}

/// [`parse_timestamptz`] of any form.
fn parse_any_timestamptz(text: &str, session: Zone) -> Result<i64, Fault> {
    if let Some(micros) = word(text, session) {
        return Ok(micros);
    }
    let parsed = parse(text)?;
    let local = local_micros(parsed)?;
    in_range(parsed.zone.unwrap_or(session).to_utc(local).ok_or(Fault::Range)?)
}

/// Reads a `timestamp`: a zone in the text is ignored.
pub(crate) fn parse_timestamp(text: &str, session: Zone) -> Result<i64, Fault> {
    if let Some((micros, _)) = fast::moment(text) {
        return Ok(micros);
    }
    parse_any_timestamp(text, session)
}

/// [`parse_timestamp`] of any form.
fn parse_any_timestamp(text: &str, session: Zone) -> Result<i64, Fault> {
    match word(text, session) {
        Some(special @ (i64::MIN | i64::MAX | 0)) => Ok(special),
        Some(micros) => Ok(micros + i64::from(session.offset_at(micros)) * SECOND_MICROS),
        None => local_micros(parse(text)?).and_then(in_range),
    }
}

/// Reads a `date`; a time in the text is ignored.
pub(crate) fn parse_date(text: &str, session: Zone) -> Result<i32, Fault> {
    match word(text, session) {
        Some(i64::MAX) => return Ok(i32::MAX),
        Some(i64::MIN) => return Ok(i32::MIN),
        Some(0) => return Ok(0),
        Some(micros) => {
            let local = micros + i64::from(session.offset_at(micros)) * SECOND_MICROS;
            return i32::try_from(local.div_euclid(DAY_MICROS)).map_err(|_| Fault::Range);
        }
        None => {}
    }
    let days = i32::try_from(parse(text)?.days).map_err(|_| Fault::Range)?;
    if (DATE_MIN..DATE_END).contains(&days) { Ok(days) } else { Err(Fault::Range) }
}

/// Whether a moment is one that PostgreSQL's timestamps can hold.
pub(crate) fn in_range(micros: i64) -> Result<i64, Fault> {
    if (TIMESTAMP_MIN..TIMESTAMP_END).contains(&micros) { Ok(micros) } else { Err(Fault::Range) }
}

fn local_micros(parsed: Parsed) -> Result<i64, Fault> {
    let days = parsed.days.checked_mul(DAY_MICROS).ok_or(Fault::Range)?;
    days.checked_add(parsed.micros).ok_or(Fault::Range)
}

/// The moment that a word names.
fn word(text: &str, session: Zone) -> Option<i64> {
    let text = text.trim();
    if text.as_bytes().first().is_none_or(u8::is_ascii_digit) {
        return None;
    }
    let now = || {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
    };
    let midnight = |days: i64| {
        let now = now();
        let local = now + i64::from(session.offset_at(now)) * SECOND_MICROS;
        session.to_utc((local.div_euclid(DAY_MICROS) + days) * DAY_MICROS)
    };
    match text.to_ascii_lowercase().as_str() {
        "infinity" | "+infinity" => Some(i64::MAX),
        "-infinity" => Some(i64::MIN),
        "epoch" => Some(0),
        "now" => Some(now()),
        "today" => midnight(0),
        "tomorrow" => midnight(1),
        "yesterday" => midnight(-1),
        _ => None,
    }
}

/// Reads bytes from the front of a text.
struct Cursor<'a> {
    rest: &'a [u8],
}

impl Cursor<'_> {
    fn eat(&mut self, byte: u8) -> bool {
        let found = self.rest.first() == Some(&byte);
        if found {
            self.rest = self.rest.get(1..).unwrap_or_default();
        }
        found
    }

    fn spaces(&mut self) {
        while self.eat(b' ') || self.eat(b'\t') {}
    }

    /// A run of digits: its value and their number.
    fn digits(&mut self) -> Result<(i64, usize), Fault> {
        let (mut value, mut length) = (0i64, 0);
        while let Some((digit, rest)) =
            self.rest.split_first().filter(|(digit, _)| digit.is_ascii_digit())
        {
            value = value * 10 + i64::from(digit - b'0');
            length += 1;
            self.rest = rest;
            if length > 17 {
                return Err(Fault::Range);
            }
        }
        if length == 0 { Err(Fault::Syntax) } else { Ok((value, length)) }
    }

    fn number(&mut self) -> Result<i64, Fault> {
        self.digits().map(|(value, _)| value)
    }
}

fn parse(text: &str) -> Result<Parsed, Fault> {
    let mut cursor = Cursor { rest: text.trim().as_bytes() };
    let (year, month, day) = parse_day(&mut cursor)?;
    let mut micros = 0;
    let mut timed = cursor.eat(b'T') || cursor.eat(b't');
    if !timed {
        cursor.spaces();
        timed = cursor.rest.first().is_some_and(u8::is_ascii_digit);
    }
    if timed {
        micros = parse_time(&mut cursor)?;
    }
    cursor.spaces();
    let (zone, before) = parse_end(cursor.rest)?;
    let year = if before { 1 - year } else { year };
    if year == 0 && !before {
        return Err(Fault::Range);
    }
    let field = |value: i64| u8::try_from(value).map_err(|_| Fault::Range);
    let days = civil::to_days(year, field(month)?, field(day)?).ok_or(Fault::Range)?;
    Ok(Parsed { days, micros, zone })
}

/// Year, month and day.
fn parse_day(cursor: &mut Cursor<'_>) -> Result<(i64, i64, i64), Fault> {
    let (first, length) = cursor.digits()?;
    if cursor.eat(b'/') {
        let day = cursor.number()?;
        if !cursor.eat(b'/') {
            return Err(Fault::Syntax);
        }
        return Ok((full_year(cursor.digits()?), first, day));
    }
    if cursor.eat(b'-') {
        let month = cursor.number()?;
        if !cursor.eat(b'-') {
            return Err(Fault::Syntax);
        }
        let (third, digits) = cursor.digits()?;
        // Fields in the order M-D-Y have their year at the end.
        return Ok(match length {
            ..=2 if digits > 2 => (third, first, month),
            _ => (full_year((first, length)), month, third),
        });
    }
    match length {
        8 => Ok((first / 10_000, first / 100 % 100, first % 100)),
        _ => Err(Fault::Syntax),
    }
}

/// A year of two digits lies between 1970 and 2069.
fn full_year((year, digits): (i64, usize)) -> i64 {
    match (digits, year) {
        (..=2, ..70) => year + 2000,
        (..=2, _) => year + 1900,
        _ => year,
    }
}

/// Microseconds since midnight of `HH:MM[:SS[.ffffff]]`, `HHMMSS`, with `AM` or `PM` after it.
fn parse_time(cursor: &mut Cursor<'_>) -> Result<i64, Fault> {
    let (first, length) = cursor.digits()?;
    let (mut hour, minute, mut second) = match length {
        6 => (first / 10_000, first / 100 % 100, first % 100),
        4 => (first / 100, first % 100, 0),
        ..=2 => (first, 0, 0),
        _ => return Err(Fault::Syntax),
    };
    let mut minute = minute;
    if length <= 2 {
        if !cursor.eat(b':') {
            return Err(Fault::Syntax);
        }
        minute = cursor.number()?;
        if cursor.eat(b':') {
            second = cursor.number()?;
        }
    }
    let mut micros = 0;
    if cursor.eat(b'.') || cursor.eat(b',') {
        let (value, digits) = cursor.digits()?;
        micros = match digits {
            ..=6 => value * 10i64.pow(6 - digits as u32),
            _ => {
                let unit = 10i64.pow(digits as u32 - 6);
                (value + unit / 2) / unit
            }
        };
    }
    cursor.spaces();
    let half = cursor.rest.get(..2).unwrap_or_default();
    let (am, pm) = (half.eq_ignore_ascii_case(b"am"), half.eq_ignore_ascii_case(b"pm"));
    if am || pm {
        if !(1..=12).contains(&hour) {
            return Err(Fault::Range);
        }
        hour = hour % 12 + if pm { 12 } else { 0 };
        cursor.rest = cursor.rest.get(2..).unwrap_or_default();
    }
    // 24:00:00 is the end of the day, and a leap second the first of the next minute.
    let total = ((hour * 60 + minute) * 60 + second) * SECOND_MICROS + micros;
    if minute > 59 || second > 60 || hour > 24 || total > DAY_MICROS {
        return Err(Fault::Range);
    }
    Ok(total)
}

/// What follows the time: a zone, and whether the year is before Christ.
fn parse_end(rest: &[u8]) -> Result<(Option<Zone>, bool), Fault> {
    let text = std::str::from_utf8(rest).map_err(|_| Fault::Syntax)?.trim();
    let (text, before) = match text.len().checked_sub(2).and_then(|at| text.split_at_checked(at)) {
        Some((head, era)) if era.eq_ignore_ascii_case("bc") => (head.trim_end(), true),
        Some((head, era)) if era.eq_ignore_ascii_case("ad") => (head.trim_end(), false),
        _ => (text, false),
    };
    if text.is_empty() {
        return Ok((None, before));
    }
    if let Some(seconds) = zone::parse_offset(text.as_bytes()) {
        return Ok((Some(Zone::Fixed(seconds)), before));
    }
    if !text.starts_with(|c: char| c.is_ascii_alphabetic()) {
        return Err(Fault::Syntax);
    }
    let zone = abbreviation(text).or_else(|| Zone::parse(text)).ok_or(Fault::Zone)?;
    Ok((Some(zone), before))
}

/// The abbreviations of zones that PostgreSQL knows and that the database of zones has not, or has otherwise.
fn abbreviation(text: &str) -> Option<Zone> {
    const HOURS: [(&str, i32); 14] = [
        ("EST", -5),
        ("EDT", -4),
        ("CST", -6),
        ("CDT", -5),
        ("MST", -7),
        ("MDT", -6),
        ("PST", -8),
        ("PDT", -7),
        ("AKST", -9),
        ("HST", -10),
        ("CET", 1),
        ("CEST", 2),
        ("EET", 2),
        ("BST", 1),
    ];
    HOURS
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case(text))
        .map(|(_, hours)| Zone::Fixed(hours * 3600))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sql::text;

    const NEW_YEAR_2012: i64 = 1_325_376_000_000_000;

    proptest! {
        #[test]
        fn what_is_written_is_read(micros in TIMESTAMP_MIN..TIMESTAMP_END, hours in -12i32..13) {
            let zone = Zone::Fixed(hours * 3600);
            let mut out = Vec::new();
            text::write_timestamp(micros, Some(zone), &mut out);
            let written = String::from_utf8(out).expect("it is ASCII");
            prop_assert_eq!(parse_timestamptz(&written, Zone::UTC), Ok(micros), "{}", written);
        }

        /// The short way and the long one mean the same.
        #[test]
        fn usual_forms_mean_what_all_forms_do(
            text in "[0-9]{4}-[01][0-9]-[0-3][0-9][ T][0-2][0-9]:[0-6][0-9]:[0-6][0-9]([.][0-9]{1,7})?(Z|[+]00(:?00)?)?",
        ) {
            let paris = Zone::parse("Europe/Paris").expect("it exists");
            prop_assert_eq!(parse_timestamptz(&text, paris), parse_any_timestamptz(&text, paris));
            prop_assert_eq!(parse_timestamp(&text, paris), parse_any_timestamp(&text, paris));
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,24}") {
            let _ = parse_timestamptz(&text, Zone::UTC);
            let _ = parse_date(&text, Zone::UTC);
        }

        #[test]
        fn no_near_text_panics(text in "[0-9]{1,9}[-/: ][0-9]{1,3}[-/: T][0-9:.+ -]{0,16}[A-Z]{0,3}") {
            let _ = parse_timestamptz(&text, Zone::UTC);
        }
    }

    #[test]
    fn forms_of_one_moment() {
        let paris = Zone::parse("Europe/Paris").expect("it exists");
        for text in [
            "2012-01-01 00:00:00+00",
            "2012-01-01T00:00:00Z",
            "2012-01-01 00:00 UTC",
            "20120101 000000Z",
            "2012-01-01 01:00:00",
            "2012-01-01 05:30:00.000+05:30",
            "1/1/2012 01:00",
            "2011-12-31 19:00 EST",
            "2012-01-01 1:00 AM",
            "  2012-01-01 01:00:00 Europe/Paris ",
            "2012-01-01T010000",
        ] {
            assert_eq!(parse_timestamptz(text, paris), Ok(NEW_YEAR_2012), "{text}");
        }
        assert_eq!(parse_timestamp("2012-01-01 00:00:00+05", paris), Ok(NEW_YEAR_2012));
        assert_eq!(
            parse_timestamptz("2012-01-01 00:00:00.1234567", Zone::UTC),
            Ok(NEW_YEAR_2012 + 123_457)
        );
        assert_eq!(parse_timestamptz("infinity", Zone::UTC), Ok(i64::MAX));
        assert_eq!(parse_date("2012-01-01", paris), Ok(15_340));
        assert_eq!(parse_date("0001-12-31 BC", paris), Ok(-719_163));
    }

    #[test]
    fn faults() {
        for (text, fault) in [
            ("x", Fault::Syntax),
            ("", Fault::Syntax),
            ("2012", Fault::Syntax),
            ("2012-13-01", Fault::Range),
            ("2012-02-30", Fault::Range),
            ("2012-01-01 25:00", Fault::Range),
            ("2012-01-01 00:61", Fault::Range),
            ("2012-01-01 00:00 Mars/Phobos", Fault::Zone),
            ("2012-01-01 x:00", Fault::Zone),
            ("300000-01-01 00:00", Fault::Range),
            ("0000-01-01", Fault::Range),
        ] {
            assert_eq!(parse_timestamptz(text, Zone::UTC), Err(fault), "{text}");
        }
    }
}
