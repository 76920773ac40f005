//! The functions against values computed by hand.

use arrow::util::pretty::pretty_format_batches;
use datafusion::{execution::runtime_env::RuntimeEnv, prelude::SessionContext};

fn context() -> SessionContext {
    context_in("UTC")
}

fn context_in(zone: &str) -> SessionContext {
    let runtime = std::sync::Arc::new(RuntimeEnv::default());
    let mut state = crate::context::template(runtime).expect("the template is made");
    let catalogs = datafusion::catalog::MemoryCatalogProviderList::new();
    state.register_catalog_list(std::sync::Arc::new(catalogs));
    crate::context::set_zone(&mut state, zone).expect("the zone is set");
    SessionContext::new_with_state(state)
}

async fn value(sql: &str) -> String {
    match rows(sql).await {
        Ok(rows) => rows.into_iter().next().unwrap_or_default(),
        Err(error) => format!("error: {error}"),
    }
}

async fn rows(sql: &str) -> Result<Vec<String>, String> {
    rows_in(context(), sql).await
}

async fn rows_in(context: SessionContext, sql: &str) -> Result<Vec<String>, String> {
    let frame = context.sql(sql).await.map_err(|error| error.strip_backtrace())?;
    let batches = frame.collect().await.map_err(|error| error.strip_backtrace())?;
    let table = pretty_format_batches(&batches).expect("batches are printed").to_string();
    let cells = table.lines().skip(3).filter(|line| line.starts_with('|'));
    Ok(cells.map(|line| line[1..line.len() - 1].trim().to_owned()).collect())
}

#[tokio::test]
async fn fixed_widths_count_from_a_monday() {
    let cases = [
        ("'1 hour', TIMESTAMP '2021-03-04 05:06:07'", "2021-03-04T05:00:00"),
        ("'5 minutes', TIMESTAMP '2021-03-04 05:06:07'", "2021-03-04T05:05:00"),
        ("'1 week', TIMESTAMP '2021-03-04 05:06:07'", "2021-03-01T00:00:00"),
        ("'1 day', TIMESTAMP '1969-12-31 23:59:59'", "1969-12-31T00:00:00"),
        ("'1 week', TIMESTAMP '1999-12-30 00:00:00'", "1999-12-27T00:00:00"),
        ("INTERVAL '1 hour', TIMESTAMPTZ '2021-03-04 05:06:07+02'", "2021-03-04T03:00:00Z"),
        ("'3 days', DATE '2000-01-05'", "2000-01-03"),
        ("'3 days', DATE '2000-01-06'", "2000-01-06"),
    ];
    for (args, expected) in cases {
        assert_eq!(value(&format!("SELECT time_bucket({args})")).await, expected, "{args}");
    }
}

#[tokio::test]
async fn months_start_on_their_first_day() {
    let cases = [
        ("'1 month', TIMESTAMP '2021-03-31 05:06:07'", "2021-03-01T00:00:00"),
        ("'3 months', TIMESTAMP '2021-12-31 00:00:00'", "2021-10-01T00:00:00"),
        ("'1 year', DATE '1999-12-31'", "1999-01-01"),
        ("'5 months', DATE '1999-12-31'", "1999-08-01"),
        ("'1 month', TIMESTAMP '1969-12-31 23:59:59'", "1969-12-01T00:00:00"),
    ];
    for (args, expected) in cases {
        assert_eq!(value(&format!("SELECT time_bucket({args})")).await, expected, "{args}");
    }
}

#[tokio::test]
async fn origins_and_offsets_shift_buckets() {
    let cases = [
        (
            "'1 week', TIMESTAMP '2021-03-04 05:06:07', TIMESTAMP '2000-01-02 00:00:00'",
            "2021-02-28T00:00:00",
        ),
        (
            "'1 day', TIMESTAMP '1999-12-31 11:00:00', TIMESTAMP '2010-01-01 12:00:00'",
            "1999-12-30T12:00:00",
        ),
        ("'1 hour', TIMESTAMP '2021-03-04 05:06:07', INTERVAL '15 minutes'", "2021-03-04T04:15:00"),
        ("'1 month', TIMESTAMP '2021-03-04 05:06:07', INTERVAL '5 days'", "2021-02-06T00:00:00"),
    ];
    for (args, expected) in cases {
        assert_eq!(value(&format!("SELECT time_bucket({args})")).await, expected, "{args}");
    }
}

#[tokio::test]
async fn zones_follow_the_local_clock() {
    let cases = [
        // Berlin is at +01 before 2021-03-28 01:00 UTC and at +02 after.
        ("'1 day', TIMESTAMPTZ '2021-03-28 12:00:00Z', 'Europe/Berlin'", "2021-03-27T23:00:00Z"),
        ("'1 day', TIMESTAMPTZ '2021-03-29 12:00:00Z', 'Europe/Berlin'", "2021-03-28T22:00:00Z"),
        ("'1 month', TIMESTAMPTZ '2021-04-15 00:00:00Z', 'Europe/Berlin'", "2021-03-31T22:00:00Z"),
        // The hour from 02:00 to 03:00 comes twice on 2021-10-31, from 00:00 and from 01:00 UTC.
        ("'1 hour', TIMESTAMPTZ '2021-10-31 00:30:00Z', 'Europe/Berlin'", "2021-10-31T00:00:00Z"),
        ("'1 hour', TIMESTAMPTZ '2021-10-31 01:30:00Z', 'Europe/Berlin'", "2021-10-31T01:00:00Z"),
    ];
    for (args, expected) in cases {
        assert_eq!(value(&format!("SELECT time_bucket({args})")).await, expected, "{args}");
    }
    let unknown = value("SELECT time_bucket('1 day', now(), 'Mars/Olympus')").await;
    assert!(unknown.contains("time zone \"Mars/Olympus\" not recognized"), "{unknown}");
}

#[tokio::test]
async fn integers_keep_their_type() {
    let cases = [
        ("10, 25", "20"),
        ("10, -1", "-10"),
        ("10, 25, 7", "17"),
        ("CAST(10 AS smallint), CAST(-25 AS smallint)", "-30"),
    ];
    for (args, expected) in cases {
        assert_eq!(value(&format!("SELECT time_bucket({args})")).await, expected, "{args}");
    }
}

#[tokio::test]
async fn bad_widths_are_refused() {
    let cases = [
        ("'0 days', DATE '2000-01-05'", "period must be greater than 0"),
        ("INTERVAL '-1 hour', TIMESTAMP '2000-01-05 00:00:00'", "period must be greater than 0"),
        ("0, 5", "period must be greater than 0"),
        ("'1 month 1 day', DATE '2000-01-05'", "month intervals cannot have day or time component"),
        ("100, CAST(-9223372036854775808 AS bigint)", "timestamp out of range"),
        ("CAST(100 AS smallint), CAST(-32768 AS smallint)", "timestamp out of range"),
    ];
    for (args, expected) in cases {
        let got = value(&format!("SELECT time_bucket({args})")).await;
        assert!(got.contains(expected), "{args}: {got}");
    }
    assert_eq!(value("SELECT time_bucket(CAST(NULL AS interval), DATE '2000-01-05')").await, "");
}

#[tokio::test]
async fn widths_may_differ_by_row() {
    let sql = "SELECT time_bucket(w, t) FROM (VALUES (10, 25), (7, 25), (NULL, 25)) AS v (w, t)";
    assert_eq!(rows(sql).await, Ok(vec!["20".to_owned(), "21".to_owned(), String::new()]));
}

#[tokio::test]
async fn first_and_last_follow_time() {
    let data = "(VALUES (1, 'b', 2), (1, 'a', 1), (1, 'z', NULL), (1, 'y', 2), (2, NULL, 5), \
                (2, 'q', 4), (3, 'n', NULL)) AS v (g, v, t)";
    let sql = format!("SELECT g, first(v, t), last(v, t) FROM {data} GROUP BY g ORDER BY g");
    let got = rows(&sql).await.expect("it runs");
    let cells = |row: &str| row.split('|').map(|cell| cell.trim().to_owned()).collect::<Vec<_>>();
    let got: Vec<Vec<String>> = got.iter().map(|row| cells(row)).collect();
    // NULL is a value like any other when its time is the greatest, and rows without a time do not count.
    assert_eq!(got, [vec!["1", "a", "y"], vec!["2", "q", ""], vec!["3", "", ""]]);
    assert_eq!(value(&format!("SELECT last(v, t) FROM {data} WHERE g = 1")).await, "y");
    assert_eq!(value(&format!("SELECT first(v, t) FROM {data} WHERE g = 9")).await, "");
}

#[tokio::test]
async fn now_is_a_constant_of_the_statement() {
    assert_eq!(value("SELECT now() = current_timestamp").await, "true");
    let plan = rows("EXPLAIN SELECT 1 WHERE now() > TIMESTAMPTZ '2000-01-01'").await;
    assert!(!plan.expect("it is planned").join("\n").contains("now()"));
}

#[tokio::test]
async fn constants_are_read_as_postgresql_does() {
    let cases = [
        ("TIMESTAMPTZ '2021-03-04 05:06'", "2021-03-04T05:06:00Z"),
        ("TIMESTAMP '2021-03-04 05:06'", "2021-03-04T05:06:00"),
        ("'20210304'::date", "2021-03-04"),
        ("now() > '2021-03-04 05:06'", "true"),
        ("now() BETWEEN '2021-03-04' AND '3021-03-04 05:06'", "true"),
        ("now() < 'infinity'", "true"),
        ("DATE '2021-03-04' IN ('2021-03-04', '2021-03-05')", "true"),
    ];
    for (sql, expected) in cases {
        assert_eq!(value(&format!("SELECT {sql}")).await, expected, "{sql}");
    }
    let bad = value("SELECT TIMESTAMPTZ 'soon'").await;
    assert!(
        bad.contains("invalid input syntax for type timestamp with time zone: \"soon\""),
        "{bad}"
    );
}

#[tokio::test]
async fn clocks_are_those_of_the_session() {
    let cases = [
        ("TIMESTAMPTZ '2021-07-01 12:00'", "2021-07-01T10:00:00Z"),
        ("date_trunc('day', TIMESTAMPTZ '2021-07-01 12:00')", "2021-06-30T22:00:00Z"),
        ("extract(hour FROM TIMESTAMPTZ '2021-07-01 10:00Z')", "12"),
        ("CAST(TIMESTAMPTZ '2021-06-30 23:00Z' AS date)", "2021-07-01"),
        ("CAST(TIMESTAMPTZ '2021-06-30 23:00Z' AS timestamp)", "2021-07-01T01:00:00"),
        ("CAST(TIMESTAMP '2021-07-01 12:00' AS timestamptz)", "2021-07-01T10:00:00Z"),
        ("CAST(DATE '2021-07-01' AS timestamptz)", "2021-06-30T22:00:00Z"),
        ("TIMESTAMP '2021-07-01 12:00' = TIMESTAMPTZ '2021-07-01 10:00Z'", "true"),
        ("time_bucket('1 day', TIMESTAMPTZ '2021-07-01 01:00')", "2021-06-30T00:00:00Z"),
    ];
    for (sql, expected) in cases {
        let rows = rows_in(context_in("Europe/Berlin"), &format!("SELECT {sql}")).await;
        assert_eq!(rows, Ok(vec![expected.to_owned()]), "{sql}");
    }
}

#[tokio::test]
async fn casts_to_text_are_as_postgresql_writes_them() {
    let cases = [
        ("TIMESTAMPTZ '2026-01-02 00:35:30.743381+00' :: text", "2026-01-01 19:35:30.743381-05"),
        ("TIMESTAMP '2026-01-02 00:35:30.5' :: varchar", "2026-01-02 00:35:30.5"),
        ("CAST(631.0::double precision AS text)", "631"),
        ("1e20::real::text", "1e+20"),
        ("1e-7::float8::text", "1e-07"),
        ("'NaN'::float8::text || 'infinity'::float8", "NaNInfinity"),
        ("'x' || 1.50::numeric(5,2) || true || DATE '2026-01-02'", "x1.50true2026-01-02"),
        ("(INTERVAL '1 month 2 days 3 hours')::text", "1 mon 2 days 03:00:00"),
        ("array_agg(t)::text", "{\"2026-01-01 19:00:00-05\"}"),
        ("string_agg(f::text, ',')", "0.5"),
        ("max(NULL::float8::text)", ""),
    ];
    for (sql, expected) in cases {
        let of = "(SELECT TIMESTAMPTZ '2026-01-02 00:00:00+00' AS t, 0.5::float8 AS f)";
        let sql = format!("SELECT {sql} FROM {of}");
        let got = rows_in(context_in("America/New_York"), &sql).await.expect(&sql);
        assert_eq!(got, [expected], "{sql}");
    }
}
