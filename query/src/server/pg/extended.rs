//! The extended protocol: statements with parameters, portals that give some rows at a time.

use std::{mem, sync::Arc};

use pgwire::messages::{
    PgWireBackendMessage as Message,
    data::{NoData, ParameterDescription},
    extendedquery::{BindComplete, CloseComplete, ParseComplete, PortalSuspended},
};

use super::{
    connection::{Connection, Fault, Stop},
    frontend::{Bind, Frontend, PROTOCOL_VIOLATION, Target},
    parameters,
    portal::{Cursor, Portal, PortalState, describe, result_types},
    types::{Kind, column_of_oid},
};
use crate::{Error, Prepared, Reply, SqlState, TransactionStatus};

/// Most statements, and most portals, of a connection at a time.
const NAMES_MAX: usize = 10_000;
/// Most parameters of a statement.
const PARAMETERS_MAX: usize = 10_000;

/// A failure, with the text that its position is in.
type Failure = (Fault, Option<String>);

impl Connection {
    /// Answers a message of the extended protocol.
    pub(super) async fn extended(&mut self, message: Frontend) -> Result<(), Failure> {
        match message {
            Frontend::Parse { name, sql, types } => {
                self.parse(name, &sql, &types).await.map_err(|fault| (fault, Some(sql)))
            }
            Frontend::Execute { portal, rows } => {
                let sql = self.portals.get(&portal).map(|portal| Arc::clone(&portal.statement));
                let done = self.execute(&portal, rows).await;
                done.map_err(|fault| (fault, sql.map(|statement| statement.sql.clone())))
            }
            Frontend::Bind(bind) => self.bind(*bind).map_err(|fault| (fault, None)),
            Frontend::Describe(target) => self.describe(&target).map_err(|fault| (fault, None)),
            Frontend::Close(target) => self.close(&target).map_err(|stop| (stop.into(), None)),
            Frontend::Flush => self.writer.flush().await.map_err(|stop| (stop.into(), None)),
            other => {
                let message = format!("unexpected message {other:?}");
                Err((Error::new(PROTOCOL_VIOLATION, message).into(), None))
            }
        }
    }

    async fn parse(&mut self, name: String, sql: &str, types: &[u32]) -> Result<(), Fault> {
        if name.is_empty() {
            self.statements.remove("");
        } else if self.statements.contains_key(&name) {
            let message = format!("prepared statement \"{name}\" already exists");
            return Err(Error::new(SqlState("42P05"), message).into());
        }
        within(self.statements.len(), "prepared statements")?;
        self.begin_statement();
        let hints: Vec<_> = types.iter().map(|oid| column_of_oid(*oid)).collect();
        let preparing = self.session.prepare(sql, &hints);
        let prepared = self.watch.over(&mut self.reader, preparing).await??;
        if prepared.parameters.len() > PARAMETERS_MAX {
            let message = format!("a statement can have at most {PARAMETERS_MAX} parameters");
            return Err(Error::new(SqlState("54000"), message).into());
        }
        self.notices()?;
        self.statements.insert(name, Arc::new(prepared));
        Ok(self.writer.put(&Message::ParseComplete(ParseComplete::new()))?)
    }

    fn bind(&mut self, bind: Bind) -> Result<(), Fault> {
        let statement = Arc::clone(self.statement(&bind.statement)?);
        if bind.portal.is_empty() {
            self.portals.remove("");
        } else if self.portals.contains_key(&bind.portal) {
            let message = format!("cursor \"{}\" already exists", bind.portal);
            return Err(Error::new(SqlState("42P03"), message).into());
        }
        within(self.portals.len(), "portals")?;
        let (given, wanted) = (bind.values.len(), statement.parameters.len());
        if given != wanted {
            let name = &bind.statement;
            let message = format!(
                "bind message supplies {given} parameters, but prepared statement \"{name}\" \
                 requires {wanted}"
            );
            return Err(Error::new(PROTOCOL_VIOLATION, message).into());
        }
        let zone = self.session.settings().zone();
        let values = parameters::decode(&bind, &statement.parameters, zone)?;
        let state = PortalState::Ready(values);
        self.portals.insert(bind.portal, Portal { statement, results: bind.results, state });
        Ok(self.writer.put(&Message::BindComplete(BindComplete::new()))?)
    }

    fn describe(&mut self, target: &Target) -> Result<(), Fault> {
        let (statement, formats) = match target {
            Target::Statement(name) => {
                let statement = Arc::clone(self.statement(name)?);
                let types = statement.parameters.iter().map(|kind| Kind::of_column(*kind).oid());
                let types = ParameterDescription::new(types.collect());
                self.writer.put(&Message::ParameterDescription(types))?;
                (statement, Vec::new())
            }
            Target::Portal(name) => {
                let portal = self.portals.get(name).ok_or_else(|| no_portal(name))?;
                (Arc::clone(&portal.statement), portal.results.clone())
            }
        };
        let message = match &statement.columns {
            Some(schema) => describe(schema, &result_types(schema, &formats)?),
            None => Message::NoData(NoData::new()),
        };
        Ok(self.writer.put(&message)?)
    }

    /// Runs a portal, or goes on with it. It is out of the list meanwhile, so that an error leaves it closed.
    async fn execute(&mut self, name: &str, rows: usize) -> Result<(), Fault> {
        let mut portal = self.portals.remove(name).ok_or_else(|| no_portal(name))?;
        self.begin_statement();
        let mut cursor = match mem::replace(&mut portal.state, PortalState::Done(None)) {
            PortalState::Running(cursor) => cursor,
            PortalState::Ready(values) => {
                if let Some(tag) = self.deallocate(&portal.statement.sql) {
                    return Ok(self.writer.complete(tag)?);
                }
                // A statement that Sync follows is a transaction of its own, as soon as its answer is sent.
                if !self.reader.sync_follows() {
                    self.session.begin_together();
                }
                let executing = self.session.execute(&portal.statement, values);
                let reply = self.watch.over(&mut self.reader, executing).await??;
                self.notices()?;
                match self.cursor(&portal, reply)? {
                    Ok(cursor) => Box::new(cursor),
                    Err(reply) => return self.without_rows(reply).await,
                }
            }
            PortalState::Done(Some(tag)) => {
                portal.state = PortalState::Done(Some(tag));
                self.portals.insert(name.to_owned(), portal);
                return Ok(self.writer.complete(format!("{tag} 0"))?);
            }
            PortalState::Done(None) => {
                let message = format!("portal \"{name}\" cannot be run anymore");
                return Err(Error::new(SqlState("55000"), message).into());
            }
        };
        let most = if rows == 0 { u64::MAX } else { rows as u64 };
        let ends = (&mut self.reader, &mut self.writer);
        if cursor.send(most, ends, &self.watch).await? {
            self.notices()?;
            self.writer.complete(cursor.tag())?;
            portal.state = cursor.done();
        } else {
            portal.state = PortalState::Running(cursor);
            self.writer.put(&Message::PortalSuspended(PortalSuspended::new()))?;
        }
        self.portals.insert(name.to_owned(), portal);
        Ok(())
    }

    /// A cursor over the rows of a reply; gives other replies back.
    fn cursor(&self, portal: &Portal, reply: Reply) -> Result<Result<Cursor, Reply>, Error> {
        let Reply::Rows { schema, stream, tag, counted } = reply else { return Ok(Err(reply)) };
        let types = result_types(&schema, &portal.results)?;
        let told = match &portal.statement.columns {
            Some(told) => result_types(told, &portal.results)?,
            None => Vec::new(),
        };
        // Rows of other types than the client was told would be misread.
        if !types.iter().map(|(t, _)| t.oid()).eq(told.iter().map(|(t, _)| t.oid())) {
            let message = "cached plan must not change result type";
            return Err(Error::new(SqlState("0A000"), message));
        }
        Ok(Ok(Cursor::new(stream, types, self.session.settings().text_style(), (tag, counted))))
    }

    fn close(&mut self, target: &Target) -> Result<(), Stop> {
        match target {
            Target::Statement(name) => drop(self.statements.remove(name)),
            Target::Portal(name) => drop(self.portals.remove(name)),
        }
        self.writer.put(&Message::CloseComplete(CloseComplete::new()))
    }

    fn statement(&self, name: &str) -> Result<&Arc<Prepared>, Error> {
        self.statements.get(name).ok_or_else(|| no_statement(name))
    }

    /// Runs a `DEALLOCATE` of a statement of the protocol; `None` when it is the session's to run.
    pub(super) fn deallocate(&mut self, sql: &str) -> Option<String> {
        let mut words = sql.trim().trim_end_matches(';').split_ascii_whitespace();
        words.next().filter(|word| word.eq_ignore_ascii_case("deallocate"))?;
        if self.session.status() == TransactionStatus::Failed {
            return None;
        }
        let mut name = words.next();
        if name.is_some_and(|word| word.eq_ignore_ascii_case("prepare")) {
            name = words.next();
        }
        let name = name.filter(|_| words.next().is_none())?;
        if name.eq_ignore_ascii_case("all") {
            // The session forgets those of SQL's PREPARE.
            self.statements.clear();
            return None;
        }
        let name = match name.strip_prefix('"').and_then(|name| name.strip_suffix('"')) {
            Some(quoted) => quoted.replace("\"\"", "\""),
            None => name.to_ascii_lowercase(),
        };
        self.statements.remove(&name).map(|_| "DEALLOCATE".to_owned())
    }
}

/// Refuses one name more than a connection may have.
fn within(count: usize, what: &str) -> Result<(), Error> {
    if count < NAMES_MAX {
        return Ok(());
    }
    let message = format!("a connection can have at most {NAMES_MAX} {what}");
    Err(Error::new(SqlState("54000"), message))
}

fn no_statement(name: &str) -> Error {
    let message = match name {
        "" => "unnamed prepared statement does not exist".to_owned(),
        name => format!("prepared statement \"{name}\" does not exist"),
    };
    Error::new(SqlState("26000"), message)
}

fn no_portal(name: &str) -> Error {
    Error::new(SqlState("34000"), format!("portal \"{name}\" does not exist"))
}
