//! What a command prints: results to stdout ([`out!`](crate::out)), messages for people to stderr
//! ([`note!`](crate::note)). Apart from these, only the log writes to either.
//!
//! Printing never stops a command. If a reader goes away (`| head -1`), nothing more is printed, and the command
//! completes what it was asked to do. If output cannot be written for another reason, such as a full disk, the command
//! fails at its end ([`crate::run`]).
//!
//! Printing does not delay other tasks either. A reader may stall, so a thread writes, in the order in which things
//! were printed. A command waits for that thread at its end, and earlier if it prints without end ([`printed`]). It
//! waits as long as that takes, but after a signal only for [`TIMEOUT`]. After that, nothing more goes to stdout, and
//! messages go the way of the log, which waits for no reader.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::pin::pin;
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::{Stopped, stderr};

/// How long a command that was asked to stop waits for its readers, in all.
const TIMEOUT: Duration = Duration::from_secs(2);

static PRINTER: LazyLock<Printer> = LazyLock::new(|| Printer::to(io::stdout(), io::stderr()));

/// Prints a line to stdout: `out!("{job_id} cancelled")`.
#[macro_export]
macro_rules! out {
    ($($text:tt)*) => { $crate::print_out(format_args!($($text)*)) };
}

/// Prints a line to stderr, if stderr is read.
#[macro_export]
macro_rules! note {
    ($($text:tt)*) => { $crate::print_note(format_args!($($text)*)) };
}

/// Implements [`out!`](crate::out).
pub fn print_out(line: fmt::Arguments<'_>) {
    PRINTER.print(Stream::Out, format!("{line}\n"));
}

/// Prints a piece of text to stdout, without a line end: text that comes piece by piece.
pub fn print_piece(text: &str) {
    PRINTER.print(Stream::Out, text.to_owned());
}

/// Implements [`note!`](crate::note).
pub fn print_note(line: fmt::Arguments<'_>) {
    PRINTER.print(Stream::Err, format!("{line}\n"));
}

/// Waits until everything printed is written. This is for a command whose output exceeds what it holds in memory
/// anyway, because unwritten output has no other limit. Returns false if nothing more can be written to stdout, so
/// that a command that would print for ever ends.
pub async fn printed(stop: &CancellationToken) -> bool {
    PRINTER.printed(stop).await
}

/// Waits until everything is written. Returns an error if stdout failed while its reader was still there.
pub(crate) async fn finish(stop: &CancellationToken) -> anyhow::Result<()> {
    PRINTER.finish(stop).await
}

/// Stderr as a terminal to draw on, in order with the lines that are printed.
#[derive(Debug)]
pub struct Notes;

impl Write for Notes {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        PRINTER.print(Stream::Err, String::from_utf8_lossy(text).into_owned());
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsRawFd for Notes {
    fn as_raw_fd(&self) -> RawFd {
        io::stderr().as_raw_fd()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stream {
    Out,
    Err,
}

/// The thread that writes, and the text that waits for it. Clones share both.
#[derive(Clone)]
struct Printer(Arc<Shared>);

struct Shared {
    queue: Mutex<Queue>,
    /// Signals that there is something to write.
    more: Condvar,
    /// Signals that something was written.
    less: Notify,
}

struct Queue {
    /// The streams, until there is something to write. Most processes print nothing, and need no thread.
    idle: Option<[Box<dyn Write + Send>; 2]>,
    parts: VecDeque<(Stream, String)>,
    writing: Option<Stream>,
    stdout: Way,
    /// Whether readers are no longer waited for.
    is_given_up: bool,
    /// What is left of [`TIMEOUT`].
    flush_timeout: Duration,
}

/// Whether stdout can still be written to.
#[derive(Default)]
enum Way {
    #[default]
    Open,
    /// Its reader has gone away.
    Left,
    /// Some of the output could not be written.
    Failed(anyhow::Error),
}

impl Way {
    fn fail(&mut self, error: impl Into<anyhow::Error>) {
        if matches!(self, Way::Open) {
            *self = Way::Failed(error.into());
        }
    }
}

impl Queue {
    fn is_empty(&self) -> bool {
        self.parts.is_empty() && (self.writing.is_none() || self.is_given_up)
    }

    /// Stops waiting for readers. Text that waits for one is handed over.
    fn give_up(&mut self) {
        self.is_given_up = true;
        if self.writing == Some(Stream::Out) {
            self.stdout.fail(Stopped);
        }
        for (stream, text) in std::mem::take(&mut self.parts) {
            self.hand_over(stream, text);
        }
    }

    fn hand_over(&mut self, stream: Stream, text: String) {
        match stream {
            Stream::Out => self.stdout.fail(Stopped),
            Stream::Err => stderr::stderr().say(text.as_bytes()),
        }
    }
}

impl Printer {
    fn to(out: impl Write + Send + 'static, err: impl Write + Send + 'static) -> Printer {
        let queue = Queue {
            idle: Some([Box::new(out), Box::new(err)]),
            parts: VecDeque::new(),
            writing: None,
            stdout: Way::Open,
            is_given_up: false,
            flush_timeout: TIMEOUT,
        };
        Printer(Arc::new(Shared { queue: Mutex::new(queue), more: Condvar::new(), less: Notify::new() }))
    }

    fn print(&self, stream: Stream, text: String) {
        let mut queue = self.queue();
        if queue.is_given_up {
            return queue.hand_over(stream, text);
        }
        queue.parts.push_back((stream, text));
        self.0.more.notify_one();
        if let Some(streams) = queue.idle.take() {
            let writing = self.clone();
            let thread = thread::Builder::new().name("print".to_owned());
            if let Err(error) = thread.spawn(move || writing.write(streams)) {
                queue.stdout.fail(error);
                queue.give_up();
            }
        }
    }

    /// Writes until it is given up. This is the body of the thread.
    fn write(&self, [mut out, mut err]: [Box<dyn Write + Send>; 2]) {
        let mut queue = self.queue();
        while !queue.is_given_up {
            let Some((stream, text)) = queue.parts.pop_front() else {
                queue = self.0.more.wait(queue).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            // If stderr fails, there is no other place to report it.
            let is_open = stream == Stream::Err || matches!(queue.stdout, Way::Open);
            if is_open {
                queue.writing = Some(stream);
                drop(queue);
                let to = if stream == Stream::Out { &mut out } else { &mut err };
                let written = to.write_all(text.as_bytes()).and_then(|()| to.flush());
                queue = self.queue();
                queue.writing = None;
                match written {
                    Err(error) if stream == Stream::Out && error.kind() == ErrorKind::BrokenPipe => {
                        queue.stdout = Way::Left;
                    }
                    Err(error) if stream == Stream::Out => queue.stdout.fail(error),
                    Ok(()) | Err(_) => {}
                }
            }
            self.0.less.notify_waiters();
        }
    }

    async fn printed(&self, stop: &CancellationToken) -> bool {
        if stop.run_until_cancelled(self.emptied()).await.is_none() {
            let (begun, flush_timeout) = (Instant::now(), self.queue().flush_timeout);
            let emptied = timeout(flush_timeout, self.emptied()).await.is_ok();
            let mut queue = self.queue();
            queue.flush_timeout = flush_timeout.saturating_sub(begun.elapsed());
            if !emptied {
                queue.give_up();
            }
        }
        matches!(self.queue().stdout, Way::Open)
    }

    async fn emptied(&self) {
        loop {
            let mut less = pin!(self.0.less.notified());
            less.as_mut().enable();
            if self.queue().is_empty() {
                return;
            }
            less.await;
        }
    }

    async fn finish(&self, stop: &CancellationToken) -> anyhow::Result<()> {
        self.printed(stop).await;
        match std::mem::take(&mut self.queue().stdout) {
            Way::Open | Way::Left => Ok(()),
            Way::Failed(error) => Err(error),
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.0.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Passes on what is written when the test asks for it. Then it fails.
    struct Reader(mpsc::SyncSender<String>, ErrorKind);

    impl Write for Reader {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.send(String::from_utf8_lossy(bytes).into_owned()).map_err(|_| self.1)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn read_by(kind: ErrorKind) -> (Printer, mpsc::Receiver<String>) {
        let (sender, written) = mpsc::sync_channel(0);
        (Printer::to(Reader(sender.clone(), kind), Reader(sender, kind)), written)
    }

    #[tokio::test]
    async fn nothing_is_written_after_a_reader_has_left_or_a_disk_was_full() {
        for kind in [ErrorKind::BrokenPipe, ErrorKind::StorageFull] {
            let (printer, written) = read_by(kind);
            let never = CancellationToken::new();
            printer.print(Stream::Out, "one".to_owned());
            assert_eq!(written.recv().unwrap(), "one");
            assert!(printer.printed(&never).await);
            drop(written);
            printer.print(Stream::Out, "two".to_owned());
            assert!(!printer.printed(&never).await);
            printer.print(Stream::Out, "three".to_owned());
            assert_eq!(printer.finish(&never).await.is_err(), kind == ErrorKind::StorageFull);
        }
    }

    #[tokio::test]
    async fn a_slow_reader_gets_all_in_order_and_is_waited_for() {
        let (printer, written) = read_by(ErrorKind::Other);
        let printing = [(Stream::Out, "1"), (Stream::Err, "2"), (Stream::Out, "3"), (Stream::Err, "4")];
        printing.iter().for_each(|(stream, text)| printer.print(*stream, (*text).to_owned()));
        let never = CancellationToken::new();
        assert!(timeout(Duration::from_millis(1), printer.printed(&never)).await.is_err());
        assert_eq!(written.iter().take(4).collect::<String>(), "1234");
        printer.finish(&never).await.unwrap();
    }

    #[tokio::test]
    async fn after_a_signal_a_reader_that_stalls_is_waited_for_once() {
        let (printer, _written) = read_by(ErrorKind::Other);
        printer.print(Stream::Out, "one".to_owned());
        printer.print(Stream::Out, "two".to_owned());
        let stop = CancellationToken::new();
        stop.cancel();
        assert!(!printer.printed(&stop).await);
        printer.print(Stream::Out, "three".to_owned());
        let begun = Instant::now();
        assert!(printer.finish(&stop).await.unwrap_err().is::<Stopped>());
        assert!(begun.elapsed() < TIMEOUT);
    }

    #[tokio::test]
    async fn a_signal_costs_a_slow_reader_nothing() {
        let (printer, written) = read_by(ErrorKind::Other);
        let stop = CancellationToken::new();
        stop.cancel();
        for line in ["one", "two"] {
            printer.print(Stream::Out, line.to_owned());
            assert_eq!(written.recv().unwrap(), line);
            assert!(printer.printed(&stop).await);
        }
        printer.finish(&stop).await.unwrap();
    }
}
