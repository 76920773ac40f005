//! The columns of a table: their types, their rules, and how they map to Arrow.
//!
//! Arrow has fewer types than SQL, so that the SQL type also travels as the metadata [`SQL_TYPE_KEY`] of the field:
//!
//! | SQL | Arrow | values |
//! |---|---|---|
//! | smallint, integer, bigint | Int16, Int32, Int64 | |
//! | real, double precision | Float32, Float64 | |
//! | numeric(p, s) | Decimal128(p, s) | numeric alone is Decimal128(38, 10) |
//! | boolean | Boolean | |
//! | text, varchar(n) | Utf8 | n counts characters |
//! | timestamp, timestamptz | Timestamp(µs), Timestamp(µs, UTC) | |
//! | date | Date32 | |
//! | jsonb, uuid | Utf8 | uuid in its canonical lower-case form |
//! | bytea | Binary | |

use std::{collections::HashMap, fmt, sync::Arc};

use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use serde::{Deserialize, Serialize};

/// Key of the field metadata that holds the SQL type as [`ColumnType`] displays it.
pub const SQL_TYPE_KEY: &str = "hypertide.type";
/// Key of the field metadata that holds the text of the value which rows have that are older than the column. Without it
/// they are null there.
pub const OLDER_ROWS_KEY: &str = "hypertide.older_rows";
/// Time zone of the Arrow type of `timestamptz`.
pub const UTC: &str = "UTC";
/// Most columns of a table, as in PostgreSQL.
pub const COLUMNS_MAX: usize = 1600;
/// Longest identifier in bytes, as in PostgreSQL.
pub const NAME_BYTES_MAX: usize = 63;
/// Precision and scale of `numeric` without arguments.
pub const NUMERIC_DEFAULT: (u8, i8) = (38, 10);

/// The SQL type of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ColumnType {
    /// 16-bit integer.
    SmallInt,
    /// 32-bit integer.
    Integer,
    /// 64-bit integer.
    BigInt,
    /// 32-bit float.
    Real,
    /// 64-bit float.
    Double,
    /// Decimal number of at most 38 digits.
    Numeric {
        /// Digits in all.
        precision: u8,
        /// Digits after the point.
        scale: i8,
    },
    /// True or false.
    Boolean,
    /// UTF-8 text of any length.
    Text,
    /// UTF-8 text of at most so many characters.
    Varchar(u32),
    /// Microseconds without a time zone.
    Timestamp,
    /// Microseconds since the Unix epoch.
    TimestampTz,
    /// Days since the Unix epoch.
    Date,
    /// JSON, kept as text.
    Jsonb,
    /// UUID, kept as canonical text.
    Uuid,
    /// Bytes.
    Bytea,
}

impl fmt::Display for ColumnType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Self::SmallInt => "smallint",
            Self::Integer => "integer",
            Self::BigInt => "bigint",
            Self::Real => "real",
            Self::Double => "double precision",
            Self::Numeric { precision, scale } if (*precision, *scale) != NUMERIC_DEFAULT => {
                return write!(f, "numeric({precision},{scale})");
            }
            Self::Numeric { .. } => "numeric",
            Self::Boolean => "boolean",
            Self::Text => "text",
            Self::Varchar(length) => return write!(f, "character varying({length})"),
            Self::Timestamp => "timestamp without time zone",
            Self::TimestampTz => "timestamp with time zone",
            Self::Date => "date",
            Self::Jsonb => "jsonb",
            Self::Uuid => "uuid",
            Self::Bytea => "bytea",
        };
        f.write_str(name)
    }
}

impl ColumnType {
    /// The Arrow type that holds it.
    #[must_use]
    pub fn to_arrow(self) -> DataType {
        match self {
            Self::SmallInt => DataType::Int16,
            Self::Integer => DataType::Int32,
            Self::BigInt => DataType::Int64,
            Self::Real => DataType::Float32,
            Self::Double => DataType::Float64,
            Self::Numeric { precision, scale } => DataType::Decimal128(precision, scale),
            Self::Boolean => DataType::Boolean,
            Self::Text | Self::Varchar(_) | Self::Jsonb | Self::Uuid => DataType::Utf8,
            Self::Timestamp => DataType::Timestamp(TimeUnit::Microsecond, None),
            Self::TimestampTz => DataType::Timestamp(TimeUnit::Microsecond, Some(UTC.into())),
            Self::Date => DataType::Date32,
            Self::Bytea => DataType::Binary,
        }
    }

    /// The SQL type of an Arrow type without metadata, such as that of a computed column.
    /// `None` for types that have no SQL counterpart here.
    #[must_use]
    pub fn from_arrow(data_type: &DataType) -> Option<Self> {
        Some(match data_type {
            DataType::Int8 | DataType::Int16 | DataType::UInt8 => Self::SmallInt,
            DataType::Int32 | DataType::UInt16 => Self::Integer,
            DataType::Int64 | DataType::UInt32 => Self::BigInt,
            DataType::UInt64 => Self::Numeric { precision: 20, scale: 0 },
            DataType::Float16 | DataType::Float32 => Self::Real,
            DataType::Float64 => Self::Double,
            DataType::Decimal128(precision, scale) => {
                Self::Numeric { precision: *precision, scale: *scale }
            }
            DataType::Boolean => Self::Boolean,
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => Self::Text,
            DataType::Timestamp(_, None) => Self::Timestamp,
            DataType::Timestamp(_, Some(_)) => Self::TimestampTz,
            DataType::Date32 | DataType::Date64 => Self::Date,
            DataType::Binary | DataType::LargeBinary | DataType::BinaryView => Self::Bytea,
            DataType::Dictionary(_, value) => return Self::from_arrow(value),
            _ => return None,
        })
    }

    /// The SQL type named by a field's metadata, or else that of its Arrow type.
    #[must_use]
    pub fn of_field(field: &Field) -> Option<Self> {
        let named = field.metadata().get(SQL_TYPE_KEY).and_then(|name| match name.as_str() {
            "jsonb" => Some(Self::Jsonb),
            "uuid" => Some(Self::Uuid),
            name => {
                let length = name.strip_prefix("character varying(")?.strip_suffix(')')?;
                length.parse().ok().map(Self::Varchar)
            }
        });
        named.or_else(|| Self::from_arrow(field.data_type()))
    }

    /// Whether a column of this type may be the time dimension.
    #[must_use]
    pub const fn can_be_time(self) -> bool {
        matches!(
            self,
            Self::Timestamp
                | Self::TimestampTz
                | Self::Date
                | Self::SmallInt
                | Self::Integer
                | Self::BigInt
        )
    }

    /// Whether it is an integer, so that as a time dimension it has no natural interval.
    #[must_use]
    pub const fn integer(self) -> bool {
        matches!(self, Self::SmallInt | Self::Integer | Self::BigInt)
    }
}

/// One column of a table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    /// Name, unique within the table.
    pub name: String,
    /// SQL type.
    pub column_type: ColumnType,
    /// Whether NULL is allowed.
    pub nullable: bool,
    /// SQL text of the default expression, evaluated at the access node.
    pub default: Option<String>,
    /// Name that chunk stores have it under, where that is another: it was renamed, or one before it had its name.
    pub stored: Option<String>,
    /// Text of the value that rows have which are older than the column; `None` for null.
    pub older: Option<String>,
}

impl Column {
    /// A column that takes NULL and has no default.
    #[must_use]
    pub fn new(name: &str, column_type: ColumnType) -> Self {
        let (name, nullable) = (name.to_owned(), true);
        Self { name, column_type, nullable, default: None, stored: None, older: None }
    }

    /// The name that chunk stores have it under, the same for as long as it lives.
    #[must_use]
    pub fn stored_name(&self) -> &str {
        self.stored.as_deref().unwrap_or(&self.name)
    }

    /// The Arrow field of the column as chunk stores have it.
    #[must_use]
    pub fn to_stored_field(&self) -> Field {
        self.to_field().with_name(self.stored_name())
    }

    /// The Arrow field of the column.
    ///
    /// Every field is nullable in Arrow: a column added later is null in older segments, and NOT NULL is enforced where
    /// rows come in.
    #[must_use]
    pub fn to_field(&self) -> Field {
        let mut metadata = HashMap::from([(SQL_TYPE_KEY.to_owned(), self.column_type.to_string())]);
        if let Some(older) = &self.older {
            metadata.insert(OLDER_ROWS_KEY.to_owned(), older.clone());
        }
        Field::new(&self.name, self.column_type.to_arrow(), true).with_metadata(metadata)
    }
}

/// Columns in whose values no two rows agree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    /// Name of the constraint.
    pub name: String,
    /// The columns, as chunk stores have them.
    pub columns: Vec<String>,
    /// Whether it is the primary key, which has no NULL.
    pub primary: bool,
}

/// What is wrong with a list of columns.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SchemaError {
    /// A name stands twice.
    #[error("column \"{0}\" specified more than once")]
    DuplicateColumn(String),
    /// Too many columns.
    #[error("tables can have at most {COLUMNS_MAX} columns")]
    TooManyColumns,
    /// A name is empty or too long.
    #[error("name \"{0}\" must have 1 to {NAME_BYTES_MAX} bytes")]
    BadName(String),
    /// Precision or scale that the type cannot have.
    #[error("column \"{0}\": numeric precision must be between 1 and 38, scale between 0 and it")]
    BadNumeric(String),
    /// A second primary key.
    #[error("multiple primary keys for table are not allowed")]
    SecondPrimaryKey,
    /// A name of a key stands twice.
    #[error("constraint \"{0}\" already exists")]
    DuplicateKey(String),
    /// A key names a column twice, none, or one that is not there.
    #[error("constraint \"{0}\" has columns that it cannot have")]
    BadKey(String),
}

/// The columns of a table, in order.
///
/// - Names are unique, not empty, and at most [`NAME_BYTES_MAX`] long.
/// - There are at most [`COLUMNS_MAX`].
/// - Keys have names of their own, and different columns that are there; at most one is primary.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableSchema {
    /// Columns in the order of their definition.
    pub columns: Vec<Column>,
    /// Keys in the order of their definition.
    pub keys: Vec<Key>,
}

impl TableSchema {
    /// Columns without a key.
    #[must_use]
    pub const fn of(columns: Vec<Column>) -> Self {
        Self { columns, keys: Vec::new() }
    }

    /// Checks the rules above.
    pub fn check(&self) -> Result<(), SchemaError> {
        if self.columns.len() > COLUMNS_MAX {
            return Err(SchemaError::TooManyColumns);
        }
        let mut names = std::collections::BTreeSet::new();
        for column in &self.columns {
            let name = &column.name;
            if name.is_empty() || name.len() > NAME_BYTES_MAX {
                return Err(SchemaError::BadName(name.clone()));
            }
            if !names.insert(name) {
                return Err(SchemaError::DuplicateColumn(name.clone()));
            }
            if let ColumnType::Numeric { precision, scale } = column.column_type {
                let whole = u8::try_from(scale).is_ok_and(|scale| scale <= precision);
                if !whole || !(1..=38).contains(&precision) {
                    return Err(SchemaError::BadNumeric(name.clone()));
                }
            }
        }
        self.check_keys()
    }

    fn check_keys(&self) -> Result<(), SchemaError> {
        let mut names = std::collections::BTreeSet::new();
        for Key { name, columns, .. } in &self.keys {
            if name.is_empty() || name.len() > NAME_BYTES_MAX {
                return Err(SchemaError::BadName(name.clone()));
            }
            if !names.insert(name) {
                return Err(SchemaError::DuplicateKey(name.clone()));
            }
            let stored =
                |wanted: &String| self.columns.iter().any(|column| column.stored_name() == wanted);
            let different: std::collections::BTreeSet<&String> = columns.iter().collect();
            let whole = !columns.is_empty() && columns.iter().all(stored);
            if !whole || different.len() != columns.len() {
                return Err(SchemaError::BadKey(name.clone()));
            }
        }
        match self.keys.iter().filter(|key| key.primary).count() {
            0 | 1 => Ok(()),
            _ => Err(SchemaError::SecondPrimaryKey),
        }
    }

    /// Positions of the columns of a key.
    #[must_use]
    pub fn key_positions(&self, key: &Key) -> Vec<usize> {
        let position =
            |stored: &String| self.columns.iter().position(|column| column.stored_name() == stored);
        key.columns.iter().filter_map(position).collect()
    }

    /// Whether a column is one of a key.
    #[must_use]
    pub fn in_key(&self, key: &Key, name: &str) -> bool {
        key.columns.iter().any(|column| column == self.stored_name(name))
    }

    /// The column of that name.
    #[must_use]
    pub fn column(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|column| column.name == name)
    }

    /// The position of the column of that name.
    #[must_use]
    pub fn position(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|column| column.name == name)
    }

    /// The name that chunk stores have a column under; the same for one that is not there.
    #[must_use]
    pub fn stored_name<'a>(&'a self, name: &'a str) -> &'a str {
        self.column(name).map_or(name, Column::stored_name)
    }

    /// The Arrow schema of rows on their way to chunk stores.
    #[must_use]
    pub fn to_stored(&self) -> SchemaRef {
        let fields: Vec<Field> = self.columns.iter().map(Column::to_stored_field).collect();
        Arc::new(Schema::new(fields))
    }

    /// The Arrow schema.
    #[must_use]
    pub fn to_arrow(&self) -> SchemaRef {
        let fields: Vec<Field> = self.columns.iter().map(Column::to_field).collect();
        Arc::new(Schema::new(fields))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(name: &str, column_type: ColumnType) -> Column {
        Column::new(name, column_type)
    }

    #[test]
    fn every_type_survives_its_field() {
        use ColumnType::*;
        let numeric = Numeric { precision: 12, scale: 3 };
        let types = [
            SmallInt,
            Integer,
            BigInt,
            Real,
            Double,
            numeric,
            Boolean,
            Text,
            Varchar(20),
            Timestamp,
            TimestampTz,
            Date,
            Jsonb,
            Uuid,
            Bytea,
        ];
        for column_type in types {
            let field = column("x", column_type).to_field();
            assert_eq!(ColumnType::of_field(&field), Some(column_type));
        }
    }

    #[test]
    fn check_refuses_bad_columns() {
        let schema = TableSchema::of;
        let twice = schema(vec![column("a", ColumnType::Text), column("a", ColumnType::Date)]);
        assert_eq!(twice.check(), Err(SchemaError::DuplicateColumn("a".into())));
        let unnamed = schema(vec![column("", ColumnType::Text)]);
        assert_eq!(unnamed.check(), Err(SchemaError::BadName(String::new())));
        let wide = ColumnType::Numeric { precision: 39, scale: 0 };
        assert!(schema(vec![column("n", wide)]).check().is_err());
        let negative = ColumnType::Numeric { precision: 5, scale: -1 };
        assert!(schema(vec![column("n", negative)]).check().is_err());
        let many = (0..=COLUMNS_MAX).map(|i| column(&format!("c{i}"), ColumnType::Text)).collect();
        assert_eq!(schema(many).check(), Err(SchemaError::TooManyColumns));
    }
}
