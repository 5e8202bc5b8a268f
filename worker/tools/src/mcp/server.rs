//! A server and the connection to it: started when it is needed, started anew when it has died, and ended with its
//! attempt or its worker.

use std::ffi::OsStr;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex as Lock, PoisonError, Weak};
use std::time::Duration;

use process::{Group, Stderr};
#[expect(deprecated, reason = "what is declined has its type in the trait")]
use rmcp::model::ListRootsResult;
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, ClientCapabilities, ClientConfig, ClientRequest, ErrorData,
    Implementation, ListRootsRequestMethod, PaginatedRequestParams, PingRequest, RequestMetaObject, Tool,
};
use rmcp::service::{
    ClientInitializeError, NotificationContext, Peer, RequestContext, RunningService, ServiceError,
    serve_client,
};
use rmcp::transport::DynamicTransportError;
use rmcp::transport::streamable_http_client::StreamableHttpError;
use rmcp::{ClientHandler, RoleClient};
use serde_json::{Map, Value};
use tempfile::TempDir;
use tokio::sync::{Mutex, MutexGuard, Semaphore};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::pipes::Pipes;
use super::settings::{How, ServerProgram, ServerSettings};
use super::{CALL_KEY, answer, arguments, http};
use crate::command::{enter, is_shortage, process};
use crate::config::Scope;
use crate::last_words;
use crate::redaction::Redaction;
use crate::text;
use crate::tool::{Call, CallError, Ended, Output};
use crate::toolbox::Place;
use crate::workspace::Workspace;

/// How long a server that missed an answer may take to show that it is alive.
const PING: Duration = Duration::from_secs(5);
/// The longest wait before a server is started again.
const MOST_BACKOFF: Duration = Duration::from_secs(30);
/// A server that lived this long is started again at once.
const LONG_LIFE: Duration = Duration::from_secs(60);
/// How long a server that says again and again that its list has changed waits to be heard.
const BETWEEN_LISTS: Duration = Duration::from_secs(1);
/// How many pages of tools are read.
const PAGES: usize = 64;
/// How many tools a server may have.
const TOOLS: usize = 1_000;
/// What is told of an error.
const SAID_BYTES: usize = 1_000;
/// What is kept of it until it is redacted, which needs more than is told.
const KEPT_BYTES: usize = 32_000;

/// A server.
pub struct Server {
    pub settings: Arc<ServerSettings>,
    state: Mutex<State>,
    starts: AtomicU64,
    latest: Latest,
}

/// What it offered last: at its start, or when it said that its list had changed.
type Latest = Arc<Lock<Arc<Vec<Tool>>>>;

#[derive(Default)]
struct State {
    live: Option<Live>,
    /// How often in a row it died soon, or could not be started.
    failures: u32,
    not_before: Option<Instant>,
}

/// A connection.
struct Live {
    service: RunningService<RoleClient, Client>,
    since: Instant,
    /// Whether it missed an answer.
    doubtful: bool,
    group: Weak<Group>,
    /// The folder of a server that belongs to no attempt.
    _folder: Option<TempDir>,
}

impl Drop for Live {
    /// Kills the server at once. One that was closed is gone already.
    fn drop(&mut self) {
        if let Some(group) = self.group.upgrade() {
            group.kill();
        }
    }
}

/// A server that cannot be used.
#[derive(Debug)]
pub enum ServerError {
    /// The machine lacks what it takes to start it.
    Shortage(String),
    /// It cannot be started or reached, or does not answer.
    Failed(String),
}

impl Server {
    /// Makes a server, and does not start it.
    pub fn new(settings: Arc<ServerSettings>) -> Server {
        Server { settings, state: Mutex::default(), starts: AtomicU64::new(0), latest: Latest::default() }
    }

    /// Returns how often it was started.
    pub fn starts(&self) -> u64 {
        self.starts.load(Ordering::Relaxed)
    }

    /// Returns what it offered last.
    pub fn latest(&self) -> Arc<Vec<Tool>> {
        self.latest.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn offers(&self, tools: Vec<Tool>) {
        *self.latest.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(tools);
    }

    /// Starts it unless it lives, and returns what it offers.
    pub async fn tools(&self, place: &Place) -> Result<Arc<Vec<Tool>>, ServerError> {
        let _alive = self.alive(place).await?;
        Ok(self.latest())
    }

    /// Calls a tool.
    pub async fn call(
        &self,
        (own_name, fields): (&str, Map<String, Value>),
        call: &Call<'_>,
        place: &Place,
        workspace: &Workspace,
        stop: impl Future<Output = ()>,
    ) -> Result<Output, CallError> {
        let fields = match &self.settings.how {
            How::Program(_) => arguments::verbatim(call.input),
            How::Http { .. } => match arguments::rounded(call.input) {
                Some(number) => return Ok(self.too_exact(number, &place.redaction)),
                None => fields,
            },
        };
        let mut meta = RequestMetaObject::new();
        meta.insert(CALL_KEY.to_owned(), call.key.as_str().into());
        let mut params = CallToolRequestParams::new(own_name.to_owned()).with_arguments(fields);
        params.meta = Some(meta);
        tokio::select! {
            answered = self.answer(params, place) => match answered {
                Ok(result) => {
                    let kept = (workspace, &*place.redaction);
                    Ok(answer::output(result, call, kept, self.settings.max_output_bytes).await)
                }
                Err(Unanswered::Shortage(problem)) => Err(CallError::Shortage(problem)),
                Err(Unanswered::Said(ended, problem)) => {
                    let name = &self.settings.name;
                    let said = place.redaction.clipped(&format!("The MCP server {name}: {problem}"), SAID_BYTES);
                    Ok(Output::failed(ended, text::clean_text(said.into())))
                }
            },
            // The request is dropped, which cancels it at the server.
            () = stop => Err(CallError::Stopped),
        }
    }

    /// Answers a call whose input would reach the server with another number.
    fn too_exact(&self, number: &str, redaction: &Redaction) -> Output {
        let (number, name) = (redaction.clipped(number, 100), &self.settings.name);
        let problem = format!(
            "The call was not made: the number {number} would reach the MCP server {name} rounded to the precision \
             of a double. Give it as a text, if the tool takes one, or with fewer digits."
        );
        Output::failed(Ended::BadInput, problem)
    }

    async fn answer(
        &self,
        params: CallToolRequestParams,
        place: &Place,
    ) -> Result<rmcp::model::CallToolResult, Unanswered> {
        let peer = match self.alive(place).await {
            Ok(state) => state.live.as_ref().map(|live| live.service.peer().clone()),
            Err(ServerError::Shortage(problem)) => return Err(Unanswered::Shortage(problem)),
            Err(ServerError::Failed(problem)) => return Err(Unanswered::Said(Ended::Broken, problem)),
        };
        let starts = self.starts();
        let Some(peer) = peer else { return Err(Unanswered::Said(Ended::Broken, "it has ended".to_owned())) };
        let effect = "The call may have taken effect.";
        match timeout(self.settings.timeout, peer.call_tool_once(params)).await {
            Ok(Ok(CallToolResponse::Complete(result))) => Ok(result),
            Ok(Ok(_)) => {
                let said = "it asks for input or wants to answer later, and neither is done here";
                Err(Unanswered::Said(Ended::Failed, said.to_owned()))
            }
            Ok(Err(ServiceError::McpError(error))) => {
                Err(Unanswered::Said(Ended::Failed, format!("it answered an error: {}", error.message)))
            }
            Ok(Err(error)) => {
                self.doubt(starts).await;
                Err(Unanswered::Said(Ended::Broken, format!("{}. {effect}", unanswered(&error))))
            }
            Err(_) => {
                self.doubt(starts).await;
                let said =
                    format!("it did not answer within {} ms. {effect}", self.settings.timeout.as_millis());
                Err(Unanswered::Said(Ended::TimedOut, said))
            }
        }
    }

    /// Has the connection looked at before it is used again.
    async fn doubt(&self, starts: u64) {
        let mut state = self.state.lock().await;
        if self.starts() == starts
            && let Some(live) = &mut state.live
        {
            live.doubtful = true;
        }
    }

    /// Returns the state of a server that lives. It is started if it does not.
    async fn alive(&self, place: &Place) -> Result<MutexGuard<'_, State>, ServerError> {
        // Others may be starting it, one after the other.
        let within = self.settings.start_timeout + MOST_BACKOFF + PING;
        let late = || ServerError::Failed(format!("it was not ready within {} ms", within.as_millis()));
        timeout(within, self.started(place)).await.map_err(|_| late())?
    }

    async fn started(&self, place: &Place) -> Result<MutexGuard<'_, State>, ServerError> {
        let mut state = self.state.lock().await;
        if let Some(live) = &mut state.live {
            let lives = !live.service.peer().is_transport_closed()
                && (!live.doubtful || answers(live.service.peer()).await);
            live.doubtful = false;
            if lives {
                return Ok(state);
            }
            let lived = live.since.elapsed();
            if let Some(live) = state.live.take() {
                tracing::warn!(server = self.settings.name, "an MCP server has died; it is started anew");
                drop(live);
            }
            state.died(lived);
        }
        if let Some(at) = state.not_before {
            sleep_until(at).await;
        }
        match self.start(place).await {
            Ok(live) => {
                self.starts.fetch_add(1, Ordering::Relaxed);
                state.live = Some(live);
                Ok(state)
            }
            Err(error) => {
                state.died(Duration::ZERO);
                Err(error)
            }
        }
    }

    async fn start(&self, place: &Place) -> Result<Live, ServerError> {
        let settings = &self.settings;
        let within = settings.start_timeout;
        let late = || ServerError::Failed(format!("it was not ready within {} ms", within.as_millis()));
        let client = Client {
            latest: self.latest.clone(),
            within,
            places: Arc::new(Semaphore::new(2)),
            turn: Arc::default(),
        };
        let since = Instant::now();
        match &settings.how {
            How::Http { url, headers, client: sender } => {
                let transport = http::transport(sender, url, headers);
                let ready = ready(serve_client(client, transport));
                let (service, tools) =
                    timeout(within, ready).await.map_err(|_| late())?.map_err(ServerError::Failed)?;
                self.offers(tools);
                Ok(Live { service, since, doubtful: false, group: Weak::new(), _folder: None })
            }
            How::Program(program) => {
                let (group, folder) = self.spawn(program, place).await?;
                let stderr = Arc::new(Lock::new(None));
                let pipes = Pipes::new(group, settings.name.clone(), program.stop_grace, stderr.clone())
                    .map_err(|error| ServerError::Failed(error.to_string()))?;
                let group = pipes.group();
                let started = timeout(within, ready(serve_client(client, pipes))).await;
                let problem = match started {
                    Ok(Ok((service, tools))) => {
                        self.offers(tools);
                        return Ok(Live { service, since, doubtful: false, group, _folder: folder });
                    }
                    Ok(Err(problem)) => ServerError::Failed(problem),
                    Err(_) => late(),
                };
                Err(with_last_words(problem, &stderr, &place.redaction).await)
            }
        }
    }

    async fn spawn(
        &self,
        program: &ServerProgram,
        place: &Place,
    ) -> Result<(Group, Option<TempDir>), ServerError> {
        let failed = |error: io::Error| {
            let problem = format!("it cannot be started: {error}");
            let is_shortage = is_shortage(&error, program.limits);
            if is_shortage { ServerError::Shortage(problem) } else { ServerError::Failed(problem) }
        };
        let own = match self.settings.scope {
            Scope::Attempt => None,
            Scope::Worker => Some(tempfile::tempdir().map_err(failed)?),
        };
        let folder = own.as_ref().map_or(place.workspace.as_path(), TempDir::path);
        let mut process = process(&program.program, program.sandbox.as_ref(), folder);
        if own.is_none() {
            let given = place.env.iter().filter(|(name, _)| program.gateway || is_no_secret(name));
            process.envs(given.map(|(name, value)| (name, value))).env("HARNESS_WORKSPACE", folder);
        }
        // One that is given no token has nothing to ask of the gateway.
        let port = place.port.filter(|_| program.gateway);
        let entry = enter(program.sandbox.as_ref(), folder, port).map_err(failed)?;
        let group = process::spawn(process, program.limits, entry).await.map_err(failed)?;
        Ok((group, own))
    }

    /// Ends it.
    pub async fn close(&self) {
        let live = self.state.lock().await.live.take();
        if let Some(mut live) = live {
            let grace = match &self.settings.how {
                How::Program(program) => 2 * program.stop_grace,
                How::Http { .. } => Duration::ZERO,
            };
            // What is left after that is killed.
            let _ = live.service.close_with_timeout(grace + Duration::from_secs(5)).await;
        }
    }
}

impl State {
    /// Decides when it may be started again.
    fn died(&mut self, lived: Duration) {
        self.failures = if lived >= LONG_LIFE { 0 } else { self.failures + 1 };
        let wait = match self.failures {
            0 | 1 => Duration::ZERO,
            failures => Duration::from_secs(1 << (failures - 2).min(5)),
        };
        self.not_before = Some(Instant::now() + wait.min(MOST_BACKOFF));
    }
}

/// Returns whether an attempt's variable says only which attempt it is. The others lead to the gateway.
fn is_no_secret(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    name == "TRACEPARENT" || name.starts_with("HARNESS_") && !name.starts_with("HARNESS_GATEWAY_")
}

/// A call without an answer.
enum Unanswered {
    Shortage(String),
    Said(Ended, String),
}

/// Waits until a server has said what it offers.
async fn ready(
    serving: impl Future<Output = Result<RunningService<RoleClient, Client>, ClientInitializeError>>,
) -> Result<(RunningService<RoleClient, Client>, Vec<Tool>), String> {
    let service = serving.await.map_err(|error| unready(&error))?;
    let tools = list(service.peer()).await?;
    Ok((service, tools))
}

/// Lists what a server offers, sorted by name.
async fn list(peer: &Peer<RoleClient>) -> Result<Vec<Tool>, String> {
    let mut tools = Vec::new();
    let mut cursor = None;
    for _ in 0..PAGES {
        let page = peer.list_tools(Some(PaginatedRequestParams::default().with_cursor(cursor.take()))).await;
        let page = page.map_err(|error| format!("its tools cannot be listed: {}", unanswered(&error)))?;
        tools.extend(page.tools);
        if tools.len() > TOOLS {
            return Err(format!("it has more than {TOOLS} tools"));
        }
        match page.next_cursor {
            Some(next) => cursor = Some(next),
            None => {
                tools.sort_by(|one: &Tool, other| one.name.cmp(&other.name));
                return Ok(tools);
            }
        }
    }
    Err(format!("its list of tools has more than {PAGES} pages"))
}

/// Returns whether a server answers at all.
async fn answers(peer: &Peer<RoleClient>) -> bool {
    let ping = ClientRequest::PingRequest(PingRequest::default());
    matches!(timeout(PING, peer.send_request(ping)).await, Ok(Ok(_) | Err(ServiceError::McpError(_))))
}

/// Adds what a server wrote to stderr at its end.
async fn with_last_words(
    problem: ServerError,
    stderr: &Lock<Option<Stderr>>,
    redaction: &Redaction,
) -> ServerError {
    let taken = stderr.lock().unwrap_or_else(PoisonError::into_inner).take();
    let Some(stderr) = taken else { return problem };
    let lines = last_words::shown(&stderr.tail().await, redaction, SAID_BYTES / 2);
    match problem {
        ServerError::Failed(problem) if !lines.is_empty() => {
            ServerError::Failed(format!("{problem}; its stderr ends with: {lines}"))
        }
        other => other,
    }
}

/// Says why a server is not ready.
fn unready(error: &ClientInitializeError) -> String {
    match error {
        ClientInitializeError::TransportError { error, .. } => transport(error),
        ClientInitializeError::ConnectionClosed(_) => "it has ended".to_owned(),
        other => text::with_causes(other, KEPT_BYTES),
    }
}

/// Says why a call has no answer.
fn unanswered(error: &ServiceError) -> String {
    match error {
        ServiceError::TransportSend(error) => transport(error),
        ServiceError::TransportClosed => "it has ended".to_owned(),
        other => text::with_causes(other, KEPT_BYTES),
    }
}

/// Says what happened to a message, without the names of types. Some of these errors hide their causes.
fn transport(error: &DynamicTransportError) -> String {
    match error.error.downcast_ref() {
        Some(StreamableHttpError::<reqwest::Error>::Client(error)) => http_client::cause(error),
        _ => text::with_causes(error.error.as_ref(), KEPT_BYTES),
    }
}

/// What a server may ask of us: nothing.
#[derive(Clone)]
struct Client {
    latest: Latest,
    within: Duration,
    /// One listing, and one that waits for it.
    places: Arc<Semaphore>,
    turn: Arc<Mutex<()>>,
}

impl ClientHandler for Client {
    fn get_info(&self) -> ClientConfig {
        let own = Implementation::new("harness-fleet", env!("CARGO_PKG_VERSION"));
        ClientConfig::new(ClientCapabilities::default(), own)
    }

    #[expect(deprecated, reason = "what is declined has its type in the trait")]
    async fn list_roots(&self, _: RequestContext<RoleClient>) -> Result<ListRootsResult, ErrorData> {
        Err(ErrorData::method_not_found::<ListRootsRequestMethod>())
    }

    /// Lists the tools again. Many servers say this at their start, and then nothing has changed.
    async fn on_tool_list_changed(&self, context: NotificationContext<RoleClient>) {
        let Ok(_place) = self.places.try_acquire() else { return };
        let _turn = self.turn.lock().await;
        if let Ok(Ok(tools)) = timeout(self.within, list(&context.peer)).await {
            *self.latest.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(tools);
        }
        sleep(BETWEEN_LISTS).await;
    }
}
