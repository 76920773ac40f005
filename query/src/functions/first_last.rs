//! `first(value, time)` and `last(value, time)`: the value at the least and at the greatest time.
//!
//! Rows without a time are ignored. Of several rows at one time, `first` takes the least value and `last` the greatest,
//! so that the answer does not depend on the order in which rows come.

use std::{cmp::Ordering, mem::size_of_val, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, BooleanArray},
    compute::{SortOptions, not, nullif, prep_null_mask_filter},
    datatypes::{DataType, Field, FieldRef},
};
use datafusion::{
    common::{ScalarValue, internal_err, plan_err},
    error::Result,
    logical_expr::{
        Accumulator, AggregateUDFImpl, EmitTo, GroupsAccumulator, Signature, Volatility,
        function::{AccumulatorArgs, StateFieldsArgs},
        utils::{AggregateOrderSensitivity, format_state_name},
    },
};

/// Which end of time counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum End {
    /// The least time.
    First,
    /// The greatest time.
    Last,
}

impl End {
    /// Whether a row wins over another: by its time, then by its value.
    fn wins(self, order: Ordering) -> bool {
        match self {
            Self::First => order.is_lt(),
            Self::Last => order.is_gt(),
        }
    }
}

/// The function.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct FirstLast {
    end: End,
    signature: Signature,
}

impl FirstLast {
    /// The function for that end.
    pub(super) fn new(end: End) -> Self {
        Self { end, signature: Signature::user_defined(Volatility::Immutable) }
    }
}

impl AggregateUDFImpl for FirstLast {
    fn name(&self) -> &str {
        match self.end {
            End::First => "first",
            End::Last => "last",
        }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        match types {
            [_, _] => Ok(types.to_vec()),
            _ => plan_err!("{} takes a value and a time", self.name()),
        }
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        match types {
            [value, _] => Ok(value.clone()),
            _ => plan_err!("{} takes a value and a time", self.name()),
        }
    }

    fn state_fields(&self, args: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        let [value, time] = args.input_fields else {
            return internal_err!("{} takes a value and a time", self.name());
        };
        let field = |field: &FieldRef, name| {
            let name = format_state_name(args.name, name);
            Arc::new(Field::new(name, field.data_type().clone(), true))
        };
        Ok(vec![field(value, "value"), field(time, "time")])
    }

    fn order_sensitivity(&self) -> AggregateOrderSensitivity {
        AggregateOrderSensitivity::Insensitive
    }

    fn accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        Ok(Box::new(Edge { end: self.end, best: Best::none(&args)? }))
    }

    fn groups_accumulator_supported(&self, _args: AccumulatorArgs) -> bool {
        true
    }

    fn create_groups_accumulator(
        &self,
        args: AccumulatorArgs,
    ) -> Result<Box<dyn GroupsAccumulator>> {
        let none = Best::none(&args)?;
        Ok(Box::new(Edges { end: self.end, none, groups: Vec::new(), rows: Vec::new() }))
    }
}

/// The best row so far; its time is null when there is none.
#[derive(Clone, Debug)]
struct Best {
    value: ScalarValue,
    time: ScalarValue,
}

impl Best {
    fn none(args: &AccumulatorArgs<'_>) -> Result<Self> {
        let [value, time] = args.expr_fields else {
            return internal_err!("{} takes a value and a time", args.name);
        };
        Ok(Self {
            value: ScalarValue::try_from(value.data_type())?,
            time: ScalarValue::try_from(time.data_type())?,
        })
    }

    fn offer(&mut self, end: End, columns: &Columns<'_>, row: usize) -> Result<()> {
        let time = ScalarValue::try_from_array(columns.times, row)?;
        let order = if self.time.is_null() { None } else { time.partial_cmp(&self.time) };
        match order {
            Some(Ordering::Equal) => {
                let value = ScalarValue::try_from_array(columns.values, row)?;
                // A value beats NULL at the same time, on both ends.
                let better = match value.partial_cmp(&self.value) {
                    _ if value.is_null() => false,
                    _ if self.value.is_null() => true,
                    Some(order) => end.wins(order),
                    None => false,
                };
                if better {
                    self.value = value;
                }
            }
            Some(order) if !end.wins(order) => {}
            _ => {
                self.value = ScalarValue::try_from_array(columns.values, row)?;
                self.time = time;
            }
        }
        Ok(())
    }

    fn bytes(&self) -> usize {
        self.value.size() + self.time.size()
    }
}

/// Values and their times.
struct Columns<'a> {
    values: &'a ArrayRef,
    times: &'a ArrayRef,
}

impl<'a> Columns<'a> {
    fn of(arrays: &'a [ArrayRef]) -> Result<Self> {
        let [values, times] = arrays else {
            return internal_err!("first and last take a value and a time");
        };
        Ok(Self { values, times })
    }

    /// Compares two rows by time and then by value; NULL values lose on both ends.
    fn order(&self, end: End) -> Result<impl Fn(usize, usize) -> Ordering + use<'_>> {
        let by = |array: &dyn Array| {
            let nulls_first = end == End::Last;
            let options = SortOptions { descending: false, nulls_first };
            arrow::array::make_comparator(array, array, options)
        };
        let (times, values) = (by(self.times)?, by(self.values).ok());
        Ok(move |a, b| {
            let tie = || values.as_ref().map_or(Ordering::Equal, |values| values(a, b));
            times(a, b).then_with(tie)
        })
    }
}

/// All rows of one group.
#[derive(Debug)]
struct Edge {
    end: End,
    best: Best,
}

impl Accumulator for Edge {
    fn update_batch(&mut self, arrays: &[ArrayRef]) -> Result<()> {
        let columns = Columns::of(arrays)?;
        let order = columns.order(self.end)?;
        let timed = (0..columns.times.len()).filter(|row| columns.times.is_valid(*row));
        let best =
            timed.reduce(|best, row| if self.end.wins(order(row, best)) { row } else { best });
        match best {
            Some(row) => self.best.offer(self.end, &columns, row),
            None => Ok(()),
        }
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        self.update_batch(states)
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        Ok(vec![self.best.value.clone(), self.best.time.clone()])
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        Ok(self.best.value.clone())
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.best.bytes()
    }
}

/// Rows of many groups. A row becomes a value only when it is the best of its group in a whole batch.
#[derive(Debug)]
struct Edges {
    end: End,
    none: Best,
    groups: Vec<Best>,
    /// The best row of every group in the batch at hand.
    rows: Vec<Option<usize>>,
}

impl Edges {
    fn taken(&mut self, emit: EmitTo) -> Vec<Best> {
        emit.take_needed(&mut self.groups)
    }

    fn array(bests: &[Best], of: fn(&Best) -> &ScalarValue) -> Result<ArrayRef> {
        ScalarValue::iter_to_array(bests.iter().map(|best| of(best).clone()))
    }
}

impl GroupsAccumulator for Edges {
    fn update_batch(
        &mut self,
        arrays: &[ArrayRef],
        groups: &[usize],
        filter: Option<&BooleanArray>,
        total: usize,
    ) -> Result<()> {
        let columns = Columns::of(arrays)?;
        let order = columns.order(self.end)?;
        self.groups.resize(total, self.none.clone());
        self.rows.clear();
        self.rows.resize(total, None);
        for (row, group) in groups.iter().enumerate() {
            let kept = filter.is_none_or(|filter| filter.is_valid(row) && filter.value(row));
            if !kept || columns.times.is_null(row) {
                continue;
            }
            if let Some(best) = self.rows.get_mut(*group)
                && best.is_none_or(|best| self.end.wins(order(row, best)))
            {
                *best = Some(row);
            }
        }
        for (best, row) in self.groups.iter_mut().zip(&self.rows) {
            if let Some(row) = row {
                best.offer(self.end, &columns, *row)?;
            }
        }
        Ok(())
    }

    fn merge_batch(&mut self, states: &[ArrayRef], groups: &[usize], total: usize) -> Result<()> {
        self.update_batch(states, groups, None, total)
    }

    /// Every row is a group of its own; a row that is filtered out has no time.
    fn convert_to_state(
        &self,
        arrays: &[ArrayRef],
        filter: Option<&BooleanArray>,
    ) -> Result<Vec<ArrayRef>> {
        let Columns { values, times } = Columns::of(arrays)?;
        let times = match filter {
            Some(filter) => nullif(times, &not(&prep_null_mask_filter(filter))?)?,
            None => Arc::clone(times),
        };
        Ok(vec![Arc::clone(values), times])
    }

    fn evaluate(&mut self, emit: EmitTo) -> Result<ArrayRef> {
        let bests = self.taken(emit);
        Self::array(&bests, |best| &best.value)
    }

    fn state(&mut self, emit: EmitTo) -> Result<Vec<ArrayRef>> {
        let bests = self.taken(emit);
        Ok(vec![Self::array(&bests, |best| &best.value)?, Self::array(&bests, |best| &best.time)?])
    }

    fn size(&self) -> usize {
        let groups: usize = self.groups.iter().map(Best::bytes).sum();
        groups + self.rows.capacity() * size_of::<Option<usize>>()
    }
}
