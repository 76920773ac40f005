//! `hypertide sql`: SQL over Flight SQL.

mod client;
mod print;
mod shell;
mod split;

use std::io::{IsTerminal, Read};

use anyhow::Context;

pub(crate) use self::{
    client::{Client, Outcome, may_pass, unshared},
    split::statements,
};
use crate::{format::Format, locate::Target};

/// Options of the verb.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Run these statements and exit; without it they come from standard input, or from a shell on a terminal.
    #[arg(short, long, value_name = "SQL")]
    command: Option<String>,
    /// Flight SQL address of an access node [default: what --dir or --access names, or 127.0.0.1:5450].
    #[arg(long, env = "HYPERTIDE_FLIGHT", value_name = "ADDR")]
    flight: Option<String>,
    #[command(flatten)]
    target: Target,
    /// How to print results.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// Print the time of each statement, on standard error when not in the shell.
    #[arg(long)]
    timing: bool,
}

/// The command that opens psql at this address.
pub(crate) fn psql_command(pg: &str) -> String {
    let (host, port) = pg.rsplit_once(':').unwrap_or((pg, "5440"));
    format!("psql -h {host} -p {port} -U hypertide hypertide")
}

/// Options of verbs that say what they want in SQL.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Remote {
    #[command(flatten)]
    pub(crate) target: Target,
    /// Flight SQL address of an access node [default: what --dir or --access names].
    #[arg(long, env = "HYPERTIDE_FLIGHT", value_name = "ADDR")]
    pub(crate) flight: Option<String>,
}

impl Remote {
    /// Connects to the access node.
    pub(crate) async fn connect(&self) -> anyhow::Result<Client> {
        let address = flight_address(self.flight.clone(), &self.target).await?;
        Client::connect(&address).await
    }
}

/// A text as SQL writes it.
pub(crate) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// The Flight SQL address to talk to.
pub(crate) async fn flight_address(
    given: Option<String>,
    target: &Target,
) -> anyhow::Result<String> {
    match given {
        Some(address) => Ok(address),
        None => Ok(target.identity().await?.flight),
    }
}

/// Runs the statements.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let address = flight_address(args.flight, &args.target).await?;
    let client = Client::connect(&address).await?;
    let printing = print::Printing { format: args.format, timing: args.timing };
    match args.command {
        Some(text) => script(client, &text, printing).await,
        None if std::io::stdin().is_terminal() => shell::run(client, &address, printing).await,
        None => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).context("read standard input")?;
            script(client, &text, printing).await
        }
    }
}

/// Runs statements in turn; the first that fails ends it.
async fn script(mut client: Client, text: &str, printing: print::Printing) -> anyhow::Result<()> {
    for statement in split::statements(text) {
        let outcome = client.run(statement).await?;
        printing.print(&outcome)?;
        if printing.timing {
            eprintln!("{}", print::time(outcome.elapsed));
        }
    }
    Ok(())
}
