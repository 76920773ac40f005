//! `x::text` as PostgreSQL writes it: `2026-01-02 00:35:30+00`, `631`, `\xdead`, where arrow's cast has its own forms.

use std::sync::{Arc, LazyLock};

use arrow::{
    array::{Array, ArrayRef, StringBuilder},
    datatypes::DataType,
};
use datafusion::{
    common::{ScalarValue, config::ConfigOptions},
    error::Result,
    logical_expr::{
        ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
    },
};

use crate::{
    context::session_zone,
    sql::text::{TextColumn, TextStyle},
};

/// Bytes of a text, about.
const TEXT_BYTES: usize = 24;

static FUNCTION: LazyLock<Arc<ScalarUDF>> =
    LazyLock::new(|| Arc::new(ScalarUDF::from(ToText::new())));

/// The function; casts are rewritten to it.
pub(crate) fn to_text() -> Arc<ScalarUDF> {
    Arc::clone(&FUNCTION)
}

/// Whether arrow writes values of a type otherwise than PostgreSQL.
pub(crate) fn differs_as_text(data_type: &DataType) -> bool {
    use DataType::*;
    matches!(
        data_type,
        Float16
            | Float32
            | Float64
            | Decimal128(..)
            | Decimal256(..)
            | Timestamp(..)
            | Time64(_)
            | Interval(_)
            | Duration(_)
            | Binary
            | LargeBinary
            | BinaryView
            | List(_)
            | LargeList(_)
            | Struct(_)
    )
}

/// The values as PostgreSQL writes them, in the time zone of the configuration.
pub(crate) fn as_text(array: &ArrayRef, config: &ConfigOptions) -> ArrayRef {
    let style = TextStyle { zone: session_zone(config), ..TextStyle::default() };
    let column = TextColumn::new(array, style);
    let bytes = array.len().saturating_mul(TEXT_BYTES);
    let mut texts = StringBuilder::with_capacity(array.len(), bytes);
    let mut text = Vec::new();
    for row in 0..array.len() {
        text.clear();
        match column.write(row, &mut text) {
            true => texts.append_value(String::from_utf8_lossy(&text)),
            false => texts.append_null(),
        }
    }
    Arc::new(texts.finish())
}

/// A value of any type as text, in the session's time zone.
#[derive(Debug, PartialEq, Eq, Hash)]
struct ToText {
    signature: Signature,
}

impl ToText {
    fn new() -> Self {
        Self { signature: Signature::any(1, Volatility::Stable) }
    }
}

impl ScalarUDFImpl for ToText {
    fn name(&self) -> &str {
        "hypertide_text"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _types: &[DataType]) -> Result<DataType> {
        Ok(DataType::Utf8)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let scalar = args.args.iter().all(|value| matches!(value, ColumnarValue::Scalar(_)));
        let arrays = ColumnarValue::values_to_arrays(&args.args)?;
        let [array] = arrays.as_slice() else {
            return datafusion::common::internal_err!("{} takes one value", self.name());
        };
        let texts = as_text(array, &args.config_options);
        match scalar {
            true => ScalarValue::try_from_array(&texts, 0).map(ColumnarValue::Scalar),
            false => Ok(ColumnarValue::Array(texts)),
        }
    }
}
