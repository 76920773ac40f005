#!/usr/bin/env bash
# Builds the binary with every planted bug, and shows that the harness finds each: prints a table. Needs root for most.
# Arguments go to `hypertide-jepsen planted`. The binary is a copy, so that later builds do not change it.
set -euo pipefail
cd "$(dirname "$0")/.."

cargo build --workspace --bins --features hypertide-cli/planted_bugs
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cp target/debug/hypertide target/debug/hypertide-jepsen "$place"
# The next build is one without bugs again.
"$place/hypertide-jepsen" planted --slack 4 --dir target/planted-bugs "$@"
