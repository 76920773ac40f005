//! The rows of the tables of `pg_catalog`.
//!
//! Columns are declared as `name:type`, with `o` for OIDs and other whole numbers, `t` text, `b` boolean, `l` a list of
//! text. A table lists what tools ask for, not all that PostgreSQL has.

use std::sync::Arc;

use arrow::{
    array::{
        ArrayRef, BooleanBuilder, Int64Builder, ListBuilder, RecordBatch, RecordBatchOptions,
        StringBuilder,
    },
    datatypes::{Field, Schema},
};
use hypertide_meta::{Image, catalog::Table};
use hypertide_proto::schema::Key;

use super::oid;
use crate::server::{DATABASE, USER};

/// A value of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Cell {
    Null,
    Number(i64),
    Flag(bool),
    Text(String),
}

impl From<i64> for Cell {
    fn from(value: i64) -> Self {
        Self::Number(value)
    }
}

impl From<bool> for Cell {
    fn from(value: bool) -> Self {
        Self::Flag(value)
    }
}

impl From<&str> for Cell {
    fn from(value: &str) -> Self {
        Self::Text(value.to_owned())
    }
}

impl From<Option<&str>> for Cell {
    fn from(value: Option<&str>) -> Self {
        value.map_or(Self::Null, Self::from)
    }
}

type Row = Vec<Cell>;
/// Columns, and what makes the rows.
type Definition = (&'static str, &'static str, fn(&Image) -> Vec<Row>);

/// Tables that have rows.
const FILLED: &[Definition] = &[
    ("pg_namespace", "oid:o nspname:t nspowner:o nspacl:l", namespaces),
    (
        "pg_class",
        "oid:o relname:t relnamespace:o reltype:o reloftype:o relowner:o relam:o relfilenode:o \
         reltablespace:o relpages:o reltuples:o relallvisible:o reltoastrelid:o relhasindex:b \
         relisshared:b relpersistence:t relkind:t relnatts:o relchecks:o relhasrules:b \
         relhastriggers:b relhassubclass:b relrowsecurity:b relforcerowsecurity:b \
         relispopulated:b relreplident:t relispartition:b relacl:l reloptions:l relpartbound:t",
        classes,
    ),
    (
        "pg_attribute",
        "attrelid:o attname:t atttypid:o attlen:o attnum:o attndims:o atttypmod:o attnotnull:b \
         atthasdef:b attidentity:t attgenerated:t attisdropped:b attislocal:b attinhcount:o \
         attcollation:o attstorage:t attcompression:t attstattarget:o attacl:l attoptions:l \
         attfdwoptions:l",
        attributes,
    ),
    ("pg_attrdef", "oid:o adrelid:o adnum:o adbin:t", defaults),
    (
        "pg_type",
        "oid:o typname:t typnamespace:o typowner:o typlen:o typbyval:b typtype:t typcategory:t \
         typispreferred:b typisdefined:b typdelim:t typrelid:o typelem:o typarray:o typnotnull:b \
         typbasetype:o typtypmod:o typndims:o typcollation:o typdefault:t",
        types,
    ),
    (
        "pg_database",
        "oid:o datname:t datdba:o encoding:o datlocprovider:t datistemplate:b datallowconn:b \
         datconnlimit:o dattablespace:o datcollate:t datctype:t daticulocale:t datacl:l",
        databases,
    ),
    (
        "pg_roles",
        "oid:o rolname:t rolsuper:b rolinherit:b rolcreaterole:b rolcreatedb:b rolcanlogin:b \
         rolreplication:b rolconnlimit:o rolpassword:t rolvaliduntil:t rolbypassrls:b rolconfig:l",
        roles,
    ),
    (
        "pg_constraint",
        "oid:o conname:t connamespace:o contype:t condeferrable:b condeferred:b convalidated:b \
         conrelid:o contypid:o conindid:o conparentid:o confrelid:o confupdtype:t confdeltype:t \
         confmatchtype:t conislocal:b conkey:l confkey:l conbin:t",
        constraints,
    ),
    (
        "pg_index",
        "indexrelid:o indrelid:o indnatts:o indnkeyatts:o indisunique:b indisprimary:b \
         indisexclusion:b indimmediate:b indisclustered:b indisvalid:b indisready:b indislive:b \
         indisreplident:b indkey:l indcollation:l indclass:l indoption:l indexprs:t indpred:t \
         indnullsnotdistinct:b",
        indexes,
    ),
    ("pg_indexes", "schemaname:t tablename:t indexname:t tablespace:t indexdef:t", index_list),
    ("pg_user", "usename:t usesysid:o usecreatedb:b usesuper:b", users),
    ("pg_am", "oid:o amname:t amhandler:t amtype:t", methods),
    ("pg_tablespace", "oid:o spcname:t spcowner:o spcacl:l spcoptions:l", tablespaces),
    (
        "pg_tables",
        "schemaname:t tablename:t tableowner:t tablespace:t hasindexes:b hasrules:b hastriggers:b \
         rowsecurity:b",
        table_list,
    ),
];

/// Tables that are known and have no rows here.
const EMPTY: &[(&str, &str)] = &[
    ("pg_auth_members", "roleid:o member:o grantor:o admin_option:b"),
    ("pg_collation", "oid:o collname:t collnamespace:o collprovider:t"),
    ("pg_depend", "classid:o objid:o objsubid:o refclassid:o refobjid:o refobjsubid:o deptype:t"),
    ("pg_description", "objoid:o classoid:o objsubid:o description:t"),
    ("pg_enum", "oid:o enumtypid:o enumsortorder:o enumlabel:t"),
    ("pg_event_trigger", "oid:o evtname:t evtevent:t evtowner:o evtfoid:o evtenabled:t evttags:l"),
    ("pg_extension", "oid:o extname:t extowner:o extnamespace:o extrelocatable:b extversion:t"),
    ("pg_foreign_data_wrapper", "oid:o fdwname:t fdwowner:o fdwoptions:l fdwacl:l"),
    ("pg_foreign_server", "oid:o srvname:t srvowner:o srvfdw:o srvoptions:l srvacl:l"),
    ("pg_foreign_table", "ftrelid:o ftserver:o ftoptions:l"),
    ("pg_inherits", "inhrelid:o inhparent:o inhseqno:o inhdetachpending:b"),
    ("pg_language", "oid:o lanname:t lanowner:o lanpltrusted:b lanacl:l"),
    ("pg_matviews", "schemaname:t matviewname:t matviewowner:t definition:t"),
    ("pg_opclass", "oid:o opcmethod:o opcname:t opcnamespace:o opcowner:o opcdefault:b"),
    ("pg_operator", "oid:o oprname:t oprnamespace:o oprowner:o oprkind:t oprleft:o oprright:o"),
    ("pg_partitioned_table", "partrelid:o partstrat:t partnatts:o partdefid:o"),
    (
        "pg_policy",
        "oid:o polname:t polrelid:o polcmd:t polpermissive:b polroles:l polqual:t polwithcheck:t",
    ),
    (
        "pg_proc",
        "oid:o proname:t pronamespace:o proowner:o prolang:o prokind:t prosecdef:b proisstrict:b \
         proretset:b provolatile:t proparallel:t pronargs:o prorettype:o prosrc:t proacl:l",
    ),
    ("pg_publication", "oid:o pubname:t pubowner:o puballtables:b"),
    ("pg_publication_namespace", "oid:o pnpubid:o pnnspid:o"),
    ("pg_publication_rel", "oid:o prpubid:o prrelid:o prqual:t prattrs:l"),
    ("pg_range", "rngtypid:o rngsubtype:o rngmultitypid:o rngcollation:o"),
    ("pg_rewrite", "oid:o rulename:t ev_class:o ev_type:t ev_enabled:t is_instead:b"),
    ("pg_seclabel", "objoid:o classoid:o objsubid:o provider:t label:t"),
    ("pg_sequence", "seqrelid:o seqtypid:o seqstart:o seqincrement:o seqmax:o seqmin:o"),
    ("pg_shdescription", "objoid:o classoid:o description:t"),
    ("pg_stat_activity", "datid:o datname:t pid:o usename:t application_name:t state:t query:t"),
    (
        "pg_statistic_ext",
        "oid:o stxrelid:o stxname:t stxnamespace:o stxowner:o stxstattarget:o stxkeys:l stxkind:l",
    ),
    ("pg_subscription", "oid:o subdbid:o subname:t subowner:o subenabled:b"),
    (
        "pg_trigger",
        "oid:o tgrelid:o tgparentid:o tgname:t tgfoid:o tgtype:o tgenabled:t tgisinternal:b \
         tgconstraint:o",
    ),
    ("pg_views", "schemaname:t viewname:t viewowner:t definition:t"),
];

/// Names of all tables.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    FILLED.iter().map(|(name, ..)| *name).chain(EMPTY.iter().map(|(name, _)| *name))
}

/// Whether a table never has rows.
pub(super) fn always_empty(name: &str) -> bool {
    EMPTY.iter().any(|(known, _)| *known == name)
}

/// The table of that name.
pub(super) fn build(name: &str, image: &Image) -> Option<RecordBatch> {
    let filled = FILLED.iter().find(|(known, ..)| *known == name);
    if let Some((_, columns, rows)) = filled {
        return batch(columns, &rows(image));
    }
    let (_, columns) = EMPTY.iter().find(|(known, _)| *known == name)?;
    batch(columns, &[])
}

/// A column that is being filled.
enum Builder {
    Number(Int64Builder),
    Flag(BooleanBuilder),
    Text(StringBuilder),
    List(ListBuilder<StringBuilder>),
}

impl Builder {
    fn new(kind: &str) -> Self {
        match kind {
            "o" => Self::Number(Int64Builder::new()),
            "b" => Self::Flag(BooleanBuilder::new()),
            "l" => Self::List(ListBuilder::new(StringBuilder::new())),
            _ => Self::Text(StringBuilder::new()),
        }
    }

    /// A cell of another kind is NULL, as are all lists: none has elements here.
    fn append(&mut self, cell: &Cell) {
        match (self, cell) {
            (Self::Number(builder), Cell::Number(value)) => builder.append_value(*value),
            (Self::Flag(builder), Cell::Flag(value)) => builder.append_value(*value),
            (Self::Text(builder), Cell::Text(value)) => builder.append_value(value),
            (Self::Number(builder), _) => builder.append_null(),
            (Self::Flag(builder), _) => builder.append_null(),
            (Self::Text(builder), _) => builder.append_null(),
            (Self::List(builder), _) => builder.append_null(),
        }
    }

    fn finish(self) -> ArrayRef {
        match self {
            Self::Number(mut builder) => Arc::new(builder.finish()),
            Self::Flag(mut builder) => Arc::new(builder.finish()),
            Self::Text(mut builder) => Arc::new(builder.finish()),
            Self::List(mut builder) => Arc::new(builder.finish()),
        }
    }
}

fn batch(columns: &str, rows: &[Row]) -> Option<RecordBatch> {
    let columns = columns.split_ascii_whitespace().filter_map(|column| column.split_once(':'));
    let (mut fields, mut arrays) = (Vec::new(), Vec::new());
    for (at, (name, kind)) in columns.enumerate() {
        let mut builder = Builder::new(kind);
        rows.iter().for_each(|row| builder.append(row.get(at).unwrap_or(&Cell::Null)));
        let array = builder.finish();
        fields.push(Field::new(name, array.data_type().clone(), true));
        arrays.push(array);
    }
    let options = RecordBatchOptions::new().with_row_count(Some(rows.len()));
    RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), arrays, &options).ok()
}

/// A row of values of several types.
macro_rules! row {
    ($($cell:expr),* $(,)?) => { vec![$(Cell::from($cell)),*] };
}

fn namespaces(image: &Image) -> Vec<Row> {
    let fixed = ["pg_catalog", "public", "information_schema", "timescaledb_information"];
    let own = image.catalog.tables().map(|table| table.schema.as_str());
    let mut names: Vec<&str> = fixed.into_iter().chain(own).collect();
    names.sort_unstable();
    names.dedup();
    names.into_iter().map(|name| row![oid::of_schema(name), name, oid::ROLE]).collect()
}

fn classes(image: &Image) -> Vec<Row> {
    let tables = image.catalog.tables().map(class);
    tables.chain(keys(image).map(|(table, at, key)| index_class(table, at, key))).collect()
}

/// Every key with its table and its position there.
fn keys(image: &Image) -> impl Iterator<Item = (&Table, usize, &Key)> {
    image.catalog.tables().flat_map(|table| {
        let keys = table.columns.keys.iter().enumerate();
        keys.map(move |(at, key)| (table, at, key))
    })
}

fn width(key: &Key) -> i64 {
    i64::try_from(key.columns.len()).unwrap_or(i64::MAX)
}

fn index_class(table: &Table, at: usize, key: &Key) -> Row {
    let mut row = class(table);
    let oid = oid::of_key(table, at);
    let changed = [
        (0, Cell::from(oid)),
        (1, Cell::from(key.name.as_str())),
        (6, Cell::from(oid::BTREE)),
        (7, Cell::from(oid)),
        (13, Cell::from(false)),
        (16, Cell::from("i")),
        (17, Cell::from(width(key))),
    ];
    for (at, cell) in changed {
        if let Some(place) = row.get_mut(at) {
            *place = cell;
        }
    }
    row
}

fn constraints(image: &Image) -> Vec<Row> {
    let row = |(table, at, key): (&Table, usize, &Key)| {
        let oid = oid::of_key(table, at);
        let kind = if key.primary { "p" } else { "u" };
        let (schema, table) = (oid::of_schema(&table.schema), oid::of_table(table));
        let name = key.name.as_str();
        row![oid, name, schema, kind, false, false, true, table, 0, oid, 0, 0, " ", " ", " ", true,]
    };
    keys(image).map(row).collect()
}

fn indexes(image: &Image) -> Vec<Row> {
    let row = |(table, at, key): (&Table, usize, &Key)| {
        let (oid, of, width) = (oid::of_key(table, at), oid::of_table(table), width(key));
        let (primary, none) = (key.primary, || None::<&str>);
        row![
            oid,
            of,
            width,
            width,
            true,
            primary,
            false,
            true,
            false,
            true,
            true,
            true,
            false,
            none(),
            none(),
            none(),
            none(),
            none(),
            none(),
            false,
        ]
    };
    keys(image).map(row).collect()
}

fn index_list(image: &Image) -> Vec<Row> {
    let row = |(table, _, key): (&Table, usize, &Key)| {
        let definition = oid::index_definition(table, key);
        row![
            table.schema.as_str(),
            table.name.as_str(),
            key.name.as_str(),
            None::<&str>,
            definition.as_str(),
        ]
    };
    keys(image).map(row).collect()
}

fn class(table: &Table) -> Row {
    let columns = i64::try_from(table.columns.columns.len()).unwrap_or(i64::MAX);
    row![
        oid::of_table(table),
        table.name.as_str(),
        oid::of_schema(&table.schema),
        0,
        0,
        oid::ROLE,
        oid::HEAP,
        oid::of_table(table),
        0,
        0,
        -1,
        0,
        0,
        !table.columns.keys.is_empty(),
        false,
        "p",
        "r",
        columns,
        0,
        false,
        false,
        false,
        false,
        false,
        true,
        "d",
        false,
    ]
}

fn attributes(image: &Image) -> Vec<Row> {
    let mut rows = Vec::new();
    for table in image.catalog.tables() {
        for (number, column) in (1_i64..).zip(&table.columns.columns) {
            let (kind, modifier) = oid::of_type(column.column_type);
            let length = oid::TYPES.iter().find(|(known, ..)| *known == kind);
            rows.push(row![
                oid::of_table(table),
                column.name.as_str(),
                kind,
                length.map_or(-1, |(.., length, _)| i64::from(*length)),
                number,
                0,
                i64::from(modifier),
                !column.nullable,
                column.default.is_some(),
                "",
                "",
                false,
                true,
                0,
                0,
                "p",
                "",
                -1,
            ]);
        }
    }
    rows
}

fn defaults(image: &Image) -> Vec<Row> {
    let mut rows = Vec::new();
    for table in image.catalog.tables() {
        let columns = (1_i64..).zip(&table.columns.columns);
        let defaults = columns.filter_map(|(number, column)| {
            let default = column.default.as_deref()?;
            Some(row![oid::of_table(table), oid::of_table(table), number, default])
        });
        rows.extend(defaults);
    }
    rows
}

fn types(_image: &Image) -> Vec<Row> {
    let rows = oid::TYPES.iter().map(|(number, name, _, length, category)| {
        row![
            *number,
            *name,
            oid::of_schema("pg_catalog"),
            oid::ROLE,
            i64::from(*length),
            *length > 0 && *length <= 8,
            "b",
            *category,
            false,
            true,
            ",",
            0,
            0,
            0,
            false,
            0,
            -1,
            0,
            0,
        ]
    });
    rows.collect()
}

fn databases(_image: &Image) -> Vec<Row> {
    const UTF8: i64 = 6;
    vec![row![oid::DATABASE, DATABASE, oid::ROLE, UTF8, "c", false, true, -1, 1663, "C", "C",]]
}

fn roles(_image: &Image) -> Vec<Row> {
    vec![row![oid::ROLE, USER, true, true, true, true, true, false, -1, "********", None, true,]]
}

fn users(_image: &Image) -> Vec<Row> {
    vec![row![USER, oid::ROLE, true, true]]
}

fn methods(_image: &Image) -> Vec<Row> {
    vec![
        row![oid::HEAP, "heap", "heap_tableam_handler", "t"],
        row![oid::BTREE, "btree", "bthandler", "i"],
    ]
}

fn tablespaces(_image: &Image) -> Vec<Row> {
    vec![row![1663, "pg_default", oid::ROLE]]
}

fn table_list(image: &Image) -> Vec<Row> {
    let tables = image.catalog.tables();
    let row = |table: &Table| {
        let (schema, name) = (table.schema.as_str(), table.name.as_str());
        let keyed = !table.columns.keys.is_empty();
        row![schema, name, USER, None, keyed, false, false, false]
    };
    tables.map(row).collect()
}
