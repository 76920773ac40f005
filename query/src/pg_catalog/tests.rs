//! The queries of psql, word for word, over a small catalog.

use std::sync::Arc;

use arrow::util::pretty::pretty_format_batches;
use datafusion::{
    catalog::{CatalogProvider, MemoryCatalogProvider},
    common::config::Dialect,
    prelude::{SessionConfig, SessionContext},
    sql::{
        parser::Statement,
        sqlparser::{dialect::PostgreSqlDialect, parser::Parser},
    },
};
use hypertide_meta::{CatalogWriter, MemoryCatalog, catalog::Command};
use hypertide_proto::schema::{Column, ColumnType, Key, TableSchema};

use super::*;

const NAMES: &str = "SELECT n.nspname as \"Schema\",
  c.relname as \"Name\",
  CASE c.relkind WHEN 'r' THEN 'table' WHEN 'v' THEN 'view' END as \"Type\",
  pg_catalog.pg_get_userbyid(c.relowner) as \"Owner\"
FROM pg_catalog.pg_class c
     LEFT JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
     LEFT JOIN pg_catalog.pg_am am ON am.oid = c.relam
WHERE c.relkind IN ('r','p','')
      AND n.nspname <> 'pg_catalog'
      AND n.nspname !~ '^pg_toast'
      AND n.nspname <> 'information_schema'
  AND pg_catalog.pg_table_is_visible(c.oid)
ORDER BY 1,2;";

const FIND: &str = "SELECT c.oid,
  n.nspname,
  c.relname
FROM pg_catalog.pg_class c
     LEFT JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relname OPERATOR(pg_catalog.~) '^(conditions)$' COLLATE pg_catalog.default
  AND pg_catalog.pg_table_is_visible(c.oid)
ORDER BY 2, 3;";

const COLUMNS: &str = "SELECT a.attname,
  pg_catalog.format_type(a.atttypid, a.atttypmod),
  (SELECT pg_catalog.pg_get_expr(d.adbin, d.adrelid, true)
   FROM pg_catalog.pg_attrdef d
   WHERE d.adrelid = a.attrelid AND d.adnum = a.attnum AND a.atthasdef),
  a.attnotnull,
  (SELECT c.collname FROM pg_catalog.pg_collation c, pg_catalog.pg_type t
   WHERE c.oid = a.attcollation AND t.oid = a.atttypid AND a.attcollation <> t.typcollation) AS attcollation,
  a.attidentity,
  a.attgenerated
FROM pg_catalog.pg_attribute a
WHERE a.attrelid = '16385' AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attnum;";

const RELATION: &str = "SELECT c.relchecks, c.relkind, c.relhasindex, c.relhasrules, c.relhastriggers, c.relrowsecurity, c.relforcerowsecurity, false AS relhasoids, c.relispartition, '', c.reltablespace, CASE WHEN c.reloftype = 0 THEN '' ELSE c.reloftype::pg_catalog.regtype::pg_catalog.text END, c.relpersistence, c.relreplident, am.amname
FROM pg_catalog.pg_class c
 LEFT JOIN pg_catalog.pg_class tc ON (c.reltoastrelid = tc.oid)
LEFT JOIN pg_catalog.pg_am am ON (c.relam = am.oid)
WHERE c.oid = '16385';";

const RELATION_AND_OPTIONS: &str = "SELECT c.relchecks, c.relkind, c.relhasindex, c.relhasrules, c.relhastriggers, c.relrowsecurity, c.relforcerowsecurity, false AS relhasoids, c.relispartition, pg_catalog.array_to_string(c.reloptions || array(select 'toast.' || x from pg_catalog.unnest(tc.reloptions) x), ', ')
, c.reltablespace, CASE WHEN c.reloftype = 0 THEN '' ELSE c.reloftype::pg_catalog.regtype::pg_catalog.text END, c.relpersistence, c.relreplident, am.amname
FROM pg_catalog.pg_class c
 LEFT JOIN pg_catalog.pg_class tc ON (c.reltoastrelid = tc.oid)
LEFT JOIN pg_catalog.pg_am am ON (c.relam = am.oid)
WHERE c.oid = '16385';";

const INDEXES: &str = "SELECT n.nspname as \"Schema\",
  c.relname as \"Name\",
  CASE c.relkind WHEN 'r' THEN 'table' WHEN 'i' THEN 'index' END as \"Type\",
  pg_catalog.pg_get_userbyid(c.relowner) as \"Owner\",
  c2.relname as \"Table\"
FROM pg_catalog.pg_class c
     LEFT JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
     LEFT JOIN pg_catalog.pg_am am ON am.oid = c.relam
     LEFT JOIN pg_catalog.pg_index i ON i.indexrelid = c.oid
     LEFT JOIN pg_catalog.pg_class c2 ON i.indrelid = c2.oid
WHERE c.relkind IN ('i','I','')
      AND n.nspname <> 'pg_catalog'
      AND n.nspname !~ '^pg_toast'
      AND n.nspname <> 'information_schema'
  AND pg_catalog.pg_table_is_visible(c.oid)
ORDER BY 1,2;";

const DATABASES: &str = "SELECT d.datname as \"Name\",
       pg_catalog.pg_get_userbyid(d.datdba) as \"Owner\",
       pg_catalog.pg_encoding_to_char(d.encoding) as \"Encoding\",
       d.datcollate as \"Collate\",
       d.datctype as \"Ctype\",
       d.daticulocale as \"ICU Locale\",
       CASE d.datlocprovider WHEN 'c' THEN 'libc' WHEN 'i' THEN 'icu' END AS \"Locale Provider\",
       pg_catalog.array_to_string(d.datacl, E'\\n') AS \"Access privileges\"
FROM pg_catalog.pg_database d
ORDER BY 1;";

const ROLES: &str = "SELECT r.rolname, r.rolsuper, r.rolinherit,
  r.rolcreaterole, r.rolcreatedb, r.rolcanlogin,
  r.rolconnlimit, r.rolvaliduntil,
  ARRAY(SELECT b.rolname
        FROM pg_catalog.pg_auth_members m
        JOIN pg_catalog.pg_roles b ON (m.roleid = b.oid)
        WHERE m.member = r.oid) as memberof
, r.rolreplication
, r.rolbypassrls
FROM pg_catalog.pg_roles r
WHERE r.rolname !~ '^pg_'
ORDER BY 1;";

const NOTHING: [&str; 4] = [
    "SELECT pol.polname, pol.polpermissive,
  CASE WHEN pol.polroles = '{0}' THEN NULL ELSE pg_catalog.array_to_string(array(select rolname from pg_catalog.pg_roles where oid = any (pol.polroles) order by 1),',') END,
  pg_catalog.pg_get_expr(pol.polqual, pol.polrelid),
  CASE pol.polcmd WHEN 'r' THEN 'SELECT' END AS cmd
FROM pg_catalog.pg_policy pol
WHERE pol.polrelid = '16385' ORDER BY 1;",
    "SELECT oid, stxrelid::pg_catalog.regclass, stxnamespace::pg_catalog.regnamespace::pg_catalog.text AS nsp, stxname,
pg_catalog.pg_get_statisticsobjdef_columns(oid) AS columns,
  'd' = any(stxkind) AS ndist_enabled,
stxstattarget
FROM pg_catalog.pg_statistic_ext
WHERE stxrelid = '16385'
ORDER BY nsp, stxname;",
    "SELECT pubname
     , NULL
     , NULL
FROM pg_catalog.pg_publication p
     JOIN pg_catalog.pg_publication_namespace pn ON p.oid = pn.pnpubid
     JOIN pg_catalog.pg_class pc ON pc.relnamespace = pn.pnnspid
WHERE pc.oid ='16385' and pg_catalog.pg_relation_is_publishable('16385')
UNION
SELECT pubname
     , pg_get_expr(pr.prqual, c.oid)
     , (CASE WHEN pr.prattrs IS NOT NULL THEN
         (SELECT string_agg(attname, ', ')
           FROM pg_catalog.generate_series(0, pg_catalog.array_upper(pr.prattrs::pg_catalog.int2[], 1)) s,
                pg_catalog.pg_attribute
          WHERE attrelid = pr.prrelid AND attnum = prattrs[s])
        ELSE NULL END) FROM pg_catalog.pg_publication p
     JOIN pg_catalog.pg_publication_rel pr ON p.oid = pr.prpubid
     JOIN pg_catalog.pg_class c ON c.oid = pr.prrelid
WHERE pr.prrelid = '16385'
UNION
SELECT pubname
     , NULL
     , NULL
FROM pg_catalog.pg_publication p
WHERE p.puballtables AND pg_catalog.pg_relation_is_publishable('16385')
ORDER BY 1;",
    "SELECT c.oid::pg_catalog.regclass, c.relkind, inhdetachpending, pg_catalog.pg_get_expr(c.relpartbound, c.oid)
FROM pg_catalog.pg_class c, pg_catalog.pg_inherits i
WHERE c.oid = i.inhrelid AND i.inhparent = '16385'
ORDER BY pg_catalog.pg_get_expr(c.relpartbound, c.oid) = 'DEFAULT', c.oid::pg_catalog.regclass::pg_catalog.text;",
];

/// A context over a catalog with one table.
async fn context() -> SessionContext {
    let column = |name: &str, column_type, nullable, default: Option<&str>| Column {
        nullable,
        default: default.map(str::to_owned),
        ..Column::new(name, column_type)
    };
    let columns = vec![
        column("time", ColumnType::TimestampTz, false, None),
        column("place", ColumnType::Varchar(20), true, Some("'here'")),
        column("level", ColumnType::Numeric { precision: 8, scale: 2 }, true, None),
    ];
    let key = Key {
        name: "conditions_time_key".to_owned(),
        columns: vec!["time".to_owned()],
        primary: false,
    };
    let catalog = MemoryCatalog::default();
    let command = Command::CreateTable {
        schema: "public".to_owned(),
        name: "conditions".to_owned(),
        owner: "hypertide".to_owned(),
        columns: TableSchema { columns, keys: vec![key] },
        if_not_exists: false,
    };
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    catalog.propose(command, deadline).await.unwrap().1.unwrap();

    let mut config = SessionConfig::new()
        .with_create_default_catalog_and_schema(false)
        .with_default_catalog_and_schema("hypertide", "public");
    config.options_mut().sql_parser.dialect = Dialect::PostgreSQL;
    config.options_mut().sql_parser.map_string_types_to_utf8view = false;
    let ctx = SessionContext::new_with_config(config);
    let tables: Arc<dyn CatalogProvider> = Arc::new(MemoryCatalogProvider::new());
    ctx.register_catalog("hypertide", tables);
    register_pg_catalog(&ctx, &catalog.image());
    ctx
}

/// Runs a query as a session would, and shows its rows.
async fn run(ctx: &SessionContext, sql: &str) -> String {
    let mut statements = Parser::parse_sql(&PostgreSqlDialect {}, sql).unwrap();
    let mut statement = statements.remove(0);
    rewrite(&mut statement);
    let plan = ctx.state().statement_to_plan(Statement::Statement(Box::new(statement))).await;
    let plan = plan.unwrap_or_else(|error| panic!("{error}\n{sql}"));
    let batches = ctx.execute_logical_plan(plan).await.unwrap().collect().await.unwrap();
    pretty_format_batches(&batches).unwrap().to_string()
}

/// The cells of each row.
async fn rows(ctx: &SessionContext, sql: &str) -> Vec<String> {
    let shown = run(ctx, sql).await;
    let lines = shown.lines().filter(|line| line.starts_with('|')).skip(1);
    let cells = |line: &str| {
        let cells = line.trim_matches('|').split('|').map(str::trim);
        cells.collect::<Vec<_>>().join(",")
    };
    lines.map(cells).collect()
}

#[tokio::test]
async fn psql_lists_tables_databases_and_roles() {
    let ctx = context().await;
    assert_eq!(rows(&ctx, NAMES).await, ["public,conditions,table,hypertide"]);
    let index = "public,conditions_time_key,index,hypertide,conditions";
    assert_eq!(rows(&ctx, INDEXES).await, [index]);
    assert_eq!(rows(&ctx, DATABASES).await, ["hypertide,hypertide,UTF8,C,C,,libc,"]);
    let roles = rows(&ctx, ROLES).await;
    assert_eq!(roles, ["hypertide,true,true,true,true,true,-1,,{},false,true"]);
}

#[tokio::test]
async fn psql_describes_a_table() {
    let ctx = context().await;
    assert_eq!(rows(&ctx, FIND).await, ["16385,public,conditions"]);
    let relation = rows(&ctx, RELATION).await;
    assert_eq!(relation, ["0,r,true,false,false,false,false,false,false,,0,,p,d,heap"]);
    assert_eq!(rows(&ctx, RELATION_AND_OPTIONS).await, relation);
    assert_eq!(
        rows(&ctx, COLUMNS).await,
        [
            "time,timestamp with time zone,,true,,,",
            "place,character varying(20),'here',false,,,",
            "level,numeric(8,2),,false,,,",
        ]
    );
    for sql in NOTHING {
        assert_eq!(rows(&ctx, sql).await, [""; 0], "{sql}");
    }
}

#[tokio::test]
async fn names_and_numbers_of_relations() {
    let ctx = context().await;
    let sql = "SELECT 'conditions'::regclass, 'public.conditions'::regclass, \
               'nope'::regclass, c.oid::regclass, 'pg_class'::regclass FROM pg_class c WHERE c.relkind = 'r'";
    assert_eq!(rows(&ctx, sql).await, ["16385,16385,,conditions,1259"]);
    let sql = "SELECT c.oid::regclass FROM pg_class c WHERE c.relkind = 'i'";
    assert_eq!(rows(&ctx, sql).await, ["conditions_time_key"]);
}

#[tokio::test]
async fn patterns_may_have_any_escape() {
    let ctx = context().await;
    for (text, pattern, expected) in [
        ("a_b", "a/_b", true),
        ("axb", "a/_b", false),
        ("a/b", "a//b", true),
        ("a\\b", "a\\b", true),
        ("a%", "a/%", true),
        ("ab", "a/%", false),
    ] {
        let sql = format!("SELECT '{text}' LIKE '{pattern}' ESCAPE '/'");
        assert_eq!(rows(&ctx, &sql).await, [expected.to_string()], "{sql}");
    }
}

#[tokio::test]
async fn other_queries_are_left_alone() {
    let sql = "SELECT a, count(*) FROM t JOIN policy USING (a) WHERE b ~ 'x' GROUP BY a";
    let mut statements = Parser::parse_sql(&PostgreSqlDialect {}, sql).unwrap();
    let before = statements.remove(0);
    let mut after = before.clone();
    rewrite(&mut after);
    assert_eq!(before, after);
}

#[tokio::test]
async fn every_table_can_be_read() {
    let ctx = context().await;
    for name in tables::names() {
        run(&ctx, &format!("SELECT count(*) FROM pg_catalog.{name}")).await;
    }
}
