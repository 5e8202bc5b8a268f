//! What a command prints: results to stdout ([`out!`](crate::out)), words for people to stderr ([`note!`](crate::note)). Nothing else
//! writes to either but the log.
//!
//! Printing never stops a command. A reader may go away (`| head -1`): from then on nothing is printed, and the command does to its end what it
//! was asked for. What cannot be written for another reason, such as a full disk, fails the command at its end ([`crate::run`]).
//!
//! Nor does it hold up what runs beside it: a reader may stall, so a thread writes, in the order in which things were printed. A command waits for
//! that thread at its end, and before if it prints without end ([`printed`]): as long as it takes, but after a signal only for [`TIMEOUT`]. Then
//! nothing more goes to stdout, and words go the way of the log, which waits for no reader.

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

/// How long a command that is to stop waits for its readers, in all.
const TIMEOUT: Duration = Duration::from_secs(2);

static PRINTER: LazyLock<Printer> = LazyLock::new(|| Printer::to(io::stdout(), io::stderr()));

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
    PRINTER.print(Stream::Out, format!("{line}\n"));
}

/// What [`note!`](crate::note) does.
pub fn print_note(line: fmt::Arguments<'_>) {
    PRINTER.print(Stream::Err, format!("{line}\n"));
}

/// Waits until all that was printed is written. For a command that prints more than it holds already: what is printed and not yet written has no
/// other bound. False when nothing more can be written to stdout, so that a command that would print for ever ends.
pub async fn printed(stop: &CancellationToken) -> bool {
    PRINTER.printed(stop).await
}

/// Waits until all is written; an error if not all could be written to stdout, and its reader is there.
pub(crate) async fn finish(stop: &CancellationToken) -> anyhow::Result<()> {
    PRINTER.finish(stop).await
}

/// Stderr as a terminal to draw on, between the lines that are printed.
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

/// The thread that writes, and what is on its way; clones share it.
#[derive(Clone)]
struct Printer(Arc<Shared>);

struct Shared {
    queue: Mutex<Queue>,
    /// There is something to write.
    more: Condvar,
    /// Something was written.
    less: Notify,
}

struct Queue {
    /// Until there is something to write: most processes print nothing, and need no thread.
    idle: Option<[Box<dyn Write + Send>; 2]>,
    parts: VecDeque<(Stream, String)>,
    writing: Option<Stream>,
    stdout: Way,
    /// No reader is waited for any more.
    is_given_up: bool,
    /// What is left of [`TIMEOUT`].
    flush_timeout: Duration,
}

/// Whether there is a way out.
#[derive(Default)]
enum Way {
    #[default]
    Open,
    /// Nobody reads any more.
    Left,
    /// Not all could be written.
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

    /// What waits for a reader does so no longer.
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

    /// What the thread does, until it is given up.
    fn write(&self, [mut out, mut err]: [Box<dyn Write + Send>; 2]) {
        let mut queue = self.queue();
        while !queue.is_given_up {
            let Some((stream, text)) = queue.parts.pop_front() else {
                queue = self.0.more.wait(queue).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            // Nobody is left to be told of a failure of stderr.
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

    /// Gives on what is written, when that is asked for; then it fails.
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
