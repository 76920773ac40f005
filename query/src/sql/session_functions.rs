//! Functions that tell about the session: `version()`, `current_user`, `current_setting(…)` and their kin.
//!
//! Each is a constant for the statement, so that plans fold it away before anything is sent to a data node.

use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::{
    common::ScalarValue,
    error::Result,
    logical_expr::{
        ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
    },
    prelude::SessionContext,
};

use crate::{
    Error, Session, Settings,
    session::{DATABASE, Snapshot},
    settings::SERVER_VERSION,
};

/// Makes the functions known to a statement.
pub(crate) fn register(session: &Session, snapshot: &Snapshot, ctx: &SessionContext) {
    let text = |text: &str| ScalarValue::Utf8(Some(text.to_owned()));
    let version = format!("PostgreSQL {SERVER_VERSION} on {}", std::env::consts::ARCH);
    let index = |index: u64| ScalarValue::Int64(i64::try_from(index).ok());
    let cluster = session.engine.catalog.cluster().map_or(String::new(), |id| id.to_string());
    let pid = ScalarValue::Int32(i32::try_from(session.number).ok());
    for (name, aliases, value) in [
        ("version", &[][..], text(&version)),
        ("current_database", &["current_catalog"][..], text(DATABASE)),
        ("current_user", &["user", "session_user", "current_role"], text(&session.user)),
        ("current_schema", &[], text("public")),
        ("pg_backend_pid", &[], pid),
        ("pg_is_in_recovery", &[], ScalarValue::Boolean(Some(false))),
        ("inet_server_port", &[], ScalarValue::Int32(None)),
        ("inet_server_addr", &[], ScalarValue::Utf8(None)),
        ("hypertide_cluster", &[], text(&cluster)),
        // Entries of the log: up to which the statement reads, and where the session's last commit lies.
        ("hypertide_snapshot", &[], index(snapshot.index())),
        ("hypertide_last_commit", &[], index(session.last_index)),
    ] {
        ctx.register_udf(ScalarUDF::from(Constant::new(name, aliases, value)));
    }
    ctx.register_udf(ScalarUDF::from(CurrentSetting::new(session.settings.clone())));
}

/// A function without arguments.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Constant {
    name: &'static str,
    aliases: Vec<String>,
    value: ScalarValue,
    signature: Signature,
}

impl Constant {
    fn new(name: &'static str, aliases: &[&str], value: ScalarValue) -> Self {
        let signature = Signature::nullary(Volatility::Stable);
        Self {
            name,
            aliases: aliases.iter().map(|alias| (*alias).to_owned()).collect(),
            value,
            signature,
        }
    }
}

impl ScalarUDFImpl for Constant {
    fn name(&self) -> &str {
        self.name
    }

    fn aliases(&self) -> &[String] {
        &self.aliases
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arguments: &[DataType]) -> Result<DataType> {
        Ok(self.value.data_type())
    }

    fn invoke_with_args(&self, _arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        Ok(ColumnarValue::Scalar(self.value.clone()))
    }
}

/// `current_setting(name [, missing_ok])`.
#[derive(Debug)]
struct CurrentSetting {
    settings: Arc<Settings>,
    signature: Signature,
}

impl CurrentSetting {
    fn new(settings: Settings) -> Self {
        Self {
            settings: Arc::new(settings),
            signature: Signature::variadic_any(Volatility::Stable),
        }
    }
}

impl PartialEq for CurrentSetting {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.settings, &other.settings)
    }
}

impl Eq for CurrentSetting {}

impl std::hash::Hash for CurrentSetting {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.settings).hash(state);
    }
}

impl ScalarUDFImpl for CurrentSetting {
    fn name(&self) -> &str {
        "current_setting"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arguments: &[DataType]) -> Result<DataType> {
        Ok(DataType::Utf8)
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let scalar = |number: usize| match arguments.args.get(number) {
            Some(ColumnarValue::Scalar(value)) => Some(value.clone()),
            _ => None,
        };
        let name = scalar(0).and_then(|value| value.try_as_str().flatten().map(str::to_owned));
        let name =
            name.ok_or_else(|| Error::of("42883", "current_setting takes the name of a setting"))?;
        let missing_ok = matches!(scalar(1), Some(ScalarValue::Boolean(Some(true))));
        let value = match self.settings.show(&name) {
            Ok(value) => Some(value.to_owned()),
            Err(_) if missing_ok => None,
            Err(error) => return Err(error.into()),
        };
        Ok(ColumnarValue::Scalar(ScalarValue::Utf8(value)))
    }
}
