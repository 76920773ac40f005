//! Finding the chunk of a point, and making the one that is missing.
//!
//! Both go by the corners of the chunks' boxes, ordered by table, start of the time slice and start of the first hash
//! slice. Time slices of one table are equal or disjoint, so that the last corner that begins at or before a point
//! decides which time slice can hold it. With one hash dimension the same is true of the hash slices within.

use hypertide_proto::{
    ids::{ChunkId, Csn, Epoch, Generation, NodeId, Rid, TableId},
    time::TimeRange,
};

use super::{
    Catalog, Chunk, ChunkState, DataNode, Outcome, Reject, RowKey, Table, TableKind, apply::Step,
    index::Corner,
};
use crate::placement::{self, Candidate};

/// The first and the last chunk id, which bound corners that begin alike.
const CHUNK_MIN: ChunkId = ChunkId(0);
const CHUNK_MAX: ChunkId = ChunkId(u64::MAX);

impl Catalog {
    /// The open chunk that holds a point: the time value, then one hash value per hash dimension.
    #[must_use]
    pub fn chunk_at(&self, table: TableId, point: &[i64]) -> Option<&Chunk> {
        self.boxes_at(table, point).find(|chunk| chunk.state == ChunkState::Open)
    }

    /// All chunks that hold a point, of whatever generation and state.
    pub fn chunks_at<'a>(
        &'a self,
        table: TableId,
        point: &[i64],
    ) -> impl Iterator<Item = &'a Chunk> {
        self.boxes_at(table, point)
    }

    /// The chunks of a table whose time slice has a point in common with `range`, in order of time.
    /// The chunk of a reference table has all of time.
    pub fn chunks_overlapping(
        &self,
        table: TableId,
        range: &TimeRange,
    ) -> impl Iterator<Item = &Chunk> {
        let first = self.time_slice_at(table, range.start()).unwrap_or(*range).start();
        let (from, end) = ((table, first, i64::MIN, CHUNK_MIN), range.end());
        let to = (table, i64::MAX, i64::MAX, CHUNK_MAX);
        let corners = self.index.corners.range(from..=to);
        corners.take_while(move |corner| corner.1 < end).filter_map(|corner| self.at(corner))
    }

    /// Finds or makes the open chunk of each point.
    pub(crate) fn ensure_chunks(
        &mut self,
        table: TableId,
        points: &[Vec<i64>],
        step: &mut Step,
    ) -> Result<Outcome, Reject> {
        let row = self.existing(table)?;
        let arity = row.arity();
        if let Some(point) = points.iter().find(|point| point.len() != arity) {
            return Err(Reject::InvalidDimension(format!(
                "table \"{}\" has {arity} dimensions, and a point of {} came",
                row.name,
                point.len()
            )));
        }
        let missing = points.iter().any(|point| self.chunk_at(table, point).is_none());
        if missing && self.candidates(row).is_empty() {
            return Err(Reject::NoDataNodes(format!(
                "insufficient number of data nodes for table \"{}\": none takes new chunks",
                row.name
            )));
        }
        let ensure = |point: &Vec<i64>| match self.chunk_at(table, point) {
            Some(chunk) => chunk.clone(),
            None => self.make_chunk(table, point, step),
        };
        Ok(Outcome::Chunks(points.iter().map(ensure).collect()))
    }

    /// Makes the chunk of a point that no open chunk holds. The table exists and has a candidate.
    fn make_chunk(&mut self, table: TableId, point: &[i64], step: &mut Step) -> Chunk {
        let row = self.tables.get(&table).expect("the table was looked up before");
        let (slices, generation) = self.slices_for(row, point);
        let in_sync = self.place(row, point.get(1).copied());
        self.counters.chunk = self.counters.chunk.next();
        let id = self.counters.chunk;
        let chunk = Chunk {
            id,
            table,
            name: self.next_chunk_name(table, id, step),
            slices,
            generation,
            state: ChunkState::Open,
            epoch: Epoch(0),
            in_sync,
            joining: Vec::new(),
            left: Vec::new(),
            last_csn: Csn(0),
            chain: 0,
            rows: 0,
            created_ms: step.at_ms,
            compressed: None,
            asked: None,
            lost: Vec::new(),
        };
        self.put_chunk(chunk.clone(), step);
        chunk
    }

    /// The name of the table's next chunk, counted in place: the row may hold thousands of buckets.
    fn next_chunk_name(&mut self, table: TableId, chunk: ChunkId, step: &mut Step) -> String {
        match self.tables.get_mut(&table).map(|row| &mut row.kind) {
            Some(TableKind::Hypertable(made)) => {
                let number = made.next_chunk;
                made.next_chunk += 1;
                step.changes.touch(RowKey::Table(table));
                format!("{}_{number}_chunk", made.chunk_prefix)
            }
            _ => format!("_ref_{}_{}_chunk", table.0, chunk.0),
        }
    }

    /// The box of a new chunk that holds `point`: that of the closed chunk there in its next generation, or the
    /// product of the dimensions' slices, cut where it would overlap a box there is.
    fn slices_for(&self, table: &Table, point: &[i64]) -> (Vec<TimeRange>, Generation) {
        if let Some(closed) = self.boxes_at(table.id, point).max_by_key(|chunk| chunk.generation) {
            return (closed.slices.clone(), closed.generation.next());
        }
        let dimensions = table.hypertable().map_or(&[][..], |made| &made.dimensions);
        let wanted = dimensions.iter().zip(point).map(|(dimension, at)| dimension.slice(*at));
        let mut slices: Vec<TimeRange> = wanted.collect();
        if let (Some(time), Some(at)) = (slices.first_mut(), point.first()) {
            *time = self.cut_time(table.id, *time, *at);
        }
        self.cut_hashes(table.id, &mut slices, point);
        (slices, Generation(1))
    }

    /// The time slice there is at the point, or the wanted one without what its neighbours have.
    fn cut_time(&self, table: TableId, wanted: TimeRange, at: i64) -> TimeRange {
        if let Some(slice) = self.time_slice_at(table, at) {
            return slice;
        }
        let corners = &self.index.corners;
        let before = corners.range(..=(table, at, i64::MAX, CHUNK_MAX)).next_back();
        let before = before.filter(|corner| corner.0 == table).and_then(|corner| self.at(corner));
        let after = corners.range((table, at, i64::MAX, CHUNK_MAX)..).next();
        let after = after.filter(|corner| corner.0 == table);
        let start = before.map_or(wanted.start(), |chunk| wanted.start().max(chunk.time().end()));
        let end = after.map_or(wanted.end(), |corner| wanted.end().min(corner.1));
        TimeRange::new(start, end).expect("a cut slice still holds its point")
    }

    /// Cuts the hash slices so that the box overlaps no other of its time slice: each box in the way lies aside of the
    /// point in some hash dimension, and there the cut is made.
    fn cut_hashes(&self, table: TableId, slices: &mut [TimeRange], point: &[i64]) {
        let Some(start) = slices.first().map(TimeRange::start) else { return };
        let all = (table, start, i64::MIN, CHUNK_MIN)..=(table, start, i64::MAX, CHUNK_MAX);
        for other in self.index.corners.range(all).filter_map(|corner| self.at(corner)) {
            if !slices.iter().zip(&other.slices).all(|(one, two)| one.overlaps(two)) {
                continue;
            }
            let mut sides = slices.iter_mut().zip(&other.slices).zip(point);
            if let Some(((slice, theirs), at)) = sides.find(|((_, two), at)| !two.contains(**at)) {
                let (start, end) = if theirs.end() <= *at {
                    (theirs.end(), slice.end())
                } else {
                    (slice.start(), theirs.start())
                };
                *slice = TimeRange::new(start, end).expect("a cut slice still holds its point");
            }
        }
    }

    /// Replicas of a new chunk at that hash of the placing dimension.
    fn place(&self, table: &Table, hash: Option<i64>) -> Vec<Rid> {
        let candidates = self.candidates(table);
        let nodes = match &table.kind {
            // Joins with a reference table run wherever a hypertable's rows are: on every node.
            TableKind::Reference => candidates.iter().map(|candidate| candidate.node).collect(),
            TableKind::Hypertable(made) => {
                placement::choose(made.bucket_nodes(hash), &candidates, made.replication_factor)
            }
        };
        nodes.iter().filter_map(|id| self.data_nodes.get(id)).map(|node| node.rid).collect()
    }

    /// Nodes that may take a new chunk of the table, in order of their names.
    fn candidates(&self, table: &Table) -> Vec<Candidate> {
        let nodes = self.data_nodes.values();
        let mut usable: Vec<&DataNode> = match &table.kind {
            // NOTE: a node that takes no new chunks of hypertables still holds old ones to join with.
            TableKind::Reference => nodes.filter(|node| node.serves()).collect(),
            TableKind::Hypertable(made) => {
                nodes.filter(|node| self.takes_chunks_of(made, node)).collect()
            }
        };
        usable.sort_by(|one, other| one.name.cmp(&other.name));
        let replicas =
            |node: NodeId| self.index.replicas.get(&(table.id, node)).copied().unwrap_or(0);
        let candidate =
            |node: &DataNode| Candidate { node: node.id(), replicas: replicas(node.id()) };
        usable.into_iter().map(candidate).collect()
    }

    /// The chunks, open or closed, whose box holds the point.
    fn boxes_at<'a, 'p>(
        &'a self,
        table: TableId,
        point: &'p [i64],
    ) -> impl Iterator<Item = &'a Chunk> + use<'a, 'p> {
        let placing = point.get(1).copied().unwrap_or(i64::MIN);
        let slice = point.first().map_or(Some(TimeRange::ALL), |at| self.time_slice_at(table, *at));
        let corners = slice.into_iter().flat_map(move |slice| {
            let start = slice.start();
            let range = (table, start, i64::MIN, CHUNK_MIN)..=(table, start, placing, CHUNK_MAX);
            self.index.corners.range(range).rev()
        });
        // With at most one hash dimension the first box from behind that does not hold the point ends the search.
        let one_way = point.len() <= 2;
        let chunks = corners.filter_map(|corner| self.at(corner));
        let near = chunks.take_while(move |chunk| !one_way || chunk.holds(point));
        near.filter(move |chunk| chunk.holds(point))
    }

    /// The time slice of the table's chunks in which `at` lies.
    fn time_slice_at(&self, table: TableId, at: i64) -> Option<TimeRange> {
        let last = self.index.corners.range(..=(table, at, i64::MAX, CHUNK_MAX)).next_back()?;
        let chunk = self.at(last).filter(|chunk| chunk.table == table)?;
        Some(chunk.time()).filter(|slice| slice.contains(at))
    }

    fn at(&self, corner: &Corner) -> Option<&Chunk> {
        self.chunks.get(&corner.3)
    }
}
