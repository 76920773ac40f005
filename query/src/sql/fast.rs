//! The usual forms of numbers and moments, read without looking back. Pure. Whatever has another form, or might round, is
//! `None` here, and left to the readers that know all forms: they give the same value, or the error.

use super::civil::{self, DAY_MICROS, SECOND_MICROS};

/// Powers of ten that a double holds exactly, as far as they are needed.
const POWERS: [f64; 16] =
    [1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15];
/// Digits of which every number is exact in a double.
const DIGITS_MAX: usize = 15;

/// `[-]digits[.digits]` of few digits. The number and the power of ten are exact, so that one division rounds right.
pub(super) fn float(text: &str) -> Option<f64> {
    let (negative, digits) = match text.as_bytes() {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    let (mut number, mut count, mut point) = (0u64, 0, None);
    for byte in digits {
        match byte {
            b'0'..=b'9' => {
                number = number * 10 + u64::from(byte - b'0');
                count += 1;
                if count > DIGITS_MAX {
                    return None;
                }
            }
            b'.' if point.is_none() => point = Some(count),
            _ => return None,
        }
    }
    if count == 0 {
        return None;
    }
    let power = POWERS.get(count - point.unwrap_or(count))?;
    #[expect(clippy::cast_precision_loss, reason = "fifteen digits are exact")]
    let value = number as f64 / power;
    Some(if negative { -value } else { value })
}

/// `YYYY-MM-DD HH:MM:SS[.ffffff]`, with `T` instead of the space perhaps, and `Z`, `+00`, `+0000` or `+00:00` behind it:
/// microseconds since the epoch as the text has them, and whether it names that zone.
pub(super) fn moment(text: &str) -> Option<(i64, bool)> {
    let (head, mut rest) = text.as_bytes().split_first_chunk::<19>()?;
    let [
        y1,
        y2,
        y3,
        y4,
        b'-',
        m1,
        m2,
        b'-',
        d1,
        d2,
        b' ' | b'T',
        h1,
        h2,
        b':',
        n1,
        n2,
        b':',
        s1,
        s2,
    ] = head
    else {
        return None;
    };
    let two = |tens: &u8, ones: &u8| {
        let (tens, ones) = (tens.wrapping_sub(b'0'), ones.wrapping_sub(b'0'));
        (tens < 10 && ones < 10).then_some(tens * 10 + ones)
    };
    let year = i64::from(two(y1, y2)?) * 100 + i64::from(two(y3, y4)?);
    let (hour, minute, second) = (two(h1, h2)?, two(n1, n2)?, two(s1, s2)?);
    // What is beyond has a meaning of its own, or none.
    if year == 0 || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let days = civil::to_days(year, two(m1, m2)?, two(d1, d2)?)?;
    let mut micros = 0;
    if let Some((b'.', part)) = rest.split_first() {
        let mut unit = SECOND_MICROS;
        rest = part;
        while let Some((digit @ b'0'..=b'9', after)) = rest.split_first() {
            unit /= 10;
            if unit == 0 {
                return None;
            }
            micros += i64::from(digit - b'0') * unit;
            rest = after;
        }
        if unit == SECOND_MICROS {
            return None;
        }
    }
    let zoned = match rest {
        b"" => false,
        b"Z" | b"+00" | b"+0000" | b"+00:00" => true,
        _ => return None,
    };
    let seconds = (i64::from(hour) * 60 + i64::from(minute)) * 60 + i64::from(second);
    Some((days * DAY_MICROS + seconds * SECOND_MICROS + micros, zoned))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn floats_are_those_of_the_standard_library(text in "-?[0-9]{0,9}[.]?[0-9]{0,9}") {
            if let Some(value) = float(&text) {
                let expected: f64 = text.parse().expect("it is a number");
                prop_assert_eq!(value.to_bits(), expected.to_bits(), "{}", text);
            }
        }

        #[test]
        fn any_text_is_a_number_or_none(text in "\\PC{0,12}") {
            if let Some(value) = float(&text) {
                prop_assert_eq!(text.parse(), Ok(value));
            }
            let _ = moment(&text);
        }
    }

    #[test]
    fn usual_forms_are_known() {
        for (text, value) in [("0", 0.0), ("42", 42.0), ("-0.5", -0.5), ("7.", 7.0), (".25", 0.25)]
        {
            assert_eq!(float(text), Some(value), "{text}");
        }
        assert_eq!(float("-0").map(f64::to_bits), Some((-0.0f64).to_bits()));
        for text in
            ["", "-", ".", "-.", "1e3", " 1", "1 ", "nan", "1234567890123456", "1.2.3", "+1"]
        {
            assert_eq!(float(text), None, "{text}");
        }
        let day = 16_801 * DAY_MICROS;
        assert_eq!(moment("2016-01-01 00:00:01+00"), Some((day + SECOND_MICROS, true)));
        assert_eq!(moment("2016-01-01T00:00:00.25"), Some((day + SECOND_MICROS / 4, false)));
        assert_eq!(moment("2016-01-01 00:00:00.000001Z"), Some((day + 1, true)));
        for text in [
            "2016-01-01 24:00:00",
            "2016-01-01 00:00:60",
            "2016-02-30 00:00:00",
            "0000-01-01 00:00:00",
            "2016-01-01 00:00:00.",
            "2016-01-01 00:00:00.1234567",
            "2016-01-01 00:00:00+01",
            "2016-01-01 00:00:0",
            "2016-01-01 00:00:00 ",
            "2016-01-01 0/:00:00",
        ] {
            assert_eq!(moment(text), None, "{text}");
        }
    }
}
