//! COPY data: cut anywhere it gives the same, and its forms and faults are PostgreSQL's.

use hypertide_proto::schema::ColumnType;
use proptest::prelude::*;

use super::*;
use crate::sql::{
    copy_options::Form,
    parse::{Statement, parse},
    text::{TextColumn, TextStyle},
};

fn format(options: &str) -> Format {
    match parse(&format!("COPY t FROM STDIN {options}")) {
        Ok(Statement::Copy(copy)) => match copy.form {
            Form::Lines(format) => format,
            Form::Binary => panic!("{options}"),
        },
        other => panic!("{options}: {other:?}"),
    }
}

fn reader(options: &str, types: &[ColumnType]) -> Rows {
    let field = |(number, column_type): (usize, &ColumnType)| Field {
        column: Column::new(&char::from(b'a' + number as u8).to_string(), *column_type),
        default: Some("7".into()),
    };
    let fields = types.iter().enumerate().map(field).collect();
    Rows::new("t", format(options), fields, Zone::UTC).expect("the options are right")
}

/// Rows as lines of their values.
fn lines(rows: &mut Rows) -> Vec<String> {
    let count = rows.rows();
    let columns: Vec<TextColumn> =
        rows.take().iter().map(|array| TextColumn::new(array, TextStyle::default())).collect();
    let value = |column: &TextColumn, row| {
        let mut out = Vec::new();
        match column.write(row, &mut out) {
            true => String::from_utf8(out).expect("text is UTF-8"),
            false => "NULL".to_owned(),
        }
    };
    (0..count)
        .map(|row| columns.iter().map(|column| value(column, row)).collect::<Vec<_>>().join("|"))
        .collect()
}

/// Reads data in pieces of one size, looking after every piece.
fn read(
    options: &str,
    types: &[ColumnType],
    data: &[u8],
    piece: usize,
) -> Result<Vec<String>, Error> {
    let mut rows = reader(options, types);
    for piece in data.chunks(piece) {
        rows.push(piece);
        rows.read(false)?;
    }
    rows.read(true)?;
    Ok(lines(&mut rows))
}

const TEXTS: [ColumnType; 2] = [ColumnType::Text, ColumnType::Text];

proptest! {
    /// The short way and the long one read the same, or refuse the same.
    #[test]
    fn quotes_around_every_value_change_nothing(
        rows in proptest::collection::vec(("[0-9x.]{1,4}", "[a-zé]{1,4}", "2016-01-0[0-9]"), 1..6),
    ) {
        let types = [ColumnType::Double, ColumnType::Text, ColumnType::TimestampTz];
        let text = |quote: &str| -> String {
            let row = |(a, b, c): &(String, String, String)| {
                format!("{quote}{a}{quote},{quote}{b}{quote},{quote}{c} 00:00:00+00{quote}\n")
            };
            rows.iter().map(row).collect()
        };
        let [short, long] = ["", "\""].map(|quote| {
            let read = read("(FORMAT csv)", &types, text(quote).as_bytes(), 64);
            read.map_err(|error| (error.state, error.message, error.context))
        });
        prop_assert_eq!(short, long);
    }
}

#[test]
fn text_and_csv_cut_at_every_byte() {
    let text = "a\\tb\t\\N\nc\\\nd\te\\\\\n\\x41\\102\tü\r\n\\.\nnot read";
    let expected = ["a\tb|NULL", "c\nd|e\\", "AB|ü"];
    let csv = "\"a\"\"b\",\n\"two\nlines\",\"\"\r\nplain,\"a,b\"x\nlast,ü";
    let expected_csv = ["a\"b|NULL", "two\nlines|", "plain|a,bx", "last|ü"];
    for piece in 1..text.len().max(csv.len()) {
        assert_eq!(
            read("", &TEXTS, text.as_bytes(), piece).expect("it is right"),
            expected,
            "{piece}"
        );
        assert_eq!(
            read("CSV", &TEXTS, csv.as_bytes(), piece).expect("it is right"),
            expected_csv,
            "{piece}"
        );
    }
}

proptest! {
    #[test]
    fn any_bytes_cut_anywhere_give_the_same(
        data in proptest::collection::vec(prop_oneof![
            Just(b'"'), Just(b'\n'), Just(b','), Just(b'\\'), Just(b'\t'), Just(b'a'), Just(b'N'), Just(b'\r'),
        ], 0..40),
        piece in 1usize..7,
    ) {
        for options in ["", "CSV", "CSV ESCAPE '\\'"] {
            let whole = read(options, &TEXTS, &data, data.len().max(1));
            prop_assert_eq!(read(options, &TEXTS, &data, piece), whole);
        }
    }
}

#[test]
fn options_change_the_reading() {
    let read =
        |options, data: &str| read(options, &TEXTS, data.as_bytes(), 1000).expect("it is right");
    assert_eq!(read("(DELIMITER '|', NULL 'nil')", "a|nil\n"), ["a|NULL"]);
    assert_eq!(read("(FORMAT csv, HEADER)", "x,y\n1,2\n"), ["1|2"]);
    assert_eq!(read("(FORMAT csv, QUOTE '''', ESCAPE '\\')", "'a\\'b',c\n"), ["a'b|c"]);
    assert_eq!(read("(FORMAT csv, FORCE_NOT_NULL (a))", ",\n"), ["|NULL"]);
    assert_eq!(read("(FORMAT csv, NULL 'x', FORCE_NULL (a))", "\"x\",\"x\"\n"), ["NULL|x"]);
    assert_eq!(read("(DEFAULT '\\D')", "\\D\tb\n"), ["7|b"]);
    assert_eq!(read("", "a\tb"), ["a|b"], "the last line needs no end");
    assert_eq!(read("", ""), Vec::<String>::new());
}

#[test]
fn faults_name_line_and_column() {
    let types = [ColumnType::Integer, ColumnType::Text];
    let fault = |options, data: &[u8]| {
        let error = read(options, &types, data, 3).expect_err("it is wrong");
        (error.state.0, error.message, error.context.unwrap_or_default())
    };
    let context = |text: &str| text.to_owned();
    for (options, data, state, message, place) in [
        (
            "",
            &b"1\ta\nx\tb\n"[..],
            "22P02",
            "invalid input syntax for type integer: \"x\"",
            "COPY t, line 2, column a: \"x\"",
        ),
        ("", b"1\n", "22P04", "missing data for column \"b\"", "COPY t, line 1: \"1\""),
        (
            "",
            b"1\ta\tb\n",
            "22P04",
            "extra data after last expected column",
            "COPY t, line 1: \"1\ta\tb\"",
        ),
        (
            "CSV",
            b"1,\"a\nb\"\nx,y\n",
            "22P02",
            "invalid input syntax for type integer: \"x\"",
            "COPY t, line 3, column a: \"x\"",
        ),
        (
            "CSV",
            b"1,\"a\n",
            "22P04",
            "unterminated CSV quoted field",
            "COPY t, line 1: \"1,\"a\n\"",
        ),
        (
            "",
            b"1\t\xff\n",
            "22021",
            "invalid byte sequence for encoding \"UTF8\": 0xff",
            "COPY t, line 1, column b: \"\u{fffd}\"",
        ),
        (
            "(FORMAT csv, HEADER match)",
            b"a,c\n",
            "22P04",
            "column name mismatch in header line field 2: got \"c\", expected \"b\"",
            "COPY t, line 1: \"a,c\"",
        ),
        (
            "(FORMAT csv, HEADER match)",
            b"a\n",
            "22P04",
            "wrong number of fields in header line: got 1, expected 2",
            "COPY t, line 1: \"a\"",
        ),
    ] {
        assert_eq!(fault(options, data), (state, message.to_owned(), context(place)));
    }
    let unknown = Rows::new("t", format("(FORMAT csv, FORCE_NULL (zzz))"), Vec::new(), Zone::UTC);
    assert_eq!(unknown.expect_err("no such column").state.0, "42P10");
}
