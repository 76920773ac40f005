//! Numbers by which PostgreSQL knows things, and names of types by their numbers.

use hypertide_meta::{Image, catalog::Table};
use hypertide_proto::schema::{ColumnType, Key};
use xxhash_rust::xxh3::xxh3_64;

/// The only role.
pub(super) const ROLE: i64 = 10;
/// The only database.
pub(super) const DATABASE: i64 = 5;
/// The only way tables are kept.
pub(super) const HEAP: i64 = 2;
/// The only way that keys are kept, as far as tools are told.
pub(super) const BTREE: i64 = 403;
/// Where numbers of keys begin, and how many one table has room for.
const KEYS: i64 = 1_000_000_000;
const KEYS_OF_TABLE: u64 = 64;
/// Where numbers of tables begin: as in PostgreSQL, those below are the system's.
const TABLES: i64 = 16_384;
/// Where numbers of schemas without a fixed one begin, and how many there are.
const SCHEMAS: i64 = 1_500_000_000;
/// See [`SCHEMAS`].
const SCHEMAS_COUNT: u64 = 500_000_000;

/// Relations of PostgreSQL's own that queries name by `regclass`.
const SYSTEM: [(&str, i64); 9] = [
    ("pg_type", 1247),
    ("pg_attribute", 1249),
    ("pg_proc", 1255),
    ("pg_class", 1259),
    ("pg_database", 1262),
    ("pg_constraint", 2606),
    ("pg_index", 2610),
    ("pg_namespace", 2615),
    ("pg_authid", 1260),
];

/// The number of a table.
pub(super) fn of_table(table: &Table) -> i64 {
    TABLES.saturating_add_unsigned(table.id.0)
}

/// The number of a key of a table, by its position there.
pub(super) fn of_key(table: &Table, at: usize) -> i64 {
    KEYS.saturating_add_unsigned(table.id.0 * KEYS_OF_TABLE + at as u64 % KEYS_OF_TABLE)
}

/// The key of a number.
pub(super) fn key(image: &Image, oid: i64) -> Option<(&Table, &Key)> {
    image.catalog.tables().find_map(|table| {
        let mut keys = table.columns.keys.iter().enumerate();
        keys.find(|(at, _)| of_key(table, *at) == oid).map(|(_, key)| (table, key))
    })
}

/// The columns of a key as SQL writes them.
fn columns(table: &Table, key: &Key) -> String {
    let positions = table.columns.key_positions(key);
    let names = positions.iter().filter_map(|at| table.columns.columns.get(*at));
    names.map(|column| quoted(&column.name)).collect::<Vec<_>>().join(", ")
}

/// A key as a statement that makes it.
pub(super) fn index_definition(table: &Table, key: &Key) -> String {
    let (schema, name, index) = (quoted(&table.schema), quoted(&table.name), quoted(&key.name));
    let columns = columns(table, key);
    format!("CREATE UNIQUE INDEX {index} ON {schema}.{name} USING btree ({columns})")
}

/// A key as a constraint.
pub(super) fn constraint_definition(table: &Table, key: &Key) -> String {
    let kind = if key.primary { "PRIMARY KEY" } else { "UNIQUE" };
    format!("{kind} ({})", columns(table, key))
}

/// The number of a schema.
pub(super) fn of_schema(name: &str) -> i64 {
    match name {
        "pg_catalog" => 11,
        "public" => 2200,
        "information_schema" => 13_000,
        name => SCHEMAS + (xxh3_64(name.as_bytes()) % SCHEMAS_COUNT) as i64,
    }
}

/// The table of a number.
pub(super) fn table(image: &Image, oid: i64) -> Option<&Table> {
    image.catalog.tables().find(|table| of_table(table) == oid)
}

/// The number of a relation by its name, with or without schema, as it is written in SQL.
pub(super) fn of_name(image: &Image, text: &str) -> Option<i64> {
    if let Ok(oid) = text.parse() {
        return Some(oid);
    }
    let (schema, name) = split(text);
    let system = SYSTEM.iter().find(|(known, _)| *known == name);
    if let Some((_, oid)) = system
        && schema.as_deref().is_none_or(|schema| schema == super::PG_CATALOG)
    {
        return Some(*oid);
    }
    let schema = schema.as_deref().unwrap_or(hypertide_meta::catalog::DEFAULT_SCHEMA);
    image.catalog.table_named(schema, &name).map(of_table)
}

/// Schema and name in a text such as `public.conditions` or `"Odd name"`.
fn split(text: &str) -> (Option<String>, String) {
    let mut parts = vec![String::new()];
    let mut quoted = false;
    let mut characters = text.trim().chars().peekable();
    while let Some(character) = characters.next() {
        let doubled = character == '"' && quoted && characters.peek() == Some(&'"');
        match character {
            '"' if doubled => {
                characters.next();
                push(&mut parts, '"');
            }
            '"' => quoted = !quoted,
            '.' if !quoted => parts.push(String::new()),
            other if quoted => push(&mut parts, other),
            other => push(&mut parts, other.to_ascii_lowercase()),
        }
    }
    let name = parts.pop().unwrap_or_default();
    (parts.pop(), name)
}

fn push(parts: &mut [String], character: char) {
    if let Some(last) = parts.last_mut() {
        last.push(character);
    }
}

/// The name of a relation as SQL writes it: with its schema unless that is searched anyway.
pub(super) fn name(image: &Image, oid: i64) -> Option<String> {
    if let Some((name, _)) = SYSTEM.iter().find(|(_, known)| *known == oid) {
        return Some((*name).to_owned());
    }
    let (table, name) = match key(image, oid) {
        Some((table, key)) => (table, &key.name),
        None => table(image, oid).map(|table| (table, &table.name))?,
    };
    let name = quoted(name);
    match visible(table) {
        true => Some(name),
        false => Some(format!("{}.{name}", quoted(&table.schema))),
    }
}

/// Whether a table is found without its schema.
pub(super) fn visible(table: &Table) -> bool {
    table.schema == hypertide_meta::catalog::DEFAULT_SCHEMA
}

/// A name with quotes if it needs them.
pub(super) fn quoted(name: &str) -> String {
    let first = name.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase() || byte == b'_');
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    if first && name.bytes().all(plain) {
        name.to_owned()
    } else {
        format!("\"{}\"", name.replace('"', "\"\""))
    }
}

/// A type that columns can have: number, name in the catalog, name in SQL, bytes or -1, category.
pub(super) type TypeRow = (i64, &'static str, &'static str, i32, &'static str);

/// The types.
pub(super) const TYPES: [TypeRow; 23] = [
    (16, "bool", "boolean", 1, "B"),
    (17, "bytea", "bytea", -1, "U"),
    (18, "char", "\"char\"", 1, "Z"),
    (19, "name", "name", 64, "S"),
    (20, "int8", "bigint", 8, "N"),
    (21, "int2", "smallint", 2, "N"),
    (23, "int4", "integer", 4, "N"),
    (25, "text", "text", -1, "S"),
    (26, "oid", "oid", 4, "N"),
    (114, "json", "json", -1, "U"),
    (700, "float4", "real", 4, "N"),
    (701, "float8", "double precision", 8, "N"),
    (1042, "bpchar", "character", -1, "S"),
    (1043, "varchar", "character varying", -1, "S"),
    (1082, "date", "date", 4, "D"),
    (1083, "time", "time without time zone", 8, "D"),
    (1114, "timestamp", "timestamp without time zone", 8, "D"),
    (1184, "timestamptz", "timestamp with time zone", 8, "D"),
    (1186, "interval", "interval", 16, "T"),
    (1700, "numeric", "numeric", -1, "N"),
    (2205, "regclass", "regclass", 4, "N"),
    (2950, "uuid", "uuid", 16, "U"),
    (3802, "jsonb", "jsonb", -1, "U"),
];

/// Number and modifier of a column's type.
pub(super) fn of_type(column: ColumnType) -> (i64, i32) {
    const HEADER: i32 = 4;
    match column {
        ColumnType::SmallInt => (21, -1),
        ColumnType::Integer => (23, -1),
        ColumnType::BigInt => (20, -1),
        ColumnType::Real => (700, -1),
        ColumnType::Double => (701, -1),
        ColumnType::Numeric { precision, scale } => {
            let free = (precision, scale) == hypertide_proto::schema::NUMERIC_DEFAULT;
            let modifier = (i32::from(precision) << 16 | i32::from(scale)) + HEADER;
            (1700, if free { -1 } else { modifier })
        }
        ColumnType::Boolean => (16, -1),
        ColumnType::Text => (25, -1),
        ColumnType::Varchar(length) => {
            (1043, i32::try_from(length).map_or(-1, |length| length.saturating_add(HEADER)))
        }
        ColumnType::Timestamp => (1114, -1),
        ColumnType::TimestampTz => (1184, -1),
        ColumnType::Date => (1082, -1),
        ColumnType::Jsonb => (3802, -1),
        ColumnType::Uuid => (2950, -1),
        ColumnType::Bytea => (17, -1),
    }
}

/// The number of a type by a name of it.
pub(super) fn of_type_name(name: &str) -> Option<i64> {
    let name = name.to_ascii_lowercase();
    let name = name.strip_prefix("pg_catalog.").unwrap_or(&name);
    let own = |known: &&TypeRow| known.1 == name || known.2 == name;
    TYPES.iter().find(own).map(|known| known.0)
}

/// A type as SQL writes it.
pub(super) fn format_type(oid: i64, modifier: Option<i64>) -> String {
    let Some((_, _, name, ..)) = TYPES.iter().find(|(known, ..)| *known == oid) else {
        return "???".to_owned();
    };
    match (oid, modifier.filter(|modifier| *modifier >= 4).map(|modifier| modifier - 4)) {
        (1043 | 1042, Some(length)) => format!("{name}({length})"),
        (1700, Some(both)) => format!("{name}({},{})", both >> 16, both & 0x7ff),
        _ => (*name).to_owned(),
    }
}
