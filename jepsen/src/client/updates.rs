//! Statements about unique keys, and UPDATE, alone and in transaction blocks.

use std::time::Duration;

use super::{Client, Failure, index, number, signed};
use crate::{
    history::{Answer, Outcome, Rule},
    seed::Rng,
};

/// Fails for sure: whatever went wrong before COMMIT was sent did not take effect.
fn before_commit(failure: Failure) -> Failure {
    Failure { outcome: Outcome::Fail, ..failure }
}

impl Client {
    pub(super) async fn put(&self, wid: u64, rule: Rule) -> Result<Answer, Failure> {
        let value = |(key, value): (u64, u64)| format!("({}, {key}, {value})", day(3, key));
        let values: Vec<String> = self.source.puts(wid, rule).into_iter().map(value).collect();
        let conflict = match rule {
            Rule::Upsert => " ON CONFLICT (time, key) DO UPDATE SET value = EXCLUDED.value",
            Rule::Ignore => " ON CONFLICT (time, key) DO NOTHING",
            Rule::Strict => "",
        };
        let sql = format!("INSERT INTO keyed VALUES {}{conflict}", values.join(", "));
        let rows = self.changed(&sql).await?;
        Ok(self.written(rows).await)
    }

    pub(super) async fn keys(&self, keys: &[u64]) -> Result<Answer, Failure> {
        let names: Vec<String> = keys.iter().map(u64::to_string).collect();
        self.pairs("keyed", "value", &format!("key IN ({})", names.join(", "))).await
    }

    pub(super) async fn transfer(&self, wid: u64, block: bool) -> Result<Answer, Failure> {
        let (from, to, amount) = self.source.transfer(wid);
        if !block {
            let sql = format!(
                "UPDATE accounts SET value = value + CASE WHEN key = {from} THEN -{amount} ELSE {amount} END \
                 WHERE key IN ({from}, {to})"
            );
            let rows = self.changed(&sql).await?;
            return Ok(self.written(rows).await);
        }
        let take = format!("UPDATE accounts SET value = value - {amount} WHERE key = {from}");
        let give = format!("UPDATE accounts SET value = value + {amount} WHERE key = {to}");
        self.block(&[&take, &give], Duration::ZERO).await
    }

    pub(super) async fn count(
        &self,
        counter: u64,
        block: bool,
        held: Duration,
    ) -> Result<Answer, Failure> {
        let sql = format!("UPDATE counters SET value = value + 1 WHERE key = {counter}");
        if block {
            return self.block(&[&sql], held).await;
        }
        let rows = self.changed(&sql).await?;
        Ok(self.written(rows).await)
    }

    /// Statements in a transaction block, which stays open for a while after them.
    async fn block(&self, statements: &[&str], held: Duration) -> Result<Answer, Failure> {
        self.begin().await?;
        let mut rows = 0;
        for sql in statements {
            match self.changed(sql).await {
                Ok(changed) => rows += changed,
                Err(failure) => return Err(self.roll_back(failure).await),
            }
        }
        tokio::time::sleep(held).await;
        self.changed("COMMIT").await?;
        Ok(self.written(rows).await)
    }

    async fn begin(&self) -> Result<(), Failure> {
        self.changed("BEGIN").await.map_err(before_commit)?;
        Ok(())
    }

    /// Ends a block in which something failed; a connection on which that fails too is of no more use.
    async fn roll_back(&self, failure: Failure) -> Failure {
        let ended = self.changed("ROLLBACK").await;
        Failure { lost: failure.lost || ended.is_err(), ..before_commit(failure) }
    }

    pub(super) async fn swap(&self, wid: u64) -> Result<Answer, Failure> {
        let (one, other, value) = self.source.swap(wid);
        self.changed("BEGIN ISOLATION LEVEL REPEATABLE READ").await.map_err(before_commit)?;
        let read = format!("SELECT key, value FROM registers WHERE key IN ({one}, {other})");
        let rows = match self.query(&read).await {
            Ok(rows) => rows,
            Err(failure) => return Err(self.roll_back(failure).await),
        };
        let mut read: Vec<(u64, i64)> = rows
            .iter()
            .filter_map(|row| Some((u64::try_from(number(row, 0)?).ok()?, number(row, 1)?)))
            .collect();
        read.sort_unstable();
        let write = format!("UPDATE registers SET value = {value} WHERE key = {one}");
        if let Err(failure) = self.changed(&write).await {
            return Err(self.roll_back(failure).await);
        }
        self.changed("COMMIT").await?;
        Ok(Answer::Swapped { index: self.last_commit().await, read })
    }

    /// Keys and values of a table, with the snapshot.
    pub(super) async fn pairs(
        &self,
        table: &str,
        column: &str,
        condition: &str,
    ) -> Result<Answer, Failure> {
        // The row of the count makes sure that the snapshot is told even when there is nothing.
        let sql = format!(
            "SELECT hypertide_snapshot(), key, {column} FROM {table} WHERE {condition} \
             UNION ALL SELECT hypertide_snapshot(), -1, count(*) FROM {table} WHERE key = -1"
        );
        let rows = self.query(&sql).await?;
        let pair = |row| Some((u64::try_from(number(row, 1)?).ok()?, number(row, 2)?));
        let mut pairs: Vec<(u64, i64)> = rows.iter().filter_map(pair).collect();
        pairs.sort_unstable();
        Ok(Answer::Pairs { at: rows.first().and_then(index), pairs })
    }

    /// Compresses a chunk or undoes it. What one asks for twice is done once.
    pub(super) async fn squeeze(&self, salt: u64, undo: bool) -> Result<Answer, Failure> {
        let list = "SELECT chunk_name FROM timescaledb_information.chunks \
                    WHERE hypertable_name = 'm' ORDER BY chunk_id";
        let chunks = self.query(list).await.map_err(before_commit)?;
        let Some(name) = Rng::new(salt, 6).pick(&chunks).and_then(|row| row.get(0)) else {
            return Ok(Answer::Nothing);
        };
        let call = match undo {
            true => format!("decompress_chunk('_timescaledb_internal.{name}', true)"),
            false => format!("compress_chunk('_timescaledb_internal.{name}', true)"),
        };
        self.query(&format!("SELECT {call}")).await?;
        Ok(Answer::Nothing)
    }
}

/// A time for a key: keys lie in different chunks.
pub(crate) fn day(month: u64, key: u64) -> String {
    format!("'2026-{month:02}-{:02}'", 1 + signed(key % 27))
}
