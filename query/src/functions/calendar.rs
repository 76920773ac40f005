//! Months, intervals and time zones on microseconds since 1970, for the functions that look at the calendar.

use arrow::datatypes::IntervalMonthDayNano;
use chrono::{DateTime, Datelike, Duration, Months, NaiveDate, NaiveDateTime, Offset, TimeZone};
use chrono_tz::{TZ_VARIANTS, Tz};
use datafusion::{
    common::{DataFusionError, exec_datafusion_err},
    error::Result,
};

pub(super) use hypertide_proto::time::DAY_MICROS;

fn out_of_range() -> DataFusionError {
    exec_datafusion_err!("timestamp out of range")
}

fn date_time(micros: i64) -> Result<NaiveDateTime> {
    DateTime::from_timestamp_micros(micros).map(|time| time.naive_utc()).ok_or_else(out_of_range)
}

fn micros(time: NaiveDateTime) -> i64 {
    time.and_utc().timestamp_micros()
}

/// The first day of the bucket of so many months that holds `point`, counted from the month of `origin`.
pub(super) fn month_bucket(point: i64, months: i32, origin: i64) -> Result<i64> {
    let number = |time: NaiveDateTime| i64::from(time.year()) * 12 + i64::from(time.month0());
    let (point, origin) = (number(date_time(point)?), number(date_time(origin)?));
    let bucket = point - (point - origin).rem_euclid(i64::from(months));
    let year = i32::try_from(bucket.div_euclid(12)).map_err(|_| out_of_range())?;
    let month = bucket.rem_euclid(12) as u32 + 1;
    let first = NaiveDate::from_ymd_opt(year, month, 1).ok_or_else(out_of_range)?;
    Ok(micros(first.and_time(chrono::NaiveTime::MIN)))
}

/// The point `sign` times an interval later: months first, then days, then time, as in PostgreSQL.
pub(super) fn add_interval(point: i64, interval: IntervalMonthDayNano, sign: i64) -> Result<i64> {
    let months = i64::from(interval.months) * sign;
    let mut time = date_time(point)?;
    if months != 0 {
        let count = Months::new(months.unsigned_abs() as u32);
        let moved = if months > 0 {
            time.checked_add_months(count)
        } else {
            time.checked_sub_months(count)
        };
        time = moved.ok_or_else(out_of_range)?;
    }
    let rest = i64::from(interval.days) * DAY_MICROS + interval.nanoseconds / 1000;
    let moved = time.checked_add_signed(Duration::microseconds(rest * sign));
    moved.map(micros).ok_or_else(out_of_range)
}

/// A time zone of the IANA database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Zone(Tz);

impl Zone {
    /// The zone of that name, in any case.
    pub(super) fn named(name: &str) -> Result<Self> {
        let named = TZ_VARIANTS.iter().find(|zone| zone.name().eq_ignore_ascii_case(name));
        let zone = named.copied().map(Self);
        zone.ok_or_else(|| exec_datafusion_err!("time zone \"{name}\" not recognized"))
    }

    /// What the local clock shows at an instant.
    pub(super) fn to_local(self, instant: i64) -> Result<i64> {
        let time = date_time(instant)?;
        let offset = self.0.offset_from_utc_datetime(&time).fix().local_minus_utc();
        Ok(instant + i64::from(offset) * 1_000_000)
    }

    /// The last instant, but not after `latest`, at which the local clock shows `local`. A time that the clock skips
    /// counts from before the skip.
    pub(super) fn instant_of(self, local: i64, latest: i64) -> Result<i64> {
        let time = date_time(local)?;
        let instants = self.0.from_local_datetime(&time);
        let before = || {
            let offset = self.0.offset_from_utc_datetime(&(time - Duration::days(1)));
            local - i64::from(offset.fix().local_minus_utc()) * 1_000_000
        };
        let late = instants.latest().map(|time| time.timestamp_micros());
        let early = instants.earliest().map(|time| time.timestamp_micros());
        Ok(late.filter(|late| *late <= latest).or(early).unwrap_or_else(before))
    }
}
