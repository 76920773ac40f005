//! The proleptic Gregorian calendar: days since the Unix epoch to and from year, month and day.

/// Microseconds of a second.
pub(crate) const SECOND_MICROS: i64 = 1_000_000;
/// Microseconds of a day.
pub(crate) const DAY_MICROS: i64 = 86_400 * SECOND_MICROS;
/// First moment of PostgreSQL's timestamps: 4714-11-24 BC, in microseconds since the Unix epoch.
pub(crate) const TIMESTAMP_MIN: i64 = -210_866_803_200_000_000;
/// First moment after the timestamps that are finite, in the year 294247: the greatest number stands for infinity.
/// PostgreSQL, which counts from the year 2000, goes 30 years further.
pub(crate) const TIMESTAMP_END: i64 = i64::MAX;
/// First of PostgreSQL's dates, as days since the Unix epoch: 4714-11-24 BC.
pub(crate) const DATE_MIN: i32 = -2_440_588;
/// First day after PostgreSQL's dates: 5874898-01-01.
pub(crate) const DATE_END: i32 = 2_145_042_906;

/// Year (0 is 1 BC), month and day of a day.
pub(crate) fn from_days(days: i64) -> (i64, u8, u8) {
    let shifted = days + 719_468; // days since 0000-03-01
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = (day_of_year - (153 * march_month + 2) / 5 + 1) as u8;
    let month = (if march_month < 10 { march_month + 3 } else { march_month - 9 }) as u8;
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day)
}

/// The day of a date; `None` when month or day do not exist.
pub(crate) fn to_days(year: i64, month: u8, day: u8) -> Option<i64> {
    if !(1..=12).contains(&month) || day == 0 || day > days_of_month(year, month) {
        return None;
    }
    let year = year - i64::from(month <= 2);
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let march_month = i64::from(if month > 2 { month - 3 } else { month + 9 });
    let day_of_year = (153 * march_month + 2) / 5 + i64::from(day) - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    Some(era * 146_097 + day_of_era - 719_468)
}

/// Days of a month.
fn days_of_month(year: i64, month: u8) -> u8 {
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    match month {
        2 if leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn days_survive(days in i64::from(DATE_MIN)..i64::from(DATE_END)) {
            let (year, month, day) = from_days(days);
            prop_assert_eq!(to_days(year, month, day), Some(days));
        }
    }

    #[test]
    fn known_days() {
        assert_eq!(from_days(0), (1970, 1, 1));
        assert_eq!(from_days(-1), (1969, 12, 31));
        assert_eq!(to_days(2000, 2, 29), Some(11_016));
        assert_eq!(to_days(1900, 2, 29), None);
        assert_eq!(to_days(-4713, 11, 24), Some(i64::from(DATE_MIN)));
        assert_eq!(to_days(5_874_898, 1, 1), Some(i64::from(DATE_END)));
        assert_eq!(TIMESTAMP_MIN, i64::from(DATE_MIN) * DAY_MICROS);
    }
}
