//! Forms that queries of `pg_catalog` have and DataFusion does not plan, into forms that it does.
//!
//! | Written | Planned |
//! |---|---|
//! | `pg_class` | `pg_catalog.pg_class` |
//! | `pg_catalog.f(x)` | `f(x)` |
//! | `a OPERATOR(pg_catalog.~) b COLLATE pg_catalog.default` | `a ~ b` |
//! | `'t'::regclass`, `oid::regclass` | functions from name to number and back |
//! | `x::oid`, `x::name`, `x::pg_catalog.text` ... | a cast to `bigint` or `text` |
//! | `a LIKE b ESCAPE '/'` | with the backslash as escape |
//! | `options \|\| ARRAY(SELECT … FROM unnest(t.reloptions))` | `options` |
//! | `FROM generate_series(1, 3) i` | `FROM generate_series(1, 3) AS i(i)` |
//! | `FROM generate_series(a, b, INTERVAL '1 h') t` | `FROM (SELECT unnest(hypertide_time_series(a, b, …))) AS t(t)` |
//! | `SELECT … FROM` a table that never has rows | as many NULLs, no row |
//! | `(SELECT … FROM pg_attrdef …)`, `pg_type` | with `max`, as it has one row at most |

use std::{collections::BTreeSet, ops::ControlFlow};

use datafusion::sql::sqlparser::{
    ast::{
        BinaryOperator, DataType, Expr, Function, FunctionArg, FunctionArgExpr,
        FunctionArgumentList, FunctionArguments, GroupByExpr, Ident, JoinOperator, ObjectName,
        ObjectNamePart, Query, Select, SelectItem, SetExpr, Statement, TableAlias,
        TableAliasColumnDef, TableFactor, TableWithJoins, TypedString, Value, Visit, VisitMut,
        Visitor, VisitorMut,
    },
    dialect::PostgreSqlDialect,
    parser::Parser,
};

use super::{PG_CATALOG, functions, tables};
use crate::functions::TIME_SERIES;

/// Columns whose value follows from there being a row.
const IMPLIED: &str = "atthasdef";
/// The function whose column has the name of its alias.
const SERIES: &str = "generate_series";
/// Stands for something else while a pattern is rewritten; no pattern holds it.
const MARK: &str = "\u{1}\u{1}";
/// Aggregates that queries of catalogs use.
const AGGREGATES: [&str; 15] = [
    "array_agg",
    "avg",
    "bit_and",
    "bit_or",
    "bool_and",
    "bool_or",
    "count",
    "every",
    "json_agg",
    "jsonb_agg",
    "json_object_agg",
    "max",
    "min",
    "string_agg",
    "sum",
];
/// Tables that scalar subqueries read by their key, so that they have one row at most.
const KEYED: [&str; 2] = ["pg_attrdef", "pg_type"];

/// Rewrites a statement.
pub(crate) fn rewrite(statement: &mut Statement) {
    // The visitor never stops early.
    let _ = statement.visit(&mut Rewriter);
}

struct Rewriter;

impl VisitorMut for Rewriter {
    type Break = ();

    fn pre_visit_query(&mut self, query: &mut Query) -> ControlFlow<()> {
        let single = matches!(query.body.as_ref(), SetExpr::Select(_));
        if empty_body(&mut query.body) && single {
            // What it is ordered by may be a column that is not there any more.
            query.order_by = None;
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_relation(&mut self, relation: &mut ObjectName) -> ControlFlow<()> {
        // The schema is searched before all others, as in PostgreSQL.
        if let [name] = parts(relation).as_slice()
            && tables::names().any(|known| known == name)
        {
            relation.0.insert(0, ObjectNamePart::Identifier(Ident::new(PG_CATALOG)));
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, factor: &mut TableFactor) -> ControlFlow<()> {
        if let TableFactor::Table { name, args: Some(arguments), alias, .. } = factor
            && parts(name).last().is_some_and(|name| name == SERIES)
        {
            name_column(alias);
            if let Some(times) = time_series(&arguments.args) {
                *factor = TableFactor::Derived {
                    lateral: false,
                    subquery: times,
                    alias: alias.take(),
                    sample: None,
                };
            }
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        if let Expr::BinaryOp { left, op: BinaryOperator::StringConcat, right } = expr
            && matches!(right.as_ref(), Expr::Function(function) if is_array_of_options(function))
        {
            *expr = take(left);
        }
        ControlFlow::Continue(())
    }

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        rewrite_expr(expr);
        ControlFlow::Continue(())
    }
}

/// `SELECT unnest(…)` of a series of times, if the arguments are those of one: the last is an interval.
fn time_series(arguments: &[FunctionArg]) -> Option<Box<Query>> {
    let [_, _, FunctionArg::Unnamed(FunctionArgExpr::Expr(step))] = arguments else { return None };
    if !is_interval(step) {
        return None;
    }
    let argument = |argument: &FunctionArg| match argument {
        FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) => Some(expr.clone()),
        _ => None,
    };
    let arguments = arguments.iter().map(argument).collect::<Option<Vec<_>>>()?;
    let values = call("unnest", vec![call(TIME_SERIES, arguments)]);
    let statement = format!("SELECT {values}");
    match Parser::parse_sql(&PostgreSqlDialect {}, &statement).ok()?.pop()? {
        Statement::Query(query) => Some(query),
        _ => None,
    }
}

/// Whether an expression is an interval as it stands. A text beside two times can be nothing else.
fn is_interval(expr: &Expr) -> bool {
    match expr {
        Expr::Interval(_) => true,
        Expr::Value(value) => matches!(value.value, Value::SingleQuotedString(_)),
        Expr::Cast { data_type, .. } | Expr::TypedString(TypedString { data_type, .. }) => {
            matches!(data_type, DataType::Interval { .. })
        }
        Expr::Nested(inner) | Expr::UnaryOp { expr: inner, .. } => is_interval(inner),
        Expr::BinaryOp { left, right, .. } => is_interval(left) || is_interval(right),
        Expr::Function(function) => parts(&function.name) == ["make_interval"],
        _ => false,
    }
}

/// A function that gives one column names it as itself, by its alias when it has one.
fn name_column(alias: &mut Option<TableAlias>) {
    let alias = alias.get_or_insert_with(|| TableAlias {
        explicit: true,
        name: Ident::new(SERIES),
        columns: Vec::new(),
        at: None,
    });
    if alias.columns.is_empty() {
        alias.columns.push(TableAliasColumnDef { name: alias.name.clone(), data_type: None });
    }
}

fn rewrite_expr(expr: &mut Expr) {
    match expr {
        Expr::Collate { expr: inner, collation } if in_pg_catalog(collation) => {
            *expr = take(inner);
        }
        Expr::BinaryOp { op, .. } => {
            if let Some(plain) = plain_operator(op) {
                *op = plain;
            }
        }
        Expr::Function(function) => {
            if in_pg_catalog(&function.name) {
                function.name.0.remove(0);
            }
            if is_array_of_nothing(function) {
                *expr = Expr::value(Value::SingleQuotedString("{}".to_owned()));
            }
        }
        Expr::Cast { expr: inner, data_type, .. } => match cast_to(data_type) {
            Some(Target::Type(plain)) => *data_type = plain,
            Some(Target::Regclass) => *expr = regclass(take(inner)),
            Some(Target::Regtype) => *expr = call("format_type", vec![take(inner)]),
            None => {}
        },
        Expr::Like { pattern, escape_char, .. } | Expr::ILike { pattern, escape_char, .. } => {
            if let Some(escape) = escape_char.take().and_then(|value| value.into_string())
                && escape != "\\"
            {
                **pattern = with_backslash(take(pattern), &escape);
            }
        }
        Expr::Subquery(query) => at_most_one(query),
        _ => {}
    }
}

fn take(expr: &mut Expr) -> Expr {
    std::mem::replace(expr, Expr::value(Value::Null))
}

fn parts(name: &ObjectName) -> Vec<String> {
    let parts = name.0.iter().filter_map(ObjectNamePart::as_ident);
    parts.map(|ident| ident.value.to_ascii_lowercase()).collect()
}

fn in_pg_catalog(name: &ObjectName) -> bool {
    name.0.len() == 2 && parts(name).first().is_some_and(|schema| schema == PG_CATALOG)
}

fn plain_operator(op: &BinaryOperator) -> Option<BinaryOperator> {
    let BinaryOperator::PGCustomBinaryOperator(words) = op else { return None };
    Some(match words.last()?.as_str() {
        "~" => BinaryOperator::PGRegexMatch,
        "~*" => BinaryOperator::PGRegexIMatch,
        "!~" => BinaryOperator::PGRegexNotMatch,
        "!~*" => BinaryOperator::PGRegexNotIMatch,
        "~~" => BinaryOperator::PGLikeMatch,
        "!~~" => BinaryOperator::PGNotLikeMatch,
        "=" => BinaryOperator::Eq,
        "<>" => BinaryOperator::NotEq,
        "<" => BinaryOperator::Lt,
        ">" => BinaryOperator::Gt,
        _ => return None,
    })
}

/// What a cast to one of PostgreSQL's own types becomes.
enum Target {
    Type(DataType),
    Regclass,
    Regtype,
}

fn cast_to(data_type: &DataType) -> Option<Target> {
    let name = match data_type {
        DataType::Regclass => return Some(Target::Regclass),
        DataType::Custom(name, _) => parts(name),
        _ => return None,
    };
    let qualified = name.len() == 2 && name.first().is_some_and(|schema| schema == PG_CATALOG);
    if name.len() != 1 && !qualified {
        return None;
    }
    Some(match name.last()?.as_str() {
        "regclass" => Target::Regclass,
        "regtype" => Target::Regtype,
        "oid" | "xid" | "int8" => Target::Type(DataType::BigInt(None)),
        "int4" => Target::Type(DataType::Integer(None)),
        "int2" => Target::Type(DataType::SmallInt(None)),
        "bool" => Target::Type(DataType::Boolean),
        "name" | "text" | "char" | "regproc" | "regnamespace" | "regrole" | "varchar" => {
            Target::Type(DataType::Text)
        }
        _ => return None,
    })
}

/// A pattern whose escape is `escape`, as one whose escape is the backslash.
fn with_backslash(pattern: Expr, escape: &str) -> Expr {
    let text = |text: &str| Expr::value(Value::SingleQuotedString(text.to_owned()));
    let replace = |expr, from: &str, to: &str| call("replace", vec![expr, text(from), text(to)]);
    let doubled = replace(pattern, "\\", "\\\\");
    if escape.is_empty() {
        return doubled;
    }
    // An escaped escape is a letter like others; the mark stands for it meanwhile.
    let marked = replace(doubled, &escape.repeat(2), MARK);
    replace(replace(marked, escape, "\\"), MARK, escape)
}

/// A name becomes a number, a number a name.
fn regclass(expr: Expr) -> Expr {
    let named = match &expr {
        Expr::Value(value) => {
            matches!(value.value, Value::SingleQuotedString(_) | Value::Placeholder(_))
        }
        _ => false,
    };
    call(if named { functions::REGCLASS } else { functions::REGCLASS_NAME }, vec![expr])
}

fn call(name: &str, arguments: Vec<Expr>) -> Expr {
    let arguments = arguments.into_iter();
    let args = arguments.map(|expr| FunctionArg::Unnamed(FunctionArgExpr::Expr(expr))).collect();
    Expr::Function(Function {
        name: ObjectName::from(vec![Ident::new(name)]),
        uses_odbc_syntax: false,
        parameters: FunctionArguments::None,
        args: FunctionArguments::List(FunctionArgumentList {
            duplicate_treatment: None,
            args,
            clauses: Vec::new(),
        }),
        filter: None,
        null_treatment: None,
        over: None,
        within_group: Vec::new(),
    })
}

/// Whether it is `ARRAY(SELECT …)` of a query that was found to have no rows.
fn is_array_of_nothing(function: &Function) -> bool {
    let FunctionArguments::Subquery(query) = &function.args else { return false };
    let SetExpr::Select(select) = query.body.as_ref() else { return false };
    parts(&function.name) == ["array"] && select.from.is_empty() && is_false(&select.selection)
}

/// Whether it is `ARRAY(SELECT … FROM unnest(t.reloptions))`: no relation has options here.
fn is_array_of_options(function: &Function) -> bool {
    let FunctionArguments::Subquery(query) = &function.args else { return false };
    let SetExpr::Select(select) = query.body.as_ref() else { return false };
    let [TableWithJoins { relation, .. }] = select.from.as_slice() else { return false };
    let TableFactor::Table { name, args: Some(unnest), .. } = relation else { return false };
    let [FunctionArg::Unnamed(FunctionArgExpr::Expr(Expr::CompoundIdentifier(column)))] =
        unnest.args.as_slice()
    else {
        return false;
    };
    parts(&function.name) == ["array"]
        && parts(name).last().is_some_and(|name| name == "unnest")
        && column.last().is_some_and(|name| name.value == "reloptions")
}

fn is_false(selection: &Option<Expr>) -> bool {
    matches!(selection, Some(Expr::Value(value)) if value.value == Value::Boolean(false))
}

/// Makes selects without rows out of those that read a table without rows; gives whether all were.
fn empty_body(body: &mut SetExpr) -> bool {
    match body {
        SetExpr::Select(select) => empty_select(select),
        SetExpr::SetOperation { left, right, .. } => {
            let left = empty_body(left);
            empty_body(right) && left
        }
        _ => false,
    }
}

fn empty_select(select: &mut Select) -> bool {
    let grouped = !matches!(&select.group_by, GroupByExpr::Expressions(keys, _) if keys.is_empty());
    if grouped || select.having.is_some() || !select.from.iter().any(reads_nothing) {
        return false;
    }
    let columns: Option<Vec<SelectItem>> = select.projection.iter().map(null_column).collect();
    let Some(mut columns) = columns else { return false };
    make_unique(&mut columns);
    select.projection = columns;
    select.from = Vec::new();
    select.selection = Some(Expr::value(Value::Boolean(false)));
    select.distinct = None;
    true
}

/// Gives columns of one name different ones, as DataFusion wants them; nobody sees the names of no rows.
fn make_unique(columns: &mut [SelectItem]) {
    let mut names = BTreeSet::new();
    for (at, column) in columns.iter_mut().enumerate() {
        if let SelectItem::ExprWithAlias { alias, .. } = column
            && !names.insert(alias.value.clone())
        {
            *alias = Ident::with_quote('"', format!("{} {at}", alias.value));
        }
    }
}

/// Whether a table that never has rows takes part in a way that leaves no rows at all.
fn reads_nothing(table: &TableWithJoins) -> bool {
    let inner = |operator: &JoinOperator| {
        matches!(
            operator,
            JoinOperator::Join(_) | JoinOperator::Inner(_) | JoinOperator::CrossJoin(_)
        )
    };
    let outer = |operator: &JoinOperator| {
        matches!(operator, JoinOperator::Left(_) | JoinOperator::LeftOuter(_)) || inner(operator)
    };
    (is_empty_table(&table.relation) && table.joins.iter().all(|join| outer(&join.join_operator)))
        || (table.joins.iter().all(|join| outer(&join.join_operator))
            && table
                .joins
                .iter()
                .any(|join| inner(&join.join_operator) && is_empty_table(&join.relation)))
}

fn is_empty_table(factor: &TableFactor) -> bool {
    let TableFactor::Table { name, args: None, .. } = factor else { return false };
    (in_pg_catalog(name) || name.0.len() == 1)
        && parts(name).last().is_some_and(|name| tables::always_empty(name))
}

/// The column as NULL, under its name; `None` for what has a value even without rows, or is not one column.
fn null_column(item: &SelectItem) -> Option<SelectItem> {
    let (expr, alias) = match item {
        SelectItem::UnnamedExpr(expr) => (expr, column_name(expr)),
        SelectItem::ExprWithAlias { expr, alias } => (expr, alias.clone()),
        _ => return None,
    };
    let mut aggregates = Aggregates::default();
    if expr.visit(&mut aggregates).is_break() {
        return None;
    }
    let null = Expr::Cast {
        kind: datafusion::sql::sqlparser::ast::CastKind::DoubleColon,
        expr: Box::new(Expr::value(Value::Null)),
        data_type: DataType::Text,
        array: false,
        format: None,
    };
    Some(SelectItem::ExprWithAlias { expr: null, alias })
}

/// Looks for an aggregate, which gives a row even when there are none; those of subqueries are theirs.
#[derive(Default)]
struct Aggregates {
    depth: usize,
}

impl Visitor for Aggregates {
    type Break = ();

    fn pre_visit_query(&mut self, _: &Query) -> ControlFlow<()> {
        self.depth += 1;
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, _: &Query) -> ControlFlow<()> {
        self.depth = self.depth.saturating_sub(1);
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        match expr {
            Expr::Function(function) if self.depth == 0 && is_aggregate(function) => {
                ControlFlow::Break(())
            }
            _ => ControlFlow::Continue(()),
        }
    }
}

fn is_aggregate(function: &Function) -> bool {
    parts(&function.name).last().is_some_and(|name| AGGREGATES.contains(&name.as_str()))
}

/// The name that PostgreSQL gives a column.
fn column_name(expr: &Expr) -> Ident {
    let name = match expr {
        Expr::Identifier(ident) => return ident.clone(),
        Expr::CompoundIdentifier(parts) => parts.last().map(|ident| ident.value.clone()),
        Expr::Cast { expr, .. } => Some(column_name(expr).value),
        Expr::Function(function) => parts(&function.name).pop(),
        _ => None,
    };
    Ident::with_quote('"', name.unwrap_or_else(|| "?column?".to_owned()))
}

/// Tells DataFusion by an aggregate that a scalar subquery has one row at most.
fn at_most_one(query: &mut Query) {
    let SetExpr::Select(select) = query.body.as_mut() else { return };
    let keyed = select.from.len() == 1
        && select.from.iter().all(|table| match &table.relation {
            TableFactor::Table { name, .. } => {
                parts(name).last().is_some_and(|name| KEYED.contains(&name.as_str()))
            }
            _ => false,
        });
    let [SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. }] =
        select.projection.as_mut_slice()
    else {
        return;
    };
    if keyed && !matches!(expr, Expr::Function(function) if is_aggregate(function)) {
        *expr = call("max", vec![take(expr)]);
        select.selection = select.selection.take().and_then(without_implied);
    }
}

/// The conjunction without what follows from there being a row.
fn without_implied(expr: Expr) -> Option<Expr> {
    match expr {
        Expr::BinaryOp { left, op: BinaryOperator::And, right } => {
            match (without_implied(*left), without_implied(*right)) {
                (Some(left), Some(right)) => Some(Expr::BinaryOp {
                    left: Box::new(left),
                    op: BinaryOperator::And,
                    right: Box::new(right),
                }),
                (one, other) => one.or(other),
            }
        }
        Expr::CompoundIdentifier(parts)
            if parts.last().is_some_and(|last| last.value == IMPLIED) =>
        {
            None
        }
        other => Some(other),
    }
}
