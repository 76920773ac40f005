//! Streams of 64-bit integers: constant, bit-packed, or in byte planes; of values, deltas or deltas of deltas.
//!
//! A stream delimits itself, so that other encodings hold several:
//!
//! ```text
//! layout u8 | order u8 | seeds: order x i64 | body
//!
//! constant  residual i64
//! packed    base i64 | width u8 a run | varint (base of the run - base) a run | packed numbers | slack
//! planes    width u8 | width planes of one byte a value: zigzag residuals, lowest byte first
//! ```
//!
//! The *order* is how many times neighbours were subtracted; a *residual* is what that leaves. All arithmetic wraps,
//! so that every i64 survives. Runs of [`RUN`] residuals have a base and a width of their own: one outlier, such as
//! the step from one series to the next, widens one run only. Packed numbers decode fastest; planes are what zstd
//! makes most of where residuals are skewed.

use super::{
    CodecError,
    bits::{self, SLACK_BYTES},
    bytes::{Reader, put_varint},
};

/// Residuals that share base and width. A multiple of 64, so that each run ends with a whole word.
const RUN: usize = 128;
/// Highest order.
const ORDER_MAX: usize = 2;

const CONSTANT: u8 = 0;
const PACKED: u8 = 1;
const PLANES: u8 = 2;

const _: () = assert!(RUN.is_multiple_of(64));

/// How residuals are to lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// Bit-packed: fastest to decode.
    Packed,
    /// In byte planes, for zstd.
    Planes,
}

/// Base and width of a run of residuals.
#[derive(Clone, Copy, Debug)]
struct Run {
    base: i64,
    width: u32,
}

impl Run {
    fn of(residuals: &[i64]) -> Self {
        let (least, greatest) = residuals
            .iter()
            .fold((i64::MAX, i64::MIN), |(low, high), value| (low.min(*value), high.max(*value)));
        let span = greatest.wrapping_sub(least).cast_unsigned();
        Self { base: least, width: bits::width_of(span) }
    }
}

/// Residuals of one order with what it takes to pack them.
#[derive(Debug)]
pub(crate) struct Plan {
    order: usize,
    seeds: Vec<i64>,
    residuals: Vec<i64>,
    runs: Vec<Run>,
    /// Least base of a run.
    least: i64,
}

impl Plan {
    fn new(values: &[i64], order: usize) -> Self {
        let residuals = residuals_of(values, order);
        let seeds = seeds_of(values, order, residuals.first().copied().unwrap_or(0));
        let runs: Vec<Run> = residuals.chunks(RUN).map(Run::of).collect();
        let least = runs.iter().map(|run| run.base).min().unwrap_or(0);
        Self { order, seeds, residuals, runs, least }
    }

    /// The plan of the values themselves, whose bytes may repeat where differences do not.
    pub(crate) fn of_values(values: &[i64]) -> Self {
        Self::new(values, 0)
    }

    /// The plan that packs best, and of equal ones the one of lowest order, which decodes fastest.
    pub(crate) fn best(values: &[i64]) -> Self {
        let mut best = Self::new(values, 0);
        for order in 1..=ORDER_MAX.min(values.len().saturating_sub(1)) {
            if best.constant().is_some() {
                break;
            }
            let next = Self::new(values, order);
            // Where subtracting once does not help, twice hardly does.
            if next.cost() >= best.cost() {
                break;
            }
            best = next;
        }
        best
    }

    /// The residual that all are, if they are.
    fn constant(&self) -> Option<i64> {
        let same = |run: &Run| run.width == 0 && run.base == self.least;
        self.runs.iter().all(same).then_some(self.least)
    }

    /// How far the base of a run lies above the least.
    const fn offset(&self, run: &Run) -> u64 {
        run.base.wrapping_sub(self.least).cast_unsigned()
    }

    /// About how many bits it packs into.
    fn cost(&self) -> usize {
        let offset_bits = |run: &Run| (u64::BITS - self.offset(run).leading_zeros()) as usize;
        let run_bits = |run: &Run| RUN * run.width as usize + offset_bits(run);
        self.runs.iter().map(run_bits).sum::<usize>() + self.seeds.len() * 64
    }

    /// Appends the stream. Where all residuals are equal, they are constant in every layout.
    pub(crate) fn put(&self, layout: Layout, out: &mut Vec<u8>) {
        match (self.constant(), layout) {
            (Some(residual), _) => {
                self.put_head(CONSTANT, out);
                out.extend_from_slice(&residual.to_le_bytes());
            }
            (None, Layout::Packed) => self.put_packed(out),
            (None, Layout::Planes) => self.put_planes(out),
        }
    }

    fn put_head(&self, layout: u8, out: &mut Vec<u8>) {
        out.extend_from_slice(&[layout, self.order as u8]);
        self.seeds.iter().for_each(|seed| out.extend_from_slice(&seed.to_le_bytes()));
    }

    fn put_packed(&self, out: &mut Vec<u8>) {
        self.put_head(PACKED, out);
        out.extend_from_slice(&self.least.to_le_bytes());
        out.extend(self.runs.iter().map(|run| run.width as u8));
        self.runs.iter().for_each(|run| put_varint(out, self.offset(run).into()));
        for (run, residuals) in self.runs.iter().zip(self.residuals.chunks(RUN)) {
            let above = |residual: &i64| residual.wrapping_sub(run.base).cast_unsigned();
            bits::pack(residuals.iter().map(above), run.width, out);
        }
        out.extend_from_slice(&[0; SLACK_BYTES]);
    }

    fn put_planes(&self, out: &mut Vec<u8>) {
        let zigzags: Vec<u64> = self.residuals.iter().map(|residual| zigzag(*residual)).collect();
        let all = zigzags.iter().fold(0, |all, zigzag| all | zigzag);
        let width = (u64::BITS - all.leading_zeros()).div_ceil(8).max(1);
        self.put_head(PLANES, out);
        out.push(width as u8);
        for plane in 0..width {
            out.extend(zigzags.iter().map(|zigzag| (zigzag >> (8 * plane)) as u8));
        }
    }
}

/// Neighbours subtracted `order` times. The first residuals, which have too few neighbours, are made equal to the
/// first that has enough, so that they are no outliers; the seeds make up for it.
fn residuals_of(values: &[i64], order: usize) -> Vec<i64> {
    let mut residuals = values.to_vec();
    for _ in 0..order {
        let pairs = residuals.iter().zip(residuals.iter().skip(1));
        residuals = pairs.map(|(before, after)| after.wrapping_sub(*before)).collect();
    }
    if order > 0 {
        let first = residuals.first().copied().unwrap_or(0);
        residuals.splice(0..0, std::iter::repeat_n(first, order));
    }
    residuals
}

/// What stands before the values, so that adding residuals, of which the first are `first`, gives the values back.
fn seeds_of(values: &[i64], order: usize, first: i64) -> Vec<i64> {
    let value = |at: usize| values.get(at).copied().unwrap_or(0);
    match order {
        0 => Vec::new(),
        1 => vec![value(0).wrapping_sub(first)],
        _ => {
            let delta = value(1).wrapping_sub(value(0)).wrapping_sub(first);
            vec![value(0).wrapping_sub(delta), delta.wrapping_sub(first)]
        }
    }
}

const fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)).cast_unsigned()
}

const fn unzigzag(value: u64) -> i64 {
    (value >> 1).cast_signed() ^ -((value & 1).cast_signed())
}

/// Appends a packed stream of `values`.
pub(crate) fn encode(values: &[i64], out: &mut Vec<u8>) {
    Plan::best(values).put(Layout::Packed, out);
}

/// Adds residuals up, from the seeds on.
#[derive(Clone, Copy, Debug)]
struct Sums {
    order: usize,
    value: i64,
    delta: i64,
}

impl Sums {
    fn read(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
        let order = reader.u8()?;
        let (value, delta) = match order {
            0 => (0, 0),
            1 => (reader.i64()?, 0),
            2 => (reader.i64()?, reader.i64()?),
            id => return Err(CodecError::Unknown { what: "order of integers", id }),
        };
        Ok(Self { order: order.into(), value, delta })
    }

    /// Appends the values that residuals stand for.
    fn extend(&mut self, residuals: impl Iterator<Item = i64>, out: &mut Vec<i64>) {
        let start = out.len();
        out.extend(residuals);
        let added = out.get_mut(start..).unwrap_or_default();
        // Sums kept in locals and a slice written in place: loops that stay in registers.
        let (mut value, mut delta) = (self.value, self.delta);
        match self.order {
            0 => {}
            1 => {
                for slot in added {
                    value = value.wrapping_add(*slot);
                    *slot = value;
                }
            }
            _ => {
                for slot in added {
                    delta = delta.wrapping_add(*slot);
                    value = value.wrapping_add(delta);
                    *slot = value;
                }
            }
        }
        (self.value, self.delta) = (value, delta);
    }
}

/// Reads a stream of `count` values. The caller bounds `count`.
pub(crate) fn decode(reader: &mut Reader<'_>, count: usize) -> Result<Vec<i64>, CodecError> {
    let layout = reader.u8()?;
    let mut sums = Sums::read(reader)?;
    let mut out = Vec::with_capacity(count);
    match layout {
        CONSTANT => {
            let residual = reader.i64()?;
            sums.extend(std::iter::repeat_n(residual, count), &mut out);
        }
        PACKED => decode_packed(reader, count, &mut sums, &mut out)?,
        PLANES => decode_planes(reader, count, &mut sums, &mut out)?,
        id => return Err(CodecError::Unknown { what: "layout of integers", id }),
    }
    Ok(out)
}

fn decode_packed(
    reader: &mut Reader<'_>,
    count: usize,
    sums: &mut Sums,
    out: &mut Vec<i64>,
) -> Result<(), CodecError> {
    let least = reader.i64()?;
    let widths = reader.take(count.div_ceil(RUN))?;
    let mut bases = Vec::with_capacity(widths.len());
    for _ in widths {
        bases.push(least.wrapping_add_unsigned(reader.varint_u64()?));
    }
    let mut buffer = [0u64; RUN];
    let mut left = count;
    for (width, base) in widths.iter().zip(bases) {
        let width = u32::from(*width);
        let numbers = buffer.get_mut(..left.min(RUN)).ok_or(CodecError::Short)?;
        bits::unpack(reader.rest(), width, numbers)?;
        reader.take(bits::packed_bytes(numbers.len(), width))?;
        let residual = |number: &u64| base.wrapping_add_unsigned(*number);
        sums.extend(numbers.iter().map(residual), out);
        left -= numbers.len();
    }
    reader.take(SLACK_BYTES).map(drop)
}

fn decode_planes(
    reader: &mut Reader<'_>,
    count: usize,
    sums: &mut Sums,
    out: &mut Vec<i64>,
) -> Result<(), CodecError> {
    let width = reader.u8()?;
    if !(1..=8).contains(&width) {
        return Err(CodecError::Wrong("a number of byte planes is out of range"));
    }
    let lowest = reader.take(count)?;
    let mut zigzags: Vec<u64> = lowest.iter().map(|byte| u64::from(*byte)).collect();
    for plane in 1..width {
        let bytes = reader.take(count)?;
        for (zigzag, byte) in zigzags.iter_mut().zip(bytes) {
            *zigzag |= u64::from(*byte) << (8 * plane);
        }
    }
    sums.extend(zigzags.into_iter().map(unzigzag), out);
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn round_trip(values: &[i64]) -> usize {
        let (best, plain) = (Plan::best(values), Plan::of_values(values));
        let ways = [(&best, Layout::Packed), (&best, Layout::Planes), (&plain, Layout::Planes)];
        let encoded = ways.map(|(plan, layout)| {
            let mut out = Vec::new();
            plan.put(layout, &mut out);
            let mut reader = Reader::new(&out);
            assert_eq!(decode(&mut reader, values.len()).as_deref(), Ok(values), "{layout:?}");
            assert_eq!(reader.finish(), Ok(()));
            out.len()
        });
        encoded[0]
    }

    /// Integers of every shape: random, small, walking, regular, constant, in runs.
    fn shapes() -> impl Strategy<Value = Vec<i64>> {
        let walk = (any::<i64>(), proptest::collection::vec(-3i64..4, 0..700));
        let steps = (any::<i64>(), any::<i64>(), 0i64..400);
        prop_oneof![
            proptest::collection::vec(any::<i64>(), 0..400),
            proptest::collection::vec(-100i64..100, 0..400),
            walk.prop_map(|(start, steps)| {
                steps
                    .into_iter()
                    .scan(start, |at, step| {
                        *at = at.wrapping_add(step);
                        Some(*at)
                    })
                    .collect()
            }),
            steps.prop_map(|(start, step, count)| {
                (0..count).map(|i| start.wrapping_add(step.wrapping_mul(i))).collect()
            }),
            (any::<i64>(), 0usize..400).prop_map(|(value, count)| vec![value; count]),
        ]
    }

    proptest! {
        #[test]
        fn every_value_survives(values in shapes()) {
            round_trip(&values);
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes: Vec<u8>, count in 0usize..300) {
            let _ = decode(&mut Reader::new(&bytes), count);
        }
    }

    #[test]
    fn extremes_survive() {
        round_trip(&[]);
        round_trip(&[i64::MIN]);
        round_trip(&[i64::MIN, i64::MAX]);
        round_trip(&[i64::MAX, i64::MIN, 0, i64::MAX, -1, i64::MIN]);
    }

    #[test]
    fn regular_values_take_no_space() {
        let start = 1_356_998_400_000_000;
        let regular: Vec<i64> = (0..8192).map(|i| start + i * 3_600_000_000).collect();
        assert!(round_trip(&regular) < 32);
        assert!(round_trip(&[7; 8192]) < 32);
        let squares: Vec<i64> = (0..8192).map(|i| i * i).collect();
        assert!(round_trip(&squares) < 32);
    }

    #[test]
    fn an_outlier_widens_one_run_only() {
        let steps: Vec<i64> = (0..8192).map(|i| if i < 4096 { i } else { i - (1 << 40) }).collect();
        assert!(round_trip(&steps) < 1200);
    }
}
