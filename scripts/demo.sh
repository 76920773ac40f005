#!/usr/bin/env bash
# Starts a local cluster of 3 access nodes and 3 data nodes, loads the daily weather of two cities, runs two queries
# with their plans, and leaves the cluster up. Run twice, it finds its data. `--stop` ends it.
set -euo pipefail
cd "$(dirname "$0")/.."
dir=${HYPERTIDE_DIR:-$PWD/target/demo}
unset HYPERTIDE_DIR
# One test is built beside it: with it dependencies get the features that the tests need, and are built once for both.
cargo build --workspace --bin hypertide --test tidy
hypertide=${CARGO_TARGET_DIR:-target}/debug/hypertide

if [ "${1:-}" = --stop ]; then
    exec "$hypertide" cluster stop --dir "$dir"
elif [ $# -gt 0 ]; then
    echo "usage: scripts/demo.sh [--stop]" >&2
    exit 2
fi

sql() {
    "$hypertide" sql --dir "$dir" "$@"
}
run() {
    printf '\n%s\n' "$1"
    sql -c "$1"
}
empty() {
    sql --format csv -c "SELECT count(*) FROM $1" | grep -qx 0
}

"$hypertide" cluster start --access 3 --data 3 --dir "$dir"
run "CREATE TABLE IF NOT EXISTS weather (location text, date date, precipitation double precision,
    temp_max double precision, temp_min double precision, wind double precision, weather text)"
run "CREATE TABLE IF NOT EXISTS conditions (time timestamptz NOT NULL, location text NOT NULL,
    temperature double precision, precipitation double precision, wind double precision)"
run "SELECT * FROM create_distributed_hypertable('conditions', 'time', 'location',
    number_partitions => 3, chunk_time_interval => INTERVAL '365 days', if_not_exists => true)"
if empty weather; then
    "$hypertide" load --dir "$dir" --table weather --header scripts/data/weather.csv
fi
if empty conditions; then
    run "INSERT INTO conditions SELECT CAST(date AS timestamptz), location, (temp_min + temp_max) / 2,
    precipitation, wind FROM weather"
fi

all="SELECT time_bucket('1 hour', time) AS hour, location, avg(temperature)
FROM conditions GROUP BY hour, location ORDER BY hour, location LIMIT 100"
one="SELECT time_bucket('1 hour', time) AS hour, avg(temperature)
FROM conditions WHERE location = 'Seattle' GROUP BY hour ORDER BY hour LIMIT 100"
for query in "$all" "$one"; do
    run "$query"
    run "EXPLAIN $query"
done

"$hypertide" cluster status --dir "$dir"
echo "The cluster is up. Look around with any of these, and stop it with scripts/demo.sh --stop:"
"$hypertide" cluster start --dir "$dir" | grep psql
