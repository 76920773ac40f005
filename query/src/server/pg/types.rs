//! PostgreSQL's types: their numbers, sizes and modifiers, and how they follow from Arrow's.

use arrow::datatypes::{DataType, Field};
use hypertide_proto::schema::{ColumnType, NUMERIC_DEFAULT};
use pgwire::messages::data::FieldDescription;

use super::frontend::Format;

/// Bytes that a modifier of varchar and numeric counts beside its number.
const MODIFIER_HEADER: i32 = 4;

/// A type of one value, as clients know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Bool,
    Bytea,
    Int8,
    Int2,
    Int4,
    Text,
    Float4,
    Float8,
    Varchar,
    Date,
    Time,
    Timestamp,
    TimestampTz,
    Interval,
    Numeric,
    Uuid,
    Jsonb,
}

impl Kind {
    /// Number of the type, of its arrays, and its size in bytes or -1.
    const fn numbers(self) -> (u32, u32, i16) {
        match self {
            Self::Bool => (16, 1000, 1),
            Self::Bytea => (17, 1001, -1),
            Self::Int8 => (20, 1016, 8),
            Self::Int2 => (21, 1005, 2),
            Self::Int4 => (23, 1007, 4),
            Self::Text => (25, 1009, -1),
            Self::Float4 => (700, 1021, 4),
            Self::Float8 => (701, 1022, 8),
            Self::Varchar => (1043, 1015, -1),
            Self::Date => (1082, 1182, 4),
            Self::Time => (1083, 1183, 8),
            Self::Timestamp => (1114, 1115, 8),
            Self::TimestampTz => (1184, 1185, 8),
            Self::Interval => (1186, 1187, 16),
            Self::Numeric => (1700, 1231, -1),
            Self::Uuid => (2950, 2951, 16),
            Self::Jsonb => (3802, 3807, -1),
        }
    }

    /// Number of the type.
    pub(super) const fn oid(self) -> u32 {
        self.numbers().0
    }

    /// The type of a column or parameter.
    pub(super) const fn of_column(column: ColumnType) -> Self {
        match column {
            ColumnType::SmallInt => Self::Int2,
            ColumnType::Integer => Self::Int4,
            ColumnType::BigInt => Self::Int8,
            ColumnType::Real => Self::Float4,
            ColumnType::Double => Self::Float8,
            ColumnType::Numeric { .. } => Self::Numeric,
            ColumnType::Boolean => Self::Bool,
            ColumnType::Text => Self::Text,
            ColumnType::Varchar(_) => Self::Varchar,
            ColumnType::Timestamp => Self::Timestamp,
            ColumnType::TimestampTz => Self::TimestampTz,
            ColumnType::Date => Self::Date,
            ColumnType::Jsonb => Self::Jsonb,
            ColumnType::Uuid => Self::Uuid,
            ColumnType::Bytea => Self::Bytea,
        }
    }

    /// The type of a field's values; text for what PostgreSQL has no type for.
    fn of_field(field: &Field) -> Self {
        if let Some(column) = ColumnType::of_field(field) {
            return Self::of_column(column);
        }
        match field.data_type() {
            DataType::Interval(_) | DataType::Duration(_) => Self::Interval,
            DataType::Time32(_) | DataType::Time64(_) => Self::Time,
            DataType::Decimal32(..) | DataType::Decimal64(..) | DataType::Decimal256(..) => {
                Self::Numeric
            }
            DataType::FixedSizeBinary(_) => Self::Bytea,
            _ => Self::Text,
        }
    }
}

/// The type of a column of a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PgType {
    /// Type of the value, or of the elements.
    pub(super) kind: Kind,
    /// Whether it is an array of them.
    pub(super) array: bool,
    modifier: i32,
}

impl PgType {
    /// The type of a field.
    pub(super) fn of_field(field: &Field) -> Self {
        let element = match field.data_type() {
            DataType::List(element)
            | DataType::LargeList(element)
            | DataType::FixedSizeList(element, _) => Some(element),
            _ => None,
        };
        // Arrays of arrays travel as text: their Arrow form need not be a matrix.
        let nested = |element: &Field| element.data_type().is_nested();
        match element {
            Some(element) if !nested(element) => {
                Self { kind: Kind::of_field(element), array: true, modifier: -1 }
            }
            _ => Self { kind: Kind::of_field(field), array: false, modifier: modifier(field) },
        }
    }

    /// The type of an array's elements.
    pub(super) const fn element(self) -> Self {
        Self { kind: self.kind, array: false, modifier: -1 }
    }

    /// Number of the type.
    pub(super) const fn oid(self) -> u32 {
        let (own, array, _) = self.kind.numbers();
        if self.array { array } else { own }
    }

    /// The column of a result, for its description.
    pub(super) fn describe(self, name: &str, format: Format) -> FieldDescription {
        let size = if self.array { -1 } else { self.kind.numbers().2 };
        let format = i16::from(format == Format::Binary);
        let name = name.replace('\0', "\u{fffd}");
        FieldDescription::new(name, 0, 0, self.oid(), size, self.modifier, format)
    }
}

fn modifier(field: &Field) -> i32 {
    match ColumnType::of_field(field) {
        Some(ColumnType::Varchar(length)) => {
            i32::try_from(length).map_or(-1, |length| length.saturating_add(MODIFIER_HEADER))
        }
        Some(ColumnType::Numeric { precision, scale }) if (precision, scale) != NUMERIC_DEFAULT => {
            (i32::from(precision) << 16 | i32::from(scale) & 0x7ff) + MODIFIER_HEADER
        }
        _ => -1,
    }
}

/// The column type of a number that a client declares for a parameter; `None` leaves it open.
pub(super) const fn column_of_oid(oid: u32) -> Option<ColumnType> {
    let (precision, scale) = NUMERIC_DEFAULT;
    Some(match oid {
        16 => ColumnType::Boolean,
        17 => ColumnType::Bytea,
        20 | 26 => ColumnType::BigInt,
        21 => ColumnType::SmallInt,
        23 => ColumnType::Integer,
        18 | 19 | 25 | 1042 | 1043 => ColumnType::Text,
        114 | 3802 => ColumnType::Jsonb,
        700 => ColumnType::Real,
        701 => ColumnType::Double,
        1082 => ColumnType::Date,
        1114 => ColumnType::Timestamp,
        1184 => ColumnType::TimestampTz,
        1700 => ColumnType::Numeric { precision, scale },
        2950 => ColumnType::Uuid,
        _ => return None,
    })
}
