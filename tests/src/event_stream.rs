//! A stream of server-sent events, as a client reads it.

use std::io::{BufRead, BufReader};

use http::{HeaderMap, Method, Request};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::{Api, Reply, TIMEOUT};

/// A stream under way. Dropping it ends it.
pub struct EventStream {
    /// The headers of the answer.
    pub headers: HeaderMap,
    events: mpsc::UnboundedReceiver<ServerEvent>,
}

/// An event.
#[derive(Clone, Debug, Default)]
pub struct ServerEvent {
    /// Its name; empty if it has none.
    pub name: String,
    /// Its id; empty if it has none.
    pub id: String,
    /// Its data as JSON.
    pub data: Value,
    /// When to come back, in milliseconds.
    pub retry: Option<u64>,
}

impl ServerEvent {
    /// A text of its data.
    pub fn text(&self, field: &str) -> &str {
        self.data[field].as_str().unwrap_or_default()
    }
}

impl Api {
    /// Opens a stream.
    pub async fn events(&self, path: &str, headers: &[(&str, &str)]) -> EventStream {
        self.try_events(path, headers).await.unwrap_or_else(|refused| panic!("{path}: {refused:?}"))
    }

    /// Opens a stream, or returns how it was refused.
    pub async fn try_events(&self, path: &str, headers: &[(&str, &str)]) -> Result<EventStream, Box<Reply>> {
        let mut request = Request::builder().method(Method::GET).uri(format!("{}{path}", self.base()));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(key) = self.key() {
            request = request.header("authorization", key);
        }
        let (agent, request) = (self.agent(), request.body(()).expect("a request"));
        let opening = move || {
            let mut answer = agent.run(request).expect("an answer");
            let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
            if status != 200 {
                let body = answer.body_mut().read_to_string().expect("a body");
                return Err(Box::new(Reply { status, headers, body }));
            }
            let (sender, events) = mpsc::unbounded_channel();
            let body = answer.into_body();
            std::thread::spawn(move || read(BufReader::new(body.into_reader()), &sender));
            Ok(EventStream { headers, events })
        };
        tokio::task::spawn_blocking(opening).await.expect("a thread")
    }
}

fn read(lines: impl BufRead, events: &mpsc::UnboundedSender<ServerEvent>) {
    let mut event = ServerEvent::default();
    let mut is_event = false;
    for line in lines.lines().map_while(Result::ok) {
        let (field, value) = line.split_once(": ").unwrap_or((&line, ""));
        match field {
            "" if is_event => {
                is_event = false;
                if events.send(std::mem::take(&mut event)).is_err() {
                    return;
                }
                continue;
            }
            "event" => event.name = value.to_owned(),
            "id" => event.id = value.to_owned(),
            "data" => event.data = serde_json::from_str(value).expect("JSON"),
            "retry" => event.retry = value.parse().ok(),
            // An empty line, or a comment that keeps the connection alive.
            _ => continue,
        }
        is_event = true;
    }
}

impl EventStream {
    /// Waits for the next event; `None` at the end of the stream.
    pub async fn next(&mut self) -> Option<ServerEvent> {
        timeout(TIMEOUT, self.events.recv()).await.expect("no event and no end in time")
    }

    /// Waits for the next event of this name; those before it are ignored.
    pub async fn named(&mut self, name: &str) -> ServerEvent {
        loop {
            match self.next().await {
                Some(event) if event.name == name => return event,
                Some(_) => {}
                None => panic!("the stream ended without {name}"),
            }
        }
    }

    /// Waits for the end of the stream. Returns the events until then.
    pub async fn rest(&mut self) -> Vec<ServerEvent> {
        let mut events = Vec::new();
        while let Some(event) = self.next().await {
            events.push(event);
        }
        events
    }
}
