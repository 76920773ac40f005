//! Every state that the commit and membership rules can reach, in bounds: the catalog itself is the transition function,
//! and data nodes and coordinators are the small [`world`] around it.
//!
//! Bounds: one table with one box in at most two generations, three data nodes with two replicas, two transactions. A run
//! allows so many changes of replicas, lost disks and restarts of the access node, and visits every order of every step
//! within them. States that differ by the names of nodes only count once.
//!
//! What is checked in each state: I1 every disk in sync holds every commit; I3 commits outlive all but the last disk that
//! held them, and only the loss of a disk makes a chunk damaged; I5 no keyed commit goes over one that its snapshot
//! missed; I6 a write id commits once; I8 the catalog's chain is that of the commits in order. I2, catch-up from members
//! only, and I4, whole visibility, follow from I1 here; I7 is the log's, which is one atomic step.
//!
//! A rule that is never seen to matter may be missing: each bug of [`world::Bug`] takes one rule away, and the search
//! must find a state that breaks an invariant.
//!
//! `HYPERTIDE_MODEL_CHANGES` raises the number of changes of replicas in the runs without a bug.

#![allow(clippy::indexing_slicing, reason = "a wrong index must end the test")]

#[path = "model/explore.rs"]
mod explore;
#[path = "model/world.rs"]
mod world;

use explore::{Found, explore};
use world::{Bug, Class, Limits, Setting};

fn limits(changes: u8, wipes: u8, fences: u8) -> Limits {
    let more = std::env::var("HYPERTIDE_MODEL_CHANGES").ok();
    let more: u8 = more.and_then(|more| more.parse().ok()).unwrap_or(0);
    Limits { changes: changes + more, wipes, fences }
}

fn assert_sound(name: &str, setting: Setting, least: usize) {
    match explore(setting) {
        Found::Nothing { states } => {
            eprintln!("{name}: {states} states");
            assert!(states >= least, "{name}: only {states} states were visited");
        }
        Found::Broken { rule, trace, .. } => panic!("{name}: {rule}\n{}", trace.join("\n")),
    }
}

fn assert_found(bug: Bug, setting: Setting, rule: &str) {
    let setting = Setting { bug: Some(bug), ..setting };
    match explore(setting) {
        Found::Broken { rule: broken, trace, .. } => {
            assert!(broken.starts_with(rule), "{bug:?} breaks {broken}:\n{}", trace.join("\n"));
        }
        Found::Nothing { states } => panic!("{bug:?} was not found in {states} states"),
    }
}

fn appends(changes: u8, wipes: u8, fences: u8) -> Setting {
    Setting {
        classes: [Class::Append; 2],
        one_write: false,
        seals: false,
        keeps: false,
        limits: limits(changes, wipes, fences),
        bug: None,
    }
}

#[test]
fn appends_are_safe_under_changes_and_a_lost_disk() {
    assert_sound("appends", appends(3, 1, 0), 10_000);
}

#[test]
fn appends_are_safe_with_new_generations_and_restarts() {
    assert_sound("generations", Setting { seals: true, ..appends(2, 1, 1) }, 10_000);
}

#[test]
fn two_lost_disks_lose_only_what_both_held() {
    assert_sound("two wipes", appends(2, 2, 0), 10_000);
}

#[test]
fn disks_that_lost_something_keep_what_they_prove() {
    let keeps = Setting { keeps: true, ..appends(2, 1, 0) };
    assert_sound("kept", keeps, 10_000);
    assert_sound("kept, two losses", Setting { keeps: true, ..appends(2, 2, 0) }, 10_000);
    let generations = Setting { seals: true, limits: limits(1, 1, 0), ..keeps };
    assert_sound("kept generations", generations, 1_000);
    let keyed = Setting { classes: [Class::Keyed; 2], keeps: true, ..appends(2, 1, 0) };
    assert_sound("kept, keyed", keyed, 1_000);
    let mixed = Setting { classes: [Class::Upsert, Class::Keyed], ..keyed };
    assert_sound("kept, mixed", Setting { limits: limits(1, 1, 0), ..mixed }, 1_000);
    assert_found(Bug::KeptWithoutProof, Setting { limits: limits(1, 1, 0), ..keeps }, "I1");
    assert_found(Bug::AcksWithoutIncarnation, Setting { limits: limits(1, 1, 0), ..keeps }, "I1");
}

#[test]
fn keyed_commits_never_go_over_what_they_missed() {
    let keyed = Setting { classes: [Class::Keyed; 2], ..appends(2, 1, 0) };
    assert_sound("keyed", keyed, 1_000);
}

#[test]
fn keyed_commits_agree_over_generations() {
    let keyed = Setting { classes: [Class::Keyed; 2], seals: true, ..appends(2, 0, 0) };
    assert_sound("keyed generations", keyed, 1_000);
    let bug = Setting { limits: limits(1, 0, 0), ..keyed };
    assert_found(Bug::GenerationUnseen, bug, "I5");
}

#[test]
fn deletes_from_sealed_chunks_are_safe() {
    let deletes = Setting { classes: [Class::Delete; 2], seals: true, ..appends(2, 0, 0) };
    assert_sound("deletes", deletes, 1_000);
    let mixed =
        Setting { classes: [Class::Delete, Class::Append], seals: true, ..appends(1, 1, 0) };
    assert_sound("deletes beside appends", mixed, 1_000);
    let bug = Setting { limits: limits(1, 0, 0), ..deletes };
    assert_found(Bug::NoReservation, bug, "I5");
}

#[test]
fn keyed_commits_and_upserts_agree() {
    let mixed = Setting { classes: [Class::Upsert, Class::Keyed], ..appends(1, 1, 0) };
    assert_sound("mixed", mixed, 1_000);
}

#[test]
fn a_write_that_is_sent_again_is_applied_once() {
    assert_sound("one write", Setting { one_write: true, ..appends(1, 0, 1) }, 100);
}

#[test]
fn each_bug_of_the_write_set_is_found() {
    const LOST: &str = "I1";
    assert_found(Bug::JoiningNotNeeded, appends(1, 0, 0), LOST);
    assert_found(Bug::AcksWithoutIncarnation, appends(2, 1, 0), LOST);
    assert_found(Bug::CoordinatorTrusted, appends(1, 0, 0), LOST);
    assert_found(Bug::FinishWithoutProof, appends(1, 0, 0), LOST);
    assert_found(Bug::ReturnWithoutProof, appends(1, 0, 0), LOST);
    assert_found(Bug::CatchUpFromAnyone, appends(2, 0, 0), LOST);
    assert_found(Bug::WipeUnnoticed, appends(0, 1, 0), LOST);
    assert_found(Bug::RemovalDropsPending, appends(2, 0, 0), LOST);
    assert_found(Bug::BootNotChecked, appends(0, 0, 1), LOST);
}

#[test]
fn each_bug_of_keys_and_write_ids_is_found() {
    let keyed = Setting { classes: [Class::Keyed; 2], ..appends(0, 0, 0) };
    assert_found(Bug::NoReservation, keyed, "I5");
    assert_found(Bug::EpochsNotCompared, Setting { limits: limits(3, 0, 0), ..keyed }, "I5");
    let mixed = Setting { classes: [Class::Upsert, Class::Keyed], ..appends(0, 0, 0) };
    assert_found(Bug::UpsertsIgnoreReservations, mixed, "I5");
    assert_found(Bug::WriteForgotten, Setting { one_write: true, ..appends(0, 0, 0) }, "I6");
}
