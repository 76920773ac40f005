//! Points and ranges of the time dimension.
//!
//! A point is an `i64` in the unit of its column: microseconds since the Unix epoch for the timestamp types and for
//! dates, the number itself for integer columns.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Microseconds of a day.
pub const DAY_MICROS: i64 = 86_400_000_000;

/// A half-open range `[start, end)`. `i64::MIN` as a start and `i64::MAX` as an end mean no bound on that side.
///
/// - `start < end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TimeRange {
    start: i64,
    end: i64,
}

impl TimeRange {
    /// Everything.
    pub const ALL: Self = Self { start: i64::MIN, end: i64::MAX };

    /// The range from `start` up to but without `end`; `None` when that is empty.
    #[must_use]
    pub const fn new(start: i64, end: i64) -> Option<Self> {
        if start < end { Some(Self { start, end }) } else { None }
    }

    /// The slice of width `interval` that holds `point`, aligned to the epoch.
    ///
    /// Near the ends of the type, where the whole slice would not fit, it reaches to the end.
    /// `interval` must be positive.
    #[must_use]
    pub fn aligned(point: i64, interval: i64) -> Self {
        assert!(interval > 0, "a slice has a positive width");
        // The slice that ends at `i64::MAX` is without bound there and holds it: none may begin with it, being empty.
        let number = point.min(i64::MAX - 1).div_euclid(interval);
        let wide = i128::from(interval);
        let start = i128::from(number) * wide;
        let clamp = |edge: i128| edge.clamp(i64::MIN.into(), i64::MAX.into()) as i64;
        Self { start: clamp(start), end: clamp(start + wide) }
    }

    /// First point inside.
    #[must_use]
    pub const fn start(&self) -> i64 {
        self.start
    }

    /// First point after.
    #[must_use]
    pub const fn end(&self) -> i64 {
        self.end
    }

    /// Whether `point` lies inside. The unbounded end holds `i64::MAX` too.
    #[must_use]
    pub const fn contains(&self, point: i64) -> bool {
        self.start <= point && (point < self.end || self.end == i64::MAX)
    }

    /// Whether the two have a point in common.
    #[must_use]
    pub const fn overlaps(&self, other: &Self) -> bool {
        self.start < other.end && other.start < self.end
    }

    /// What the two have in common.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Option<Self> {
        Self::new(self.start.max(other.start), self.end.min(other.end))
    }
}

impl fmt::Display for TimeRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let edge = |f: &mut fmt::Formatter<'_>, value: i64| match value {
            i64::MIN => write!(f, "-inf"),
            i64::MAX => write!(f, "+inf"),
            value => write!(f, "{value}"),
        };
        write!(f, "[")?;
        edge(f, self.start)?;
        write!(f, ", ")?;
        edge(f, self.end)?;
        write!(f, ")")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn aligned_slices_hold_their_point(point: i64, interval in 1..i64::MAX) {
            let slice = TimeRange::aligned(point, interval);
            prop_assert!(slice.contains(point));
            prop_assert!(slice.start == i64::MIN || slice.start.rem_euclid(interval) == 0);
            // Every point of the slice gives the same slice.
            prop_assert_eq!(TimeRange::aligned(slice.start, interval).end, slice.end);
        }

        #[test]
        fn neighbours_do_not_overlap(point in -1_000_000i64..1_000_000, interval in 1i64..10_000) {
            let slice = TimeRange::aligned(point, interval);
            let next = TimeRange::aligned(slice.end, interval);
            prop_assert!(!slice.overlaps(&next));
            prop_assert_eq!(slice.end, next.start);
        }
    }

    #[test]
    fn seven_day_slices_start_on_thursdays() {
        let monday = 1_483_315_200_000_000; // 2017-01-02 00:00:00Z
        let slice = TimeRange::aligned(monday, 7 * DAY_MICROS);
        assert_eq!(slice.start(), 1_482_969_600_000_000);
        assert_eq!(slice.end(), 1_483_574_400_000_000);
    }

    #[test]
    fn slices_at_the_ends_hold_their_points() {
        // 7 divides `i64::MAX`, so that a slice would begin there; 2 divides `i64::MIN`.
        for interval in [1, 2, 7, 10, 1 << 40, i64::MAX] {
            for point in [i64::MIN, i64::MIN + 1, i64::MAX - 1, i64::MAX] {
                let slice = TimeRange::aligned(point, interval);
                assert!(slice.start < slice.end && slice.contains(point), "{point} by {interval}");
            }
        }
    }

    #[test]
    fn empty_ranges_do_not_exist() {
        assert_eq!(TimeRange::new(3, 3), None);
        assert_eq!(TimeRange::new(4, 3), None);
        assert!(TimeRange::ALL.contains(i64::MAX));
        assert_eq!(TimeRange::ALL.to_string(), "[-inf, +inf)");
    }
}
