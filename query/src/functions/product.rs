//! `version()` and `current_database()`: what clients ask first.

use datafusion::{
    arrow::datatypes::DataType,
    common::ScalarValue,
    error::Result,
    logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDFImpl, Signature, Volatility},
};

use crate::catalog::CATALOG;

/// A function without arguments that gives one text.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Product {
    name: &'static str,
    value: String,
    signature: Signature,
}

impl Product {
    /// `version()`. Drivers read the number of the PostgreSQL version that they speak to.
    pub(super) fn version() -> Self {
        let value = format!("PostgreSQL 16.0 (Hypertide {})", env!("CARGO_PKG_VERSION"));
        Self::new("version", value)
    }

    /// `current_database()`.
    pub(super) fn current_database() -> Self {
        Self::new("current_database", CATALOG.to_owned())
    }

    fn new(name: &'static str, value: String) -> Self {
        Self { name, value, signature: Signature::nullary(Volatility::Immutable) }
    }
}

impl ScalarUDFImpl for Product {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _types: &[DataType]) -> Result<DataType> {
        Ok(DataType::Utf8)
    }

    fn invoke_with_args(&self, _args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        Ok(ColumnarValue::Scalar(ScalarValue::Utf8(Some(self.value.clone()))))
    }
}
