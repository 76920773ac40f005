//! Standard output, on which the command line answers.

use std::{
    fmt::Arguments,
    io::{self, Write as _},
    process,
};

/// Prints a line to standard output.
macro_rules! say {
    ($($words:tt)*) => {
        $crate::output::line(format_args!($($words)*))
    };
}

/// Prints a line. A reader that has seen enough, as in `hypertide cluster start | head`, gets no more; any other failure
/// ends the process.
pub(crate) fn line(words: Arguments<'_>) {
    match writeln!(io::stdout(), "{words}") {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
        Err(error) => {
            eprintln!("hypertide: standard output: {error}");
            process::exit(1);
        }
    }
}
