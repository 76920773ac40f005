//! The run on one page: lanes of nodes with their faults, of operations with their outcomes, rates and latencies, and the
//! first violation with the operations that show it. One file, without any other.

mod plot;
mod tables;

use std::fmt::{self, Write};

use crate::{checker::evidence::Evidence, results::Results};

const STYLE: &str = include_str!("style.css");

/// The page.
pub(crate) fn page(evidence: &Evidence, results: &Results) -> String {
    let mut page = String::new();
    // Writing to a string does not fail.
    let _ = write_page(&mut page, evidence, results);
    page
}

fn write_page(page: &mut String, evidence: &Evidence, results: &Results) -> fmt::Result {
    let config = &evidence.config;
    let faults: Vec<&str> = config.faults.iter().map(|kind| kind.name()).collect();
    let faults = if faults.is_empty() { "no faults".to_owned() } else { faults.join(", ") };
    let faults = match &config.planted {
        Some(bug) => format!("{faults}, with the planted bug {bug}"),
        None => faults,
    };
    let (class, word) = if results.valid { ("", "valid") } else { (" bad", "not valid") };
    writeln!(
        page,
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>{0} {1}</title>\n<style>{STYLE}</style>\n<main>\
         <h1>Workload {0}, seed {1} <span class=\"badge{class}\">{word}</span></h1>\
         <p class=\"sub\">{2} s under {3} · {4} access and {5} data nodes, {6} clients · {7} · {8}</p>",
        config.workload,
        config.seed,
        config.seconds,
        escape(&faults),
        config.access,
        config.data,
        config.clients,
        escape(&results.network),
        escape(&config.version)
    )?;
    tables::cards(page, results)?;
    tables::first_violation(page, evidence, results)?;
    plot::figure(page, evidence, results)?;
    tables::checkers(page, results)?;
    tables::faults(page, evidence)?;
    tables::failures(page, evidence)?;
    page.push_str("</main></html>\n");
    Ok(())
}

/// Text that is safe inside markup.
fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            c => safe.push(c),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_cannot_leave_its_place() {
        assert_eq!(escape("<a b=\"c\">&"), "&lt;a b=&quot;c&quot;&gt;&amp;");
    }
}
