//! The Arrow types that SQL type names stand for in expressions, the same as for columns.

use datafusion::{
    arrow::datatypes::{DataType, TimeUnit},
    error::Result,
    logical_expr::planner::TypePlanner,
    sql::sqlparser::ast::{DataType as SqlType, ExactNumberInfo, ObjectNamePart, TimezoneInfo},
};
use hypertide_proto::schema::{NUMERIC_DEFAULT, UTC};

/// Plans SQL type names. What it does not know falls through to DataFusion.
#[derive(Debug)]
pub(crate) struct SqlTypes;

impl TypePlanner for SqlTypes {
    fn plan_type(&self, sql_type: &SqlType) -> Result<Option<DataType>> {
        Ok(arrow_type(sql_type))
    }
}

fn arrow_type(sql_type: &SqlType) -> Option<DataType> {
    Some(match sql_type {
        // Microseconds as in PostgreSQL: nanoseconds would end in 2262.
        SqlType::Timestamp(_, TimezoneInfo::None | TimezoneInfo::WithoutTimeZone)
        | SqlType::Datetime(_) => DataType::Timestamp(TimeUnit::Microsecond, None),
        SqlType::Timestamp(_, TimezoneInfo::WithTimeZone | TimezoneInfo::Tz) => {
            DataType::Timestamp(TimeUnit::Microsecond, Some(UTC.into()))
        }
        SqlType::Numeric(ExactNumberInfo::None) | SqlType::Decimal(ExactNumberInfo::None) => {
            DataType::Decimal128(NUMERIC_DEFAULT.0, NUMERIC_DEFAULT.1)
        }
        SqlType::JSON | SqlType::JSONB | SqlType::Uuid => DataType::Utf8,
        SqlType::Bytea => DataType::Binary,
        SqlType::Custom(name, _) => match name.0.last()? {
            ObjectNamePart::Identifier(name) => named(&name.value.to_ascii_lowercase())?,
            ObjectNamePart::Function(_) => return None,
        },
        _ => return None,
    })
}

/// Types that the parser knows only as a name.
fn named(name: &str) -> Option<DataType> {
    Some(match name {
        "name" | "regclass" | "regtype" | "regproc" | "bpchar" => DataType::Utf8,
        "oid" => DataType::Int64,
        _ => return None,
    })
}
