//! What a job or a program wrote cannot act as a command to a terminal, nor as a line end to a reader of lines.

use job::{JobId, JobState};
use lapin::BasicProperties;
use serde_json::{Value, json};
use tests::{Fleet, job};

/// Clears the screen, sets a title, overwrites the line and reverses the reading direction; some readers also see line
/// ends in it.
const NASTY: &str = "boom\u{1b}[2J\u{1b}]0;title\u{7}\u{1b}[31mred\rSUCCEEDED\u{202e}txt.exe\u{9b}31m\u{2028}x\u{2029}y\u{85}z";

/// A program that uses this text wherever it can, in its state and in its error.
fn program() -> String {
    let nasty = json!(NASTY);
    let checkpoint = json!({"type": "checkpoint", "memory": {"k": nasty}, "context_window": [nasty], "feature_progress": {"p": nasty}});
    let error = json!({"type": "error", "message": nasty});
    format!("#!/bin/sh\ncat <<'END'\n{checkpoint}\n{error}\nEND\n")
}

/// All characters except line feeds that a terminal would act on, or that a reader could take for a line end.
fn acts(text: &str) -> Vec<char> {
    let acts = |c: char| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}');
    text.chars().filter(|c| *c != '\n' && acts(*c)).collect()
}

#[tokio::test]
async fn what_a_stranger_wrote_reaches_a_terminal_as_text_and_programs_as_one_line() {
    let fleet = Fleet::new().await;
    let nasty = fleet.program("nasty", &program());
    let agents = fleet.agents(&[("nasty", &nasty), ("echo", "")]);
    let worker = fleet.worker("worker").set("AGENTS_FILE", agents).set("LOG_JSON", "true").launch();
    worker.said("takes jobs").await;
    let mut failing = job("s", "nasty", json!(NASTY));
    failing.user_id = Some("me\u{202e}you".to_owned());
    let echoed = job("t", "echo", json!(NASTY));
    fleet.enqueue(&[failing.clone(), echoed.clone()]).await;
    assert_eq!(fleet.ended(failing.job_id).await.state, JobState::Failed);
    assert_eq!(fleet.ended(echoed.job_id).await.state, JobState::Succeeded);
    let mut bad: Value = serde_json::from_str(&job::encode(&job("u", "echo", json!(1)))).unwrap();
    bad["pool"] = json!(NASTY);
    let letter = JobId::now().to_string();
    let properties = BasicProperties::default().with_message_id(letter.as_str().into());
    fleet.vhost.publish(vec![(bad.to_string().into_bytes(), properties)]).await;
    worker.said("a message was dead-lettered").await;

    let ids = [failing.job_id.to_string(), echoed.job_id.to_string()];
    let commands: [&[&str]; 7] = [
        &["status", &ids[0], &ids[1]],
        &["wait", &ids[0], &ids[1]],
        &["sessions", "show", "s"],
        &["dead", "list"],
        &["dead", "show", &ids[0]],
        &["dead", "show", &letter],
        &["dead", "redrive", &letter],
    ];
    for command in commands {
        let ran = fleet.producer(command).await;
        let text = [ran.out, ran.err].concat();
        assert_eq!(acts(&text), Vec::<char>::new(), "{command:?}: {text:?}");
        assert!(text.contains("boom") || command[1] != "list", "{command:?}: {text:?}");
        // What the command before has looked at comes back to the broker's queue a moment after its end.
        let with_json = async || {
            Some(fleet.producer(&[command, &["--json"]].concat()).await).filter(|ran| !ran.out.is_empty())
        };
        let ran = tests::until("it prints something", with_json).await;
        assert_eq!(acts(&ran.out), Vec::<char>::new(), "{command:?}: {ran:?}");
        assert!(ran.json().iter().all(Value::is_object), "{command:?}: {ran:?}");
    }
    let shown = fleet.producer(&["sessions", "show", "s", "--json"]).await.json();
    assert_eq!(shown[0]["memory"]["k"], json!(NASTY), "it is the same text");
    assert_eq!(acts(&worker.log()), Vec::<char>::new());
}
