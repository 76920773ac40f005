//! Functions that change or list what the catalog holds: `SELECT f(…)` and `SELECT … FROM f(…)`.
//!
//! They are run before the query they stand in is planned, and their rows take their place in it as a table function
//! without arguments. So they can be filtered, joined and counted like any other rows.

use std::{collections::HashMap, fmt, ops::ControlFlow, sync::Arc};

use arrow::{
    array::{ArrayRef, RecordBatch, StringBuilder, StructArray},
    datatypes::{DataType, Field, Schema, SchemaRef},
};
use datafusion::{
    catalog::{TableFunctionImpl, TableProvider},
    common::ScalarValue,
    datasource::MemTable,
    error::Result as DfResult,
    prelude::SessionContext,
    sql::sqlparser::ast::{
        DataType as SqlType, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArguments,
        Ident, ObjectName, Query, SelectItem, SetExpr, Statement as Ast, TableAlias, TableFactor,
        TableFunctionArgs, TableWithJoins, Value, ValueWithSpan, VisitMut, visit_expressions_mut,
    },
};
use hypertide_proto::schema::ColumnType;

use super::{
    call_over::{Over, take_over},
    hypertable, parse, query,
    registry::Name,
    text::{TextColumn, TextStyle},
};
use crate::{Error, Reply, Session, session::Frame};

/// A call, taken out of its query.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    name: Name,
    /// Under which its rows are found.
    table: String,
    /// Its arguments by the names of the parameters.
    pub(crate) arguments: Vec<(&'static str, Expr)>,
    /// Name of its one column: a row is shown as a record in it.
    record: Option<String>,
}

/// What was taken out of a query.
#[derive(Clone, Debug)]
pub(crate) enum Taken {
    /// A call.
    Once(Call),
    /// Calls for the rows of a query, and under which name their rows are found.
    Over(String, Box<Over>),
}

/// Values of arguments by the names of the parameters.
#[derive(Debug)]
pub(crate) struct Arguments {
    values: HashMap<&'static str, ScalarValue>,
    /// Arguments that are calls themselves: `by_range('time')`.
    pub(crate) inner: HashMap<&'static str, Expr>,
}

impl Arguments {
    /// Arguments of which none is a call itself.
    pub(crate) fn new(values: HashMap<&'static str, ScalarValue>) -> Self {
        Self { values, inner: HashMap::new() }
    }

    /// The value, unless it is NULL or not given.
    pub(crate) fn get(&self, name: &str) -> Option<&ScalarValue> {
        self.values.get(name).filter(|value| !value.is_null())
    }

    /// Whether it was given, be it as NULL.
    pub(crate) fn given(&self, name: &str) -> bool {
        self.values.contains_key(name)
    }

    /// A text.
    pub(crate) fn text(&self, name: &str) -> Result<Option<String>, Error> {
        let Some(value) = self.get(name) else { return Ok(None) };
        match value.try_as_str().flatten() {
            Some(text) => Ok(Some(text.to_owned())),
            None => Err(wrong_type(name, "text", value)),
        }
    }

    /// A boolean.
    pub(crate) fn bool(&self, name: &str) -> Result<Option<bool>, Error> {
        match self.get(name) {
            None => Ok(None),
            Some(ScalarValue::Boolean(value)) => Ok(*value),
            Some(value) => {
                let text = value.try_as_str().flatten();
                text.and_then(crate::settings::parse_bool)
                    .map(Some)
                    .ok_or_else(|| wrong_type(name, "boolean", value))
            }
        }
    }

    /// An integer.
    pub(crate) fn int(&self, name: &str) -> Result<Option<i64>, Error> {
        let Some(value) = self.get(name) else { return Ok(None) };
        match value.cast_to(&DataType::Int64) {
            Ok(ScalarValue::Int64(Some(number))) if !matches!(value, ScalarValue::Float64(_)) => {
                Ok(Some(number))
            }
            _ => Err(wrong_type(name, "integer", value)),
        }
    }
}

fn wrong_type(name: &str, wanted: &str, value: &ScalarValue) -> Error {
    let found = ColumnType::from_arrow(&value.data_type());
    let found = found.map_or_else(|| value.data_type().to_string(), |found| found.to_string());
    Error::of("42804", format_args!("argument {name} must be of type {wanted}, not {found}"))
}

/// Takes the calls out of a query and puts references to their rows in their place.
pub(crate) fn take(ast: &mut Ast) -> Result<Vec<Taken>, Error> {
    let mut calls = Vec::new();
    if let Ast::Query(query) = ast {
        take_query(query, &mut calls)?;
    }
    Ok(calls)
}

fn take_query(query: &mut Query, calls: &mut Vec<Taken>) -> Result<(), Error> {
    for cte in query.with.iter_mut().flat_map(|with| &mut with.cte_tables) {
        take_query(&mut cte.query, calls)?;
    }
    let SetExpr::Select(select) = query.body.as_mut() else { return Ok(()) };
    take_subqueries(&mut select.projection, calls)?;
    take_subqueries(&mut select.selection, calls)?;
    for from in &mut select.from {
        take_factor(&mut from.relation, calls)?;
        for join in &mut from.joins {
            take_factor(&mut join.relation, calls)?;
        }
    }
    if !select.from.is_empty() {
        let table = table_name(calls.len());
        let over = take_over(query, &table)?;
        calls.extend(over.map(|over| Taken::Over(table, Box::new(over))));
        return Ok(());
    }
    let [item] = select.projection.as_slice() else {
        for item in &mut select.projection {
            take_item(item, calls)?;
        }
        return Ok(());
    };
    let Some((name, arguments, alias)) = called(item) else {
        return select.projection.iter_mut().try_for_each(|item| take_nested(item, calls));
    };
    let column = alias.unwrap_or_else(|| name.text().to_owned());
    let call = Call::new(name, arguments, calls.len(), Some(column.clone()))?;
    select.from = vec![TableWithJoins {
        relation: table_factor(&call.table, name.text()),
        joins: Vec::new(),
    }];
    select.projection =
        vec![SelectItem::UnnamedExpr(Expr::Identifier(Ident::with_quote('"', column)))];
    calls.push(Taken::Once(call));
    Ok(())
}

/// Takes the calls out of the queries within expressions.
fn take_subqueries(within: &mut impl VisitMut, calls: &mut Vec<Taken>) -> Result<(), Error> {
    let found = visit_expressions_mut(within, |expr| {
        let query = match expr {
            Expr::Subquery(query) => query,
            Expr::Exists { subquery, .. } | Expr::InSubquery { subquery, .. } => subquery,
            _ => return ControlFlow::Continue(()),
        };
        match take_query(query, calls) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => ControlFlow::Break(error),
        }
    });
    found.break_value().map_or(Ok(()), Err)
}

/// Under which the rows of the call of this number are found.
fn table_name(number: usize) -> String {
    format!("__call_{number}")
}

/// The function of this kind that an item of a select list calls, with its arguments and the alias.
fn called(item: &SelectItem) -> Option<(Name, &[FunctionArg], Option<String>)> {
    let (expr, alias) = match item {
        SelectItem::UnnamedExpr(expr) => (expr, None),
        SelectItem::ExprWithAlias { expr, alias } => (expr, Some(parse::fold(alias))),
        _ => return None,
    };
    let Expr::Function(function) = expr else { return None };
    let arguments = match &function.args {
        FunctionArguments::List(list) => list.args.as_slice(),
        _ => &[],
    };
    Some((Name::of(&function.name)?, arguments, alias))
}

/// Takes calls that stand within expressions: the one row of each becomes a subquery.
fn take_nested(item: &mut SelectItem, calls: &mut Vec<Taken>) -> Result<(), Error> {
    let found = visit_expressions_mut(item, |expr| {
        let taken = match expr {
            Expr::Function(function) => {
                Name::of(&function.name).map(|name| subquery(name, expr, calls))
            }
            _ => None,
        };
        match taken.transpose() {
            Ok(None) => return ControlFlow::Continue(()),
            Ok(Some(query)) => *expr = Expr::Subquery(Box::new(query)),
            Err(error) => return ControlFlow::Break(error),
        }
        ControlFlow::Continue(())
    });
    found.break_value().map_or(Ok(()), Err)
}

/// The query of the one value of a call.
fn subquery(name: Name, expr: &Expr, calls: &mut Vec<Taken>) -> Result<Query, Error> {
    let column = name.text().to_owned();
    let (number, arguments) = (calls.len(), arguments_of(name, expr)?);
    let call = Call { name, table: table_name(number), arguments, record: Some(column.clone()) };
    let query = one_column(&call, &column)?;
    calls.push(Taken::Once(call));
    Ok(query)
}

/// Takes a call that stands beside others in a select list: its one row becomes a subquery.
fn take_item(item: &mut SelectItem, calls: &mut Vec<Taken>) -> Result<(), Error> {
    let Some((name, arguments, alias)) = called(item) else { return take_nested(item, calls) };
    let column = alias.unwrap_or_else(|| name.text().to_owned());
    let call = Call::new(name, arguments, calls.len(), Some(column.clone()))?;
    let query = one_column(&call, &column)?;
    *item = SelectItem::ExprWithAlias {
        expr: Expr::Subquery(Box::new(query)),
        alias: Ident::with_quote('"', column),
    };
    calls.push(Taken::Once(call));
    Ok(())
}

/// The query of the one column of a call.
fn one_column(call: &Call, column: &str) -> Result<Query, Error> {
    let row = query::select_of(&[Expr::Identifier(Ident::with_quote('"', column))])?;
    let Ast::Query(mut query) = row else {
        return Err(Error::of("XX000", "a query is none"));
    };
    if let SetExpr::Select(select) = query.body.as_mut() {
        let relation = table_factor(&call.table, call.name.text());
        select.from = vec![TableWithJoins { relation, joins: Vec::new() }];
    }
    Ok(*query)
}

fn take_factor(factor: &mut TableFactor, calls: &mut Vec<Taken>) -> Result<(), Error> {
    let (name, arguments, alias) = match factor {
        TableFactor::Table { name, args: Some(arguments), alias, .. } => {
            (name, &arguments.args, alias)
        }
        TableFactor::Function { name, args, alias, .. } => (name, &*args, alias),
        TableFactor::Derived { subquery, .. } => return take_query(subquery, calls),
        _ => return Ok(()),
    };
    let Some(name) = Name::of(name) else { return Ok(()) };
    // A function of one column gives it the alias, as in PostgreSQL.
    let single = name.columns().len() == 1;
    let column = match alias {
        Some(alias) if alias.columns.is_empty() => parse::fold(&alias.name),
        _ => name.text().to_owned(),
    };
    let call = Call::new(name, arguments, calls.len(), single.then_some(column))?;
    let alias = alias.clone();
    *factor = table_factor(&call.table, name.text());
    if let (TableFactor::Table { alias: place, .. }, Some(alias)) = (factor, alias) {
        *place = Some(alias);
    }
    calls.push(Taken::Once(call));
    Ok(())
}

/// A reference to rows that [`register`] makes known, under an alias.
pub(crate) fn table_factor(name: &str, alias: &str) -> TableFactor {
    TableFactor::Table {
        name: ObjectName::from(vec![Ident::new(name)]),
        alias: Some(TableAlias {
            explicit: true,
            name: Ident::with_quote('"', alias),
            columns: Vec::new(),
            at: None,
        }),
        args: Some(TableFunctionArgs { args: Vec::new(), settings: None }),
        with_hints: Vec::new(),
        version: None,
        with_ordinality: false,
        partitions: Vec::new(),
        json_path: None,
        sample: None,
        index_hints: Vec::new(),
    }
}

impl Call {
    fn new(
        name: Name,
        given: &[FunctionArg],
        number: usize,
        record: Option<String>,
    ) -> Result<Self, Error> {
        let arguments = named_arguments(name, given)?;
        Ok(Self { name, table: table_name(number), arguments, record })
    }

    fn schema(&self) -> SchemaRef {
        let mut fields = self.name.columns();
        if let Some(column) = &self.record {
            fields = match fields.as_slice() {
                [single] => vec![single.clone().with_name(column)],
                _ => vec![Field::new(column, DataType::Utf8, true)],
            };
        }
        Arc::new(Schema::new(fields))
    }

    async fn run(
        &self,
        session: &mut Session,
        values: &[ScalarValue],
    ) -> Result<RecordBatch, Error> {
        let mut inner = HashMap::new();
        let mut plain = Vec::new();
        for (name, expr) in &self.arguments {
            match expr {
                Expr::Function(function) if hypertable::is_builder(&function.name) => {
                    inner.insert(*name, expr.clone());
                }
                _ => plain.push((*name, expr.clone())),
            }
        }
        let frame = session.frame().await?;
        let expressions: Vec<Expr> = plain.iter().map(|(_, expr)| expr.clone()).collect();
        let computed = query::evaluate(&frame.ctx, &expressions, values).await?;
        let values = plain.into_iter().map(|(name, _)| name).zip(computed).collect();
        let arguments = Arguments { values, inner };
        let columns = self.name.run(session, &frame, arguments).await?;
        let batch = RecordBatch::try_new(Arc::new(Schema::new(self.name.columns())), columns)?;
        match &self.record {
            Some(_) => as_records(batch, self.schema()),
            None => Ok(batch),
        }
    }
}

/// The arguments of a call, with the names of their parameters.
fn named_arguments(name: Name, given: &[FunctionArg]) -> Result<Vec<(&'static str, Expr)>, Error> {
    let parameters = name.parameters();
    let mut arguments: Vec<(&'static str, Expr)> = Vec::with_capacity(given.len());
    for (position, argument) in given.iter().enumerate() {
        let (parameter, value) = match argument {
            FunctionArg::Unnamed(arg) => {
                let known = parameters.get(position).copied();
                (known.ok_or_else(|| no_such(name, &format!("argument {}", position + 1)))?, arg)
            }
            FunctionArg::Named { name: named, arg, .. }
            | FunctionArg::ExprNamed { name: Expr::Identifier(named), arg, .. } => {
                let wanted = parse::fold(named);
                let known = parameters.iter().find(|parameter| **parameter == wanted);
                (known.copied().ok_or_else(|| no_such(name, &wanted))?, arg)
            }
            FunctionArg::ExprNamed { .. } => return Err(no_such(name, &argument.to_string())),
        };
        let FunctionArgExpr::Expr(value) = value else { return Err(no_such(name, "*")) };
        if arguments.iter().any(|(known, _)| *known == parameter) {
            return Err(Error::of(
                "42601",
                format_args!("argument name \"{parameter}\" used more than once"),
            ));
        }
        arguments.push((parameter, name_itself(value).clone()));
    }
    Ok(arguments)
}

/// `'t'::regclass` is the name as well: functions look it up themselves, those of chunks too.
fn name_itself(value: &Expr) -> &Expr {
    match value {
        Expr::Cast { expr, data_type: SqlType::Regclass, .. } => expr,
        other => other,
    }
}

/// The arguments of a function, with the names of their parameters.
pub(crate) fn arguments_of(name: Name, expr: &Expr) -> Result<Vec<(&'static str, Expr)>, Error> {
    match expr {
        Expr::Function(Function { args: FunctionArguments::List(list), .. }) => {
            named_arguments(name, &list.args)
        }
        _ => Ok(Vec::new()),
    }
}

/// CALL: runs a function of this kind for what it does.
pub(crate) async fn procedure(
    session: &mut Session,
    function: &Function,
    values: &[ScalarValue],
) -> Result<Reply, Error> {
    let unknown = || Error::of("42883", format_args!("procedure {} does not exist", function.name));
    let name = Name::of(&function.name).ok_or_else(unknown)?;
    let arguments = match &function.args {
        FunctionArguments::List(list) => list.args.as_slice(),
        _ => &[],
    };
    Call::new(name, arguments, 0, None)?.run(session, values).await?;
    Ok(Reply::Done("CALL".into()))
}

/// Rows as texts of one column: the value itself when there is one column, else `(a,b)`.
fn as_records(batch: RecordBatch, schema: SchemaRef) -> Result<RecordBatch, Error> {
    if batch.num_columns() == 1 {
        return Ok(RecordBatch::try_new(schema, batch.columns().to_vec())?);
    }
    let rows = batch.num_rows();
    let records: ArrayRef = Arc::new(StructArray::from(batch));
    let column = TextColumn::new(&records, TextStyle::default());
    let mut texts = StringBuilder::new();
    for row in 0..rows {
        let mut out = Vec::new();
        column.write(row, &mut out);
        texts.append_value(String::from_utf8_lossy(&out));
    }
    Ok(RecordBatch::try_new(schema, vec![Arc::new(texts.finish())])?)
}

fn no_such(name: Name, argument: &str) -> Error {
    let message = format_args!("function {} has no parameter \"{argument}\"", name.text());
    Error::of("42883", message)
        .with_hint(format_args!("Its parameters are: {}.", name.parameters().join(", ")))
}

/// `set_config`.
pub(crate) fn set_config(
    session: &mut Session,
    arguments: &Arguments,
) -> Result<Vec<ArrayRef>, Error> {
    let name = arguments
        .text("setting_name")?
        .ok_or_else(|| Error::of("22004", "SET requires parameter name"))?;
    let scope = match arguments.bool("is_local")? {
        Some(true) => crate::settings::Scope::Local,
        _ => crate::settings::Scope::Session,
    };
    match arguments.text("new_value")? {
        Some(value) => session.settings.set(&name, &value, scope)?,
        None => session.settings.reset(&name)?,
    }
    let value = session.settings.show(&name)?.to_owned();
    Ok(vec![Arc::new(arrow::array::StringArray::from(vec![value]))])
}

/// Rows under the name by which a query refers to them.
pub(crate) type Tables = Vec<(String, Arc<MemTable>)>;

/// Runs calls in their order.
pub(crate) async fn run_all(
    session: &mut Session,
    calls: &[Taken],
    values: &[ScalarValue],
) -> Result<Tables, Error> {
    let mut tables = Vec::with_capacity(calls.len());
    for call in calls {
        let (table, batch) = match call {
            Taken::Once(call) => (&call.table, call.run(session, values).await?),
            Taken::Over(table, over) => (table, over.run(session, &tables, values).await?),
        };
        let rows = MemTable::try_new(batch.schema(), vec![vec![batch]])?;
        tables.push((table.clone(), Arc::new(rows)));
    }
    Ok(tables)
}

/// Makes the rows of calls known that are only described: none.
pub(crate) async fn register_empty(frame: &Frame, calls: &[Taken]) -> Result<(), Error> {
    for call in calls {
        let (table, schema) = match call {
            Taken::Once(call) => (&call.table, call.schema()),
            Taken::Over(table, over) => (table, over.schema(frame).await?),
        };
        let rows = MemTable::try_new(schema, vec![Vec::new()])?;
        register(&frame.ctx, vec![(table.clone(), Arc::new(rows))]);
    }
    Ok(())
}

/// Parameters of the statement that stand in arguments.
pub(crate) fn add_parameters(calls: &[Taken], types: &mut HashMap<usize, Option<ColumnType>>) {
    for name in calls.iter().flat_map(placeholders) {
        let number = name.strip_prefix('$').and_then(|number| number.parse::<usize>().ok());
        if let Some(number) = number.and_then(|number| number.checked_sub(1)) {
            types.entry(number).or_insert(None);
        }
    }
}

fn placeholders(call: &Taken) -> Vec<String> {
    let call = match call {
        Taken::Once(call) => call,
        Taken::Over(_, over) => return over.parameters(),
    };
    let of = |expr: &Expr| match expr {
        Expr::Value(ValueWithSpan { value: Value::Placeholder(name), .. }) => Some(name.clone()),
        _ => None,
    };
    call.arguments.iter().filter_map(|(_, expr)| of(expr)).collect()
}

/// Makes rows known to a statement.
pub(crate) fn register(ctx: &SessionContext, tables: Tables) {
    for (name, table) in tables {
        ctx.register_udtf(&name, Arc::new(Rows(table)));
    }
}

/// A table function that gives rows that are there already.
struct Rows(Arc<MemTable>);

impl fmt::Debug for Rows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Rows")
    }
}

impl TableFunctionImpl for Rows {
    fn call(
        &self,
        _arguments: &[datafusion::logical_expr::Expr],
    ) -> DfResult<Arc<dyn TableProvider>> {
        let table: Arc<MemTable> = Arc::clone(&self.0);
        Ok(table)
    }
}
