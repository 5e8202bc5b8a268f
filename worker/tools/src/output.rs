//! The text of an output: its head and its tail if it is too long, with all of it in a file of the workspace.

use std::collections::VecDeque;

use tokio::fs::File;
use tokio::io::AsyncWriteExt;

use crate::redaction::Redaction;
use crate::text;
use crate::workspace::Workspace;

/// What the note between head and tail takes, at most.
const NOTE_BYTES: usize = 256;

/// Collects an output as it comes.
pub struct Collected<'a> {
    workspace: &'a Workspace,
    name: String,
    redaction: &'a Redaction,
    limit: usize,
    /// All of it, up to `limit`; then its head, and what stands around a cut there.
    head: Vec<u8>,
    /// The last bytes, once it is longer, and what stands around a cut there.
    tail: VecDeque<u8>,
    total: u64,
    file: Kept,
}

/// The file that holds all of it.
enum Kept {
    No,
    In(File, String),
    Failed(String),
}

impl<'a> Collected<'a> {
    /// Begins with nothing. A file gets this name.
    pub fn new(
        (workspace, redaction): (&'a Workspace, &'a Redaction),
        name: String,
        limit: usize,
    ) -> Collected<'a> {
        let (head, tail) = (Vec::new(), VecDeque::new());
        Collected { workspace, name, redaction, limit, head, tail, total: 0, file: Kept::No }
    }

    /// Returns how many bytes came.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Adds bytes.
    pub async fn push(&mut self, bytes: &[u8]) {
        self.total += bytes.len() as u64;
        if matches!(self.file, Kept::No) {
            if self.head.len() + bytes.len() <= self.limit {
                self.head.extend_from_slice(bytes);
                return;
            }
            self.begin_file().await;
        }
        self.write(bytes).await;
        let most = self.limit + self.redaction.around();
        let room = most - self.head.len();
        let (more, rest) = bytes.split_at(room.min(bytes.len()));
        self.head.extend_from_slice(more);
        let rest = &rest[rest.len().saturating_sub(most)..];
        self.tail.extend(rest);
        self.tail.drain(..self.tail.len().saturating_sub(most));
    }

    async fn begin_file(&mut self) {
        self.file = match self.workspace.new_output(&self.name) {
            Ok((file, path)) => Kept::In(File::from_std(file), path),
            Err(error) => Kept::Failed(error.to_string()),
        };
        let head = std::mem::take(&mut self.head);
        self.write(&head).await;
        self.head = head;
    }

    async fn write(&mut self, bytes: &[u8]) {
        if let Kept::In(file, _) = &mut self.file
            && let Err(error) = file.write_all(bytes).await
        {
            self.file = Kept::Failed(error.to_string());
        }
    }

    /// Returns the text, redacted: all of it if it has no more than `room` bytes, and else its head and its tail.
    pub async fn finish(mut self, room: usize) -> String {
        let whole = matches!(self.file, Kept::No).then(|| self.redaction.clean(&text::clean(&self.head)));
        if let Some(whole) = whole {
            if whole.len() <= room {
                return whole;
            }
            self.begin_file().await;
        }
        if let Kept::In(file, _) = &mut self.file
            && let Err(error) = file.flush().await
        {
            self.file = Kept::Failed(error.to_string());
        }
        let whereabouts = match &self.file {
            Kept::In(_, path) => format!("all of it is in the file {path}"),
            Kept::Failed(error) => text::clipped(&format!("it could not be kept in a file: {error}"), 150),
            Kept::No => String::new(),
        };
        // What stands at the end of the output: it starts in `head` if it is not much longer.
        let end: Vec<u8> = self.head.iter().chain(&self.tail).copied().collect();
        let half = room.saturating_sub(NOTE_BYTES) / 2;
        let known = half + self.redaction.around();
        let start = text::clean(&self.head[..known.min(self.head.len())]);
        let end = text::clean(&end[end.len().saturating_sub(known)..]);
        let (start, end) = (self.redaction.head(&start, half), self.redaction.tail(&end, half));
        let total = self.total;
        format!("{start}\n[… the output has {total} bytes and is cut here; {whereabouts} …]\n{end}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn collected(pieces: &[&[u8]], limit: usize) -> (String, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let workspace = Workspace::open(dir.path()).unwrap();
        let redaction = Redaction::default();
        let mut output = Collected::new((&workspace, &redaction), "call".to_owned(), limit);
        for piece in pieces {
            output.push(piece).await;
        }
        (output.finish(limit).await, dir)
    }

    #[tokio::test]
    async fn a_short_output_is_itself_and_leaves_no_file() {
        let (text, dir) = collected(&[b"one ", b"two\0"], 1_024).await;
        assert_eq!(text, "one two\u{fffd}");
        assert!(!dir.path().join(".harness").exists());
    }

    #[tokio::test]
    async fn a_long_one_has_head_and_tail_and_all_of_it_is_in_the_file_that_it_names() {
        let all: Vec<u8> = (0..100_000).map(|at| "0123456789é".as_bytes()[at % 12]).collect();
        for size in [1, 7, 1_000, 100_000] {
            let pieces: Vec<&[u8]> = all.chunks(size).collect();
            let (text, dir) = collected(&pieces, 2_048).await;
            assert!(text.len() <= 2_048 && text.len() > 1_700, "{}", text.len());
            assert!(text.starts_with("0123456789é0") && !text.contains('\u{fffd}'), "{text}");
            assert!(
                text.contains("the output has 100000 bytes") && text.contains(".harness/output/call"),
                "{text}"
            );
            assert!(text.ends_with(&*String::from_utf8_lossy(&all[99_900..])));
            assert_eq!(std::fs::read(dir.path().join(".harness/output/call")).unwrap(), all);
        }
    }

    #[tokio::test]
    async fn what_grows_by_being_cleaned_stays_within_its_limit() {
        let (text, dir) = collected(&[&[0xff; 1_000]], 1_024).await;
        assert!(text.len() <= 1_024, "{}", text.len());
        assert_eq!(std::fs::read(dir.path().join(".harness/output/call")).unwrap().len(), 1_000);
    }

    #[tokio::test]
    async fn a_key_and_what_fits_a_pattern_leave_no_piece_wherever_the_cuts_are() {
        let dir = tempfile::tempdir().unwrap();
        let workspace = Workspace::open(dir.path()).unwrap();
        let pattern = regex::Regex::new("(?s)BEGIN.*?END").unwrap();
        let redaction = Redaction::new(vec![pattern], vec!["sk-0123456789".into()]);
        let long = format!("BEGIN\n{}END", "0123456789\n".repeat(900));
        let limit = 1_024;
        let half = (limit - NOTE_BYTES) / 2;
        let places = [0, 100, half - 12, half - 6, half - 1, half];
        let places = places.into_iter().flat_map(|at| [(at, 7, "sk-0123456789"), (at, 9_000, long.as_str())]);
        for (at, piece, secret) in places {
            let (short, long) = (".".repeat(at), ".".repeat(40_000));
            for all in [format!("{short}{secret}{long}"), format!("{long}{secret}{short}")] {
                let mut output = Collected::new((&workspace, &redaction), "call".to_owned(), limit);
                for piece in all.as_bytes().chunks(piece) {
                    output.push(piece).await;
                }
                let text = output.finish(limit).await;
                assert!(text.len() <= limit, "{at}: {text}");
                let (start, rest) = text.split_once("\n[…").unwrap();
                let (_, end) = rest.rsplit_once("…]\n").unwrap();
                for shown in [start, end] {
                    assert!(shown.chars().all(|c| ".[redacted]".contains(c)), "{at}: {text}");
                }
                std::fs::remove_dir_all(dir.path().join(".harness")).unwrap();
            }
        }
    }

    #[tokio::test]
    async fn no_link_leads_an_output_out_of_the_workspace() {
        let outside = tempfile::tempdir().unwrap();
        let victim = outside.path().join("victim");
        std::fs::write(&victim, "safe").unwrap();
        for linked in [".harness", ".harness/output", ".harness/output/call"] {
            let dir = tempfile::tempdir().unwrap();
            let link = dir.path().join(linked);
            std::fs::create_dir_all(link.parent().unwrap()).unwrap();
            let target = if linked.ends_with("call") { victim.clone() } else { outside.path().to_owned() };
            std::os::unix::fs::symlink(target, &link).unwrap();
            let workspace = Workspace::open(dir.path()).unwrap();
            let redaction = Redaction::default();
            let mut output = Collected::new((&workspace, &redaction), "call".to_owned(), 1_024);
            output.push(&[b'x'; 5_000]).await;
            let text = output.finish(1_024).await;
            assert!(text.len() <= 1_024 && text.contains("5000 bytes"), "{text}");
            assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 1, "{linked}");
            assert_eq!(std::fs::read_to_string(&victim).unwrap(), "safe");
        }
    }
}
