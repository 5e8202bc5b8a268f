//! How a log line reaches stderr: by a bounded queue, and a thread that writes.
//!
//! A log that is not read delays nothing. Without the queue, a full pipe would stop the threads that log, and with
//! them heartbeats, the admin port and signals. A line that finds no room is dropped and counted. When there is room
//! again, a line says how many were dropped. (`tracing-appender` does the same, but at the process's end it complains
//! to stderr that stderr cannot be written.)

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, OnceLock, mpsc};
use std::thread;
use std::time::Duration;

use prometheus::{IntCounter, register_int_counter};
use tracing::{Level, Metadata, warn};
use tracing_subscriber::fmt::MakeWriter;

/// Bytes of lines that may wait to be written.
const ROOM: usize = 4 << 20;
/// Further bytes for warnings and errors alone, so that a program that logs without end cannot drown them.
const RESERVE: usize = 1 << 20;

static DROPPED: LazyLock<IntCounter> = LazyLock::new(|| {
    register_int_counter!(
        "harness_log_lines_dropped_total",
        "Log lines that were dropped because stderr was not read in time"
    )
    .expect("every metric has a name of its own, so that registering cannot fail")
});

static STDERR: OnceLock<Stderr> = OnceLock::new();

/// The process's queue. Clones share it.
#[derive(Clone)]
pub(crate) struct Stderr {
    entries: mpsc::Sender<Entry>,
    queue: Arc<Queue>,
}

#[derive(Default)]
struct Queue {
    /// Bytes that wait.
    waiting: AtomicUsize,
    /// Lines that were dropped since the log last reported that.
    unreported: AtomicU64,
}

enum Entry {
    Line(Vec<u8>),
    /// Answered when everything before it is written.
    Flush(mpsc::Sender<()>),
}

/// Returns the process's queue to stderr. Its thread starts with the first call and ends with the process.
pub(crate) fn stderr() -> Stderr {
    let start = || {
        // The counter is exported as 0 before anything is dropped, because one that appears at 1 has no rate.
        LazyLock::force(&DROPPED);
        Stderr::to(io::stderr())
    };
    STDERR.get_or_init(start).clone()
}

/// Waits until everything logged so far is written, up to this timeout.
pub(crate) fn flush(within: Duration) {
    if let Some(stderr) = STDERR.get() {
        stderr.flush(within);
    }
}

impl Stderr {
    fn to(mut out: impl Write + Send + 'static) -> Stderr {
        let (sender, entries) = mpsc::channel();
        let queue = Arc::new(Queue::default());
        let written = queue.clone();
        let write = move || {
            for entry in entries {
                match entry {
                    Entry::Line(line) => {
                        // If stderr fails, there is no other place to report it.
                        let _ = out.write_all(&line);
                        written.left(line.len());
                    }
                    Entry::Flush(done) => drop(done.send(())),
                }
            }
        };
        // Without a thread, every line is dropped and counted.
        drop(thread::Builder::new().name("log".to_owned()).spawn(write));
        Stderr { entries: sender, queue }
    }

    /// Queues a text that must not be dropped.
    pub(crate) fn say(&self, text: &[u8]) {
        self.push(text, usize::MAX);
    }

    fn push(&self, line: &[u8], room: usize) {
        let taken = self.queue.waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |waiting| {
            Some(waiting + line.len()).filter(|waiting| *waiting <= room)
        });
        if taken.is_err() || self.entries.send(Entry::Line(line.to_vec())).is_err() {
            DROPPED.inc();
            self.queue.unreported.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn flush(&self, within: Duration) {
        let (done, flushed) = mpsc::channel();
        if self.entries.send(Entry::Flush(done)).is_ok() {
            let _ = flushed.recv_timeout(within);
        }
    }
}

impl Queue {
    /// Records that this many bytes have been written.
    fn left(&self, bytes: usize) {
        let before = self.waiting.fetch_sub(bytes, Ordering::Relaxed);
        if before - bytes < ROOM / 2 {
            let lines = self.unreported.swap(0, Ordering::Relaxed);
            if lines > 0 {
                warn!(lines, "log lines were dropped because stderr was not read in time");
            }
        }
    }
}

/// A writer for one line at a time.
pub(crate) struct Line<'a> {
    stderr: &'a Stderr,
    room: usize,
}

impl Write for Line<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.stderr.push(line, self.room);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Stderr {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line { stderr: self, room: ROOM }
    }

    fn make_writer_for(&'a self, event: &Metadata<'_>) -> Line<'a> {
        let serious = *event.level() <= Level::WARN;
        Line { stderr: self, room: if serious { ROOM + RESERVE } else { ROOM } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Passes on what is written when the test asks for it.
    struct Slow(mpsc::SyncSender<Vec<u8>>);

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.send(bytes.to_vec()).map_err(io::Error::other)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_has_no_room_is_dropped_and_warnings_have_some_left() {
        let (sender, written) = mpsc::sync_channel(0);
        let stderr = Stderr::to(Slow(sender));
        let line = vec![b'x'; 1 << 20];
        let dropped = || stderr.queue.unreported.load(Ordering::Relaxed);
        // Nothing is read. The first line is being written, and counts until it is.
        (0..6).for_each(|_| stderr.push(&line, ROOM));
        assert_eq!(dropped(), 2);
        stderr.push(b"a warning", ROOM + RESERVE);
        stderr.flush(Duration::from_millis(1));
        assert_eq!(dropped(), 2, "a flush has a bound");
        let read: Vec<_> = written.iter().take(5).map(|line| line.len()).collect();
        assert_eq!(read, [1 << 20, 1 << 20, 1 << 20, 1 << 20, "a warning".len()]);
        stderr.flush(Duration::from_secs(60));
        assert_eq!(dropped(), 0, "the log has said so");
    }
}
