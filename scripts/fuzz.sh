#!/usr/bin/env bash
# Feeds the readers of the chunk store (blocks, segment headers, payloads, journals) with bytes that may be anything.
#   scripts/fuzz.sh [seconds a target = 60] [seed = the time]
# It ends at the first input that breaks a law, which it leaves in storage/fuzz/found/, and names the seed. Inputs that
# get an answer nobody saw before join storage/fuzz/corpus/ with HYPERTIDE_FUZZ_KEEP=1. See storage/src/fuzz.rs.
set -euo pipefail
cd "$(dirname "$0")/.."
export HYPERTIDE_FUZZ_SECONDS="${1:-60}"
export HYPERTIDE_FUZZ_SEED="${2:-$(date +%s)}"
export RUST_BACKTRACE=0
exec cargo test -p hypertide-storage --lib fuzz:: -- --nocapture --test-threads="$(nproc)"
