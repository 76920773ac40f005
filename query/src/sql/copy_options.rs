//! The statement COPY: what is copied, which way, and its options in the new and the old syntax.

use datafusion::sql::sqlparser::{
    ast::{ObjectName, Query},
    keywords::Keyword,
    parser::Parser,
    tokenizer::Token,
};

use super::{
    parse::{fold, unexpected},
    set::word,
};
use crate::{Error, settings::parse_bool};

/// What is copied.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    /// A table, or some of its columns.
    Table(ObjectName, Vec<String>),
    /// The rows of a query.
    Query(Box<Query>),
}

/// COPY.
#[derive(Clone, Debug)]
pub(crate) struct Copy {
    /// What.
    pub(crate) source: Source,
    /// Into the table, or out of it.
    pub(crate) from: bool,
    /// How.
    pub(crate) form: Form,
}

/// The form of the data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// Lines of text or CSV.
    Lines(Format),
    /// Tuples of values in their binary forms.
    Binary,
}

/// First line of the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Header {
    /// A row.
    None,
    /// Names, which are passed over.
    Skip,
    /// Names, which must be those of the columns.
    Match,
}

/// How lines are written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Format {
    /// Whether it is CSV; otherwise it is text.
    pub(crate) csv: bool,
    /// Between two values.
    pub(crate) delimiter: u8,
    /// What stands for NULL.
    pub(crate) null: String,
    /// What stands for the column's default, if anything does.
    pub(crate) default: Option<String>,
    /// First line.
    pub(crate) header: Header,
    /// CSV: around values.
    pub(crate) quote: u8,
    /// CSV: before a quote within quotes.
    pub(crate) escape: u8,
    /// CSV: columns always in quotes on the way out; `*` for all.
    pub(crate) force_quote: Vec<String>,
    /// CSV: columns whose values are never taken for NULL.
    pub(crate) force_not_null: Vec<String>,
    /// CSV: columns whose values are taken for NULL even in quotes.
    pub(crate) force_null: Vec<String>,
}

/// Options as they were given.
#[derive(Debug, Default)]
struct Given {
    format: Option<String>,
    delimiter: Option<String>,
    null: Option<String>,
    default: Option<String>,
    header: Option<Header>,
    quote: Option<String>,
    escape: Option<String>,
    encoding: Option<String>,
    force_quote: Option<Vec<String>>,
    force_not_null: Option<Vec<String>>,
    force_null: Option<Vec<String>>,
}

/// Reads COPY.
pub(crate) fn parse_copy(parser: &mut Parser<'_>, sql: &str) -> Result<Copy, Error> {
    parser.next_token();
    let syntax = |error| Error::syntax(&error, sql);
    let mut given = Given::default();
    if word(parser, "binary") {
        given.format = Some("binary".into());
    }
    let source = if parser.consume_token(&Token::LParen) {
        let query = parser.parse_query().map_err(syntax)?;
        parser.expect_token(&Token::RParen).map_err(syntax)?;
        Source::Query(query)
    } else {
        let name = parser.parse_object_name(false).map_err(syntax)?;
        let columns = if parser.peek_token().token == Token::LParen {
            names(parser, sql)?
        } else {
            Vec::new()
        };
        Source::Table(name, columns)
    };
    let from = if word(parser, "from") {
        true
    } else if word(parser, "to") {
        false
    } else {
        return Err(unexpected(parser, sql));
    };
    if from && matches!(source, Source::Query(_)) {
        return Err(Error::of("42601", "COPY FROM needs a table, not a query"));
    }
    if !word(parser, if from { "stdin" } else { "stdout" }) {
        return match parser.peek_token().token {
            Token::SingleQuotedString(_) | Token::Word(_) => Err(Error::unsupported(
                "COPY with a file or a program of the server",
            )
            .with_hint("Use COPY FROM STDIN or COPY TO STDOUT; psql's \\copy reads and writes files of the client.")),
            _ => Err(unexpected(parser, sql)),
        };
    }
    word(parser, "with");
    if parser.consume_token(&Token::LParen) {
        parse_options(parser, sql, &mut given)?;
    } else {
        parse_old_options(parser, sql, &mut given)?;
    }
    if word(parser, "where") {
        return Err(Error::unsupported("COPY … WHERE"));
    }
    Ok(Copy { source, from, form: given.check(from)? })
}

/// Names in parentheses.
fn names(parser: &mut Parser<'_>, sql: &str) -> Result<Vec<String>, Error> {
    let list = parser.parse_parenthesized_column_list(
        datafusion::sql::sqlparser::parser::IsOptional::Mandatory,
        false,
    );
    Ok(list.map_err(|error| Error::syntax(&error, sql))?.iter().map(fold).collect())
}

fn text(parser: &mut Parser<'_>, sql: &str) -> Result<String, Error> {
    let text = match parser.peek_token().token {
        Token::SingleQuotedString(text) | Token::EscapedStringLiteral(text) => text,
        Token::Word(word) => word.value,
        Token::Number(digits, _) => digits,
        _ => return Err(unexpected(parser, sql)),
    };
    parser.next_token();
    Ok(text)
}

/// `(FORMAT csv, HEADER, …)`.
fn parse_options(parser: &mut Parser<'_>, sql: &str, given: &mut Given) -> Result<(), Error> {
    loop {
        let name = text(parser, sql)?.to_ascii_lowercase();
        match name.as_str() {
            "format" => given.format = Some(text(parser, sql)?.to_ascii_lowercase()),
            "delimiter" => given.delimiter = Some(text(parser, sql)?),
            "null" => given.null = Some(text(parser, sql)?),
            "default" => given.default = Some(text(parser, sql)?),
            "quote" => given.quote = Some(text(parser, sql)?),
            "escape" => given.escape = Some(text(parser, sql)?),
            "encoding" => given.encoding = Some(text(parser, sql)?),
            "header" => given.header = Some(header(parser, sql)?),
            "freeze" => {
                if !matches!(parser.peek_token().token, Token::Comma | Token::RParen) {
                    text(parser, sql)?;
                }
            }
            "force_quote" if parser.consume_token(&Token::Mul) => {
                given.force_quote = Some(vec!["*".into()])
            }
            "force_quote" => given.force_quote = Some(names(parser, sql)?),
            "force_not_null" => given.force_not_null = Some(names(parser, sql)?),
            "force_null" => given.force_null = Some(names(parser, sql)?),
            _ => return Err(Error::of("42601", format_args!("option \"{name}\" not recognized"))),
        }
        if parser.consume_token(&Token::RParen) {
            return Ok(());
        }
        if !parser.consume_token(&Token::Comma) {
            return Err(unexpected(parser, sql));
        }
    }
}

fn header(parser: &mut Parser<'_>, sql: &str) -> Result<Header, Error> {
    if matches!(parser.peek_token().token, Token::Comma | Token::RParen) {
        return Ok(Header::Skip);
    }
    let value = text(parser, sql)?;
    match parse_bool(&value) {
        Some(true) => Ok(Header::Skip),
        Some(false) => Ok(Header::None),
        None if value.eq_ignore_ascii_case("match") => Ok(Header::Match),
        None => Err(Error::of("22023", "header requires a Boolean value or \"match\"")),
    }
}

/// `CSV HEADER DELIMITER AS ','`, as before PostgreSQL 9.0.
fn parse_old_options(parser: &mut Parser<'_>, sql: &str, given: &mut Given) -> Result<(), Error> {
    loop {
        if word(parser, "csv") {
            given.format = Some("csv".into());
        } else if word(parser, "binary") {
            given.format = Some("binary".into());
        } else if word(parser, "header") {
            given.header = Some(Header::Skip);
        } else if word(parser, "delimiter") || word(parser, "delimiters") {
            word(parser, "as");
            given.delimiter = Some(text(parser, sql)?);
        } else if word(parser, "null") {
            word(parser, "as");
            given.null = Some(text(parser, sql)?);
        } else if word(parser, "quote") {
            word(parser, "as");
            given.quote = Some(text(parser, sql)?);
        } else if word(parser, "escape") {
            word(parser, "as");
            given.escape = Some(text(parser, sql)?);
        } else if word(parser, "encoding") {
            given.encoding = Some(text(parser, sql)?);
        } else if word(parser, "freeze") {
        } else if word(parser, "force") {
            parse_force(parser, sql, given)?;
        } else {
            return match parser.peek_token().token {
                Token::Word(word) if word.keyword != Keyword::WHERE => {
                    let name = word.value.to_ascii_lowercase();
                    Err(Error::of("42601", format_args!("option \"{name}\" not recognized")))
                }
                _ => Ok(()),
            };
        }
    }
}

fn parse_force(parser: &mut Parser<'_>, sql: &str, given: &mut Given) -> Result<(), Error> {
    let target = if word(parser, "quote") {
        &mut given.force_quote
    } else if word(parser, "not") {
        word(parser, "null");
        &mut given.force_not_null
    } else if word(parser, "null") {
        &mut given.force_null
    } else {
        return Err(unexpected(parser, sql));
    };
    if parser.consume_token(&Token::Mul) {
        *target = Some(vec!["*".into()]);
        return Ok(());
    }
    let list = parser.parse_comma_separated(|parser| parser.parse_identifier());
    *target = Some(list.map_err(|error| Error::syntax(&error, sql))?.iter().map(fold).collect());
    Ok(())
}

impl Given {
    /// The first of the options that only lines have.
    fn first_given(&self) -> Option<&'static str> {
        let given = [
            (self.delimiter.is_some(), "DELIMITER"),
            (self.null.is_some(), "NULL"),
            (self.default.is_some(), "DEFAULT"),
            (self.header.is_some_and(|header| header != Header::None), "HEADER"),
            (self.quote.is_some(), "QUOTE"),
            (self.escape.is_some(), "ESCAPE"),
            (self.force_quote.is_some(), "FORCE_QUOTE"),
            (self.force_not_null.is_some(), "FORCE_NOT_NULL"),
            (self.force_null.is_some(), "FORCE_NULL"),
        ];
        given.iter().find(|(given, _)| *given).map(|(_, name)| *name)
    }

    fn check(self, from: bool) -> Result<Form, Error> {
        let csv = match self.format.as_deref() {
            None | Some("text") => false,
            Some("csv") => true,
            // All options that there are describe lines of text.
            Some("binary") => {
                return match self.first_given() {
                    None => Ok(Form::Binary),
                    Some(option) => Err(Error::of(
                        "42601",
                        format_args!("cannot specify {option} in BINARY mode"),
                    )),
                };
            }
            Some(other) => {
                return Err(Error::of(
                    "22023",
                    format_args!("COPY format \"{other}\" not recognized"),
                ));
            }
        };
        self.check_allowed(csv, from)?;
        let default_delimiter = if csv { "," } else { "\t" };
        let delimiter =
            one_byte(self.delimiter.as_deref().unwrap_or(default_delimiter), "delimiter")?;
        let quote = one_byte(self.quote.as_deref().unwrap_or("\""), "quote")?;
        let escape = match &self.escape {
            Some(escape) => one_byte(escape, "escape")?,
            None => quote,
        };
        let null = self.null.unwrap_or_else(|| if csv { String::new() } else { "\\N".to_owned() });
        let format = Format {
            csv,
            delimiter,
            null,
            default: self.default,
            header: self.header.unwrap_or(Header::None),
            quote,
            escape,
            force_quote: self.force_quote.unwrap_or_default(),
            force_not_null: self.force_not_null.unwrap_or_default(),
            force_null: self.force_null.unwrap_or_default(),
        };
        format.check()?;
        Ok(Form::Lines(format))
    }

    /// Refuses options that the format or the direction does not have.
    fn check_allowed(&self, csv: bool, from: bool) -> Result<(), Error> {
        let wrong = |message: &str| Err(Error::of("22023", message));
        if let Some(encoding) = &self.encoding {
            let plain = encoding.to_ascii_lowercase().replace(['-', '_'], "");
            if plain != "utf8" {
                return Err(Error::unsupported(format_args!("encoding \"{encoding}\"")));
            }
        }
        for (given, name) in [
            (self.quote.is_some(), "quote"),
            (self.escape.is_some(), "escape"),
            (self.force_quote.is_some(), "force quote"),
            (self.force_not_null.is_some(), "force not null"),
            (self.force_null.is_some(), "force null"),
        ] {
            if given && !csv {
                return Err(Error::of(
                    "0A000",
                    format_args!("COPY {name} available only in CSV mode"),
                ));
            }
        }
        if !from && self.default.is_some() {
            return wrong("COPY DEFAULT only available using COPY FROM");
        }
        if !from && self.header == Some(Header::Match) {
            return wrong("cannot use \"match\" with HEADER in COPY TO");
        }
        Ok(())
    }
}

impl Format {
    /// Refuses characters that would be taken for each other.
    fn check(&self) -> Result<(), Error> {
        let Self { csv, delimiter, quote, null, .. } = self;
        let (csv, delimiter, quote) = (*csv, *delimiter, *quote);
        let wrong = |message: &str| Err(Error::of("22023", message));
        if matches!(delimiter, b'\n' | b'\r') {
            return wrong("COPY delimiter cannot be newline or carriage return");
        }
        if null.contains(['\n', '\r']) {
            return wrong("COPY null representation cannot use newline or carriage return");
        }
        if !csv
            && (delimiter.is_ascii_lowercase()
                || delimiter.is_ascii_digit()
                || matches!(delimiter, b'\\' | b'.'))
        {
            let message = format_args!("COPY delimiter cannot be \"{}\"", char::from(delimiter));
            return Err(Error::of("22023", message));
        }
        if null.as_bytes().contains(&delimiter) {
            return wrong("COPY delimiter must not appear in the NULL specification");
        }
        if csv && delimiter == quote {
            return wrong("COPY delimiter and quote must be different");
        }
        if csv && null.as_bytes().contains(&quote) {
            return wrong("CSV quote character must not appear in the NULL specification");
        }
        Ok(())
    }
}

fn one_byte(text: &str, what: &str) -> Result<u8, Error> {
    match text.as_bytes() {
        [byte] => Ok(*byte),
        _ => {
            Err(Error::of("0A000", format_args!("COPY {what} must be a single one-byte character")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::parse::{Statement, parse};

    fn copy(sql: &str) -> Result<Copy, Error> {
        match parse(sql)? {
            Statement::Copy(copy) => Ok(*copy),
            other => panic!("{sql}: {other:?}"),
        }
    }

    fn lines(copy: &Copy) -> &Format {
        match &copy.form {
            Form::Lines(format) => format,
            Form::Binary => panic!("{copy:?}"),
        }
    }

    #[test]
    fn both_syntaxes_say_the_same() {
        let new = copy(
            "COPY t (a, \"B\") FROM STDIN WITH (FORMAT csv, HEADER true, DELIMITER ';', NULL 'x', FORCE_NULL (a))",
        );
        let old = copy(
            "copy t (a, \"B\") from stdin with csv header delimiter as ';' null 'x' force null a",
        );
        let (new, old) = (new.expect("it is right"), old.expect("it is right"));
        assert_eq!(new.form, old.form);
        assert!(new.from && lines(&new).csv && lines(&new).header == Header::Skip);
        assert!(matches!(&new.source, Source::Table(_, columns) if columns == &["a", "B"]));
        let text = copy("COPY t FROM STDIN").expect("it is right");
        assert_eq!((lines(&text).delimiter, lines(&text).null.as_str()), (b'\t', "\\N"));
        for sql in ["COPY BINARY t TO STDOUT", "COPY t FROM STDIN (FORMAT binary)"] {
            assert_eq!(copy(sql).expect("it is right").form, Form::Binary);
        }
        let out =
            copy("COPY (SELECT 1) TO STDOUT (FORMAT csv, FORCE_QUOTE *)").expect("it is right");
        assert_eq!(lines(&out).force_quote, ["*"]);
    }

    #[test]
    fn wrong_options_are_named() {
        for (sql, state, message) in [
            ("COPY t FROM STDIN (FROMAT csv)", "42601", "option \"fromat\" not recognized"),
            (
                "COPY t FROM STDIN (FORMAT parquet)",
                "22023",
                "COPY format \"parquet\" not recognized",
            ),
            (
                "COPY t FROM STDIN (DELIMITER 'ab')",
                "0A000",
                "COPY delimiter must be a single one-byte character",
            ),
            ("COPY t FROM STDIN (QUOTE '!')", "0A000", "COPY quote available only in CSV mode"),
            ("COPY t FROM STDIN CSV HEADR", "42601", "option \"headr\" not recognized"),
        ] {
            let error = copy(sql).expect_err(sql);
            assert_eq!((error.state.0, error.message.as_str()), (state, message));
        }
        assert_eq!(copy("COPY t FROM '/etc/passwd'").expect_err("a file").state.0, "0A000");
    }
}
