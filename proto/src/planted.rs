//! Bugs that are planted on purpose, so that the fault-injection harness shows that its checkers find them.
//!
//! Each is a feature of its own, `bug_…`, and one `if` in one place. None of it is in a normal build: this module is
//! compiled only together with a bug. A build may hold all of them; the environment says which one shows.

use std::sync::LazyLock;

/// Environment variable that names the bug to be shown. Without it a build with bugs behaves like one without.
pub const VARIABLE: &str = "HYPERTIDE_PLANTED_BUG";

static SHOWN: LazyLock<Option<String>> = LazyLock::new(|| std::env::var(VARIABLE).ok());

/// Whether the bug of this name is to be shown by this process.
#[must_use]
pub fn shown(bug: &str) -> bool {
    SHOWN.as_deref() == Some(bug)
}
