//! `ALTER TABLE … SET (…)` and `RESET (…)`: how the chunks of a hypertable are compressed.
//!
//! Storage parameters of PostgreSQL are taken and have no effect here.

use datafusion::{
    common::ScalarValue,
    sql::sqlparser::{ast::ObjectName, keywords::Keyword, parser::Parser, tokenizer::Token},
};
use hypertide_meta::catalog::{Command, Compression, Hypertable, OrderBy, Table};

use super::{hypertable, parse, table::find};
use crate::{Error, Reply, Session, settings::parse_bool};

/// Prefix of the options that are ours.
const OWN: &str = "timescaledb";
const COMPRESS: &str = "compress";
const SEGMENT_BY: &str = "compress_segmentby";
const ORDER_BY: &str = "compress_orderby";
const CHUNK_INTERVAL: &str = "compress_chunk_time_interval";
/// What PostgreSQL's options begin with.
const STORAGE: [&str; 10] = [
    "fillfactor",
    "toast_tuple_target",
    "parallel_workers",
    "autovacuum_",
    "vacuum_",
    "log_autovacuum_",
    "user_catalog_table",
    "toast.",
    "n_distinct",
    "buffering",
];

/// The statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TableOptions {
    table: ObjectName,
    if_exists: bool,
    /// Options with their values; none when it had none, and for RESET.
    options: Vec<(String, Option<String>)>,
    reset: bool,
}

/// Reads the statement; `None` when the text is another one.
pub(crate) fn parse_alter(
    parser: &mut Parser<'_>,
    sql: &str,
) -> Result<Option<TableOptions>, Error> {
    let start = parser.index();
    let read = read(parser);
    match read {
        Some(Head { table, if_exists, reset }) => {
            let options = read_options(parser, sql, reset)?;
            Ok(Some(TableOptions { table, if_exists, options, reset }))
        }
        None => {
            while parser.index() > start {
                parser.prev_token();
            }
            Ok(None)
        }
    }
}

struct Head {
    table: ObjectName,
    if_exists: bool,
    reset: bool,
}

/// `ALTER TABLE name SET (` up to the parenthesis.
fn read(parser: &mut Parser<'_>) -> Option<Head> {
    if !parser.parse_keywords(&[Keyword::ALTER, Keyword::TABLE]) {
        return None;
    }
    let if_exists = parser.parse_keywords(&[Keyword::IF, Keyword::EXISTS]);
    let _only = parser.parse_keyword(Keyword::ONLY);
    let table = parser.parse_object_name(false).ok()?;
    let verb = parser.parse_one_of_keywords(&[Keyword::SET, Keyword::RESET])?;
    let reset = verb == Keyword::RESET;
    parser.consume_token(&Token::LParen).then_some(Head { table, if_exists, reset })
}

fn read_options(
    parser: &mut Parser<'_>,
    sql: &str,
    reset: bool,
) -> Result<Vec<(String, Option<String>)>, Error> {
    let mut options = Vec::new();
    loop {
        let mut name = Vec::new();
        loop {
            let ident = parser.parse_identifier().map_err(|error| Error::syntax(&error, sql))?;
            name.push(parse::fold(&ident));
            if !parser.consume_token(&Token::Period) {
                break;
            }
        }
        let given = !reset && parser.consume_token(&Token::Eq);
        let value = if given { Some(read_value(parser, sql)?) } else { None };
        options.push((name.join("."), value));
        if parser.consume_token(&Token::RParen) {
            break;
        }
        if !parser.consume_token(&Token::Comma) {
            return Err(parse::unexpected(parser, sql));
        }
    }
    if parser.peek_token().token == Token::Comma {
        return Err(Error::of("0A000", "incompatible sub-commands in single statement")
            .with_hint("Give options in a statement of their own."));
    }
    Ok(options)
}

/// A text, a number or a word; signs and units belong to texts.
fn read_value(parser: &mut Parser<'_>, sql: &str) -> Result<String, Error> {
    // `INTERVAL '1 day'` is how some write it.
    let _interval = parser.parse_keyword(Keyword::INTERVAL);
    let token = parser.next_token();
    match token.token {
        Token::SingleQuotedString(text) | Token::EscapedStringLiteral(text) => Ok(text),
        Token::DollarQuotedString(text) => Ok(text.value),
        Token::Number(text, _) => Ok(text),
        Token::Word(word) => Ok(word.value),
        _ => {
            parser.prev_token();
            Err(parse::unexpected(parser, sql))
        }
    }
}

/// Options of ours, by name, after the others were looked at.
fn own(options: &TableOptions) -> Result<Vec<(&str, Option<&str>)>, Error> {
    let (mut ours, mut others) = (Vec::new(), 0);
    for (name, value) in &options.options {
        if let Some((OWN, name)) = name.split_once('.') {
            if ![COMPRESS, SEGMENT_BY, ORDER_BY, CHUNK_INTERVAL].contains(&name) {
                return Err(unrecognized(&format!("{OWN}.{name}")));
            }
            if ours.iter().any(|(known, _)| *known == name) {
                let message = format_args!("parameter \"{OWN}.{name}\" specified more than once");
                return Err(Error::of("22023", message));
            }
            ours.push((name, value.as_deref()));
        } else if STORAGE.iter().any(|known| name.starts_with(known)) {
            others += 1;
        } else {
            return Err(unrecognized(name));
        }
    }
    if !ours.is_empty() && others > 0 {
        return Err(Error::of("0A000", "incompatible sub-commands in single statement")
            .with_hint("Separate PostgreSQL options from those of timescaledb."));
    }
    Ok(ours)
}

fn unrecognized(name: &str) -> Error {
    Error::of("22023", format_args!("unrecognized parameter \"{name}\""))
}

/// Runs the statement.
pub(crate) async fn run(session: &mut Session, options: &TableOptions) -> Result<Reply, Error> {
    let done = || Ok(Reply::Done("ALTER TABLE".into()));
    let snapshot = session.snapshot().await?;
    let path = session.settings.get("search_path").unwrap_or_default();
    let table = match find(&snapshot.image, &options.table, path) {
        Err(error) if options.if_exists && error.state.0 == "42P01" => {
            let message = format!("{}, skipping", error.message);
            session.notice("NOTICE", "00000", message);
            return done();
        }
        found => found?,
    };
    let ours = own(options)?;
    if ours.is_empty() {
        return done();
    }
    let Some(made) = table.hypertable() else {
        let message = format_args!("table \"{}\" is not a hypertable", table.name);
        return Err(Error::of("TS001", message));
    };
    let mut wanted = match (options.reset, &made.compression) {
        (true, None) => return done(),
        (true, Some(now)) => reset(&ours, made, now.clone()),
        (false, now) => set(&ours, (&table, made), now.clone())?,
    };
    if let Some((_, Some(text))) = ours.iter().find(|(name, _)| *name == CHUNK_INTERVAL) {
        let interval = chunk_interval(&table, text)?;
        wanted = wanted.map(|wanted| Compression { chunk_interval: Some(interval), ..wanted });
        let message = format!(
            "{OWN}.{CHUNK_INTERVAL} has no effect: chunks are compressed one by one, not merged"
        );
        session.notice("WARNING", "01000", message);
    }
    session.propose(Command::SetCompression { table: table.id, compression: wanted }).await?;
    done()
}

/// What is left after options were reset.
fn reset(
    ours: &[(&str, Option<&str>)],
    made: &Hypertable,
    mut now: Compression,
) -> Option<Compression> {
    for (name, _) in ours {
        match *name {
            COMPRESS => return None,
            SEGMENT_BY => now.segment_by.clear(),
            ORDER_BY => now.order_by = with_time(Vec::new(), made),
            _ => now.chunk_interval = None,
        }
    }
    Some(now)
}

/// What options make of it; what they do not name stays.
fn set(
    ours: &[(&str, Option<&str>)],
    (table, made): (&Table, &Hypertable),
    now: Option<Compression>,
) -> Result<Option<Compression>, Error> {
    let given = |wanted: &str| ours.iter().find(|(name, _)| *name == wanted).map(|given| given.1);
    let compress = match given(COMPRESS) {
        None => now.is_some(),
        Some(None) => true,
        Some(Some(text)) => parse_bool(text).ok_or_else(|| {
            Error::of("22023", format_args!("invalid value for {OWN}.{COMPRESS} '{text}'"))
                .with_hint("It is a boolean.")
        })?,
    };
    if !compress {
        if ours.iter().any(|(name, _)| *name != COMPRESS) {
            let message = format_args!(
                "the option {OWN}.{COMPRESS} must be set to true to enable compression"
            );
            return Err(Error::of("22023", message));
        }
        return Ok(None);
    }
    let Compression { mut segment_by, mut order_by, chunk_interval } = now.unwrap_or_default();
    if let Some(text) = given(SEGMENT_BY) {
        segment_by = segment_columns(text.unwrap_or_default(), table)?;
    }
    if let Some(text) = given(ORDER_BY) {
        order_by = order_columns(text.unwrap_or_default(), table)?;
    }
    let order_by = with_time(order_by, made);
    if let Some(both) = order_by.iter().find(|by| segment_by.contains(&by.column)) {
        let message =
            format_args!("cannot use column \"{}\" for both ordering and segmenting", both.column);
        return Err(Error::of("42601", message).with_hint(format_args!(
            "Use separate columns for the {OWN}.{ORDER_BY} and {OWN}.{SEGMENT_BY} options."
        )));
    }
    Ok(Some(Compression { segment_by, order_by, chunk_interval }))
}

/// The order with time at its end, the latest first, unless it is in it.
fn with_time(mut order: Vec<OrderBy>, made: &Hypertable) -> Vec<OrderBy> {
    let time = made.dimensions.first().map(|dimension| dimension.column.clone());
    if let Some(column) = time.filter(|time| order.iter().all(|by| by.column != *time)) {
        order.push(OrderBy { column, descending: true, nulls_first: true });
    }
    order
}

/// The columns of `a, "B"`.
fn segment_columns(text: &str, table: &Table) -> Result<Vec<String>, Error> {
    let option = format!("{OWN}.{SEGMENT_BY}");
    let bad = || {
        Error::of("42601", format_args!("unable to parse segmenting option \"{text}\"")).with_hint(
            format_args!("The {option} option must be a set of columns separated by commas."),
        )
    };
    let items = items(text, |parser| parser.parse_identifier().ok()).ok_or_else(bad)?;
    let mut columns = Vec::with_capacity(items.len());
    for column in items.iter().map(parse::fold) {
        check(&column, columns.contains(&column), (&option, table))?;
        columns.push(column);
    }
    Ok(columns)
}

/// The columns of `a DESC NULLS LAST, b`.
fn order_columns(text: &str, table: &Table) -> Result<Vec<OrderBy>, Error> {
    let option = format!("{OWN}.{ORDER_BY}");
    let bad = || {
        Error::of("42601", format_args!("unable to parse ordering option \"{text}\"")).with_hint(
            format_args!("The {option} option must be a set of column names with sort options, separated by commas. It is the same format as an ORDER BY clause."),
        )
    };
    let items = items(text, order_item).ok_or_else(bad)?;
    for (at, by) in items.iter().enumerate() {
        let twice = items.iter().take(at).any(|other| other.column == by.column);
        check(&by.column, twice, (&option, table))?;
    }
    Ok(items)
}

fn order_item(parser: &mut Parser<'_>) -> Option<OrderBy> {
    let column = parse::fold(&parser.parse_identifier().ok()?);
    let descending = parser.parse_one_of_keywords(&[Keyword::ASC, Keyword::DESC]);
    let descending = descending == Some(Keyword::DESC);
    // As in PostgreSQL, null counts as greater than all else.
    let nulls_first = match parser.parse_keyword(Keyword::NULLS) {
        false => descending,
        true => parser.parse_one_of_keywords(&[Keyword::FIRST, Keyword::LAST])? == Keyword::FIRST,
    };
    Some(OrderBy { column, descending, nulls_first })
}

/// What a list between commas holds; `None` when it cannot be read to its end.
fn items<T>(text: &str, read: fn(&mut Parser<'_>) -> Option<T>) -> Option<Vec<T>> {
    let mut parser = parse::parser(text).ok()?;
    let mut items = Vec::new();
    if parser.peek_token().token == Token::EOF {
        return Some(items);
    }
    loop {
        items.push(read(&mut parser)?);
        if parser.peek_token().token == Token::EOF {
            return Some(items);
        }
        if !parser.consume_token(&Token::Comma) {
            return None;
        }
    }
}

fn check(column: &str, twice: bool, (option, table): (&str, &Table)) -> Result<(), Error> {
    if table.columns.column(column).is_none() {
        return Err(Error::of("42703", format_args!("column \"{column}\" does not exist"))
            .with_hint(format_args!("The {option} option must reference a valid column.")));
    }
    if twice {
        return Err(Error::of("42701", format_args!("duplicate column name \"{column}\""))
            .with_hint(format_args!("The {option} option must reference distinct columns.")));
    }
    Ok(())
}

/// The interval in the unit of the time column.
fn chunk_interval(table: &Table, text: &str) -> Result<i64, Error> {
    let time = table.hypertable().and_then(|made| made.dimensions.first());
    let time = time.and_then(|dimension| table.columns.column(&dimension.column));
    let integer = time.is_some_and(|column| column.column_type.integer());
    let value = match text.parse() {
        Ok(number) if integer => ScalarValue::Int64(Some(number)),
        _ => ScalarValue::Utf8(Some(text.to_owned())),
    };
    hypertable::interval(&value, integer)
}
