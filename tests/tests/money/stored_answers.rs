//! An answer that was paid is there for a later attempt, until a checkpoint covers it.

use job::Usd;
use store::{CheckpointRow, Fenced, GivenAnswer, Lookup, NewCall, StoredAnswer};
use tests::{Database, Runner};

use crate::caller::{Caller, cost, daily};

fn answer(text: &str, after_checkpoints: u32) -> StoredAnswer {
    StoredAnswer {
        content_type: "application/json".to_owned(),
        body: text.as_bytes().to_vec(),
        after_checkpoints,
    }
}

async fn ask(caller: &Caller, nth: u32, text: &str, after_checkpoints: u32) {
    let call = NewCall { request_nth: nth, ..caller.call(10) };
    caller.reserve(&call).await;
    caller.settle_with(&call, cost(1), Some(answer(text, after_checkpoints))).await;
}

async fn found(caller: &Caller, nth: u32) -> Option<GivenAnswer> {
    let lookup = Some(Lookup { after_checkpoints: 0, cache: None });
    let call = NewCall { request_nth: nth, lookup, ..caller.call(10) };
    caller.runner.store.look_up(call).await.expect("an answer")
}

async fn stored(caller: &Caller, nth: u32) -> Option<String> {
    found(caller, nth).await.map(|it| String::from_utf8(it.body).expect("text"))
}

async fn paid(caller: &Caller, nth: u32) -> Usd {
    found(caller, nth).await.expect("it is stored").paid.cost
}

/// Writes a checkpoint that says what was used, and nothing else.
async fn pay(caller: &Caller, ordinal: i32) {
    let delta = r#"{"replace_context":false,"iterations":0,"cost_usd":0.000007}"#.to_owned();
    let row = CheckpointRow { delta, iterations: 0, ..caller.runner.iteration(&caller.run, ordinal) };
    let written = caller.runner.store.checkpoint(row).await.expect("an answer");
    assert_eq!(written, Fenced::Done(()));
}

#[tokio::test]
async fn what_only_says_what_was_used_covers_no_answer_and_counts_it() {
    let database = Database::new().await;
    let runner = Runner::register(&database.store()).await;
    let first = Caller::new(&runner, "s", &daily(1_000)).await;
    ask(&first, 0, "one", 0).await;
    pay(&first, 0).await;
    first.hand_back().await;
    let second = first.again(&runner).await;
    assert_eq!(stored(&second, 0).await.as_deref(), Some("one"), "the session is as it was before");
    assert_eq!(paid(&second, 0).await, Usd::ZERO, "the first run has counted it");
    pay(&second, 0).await;
    assert_eq!(stored(&second, 0).await.as_deref(), Some("one"));
    checkpoint(&second, 1).await;
    assert_eq!(stored(&second, 0).await, None);
}

async fn checkpoint(caller: &Caller, ordinal: i32) {
    let written = caller.runner.checkpoint(&caller.run, ordinal).await.expect("an answer");
    assert_eq!(written, Fenced::Done(()));
}

#[tokio::test]
async fn a_later_attempt_finds_the_answers_that_no_checkpoint_covers() {
    let database = Database::new().await;
    let runner = Runner::register(&database.store()).await;
    let first = Caller::new(&runner, "s", &daily(1_000)).await;
    ask(&first, 0, "one", 0).await;
    checkpoint(&first, 0).await;
    ask(&first, 1, "two", 1).await;
    ask(&first, 2, "three", 1).await;
    first.hand_back().await;
    let second = first.again(&runner).await;
    assert_eq!(stored(&second, 0).await, None, "a checkpoint covers it");
    assert_eq!(stored(&second, 1).await.as_deref(), Some("two"));
    assert_eq!(stored(&second, 2).await.as_deref(), Some("three"));
    assert_eq!(stored(&second, 3).await, None);
    assert_eq!(paid(&second, 1).await, Usd::from_micros(1), "what the first run could not checkpoint");
    // It counts from zero again, and so it replaces what is covered.
    ask(&second, 0, "new", 0).await;
    assert_eq!(stored(&second, 0).await.as_deref(), Some("new"));
    assert_eq!(paid(&second, 0).await, Usd::ZERO, "its own run has counted it");
    // A stale run settles late.
    ask(&first, 0, "late", 1).await;
    assert_eq!(stored(&second, 0).await.as_deref(), Some("new"));
    checkpoint(&second, 0).await;
    for nth in 0..3 {
        assert_eq!(stored(&second, nth).await, None);
    }
}

#[tokio::test]
async fn answers_go_when_their_job_has_ended() {
    let database = Database::new().await;
    let runner = Runner::register(&database.store()).await;
    let (one, other) = (Caller::new(&runner, "s", &[]).await, Caller::new(&runner, "t", &[]).await);
    ask(&one, 0, "one", 0).await;
    ask(&other, 0, "other", 0).await;
    one.succeed().await;
    ask(&one, 1, "late", 0).await;
    runner.store.forget_spend(std::time::Duration::from_secs(1)).await.expect("forgotten");
    assert_eq!(stored(&one, 0).await, None);
    assert_eq!(stored(&one, 1).await, None);
    assert_eq!(stored(&other, 0).await.as_deref(), Some("other"));
    assert_eq!(database.count("SELECT count(*) FROM harness_call_answers").await, 1);
    database.audited().await;
}
