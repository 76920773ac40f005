//! SQL type names to column types.

use datafusion::sql::sqlparser::ast::{
    ArrayElemTypeDef, CharacterLength, DataType as SqlType, ExactNumberInfo, TimezoneInfo,
};
use hypertide_proto::schema::{ColumnType, NUMERIC_DEFAULT};

use crate::Error;

/// Longest declared length of a varchar, as in PostgreSQL.
const VARCHAR_MAX: u64 = 10_485_760;
/// Digits of the fraction of a second that timestamps keep.
const TIME_PRECISION: u64 = 6;

/// The column type that a SQL type names: 42704 when there is none, 0A000 when PostgreSQL has it and we do not.
pub(crate) fn column_type(sql_type: &SqlType) -> Result<ColumnType, Error> {
    Ok(match sql_type {
        SqlType::SmallInt(None) | SqlType::Int2(None) => ColumnType::SmallInt,
        SqlType::Int(None) | SqlType::Integer(None) | SqlType::Int4(None) => ColumnType::Integer,
        SqlType::BigInt(None) | SqlType::Int8(None) => ColumnType::BigInt,
        SqlType::Real | SqlType::Float4 => ColumnType::Real,
        SqlType::Double(_) | SqlType::DoublePrecision | SqlType::Float8 | SqlType::Float64 => {
            ColumnType::Double
        }
        SqlType::Float(info) => match info {
            ExactNumberInfo::None => ColumnType::Double,
            ExactNumberInfo::Precision(1..=24) => ColumnType::Real,
            ExactNumberInfo::Precision(25..=53) => ColumnType::Double,
            _ => {
                return Err(Error::of(
                    "22023",
                    "precision for type float must be between 1 and 53 bits",
                ));
            }
        },
        SqlType::Numeric(info) | SqlType::Decimal(info) | SqlType::Dec(info) => numeric(*info)?,
        SqlType::Boolean | SqlType::Bool => ColumnType::Boolean,
        SqlType::Text => ColumnType::Text,
        SqlType::Varchar(length)
        | SqlType::CharacterVarying(length)
        | SqlType::CharVarying(length) => varchar(*length)?,
        SqlType::Timestamp(precision, zone) => {
            check_precision(*precision)?;
            match zone {
                TimezoneInfo::None | TimezoneInfo::WithoutTimeZone => ColumnType::Timestamp,
                TimezoneInfo::WithTimeZone | TimezoneInfo::Tz => ColumnType::TimestampTz,
            }
        }
        SqlType::Date => ColumnType::Date,
        SqlType::JSON | SqlType::JSONB => ColumnType::Jsonb,
        SqlType::Uuid => ColumnType::Uuid,
        SqlType::Bytea => ColumnType::Bytea,
        SqlType::Char(_)
        | SqlType::Character(_)
        | SqlType::Bit(_)
        | SqlType::BitVarying(_)
        | SqlType::Time(..)
        | SqlType::Interval { .. }
        | SqlType::Regclass => {
            return Err(Error::unsupported(format_args!("a column of type {}", lower(sql_type))));
        }
        SqlType::Array(ArrayElemTypeDef::SquareBracket(..) | ArrayElemTypeDef::AngleBracket(_)) => {
            return Err(Error::unsupported(format_args!("a column of type {}", lower(sql_type))));
        }
        SqlType::Custom(name, _) => match name.to_string().to_ascii_lowercase().as_str() {
            "serial" | "bigserial" | "smallserial" | "serial4" | "serial8" | "serial2" => {
                return Err(Error::unsupported(format_args!("the type {}", lower(sql_type)))
                    .with_hint("Give the column an integer type and set its values."));
            }
            "name" => ColumnType::Text,
            "timestamptz" => ColumnType::TimestampTz,
            _ => return Err(unknown(&name.to_string())),
        },
        other => return Err(unknown(&lower(other))),
    })
}

fn lower(sql_type: &SqlType) -> String {
    sql_type.to_string().to_ascii_lowercase()
}

fn unknown(name: &str) -> Error {
    Error::of("42704", format_args!("type \"{name}\" does not exist"))
}

fn check_precision(precision: Option<u64>) -> Result<(), Error> {
    match precision {
        Some(digits) if digits < TIME_PRECISION => Err(Error::unsupported(format_args!(
            "timestamp({digits}): timestamps keep 6 digits of a second; a lower precision"
        ))),
        _ => Ok(()),
    }
}

fn numeric(info: ExactNumberInfo) -> Result<ColumnType, Error> {
    let (precision, scale) = match info {
        ExactNumberInfo::None => {
            return Ok(ColumnType::Numeric {
                precision: NUMERIC_DEFAULT.0,
                scale: NUMERIC_DEFAULT.1,
            });
        }
        ExactNumberInfo::Precision(precision) => (precision, 0),
        ExactNumberInfo::PrecisionAndScale(precision, scale) => (precision, scale),
    };
    let bounds = |what: &str, value: &dyn std::fmt::Display, bounds: &str| {
        Error::of("22023", format_args!("NUMERIC {what} {value} must be between {bounds}"))
    };
    if !(1..=38).contains(&precision) {
        return Err(bounds("precision", &precision, "1 and 38"));
    }
    let fits = i8::try_from(scale)
        .ok()
        .filter(|scale| *scale >= 0 && i64::from(*scale) <= precision as i64);
    let scale =
        fits.ok_or_else(|| bounds("scale", &scale, &format!("0 and precision {precision}")))?;
    Ok(ColumnType::Numeric { precision: precision as u8, scale })
}

fn varchar(length: Option<CharacterLength>) -> Result<ColumnType, Error> {
    match length {
        None | Some(CharacterLength::Max) => Ok(ColumnType::Text),
        Some(CharacterLength::IntegerLength { length: 0, .. }) => {
            Err(Error::of("22023", "length for type varchar must be at least 1"))
        }
        Some(CharacterLength::IntegerLength { length, .. }) if length > VARCHAR_MAX => Err(
            Error::of("22023", format_args!("length for type varchar cannot exceed {VARCHAR_MAX}")),
        ),
        Some(CharacterLength::IntegerLength { length, .. }) => {
            Ok(ColumnType::Varchar(u32::try_from(length).unwrap_or(u32::MAX)))
        }
    }
}
