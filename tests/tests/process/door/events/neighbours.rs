//! What one follower asks for holds up no other one, and takes bounded memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use job::JobId;
use serde_json::json;
use tests::{Api, Fleet, until};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::door::outages::in_time;

/// A session of the ledger, with its row.
async fn session(fleet: &Fleet, name: &str) {
    let sql = format!("INSERT INTO harness_sessions (session_id, agent_id) VALUES ('{name}', 'echo')");
    fleet.database.execute(&sql).await;
}

/// Results of a session whose outputs are so large, and cannot be compressed much. Returns their ids.
async fn results(fleet: &Fleet, session: &str, count: usize, kib: usize) -> Vec<String> {
    let ids: Vec<String> = (0..count).map(|_| JobId::now().to_string()).collect();
    let rows = format!(
        "INSERT INTO harness_results (job_id, session_id, agent_id, pool, state, attempts, output, iterations,
                                      cost_microusd, input_tokens, output_tokens, epoch, accepted_at)
         SELECT id, '{session}', 'echo', 'default', 'succeeded', 1,
                to_json((SELECT string_agg(md5(random()::text || n || id), '') FROM generate_series(1, {kib} * 32) n)),
                0, 0, 0, 0, 1, now()
           FROM unnest(ARRAY['{}']::uuid[]) id",
        ids.join("','")
    );
    fleet.database.execute(&rows).await;
    ids
}

#[tokio::test]
async fn a_topic_that_cannot_be_read_holds_up_no_other_one_and_its_followers_are_ended() {
    let fleet = Fleet::new().await;
    // The question about checkpoints waits where it comes to this session.
    for sql in [
        "ALTER TABLE harness_checkpoints RENAME TO checkpoints",
        "CREATE FUNCTION waits(session text) RETURNS boolean LANGUAGE plpgsql AS $$
         BEGIN
             IF session = 'bad' AND current_query() LIKE '%WITH ORDINALITY%' THEN PERFORM pg_sleep(30); END IF;
             RETURN true;
         END $$",
        "CREATE VIEW harness_checkpoints AS SELECT * FROM checkpoints WHERE waits(session_id)",
        "INSERT INTO harness_sessions (session_id, agent_id) VALUES ('bad', 'echo')",
        "INSERT INTO checkpoints (session_id, epoch, ordinal, job_id, delta, iterations, cost_microusd, input_tokens,
                                  output_tokens)
         VALUES ('bad', 1, 0, '0198c0de-7a00-7000-8000-000000000001', '{}', 1, 0, 0, 0)",
    ] {
        fleet.database.execute(sql).await;
    }
    let door = fleet.door("door").start().await;
    let api = Api::of(&door).await;
    let path = "/v1/sessions/bad/events";
    let mut bad = api.events(path, &[("last-event-id", "1.0.-1.0")]).await;
    let begun = Instant::now();
    for n in 0..8 {
        let job_id = api
            .submit(&json!({"agent_id": "echo", "session_id": format!("s-{n}")}))
            .await
            .is(202)
            .text("job_id");
        let mut stream = api.events(&format!("/v1/jobs/{job_id}/events"), &[]).await;
        assert_eq!(stream.next().await.expect("its state").name, "state");
        api.post(&format!("/v1/jobs/{job_id}/cancel"), &json!(null)).await.is(200);
        assert_eq!(stream.named("end").await.text("state"), "cancelled");
    }
    println!("8 jobs were followed to their ends in {:?}", begun.elapsed());
    let last = bad.rest().await.pop().expect("a last event");
    assert_eq!(last.retry, Some(30_000), "{last:?}");
    // Who comes again holds up none of the others either.
    in_time(Duration::from_secs(2), async || {
        bad.rest().await;
        bad = api.events(path, &[("last-event-id", "1.0.-1.0")]).await;
        let job_id = api.submit(&json!({"agent_id": "echo"})).await.is(202).text("job_id");
        let mut stream = api.events(&format!("/v1/jobs/{job_id}/events"), &[]).await;
        let begun = Instant::now();
        assert_eq!(stream.next().await.expect("its state").name, "state");
        begun.elapsed()
    })
    .await;
}

#[tokio::test]
async fn large_ends_are_read_in_parts_and_all_of_them_come() {
    let fleet = Fleet::new().await;
    session(&fleet, "large").await;
    let ended = results(&fleet, "large", 60, 1_024).await;
    let door = fleet.door("door").start().await;
    let api = Api::of(&door).await;
    let mut stream = api.events("/v1/sessions/large/events", &[("last-event-id", "1.0.-1.0")]).await;
    let mut shown = Vec::new();
    while shown.len() < ended.len() {
        shown.push(stream.named("end").await.text("job_id").to_owned());
        // Each once, in their order.
        assert_eq!(shown, ended[..shown.len()]);
    }
    let peak = door.peak_mb();
    println!("{peak} MB at most for 60 MB of results");
    assert!(peak < 100.0, "{peak} MB");
    until("nothing waits", async || (door.metric("harness_followers").await == 1.0).then_some(())).await;
}

#[tokio::test]
async fn streams_that_catch_up_hold_up_neither_announced_changes_nor_those_of_which_nothing_is_announced() {
    const SESSIONS: usize = 24;
    const ENDED: usize = 6_000;
    let fleet = Fleet::new().await;
    for number in 0..SESSIONS {
        session(&fleet, &format!("away-{number}")).await;
    }
    // Ids of the last minute, which ended while the clients were away.
    let rows = format!(
        "INSERT INTO harness_results (job_id, session_id, agent_id, pool, state, attempts, iterations, cost_microusd,
                                      input_tokens, output_tokens, epoch, accepted_at, finished_at)
         SELECT (lpad(to_hex((extract(epoch FROM now()) * 1000)::bigint - 60000 + n), 12, '0')
                 || '70008' || lpad(to_hex(session), 3, '0') || lpad(to_hex(n), 12, '0'))::uuid,
                'away-' || session, 'echo', 'default', 'succeeded', 1, 0, 0, 0, 0, 0, now(), now() - interval '20 s'
           FROM generate_series(0, {SESSIONS} - 1) session, generate_series(1, {ENDED}) n"
    );
    fleet.database.execute(&rows).await;
    let door = fleet.door("door").start().await;
    let api = Api::of(&door).await;
    let mut quiet = Vec::new();
    for _ in 0..3 {
        let job_id = api.submit(&json!({"agent_id": "echo"})).await.is(202).text("job_id");
        let mut stream = api.events(&format!("/v1/jobs/{job_id}/events"), &[]).await;
        stream.next().await.expect("its state");
        quiet.push((job_id, stream));
    }

    let ends = Arc::new(AtomicUsize::new(0));
    let begins = format!("{}.0.-1.0", UNIX_EPOCH.elapsed().expect("a time").as_millis() - 120_000);
    let mut streams = JoinSet::new();
    for number in 0..SESSIONS {
        let path = format!("/v1/sessions/away-{number}/events");
        let mut stream = api.events(&path, &[("last-event-id", &begins)]).await;
        let ends = ends.clone();
        streams.spawn(async move {
            loop {
                stream.named("end").await;
                ends.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    until("they catch up", async || (ends.load(Ordering::Relaxed) > 1_000).then_some(())).await;

    // It is read every 2 s.
    in_time(Duration::from_secs(4), async || {
        let (job_id, mut stream) = quiet.pop().expect("one of three");
        let unannounced = format!(
            "WITH gone AS (DELETE FROM harness_jobs WHERE job_id = '{job_id}' RETURNING *)
             INSERT INTO harness_results (job_id, session_id, agent_id, pool, state, attempts, iterations, cost_microusd,
                                          input_tokens, output_tokens, epoch, accepted_at)
             SELECT job_id, session_id, agent_id, pool, 'cancelled', 0, 0, 0, 0, 0, 0, accepted_at FROM gone"
        );
        fleet.database.execute(&unannounced).await;
        let begun = Instant::now();
        assert_eq!(stream.named("end").await.text("job_id"), job_id);
        println!("an end that was not announced came after {:?}", begun.elapsed());
        begun.elapsed()
    })
    .await;
    let mut took = Vec::new();
    for _ in 0..10 {
        let job_id = api.submit(&json!({"agent_id": "echo"})).await.is(202).text("job_id");
        let mut stream = api.events(&format!("/v1/jobs/{job_id}/events"), &[]).await;
        stream.next().await.expect("its state");
        api.post(&format!("/v1/jobs/{job_id}/cancel"), &json!(null)).await.is(200);
        let begun = Instant::now();
        assert_eq!(stream.named("end").await.text("job_id"), job_id);
        took.push(begun.elapsed());
    }
    println!("announced ends came after {took:?}");
    // Without an announcement every other one would be late. A busy machine may stand still for seconds.
    assert!(took.iter().filter(|took| **took > Duration::from_secs(1)).count() <= 2, "{took:?}");
    let came = ends.load(Ordering::Relaxed);
    println!("{came} of {} ends had come", SESSIONS * ENDED);
    assert!(came < SESSIONS * ENDED, "they had caught up before");
}
