//! Text to statement. What DataFusion's parser does not know, or knows otherwise than PostgreSQL, is read here: SET,
//! RESET, SHOW, COPY, DISCARD.

use datafusion::sql::sqlparser::{
    ast::{self, Ident, ObjectName, ObjectNamePart},
    dialect::PostgreSqlDialect,
    keywords::Keyword,
    parser::Parser,
    tokenizer::Token,
};

use super::{
    copy_options::{self, Copy},
    set::{self, Set},
    table_options::{self, TableOptions},
};
use crate::Error;

const DIALECT: PostgreSqlDialect = PostgreSqlDialect {};
/// Depth of nested expressions that is still read.
const DEPTH_MAX: usize = 128;

/// A statement.
#[derive(Clone, Debug)]
pub(crate) enum Statement {
    /// None: the text is empty.
    Empty,
    /// SET in all its forms.
    Set(Set),
    /// RESET of one setting, or of all.
    Reset(Option<String>),
    /// SHOW of one setting, or of all.
    Show(Option<String>),
    /// DISCARD.
    Discard,
    /// COPY.
    Copy(Box<Copy>),
    /// ALTER TABLE … SET (…) and RESET (…).
    TableOptions(Box<TableOptions>),
    /// Everything else.
    Sql(Box<ast::Statement>),
}

/// Reads one statement.
pub(crate) fn parse(sql: &str) -> Result<Statement, Error> {
    let mut parser = parser(sql)?;
    while parser.consume_token(&Token::SemiColon) {}
    let first = parser.peek_token();
    let keyword = match &first.token {
        Token::EOF => return Ok(Statement::Empty),
        Token::Word(word) if word.quote_style.is_none() => word.keyword,
        _ => Keyword::NoKeyword,
    };
    let statement = match keyword {
        Keyword::SET => set::parse_set(&mut parser, sql)?,
        Keyword::RESET => set::parse_reset(&mut parser, sql)?,
        Keyword::SHOW => set::parse_show(&mut parser, sql)?,
        Keyword::DISCARD => set::parse_discard(&mut parser, sql)?,
        Keyword::COPY => Statement::Copy(Box::new(copy_options::parse_copy(&mut parser, sql)?)),
        Keyword::ALTER => match table_options::parse_alter(&mut parser, sql)? {
            Some(options) => Statement::TableOptions(Box::new(options)),
            None => other(&mut parser, sql)?,
        },
        _ => other(&mut parser, sql)?,
    };
    end(&mut parser, sql)?;
    Ok(statement)
}

fn other(parser: &mut Parser<'_>, sql: &str) -> Result<Statement, Error> {
    let parsed = parser.parse_statement().map_err(|error| Error::syntax(&error, sql))?;
    Ok(Statement::Sql(Box::new(parsed)))
}

/// A parser over the tokens of a text.
pub(crate) fn parser(sql: &str) -> Result<Parser<'static>, Error> {
    let parser = Parser::new(&DIALECT).with_recursion_limit(DEPTH_MAX);
    parser.try_with_sql(sql).map_err(|error| Error::syntax(&error, sql))
}

/// Refuses anything but the end.
fn end(parser: &mut Parser<'_>, sql: &str) -> Result<(), Error> {
    while parser.consume_token(&Token::SemiColon) {}
    match parser.peek_token().token {
        Token::EOF => Ok(()),
        _ => Err(unexpected(parser, sql)),
    }
}

/// The error of the token that comes next.
pub(crate) fn unexpected(parser: &Parser<'_>, sql: &str) -> Error {
    let found = parser.peek_token();
    let error: Result<(), _> = parser.expected("end of statement", found);
    match error {
        Err(error) => {
            let mut error = Error::syntax(&error, sql);
            error.detail = None;
            error
        }
        Ok(()) => Error::of("42601", "syntax error"),
    }
}

/// A name as the catalog has it: lower case unless it was quoted.
pub(crate) fn fold(ident: &Ident) -> String {
    match ident.quote_style {
        Some(_) => ident.value.clone(),
        None => ident.value.to_ascii_lowercase(),
    }
}

/// Schema, if it is named, and name of a table.
pub(crate) fn table_name(name: &ObjectName) -> Result<(Option<String>, String), Error> {
    let mut parts = Vec::with_capacity(name.0.len());
    for part in &name.0 {
        match part {
            ObjectNamePart::Identifier(ident) => parts.push(fold(ident)),
            ObjectNamePart::Function(_) => {
                return Err(Error::of("42601", format_args!("bad name {name}")));
            }
        }
    }
    match parts.len() {
        1 | 2 => {
            let table = parts.pop().unwrap_or_default();
            Ok((parts.pop(), table))
        }
        // The database before the schema can only be the one there is.
        3 => {
            let table = parts.pop().unwrap_or_default();
            Ok((parts.pop(), table))
        }
        _ => Err(Error::of(
            "42601",
            format_args!("improper qualified name (too many dotted names): {name}"),
        )),
    }
}

/// Schema and name in a text such as `public.conditions` or `"Odd name"`, as regclass reads it.
pub(crate) fn regclass(text: &str) -> Result<(Option<String>, String), Error> {
    let bad = || Error::of("42602", format_args!("invalid name syntax: \"{text}\""));
    let mut parser = parser(text).map_err(|_| bad())?;
    let name = parser.parse_object_name(false).map_err(|_| bad())?;
    if parser.peek_token().token != Token::EOF {
        return Err(bad());
    }
    table_name(&name)
}
