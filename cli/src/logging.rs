//! The log: lines on standard error, each with the name of the node.

use std::fmt;

use tracing::{Event, Subscriber};
use tracing_subscriber::{
    EnvFilter,
    fmt::{
        FmtContext, FormatEvent, FormatFields,
        format::{Format, Full, Writer},
    },
    registry::LookupSpan,
};

/// What servers log when nothing else is asked for.
///
/// openraft warns of what is usual when nodes come and go, such as a peer that cannot be reached; what stops a node is
/// logged by the node itself.
const SERVER_FILTER: &str = "info,openraft=off,h2=warn,tonic=warn";
/// What clients log: what they report otherwise is on the terminal already.
const CLIENT_FILTER: &str = "error";

/// Sends the log to standard error, filtered by `HYPERTIDE_LOG` or `RUST_LOG`.
pub(crate) fn install(name: Option<String>) {
    let default = if name.is_some() { SERVER_FILTER } else { CLIENT_FILTER };
    let wanted = std::env::var("HYPERTIDE_LOG").or_else(|_| std::env::var("RUST_LOG"));
    let filter = wanted
        .ok()
        .and_then(|wanted| EnvFilter::try_new(wanted).ok())
        .unwrap_or_else(|| EnvFilter::new(default));
    let lines = Named { name: name.unwrap_or_default(), format: Format::default() };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .event_format(lines)
        .init();
}

/// The usual line with a name before it.
struct Named {
    name: String,
    format: Format<Full>,
}

impl<S, N> FormatEvent<S, N> for Named
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        if !self.name.is_empty() {
            write!(writer, "{} ", self.name)?;
        }
        self.format.format_event(context, writer, event)
    }
}
