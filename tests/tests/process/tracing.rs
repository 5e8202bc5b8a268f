//! A job shows as one trace: from its sender, through every attempt on any worker, into its program.

use std::time::Duration;

use job::{JobId, JobSpec, JobState};
use lapin::BasicProperties;
use lapin::options::BasicGetOptions;
use lapin::types::{AMQPValue, FieldTable};
use serde_json::{Value, json};
use tests::{Collector, Fleet, Ran, job};

const CALLER: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const CALLERS_TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLERS_SPAN: &str = "b7ad6b7169203331";

/// A program that works in two steps and returns the trace context that it was given.
const TRACED: &str = r#"#!/bin/sh
echo '{"type":"checkpoint","memory":{"step":1},"input_tokens":10,"output_tokens":2,"cost_usd":0.5}'
echo '{"type":"checkpoint","memory":{"step":2},"input_tokens":20,"output_tokens":4}'
echo "{\"type\":\"result\",\"output\":\"$TRACEPARENT\"}"
"#;

/// Writes an `agents.toml` with `traced`, `scripted` and `echo`.
fn agents(fleet: &Fleet) -> String {
    let program = fleet.program("traced", TRACED);
    fleet.agents(&[("traced", &program), ("scripted", ""), ("echo", "")])
}

/// Publishes a job as a foreign client would, with this header.
async fn publish(fleet: &Fleet, spec: &JobSpec, traceparent: &str) {
    let mut headers = FieldTable::default();
    headers.insert("traceparent".into(), AMQPValue::LongString(traceparent.into()));
    let properties = BasicProperties::default().with_headers(headers).with_delivery_mode(2);
    fleet.vhost.publish(vec![(job::encode(spec).into_bytes(), properties)]).await;
}

/// The trace context that the program returned.
async fn handed_on(fleet: &Fleet, job_id: JobId) -> String {
    let view = fleet.ended(job_id).await;
    assert_eq!(view.state, JobState::Succeeded, "{view:?}");
    serde_json::from_str(view.output.expect("an output").as_str()).expect("a string")
}

/// A job's id as a trace id.
fn own_trace(job_id: JobId) -> String {
    job_id.to_string().replace('-', "")
}

#[tokio::test]
async fn an_attempt_is_below_its_callers_span_and_its_parts_are_below_it() {
    let (fleet, collector) = (Fleet::new().await, Collector::start().await);
    let worker = fleet
        .worker("worker")
        .set("AGENTS_FILE", agents(&fleet))
        .set("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20s3cret")
        .set("OTEL_RESOURCE_ATTRIBUTES", "team=fleet,harness.pool=renamed")
        .set("ENVIRONMENT", "staging")
        .set("POD_NAME", "worker-0")
        .traced(&collector.url)
        .start()
        .await;
    let connection = fleet.vhost.lapin().await;
    let channel = connection.create_channel().await.expect("a channel");
    channel.queue_declare("replies".into(), Default::default(), Default::default()).await.expect("a queue");
    let mut spec = job("s", "traced", Value::Null);
    spec.reply_to = Some("replies".to_owned());
    publish(&fleet, &spec, CALLER).await;
    let given = handed_on(&fleet, spec.job_id).await;

    let attempt = collector.span("process harness.jobs.default", |_| true).await;
    assert_eq!((attempt.trace_id.as_str(), attempt.parent.as_str()), (CALLERS_TRACE, CALLERS_SPAN));
    assert_eq!((attempt.kind.as_str(), &attempt.error), ("CONSUMER", &None));
    let said = |name: &str| attempt.attributes[name].clone();
    for (name, wanted) in [
        ("messaging.system", json!("rabbitmq")),
        ("messaging.operation.type", json!("process")),
        ("messaging.destination.name", json!("harness.jobs.default")),
        ("messaging.message.id", json!(spec.job_id)),
        ("harness.job.id", json!(spec.job_id)),
        ("harness.session.id", json!("s")),
        ("harness.agent.id", json!("traced")),
        ("harness.attempt", json!(1)),
        ("harness.worker.id", json!(worker.id().await)),
        ("harness.outcome", json!("succeeded")),
    ] {
        assert_eq!(said(name), wanted, "{name}");
    }
    for (name, wanted) in [
        ("service.name", "harness-worker"),
        ("service.namespace", "harness-fleet"),
        ("service.instance.id", "worker-0"),
        ("deployment.environment.name", "staging"),
        ("team", "fleet"),
        ("harness.pool", "renamed"),
    ] {
        assert_eq!(attempt.resource[name], json!(wanted), "{name}");
    }

    let below = |parent: &str| {
        let parent = parent.to_owned();
        move |span: &tests::SeenSpan| span.parent == parent && span.trace_id == CALLERS_TRACE
    };
    let claim = collector.span("claim", below(&attempt.span_id)).await;
    let run = collector.span("invoke_agent traced", below(&attempt.span_id)).await;
    let conclude = collector.span("conclude", below(&attempt.span_id)).await;
    for part in [&claim, &run, &conclude] {
        assert_eq!(part.kind, "INTERNAL");
        assert!(part.is_within(&attempt), "{part:#?} in {attempt:#?}");
    }
    assert!(claim.end <= run.start && run.end <= conclude.start);
    assert_eq!(run.attributes["gen_ai.conversation.id"], json!("s"));
    let iterations = collector.spans(2, "iteration", below(&run.span_id)).await;
    let used: Vec<_> = iterations
        .iter()
        .map(|span| {
            assert!(span.is_within(&run), "{span:#?} in {run:#?}");
            let said = |name: &str| span.attributes[name].clone();
            (said("gen_ai.usage.input_tokens"), said("gen_ai.usage.output_tokens"), said("harness.cost_usd"))
        })
        .collect();
    assert_eq!(used, [(json!(10), json!(2), json!(0.5)), (json!(20), json!(4), json!(0.0))]);
    assert!(iterations[0].end <= iterations[1].start);

    let get = BasicGetOptions { no_ack: true };
    let reply = async || channel.basic_get("replies".into(), get).await.expect("a queue");
    let reply = tests::until("the reply comes", reply).await;
    let headers = reply.properties.headers().clone().unwrap_or_default();
    let wanted = AMQPValue::LongString(attempt.traceparent().into());
    assert_eq!(headers.inner().get("traceparent"), Some(&wanted));
    assert_eq!(given, run.traceparent(), "the program's own spans go below its run");
    let headers = collector.headers();
    assert!(headers.iter().all(|headers| headers["authorization"] == "Bearer s3cret"), "{headers:?}");
    assert!(!worker.log().contains("s3cret"));
    // A batch is counted when the receiver has answered, which is after it has the spans.
    let exported =
        async || (worker.metric("harness_spans_total{outcome=\"exported\"}").await >= 6.0).then_some(());
    tests::until("six spans are counted as exported", exported).await;
    assert_eq!(worker.metric("harness_spans_total{outcome=\"failed\"}").await, 0.0);
}

#[tokio::test]
async fn a_job_that_goes_on_elsewhere_stays_in_its_trace() {
    let (fleet, collector) = (Fleet::new().await, Collector::start().await);
    let traced = |name: &str| fleet.worker(name).set("POD_NAME", name).traced(&collector.url);
    let mut first = traced("first").short_lease().start().await;
    let spec = job("s", "scripted", json!({"count": 60, "delay_ms": 150}));
    publish(&fleet, &spec, "00-no-traceparent-00").await;
    let own = own_trace(spec.job_id);
    let by_first = |span: &tests::SeenSpan| span.resource["service.instance.id"] == json!("first");
    let before = collector.span("iteration", by_first).await;
    first.kill();
    let second = traced("second").start().await;
    let view = fleet.ended(spec.job_id).await;
    assert_eq!((view.state, view.attempts), (JobState::Succeeded, 2));
    assert_eq!(view.trace_id.to_string(), own);

    let attempt = collector.span("process harness.jobs.default", |_| true).await;
    assert_eq!(attempt.resource["service.instance.id"], json!("second"));
    assert_eq!(attempt.attributes["harness.attempt"], json!(2));
    assert_eq!(attempt.attributes["harness.worker.id"], json!(second.id().await));
    assert_eq!((&before.trace_id, &attempt.trace_id), (&own, &own));
    assert_eq!(attempt.parent, "", "the job itself began this trace");
    let after = collector.spans(2, "iteration", |span| !by_first(span)).await;
    assert!(after.iter().all(|span| span.trace_id == own && span.start > before.end));
}

#[tokio::test]
async fn what_the_producer_sends_is_above_what_the_worker_does() {
    let (fleet, collector) = (Fleet::new().await, Collector::start().await);
    let _worker =
        fleet.worker("worker").set("AGENTS_FILE", agents(&fleet)).traced(&collector.url).start().await;
    let enqueue = async |arguments: &[&str], input: &str| {
        let mut command = fleet.producer_command(arguments);
        command.env("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.url);
        let ran = Ran::of(command, input).await;
        assert_eq!(ran.code, 0, "{ran:?}");
        ran
    };
    let (mut traced, plain) = (job("s-1", "traced", Value::Null), job("s-2", "traced", Value::Null));
    traced.traceparent = CALLER.parse().ok();
    let lines = format!("{}\n{}\n", job::encode(&traced), job::encode(&plain));
    enqueue(&["enqueue", "--file", "-"], &lines).await;

    for (spec, trace, parent) in
        [(&traced, CALLERS_TRACE.to_owned(), CALLERS_SPAN), (&plain, own_trace(plain.job_id), "")]
    {
        let of_job = |span: &tests::SeenSpan| span.attributes["harness.job.id"] == json!(spec.job_id);
        let send = collector.span("send harness.jobs.default", of_job).await;
        assert_eq!((send.kind.as_str(), send.parent.as_str()), ("PRODUCER", parent));
        assert_eq!(send.resource["service.name"], json!("harness-producer"));
        let attempt = collector.span("process harness.jobs.default", of_job).await;
        assert_eq!((&attempt.trace_id, &attempt.parent), (&trace, &send.span_id));
        assert_eq!(send.trace_id, trace);
        let view = fleet.ended(spec.job_id).await;
        assert_eq!(view.trace_id.to_string(), trace);
        let shown = fleet.producer(&["status", "--json", &spec.job_id.to_string()]).await;
        assert_eq!(shown.json()[0]["trace_id"], json!(trace));
    }

    // The same job again: it was accepted before, so no new attempt follows.
    enqueue(&["enqueue", "--file", "-"], &job::encode(&plain)).await;
    let again = collector.span("send harness.jobs.default", |span| {
        span.attributes.get("harness.outcome") == Some(&json!("accepted_before"))
    });
    assert_eq!(again.await.attributes["harness.job.id"], json!(plain.job_id));
}

#[tokio::test]
async fn a_failed_attempt_is_named_by_its_code_and_the_next_one_is_beside_it() {
    let (fleet, collector) = (Fleet::new().await, Collector::start().await);
    let _worker = fleet.worker("worker").traced(&collector.url).start().await;
    let failing =
        json!({"iterations": [{"fail": {"message": "s3cret words", "retryable": true, "attempts": 1}}, {}]});
    let spec = job("s", "scripted", failing);
    fleet.enqueue(std::slice::from_ref(&spec)).await;
    assert_eq!(fleet.ended(spec.job_id).await.attempts, 2);
    let mut attempts = collector.spans(2, "process harness.jobs.default", |_| true).await;
    attempts.sort_by_key(|span| span.start);
    let report: Vec<_> = attempts
        .iter()
        .map(|span| {
            let said = |name: &str| span.attributes.get(name).cloned();
            (said("harness.attempt"), said("harness.outcome"), said("error.type"), span.error.clone())
        })
        .collect();
    let code = "harness_error";
    assert_eq!(
        report,
        [
            (Some(json!(1)), Some(json!("retried")), Some(json!(code)), Some(code.to_owned())),
            (Some(json!(2)), Some(json!("succeeded")), None, None),
        ]
    );
    assert!(attempts.iter().all(|span| span.trace_id == own_trace(spec.job_id)));
    assert!(!format!("{:?}", collector.all()).contains("s3cret"));
}

#[tokio::test]
async fn a_job_that_follows_in_the_same_slot_has_its_own_trace() {
    let (fleet, collector) = (Fleet::new().await, Collector::start().await);
    let jobs: Vec<JobSpec> = (0..3).map(|n| job("s", "echo", json!(n))).collect();
    fleet.enqueue(&jobs).await;
    let _worker = fleet.worker("worker").traced(&collector.url).start().await;
    for spec in &jobs {
        fleet.ended(spec.job_id).await;
        let own = own_trace(spec.job_id);
        let attempt = collector.span("process harness.jobs.default", |span| span.trace_id == own).await;
        assert_eq!(attempt.attributes["harness.job.id"], json!(spec.job_id));
        collector.span("conclude", |span| span.parent == attempt.span_id && span.trace_id == own).await;
    }
}

#[tokio::test]
async fn what_a_caller_does_not_record_is_not_recorded_and_stays_in_its_trace() {
    let (fleet, collector) = (Fleet::new().await, Collector::start().await);
    let worker =
        fleet.worker("worker").set("AGENTS_FILE", agents(&fleet)).traced(&collector.url).start().await;
    let spec = job("s", "traced", Value::Null);
    publish(&fleet, &spec, &CALLER.replace("-01", "-00")).await;
    let given = handed_on(&fleet, spec.job_id).await;
    assert!(given.starts_with(&format!("00-{CALLERS_TRACE}-")) && given.ends_with("-00"), "{given}");
    // This one is recorded, so earlier spans would have arrived by then.
    let recorded = job("s", "traced", Value::Null);
    publish(&fleet, &recorded, CALLER).await;
    fleet.ended(recorded.job_id).await;
    collector.span("process harness.jobs.default", |_| true).await;
    let ids: Vec<_> =
        collector.all().iter().filter_map(|span| span.attributes.get("harness.job.id").cloned()).collect();
    assert_eq!(ids, [json!(recorded.job_id)], "{}", worker.log());
}

#[tokio::test]
async fn without_a_receiver_a_program_still_learns_its_trace() {
    let fleet = Fleet::new().await;
    let _worker = fleet.worker("worker").set("AGENTS_FILE", agents(&fleet)).start().await;
    let (called, wrong) = (job("s-1", "traced", Value::Null), job("s-2", "traced", Value::Null));
    publish(&fleet, &called, CALLER).await;
    assert_eq!(handed_on(&fleet, called.job_id).await, CALLER);
    // A header that is not a valid trace context is ignored, as Trace Context demands.
    publish(&fleet, &wrong, "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01").await;
    let given = handed_on(&fleet, wrong.job_id).await;
    assert!(given.starts_with(&format!("00-{}-", own_trace(wrong.job_id))), "{given}");
    let view = fleet.view(called.job_id).await.expect("a job");
    assert_eq!(view.trace_id.to_string(), CALLERS_TRACE);
}

#[tokio::test]
async fn a_trace_id_stays_with_a_job_that_ends_without_a_worker_or_is_run_again() {
    let fleet = Fleet::new().await;
    let mut specs = [job("s-1", "echo", json!(1)), job("s-2", "nobody", json!(2))];
    for spec in &mut specs {
        spec.traceparent = CALLER.parse().ok();
    }
    fleet.enqueue(&specs).await;
    let [cancelled, failed] = specs.map(|spec| spec.job_id);
    let live = fleet.view(cancelled).await.expect("a job");
    assert_eq!(live.trace_id.to_string(), CALLERS_TRACE);
    let ran = fleet.producer(&["cancel", &cancelled.to_string()]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(fleet.ended(cancelled).await.trace_id.to_string(), CALLERS_TRACE);
    let _worker = fleet.worker("worker").start().await;
    assert_eq!(fleet.ended(failed).await.trace_id.to_string(), CALLERS_TRACE);
    let shown = fleet.producer(&["dead", "show", "--json", &failed.to_string()]).await;
    assert_eq!(shown.json()[0]["result"]["trace_id"], json!(CALLERS_TRACE), "{shown:?}");
    let ran = fleet.producer(&["dead", "redrive", &failed.to_string()]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    let all = "SELECT trace_id::text FROM harness_jobs UNION ALL SELECT trace_id::text FROM harness_results";
    let all = fleet.database.texts(all).await;
    assert!(all.len() == 3 && all.iter().all(|id| id.replace('-', "") == CALLERS_TRACE), "{all:?}");
}

#[tokio::test]
async fn a_receiver_that_never_answers_holds_up_neither_job_nor_drain() {
    let fleet = Fleet::new().await;
    let (url, _holding) = Collector::dead().await;
    // Longer than any test, so that only the drain's own bound ends the wait.
    let patient = ("OTEL_EXPORTER_OTLP_TIMEOUT", 3_600_000);
    let worker =
        fleet.worker("worker").traced(&url).set(patient.0, patient.1).set("OTEL_BSP_MAX_QUEUE_SIZE", 8);
    let mut worker = worker.start().await;
    let jobs: Vec<JobSpec> = (0..40).map(|n| job(&format!("s-{n}"), "echo", json!(n))).collect();
    fleet.enqueue(&jobs).await;
    fleet.undisturbed(&jobs).await;
    worker.said("spans are dropped").await;
    let dropped = worker.metric("harness_spans_total{outcome=\"dropped\"}").await;
    assert!(dropped > 0.0, "{dropped}");
    worker.terminate();
    assert_eq!(worker.exit_within(Duration::from_secs(25)).await, 0);
    assert_eq!(worker.log().matches("spans are dropped").count(), 1, "{}", worker.log());
    worker.said("spans were lost since the start").await;
}

#[tokio::test]
async fn a_receiver_that_is_away_is_reported_once_and_its_return_as_well() {
    let fleet = Fleet::new().await;
    // A port that is free for now.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    drop(listener);
    let worker = fleet.worker("worker").traced(&format!("http://{address}")).start().await;
    let mut ended = 0;
    let mut run = async |worker: &tests::Worker, outcome: &str| {
        let metric = format!("harness_spans_total{{outcome=\"{outcome}\"}}");
        let before = worker.metric(&metric).await;
        let spec = job(&format!("s-{ended}"), "echo", json!(ended));
        ended += 1;
        fleet.enqueue(std::slice::from_ref(&spec)).await;
        fleet.ended(spec.job_id).await;
        let look = async || (worker.metric(&metric).await > before).then_some(());
        tests::until(&format!("more spans are {outcome}"), look).await;
    };
    run(&worker, "failed").await;
    run(&worker, "failed").await;
    worker.said("spans cannot be exported").await;
    assert_eq!(worker.log().matches("spans cannot be exported").count(), 1, "{}", worker.log());
    let collector = Collector::start_at(address).await;
    run(&worker, "exported").await;
    worker.said("spans are exported again").await;
    assert!(!collector.all().is_empty());
}
