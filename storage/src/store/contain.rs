//! Panics of the database on bytes that are damaged: each is an answer about a file, not the end of a thread.
//!
//! redb trusts what it reads and may panic on what it did not write. Who calls it on such bytes calls it in [`contain`],
//! which gives the panic as a text. What the process says of panics, a backtrace for every one, would make an operator
//! believe that the node is broken: with [`quiet_contained_panics`] nothing is said of those that are contained; the damage
//! is logged where it is handled, with the place of the panic.

use std::{
    cell::{Cell, RefCell},
    panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind, set_hook, take_hook},
};

thread_local! {
    /// How many calls of [`contain`] this thread is in.
    static INSIDE: Cell<u32> = const { Cell::new(0) };
    /// Where the last contained panic of this thread was.
    static PLACE: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// A stay in [`contain`].
struct Stay;

impl Stay {
    fn begin() -> Self {
        INSIDE.set(INSIDE.get() + 1);
        Self
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        INSIDE.set(INSIDE.get() - 1);
    }
}

/// Runs `work` on bytes that may be damaged: a panic of the database becomes the text of it.
pub(crate) fn contain<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    let stay = Stay::begin();
    let done = catch_unwind(AssertUnwindSafe(work));
    drop(stay);
    done.map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        let text = text.unwrap_or("no reason given");
        let place = PLACE.take().map(|place| format!(" at {place}")).unwrap_or_default();
        format!("the database file is inconsistent: {text}{place}")
    })
}

/// From now on this process says nothing of a panic that is contained, and what it did of every other. To be called once,
/// at its start.
pub fn quiet_contained_panics() {
    let usual = take_hook();
    set_hook(Box::new(move |panic| match INSIDE.get() {
        0 => usual(panic),
        _ => PLACE.set(place(panic)),
    }));
}

/// File and line; where the file lay when the program was built is nobody's business.
fn place(panic: &PanicHookInfo<'_>) -> Option<String> {
    let location = panic.location()?;
    let name = location.file().rsplit(['/', '\\']).next()?;
    Some(format!("{name}:{}", location.line()))
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{Arc, Mutex},
        thread,
    };

    use super::*;

    #[test]
    fn only_panics_that_nothing_contains_are_told() {
        let told: Arc<Mutex<Vec<String>>> = Arc::default();
        let list = Arc::clone(&told);
        set_hook(Box::new(move |panic| {
            let text = panic.payload_as_str().unwrap_or_default().to_owned();
            list.lock().unwrap().push(text);
        }));
        quiet_contained_panics();
        let what = contain(|| contain(|| -> u8 { panic!("inner") })).unwrap().unwrap_err();
        assert!(
            what.starts_with("the database file is inconsistent: inner at contain.rs:"),
            "{what}"
        );
        let what = contain(|| -> u8 { panic!("outer") }).unwrap_err();
        assert!(what.contains("outer at contain.rs:"), "{what}");
        assert_eq!(contain(|| 5), Ok(5));
        thread::spawn(|| panic!("nobody's")).join().unwrap_err();
        assert_eq!(*told.lock().unwrap(), ["nobody's"]);
    }
}
