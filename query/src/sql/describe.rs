//! What a statement takes and gives, found out without running it.

use std::{collections::HashMap, ops::ControlFlow};

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::{
    logical_expr::LogicalPlan,
    sql::sqlparser::ast::{Expr, Statement as Ast, Value, visit_expressions},
};
use hypertide_proto::schema::ColumnType;

use super::{
    call,
    change::{self, Change},
    insert,
    names::Names,
    parse::{Statement, table_name},
    query, run,
    types::column_type,
};
use crate::{Error, Session, session::Frame};

/// Types of the parameters, and the columns of the result if it has one.
pub(crate) type Description = (Vec<ColumnType>, Option<SchemaRef>);

/// Most parameters of a statement, as in PostgreSQL's protocol.
const PARAMETERS_MAX: usize = 65_535;

/// Describes a statement.
pub(crate) async fn describe(
    session: &mut Session,
    statement: &Statement,
    sql: &str,
    hints: &[Option<ColumnType>],
) -> Result<Description, Error> {
    let ast = match statement {
        Statement::Show(name) => return Ok((Vec::new(), Some(run::show_schema(name.as_deref())))),
        Statement::Sql(ast) => ast.as_ref(),
        _ => return Ok((Vec::new(), None)),
    };
    match ast {
        Ast::Query(_) | Ast::Explain { .. } | Ast::Insert(_) => {}
        Ast::Delete(_) | Ast::Update(_) => {}
        Ast::Execute { name: Some(name), .. } => {
            let name = table_name(name)?.1;
            let inner = session.named.get(&name).ok_or_else(|| run::no_prepared(&name))?;
            return Ok((Vec::new(), inner.columns.clone()));
        }
        _ => return Ok((Vec::new(), None)),
    }
    // The catalog as it is known here is mostly good enough to plan with; if a name is not in it, it may be new.
    let near = session.near_snapshot();
    let frame = session.frame_of(near)?;
    let hints = &with_casts(ast, hints);
    match plan(&frame, ast, hints).await {
        Err(error) if error.state.0.starts_with("42") => {
            let frame = session.frame().await?;
            plan(&frame, ast, hints).await.map_err(|error| error.at(sql))
        }
        result => result,
    }
}

async fn plan(
    frame: &Frame,
    ast: &Ast,
    hints: &[Option<ColumnType>],
) -> Result<Description, Error> {
    match ast {
        Ast::Insert(statement) => insert::describe(frame, statement, hints).await,
        Ast::Delete(delete) => {
            Box::pin(change::describe(frame, &Change::of_delete(delete)?, hints)).await
        }
        Ast::Update(update) => {
            Box::pin(change::describe(frame, &Change::of_update(update)?, hints)).await
        }
        Ast::Explain { statement, .. } => {
            let (parameters, _) = Box::pin(plan(frame, statement, hints)).await?;
            Ok((parameters, Some(query::explain_schema())))
        }
        _ => {
            query::check(ast)?;
            let mut ast = ast.clone();
            let calls = call::take(&mut ast)?;
            call::register_empty(frame, &calls).await?;
            let names = Names::of(&ast);
            let plan = query::plan(&frame.ctx, ast).await?;
            let mut types = types_of(&plan)?;
            call::add_parameters(&calls, &mut types);
            Ok((parameters(types, hints)?, Some(names.rename(&columns_of(&plan)))))
        }
    }
}

/// The types that clients declared, and those of parameters that are cast where they stand: `$1::integer`.
fn with_casts(ast: &Ast, hints: &[Option<ColumnType>]) -> Vec<Option<ColumnType>> {
    let mut types = hints.to_vec();
    let _ = visit_expressions(ast, |expr| {
        if let Expr::Cast { expr, data_type, .. } = expr
            && let Expr::Value(value) = expr.as_ref()
            && let Value::Placeholder(name) = &value.value
            && let Some(number) = name.strip_prefix('$').and_then(|number| number.parse().ok())
            && let Some(at) = usize::checked_sub(number, 1).filter(|at| *at < PARAMETERS_MAX)
            && let Ok(column_type) = column_type(data_type)
        {
            if types.len() <= at {
                types.resize(at + 1, None);
            }
            if let Some(place) = types.get_mut(at) {
                place.get_or_insert(column_type);
            }
        }
        ControlFlow::<()>::Continue(())
    });
    types
}

/// The columns that a plan gives.
pub(crate) fn columns_of(plan: &LogicalPlan) -> SchemaRef {
    let fields: Vec<Field> =
        plan.schema().fields().iter().map(|field| field.as_ref().clone()).collect();
    // A column whose type only a parameter's value decides is text.
    let fields = fields.into_iter().map(|field| match field.data_type() {
        DataType::Null => field.with_data_type(DataType::Utf8),
        _ => field,
    });
    Schema::new(fields.collect::<Vec<_>>()).into()
}

/// The types that the parameters of a plan have in it, by number from 0.
pub(crate) fn types_of(plan: &LogicalPlan) -> Result<HashMap<usize, Option<ColumnType>>, Error> {
    let mut types = HashMap::new();
    for (name, data_type) in plan.get_parameter_types()? {
        let number = name.strip_prefix('$').and_then(|number| number.parse::<usize>().ok());
        let number = number
            .and_then(|number| number.checked_sub(1))
            .filter(|number| *number < PARAMETERS_MAX);
        let number = number
            .ok_or_else(|| Error::of("42P02", format_args!("there is no parameter {name}")))?;
        types.insert(number, data_type.as_ref().and_then(ColumnType::from_arrow));
    }
    Ok(types)
}

/// All parameters in their order: as declared, else as inferred, else text.
pub(crate) fn parameters(
    types: HashMap<usize, Option<ColumnType>>,
    hints: &[Option<ColumnType>],
) -> Result<Vec<ColumnType>, Error> {
    let count = types.keys().map(|number| number + 1).max().unwrap_or(0).max(hints.len());
    let parameter = |number: usize| {
        let hint = hints.get(number).copied().flatten();
        hint.or_else(|| types.get(&number).copied().flatten()).unwrap_or(ColumnType::Text)
    };
    Ok((0..count).map(parameter).collect())
}
