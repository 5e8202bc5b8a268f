//! Faults of everything while programs call a model: workers, services, and the provider itself.
//!
//! Half of the callers are programs (`asker`), the others are agents with a tool (`harness = "agent"`), on each wire, which
//! notes the key of each call outside of the ledger. Some of them ask persons, who answer all the while.
//!
//! The provider is the double, whose bill is its own. At every look: its bill ≤ what the ledger counts as spent and held ≤
//! the limit. At the end nothing is held, no call of a tool ran twice, and no request broke a rule of the provider or the
//! letters of a conversation.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context;
use job::{Input, InputKind, JobId, JobSpec, JobState, Json};
use sqlx::{Connection, PgConnection, Row};
use tests::Fleet;
use tests::provider::{PROVIDER_KEY, Provider, Script};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::task::AbortOnDropHandle;

use crate::arena::Arena;
use crate::asker::{MODEL, SCRIPT};
use crate::broker::BACK;
use crate::publish;
use crate::workers::AGAIN;
use crate::workload::{asking, noting};

/// The limit of the fleet's day, in micro-dollars: far above what is needed, below what would be spent without an end.
const LIMIT: i64 = 20_000_000;
const LOOK: Duration = Duration::from_millis(50);
const BOUND: Duration = Duration::from_secs(5);

const COUNTED: &str = "
    SELECT coalesce(sum(cost_microusd + CASE state WHEN 'held' THEN reserved_microusd ELSE 0 END), 0)::bigint,
           count(*) FILTER (WHERE state = 'held'), count(*) FILTER (WHERE state = 'settled')
      FROM harness_calls";

/// An agent for each wire, with its play. Their tools are not declared safe to repeat. Each call of `sign` needs an approval.
const CLERKS: [(&str, &str, &str); 4] = [
    ("clerk-messages", "models = [\"claude-haiku-4-5\"]", "notes"),
    ("clerk-chat", "models = [\"gpt-6-luna\"]", "notes"),
    ("clerk-responses", "models = [\"gpt-6-luna\"]\nopenai_api = \"responses\"", "notes"),
    ("clerk-asks", "models = [\"claude-haiku-4-5\"]\nask_human = true", "signs"),
];

fn clerk((name, speaks, _): (&str, &str, &str)) -> String {
    format!(
        r#"
[agents.{name}]
harness = "agent"
{speaks}
system = "Note each step."
max_output_tokens = 500

[agents.{name}.tools.note]
command = {NOTE}
description = "Notes a step."
input_schema = {{ type = "object", properties = {{ text = {{ type = "string" }} }}, required = ["text"] }}

[agents.{name}.tools.sign]
command = {NOTE}
description = "Signs a step."
input_schema = {{ type = "object", properties = {{ step = {{ type = "string" }} }}, required = ["step"] }}
approve = true
"#
    )
}

/// Writes the key of its call into the session's folder.
const NOTE: &str = r#"["/bin/sh", "-c", "cat > /dev/null; echo \"$HARNESS_CALL_KEY\" >> notes; echo noted"]"#;
/// The answer with which an agent ends.
const ENDS: &str = "Noted.";
/// Calls of the tool in each job of an agent.
const NOTES: usize = 6;

/// A provider, and who compares its bill with the ledger.
pub struct Models {
    provider: Arc<Provider>,
    /// The jobs of agents.
    pub clerks: Vec<JobSpec>,
    problems: Arc<Mutex<Vec<String>>>,
    looks: Arc<Mutex<u64>>,
    answered: Arc<Mutex<u64>>,
    _watching: [AbortOnDropHandle<()>; 2],
}

impl Models {
    /// Starts a provider, and begins to watch its bill and to answer what agents ask.
    async fn start(fleet: &Arc<Fleet>, clerks: Vec<JobSpec>) -> anyhow::Result<Models> {
        let script = Script::parse(SCRIPT).context("the provider's script")?;
        let provider = Arc::new(Provider::playing(script).await);
        let (problems, looks, answered) = (Arc::default(), Arc::default(), Arc::default());
        let database = fleet.database.url.clone();
        let watching =
            tokio::spawn(watch(database, provider.clone(), Arc::clone(&problems), Arc::clone(&looks)));
        let asking = clerks.iter().map(|spec| spec.job_id).collect();
        let answering = tokio::spawn(answer(fleet.clone(), asking, Arc::clone(&answered)));
        let _watching = [watching, answering].map(AbortOnDropHandle::new);
        Ok(Models { provider, clerks, problems, looks, answered, _watching })
    }

    /// Returns what was wrong, once all workers have ended.
    pub async fn judge(&self, fleet: &Fleet) -> anyhow::Result<Vec<String>> {
        let mut problems = self.problems.lock().expect("not poisoned").clone();
        problems.extend(self.judge_clerks(fleet).await?);
        let connecting = PgConnection::connect(&fleet.database.url).await;
        let mut connection = connecting.context("connecting to the ledger")?;
        let (counted, held, settled) = counted(&mut connection).await?;
        let bill = self.provider.bill_micros() as i64;
        if held > 0 {
            problems.push(format!("{held} calls are held although no job runs"));
        }
        if bill > counted {
            problems.push(format!(
                "at the end the provider bills {bill} micro-dollars, the ledger counts {counted}"
            ));
        }
        let found = self.provider.findings();
        problems.extend(found.iter().map(|finding| format!("the provider found: {finding:?}")));
        let charged = self.provider.charged();
        let again = charged.iter().filter(|call| call.again).count();
        let looks = *self.looks.lock().expect("not poisoned");
        if charged.is_empty() || settled == 0 || looks == 0 {
            problems.push(format!("{} calls were made, {settled} settled, in {looks} looks", charged.len()));
        }
        eprintln!(
            "    the provider billed ${:.6} for {} calls, {again} of them again; the ledger counts ${:.6}; {looks} looks",
            bill as f64 / 1e6,
            charged.len(),
            counted as f64 / 1e6,
        );
        Ok(problems)
    }
}

impl Models {
    /// Checks that each agent's job has its end, and that no call of its tool ran twice.
    async fn judge_clerks(&self, fleet: &Fleet) -> anyhow::Result<Vec<String>> {
        let ids: Vec<_> = self.clerks.iter().map(|spec| spec.job_id).collect();
        let views = fleet.store.jobs(&ids).await.context("reading the agents' jobs")?;
        let ended = |view: &&store::JobView| {
            view.state == JobState::Succeeded
                && view.output.as_ref().is_some_and(|output| output.as_str() == format!("{ENDS:?}"))
        };
        let mut problems: Vec<String> = Vec::new();
        let others = views.iter().filter(|view| !ended(view));
        problems
            .extend(others.map(|view| format!("an agent's job {} is {}: {view:?}", view.job_id, view.state)));
        if views.len() != ids.len() {
            problems.push(format!("{} of {} jobs of agents are in the ledger", views.len(), ids.len()));
        }
        let mut ran = 0;
        for spec in &self.clerks {
            let notes = fleet.folder.path().join("workspaces").join(spec.session_id.as_str()).join("notes");
            let text = std::fs::read_to_string(&notes).unwrap_or_default();
            let keys: Vec<&str> = text.lines().collect();
            let once = keys.iter().collect::<HashSet<_>>().len();
            if once != keys.len() || once > NOTES {
                problems.push(format!(
                    "the tool of {} ran {} times for {once} calls",
                    spec.session_id,
                    keys.len()
                ));
            }
            ran += once;
        }
        eprintln!(
            "    {ran} calls of a tool ran in {} jobs of agents, none twice if nothing is said",
            ids.len()
        );
        let answered = *self.answered.lock().expect("not poisoned");
        eprintln!("    {answered} answers of a person counted");
        if ran < ids.len() * NOTES / 2 || answered == 0 {
            problems.push(format!("only {ran} calls of a tool ran, and {answered} answers counted"));
        }
        Ok(problems)
    }
}

/// Approves and answers what jobs ask. Postgres may be away.
async fn answer(fleet: Arc<Fleet>, mut asking: Vec<JobId>, answered: Arc<Mutex<u64>>) {
    loop {
        sleep(LOOK).await;
        let Ok(views) = fleet.store.jobs(&asking).await else { continue };
        for view in &views {
            for asked in &view.questions {
                let yes = match asked.kind {
                    InputKind::Approval => (None, Some(true)),
                    InputKind::Question => (Some(Json::null()), None),
                };
                let Ok(input) = Input::of(view.job_id, asked.call_id.clone(), yes, None) else { continue };
                let counts = fleet.store.answer(Some("chaos"), &input, None).await;
                if counts.is_ok_and(|answered| answered.counts()) {
                    *answered.lock().expect("not poisoned") += 1;
                }
            }
        }
        asking.retain(|id| !views.iter().any(|view| view.job_id == *id && view.state.is_end()));
    }
}

/// Compares bill and ledger. The bill is read first: what is counted may only have grown since. Postgres may be away.
async fn watch(
    database: String,
    provider: Arc<Provider>,
    problems: Arc<Mutex<Vec<String>>>,
    looks: Arc<Mutex<u64>>,
) {
    let mut connection = None;
    loop {
        sleep(LOOK).await;
        let bill = provider.bill_micros() as i64;
        let look = async {
            let mut ledger = match connection.take() {
                Some(ledger) => ledger,
                None => PgConnection::connect(&database).await?,
            };
            let (counted, ..) = counted(&mut ledger).await?;
            connection = Some(ledger);
            anyhow::Ok(counted)
        };
        let Ok(Ok(counted)) = timeout(BOUND, look).await else { continue };
        *looks.lock().expect("not poisoned") += 1;
        if bill > counted || counted > LIMIT {
            let problem =
                format!("the provider bills {bill} micro-dollars, the ledger counts {counted} of {LIMIT}");
            problems.lock().expect("not poisoned").push(problem);
            return;
        }
    }
}

async fn counted(ledger: &mut PgConnection) -> anyhow::Result<(i64, i64, i64)> {
    let row = sqlx::query(COUNTED).fetch_one(ledger).await.context("reading the calls")?;
    Ok((row.get(0), row.get(1), row.get(2)))
}

/// Starts a provider and workers that may use it, and begins to publish.
async fn at_work(arena: &mut Arena, workers: usize) -> anyhow::Result<()> {
    let program = std::env::current_exe().context("finding this program")?;
    arena.add_agent(&format!(
        "[agents.asker]\nharness = \"command\"\ncommand = [{program:?}, \"asker\"]\nmodels = [{MODEL:?}]\n\
         sandbox = {{ level = \"off\" }}\n{}",
        CLERKS.map(clerk).concat()
    ))?;
    let many = arena.workload.jobs.len() / 16;
    let clerks: Vec<JobSpec> = (0..many)
        .map(|at| {
            let (agent, _, play) = CLERKS[at % CLERKS.len()];
            noting(agent, play, at)
        })
        .collect();
    arena.models = Some(Models::start(&arena.fleet, clerks.clone()).await?);
    arena.sprinkle((0..many).map(asking).collect());
    arena.make_room_for(clerks.len());
    for _ in 0..workers {
        start(arena).await;
    }
    publish::enqueue(&arena.fleet, &clerks).await?;
    arena.publish();
    arena.under_way().await
}

/// Starts a worker that may use the provider. Returns its number.
async fn start(arena: &mut Arena) -> usize {
    let url = arena.models.as_ref().map(|models| models.provider.base_url()).unwrap_or_default();
    arena
        .start_with(|launch| {
            let launch = launch.set("ANTHROPIC_API_KEY", PROVIDER_KEY).set("ANTHROPIC_BASE_URL", &url);
            let launch = launch.set("OPENAI_API_KEY", PROVIDER_KEY).set("OPENAI_BASE_URL", &url);
            launch.set("BUDGET_DAILY", LIMIT / 1_000_000).set("MODEL_WAIT_S", 2)
        })
        .await
}

/// Kills one worker and drains another while the provider fails in every way.
pub async fn workers(arena: &mut Arena) -> anyhow::Result<()> {
    arena.spends_attempts = true;
    at_work(arena, 3).await?;
    let victim = arena.busy().await?;
    let fault = Instant::now();
    let held = arena.kill(victim).await?;
    start(arena).await;
    arena.gone_on(&held, fault, AGAIN).await?;
    let drained = arena.busy().await?;
    arena.drain(drained).await?;
    start(arena).await;
    Ok(())
}

/// Restarts Postgres and the broker, each under calls.
pub async fn services(arena: &mut Arena) -> anyhow::Result<()> {
    at_work(arena, 3).await?;
    let services = arena.services.clone();
    services.run(&["restart-postgres"]).await?;
    arena.resumed(Instant::now(), BACK).await?;
    services.run(&["stop-broker"]).await?;
    services.run(&["start-broker"]).await?;
    arena.broker_back().await?;
    arena.resumed(Instant::now(), BACK).await
}
