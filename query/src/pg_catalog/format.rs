//! PostgreSQL's `format`: texts, identifiers and literals put into a text.

use datafusion::common::ScalarValue;
use hypertide_meta::Image;

use super::{functions::text, oid};
use crate::Error;

/// `format(pattern, value, …)`. Knows `%s`, `%I`, `%L`, `%%`, and positions such as `%2$s`.
pub(super) fn format(_: &Image, values: &[ScalarValue]) -> Result<Option<String>, Error> {
    let Some(pattern) = text(values, 0) else { return Ok(None) };
    let mut out = String::with_capacity(pattern.len());
    let (mut rest, mut next) = (pattern.as_str(), 1);
    while let Some((before, after)) = rest.split_once('%') {
        out.push_str(before);
        if let Some(after) = after.strip_prefix('%') {
            out.push('%');
            rest = after;
            continue;
        }
        let digits = after.split_once('$').map(|(number, after)| (number.parse::<usize>(), after));
        let (at, after) = match digits {
            Some((Ok(0), _)) => {
                let message = "format specifies argument 0, but arguments are numbered from 1";
                return Err(Error::of("22023", message));
            }
            Some((Ok(number), after)) => (number, after),
            _ => (next, after),
        };
        next = at + 1;
        if at >= values.len() {
            return Err(Error::of("22023", "too few arguments for format()"));
        }
        let mut chars = after.chars();
        let kind = chars.next();
        out.push_str(&shown(kind, text(values, at))?);
        rest = chars.as_str();
    }
    out.push_str(rest);
    Ok(Some(out))
}

fn shown(kind: Option<char>, value: Option<String>) -> Result<String, Error> {
    match (kind, value) {
        (Some('s'), value) => Ok(value.unwrap_or_default()),
        (Some('I'), Some(name)) => Ok(oid::quoted(&name)),
        (Some('I'), None) => {
            Err(Error::of("22004", "null values cannot be formatted as an SQL identifier"))
        }
        (Some('L'), Some(text)) => Ok(format!("'{}'", text.replace('\'', "''"))),
        (Some('L'), None) => Ok("NULL".to_owned()),
        (Some(other), _) => {
            let message = format_args!("unrecognized format() type specifier \"{other}\"");
            Err(Error::of("22023", message).with_hint("For a single \"%\" use \"%%\"."))
        }
        (None, _) => Err(Error::of("22023", "unterminated format() type specifier")
            .with_hint("For a single \"%\" use \"%%\".")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(values: &[Option<&str>]) -> Result<Option<String>, String> {
        let image = Image { applied: 0, catalog: hypertide_meta::catalog::Catalog::default() };
        let values: Vec<ScalarValue> =
            values.iter().map(|text| ScalarValue::Utf8(text.map(str::to_owned))).collect();
        format(&image, &values).map_err(|error| error.message)
    }

    #[test]
    fn as_postgresql_has_it() {
        let ok = |text: &str| Ok(Some(text.to_owned()));
        assert_eq!(run(&[Some("%I.%I"), Some("s"), Some("A b")]), ok("s.\"A b\""));
        assert_eq!(run(&[Some("%s|%s|%%"), None, Some("x")]), ok("|x|%"));
        assert_eq!(run(&[Some("%L %L"), Some("o'c"), None]), ok("'o''c' NULL"));
        assert_eq!(run(&[Some("%2$s %1$s %s"), Some("a"), Some("b")]), ok("b a b"));
        assert_eq!(run(&[None]), Ok(None));
        for wrong in ["%s %s", "%x", "%", "%0$s"] {
            assert!(run(&[Some(wrong), Some("a")]).is_err(), "{wrong}");
        }
        assert!(run(&[Some("%I"), None]).is_err());
    }
}
