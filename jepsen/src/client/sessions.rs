//! Statements that live longer than one message: prepared before, read through a portal, cancelled while they run.

use std::time::Duration;

use tokio_postgres::NoTls;

use super::{Client, Failure, condition, float, signed, system_time};
use crate::{
    history::{Answer, Filter, Outcome},
    seed::Rng,
    workload::rows::Row,
};

/// Rows of a page of a portal.
const PAGE_ROWS: i32 = 5;
/// A statement is asked to be cancelled after up to so many microseconds.
const CANCEL_AFTER_US: u64 = 60_000;
/// Time for the cancel request itself.
const CANCEL_LIMIT: Duration = Duration::from_secs(2);

impl Client {
    /// One row after the other, by one statement that was prepared when the connection was young; all in one block.
    pub(super) async fn insert_prepared(&mut self, rows: &[Row]) -> Result<u64, Failure> {
        let never =
            |error: tokio_postgres::Error| Failure { outcome: Outcome::Fail, ..error.into() };
        let prepared = match self.prepared.clone() {
            Some(prepared) => prepared,
            None => {
                let sql = "INSERT INTO m VALUES ($1, $2, $3, $4, $5)";
                self.pg.prepare(sql).await.map_err(never)?
            }
        };
        self.prepared = Some(prepared.clone());
        let block = self.pg.transaction().await.map_err(never)?;
        let mut count = 0;
        for row in rows {
            let (time, series) = (system_time(row.time_us), format!("s{}", row.series));
            let (uid, value, note) = (signed(row.uid), float(row.value), row.note_text());
            let sent = block.execute(&prepared, &[&time, &series, &uid, &value, &note]).await;
            count += sent.map_err(never)?;
        }
        block.commit().await?;
        Ok(count)
    }

    /// INSERT, with a request to cancel it while it runs.
    pub(super) async fn insert_cancelled(&self, sql: &str, salt: u64) -> Result<u64, Failure> {
        let cancel = self.pg.cancel_token();
        let after = Rng::new(salt, 7).range(0, CANCEL_AFTER_US);
        let cancelling = async {
            tokio::time::sleep(Duration::from_micros(after)).await;
            // One that comes too late, or not at all, is no failure.
            tokio::time::timeout(CANCEL_LIMIT, cancel.cancel_query(NoTls)).await.ok();
        };
        let (written, ()) = tokio::join!(self.changed(sql), cancelling);
        // A request that the server took up late would hit the next statement: that is PostgreSQL's way, and the next
        // one is then a harmless one.
        self.query("SELECT 1").await.ok();
        written
    }

    /// Rows through a portal, a few at a time, which all are of one snapshot.
    pub(super) async fn read_paged(&mut self, filter: &Filter) -> Result<Answer, Failure> {
        let sql = format!(
            "SELECT hypertide_snapshot()::text, time::text, series, uid::text, value::text, note FROM m{}",
            condition(filter)
        );
        let block = self.pg.transaction().await?;
        let statement = block.prepare(&sql).await?;
        let portal = block.bind(&statement, &[]).await?;
        let mut cells: Vec<Vec<Option<String>>> = Vec::new();
        loop {
            let page = block.query_portal(&portal, PAGE_ROWS).await?;
            let done = page.is_empty();
            for row in page {
                let cell = |at| row.try_get::<_, Option<String>>(at).ok().flatten();
                cells.push((0..6).map(cell).collect());
            }
            if done {
                break;
            }
        }
        block.commit().await?;
        Ok(super::rows_answer(&self.source, &cells))
    }
}
