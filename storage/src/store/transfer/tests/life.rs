//! Copies of chunks that are deleted from and rewritten: what one replica knows of that, the other must know, too.

use std::time::Duration;

use hypertide_proto::predicate::{Term, Test, Value};

use super::*;
use crate::{ChunkState, CompressionSpec, Tombstone};

/// A store that takes deleted rows out at the next rewrite.
fn forgetful(dir: &Path) -> Arc<ChunkStore> {
    let config = StoreConfig {
        flush_age: Duration::from_secs(3600),
        space_reserve_bytes: 0,
        version_age: Duration::ZERO,
        background: false,
        ..StoreConfig::new(dir)
    };
    ChunkStore::open(config).expect("opens")
}

/// A delete of all rows before a time that a snapshot has.
fn tombstone(snapshot: u64, before: i128) -> batch::Encoded {
    let term = Term { column: "time".to_owned(), test: Test::Lt(Value::Int(before)) };
    let predicate = Predicate { terms: vec![term] };
    Tombstone::passing(Csn(snapshot), predicate).encode().expect("encodes")
}

fn write_rows(store: &ChunkStore, seqs: std::ops::RangeInclusive<u64>) {
    for seq in seqs {
        write(store, seq, seq * 10 - 10, &rows(seq as i64, 400));
    }
}

fn by_time() -> CompressionSpec {
    CompressionSpec { segment_by: vec!["time".to_owned()], order_by: Vec::new() }
}

fn standing(store: &ChunkStore) -> Option<Point> {
    store.standing(CHUNK).map(|standing| standing.applied)
}

/// Brings one replica up to another; whether by a whole copy.
fn catch_up(target: &ChunkStore, source: &ChunkStore) -> bool {
    let wanted = wanted(standing(target));
    let installed = take(target, wanted, &pieces(source, wanted)).expect("is right");
    installed.expect("is taken").whole
}

#[test]
fn deletes_travel_with_whole_copies_and_with_deltas() {
    let dirs: Vec<TempDir> = (0..4).map(|_| tempfile::tempdir().expect("makes")).collect();
    let stores: Vec<_> = dirs.iter().map(|dir| on_files(dir.path())).collect();
    let [source, empty, behind, knowing] = stores.as_slice() else { panic!("they are four") };
    for store in [source, behind, knowing] {
        write_rows(store, 1..=2);
    }
    for store in [source, knowing] {
        store.flush(&[]).expect("flushes");
        write_part(store, (3, 20), tombstone(20, 301));
    }
    source.flush(&[]).expect("flushes");
    write_rows(source, 4..=4);
    // One delete is in the file, one in memory.
    write_part(source, (5, 40), tombstone(40, 601));
    let expected = state(source);
    let counts: Vec<usize> = expected.1.iter().map(|(count, _)| *count).collect();
    assert_eq!(counts, [400, 800, 600, 1000, 601]);
    assert!(catch_up(empty, source));
    for target in [behind, knowing] {
        assert!(!catch_up(target, source), "what was missed is enough");
    }
    for (target, dir) in [empty, behind, knowing].into_iter().zip(&dirs[1..]) {
        assert_eq!(state(target), expected);
        // Who has the copy refuses a delete that does not know the last one, as the source does.
        let refused = prepare(target, 6, tombstone(40, 9)).expect_err("another delete came");
        let told = prepare(source, 6, tombstone(40, 9)).expect_err("another delete came");
        assert_eq!(refused.to_string(), told.to_string());
        target.close();
        let again = on_files(dir.path());
        assert!(again.damaged().is_empty());
        assert_eq!(state(&again), expected, "after a restart");
        // It goes on from there as any other does.
        write(&again, 6, 50, &rows(1, 10));
        assert_eq!(seen(&again, 60).0, 611);
    }
}

#[test]
fn a_replica_that_missed_a_delete_whose_rows_are_gone_gets_all_of_it() {
    let dirs: Vec<TempDir> = (0..3).map(|_| tempfile::tempdir().expect("makes")).collect();
    let stores: Vec<_> = dirs.iter().map(|dir| forgetful(dir.path())).collect();
    let [source, behind, knowing] = stores.as_slice() else { panic!("they are three") };
    for store in [source, behind, knowing] {
        write_rows(store, 1..=2);
        store.flush(&[]).expect("flushes");
    }
    for store in [source, knowing] {
        write_part(store, (3, 20), tombstone(20, 301));
    }
    let compressed = source.compress(CHUNK, by_time()).expect("is compressed");
    assert_eq!((compressed.rows, compressed.state), (600, ChunkState::Compressed));
    write_rows(source, 4..=4);
    assert!(catch_up(behind, source), "a part of it would leave the deleted rows");
    assert!(!catch_up(knowing, source), "who knows the delete needs only what came after it");
    for store in [behind, knowing] {
        assert_eq!(standing(store), standing(source));
        for snapshot in [30, 40] {
            assert_eq!(seen(store, snapshot), seen(source, snapshot), "at {snapshot}");
        }
    }
    // What cannot be read at the source can be read at a copy of it no more.
    for store in [source, behind] {
        let old = ScanRequest {
            chunk: CHUNK,
            snapshot: Csn(20),
            own: None,
            columns: rows(0, 0).schema(),
            predicate: Predicate::default(),
        };
        let refused = store.scan(old).map(|_| ()).expect_err("the rows are gone");
        assert!(matches!(refused, Error::SnapshotTooOld { .. }), "{refused}");
    }
    assert_eq!(seen(knowing, 20).0, 800);
    // The copy knows how far it is compressed, and compresses the rest.
    let report = |store: &ChunkStore| store.report(&[CHUNK]).first().copied().expect("is here");
    assert_eq!(report(behind).state, ChunkState::Partial);
    assert_eq!(report(behind).after_bytes, report(source).after_bytes);
    let all = behind.compress(CHUNK, by_time()).expect("is compressed");
    assert_eq!((all.rows, all.state, all.segments), (1000, ChunkState::Compressed, 1));
    assert_eq!(seen(behind, 40), seen(source, 40));
}

#[test]
fn rewrites_keep_the_history_and_disturb_no_copy_under_way() {
    let (kept, source) = source();
    source.flush(&[]).expect("flushes");
    let expected = state(&source);
    let points = |store: &ChunkStore| -> Vec<Option<Point>> {
        let at = |seq: u64| store.point_at(CHUNK, Csn(seq * 10)).expect("reads");
        (1..=5).map(at).collect()
    };
    let before = points(&source);
    assert!(before.iter().all(Option::is_some));
    let first = wanted(before[0]);
    // Both pictures are taken before, and sent after, everything about the file has changed.
    let outgoing = [wanted(None), first]
        .map(|wanted| (wanted, source.outgoing(wanted).expect("is there").expect("is applied")));
    source.compress(CHUNK, by_time()).expect("is compressed");
    assert_eq!(points(&source), before);
    source.decompress(CHUNK).expect("is decompressed");
    source.merge(CHUNK).expect("is merged");
    source.compress(CHUNK, CompressionSpec::default()).expect("is compressed");
    assert_eq!(points(&source), before);
    for (wanted, outgoing) in outgoing {
        let mut sent = Vec::new();
        let kept = |piece| {
            sent.push(piece);
            Ok(())
        };
        outgoing.send(kept).expect("is sent");
        let dir = tempfile::tempdir().expect("makes");
        let target = on_files(dir.path());
        if wanted.from.is_some() {
            write(&target, 1, 0, &rows(1, 400));
        }
        assert!(take(&target, wanted, &sent).expect("is right").is_some());
        assert_eq!(state(&target), expected);
        assert!(target.check(CHUNK).expect("is read").faults.is_empty());
    }
    source.close();
    let source = on_files(kept.path());
    assert_eq!(points(&source), before, "after a restart");
    // A part of it can still be cut out of the one run that all of it is now.
    let dir = tempfile::tempdir().expect("makes");
    let target = on_files(dir.path());
    write(&target, 1, 0, &rows(1, 400));
    assert!(!catch_up(&target, &source));
    assert_eq!(state(&target), expected);
}

#[test]
fn copies_that_come_while_a_chunk_is_rewritten_are_not_lost() {
    let dirs = [(); 2].map(|()| tempfile::tempdir().expect("makes"));
    let [source, target] = dirs.each_ref().map(|dir| on_files(dir.path()));
    for store in [&source, &target] {
        write(store, 1, 0, &rows(1, 2000));
    }
    let done = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let rewriter = std::thread::spawn({
        let (target, done) = (Arc::clone(&target), Arc::clone(&done));
        move || {
            let mut rewrites = 0;
            while !done.load(Ordering::SeqCst) || rewrites < 2 {
                for result in [target.compress(CHUNK, by_time()), target.decompress(CHUNK)] {
                    match result {
                        Ok(_) => rewrites += 1,
                        // A whole copy took the place of the file that was rewritten.
                        Err(Error::Overloaded(what)) => {
                            assert!(what.contains("replaced"), "{what}")
                        }
                        Err(error) => panic!("{error}"),
                    }
                }
            }
        }
    });
    for seq in 2..=20u64 {
        let prev = seq * 10 - 10;
        match seq % 5 {
            0 => write_part(&source, (seq, prev), tombstone(prev, 3 * i128::from(seq))),
            _ => write(&source, seq, prev, &rows(seq as i64, 50)),
        }
        let from = standing(&target).filter(|_| seq % 3 != 0);
        let wanted = wanted(from);
        let installed = take(&target, wanted, &pieces(&source, wanted)).expect("is right");
        assert_eq!(installed.expect("is taken").whole, from.is_none());
        assert_eq!(standing(&target), standing(&source));
        assert_eq!(seen(&target, seq * 10), seen(&source, seq * 10), "at {seq}");
    }
    done.store(true, Ordering::SeqCst);
    rewriter.join().expect("it does not panic");
    let all = |store: &ChunkStore| -> Vec<(usize, i64)> {
        (1..=20).map(|seq| seen(store, seq * 10)).collect()
    };
    assert_eq!(all(&target), all(&source));
    assert!(target.damaged().is_empty());
    target.close();
    let again = on_files(dirs[1].path());
    assert_eq!(all(&again), all(&source), "after a restart");
    assert_eq!(standing(&again), standing(&source));
}

#[test]
fn a_replica_that_was_removed_comes_back_from_where_it_was() {
    let dirs: Vec<TempDir> = (0..2).map(|_| tempfile::tempdir().expect("makes")).collect();
    let stores: Vec<_> = dirs.iter().map(|dir| on_files(dir.path())).collect();
    let [source, moved] = stores.as_slice() else { panic!("they are two") };
    for store in [source, moved] {
        write_rows(store, 1..=2);
        store.flush(&[]).expect("flushes");
        write_rows(store, 3..=3);
    }
    moved.drop_chunks(&[CHUNK], Csn(35)).expect("is removed");
    write_rows(source, 4..=5);
    assert_eq!(seen(moved, 34), seen(source, 34), "those from before read on");
    moved.take_back(CHUNK).expect("is taken back");
    assert!(!catch_up(moved, source), "what was missed is enough");
    assert!(moved.removed().is_empty());
    assert_eq!(state(moved), state(source));
    assert_eq!(moved.report(&[]).len(), 1);
    moved.close();
    let again = on_files(dirs[1].path());
    assert!(again.removed().is_empty(), "it is here to stay");
    assert_eq!(state(&again), state(source));
}

#[test]
fn a_chunk_without_rows_comes_back() {
    let dir = tempfile::tempdir().expect("makes");
    let store = on_files(dir.path());
    prepare(&store, 1, batch::encode(&rows(1, 5)).expect("encodes")).expect("is journaled");
    store.decide(&[Decision { txn: txn(1), fate: Fate::Aborted }]).expect("is decided");
    store.drop_chunks(&[CHUNK], Csn(35)).expect("is removed");
    let scan = |snapshot| {
        let columns = rows(0, 0).schema();
        let predicate = Predicate::default();
        store
            .scan(ScanRequest { chunk: CHUNK, snapshot, own: None, columns, predicate })
            .map(|_| ())
    };
    let refused = scan(Csn(40)).expect_err("it was removed before");
    assert!(matches!(refused, Error::Removed(CHUNK)), "{refused}");
    store.take_back(CHUNK).expect("is taken back");
    assert_eq!(seen(&store, 40), (0, 0));
    write(&store, 5, 0, &rows(5, 10));
    assert_eq!(seen(&store, 50).0, 10);
}
