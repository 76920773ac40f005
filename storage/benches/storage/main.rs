//! How fast and how small: each encoding, the standard set on disk, scans, flush and rewriting.
//!
//! `cargo bench -p hypertide-storage`, or with `-- <filter>` a part of it; `-- sizes` prints the sizes alone. Rows are of
//! the TSBS `cpu` table, see `cpu.rs`. Cold means: nothing in memory of ours, and the pages of the files dropped from
//! that of the system. Throughput is in values, that is rows times columns, on one core.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    missing_debug_implementations,
    unreachable_pub
)]

mod cpu;
mod encodings;
mod sizes;
mod stores;

use criterion::{Criterion, criterion_group, criterion_main};

fn printed(_: &mut Criterion) {
    let filters: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    if filters.iter().any(|filter| "sizes".starts_with(filter.as_str())) {
        sizes::print();
        stores::print_disk();
    }
}

criterion_group!(benches, printed, encodings::bench, stores::bench);
criterion_main!(benches);
