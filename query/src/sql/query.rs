//! Queries and EXPLAIN: planned by DataFusion over the statement's snapshot.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, RecordBatch, StringArray},
    datatypes::{DataType, Field, Schema, SchemaRef},
};
use datafusion::{
    common::{ParamValues, ScalarValue},
    logical_expr::LogicalPlan,
    physical_plan::{self, ExecutionPlan},
    prelude::SessionContext,
    sql::{
        parser::Statement as DfStatement,
        sqlparser::{
            ast::{self, Expr, SelectItem, SetExpr, Statement as Ast, UtilityOption},
            parser::Parser,
        },
    },
};
use hypertide_proto::schema::{Column, ColumnType};

use super::{again::Again, call, names::Names, run::rows, zone::Zone};
use crate::{
    Error, Reply, Session, exec::explain_lines, ingest::assign::assign, settings::parse_bool,
};

/// Expressions that are computed by one plan.
const EVALUATED_AT_ONCE: usize = 256;

/// Runs a query or an EXPLAIN.
pub(crate) async fn run(
    session: &mut Session,
    ast: &Ast,
    values: Vec<ScalarValue>,
) -> Result<Reply, Error> {
    let mut ast = ast.clone();
    let explain = Explain::of(&ast)?;
    if let Ast::Explain { statement, .. } = ast {
        ast = *statement;
    }
    check(&ast)?;
    let calls = call::take(&mut ast)?;
    let shown = explain.as_ref().is_some_and(|explain| !explain.analyze);
    let frame = match (calls.is_empty(), shown) {
        (true, _) => session.frame().await?,
        (false, true) => {
            let frame = session.frame().await?;
            call::register_empty(&frame, &calls).await?;
            frame
        }
        (false, false) => {
            let tables = call::run_all(session, &calls, &values).await?;
            let frame = session.frame().await?;
            call::register(&frame.ctx, tables);
            frame
        }
    };
    let names = Names::of(&ast);
    let again = Again::new(session, &frame, (&ast, &values));
    let plan = plan(&frame.ctx, ast).await?;
    let plan = bind(plan, values)?;
    if let Some(explain) = explain {
        return explain.run(&frame.ctx, &plan).await;
    }
    let mut stream = frame.ctx.execute_logical_plan(plan).await?.execute_stream().await?;
    // What functions gave was made for this statement, and some of them change something.
    if calls.is_empty() && frame.snapshot.view.is_none() {
        stream = again.guard(stream);
    }
    let stream = names.rename_stream(stream);
    Ok(Reply::Rows { schema: stream.schema(), stream, tag: "SELECT", counted: true })
}

/// Plans a statement that reads only.
pub(crate) async fn plan(ctx: &SessionContext, mut ast: Ast) -> Result<LogicalPlan, Error> {
    crate::pg_catalog::rewrite(&mut ast);
    let state = ctx.state();
    Ok(state.statement_to_plan(DfStatement::Statement(Box::new(ast))).await?)
}

/// Puts the values in place of the parameters.
pub(crate) fn bind(plan: LogicalPlan, values: Vec<ScalarValue>) -> Result<LogicalPlan, Error> {
    if values.is_empty() {
        let names = plan.get_parameter_names()?;
        return match names.into_iter().min() {
            Some(name) => Err(Error::of("42P02", format_args!("there is no parameter {name}"))),
            None => Ok(plan),
        };
    }
    Ok(plan.with_param_values(ParamValues::from(values))?)
}

/// Refuses what would change something although it looks like a query.
pub(crate) fn check(ast: &Ast) -> Result<(), Error> {
    let Ast::Query(query) = ast else {
        return Err(super::run::unsupported(ast));
    };
    if let SetExpr::Select(select) = query.body.as_ref()
        && select.into.is_some()
    {
        return Err(Error::unsupported("SELECT INTO"));
    }
    match query.body.as_ref() {
        SetExpr::Insert(_) | SetExpr::Update(_) | SetExpr::Delete(_) | SetExpr::Merge(_) => {
            Err(Error::unsupported("a statement that changes rows within WITH"))
        }
        _ if !query.locks.is_empty() => Err(Error::unsupported("SELECT … FOR UPDATE or FOR SHARE")),
        _ => Ok(()),
    }
}

/// How a plan is to be shown.
struct Explain {
    analyze: bool,
    verbose: bool,
}

/// Column of EXPLAIN.
pub(crate) fn explain_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("QUERY PLAN", DataType::Utf8, true)]))
}

impl Explain {
    fn of(ast: &Ast) -> Result<Option<Self>, Error> {
        let Ast::Explain { analyze, verbose, format, options, .. } = ast else { return Ok(None) };
        if let Some(format) = format {
            return Err(Error::unsupported(format_args!("EXPLAIN in format {format}")));
        }
        let mut explain = Self { analyze: *analyze, verbose: *verbose };
        for UtilityOption { name, arg } in options.iter().flatten() {
            let value = arg.as_ref().map(ToString::to_string);
            let on = value
                .as_deref()
                .is_none_or(|value| parse_bool(value.trim_matches('\'')).unwrap_or(true));
            match name.value.to_ascii_lowercase().as_str() {
                "analyze" => explain.analyze = on,
                "verbose" => explain.verbose = on,
                "costs" | "buffers" | "timing" | "summary" | "settings" | "wal" => {}
                "format"
                    if value.as_deref().is_some_and(|value| value.eq_ignore_ascii_case("text")) => {
                }
                other => {
                    return Err(Error::of(
                        "42601",
                        format_args!("unrecognized EXPLAIN option \"{other}\""),
                    ));
                }
            }
        }
        Ok(Some(explain))
    }

    async fn run(&self, ctx: &SessionContext, plan: &LogicalPlan) -> Result<Reply, Error> {
        let state = ctx.state();
        let plan: Arc<dyn ExecutionPlan> = state.create_physical_plan(plan).await?;
        if self.analyze {
            use futures::TryStreamExt as _;
            let mut stream = physical_plan::execute_stream(Arc::clone(&plan), state.task_ctx())?;
            while stream.try_next().await?.is_some() {}
        }
        let lines = explain_lines(plan.as_ref(), self.analyze, self.verbose);
        let lines: ArrayRef = Arc::new(StringArray::from(lines));
        Ok(rows(RecordBatch::try_new(explain_schema(), vec![lines])?, "EXPLAIN", false))
    }
}

/// Computes expressions that name no column.
pub(crate) async fn evaluate(
    ctx: &SessionContext,
    expressions: &[Expr],
    values: &[ScalarValue],
) -> Result<Vec<ScalarValue>, Error> {
    let mut results = Vec::with_capacity(expressions.len());
    for some in expressions.chunks(EVALUATED_AT_ONCE) {
        let plan = bind(plan(ctx, select_of(some)?).await?, values.to_vec())?;
        let batches = ctx.execute_logical_plan(plan).await?.collect().await?;
        let batch = batches
            .iter()
            .find(|batch| batch.num_rows() == 1)
            .ok_or_else(|| Error::of("XX000", "an expression gave no value"))?;
        for column in batch.columns() {
            results.push(ScalarValue::try_from_array(column, 0)?);
        }
    }
    Ok(results)
}

/// The query that computes expressions, each under a name of its own.
pub(crate) fn select_of(expressions: &[Expr]) -> Result<Ast, Error> {
    let mut ast = one_statement("SELECT 1")?;
    if let Ast::Query(query) = &mut ast
        && let SetExpr::Select(select) = query.body.as_mut()
    {
        let item = |(number, expr): (usize, &Expr)| SelectItem::ExprWithAlias {
            expr: expr.clone(),
            alias: ast::Ident::new(format!("c{number}")),
        };
        select.projection = expressions.iter().enumerate().map(item).collect();
    }
    Ok(ast)
}

/// Reads one statement.
pub(crate) fn one_statement(sql: &str) -> Result<Ast, Error> {
    let mut parser: Parser<'_> = super::parse::parser(sql)?;
    parser.parse_statement().map_err(|error| Error::syntax(&error, sql))
}

/// A value as one of that type.
pub(crate) fn assigned(
    value: &ScalarValue,
    wanted: ColumnType,
    zone: Zone,
) -> Result<ScalarValue, Error> {
    let column = Column::new("parameter", wanted);
    let array = assign(&value.to_array()?, &column, zone)?;
    Ok(ScalarValue::try_from_array(&array, 0)?)
}
