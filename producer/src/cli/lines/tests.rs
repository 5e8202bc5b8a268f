//! How lines arrive and where they end.

use std::io::Write;
use std::os::fd::AsRawFd;

use super::*;

/// Returns the lines that are left, until the end or the stop.
async fn rest(lines: &mut Lines) -> Vec<String> {
    let mut all = Vec::new();
    loop {
        let come = lines.next(3).await.unwrap();
        if come.is_empty() {
            return all;
        }
        all.extend(come.into_iter().map(|line| line.text.unwrap()));
    }
}

#[tokio::test]
async fn a_stop_behind_the_last_line_is_none() {
    for text in ["1\n2\n3\n", "1\n2\n3"] {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        // The file is read in one block. The last line has no room before the first two are taken, so the end has not
        // been reached.
        let mut lines = Lines::read(file.path().to_owned(), 1, 20);
        assert_eq!(lines.next(1).await.unwrap()[0].number, 1);
        lines.stop();
        assert_eq!(rest(&mut lines).await, ["2", "3"]);
        assert!(lines.at_end(), "{text:?}");
    }
}

#[tokio::test]
async fn a_stop_before_the_last_line_takes_nothing_more_from_a_pipe() {
    // Enough rounds for the stop to meet the thread at each of its steps.
    for round in 0..200 {
        let (mut left, mut writer) = io::pipe().unwrap();
        let path = format!("/proc/self/fd/{}", left.as_raw_fd());
        let mut lines = Lines::read(path.into(), 4, 20);
        writer.write_all(b"1\n2").unwrap();
        assert_eq!(lines.next(3).await.unwrap()[0].number, 1);
        (0..round).for_each(|_| std::thread::yield_now());
        lines.stop();
        assert_eq!(rest(&mut lines).await, Vec::<String>::new());
        assert!(!lines.at_end());
        writer.write_all(b"late\n").unwrap();
        drop(writer);
        let mut late = String::new();
        left.read_to_string(&mut late).unwrap();
        assert_eq!(late, "late\n");
    }
}

/// Reads the lines of a text, none longer than 20 bytes.
async fn lines(text: &[u8]) -> Vec<(u64, Result<String, BadLine>)> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    let mut lines = Lines::read(file.path().to_owned(), 4, 20);
    assert_eq!(lines.total().await, Some(text.split(|byte| *byte == b'\n').count() as u64 - 1));
    let mut all = Vec::new();
    loop {
        let come = lines.next(3).await.unwrap();
        if come.is_empty() {
            return all;
        }
        assert!(come.len() <= 3);
        all.extend(come.into_iter().map(|line| (line.number, line.text)));
    }
}

fn good(number: u64, text: &str) -> (u64, Result<String, BadLine>) {
    (number, Ok(text.to_owned()))
}

#[tokio::test]
async fn a_line_ends_with_lf_alone_and_a_mark_at_the_beginning_is_none_of_it() {
    assert_eq!(
        lines("\u{feff}{1}\r\n\r\n \t{2}\n{\u{2028}\u{85}}\n\u{feff}{3}".as_bytes()).await,
        [good(1, "{1}"), good(3, "{2}"), good(4, "{\u{2028}\u{85}}"), good(5, "\u{feff}{3}")]
    );
    assert_eq!(lines(b"").await, []);
    assert_eq!(lines("\u{feff}".as_bytes()).await, []);
}

#[tokio::test]
async fn a_line_that_is_too_long_or_no_text_is_named_and_the_next_one_is_whole() {
    let text = [b"x".repeat(20), b"y".repeat(300_000), b"caf\xe9".to_vec(), b"z".to_vec()].join(&b'\n');
    assert_eq!(
        lines(&text).await,
        [
            good(1, &"x".repeat(20)),
            (2, Err(BadLine::TooLong { most: 20 })),
            (3, Err(BadLine::NotUtf8 { at: 4 })),
            good(4, "z")
        ]
    );
}

#[tokio::test]
async fn what_is_around_a_line_does_not_make_it_too_long() {
    let (longest, longer) = ("x".repeat(20), "x".repeat(21));
    for (text, said) in [(longest.clone(), Ok(longest)), (longer, Err(BadLine::TooLong { most: 20 }))] {
        for (before, after) in [("", ""), ("", "\r\n"), ("\u{feff}", ""), ("\u{feff}", "\r\n")] {
            let all = lines(format!("{before}{text}{after}").as_bytes()).await;
            assert_eq!(all, [(1, said.clone())], "{before:?} {after:?}");
        }
    }
}
