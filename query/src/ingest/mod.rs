//! Rows on their way in: checked, cut by chunk, encoded once, prepared on every replica, committed by one record.

pub(crate) mod assign;
pub(crate) mod cells;
pub(crate) mod check;
pub(crate) mod deliver;
pub(crate) mod send;
pub(crate) mod split;
