//! `examples/reader.py`, the template: it can be killed at any moment and goes on with the next file.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use command::CommandConfig;
use harness::testing::{MemoryJournal, assert_failure, failure, task};
use harness::{Run, RunError, Session, Stop, Stopper, Task};
use job::{FailureCode, Json};
use serde_json::{Value, json};

use crate::support::{Bench, kill_all_of, nothing_is_left_of, quick_path};

fn reader(root: &Bench) -> CommandConfig {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../examples/reader.py");
    let mut config = CommandConfig::new([path.to_str().unwrap()]);
    config.env.insert("PATH".into(), quick_path());
    config.env.insert("READER_ROOT".into(), root.dir.path().to_str().unwrap().into());
    config
}

/// Six files, a.md to f.md, each with a heading and some words, and one that is no Markdown.
fn library() -> Bench {
    let bench = Bench::new();
    let docs = bench.dir.path().join("docs");
    std::fs::create_dir_all(docs.join("deep")).unwrap();
    for (at, name) in ["a", "b", "c", "deep/d", "deep/e", "deep/f"].iter().enumerate() {
        let text = format!("# Heading\n\nwhale {}\n```\n# no heading\n```\n", "sea ".repeat(at + 1));
        std::fs::write(docs.join(format!("{name}.md")), text).unwrap();
    }
    std::fs::write(docs.join("notes.txt"), "plain").unwrap();
    bench
}

async fn read(
    bench: &Bench,
    task: &Task,
    session: Session,
    journal: &Arc<MemoryJournal>,
) -> (Result<Json, RunError>, Session) {
    let mut run = Run::new(task.clone(), session, journal.clone(), Stopper::default().signal());
    let ended = bench.build(reader(bench)).run(&mut run).await;
    nothing_is_left_of(task.job_id).await;
    (ended, run.into_session())
}

/// The same job with a wait before each file.
fn with_delay(task: &Task, delay_ms: u64) -> Task {
    let input = json!({"folder": "docs", "delay_ms": delay_ms});
    Task { input: Json::from_value(&input).unwrap(), ..task.clone() }
}

fn parsed(ended: Result<Json, RunError>) -> Value {
    serde_json::from_str(ended.unwrap().as_str()).unwrap()
}

#[tokio::test]
async fn files_are_counted_and_summed_up() {
    let bench = library();
    let journal = MemoryJournal::new();
    let task = task(json!({"folder": "docs"}));
    let (ended, session) = read(&bench, &task, Session::default(), &journal).await;
    let output = parsed(ended);
    assert_eq!(
        (&output["files"], &output["headings"], &output["resumed_at"]),
        (&json!(6), &json!(6), &json!(0))
    );
    assert_eq!(output["top_words"][0], json!({"word": "sea", "count": 21}));
    assert_eq!((journal.deltas().len(), session.iteration_count), (6, 6));
    assert_eq!(session.memory["reader"]["files"], 6);

    // The session's next job adds to the totals, and counts for itself.
    let task = harness::testing::task(json!({"paths": ["docs/notes.txt"]}));
    let (ended, session) = read(&bench, &task, session, &MemoryJournal::new()).await;
    assert_eq!((&parsed(ended)["files"], &session.memory["reader"]["files"]), (&json!(1), &json!(7)));
}

#[tokio::test]
async fn a_killed_reader_goes_on_with_the_next_file() {
    let bench = library();
    let task = task(json!({"folder": "docs"}));
    // Slow enough to be killed before the last file.
    let slow = with_delay(&task, 250);
    let job_id = task.job_id;
    let journal = MemoryJournal::with(Duration::ZERO, move |before| {
        if before == 2 {
            kill_all_of(job_id);
        }
        Ok(())
    });
    let (ended, session) = read(&bench, &slow, Session::default(), &journal).await;
    assert_failure(&failure(ended), FailureCode::Crashed, true, "SIGKILL");
    let done = session.iteration_count;
    assert!((3..6).contains(&done), "{done}");

    let rest = MemoryJournal::new();
    let (ended, session) = read(&bench, &task, session, &rest).await;
    let output = parsed(ended);
    assert_eq!(output["resumed_at"], done);
    assert_eq!((rest.deltas().len() as u64, session.iteration_count), (6 - done, 6));

    // The output is the same as without the kill.
    let (undisturbed, _) = read(&bench, &task, Session::default(), &MemoryJournal::new()).await;
    let mut undisturbed = parsed(undisturbed);
    undisturbed["resumed_at"] = json!(done);
    assert_eq!(output, undisturbed);
    assert_eq!(session.memory["reader"]["words"], output["words"]);

    // If the end was not recorded, the job starts once more, and no file is read again.
    let again = MemoryJournal::new();
    let (ended, _) = read(&bench, &task, session, &again).await;
    assert_eq!((parsed(ended)["resumed_at"].clone(), again.deltas().len()), (json!(6), 0));
}

#[tokio::test]
async fn a_drained_reader_stops_after_its_file_and_hands_back() {
    let bench = library();
    let task = task(json!({"folder": "docs"}));
    let journal = MemoryJournal::new();
    let stopper = Stopper::default();
    let mut run = Run::new(with_delay(&task, 250), Session::default(), journal.clone(), stopper.signal());
    let harness = bench.build(reader(&bench));
    let (ended, ()) = tokio::join!(harness.run(&mut run), async {
        journal.reached(2).await;
        stopper.ask(Stop::Drain);
    });
    assert_eq!(ended, Err(RunError::Stopped(Stop::Drain)));
    let session = run.into_session();
    assert!((1..6).contains(&session.iteration_count), "{}", session.iteration_count);
    let (ended, session) = read(&bench, &task, session, &MemoryJournal::new()).await;
    assert_eq!((parsed(ended)["files"].clone(), session.iteration_count), (json!(6), 6));
}

#[tokio::test]
async fn a_wrong_input_is_answered_by_its_field() {
    let bench = library();
    for (input, expected) in [
        (json!(null), "input: got null"),
        (json!({}), "input: expected either paths or folder"),
        (json!({"path": "x"}), "input.path: unknown"),
        (
            json!({"paths": ["docs/a.md", "docs/gone.md"]}),
            "input.paths[1]: got 'docs/gone.md', expected a file",
        ),
        (
            json!({"paths": ["../../etc/passwd"]}),
            "input.paths[0]: got '../../etc/passwd', which lies outside",
        ),
        (json!({"paths": ["/etc/passwd"]}), "input.paths[0]: "),
        (json!({"paths": "docs"}), "input.paths: expected a list"),
        (json!({"folder": "gone"}), "input.folder: got 'gone', expected a folder"),
        (json!({"folder": "docs", "pattern": "*.pdf"}), "input.pattern: no file"),
        (json!({"folder": "docs", "pattern": ""}), "input.pattern: got ''"),
        (json!({"folder": "docs", "delay_ms": -1}), "input.delay_ms: got -1"),
        (json!({"paths": ["x".repeat(5_000)]}), "File name too long"),
    ] {
        let journal = MemoryJournal::new();
        let (ended, _) = read(&bench, &task(input), Session::default(), &journal).await;
        assert_failure(&failure(ended), FailureCode::HarnessError, false, expected);
        assert_eq!(journal.deltas(), []);
    }
}
