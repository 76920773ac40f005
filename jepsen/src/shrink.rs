//! Looks for fewer faults with which a run fails in the same way, by leaving out parts of the schedule (ddmin).

use std::path::Path;

use anyhow::{Context, bail};

use crate::{done, nemesis::plan::Event, run, run::Run};

/// Shrinks a run that failed; whether fewer faults were found.
pub(crate) async fn run(old: &Path, attempts: u32) -> anyhow::Result<bool> {
    let evidence = run::read(old)?;
    let results: crate::results::Results = run::read_json(&old.join("results.json"))?;
    let wanted: Vec<String> = results.violation_counts.keys().cloned().collect();
    if wanted.is_empty() {
        bail!("{} has no violation", old.display());
    }
    let all = done(evidence.faults);
    let count = all.len();
    let mut search = Search { best: all, part: 2, from: 0 };
    for attempt in 1..=attempts {
        let Some(events) = search.next() else { break };
        let name = old.file_name().unwrap_or_default().to_string_lossy();
        let dir = old.with_file_name(format!("{name}-shrink{attempt}"));
        let config = evidence.config.clone();
        let schedule = Some(events.clone());
        let tried = Run { config, dir: dir.clone(), schedule }.execute().await;
        let tried = tried.with_context(|| format!("attempt {attempt}"))?;
        let same = wanted.iter().any(|checker| tried.violation_counts.contains_key(checker));
        eprintln!("attempt {attempt}: {} faults, fails the same way: {same}", events.len());
        if same {
            keep(&dir)?;
        }
        search.tell(same, events);
    }
    println!("{} of {count} faults are left:", search.best.len());
    for event in &search.best {
        println!("{}", serde_json::to_string(event).context("serialise")?);
    }
    Ok(search.best.len() < count)
}

fn keep(dir: &Path) -> anyhow::Result<()> {
    std::fs::write(dir.join("smaller"), "fails in the same way\n").context("mark the run")
}

/// Which faults to leave out next.
#[derive(Debug)]
struct Search {
    best: Vec<Event>,
    /// Parts that the schedule is cut into.
    part: usize,
    /// The part that is left out next.
    from: usize,
}

impl Search {
    /// The next schedule to try, or none when none smaller is left.
    fn next(&self) -> Option<Vec<Event>> {
        if self.best.is_empty() || self.part > self.best.len().max(1) {
            return None;
        }
        let size = self.best.len().div_ceil(self.part);
        let out = self.from * size..(self.from + 1) * size;
        let kept = self.best.iter().enumerate().filter(|(at, _)| !out.contains(at));
        Some(kept.map(|(_, event)| event.clone()).collect())
    }

    /// What came of it.
    fn tell(&mut self, same: bool, events: Vec<Event>) {
        if same {
            self.best = events;
            self.part = self.part.saturating_sub(1).max(2);
            self.from = 0;
        } else {
            self.from += 1;
        }
        let size = self.best.len().div_ceil(self.part).max(1);
        if self.from * size >= self.best.len() {
            self.from = 0;
            // One part a fault: the last round was in vain.
            self.part = if size == 1 { usize::MAX } else { (self.part * 2).min(self.best.len()) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nemesis::plan::{Kind, Target};

    fn event(id: u64) -> Event {
        let target = Target::Nodes(vec!["d1".into()]);
        Event { id, at_ms: id, for_ms: 1, kind: Kind::Kill, target, salt: 0, after_acks: None }
    }

    #[test]
    fn the_faults_that_matter_are_found() {
        for needed in [vec![3], vec![0, 9], vec![2, 5, 6]] {
            let mut search = Search { best: (0..10).map(event).collect(), part: 2, from: 0 };
            let mut attempts = 0;
            while let Some(events) = search.next() {
                attempts += 1;
                assert!(attempts < 100, "it does not end");
                let fails = needed.iter().all(|id| events.iter().any(|event| event.id == *id));
                search.tell(fails, events);
            }
            let left: Vec<u64> = search.best.iter().map(|event| event.id).collect();
            assert_eq!(left, needed);
        }
    }
}
