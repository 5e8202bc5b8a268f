//! Jobs and sessions are followed while they run, and the end always comes.

mod access;
mod away;
mod neighbours;

use http::Method;
use job::JobId;
use serde_json::{Value, json};
use tests::provider::{PROVIDER_KEY, Provider, Script};
use tests::{Api, Fleet, OwnBroker, ServerEvent, until};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpSocket;

use super::tenants::caller;

/// The names of these events, without repetitions one behind the other.
fn names(events: &[ServerEvent]) -> Vec<&str> {
    let mut names: Vec<&str> = events.iter().map(|event| event.name.as_str()).collect();
    names.dedup();
    names
}

/// The first number of an id.
fn at(event: &ServerEvent) -> i64 {
    event.id.split('.').next().and_then(|at| at.parse().ok()).unwrap_or_else(|| panic!("no id: {event:?}"))
}

/// A job of this many iterations.
fn counting(count: u64, delay_ms: u64) -> Value {
    json!({"agent_id": "scripted", "session_id": "s", "input": {"count": count, "delay_ms": delay_ms}})
}

/// A job that says these words, one in each iteration.
fn saying(words: &[&str], delay_ms: u64) -> Value {
    let say = |word: &&str| json!({"say": word, "delay_ms": delay_ms, "cost_usd": 0.5, "input_tokens": 7});
    let iterations: Vec<Value> = words.iter().map(say).collect();
    json!({"agent_id": "scripted", "session_id": "s", "input": {"iterations": iterations}})
}

#[tokio::test]
async fn a_followed_job_shows_its_states_its_iterations_and_its_end_in_order() {
    let fleet = Fleet::new().await;
    let door = fleet.door("door").start().await;
    let api = Api::of(&door).await;
    let job_id = api.submit(&saying(&["a", "b", "c"], 1_500)).await.is(202).text("job_id");
    let mut stream = api.events(&format!("/v1/jobs/{job_id}/events"), &[]).await;
    assert_eq!(stream.headers["content-type"], "text/event-stream");
    assert_eq!(stream.headers["x-accel-buffering"], "no");
    let first = stream.next().await.expect("its state");
    assert_eq!((first.name.as_str(), first.text("job_id")), ("state", job_id.as_str()));
    assert_eq!(door.metric("harness_followers").await, 1.0);
    let _worker = fleet.worker("worker").start().await;
    let mut events = vec![first];
    events.extend(stream.rest().await);
    // The end folds what was not read until then: on a busy machine that is a gap before it.
    let mut order = names(&events);
    order.retain(|name| *name != "gap");
    assert_eq!(order, ["state", "iteration", "end"], "{events:?}");
    let states: Vec<&str> =
        events.iter().filter(|event| event.name == "state").map(|event| event.text("state")).collect();
    assert_eq!(states.last(), Some(&"running"), "{states:?}");
    let iterations: Vec<&ServerEvent> = events.iter().filter(|event| event.name == "iteration").collect();
    let folded: u64 = events
        .iter()
        .filter_map(|event| event.data["iterations"].as_u64().filter(|_| event.name == "gap"))
        .sum();
    assert_eq!(iterations.len() as u64 + folded, 3, "{events:?}");
    for iteration in iterations {
        let data = &iteration.data;
        assert_eq!((&data["cost_usd"], &data["input_tokens"]), (&json!(0.5), &json!(7)), "{data}");
        assert!(data["progress"][&job_id]["done"].is_u64(), "{data}");
    }
    let end = events.last().expect("an end");
    assert_eq!((end.text("state"), &end.data["iterations"]), ("succeeded", &json!(3)));
    assert_eq!(end.data["output"]["iterations"], 3);
    assert!(events.iter().map(at).is_sorted_by(|one, other| one < other), "{events:?}");
    // A stream of a job that has ended begins at its beginning as well.
    let again = api.events(&format!("/v1/jobs/{job_id}/events"), &[]).await.rest().await;
    assert_eq!(again.last().map(|event| event.name.as_str()), Some("end"));
    door.counted("harness_followers", 0.0).await;
}

#[tokio::test]
async fn a_session_shows_all_its_jobs_and_goes_on() {
    let fleet = Fleet::new().await;
    let door = fleet.door("door").start().await;
    let api = Api::of(&door).await;
    let first = api.submit(&counting(3, 100)).await.is(202).text("job_id");
    let mut stream = api.events("/v1/sessions/s/events", &[]).await;
    let _worker = fleet.worker("worker").start().await;
    let ended = stream.named("end").await;
    assert_eq!(ended.text("job_id"), first);
    let second = api.submit(&counting(2, 50)).await.is(202).text("job_id");
    let mut of_second = Vec::new();
    loop {
        let event = stream.next().await.expect("the stream goes on");
        assert_eq!(event.text("job_id"), second, "{event:?}");
        of_second.push(event);
        if of_second.last().is_some_and(|event| event.name == "end") {
            break;
        }
    }
    // What ended while the client was away comes when it is back.
    drop(stream);
    let third = api.submit(&counting(1, 0)).await.is(202).text("job_id");
    api.wait(&third).await.is(200);
    let last = &of_second.last().expect("an end").id;
    let mut resumed = api.events("/v1/sessions/s/events", &[("last-event-id", last)]).await;
    loop {
        if resumed.named("end").await.text("job_id") == third {
            break;
        }
    }
}

#[tokio::test]
async fn the_end_comes_although_rabbitmq_is_stopped() {
    let (fleet, own) = (Fleet::new().await, OwnBroker::start().await);
    let door = fleet.door("door").set("AMQP_URL", &own.url).start().await;
    let worker = fleet.worker("worker").set("AMQP_URL", &own.url).start().await;
    let api = Api::of(&door).await;
    let job_id = api.submit(&counting(10_000, 100)).await.is(202).text("job_id");
    let mut stream = api.events(&format!("/v1/jobs/{job_id}/events"), &[]).await;
    stream.named("iteration").await;
    own.stop().await;
    worker.said("lost the connection to the broker").await;
    stream.named("iteration").await;
    let waiting = api.submit(&json!({"agent_id": "echo"})).await.is(202).text("job_id");
    let mut other = api.events(&format!("/v1/jobs/{waiting}/events"), &[]).await;
    other.next().await.expect("its state");
    api.post(&format!("/v1/jobs/{waiting}/cancel"), &json!(null)).await.is(200);
    assert_eq!(other.named("end").await.text("state"), "cancelled");
    api.post(&format!("/v1/jobs/{job_id}/cancel"), &json!(null)).await.is(202);
    assert_eq!(stream.named("end").await.text("state"), "cancelled");
    own.start_again().await;
}

#[tokio::test]
async fn a_stream_goes_on_behind_the_last_event_at_another_door_and_names_what_is_gone() {
    let fleet = Fleet::new().await;
    let _worker = fleet.worker("worker").start().await;
    let (first, second) = (fleet.door("first").start().await, fleet.door("second").start().await);
    let (first, second) = (Api::of(&first).await, Api::of(&second).await);
    let job_id = first.submit(&counting(8, 500)).await.is(202).text("job_id");
    let path = format!("/v1/jobs/{job_id}/events");
    let mut stream = first.events(&path, &[]).await;
    let mut last = stream.named("iteration").await;
    last = stream.named("iteration").await.max_by_id(last);
    drop(stream);
    let resumed = second.events(&path, &[("last-event-id", &last.id)]).await.rest().await;
    let shown = |events: &[ServerEvent]| {
        events
            .iter()
            .filter_map(|event| event.data["iterations"].as_i64().filter(|_| event.name != "end"))
            .sum::<i64>()
    };
    assert_eq!(shown(&resumed), 6, "{resumed:?}");
    assert!(resumed.iter().all(|event| at(event) > at(&last)), "{resumed:?}");
    assert_eq!(resumed.last().map(|event| event.text("state").to_owned()), Some("succeeded".to_owned()));
    // When the session was written whole, its checkpoints are gone.
    fleet.database.execute("DELETE FROM harness_checkpoints").await;
    let query = format!("{path}?last_event_id={}", last.id);
    let folded = second.events(&query, &[]).await.rest().await;
    assert_eq!(names(&folded), ["gap", "end"], "{folded:?}");
    assert_eq!((folded[0].data["iterations"].as_i64(), shown(&folded)), (Some(6), 6));
    second
        .try_events(&path, &[("last-event-id", "x")])
        .await
        .err()
        .expect("refused")
        .problem(422, Some("last-event-id"));
    second
        .try_events(&format!("{path}?from=1"), &[])
        .await
        .err()
        .expect("refused")
        .problem(422, Some("from"));
}

#[tokio::test]
async fn text_and_notes_come_once_to_those_who_may_see_them() {
    let fleet = Fleet::new().await;
    let program = "#!/usr/bin/env python3\nimport json, time\n\
                   for word in ['one ', 'two ', 'three']:\n    \
                   print(json.dumps({'type': 'text', 'text': word}), flush=True)\n    time.sleep(0.2)\n\
                   print(json.dumps({'type': 'event', 'name': 'tool_call', 'data': {'tool': 'grep'}}), flush=True)\n\
                   print(json.dumps({'type': 'text', 'text': '.'}), flush=True)\n\
                   print(json.dumps({'type': 'result'}), flush=True)\n";
    let agents = fleet.agents(&[("writer", &fleet.program("writer", program)), ("scripted", "")]);
    let door = fleet.door("door").start().await;
    let api = Api::of(&door).await;
    let reads = caller(&fleet, &api, "default", "read").await;
    let job_id = api.submit(&json!({"agent_id": "writer", "session_id": "w"})).await.is(202).text("job_id");
    let path = format!("/v1/jobs/{job_id}/events");
    let (mut sees, mut other) = (api.events(&path, &[]).await, reads.events(&path, &[]).await);
    let mut whole = api.events("/v1/sessions/w/events", &[]).await;
    let _worker =
        fleet.worker("worker").set("AGENTS_FILE", &agents).set("ENABLE_STREAMING", "true").start().await;
    let text = |events: &[ServerEvent]| {
        events
            .iter()
            .filter(|event| event.name == "text")
            .map(|event| event.text("text").to_owned())
            .collect::<String>()
    };
    let (seen, others) = (sees.rest().await, other.rest().await);
    assert_eq!(text(&seen), "one two three.", "{seen:?}");
    assert_eq!(names(&seen).last(), Some(&"end"));
    let said: Vec<&ServerEvent> =
        seen.iter().filter(|event| matches!(&*event.name, "text" | "note")).rev().take(2).collect();
    assert_eq!((said[0].text("text"), said[1].name.as_str()), (".", "note"), "in their order: {seen:?}");
    assert_eq!((said[1].text("name"), &said[1].data["data"]), ("tool_call", &json!({"tool": "grep"})));
    let is_said = |event: &ServerEvent| matches!(&*event.name, "text" | "note");
    assert!(!others.iter().any(is_said) && !others.is_empty(), "{others:?}");
    let mut of_session = String::new();
    while let Some(event) = whole.next().await.filter(|event| event.name != "end") {
        of_session.push_str(if event.name == "text" { event.text("text") } else { "" });
    }
    assert_eq!(of_session, "one two three.");
    // It is not repeated.
    assert_eq!(text(&api.events(&path, &[]).await.rest().await), "");
}

#[tokio::test]
async fn a_model_loop_shows_its_text_its_calls_and_what_counts_no_more_in_their_order() {
    let plays = r#"{"plays": {"looks": [
        {"thinking": "So be it.", "text": "I look.", "tools": [{"name": "look", "input": {"at": "it"}}]},
        {"text": "It is there.", "fault": {"cut_after_event": "content_block_delta"}}]}}"#;
    let provider = Provider::playing(Script::parse(plays).expect("a script")).await;
    let fleet = Fleet::new().await;
    let tool = fleet.program("look", "#!/bin/sh\ncat > /dev/null\necho seen\n");
    let agents = fleet.folder.path().join("agents.toml");
    let table = format!(
        "[agents.looker]\nharness = \"agent\"\nmodels = [\"claude-opus-5-5\"]\nsandbox = {{ level = \"off\" }}\n\
         [agents.looker.tools.look]\ncommand = [{tool:?}]\ndescription = \"Looks.\"\n\
         input_schema = {{ type = \"object\", properties = {{ at = {{ type = \"string\" }} }} }}\n"
    );
    std::fs::write(&agents, table).expect("written");
    let door = fleet.door("door").start().await;
    let api = Api::of(&door).await;
    let spec = json!({"agent_id": "looker", "session_id": "l", "input": "Look at it. play:looks"});
    let job_id = api.submit(&spec).await.is(202).text("job_id");
    let mut stream = api.events(&format!("/v1/jobs/{job_id}/events"), &[]).await;
    let worker = fleet.worker("worker").set("AGENTS_FILE", agents.display()).set("ENABLE_STREAMING", "true");
    let worker = worker.set("ANTHROPIC_API_KEY", PROVIDER_KEY).set("ANTHROPIC_BASE_URL", provider.base_url());
    let _worker = worker.start().await;
    let events = stream.rest().await;
    let mut shown: Vec<String> = Vec::new();
    for event in events.iter().filter(|event| matches!(&*event.name, "text" | "note")) {
        match (&*event.name, shown.last_mut().filter(|last| last.starts_with("text "))) {
            ("text", Some(text)) => text.push_str(event.text("text")),
            ("text", None) => shown.push(format!("text {}", event.text("text"))),
            _ => {
                let data = &event.data["data"];
                let said = ["tool", "input", "outcome", "text", "characters"].map(|field| &data[field]);
                let said = said.iter().filter(|value| !value.is_null()).map(|value| format!(" {value}"));
                shown.push(format!("{}{}", event.text("name"), said.collect::<String>()));
            }
        }
    }
    let expected = [
        "text I look.",
        r#"tool_call "look" "{\"at\": \"it\"}""#,
        r#"tool_result "look" "done" "seen\n""#,
        "text It ",
        "text_void 3",
        "text It is there.",
    ];
    assert_eq!(shown, expected, "{events:?}");
    let end = events.last().expect("an end");
    assert_eq!((end.name.as_str(), &end.data["output"]), ("end", &json!("It is there.")), "{end:?}");
}

#[tokio::test]
async fn a_client_that_does_not_read_is_cut_off_while_others_go_on() {
    let fleet = Fleet::new().await;
    let program = "#!/usr/bin/env python3\nimport json, time\n\
                   line = json.dumps({'type': 'text', 'text': 'x' * 16000})\n\
                   for _ in range(1500):\n    print(line, flush=True)\n    time.sleep(0.008)\n\
                   print(json.dumps({'type': 'result'}), flush=True)\n";
    let agents = fleet.agents(&[("writer", &fleet.program("writer", program))]);
    let door = fleet.door("door").start().await;
    let api = Api::of(&door).await;
    let job_id = api.submit(&json!({"agent_id": "writer"})).await.is(202).text("job_id");
    let mut stream = api.events(&format!("/v1/jobs/{job_id}/events"), &[]).await;
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(4_096).expect("a small buffer");
    let address = api.base().strip_prefix("http://").expect("an address").parse().expect("an address");
    let mut slow = socket.connect(address).await.expect("connected");
    let request = format!("GET /v1/jobs/{job_id}/events HTTP/1.1\r\nhost: localhost\r\n\r\n");
    slow.write_all(request.as_bytes()).await.expect("sent");
    let both = async || (door.metric("harness_followers").await == 2.0).then_some(());
    until("both follow", both).await;
    let _worker =
        fleet.worker("worker").set("AGENTS_FILE", &agents).set("ENABLE_STREAMING", "true").start().await;
    let reading = tokio::spawn(async move { stream.rest().await });
    until("the slow one is cut off", async || (door.metric("harness_followers").await < 2.0).then_some(()))
        .await;
    api.post(&format!("/v1/jobs/{job_id}/cancel"), &json!(null)).await;
    let events = reading.await.expect("the other stream");
    assert_eq!(names(&events).last(), Some(&"end"), "{}", events.len());
}

#[tokio::test]
async fn a_door_that_is_asked_to_stop_ends_its_streams_at_once_and_says_when_to_come_back() {
    let fleet = Fleet::new().await;
    let mut door = fleet.door("door").start().await;
    let api = Api::of(&door).await;
    let job_id = api.submit(&json!({"agent_id": "echo"})).await.is(202).text("job_id");
    let mut stream = api.events(&format!("/v1/jobs/{job_id}/events"), &[]).await;
    let state = stream.next().await.expect("its state");
    door.terminate();
    let last = stream.rest().await.pop().expect("a last event");
    assert!(last.retry.is_some_and(|retry| (1_000..2_000).contains(&retry)), "{last:?}");
    assert_eq!(door.exit_within(std::time::Duration::from_secs(9)).await, 0);
    // The end of a stream changes nothing, and the next door goes on.
    let next = fleet.door("next").start().await;
    let api = Api::of(&next).await;
    let path = format!("/v1/jobs/{job_id}/events");
    let mut resumed = api.events(&path, &[("last-event-id", &state.id)]).await;
    assert_eq!(resumed.next().await.expect("its state").name, "state");
    api.send(Method::POST, &format!("/v1/jobs/{job_id}/cancel"), &[], Vec::new()).await.is(200);
    assert_eq!(resumed.named("end").await.text("job_id"), job_id);
}

#[tokio::test]
async fn what_is_not_there_is_answered_so() {
    let fleet = Fleet::new().await;
    let door = fleet.door("door").start().await;
    let api = Api::of(&door).await;
    for path in [
        format!("/v1/jobs/{}/events", JobId::now()),
        "/v1/jobs/x/events".to_owned(),
        "/v1/sessions/none/events".to_owned(),
    ] {
        api.try_events(&path, &[]).await.err().expect("refused").problem(404, None);
    }
}

/// The later one of two events.
trait Later {
    fn max_by_id(self, other: ServerEvent) -> ServerEvent;
}

impl Later for ServerEvent {
    fn max_by_id(self, other: ServerEvent) -> ServerEvent {
        if at(&self) > at(&other) { self } else { other }
    }
}
