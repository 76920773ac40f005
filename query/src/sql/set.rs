//! SET, RESET, SHOW and DISCARD.

use datafusion::sql::sqlparser::{parser::Parser, tokenizer::Token};

use super::parse::{Statement, unexpected};
use crate::{Error, settings::Scope};

/// What SET says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Set {
    /// A setting and its value; without a value its default.
    Value(String, Option<String>, Scope),
    /// Several at once, such as the modes of a transaction.
    Values(Vec<(&'static str, String)>, Scope),
    /// The snapshot that a transaction reads by, by the name that another gave it.
    Snapshot(String),
    /// Something that is accepted and changes nothing.
    Nothing,
}

/// Reads a SET statement.
pub(crate) fn parse_set(parser: &mut Parser<'_>, sql: &str) -> Result<Statement, Error> {
    parser.next_token();
    let session = word(parser, "session");
    if session && word(parser, "characteristics") {
        expect(parser, "as", sql)?;
        expect(parser, "transaction", sql)?;
        return modes(parser, sql, "default_transaction", Scope::Session);
    }
    if session && word(parser, "authorization") {
        parser.next_token();
        return Ok(Statement::Set(Set::Nothing));
    }
    let scope = if !session && word(parser, "local") { Scope::Local } else { Scope::Session };
    if word(parser, "transaction") {
        if word(parser, "snapshot") {
            return Ok(Statement::Set(Set::Snapshot(text_token(parser, sql)?)));
        }
        return modes(parser, sql, "transaction", Scope::Local);
    }
    if word(parser, "role") {
        parser.next_token();
        return Ok(Statement::Set(Set::Nothing));
    }
    let name = if word(parser, "time") {
        expect(parser, "zone", sql)?;
        "timezone".to_owned()
    } else if word(parser, "names") {
        "client_encoding".to_owned()
    } else {
        let name = setting_name(parser, sql)?;
        if !parser.consume_token(&Token::Eq) && !word(parser, "to") {
            return Err(unexpected(parser, sql));
        }
        name
    };
    let value = value(parser, sql, &name)?;
    Ok(Statement::Set(Set::Value(name, value, scope)))
}

/// `ISOLATION LEVEL …`, `READ ONLY`, `READ WRITE`, `[NOT] DEFERRABLE`, separated by commas or not.
fn modes(
    parser: &mut Parser<'_>,
    sql: &str,
    prefix: &str,
    scope: Scope,
) -> Result<Statement, Error> {
    let default = prefix == "default_transaction";
    let name = |own: &'static str, of_default: &'static str| if default { of_default } else { own };
    let mut values = Vec::new();
    loop {
        if word(parser, "isolation") {
            expect(parser, "level", sql)?;
            let level = isolation(parser, sql)?;
            values.push((name("transaction_isolation", "default_transaction_isolation"), level));
        } else if word(parser, "read") {
            let only = word(parser, "only");
            if !only {
                expect(parser, "write", sql)?;
            }
            let value = if only { "on" } else { "off" }.to_owned();
            values.push((name("transaction_read_only", "default_transaction_read_only"), value));
        } else if word(parser, "not") {
            expect(parser, "deferrable", sql)?;
        } else if !word(parser, "deferrable") {
            break;
        }
        let _ = parser.consume_token(&Token::Comma);
    }
    if values.is_empty() && parser.peek_token().token != Token::EOF {
        return Err(unexpected(parser, sql));
    }
    Ok(Statement::Set(Set::Values(values, scope)))
}

fn isolation(parser: &mut Parser<'_>, sql: &str) -> Result<String, Error> {
    for (words, level) in [
        (&["serializable"][..], "serializable"),
        (&["repeatable", "read"], "repeatable read"),
        (&["read", "committed"], "read committed"),
        (&["read", "uncommitted"], "read uncommitted"),
    ] {
        let mut ahead = words.iter().enumerate();
        if ahead.all(|(at, word)| is_word(&parser.peek_nth_token(at).token, word)) {
            words.iter().for_each(|_| {
                parser.next_token();
            });
            return Ok(level.to_owned());
        }
    }
    Err(unexpected(parser, sql))
}

/// Values separated by commas, put together as SHOW prints them; `None` for DEFAULT.
fn value(parser: &mut Parser<'_>, sql: &str, name: &str) -> Result<Option<String>, Error> {
    if word(parser, "default") {
        return Ok(None);
    }
    if name == "timezone" && word(parser, "local") {
        return Ok(None);
    }
    let mut values: Vec<String> = Vec::new();
    loop {
        values.push(one_value(parser, sql, name)?);
        if !parser.consume_token(&Token::Comma) {
            break;
        }
    }
    Ok(Some(values.join(", ")))
}

fn one_value(parser: &mut Parser<'_>, sql: &str, name: &str) -> Result<String, Error> {
    if name == "timezone" && word(parser, "interval") {
        let text = text_token(parser, sql)?;
        while parser.peek_token().token != Token::EOF
            && parser.peek_token().token != Token::SemiColon
        {
            parser.next_token();
        }
        return Ok(text);
    }
    let negative = parser.consume_token(&Token::Minus);
    let positive = !negative && parser.consume_token(&Token::Plus);
    let token = parser.peek_token().token;
    let text = match token {
        Token::Number(digits, _) => {
            let sign = if negative { "-" } else { "" };
            // Hours east of UTC.
            match name {
                "timezone" => offset(&digits, negative).ok_or_else(|| {
                    Error::of(
                        "22023",
                        format_args!("time zone displacement \"{digits}\" out of range"),
                    )
                })?,
                _ => format!("{sign}{digits}"),
            }
        }
        _ if negative || positive => return Err(unexpected(parser, sql)),
        Token::Word(word) => match word.quote_style {
            Some(_) if name == "search_path" => format!("\"{}\"", word.value),
            _ => word.value,
        },
        _ => return text_token(parser, sql),
    };
    parser.next_token();
    Ok(text)
}

fn offset(digits: &str, negative: bool) -> Option<String> {
    let hours: f64 = digits.parse().ok()?;
    let minutes = (hours * 60.0).round() as i64;
    let sign = if negative { '-' } else { '+' };
    (minutes < 16 * 60).then(|| format!("{sign}{:02}:{:02}", minutes / 60, minutes % 60))
}

fn text_token(parser: &mut Parser<'_>, sql: &str) -> Result<String, Error> {
    let text = match parser.peek_token().token {
        Token::SingleQuotedString(text) | Token::EscapedStringLiteral(text) => text,
        _ => return Err(unexpected(parser, sql)),
    };
    parser.next_token();
    Ok(text)
}

/// A name with dots in it.
fn setting_name(parser: &mut Parser<'_>, sql: &str) -> Result<String, Error> {
    let mut name = String::new();
    loop {
        match parser.peek_token().token {
            Token::Word(word) => name.push_str(&word.value),
            _ => return Err(unexpected(parser, sql)),
        }
        parser.next_token();
        if !parser.consume_token(&Token::Period) {
            return Ok(name);
        }
        name.push('.');
    }
}

/// Reads RESET.
pub(crate) fn parse_reset(parser: &mut Parser<'_>, sql: &str) -> Result<Statement, Error> {
    parser.next_token();
    Ok(Statement::Reset(all_or_name(parser, sql)?))
}

/// Reads SHOW.
pub(crate) fn parse_show(parser: &mut Parser<'_>, sql: &str) -> Result<Statement, Error> {
    parser.next_token();
    Ok(Statement::Show(all_or_name(parser, sql)?))
}

fn all_or_name(parser: &mut Parser<'_>, sql: &str) -> Result<Option<String>, Error> {
    if word(parser, "all") {
        return Ok(None);
    }
    if word(parser, "time") {
        expect(parser, "zone", sql)?;
        return Ok(Some("TimeZone".to_owned()));
    }
    if word(parser, "session") {
        expect(parser, "authorization", sql)?;
        return Ok(Some("session_authorization".to_owned()));
    }
    if is_word(&parser.peek_token().token, "transaction")
        && is_word(&parser.peek_nth_token(1).token, "isolation")
    {
        parser.next_token();
        parser.next_token();
        expect(parser, "level", sql)?;
        return Ok(Some("transaction_isolation".to_owned()));
    }
    setting_name(parser, sql).map(Some)
}

/// Reads DISCARD.
pub(crate) fn parse_discard(parser: &mut Parser<'_>, sql: &str) -> Result<Statement, Error> {
    parser.next_token();
    if word(parser, "all") {
        return Ok(Statement::Discard);
    }
    if ["plans", "sequences", "temp", "temporary"].iter().any(|what| word(parser, what)) {
        return Ok(Statement::Set(Set::Nothing));
    }
    Err(unexpected(parser, sql))
}

/// Takes the next token if it is that word.
pub(crate) fn word(parser: &mut Parser<'_>, wanted: &str) -> bool {
    let found = is_word(&parser.peek_token().token, wanted);
    if found {
        parser.next_token();
    }
    found
}

fn is_word(token: &Token, wanted: &str) -> bool {
    matches!(token, Token::Word(word) if word.quote_style.is_none() && word.value.eq_ignore_ascii_case(wanted))
}

fn expect(parser: &mut Parser<'_>, wanted: &str, sql: &str) -> Result<(), Error> {
    if word(parser, wanted) { Ok(()) } else { Err(unexpected(parser, sql)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::parse::parse;

    fn set(sql: &str) -> Set {
        match parse(sql) {
            Ok(Statement::Set(set)) => set,
            other => panic!("{sql}: {other:?}"),
        }
    }

    #[test]
    fn forms_of_set() {
        let value =
            |name: &str, value: &str, scope| Set::Value(name.into(), Some(value.into()), scope);
        for (sql, expected) in [
            (
                "SET search_path TO \"Odd\", public",
                value("search_path", "\"Odd\", public", Scope::Session),
            ),
            ("set local statement_timeout = '5s'", value("statement_timeout", "5s", Scope::Local)),
            (
                "SET SESSION extra_float_digits = -3;",
                value("extra_float_digits", "-3", Scope::Session),
            ),
            ("SET TIME ZONE 'Europe/Paris'", value("timezone", "Europe/Paris", Scope::Session)),
            ("SET TIME ZONE -5.5", value("timezone", "-05:30", Scope::Session)),
            (
                "SET TIME ZONE INTERVAL '+02:00' HOUR TO MINUTE",
                value("timezone", "+02:00", Scope::Session),
            ),
            (
                "SET hypertide.enable_pushdown = off",
                value("hypertide.enable_pushdown", "off", Scope::Session),
            ),
            ("SET TRANSACTION SNAPSHOT '17'", Set::Snapshot("17".into())),
            ("SET NAMES 'UTF8'", value("client_encoding", "UTF8", Scope::Session)),
            ("SET timezone TO DEFAULT", Set::Value("timezone".into(), None, Scope::Session)),
        ] {
            assert_eq!(set(sql), expected, "{sql}");
        }
        let modes = set(
            "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY",
        );
        let expected = vec![
            ("default_transaction_isolation", "repeatable read".to_owned()),
            ("default_transaction_read_only", "on".to_owned()),
        ];
        assert_eq!(modes, Set::Values(expected, Scope::Session));
    }

    #[test]
    fn faults_are_syntax_errors() {
        for sql in ["SET", "SET x", "SET x =", "SET x = 1 2", "RESET", "DISCARD x", "SHOW a b"] {
            assert_eq!(parse(sql).expect_err(sql).state.0, "42601", "{sql}");
        }
    }
}
