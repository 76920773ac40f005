//! Functions that queries of `pg_catalog` call. Catalogs are small, so that they work value by value.

use std::{
    hash::{Hash, Hasher},
    sync::Arc,
};

use arrow::datatypes::DataType;
use datafusion::{
    common::ScalarValue,
    error::Result,
    logical_expr::{
        ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, TypeSignature,
        Volatility,
    },
    prelude::SessionContext,
};
use hypertide_meta::Image;

use super::oid;
use crate::{
    functions::{as_text, differs_as_text},
    server::USER,
};

/// Makes the number of a relation out of its name: what `'name'::regclass` is rewritten to.
pub(super) const REGCLASS: &str = "pg_regclass_oid";
/// Makes the name of a relation out of its number: what `oid::regclass` is rewritten to.
pub(super) const REGCLASS_NAME: &str = "pg_regclass_name";

type Values<'a> = &'a [ScalarValue];

/// What a function does with the values of a row.
#[derive(Clone, Copy)]
enum Body {
    Text(fn(&Image, Values<'_>) -> Option<String>),
    Flag(fn(&Image, Values<'_>) -> Option<bool>),
    Number(fn(&Image, Values<'_>) -> Option<i64>),
    /// A text, of values that may be wrong.
    Checked(fn(&Image, Values<'_>) -> std::result::Result<Option<String>, crate::Error>),
}

/// The functions, by name.
const FUNCTIONS: &[(&str, Body)] = &[
    ("pg_table_is_visible", Body::Flag(table_is_visible)),
    ("pg_type_is_visible", Body::Flag(|_, _| Some(true))),
    ("pg_collation_is_visible", Body::Flag(|_, _| Some(true))),
    ("pg_function_is_visible", Body::Flag(|_, _| Some(true))),
    ("pg_relation_is_publishable", Body::Flag(|_, _| Some(false))),
    ("has_table_privilege", Body::Flag(|_, _| Some(true))),
    ("has_column_privilege", Body::Flag(|_, _| Some(true))),
    ("has_schema_privilege", Body::Flag(|_, _| Some(true))),
    ("has_database_privilege", Body::Flag(|_, _| Some(true))),
    ("has_function_privilege", Body::Flag(|_, _| Some(true))),
    ("has_any_column_privilege", Body::Flag(|_, _| Some(true))),
    ("pg_get_userbyid", Body::Text(userbyid)),
    ("format_type", Body::Text(format_type)),
    // The expression is kept as text.
    ("pg_get_expr", Body::Text(|_, values| text(values, 0))),
    ("pg_encoding_to_char", Body::Text(|_, _| Some("UTF8".to_owned()))),
    // Chunks are on data nodes, and their sizes are not in the catalog.
    ("pg_table_size", Body::Number(|_, _| None)),
    ("pg_relation_size", Body::Number(|_, _| None)),
    ("pg_total_relation_size", Body::Number(|_, _| None)),
    ("pg_database_size", Body::Number(|_, _| None)),
    ("pg_size_pretty", Body::Text(|_, values| number(values, 0).map(size_pretty))),
    ("quote_ident", Body::Text(|_, values| text(values, 0).map(|name| oid::quoted(&name)))),
    ("format", Body::Checked(super::format::format)),
    // Nothing locks here; pools of connections call it when a connection comes back.
    ("pg_advisory_unlock_all", Body::Text(|_, _| Some(String::new()))),
    ("obj_description", Body::Text(|_, _| None)),
    ("col_description", Body::Text(|_, _| None)),
    ("shobj_description", Body::Text(|_, _| None)),
    ("pg_get_constraintdef", Body::Text(constraint_definition)),
    ("pg_get_indexdef", Body::Text(index_definition)),
    ("pg_get_viewdef", Body::Text(|_, _| None)),
    ("pg_get_serial_sequence", Body::Text(|_, _| None)),
    ("pg_get_partkeydef", Body::Text(|_, _| None)),
    ("pg_tablespace_location", Body::Text(|_, _| Some(String::new()))),
    ("to_regclass", Body::Number(regclass)),
    ("to_regtype", Body::Number(|_, values| oid::of_type_name(text(values, 0)?.trim()))),
    (REGCLASS, Body::Number(regclass)),
    (REGCLASS_NAME, Body::Text(regclass_name)),
];

fn constraint_definition(image: &Image, values: Values<'_>) -> Option<String> {
    let (table, key) = oid::key(image, number(values, 0)?)?;
    Some(oid::constraint_definition(table, key))
}

fn index_definition(image: &Image, values: Values<'_>) -> Option<String> {
    let (table, key) = oid::key(image, number(values, 0)?)?;
    Some(oid::index_definition(table, key))
}

/// Gives a context the functions.
pub(super) fn register(ctx: &SessionContext, image: &Arc<Image>) {
    for (name, body) in FUNCTIONS {
        ctx.register_udf(ScalarUDF::from(PgFunction::new(name, *body, Arc::clone(image))));
    }
}

/// Whether a function is one of these, which have an access node's catalog image.
pub(crate) fn reads_catalog(function: &ScalarUDF) -> bool {
    function.inner().downcast_ref::<PgFunction>().is_some()
}

/// One of the functions, over a catalog image.
struct PgFunction {
    name: &'static str,
    body: Body,
    image: Arc<Image>,
    signature: Signature,
}

impl PgFunction {
    fn new(name: &'static str, body: Body, image: Arc<Image>) -> Self {
        let any = vec![TypeSignature::Nullary, TypeSignature::VariadicAny];
        let signature = Signature::one_of(any, Volatility::Stable);
        Self { name, body, image, signature }
    }
}

impl std::fmt::Debug for PgFunction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

impl PartialEq for PgFunction {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name && Arc::ptr_eq(&self.image, &other.image)
    }
}

impl Eq for PgFunction {}

impl Hash for PgFunction {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name.hash(state);
    }
}

impl ScalarUDFImpl for PgFunction {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arguments: &[DataType]) -> Result<DataType> {
        Ok(match self.body {
            Body::Text(_) | Body::Checked(_) => DataType::Utf8,
            Body::Flag(_) => DataType::Boolean,
            Body::Number(_) => DataType::Int64,
        })
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let all_scalar =
            arguments.args.iter().all(|value| matches!(value, ColumnarValue::Scalar(_)));
        let rows = if all_scalar { 1 } else { arguments.number_rows };
        let read = |value: &ColumnarValue| {
            let array = value.to_array(rows)?;
            Ok(match differs_as_text(array.data_type()) {
                true => as_text(&array, &arguments.config_options),
                false => array,
            })
        };
        let arrays = arguments.args.iter().map(read).collect::<Result<Vec<_>>>()?;
        let mut results = Vec::with_capacity(rows);
        for row in 0..rows {
            let values = arrays.iter().map(|array| ScalarValue::try_from_array(array, row));
            results.push(self.apply(&values.collect::<Result<Vec<_>>>()?)?);
        }
        match results.pop() {
            Some(only) if all_scalar => Ok(ColumnarValue::Scalar(only)),
            last => {
                results.extend(last);
                if results.is_empty() {
                    let data_type = self.return_type(&[])?;
                    return Ok(ColumnarValue::Array(arrow::array::new_empty_array(&data_type)));
                }
                Ok(ColumnarValue::Array(ScalarValue::iter_to_array(results)?))
            }
        }
    }
}

impl PgFunction {
    fn apply(&self, values: Values<'_>) -> Result<ScalarValue> {
        Ok(match self.body {
            Body::Text(body) => ScalarValue::Utf8(body(&self.image, values)),
            Body::Flag(body) => ScalarValue::Boolean(body(&self.image, values)),
            Body::Number(body) => ScalarValue::Int64(body(&self.image, values)),
            Body::Checked(body) => ScalarValue::Utf8(body(&self.image, values)?),
        })
    }
}

fn number(values: Values<'_>, at: usize) -> Option<i64> {
    match values.get(at)?.cast_to(&DataType::Int64) {
        Ok(ScalarValue::Int64(value)) => value,
        _ => None,
    }
}

pub(super) fn text(values: Values<'_>, at: usize) -> Option<String> {
    match values.get(at)?.cast_to(&DataType::Utf8) {
        Ok(ScalarValue::Utf8(value)) => value,
        _ => None,
    }
}

/// A number of bytes in the largest unit in which it has at least ten.
fn size_pretty(bytes: i64) -> String {
    const STEP: i64 = 1024;
    let mut size = bytes;
    for unit in ["bytes", "kB", "MB", "GB", "TB"] {
        if size.abs() < 10 * STEP || unit == "TB" {
            return format!("{size} {unit}");
        }
        size = (size + STEP / 2) / STEP;
    }
    format!("{bytes} bytes")
}

fn table_is_visible(image: &Image, values: Values<'_>) -> Option<bool> {
    let oid = number(values, 0)?;
    let table = oid::table(image, oid).or_else(|| oid::key(image, oid).map(|(table, _)| table));
    table.map(oid::visible)
}

fn userbyid(_: &Image, values: Values<'_>) -> Option<String> {
    Some(match number(values, 0)? {
        oid::ROLE => USER.to_owned(),
        other => format!("unknown (OID={other})"),
    })
}

fn format_type(_: &Image, values: Values<'_>) -> Option<String> {
    Some(oid::format_type(number(values, 0)?, number(values, 1)))
}

fn regclass(image: &Image, values: Values<'_>) -> Option<i64> {
    oid::of_name(image, &text(values, 0)?)
}

fn regclass_name(image: &Image, values: Values<'_>) -> Option<String> {
    let oid = number(values, 0)?;
    Some(oid::name(image, oid).unwrap_or_else(|| oid.to_string()))
}
