//! Reads lines from a file, a pipe or a terminal as they arrive.
//!
//! A thread reads, because a read waits and may never return. It polls before it reads, so that after a stop a pipe
//! still holds everything that was not handed over. Lines that wait to be taken are bounded in number and in bytes. One
//! line is bounded too: a longer one is skipped without being kept. Only LF ends a line (a CR before it is space),
//! since JSON has no other line ends.

use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, IsTerminal, PipeReader, PipeWriter, Read, Seek, stdin};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use service::note;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::timeout;

/// The most bytes of lines that are read and not yet handled, unless one line alone is longer.
const ROOM: usize = 8 << 20;
/// The byte order mark that editors on some systems put before UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
/// How long a stop waits for the reading thread when another process has taken the bytes that it was about to read.
const LAST_READ: Duration = Duration::from_secs(1);
/// Bytes around the longest line that do not count: the mark and a CR.
const AROUND: usize = BYTE_ORDER_MARK.len() + 1;

/// A line that is not empty.
pub struct Line {
    /// Counts from 1.
    pub number: u64,
    /// The line without surrounding space.
    pub text: Result<String, BadLine>,
    /// Its share of [`ROOM`]. Drop it once the line is handled.
    pub room: Room,
}

pub type Room = OwnedSemaphorePermit;

/// A line that cannot hold JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadLine {
    /// It was too long and was skipped.
    TooLong { most: usize },
    /// It is in another encoding, or not text.
    NotUtf8 { at: usize },
}

impl std::error::Error for BadLine {}

impl fmt::Display for BadLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BadLine::TooLong { most } => write!(f, "longer than {most} bytes"),
            BadLine::NotUtf8 { at } => write!(f, "byte {at} is not UTF-8, expected JSON in UTF-8"),
        }
    }
}

/// Lines that are being read.
pub struct Lines {
    name: String,
    lines: mpsc::Receiver<io::Result<Line>>,
    total: oneshot::Receiver<u64>,
    /// The error after which no more can be read.
    failed: Option<io::Error>,
    /// Held until the stop, which drops it: then the thread finds its end of this pipe closed.
    going_on: Option<PipeWriter>,
    state: Arc<State>,
}

/// The progress of the reading thread.
#[derive(Default)]
struct State {
    /// Nothing follows what was read.
    at_end: AtomicBool,
    /// Something was read and is not handed over yet.
    holds: AtomicBool,
}

impl Lines {
    /// Begins to read a file, or stdin for `-`. Reads at most `ahead` lines before they are taken. A line may be up to
    /// `most` bytes long.
    pub fn read(file: PathBuf, ahead: usize, most: usize) -> Lines {
        let name = if file.as_os_str() == "-" { "stdin".to_owned() } else { file.display().to_string() };
        let (lines, receiver) = mpsc::channel(ahead);
        let (total, counted) = oneshot::channel();
        let state = Arc::new(State::default());
        let room = Arc::new(Semaphore::new(ROOM));
        let reader = LineReader { lines, most, room, runtime: Handle::current(), state: state.clone() };
        let (failed, going_on) = match io::pipe() {
            Ok((stop, going_on)) => {
                std::thread::spawn(move || {
                    // After a stop, the receiver may be gone, and the error is of no use.
                    let _ = match open(&file, total) {
                        Ok(file) => reader.all(file, stop),
                        Err(error) => reader.send(Err(error)),
                    };
                });
                (None, Some(going_on))
            }
            Err(error) => (Some(error), None),
        };
        Lines { name, lines: receiver, total: counted, failed, going_on, state }
    }

    /// Returns how many lines there are, as soon as that is known; for a pipe it never is.
    pub async fn total(&mut self) -> Option<u64> {
        (&mut self.total).await.ok()
    }

    /// Returns the lines that have arrived, at most `most`; waits for the first. Empty at the end, or when all that was
    /// read before the stop has been taken.
    pub async fn next(&mut self, most: usize) -> anyhow::Result<Vec<Line>> {
        let mut come = Vec::new();
        if self.failed.is_none() {
            match self.going_on {
                Some(_) => drop(self.lines.recv_many(&mut come, most).await),
                None => {
                    while timeout(LAST_READ, self.lines.recv_many(&mut come, most)).await.is_err()
                        && self.state.holds.load(Ordering::SeqCst)
                    {}
                }
            }
        }
        let lines: Vec<Line> =
            come.into_iter().map_while(|line| line.map_err(|error| self.failed = Some(error)).ok()).collect();
        match self.failed.take_if(|_| lines.is_empty()) {
            Some(error) => Err(error).with_context(|| format!("reading {}", self.name)),
            None => Ok(lines),
        }
    }

    /// Reads no further. Complete lines that were read can still be taken; an unfinished line is dropped.
    pub fn stop(&mut self) {
        self.going_on = None;
    }

    /// Whether nothing follows what was read.
    pub fn at_end(&self) -> bool {
        self.state.at_end.load(Ordering::SeqCst)
    }
}

/// Opens the file once, because a pipe that is opened twice loses its content. Counts the lines of a regular file
/// before they are read.
fn open(file: &Path, total: oneshot::Sender<u64>) -> io::Result<File> {
    if file.as_os_str() == "-" {
        if stdin().is_terminal() {
            note!("reading JSON lines from the terminal; end with Ctrl-D");
        }
        // Bypasses the buffer of `Stdin`, because bytes in it would be invisible to `poll`.
        return stdin().as_fd().try_clone_to_owned().map(File::from);
    }
    let mut file = File::open(file)?;
    if file.metadata()?.is_file() {
        // The receiver may be gone: the count matters only while the lines are read.
        let _ = total.send(count(&file)?);
        file.rewind()?;
    }
    Ok(file)
}

fn count(file: &File) -> io::Result<u64> {
    let mut reader = BufReader::with_capacity(1 << 16, file);
    let mut lines = 0;
    loop {
        let block = reader.fill_buf()?;
        if block.is_empty() {
            return Ok(lines);
        }
        lines += block.iter().filter(|byte| **byte == b'\n').count() as u64;
        let length = block.len();
        reader.consume(length);
    }
}

struct LineReader {
    lines: mpsc::Sender<io::Result<Line>>,
    most: usize,
    room: Arc<Semaphore>,
    runtime: Handle,
    state: Arc<State>,
}

/// The input, readable until the stop.
struct Input<'a> {
    file: File,
    stop: PipeReader,
    is_stopped: bool,
    state: &'a State,
}

impl Input<'_> {
    /// Waits until there is something to read or the input has ended. Returns an error after the stop, unless the input
    /// has ended.
    fn wait(&mut self) -> io::Result<()> {
        let mut ready = [(self.file.as_fd(), PollFlags::POLLIN), (self.stop.as_fd(), PollFlags::empty())]
            .map(|(file, events)| PollFd::new(file, events));
        while let Err(error) = poll(&mut ready, PollTimeout::NONE) {
            if error != Errno::EINTR {
                return Err(error.into());
            }
        }
        let [file, stop] = ready.map(|ready| ready.revents().unwrap_or(PollFlags::empty()));
        self.is_stopped = !stop.is_empty();
        // The pipe is empty and has no writer any more.
        let is_over = file.contains(PollFlags::POLLHUP) && !file.contains(PollFlags::POLLIN);
        if self.is_stopped && !is_over && !self.is_read()? {
            Err(io::Error::other("stopped"))
        } else {
            Ok(())
        }
    }

    /// Whether this is a regular file that was read to its end.
    fn is_read(&mut self) -> io::Result<bool> {
        let metadata = self.file.metadata()?;
        Ok(metadata.is_file() && self.file.stream_position()? >= metadata.len())
    }
}

impl Read for Input<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.state.holds.store(false, Ordering::SeqCst);
        self.wait()?;
        let read = self.file.read(buffer);
        self.state.holds.store(true, Ordering::SeqCst);
        read
    }
}

impl LineReader {
    /// Returns at the end of the input or after the stop. Fails when the receiver is gone.
    fn all(&self, file: File, stop: PipeReader) -> Result<(), Closed> {
        let input = Input { file, stop, is_stopped: false, state: &self.state };
        let mut reader = BufReader::with_capacity(1 << 16, input);
        let mut bytes = Vec::new();
        for number in 1.. {
            let found = match read_line(&mut reader, &mut bytes, self.most + AROUND) {
                Ok(Found::End) => break,
                Ok(found) => found,
                Err(_) if reader.get_ref().is_stopped => return Ok(()),
                Err(error) => return self.send(Err(error)),
            };
            let mark: &[u8] = if number == 1 { BYTE_ORDER_MARK } else { b"" };
            let kept = trim(bytes.strip_prefix(mark).unwrap_or(&bytes));
            let text = match std::str::from_utf8(kept) {
                _ if matches!(found, Found::TooLong) || kept.len() > self.most => {
                    Err(BadLine::TooLong { most: self.most })
                }
                Ok("") => continue,
                Ok(text) => Ok(text.to_owned()),
                Err(error) => Err(BadLine::NotUtf8 { at: error.valid_up_to() + 1 }),
            };
            let size = text.as_ref().map_or(0, String::len).min(ROOM) as u32;
            let room = self.runtime.block_on(self.room.clone().acquire_many_owned(size));
            let room = room.map_err(|_| Closed)?;
            self.send(Ok(Line { number, text, room }))?;
        }
        self.state.at_end.store(true, Ordering::SeqCst);
        Ok(())
    }

    fn send(&self, line: io::Result<Line>) -> Result<(), Closed> {
        self.lines.blocking_send(line).map_err(|_| Closed)
    }
}

/// The receiver of lines is gone.
struct Closed;

/// The outcome of reading a line.
enum Found {
    Whole,
    /// It was longer than `most` and was skipped.
    TooLong,
    End,
}

/// Reads a line of at most `most` bytes, without its LF.
fn read_line(reader: &mut impl BufRead, line: &mut Vec<u8>, most: usize) -> io::Result<Found> {
    line.clear();
    if reader.by_ref().take(most as u64 + 1).read_until(b'\n', line)? == 0 {
        return Ok(Found::End);
    }
    if line.last() == Some(&b'\n') {
        line.pop();
    }
    if line.len() <= most {
        return Ok(Found::Whole);
    }
    reader.skip_until(b'\n')?;
    Ok(Found::TooLong)
}

/// Trims only the space that JSON allows around a value.
fn trim(mut line: &[u8]) -> &[u8] {
    while let [b' ' | b'\t' | b'\r', rest @ ..] | [rest @ .., b' ' | b'\t' | b'\r'] = line {
        line = rest;
    }
    line
}

#[cfg(test)]
mod tests;
