//! File tools reach the workspace, all of it, and nothing else.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::stat::Mode;
use regex::Regex;
use serde_json::{Value, json};
use tools::{Ended, OpenError, Redaction, Repeat, Toolbox};

use crate::support::{Bench, build};

async fn call(bench: &Bench, toolbox: &Toolbox, name: &str, input: Value) -> String {
    bench.call(toolbox, name, &input.to_string()).await.text()
}

/// Calls a tool that must refuse.
async fn refused(bench: &Bench, toolbox: &Toolbox, name: &str, input: Value) -> String {
    let output = bench.call(toolbox, name, &input.to_string()).await;
    assert!(output.is_error && output.ended == Ended::Failed, "{name} {input}: {output:?}");
    output.text()
}

#[tokio::test]
async fn a_file_is_written_read_edited_listed_and_found() {
    let bench = Bench::new();
    let toolbox = bench.open("files = true").await;
    let said =
        call(&bench, &toolbox, "write_file", json!({"path": "src/a.rs", "text": "one\ntwo\nthrée\n"})).await;
    assert_eq!(said, "Made src/a.rs (15 bytes).");
    assert_eq!(call(&bench, &toolbox, "read_file", json!({"path": "src/a.rs"})).await, "one\ntwo\nthrée\n");
    let part = json!({"path": "src/a.rs", "offset": 2, "limit": 1});
    let said = call(&bench, &toolbox, "read_file", part).await;
    assert_eq!(said, "two\n[… src/a.rs goes on: read it with offset = 3 …]");
    let edit = json!({"path": "src/a.rs", "old": "two", "new": "2"});
    assert_eq!(call(&bench, &toolbox, "edit_file", edit).await, "Edited src/a.rs in 1 place.");
    let absolute = bench.workspace().join("src/a.rs");
    let said = call(&bench, &toolbox, "read_file", json!({"path": absolute.to_str()})).await;
    assert_eq!(said, "one\n2\nthrée\n");
    bench.put("src/deep/b.txt", "three\n");
    bench.put(".git/config", "three\n");
    assert_eq!(call(&bench, &toolbox, "list_files", json!({"path": "src"})).await, "a.rs 13 bytes\ndeep/");
    assert_eq!(call(&bench, &toolbox, "find_files", json!({"glob": "*.rs"})).await, "src/a.rs");
    assert_eq!(call(&bench, &toolbox, "find_files", json!({"glob": "src/**/b*"})).await, "src/deep/b.txt");
    let said = call(&bench, &toolbox, "search_files", json!({"pattern": "^th.*e+$"})).await;
    let mut lines: Vec<&str> = said.lines().collect();
    lines.sort();
    assert_eq!(lines, ["src/a.rs:3: thrée", "src/deep/b.txt:1: three"]);
    let said = call(
        &bench,
        &toolbox,
        "search_files",
        json!({"pattern": "THREE", "ignore_case": true, "glob": "*.txt"}),
    )
    .await;
    assert_eq!(said, "src/deep/b.txt:1: three");
}

#[tokio::test]
async fn tools_that_change_can_be_left_out_or_approved() {
    let bench = Bench::new();
    let names = |toolbox: &Toolbox| {
        toolbox.tools().iter().map(|tool| (tool.name.clone(), tool.approve, tool.repeat)).collect::<Vec<_>>()
    };
    let read_only = bench.open("files = { write = false }").await;
    let safe = |name: &str, approve| (name.to_owned(), approve, Repeat::Safe);
    let reading = ["find_files", "list_files", "read_file", "search_files"];
    assert_eq!(names(&read_only), reading.map(|name| safe(name, false)));
    let approved = bench.open("files = { approve = true }").await;
    assert_eq!(names(&approved)[0], ("edit_file".to_owned(), true, Repeat::Unsafe));
    assert_eq!(names(&approved)[5], safe("write_file", true));
    assert!(!bench.call(&read_only, "write_file", "{}").await.text().is_empty());
}

#[tokio::test]
async fn no_path_and_no_link_leads_out() {
    let bench = Bench::new();
    let outside = bench.dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("secret"), "hunter2").unwrap();
    let toolbox = bench.open("files = true").await;
    symlink(&outside, bench.workspace().join("folder")).unwrap();
    symlink("../outside", bench.workspace().join("beside")).unwrap();
    symlink(outside.join("secret"), bench.workspace().join("file")).unwrap();
    symlink(outside.join("new"), bench.workspace().join("dangling")).unwrap();
    let paths = [
        "../outside/secret",
        "x/../../outside/secret",
        "/etc/passwd",
        outside.join("secret").to_str().unwrap(),
        "folder/secret",
        "beside/secret",
        "file",
    ]
    .map(str::to_owned);
    fs::create_dir(bench.workspace().join("x")).unwrap();
    for path in &paths {
        for (tool, input) in [
            ("read_file", json!({"path": path})),
            ("write_file", json!({"path": path, "text": "x"})),
            ("edit_file", json!({"path": path, "old": "hunter2", "new": "x"})),
        ] {
            let said = refused(&bench, &toolbox, tool, input).await;
            assert!(!said.contains("hunter2"), "{tool} {path}: {said}");
        }
    }
    for path in ["dangling", "folder/new", "beside/new/deep"] {
        refused(&bench, &toolbox, "write_file", json!({"path": path, "text": "x"})).await;
    }
    for path in ["..", "/", "folder", "beside", "folder/.."] {
        for (tool, input) in [
            ("list_files", json!({"path": path})),
            ("find_files", json!({"path": path, "glob": "*"})),
            ("search_files", json!({"path": path, "pattern": "hunter"})),
        ] {
            let said = refused(&bench, &toolbox, tool, input).await;
            assert!(!said.contains("secret") && !said.contains("hunter2"), "{tool} {path}: {said}");
        }
    }
    // Links that lie in the workspace are shown, and not followed.
    let said = call(&bench, &toolbox, "search_files", json!({"pattern": "hunter"})).await;
    assert_eq!(said, "(nothing found)");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
    assert_eq!(fs::read_to_string(outside.join("secret")).unwrap(), "hunter2");
}

#[tokio::test]
async fn a_workspace_is_never_a_link_to_another() {
    let bench = Bench::new();
    fs::rename(bench.workspace(), bench.dir.path().join("other")).unwrap();
    symlink(bench.dir.path().join("other"), bench.workspace()).unwrap();
    let toolset = build(toml::from_str("files = true").unwrap()).unwrap();
    let refused = Toolbox::open(&toolset, &bench.place()).await;
    assert!(matches!(refused, Err(OpenError::Workspace(_))));
}

#[tokio::test]
async fn a_file_with_another_name_is_not_written() {
    let bench = Bench::new();
    let outside = bench.dir.path().join("outside");
    fs::write(&outside, "theirs").unwrap();
    fs::hard_link(&outside, bench.workspace().join("linked")).unwrap();
    let toolbox = bench.open("files = true").await;
    for (tool, input) in [
        ("write_file", json!({"path": "linked", "text": "ours"})),
        ("edit_file", json!({"path": "linked", "old": "theirs", "new": "ours"})),
    ] {
        let said = refused(&bench, &toolbox, tool, input).await;
        assert!(said.contains("2 names (hard links)"), "{said}");
    }
    assert_eq!(fs::read_to_string(&outside).unwrap(), "theirs");
}

#[tokio::test]
async fn what_is_no_file_is_refused_and_hangs_nothing() {
    let bench = Bench::new();
    let toolbox = bench.open("files = true").await;
    let pipe = bench.workspace().join("pipe");
    nix::unistd::mkfifo(&pipe, Mode::from_bits_truncate(0o600)).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(bench.workspace().join("socket")).unwrap();
    let begun = Instant::now();
    for path in ["pipe", "socket"] {
        for (tool, input) in [
            ("read_file", json!({"path": path})),
            ("edit_file", json!({"path": path, "old": "a", "new": "b"})),
            ("write_file", json!({"path": path, "text": "b"})),
        ] {
            let said = refused(&bench, &toolbox, tool, input).await;
            assert!(said.contains("no file, but a pipe, a socket or a device"), "{said}");
        }
    }
    assert_eq!(call(&bench, &toolbox, "search_files", json!({"pattern": "."})).await, "(nothing found)");
    for (tool, input) in [
        ("read_file", json!({"path": "."})),
        ("write_file", json!({"path": ".", "text": "x"})),
        ("write_file", json!({"path": "pipe/x", "text": "x"})),
        ("read_file", json!({"path": "missing"})),
    ] {
        refused(&bench, &toolbox, tool, input).await;
    }
    assert!(begun.elapsed() < Duration::from_secs(30));
}

#[tokio::test]
async fn an_edit_needs_exactly_one_place_or_all_of_them() {
    let bench = Bench::new();
    bench.put("a", "x x\n");
    bench.put("binary", b"\xff\xfe");
    fs::set_permissions(bench.workspace().join("a"), fs::Permissions::from_mode(0o750)).unwrap();
    let toolbox = bench.open("files = true").await;
    for (input, said) in [
        (json!({"path": "a", "old": "x", "new": "y"}), "2 times"),
        (json!({"path": "a", "old": "z", "new": "y"}), "not in a"),
        (json!({"path": "a", "old": "x", "new": "x"}), "the same"),
        (json!({"path": "binary", "old": "x", "new": "y"}), "no UTF-8"),
    ] {
        let problem = refused(&bench, &toolbox, "edit_file", input).await;
        assert!(problem.contains(said), "{problem}");
    }
    let said =
        call(&bench, &toolbox, "edit_file", json!({"path": "a", "old": "x", "new": "xx", "all": true})).await;
    assert_eq!(said, "Edited a in 2 places.");
    assert_eq!(fs::read_to_string(bench.workspace().join("a")).unwrap(), "xx xx\n");
    let mode = fs::metadata(bench.workspace().join("a")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o750);
    assert_eq!(fs::read_dir(bench.workspace()).unwrap().count(), 2, "a temporary file was left");
}

#[tokio::test]
async fn no_edit_and_no_write_makes_a_file_that_is_too_large() {
    let bench = Bench::new();
    let before = "a".repeat(70_000);
    bench.put("a", &before);
    let toolbox = bench.open("files = true").await;
    let edit = json!({"path": "a", "old": "a", "new": "b".repeat(300), "all": true});
    let said = refused(&bench, &toolbox, "edit_file", edit).await;
    assert_eq!(said, "a would have 21000000 bytes, expected at most 16777216.");
    let write = json!({"path": "new/b", "text": "b".repeat(17_000_000)});
    let said = refused(&bench, &toolbox, "write_file", write).await;
    assert_eq!(said, "new/b would have 17000000 bytes, expected at most 16777216.");
    assert_eq!(fs::read_to_string(bench.workspace().join("a")).unwrap(), before);
    assert_eq!(fs::read_dir(bench.workspace()).unwrap().count(), 1);
    let edit = json!({"path": "a", "old": "a", "new": "bb", "all": true});
    assert_eq!(call(&bench, &toolbox, "edit_file", edit).await, "Edited a in 70000 places.");
}

#[tokio::test]
async fn a_secret_leaves_no_piece_where_a_file_or_a_line_is_cut() {
    let mut bench = Bench::new();
    let pattern = Regex::new("(?s)BEGIN.*?END").unwrap();
    bench.redaction = Arc::new(Redaction::new(vec![pattern], vec!["sk-0123456789".into()]));
    bench.put("line", format!("{}sk-0123456789{}", ".".repeat(1_787), ".".repeat(5_000)));
    bench.put("lines", format!("one\nBEGIN\n{}END\ntwo\n", "01234\n".repeat(1_000)));
    bench.put("found", format!("{}sk-0123456789", ".".repeat(395)));
    let toolbox = bench.open("files = { max_output_bytes = 2048 }").await;
    let said = call(&bench, &toolbox, "read_file", json!({"path": "line"})).await;
    assert!(said.starts_with("....") && !said.contains("sk-"), "{said}");
    let said = call(&bench, &toolbox, "read_file", json!({"path": "lines", "offset": 50, "limit": 3})).await;
    assert_eq!(said, "[redacted][… lines goes on: read it with offset = 53 …]");
    let said = call(&bench, &toolbox, "read_file", json!({"path": "lines"})).await;
    assert!(said.starts_with("one\n[redacted]") && !said.contains("01234"), "{said}");
    let said = call(&bench, &toolbox, "search_files", json!({"pattern": "^\\.", "path": "."})).await;
    assert!(said.contains("found:1: ...") && !said.contains("sk-"), "{said}");
}

#[tokio::test]
async fn what_is_long_or_no_text_is_shown_within_bounds() {
    let bench = Bench::new();
    bench.put("lines", "0123456789\n".repeat(100_000));
    bench.put("line", "é".repeat(100_000));
    bench.put("binary", b"a\0b");
    bench.put("latin", b"\xe9t\xe9\n");
    bench.put("empty", "");
    let toolbox = bench.open("files = { max_output_bytes = 2048 }").await;
    let said = call(&bench, &toolbox, "read_file", json!({"path": "lines"})).await;
    assert!(said.len() <= 2048 && said.ends_with("[… lines goes on: read it with offset = 163 …]"), "{said}");
    let said = call(&bench, &toolbox, "read_file", json!({"path": "lines", "offset": 99_999})).await;
    assert_eq!(said, "0123456789\n0123456789\n");
    let said = call(&bench, &toolbox, "read_file", json!({"path": "line"})).await;
    assert!(said.len() <= 2048 && !said.contains('\u{fffd}'), "{said}");
    assert!(said.contains("longer than can be shown"), "{said}");
    assert_eq!(call(&bench, &toolbox, "read_file", json!({"path": "latin"})).await, "\u{fffd}t\u{fffd}\n");
    assert_eq!(call(&bench, &toolbox, "read_file", json!({"path": "empty"})).await, "(empty is empty)");
    let said = call(&bench, &toolbox, "read_file", json!({"path": "latin", "offset": 9})).await;
    assert_eq!(said, "(latin has no line there)");
    assert!(refused(&bench, &toolbox, "read_file", json!({"path": "binary"})).await.contains("no text"));
    let said = call(&bench, &toolbox, "search_files", json!({"pattern": "0"})).await;
    assert!(said.len() <= 2048 && said.contains("lines:1: 0123456789"), "{said}");
    for (pattern, problem) in [("(", "pattern"), (&"(a{1000}){1000}".repeat(2), "size limit")] {
        let said = refused(&bench, &toolbox, "search_files", json!({"pattern": pattern})).await;
        assert!(said.contains(problem), "{said}");
    }
    assert!(refused(&bench, &toolbox, "find_files", json!({"glob": "["})).await.starts_with("glob: "));
}
