//! What lives longer than an attempt: the ledger, the session, the tools' effects, the provider. And what kills an attempt.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agent::{AgentConfig, OfWorker, OpenTools, Opening, Toolkit};
use async_trait::async_trait;
use harness::{
    CallId, ClosedInput, Delta, Event, Harness, IsDurable, Journal, Meter, Offer, Offers, Parts, Run,
    RunError, Session, Stop, Stopper, Taken, Task, Usage,
};
use job::Json;
use model::{
    Answer, Attempt, Call as ModelCall, Checkpoints, Gateway, GatewaySettings, Given, HostedCaps, Ledger,
    Opened, Outcome, Prices, Purchase, RequestKey, Reserve, Settlement, TakenAs, Unavailable, Upstream,
    WithoutRoom,
};
use serde_json::Value;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tools::{Call, CallError, Content, Ended, Output, Redaction, Repeat, Tool};

use crate::provider::{Provider, Script};

/// The moments of an attempt. It is killed at one of them: nothing that comes to another afterwards goes on.
#[derive(Default)]
pub struct Points(Mutex<Plan>);

#[derive(Default)]
struct Plan {
    passed: usize,
    kill_at: Option<usize>,
    killed: CancellationToken,
}

impl Points {
    /// Begins an attempt that is killed at the n-th moment, if it has so many.
    fn begin(&self, kill_at: Option<usize>) -> CancellationToken {
        let mut plan = self.0.lock().expect("not poisoned");
        *plan = Plan { passed: 0, kill_at, killed: CancellationToken::new() };
        plan.killed.clone()
    }

    pub async fn pass(&self) {
        let killed = {
            let mut plan = self.0.lock().expect("not poisoned");
            plan.passed += 1;
            if plan.kill_at == Some(plan.passed) {
                plan.killed.cancel();
            }
            plan.killed.clone()
        };
        if killed.is_cancelled() {
            std::future::pending::<()>().await;
        }
    }
}

/// Everything but the attempt.
pub struct World {
    pub provider: Provider,
    pub session: Arc<Mutex<Session>>,
    pub journal: Arc<Mutex<Vec<Delta>>>,
    pub effects: Arc<Mutex<Vec<(String, String)>>>,
    points: Arc<Points>,
    books: Arc<Mutex<Books>>,
    attempts: AtomicUsize,
    pub task: Task,
    pub models: Vec<String>,
    pub config: Value,
    /// Asks the present attempt to stop.
    pub stopper: Mutex<Stopper>,
    /// Asked for within the tool `look`.
    pub stop_in_look: Arc<Mutex<Option<Stop>>>,
    pub output_bytes: usize,
    /// How long the tool `look` takes.
    pub look_takes: Duration,
    /// The size of the image that it returns, if it returns one.
    pub image_bytes: usize,
    /// The most bytes of the session.
    pub most_bytes: usize,
    /// The checkpoint of an attempt after which the job is wanted back, counted from 0.
    pub wanted_back_at: Option<usize>,
    /// How many calls the provider had got by then.
    pub asked_until_then: Arc<Mutex<Option<usize>>>,
    /// Of each attempt, whether its tools were said to have been used before.
    pub opened: Arc<Mutex<Vec<bool>>>,
    /// What persons have decided.
    pub answers: BTreeMap<CallId, ClosedInput>,
    /// The same, for what is made before the world.
    pub stop_cell: Arc<Mutex<Stopper>>,
    /// What its tools are.
    pub tools: Vec<Tool>,
    /// How long a checkpoint takes.
    pub commit_takes: Duration,
    /// Whether answers are written into the session with their settlement.
    pub takes_answers: bool,
    /// What it has shown to those who follow it.
    pub shown: Arc<Mutex<Vec<Shown>>>,
    /// Other tools than these here.
    pub other_tools: Option<Arc<dyn OpenTools>>,
}

#[derive(Default)]
struct Books {
    /// Answers that are paid.
    paid: usize,
    /// Stored ones with their attempt and how many checkpoints it had written.
    answers: HashMap<RequestKey, (Answer, usize, usize)>,
    /// Checkpoints: attempt and ordinal.
    checkpoints: Vec<(usize, usize)>,
}

/// The wires, each with a model and what an agent says to speak it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speaks {
    Messages,
    Chat,
    Responses,
}

impl Speaks {
    pub const ALL: [Speaks; 3] = [Speaks::Messages, Speaks::Chat, Speaks::Responses];

    pub fn model(self) -> &'static str {
        match self {
            Speaks::Messages => "claude-opus-5-5",
            Speaks::Chat | Speaks::Responses => "gpt-6-sol",
        }
    }
}

impl World {
    /// A world whose agent speaks this wire.
    pub async fn on(speaks: Speaks, script: Script) -> World {
        World::of(speaks, script, &[speaks.model()]).await
    }

    /// A world whose agent has these models, and calls OpenAI's on this wire.
    pub async fn of(speaks: Speaks, script: Script, models: &[&str]) -> World {
        let mut world = World::new(script, models).await;
        if speaks == Speaks::Responses {
            world.config["openai_api"] = "responses".into();
        }
        world
    }

    pub async fn new(script: Script, models: &[&str]) -> World {
        let points = Arc::new(Points::default());
        let provider = Provider::start(script, points.clone()).await;
        World {
            provider,
            session: Arc::default(),
            journal: Arc::default(),
            effects: Arc::default(),
            points,
            books: Arc::default(),
            attempts: AtomicUsize::new(0),
            task: harness::testing::task(Value::from("Do it.")),
            models: models.iter().map(|model| (*model).to_owned()).collect(),
            config: serde_json::json!({"system": "You are a test.", "max_output_tokens": 500}),
            stopper: Mutex::default(),
            stop_in_look: Arc::default(),
            output_bytes: 10,
            look_takes: Duration::ZERO,
            image_bytes: 0,
            most_bytes: usize::MAX,
            wanted_back_at: None,
            asked_until_then: Arc::default(),
            opened: Arc::default(),
            answers: BTreeMap::new(),
            stop_cell: Arc::default(),
            tools: tools(),
            commit_takes: Duration::ZERO,
            takes_answers: true,
            shown: Arc::default(),
            other_tools: None,
        }
    }

    /// Begins another job of the session.
    pub fn next_job(&mut self, input: Value) {
        self.task = harness::testing::task(input);
    }

    /// Runs an attempt. Returns nothing if it was killed.
    pub async fn attempt(&self, kill_at: Option<usize>) -> Option<Result<Json, RunError>> {
        let number = self.attempts.fetch_add(1, Ordering::Relaxed) + 1;
        let killed = self.points.begin(kill_at);
        let upstream =
            Upstream { base_url: format!("http://{}", self.provider.addr), key: "sk-test-key".into() };
        let gateway = Gateway::start(GatewaySettings {
            addr: "127.0.0.1:0".parse().expect("valid"),
            anthropic: Some(upstream.clone()),
            openai: Some(upstream),
            tls: tls(),
            prices: Prices::built_in(),
            usage_drain: Duration::from_secs(60),
            wait: Duration::from_secs(60),
            most_calls: 256,
        });
        let gateway = gateway.await.expect("it works");
        let written = Arc::new(AtomicUsize::new(0));
        let offers = Arc::new(Offers::default());
        let journal = Arc::new(Written {
            number,
            written: written.clone(),
            books: self.books.clone(),
            points: self.points.clone(),
            session: self.session.clone(),
            deltas: self.journal.clone(),
            wanted_back_at: self.wanted_back_at,
            asked_until_then: self.asked_until_then.clone(),
            provider: self.provider.clone(),
            stopper: self.stop_cell.clone(),
            takes: self.commit_takes,
            shown: self.shown.clone(),
        });
        let ledger = Arc::new(OneAttempt {
            number,
            books: self.books.clone(),
            points: self.points.clone(),
            written,
            killed: killed.clone(),
            journal: journal.clone(),
            offers: offers.clone(),
        });
        let (models, caps) = (self.models.clone(), HostedCaps::default());
        let opened =
            gateway.open(Attempt { ledger, models, degrades: false, fit: None, caps }).expect("it works");
        let config: AgentConfig = serde_json::from_value(self.config.clone()).expect("it works");
        let tools = Arc::new(Tools {
            points: self.points.clone(),
            effects: self.effects.clone(),
            stop: self.stop_in_look.clone(),
            stopper: self.stop_cell.clone(),
            output_bytes: self.output_bytes,
            look_takes: self.look_takes,
            image_bytes: self.image_bytes,
            redaction: Arc::default(),
            tools: self.tools.clone(),
            opened: self.opened.clone(),
        });
        let tools = self.other_tools.clone().unwrap_or(tools);
        let worker = OfWorker { models: &self.models, degrades: false, keys: vec!["sk-test-key".into()] };
        let agent = config.build(worker, tools, &tls()).expect("it works");
        let session = self.session.lock().expect("not poisoned").clone();
        let stopper = Stopper::default();
        *self.stopper.lock().expect("not poisoned") = stopper.clone();
        *self.stop_cell.lock().expect("not poisoned") = stopper.clone();
        let mut task = self.task.clone();
        task.attempt = number as u32;
        let mut run = Run::new(task, session, journal, stopper.signal())
            .metered_by(Some(
                Arc::new(Metered(opened, self.takes_answers.then_some(offers))) as Arc<dyn Meter>
            ))
            .within(self.most_bytes, Parts::default())
            .answered(self.answers.clone());
        tokio::select! {
            ended = agent.run(&mut run) => Some(ended),
            () = killed.cancelled() => None,
            () = tokio::time::sleep(Duration::from_secs(60)) => panic!("the attempt hangs"),
        }
    }

    /// Runs an attempt to its end.
    pub async fn run(&self) -> Result<Json, RunError> {
        self.attempt(None).await.expect("nothing kills it")
    }

    /// Returns how many answers are paid and not lost.
    pub fn paid(&self) -> usize {
        self.books.lock().expect("not poisoned").paid
    }

    /// Returns how often the tool was run under each key.
    pub fn runs(&self, tool: &str) -> HashMap<String, usize> {
        let mut runs = HashMap::new();
        for (_, key) in self.effects.lock().expect("not poisoned").iter().filter(|(name, _)| name == tool) {
            *runs.entry(key.clone()).or_default() += 1;
        }
        runs
    }
}

pub fn tls() -> rustls::ClientConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    tls.expect("it works").with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth()
}

struct Metered(Opened, Option<Arc<Offers>>);

impl Meter for Metered {
    fn environment(&self) -> Vec<(&'static str, String)> {
        self.0.environment().into()
    }

    fn port(&self) -> u16 {
        self.0.port()
    }

    fn most_output(&self, model: &str) -> Option<u64> {
        self.0.most_output(model)
    }

    fn used(&self) -> Usage {
        let metered = self.0.metered();
        Usage { input_tokens: metered.input_tokens, output_tokens: metered.output_tokens, ..Usage::default() }
    }

    fn idle(&self) -> Duration {
        self.0.idle()
    }

    fn follow(&self, _: IsDurable) {}

    fn close(&self) {
        self.0.close();
    }

    fn offers(&self, call: u64) -> Option<oneshot::Receiver<Offer>> {
        Some(self.1.as_ref()?.expect(call))
    }
}

/// The session's writes of one attempt.
struct Written {
    number: usize,
    written: Arc<AtomicUsize>,
    books: Arc<Mutex<Books>>,
    points: Arc<Points>,
    session: Arc<Mutex<Session>>,
    deltas: Arc<Mutex<Vec<Delta>>>,
    wanted_back_at: Option<usize>,
    asked_until_then: Arc<Mutex<Option<usize>>>,
    provider: Provider,
    stopper: Arc<Mutex<Stopper>>,
    takes: Duration,
    shown: Arc<Mutex<Vec<Shown>>>,
}

/// What a follower sees: text, or an event of this name with these data.
#[derive(Clone, Debug, PartialEq)]
pub enum Shown {
    Text(String),
    Event(String, Value),
}

impl Written {
    fn show(&self, shown: Shown) {
        self.shown.lock().expect("not poisoned").push(shown);
    }

    /// Writes a checkpoint at once.
    fn write(&self, ordinal: usize, delta: &Delta) {
        self.session.lock().expect("not poisoned").apply(delta);
        self.deltas.lock().expect("not poisoned").push(delta.clone());
        self.books.lock().expect("not poisoned").checkpoints.push((self.number, ordinal));
        if self.wanted_back_at == Some(ordinal) {
            *self.asked_until_then.lock().expect("not poisoned") = Some(self.provider.asked().len());
            self.stopper.lock().expect("not poisoned").ask(Stop::HandBack);
        }
    }
}

#[async_trait]
impl Journal for Written {
    async fn checkpoint(&self, delta: &Delta) -> Result<(), Stop> {
        let ordinal = self.written.fetch_add(1, Ordering::Relaxed);
        self.points.pass().await;
        tokio::time::sleep(self.takes).await;
        self.write(ordinal, delta);
        self.points.pass().await;
        Ok(())
    }

    fn event(&self, event: Event) {
        self.show(Shown::Event(event.name, event.data));
    }

    fn text(&self, text: &str) {
        self.show(Shown::Text(text.to_owned()));
    }
}

/// The accounts, as one attempt sees them. It stores answers by the rules of the real ledger.
struct OneAttempt {
    number: usize,
    books: Arc<Mutex<Books>>,
    points: Arc<Points>,
    written: Arc<AtomicUsize>,
    killed: CancellationToken,
    journal: Arc<Written>,
    offers: Arc<Offers>,
}

impl OneAttempt {
    /// What a dead worker's gateway still wants to write is never written.
    async fn pass(&self) {
        self.points.pass().await;
        if self.killed.is_cancelled() {
            std::future::pending::<()>().await;
        }
    }
}

#[async_trait]
impl Ledger for OneAttempt {
    async fn until_durable(&self) {}

    async fn reserve(&self, call: &ModelCall) -> Result<Reserve, Unavailable> {
        self.pass().await;
        Ok(self.look_up(call).await?.map_or(Reserve::Granted, Reserve::Answered))
    }

    fn counts_in(&self, _: &str) -> bool {
        false
    }

    fn checkpoints(&self) -> Checkpoints {
        let books = self.books.lock().expect("not poisoned");
        let own = books.checkpoints.iter().filter(|(attempt, _)| *attempt == self.number);
        let covering = own.map(|(_, ordinal)| *ordinal as u32 + 1).max().unwrap_or(0);
        Checkpoints { written: self.written.load(Ordering::Relaxed) as u32, covering }
    }

    fn note_spent(&self, _: &WithoutRoom) {}

    async fn settle(&self, call: &ModelCall, settlement: Settlement) -> Result<(), Unavailable> {
        let after = settlement.after_checkpoints as usize;
        let taken = match (&settlement.answer, settlement.taken) {
            (Some(answer), Some(TakenAs { number, passed })) => {
                self.offers.offer(number, &answer.body, passed, Usage::default()).await
            }
            _ => None,
        };
        let taken = taken.map(|taken| (taken, self.written.fetch_add(1, Ordering::Relaxed)));
        self.pass().await;
        if let Some(answer) = settlement.answer {
            let mut books = self.books.lock().expect("not poisoned");
            books.paid += 1;
            if taken.is_none() {
                books.answers.insert(call.request, (answer, self.number, after));
            }
        }
        if let Some((Taken { delta, .. }, ordinal)) = &taken {
            self.journal.write(*ordinal, delta);
        }
        self.pass().await;
        if let Some((Taken { durable, .. }, _)) = taken {
            let _ = durable.send(Ok(()));
        }
        Ok(())
    }

    async fn reserve_purchase(&self, _: &Purchase) -> Result<Reserve, Unavailable> {
        Err(Unavailable("nothing else is bought here".to_owned()))
    }

    async fn settle_purchase(&self, _: &Purchase, _: Outcome) -> Result<(), Unavailable> {
        Err(Unavailable("nothing else is bought here".to_owned()))
    }

    async fn look_up(&self, call: &ModelCall) -> Result<Option<Given>, Unavailable> {
        let books = self.books.lock().expect("not poisoned");
        let Some((answer, number, after)) = books.answers.get(&call.request) else { return Ok(None) };
        let covers =
            |(attempt, ordinal): &(usize, usize)| attempt > number || attempt == number && ordinal >= after;
        Ok((!books.checkpoints.iter().any(covers)).then(|| Given {
            answer: answer.clone(),
            cached: false,
            paid: Usage::default(),
        }))
    }
}

/// `look` may be repeated, `push` may not, and `pay` needs an approval.
struct Tools {
    points: Arc<Points>,
    effects: Arc<Mutex<Vec<(String, String)>>>,
    stop: Arc<Mutex<Option<Stop>>>,
    stopper: Arc<Mutex<Stopper>>,
    output_bytes: usize,
    look_takes: Duration,
    image_bytes: usize,
    redaction: Arc<Redaction>,
    tools: Vec<Tool>,
    opened: Arc<Mutex<Vec<bool>>>,
}

fn tools() -> Vec<Tool> {
    let tool = |name: &str, repeat, side_by_side| Tool {
        name: name.to_owned(),
        description: format!("To {name}."),
        input_schema: Json::parse(r#"{"type":"object","properties":{"n":{"type":"number"}}}"#)
            .expect("it works"),
        repeat,
        side_by_side,
        approve: false,
    };
    let pay = Tool { approve: true, ..tool("pay", Repeat::Unsafe, true) };
    vec![tool("look", Repeat::Safe, true), pay, tool("push", Repeat::Unsafe, true)]
}

#[async_trait]
impl OpenTools for Tools {
    async fn open(&self, opening: &Opening<'_>) -> Result<Arc<dyn Toolkit>, RunError> {
        let Tools {
            points,
            effects,
            stop,
            stopper,
            output_bytes,
            look_takes,
            image_bytes,
            tools,
            opened,
            ..
        } = self;
        opened.lock().expect("not poisoned").push(opening.is_resumed);
        Ok(Arc::new(Tools {
            opened: opened.clone(),
            points: points.clone(),
            effects: effects.clone(),
            stop: stop.clone(),
            stopper: stopper.clone(),
            output_bytes: *output_bytes,
            look_takes: *look_takes,
            image_bytes: *image_bytes,
            redaction: opening.redaction.clone(),
            tools: tools.clone(),
        }))
    }
}

#[async_trait]
impl Toolkit for Tools {
    fn tools(&self) -> &[Tool] {
        &self.tools
    }

    async fn call(&self, call: &Call<'_>) -> Result<Output, CallError> {
        self.points.pass().await;
        self.effects.lock().expect("not poisoned").push((call.name.to_owned(), call.key.as_str().to_owned()));
        if let Some(stop) = self.stop.lock().expect("not poisoned").take() {
            self.stopper.lock().expect("not poisoned").ask(stop);
        }
        if call.name == "look" {
            tokio::time::sleep(self.look_takes).await;
        }
        self.points.pass().await;
        let text = format!("{} {} sk-test-key {}", call.name, call.input, "x".repeat(self.output_bytes));
        let mut content = vec![Content::Text(self.redaction.clean(&text))];
        if call.name == "look" && self.image_bytes > 0 {
            let data = "A".repeat(self.image_bytes);
            content.push(Content::Image { media_type: "image/png".to_owned(), data });
        }
        Ok(Output { content, is_error: false, ended: Ended::Done })
    }

    fn notices(&self) -> Vec<String> {
        Vec::new()
    }

    async fn close(self: Arc<Self>) {}
}
