//! What a command prints: results to stdout ([`out!`](crate::out)), words for people to stderr ([`note!`](crate::note)). Nothing else
//! writes to either but the log.
//!
//! Printing never stops a command. A reader may go away (`| head -1`): from then on nothing is printed, and the command does to its end what it
//! was asked for. What cannot be written for another reason, such as a full disk, fails the command at its end ([`crate::run`]).

use std::fmt;
use std::io::{self, ErrorKind, Write};
use std::sync::{Mutex, PoisonError};

static STDOUT: Mutex<Out> = Mutex::new(Out::Open);

/// Whether there is a way out.
enum Out {
    Open,
    /// Nobody reads any more.
    Left,
    /// Not all could be written.
    Failed(io::Error),
}

impl Out {
    fn write(&mut self, act: impl FnOnce() -> io::Result<()>) {
        if !matches!(self, Out::Open) {
            return;
        }
        match act() {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::BrokenPipe => *self = Out::Left,
            Err(error) => *self = Out::Failed(error),
        }
    }
}

/// Prints a line to stdout: `out!("{job_id} cancelled")`.
#[macro_export]
macro_rules! out {
    ($($text:tt)*) => { $crate::print_out(format_args!($($text)*)) };
}

/// Prints a line to stderr, if anybody reads it.
#[macro_export]
macro_rules! note {
    ($($text:tt)*) => { $crate::print_note(format_args!($($text)*)) };
}

/// What [`out!`](crate::out) does.
pub fn print_out(line: fmt::Arguments<'_>) {
    STDOUT.lock().unwrap_or_else(PoisonError::into_inner).write(|| writeln!(io::stdout().lock(), "{line}"));
}

/// What [`note!`](crate::note) does.
pub fn print_note(line: fmt::Arguments<'_>) {
    // In one piece, beside the log's lines. Nobody is left to be told of a failure.
    let _ = io::stderr().lock().write_all(format!("{line}\n").as_bytes());
}

/// Whether printing has an end: for a command that would print for ever.
pub fn prints_in_vain() -> bool {
    !matches!(*STDOUT.lock().unwrap_or_else(PoisonError::into_inner), Out::Open)
}

/// Writes what is left; an error if not all could be written, and its reader is there.
pub(crate) fn finish() -> io::Result<()> {
    let mut out = STDOUT.lock().unwrap_or_else(PoisonError::into_inner);
    out.write(|| io::stdout().lock().flush());
    match std::mem::replace(&mut *out, Out::Open) {
        Out::Open | Out::Left => Ok(()),
        Out::Failed(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_written_after_a_reader_has_left_or_a_disk_was_full() {
        for kind in [ErrorKind::BrokenPipe, ErrorKind::StorageFull] {
            let mut out = Out::Open;
            out.write(|| Ok(()));
            out.write(|| Err(kind.into()));
            out.write(|| panic!("written after {kind}"));
            assert_eq!(matches!(out, Out::Failed(_)), kind == ErrorKind::StorageFull);
        }
    }
}
