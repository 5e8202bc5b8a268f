//! A caller of the HTTP API.

use std::path::Path;
use std::time::Duration;

use http::{HeaderMap, Method, Request};
use serde_json::Value;
use ureq::Agent;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

use crate::Worker;

/// The API of a door.
#[derive(Clone)]
pub struct Api {
    base: String,
    agent: Agent,
    /// Shown with every request.
    key: Option<String>,
}

/// What was answered.
#[derive(Debug)]
pub struct Reply {
    /// The HTTP status.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: String,
}

impl Api {
    /// The API of this process, once it is served.
    pub async fn of(door: &Worker) -> Api {
        let said = door.said("takes jobs over HTTP").await;
        let address = said.split_whitespace().find_map(|word| word.strip_prefix("address="));
        Api::at(&format!("http://{}", address.expect("its address")))
    }

    /// The API at this address.
    pub fn at(base: &str) -> Api {
        Api::with(base, TlsConfig::default())
    }

    /// The API at this address, whose certificate is from this authority.
    pub fn trusting(base: &str, authority: &Path) -> Api {
        let pem = std::fs::read(authority).expect("an authority");
        let authority = Certificate::from_pem(&pem).expect("a certificate");
        Api::with(base, TlsConfig::builder().root_certs(RootCerts::new_with_certs(&[authority])).build())
    }

    fn with(base: &str, tls: TlsConfig) -> Api {
        let config = Agent::config_builder()
            .tls_config(tls)
            .timeout_global(Some(Duration::from_secs(90)))
            .http_status_as_error(false)
            .max_redirects(0)
            // All servers are on this machine, so `http_proxy` is ignored.
            .proxy(None);
        Api { base: base.to_owned(), agent: config.build().into(), key: None }
    }

    /// The same API for a caller with this key.
    pub fn with_key(&self, key: &str) -> Api {
        Api { key: Some(format!("Bearer {key}")), ..self.clone() }
    }

    pub(crate) fn agent(&self) -> Agent {
        self.agent.clone()
    }

    pub(crate) fn key(&self) -> Option<&str> {
        self.key.as_deref()
    }

    /// The key that it shows.
    pub fn shown_key(&self) -> Option<&str> {
        self.key()?.strip_prefix("Bearer ")
    }

    /// Its address.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// Sends a request. The test's runtime goes on meanwhile.
    pub async fn send(&self, method: Method, path: &str, headers: &[(&str, &str)], body: Vec<u8>) -> Reply {
        self.try_send(method, path, headers, body).await.expect("an answer")
    }

    /// The same; it may fail.
    pub async fn try_send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Vec<u8>,
    ) -> Result<Reply, ureq::Error> {
        let mut request = Request::builder().method(&method).uri(format!("{}{path}", self.base));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(key) = &self.key {
            request = request.header("authorization", key);
        }
        let agent = self.agent.clone();
        let sending = move || {
            let mut answer = if method == Method::GET {
                agent.run(request.body(()).expect("a request"))
            } else {
                agent.run(request.body(body).expect("a request"))
            }?;
            let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
            let body = answer.body_mut().with_config().limit(64 << 20).read_to_string()?;
            Ok::<_, ureq::Error>(Reply { status, headers, body })
        };
        tokio::task::spawn_blocking(sending).await.expect("a thread")
    }

    /// Sends JSON.
    pub async fn post(&self, path: &str, body: &Value) -> Reply {
        let json = [("content-type", "application/json")];
        self.send(Method::POST, path, &json, body.to_string().into_bytes()).await
    }

    /// Submits a job.
    pub async fn submit(&self, job: &Value) -> Reply {
        self.post("/v1/jobs", job).await
    }

    /// Removes.
    pub async fn delete(&self, path: &str) -> Reply {
        self.send(Method::DELETE, path, &[], Vec::new()).await
    }

    /// Reads.
    pub async fn get(&self, path: &str) -> Reply {
        self.send(Method::GET, path, &[], Vec::new()).await
    }

    /// Waits for a job's end.
    pub async fn wait(&self, job_id: &str) -> Reply {
        self.send(Method::GET, &format!("/v1/jobs/{job_id}"), &[("prefer", "wait=30")], Vec::new()).await
    }
}

impl Reply {
    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// A text of the body.
    pub fn text(&self, field: &str) -> String {
        self.json()[field].as_str().unwrap_or_else(|| panic!("no {field}: {self:?}")).to_owned()
    }

    /// A header.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// Expects this status.
    pub fn is(self, status: u16) -> Reply {
        assert_eq!(self.status, status, "{self:?}");
        self
    }

    /// Expects a problem document of this status about this field.
    pub fn problem(self, status: u16, field: Option<&str>) -> Reply {
        let reply = self.is(status);
        assert_eq!(reply.header("content-type"), "application/problem+json", "{reply:?}");
        let problem = reply.json();
        assert_eq!(problem["status"], status, "{reply:?}");
        assert_eq!(problem["field"].as_str(), field, "{reply:?}");
        for field in ["type", "title", "detail"] {
            assert!(problem[field].as_str().is_some_and(|text| !text.is_empty()), "{field}: {reply:?}");
        }
        reply
    }
}
