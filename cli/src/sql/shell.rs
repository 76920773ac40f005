//! The interactive shell.

use std::path::PathBuf;

use anyhow::Context;
use rustyline::{DefaultEditor, error::ReadlineError};

use super::{Client, print, split};

const HELP: &str = "\
  SQL ends with a semicolon and may span lines.
  \\dt      tables
  \\timing  print the time of each statement, or stop doing so
  \\?       this help
  \\q       leave";

/// What a line that starts with a backslash asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meta {
    Tables,
    Timing,
    Help,
    Quit,
    Unknown,
}

impl Meta {
    fn parse(line: &str) -> Option<Self> {
        Some(match line.trim().strip_prefix('\\')?.trim_end_matches(';') {
            "dt" | "d" => Self::Tables,
            "timing" => Self::Timing,
            "?" | "h" | "help" => Self::Help,
            "q" | "quit" => Self::Quit,
            _ => Self::Unknown,
        })
    }
}

/// Reads statements until the end of input or `\q`.
pub(crate) async fn run(
    mut client: Client,
    address: &str,
    mut printing: print::Printing,
) -> anyhow::Result<()> {
    let mut editor = DefaultEditor::new().context("open the terminal")?;
    let history = history_path();
    if let Some(path) = &history {
        // A first start has no history yet.
        drop(editor.load_history(path));
    }
    say!("hypertide {} at {address}; \\? for help", env!("CARGO_PKG_VERSION"));
    let mut text = String::new();
    loop {
        let prompt = if text.is_empty() { "hypertide=> " } else { "hypertide-> " };
        // The editor blocks its thread until a line is there.
        let line = match tokio::task::block_in_place(|| editor.readline(prompt)) {
            Ok(line) => line,
            Err(ReadlineError::Interrupted) => {
                text.clear();
                continue;
            }
            Err(ReadlineError::Eof) => break,
            Err(error) => return Err(error).context("read the terminal"),
        };
        if text.is_empty()
            && let Some(meta) = Meta::parse(&line)
        {
            editor.add_history_entry(line)?;
            if meta == Meta::Quit {
                break;
            }
            report(perform(meta, &mut client, &mut printing).await);
            continue;
        }
        text.push_str(&line);
        text.push('\n');
        if !split::complete(&text) {
            continue;
        }
        if !text.trim().is_empty() {
            editor.add_history_entry(text.trim())?;
        }
        report(statements(&text, &mut client, printing).await);
        text.clear();
    }
    if let Some(path) = &history {
        editor.save_history(path).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

fn history_path() -> Option<PathBuf> {
    let named = std::env::var_os("HYPERTIDE_HISTORY").map(PathBuf::from);
    named.or_else(|| Some(std::env::home_dir()?.join(".hypertide_history")))
}

/// An error of a statement is told; the shell goes on.
fn report(outcome: anyhow::Result<()>) {
    if let Err(error) = outcome {
        eprintln!("error: {error:#}");
    }
}

async fn perform(
    meta: Meta,
    client: &mut Client,
    printing: &mut print::Printing,
) -> anyhow::Result<()> {
    match meta {
        Meta::Tables => printing.print(&client.tables().await?)?,
        Meta::Timing => {
            printing.timing = !printing.timing;
            say!("timing is {}", if printing.timing { "on" } else { "off" });
        }
        Meta::Help => say!("{HELP}"),
        Meta::Quit => {}
        Meta::Unknown => anyhow::bail!("no such command; \\? lists them"),
    }
    Ok(())
}

/// Runs statements; Ctrl-C gives up the one under way, which cancels it.
async fn statements(
    text: &str,
    client: &mut Client,
    printing: print::Printing,
) -> anyhow::Result<()> {
    for statement in split::statements(text) {
        let outcome = tokio::select! {
            outcome = client.run(statement) => outcome?,
            _ = tokio::signal::ctrl_c() => anyhow::bail!("cancelled"),
        };
        printing.print(&outcome)?;
        if printing.timing {
            say!("{}", print::time(outcome.elapsed));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backslash_starts_a_command() {
        assert_eq!(Meta::parse("\\dt;"), Some(Meta::Tables));
        assert_eq!(Meta::parse(" \\q "), Some(Meta::Quit));
        assert_eq!(Meta::parse("\\nonsense"), Some(Meta::Unknown));
        assert_eq!(Meta::parse("SELECT 1;"), None);
    }
}
