//! `now()`: when the statement began, as a constant that the planner puts in.
//!
//! It is folded at the access node before chunks are chosen, so that it excludes chunks and is the same on every node.
//! DataFusion's own gives nanoseconds, which no column has: comparing would cast the column.

use datafusion::{
    arrow::datatypes::{DataType, TimeUnit},
    common::{ScalarValue, internal_err},
    error::Result,
    logical_expr::{
        ColumnarValue, Expr, ScalarFunctionArgs, ScalarUDFImpl, Signature, Volatility,
        simplify::{ExprSimplifyResult, SimplifyContext},
    },
};
use hypertide_proto::schema::UTC;

/// The function.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Now {
    signature: Signature,
    aliases: Vec<String>,
}

impl Now {
    /// The function under all its names.
    pub(super) fn new() -> Self {
        let aliases = ["current_timestamp", "transaction_timestamp", "statement_timestamp"];
        Self {
            signature: Signature::nullary(Volatility::Stable),
            aliases: aliases.map(str::to_owned).to_vec(),
        }
    }
}

impl ScalarUDFImpl for Now {
    fn name(&self) -> &str {
        "now"
    }

    fn aliases(&self) -> &[String] {
        &self.aliases
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arg_types: &[DataType]) -> Result<DataType> {
        Ok(DataType::Timestamp(TimeUnit::Microsecond, Some(UTC.into())))
    }

    fn invoke_with_args(&self, _args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        internal_err!("now() is folded when a statement is planned")
    }

    fn simplify(&self, args: Vec<Expr>, info: &SimplifyContext) -> Result<ExprSimplifyResult> {
        let Some(start) = info.query_execution_start_time() else {
            return Ok(ExprSimplifyResult::Original(args));
        };
        let micros = start.timestamp_micros();
        let value = ScalarValue::TimestampMicrosecond(Some(micros), Some(UTC.into()));
        Ok(ExprSimplifyResult::Simplified(Expr::Literal(value, None)))
    }
}
