#!/usr/bin/env bash
# Every check and every test; all that CI runs. Changes no file outside the target directory, installs nothing.
set -euo pipefail
cd "$(dirname "$0")/.."

step() {
    printf '\n== %s\n' "$*"
    "$@"
}

step cargo fmt --all --check
step cargo clippy --workspace --all-targets -- -D warnings
# The tests of the command line start real processes of the binary.
if cargo nextest --version >/dev/null 2>&1; then
    step cargo nextest run --workspace --no-fail-fast
else
    step cargo test --workspace --bins --lib --tests
fi
step cargo test --workspace --doc
RUSTDOCFLAGS="-D warnings" step cargo doc --workspace --no-deps --document-private-items
