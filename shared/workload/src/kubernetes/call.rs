//! One request to the API server: where it goes, which right it needs, and what its failure means.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request};
use kube::core::Status;
use serde_json::Value;

use crate::TargetError;

/// A request. The right that it needs follows from the same data, so that a refusal can name it.
#[derive(Clone, Debug)]
pub(super) struct Call<'a> {
    /// The API server, for errors.
    pub server: &'a str,
    /// The workload on whose behalf the request is made, for errors.
    pub target: &'a str,
    pub verb: Verb,
    pub group: &'a str,
    pub version: &'a str,
    pub namespace: &'a str,
    pub plural: &'a str,
    /// The object; `None` for the whole collection.
    pub name: Option<&'a str>,
    pub subresource: Option<&'a str>,
    pub query: Vec<(&'static str, &'a str)>,
    pub body: Option<Value>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Get,
    List,
    Create,
    Patch,
}

impl Verb {
    fn name(self) -> &'static str {
        match self {
            Verb::Get => "get",
            Verb::List => "list",
            Verb::Create => "create",
            Verb::Patch => "patch",
        }
    }
}

impl Call<'_> {
    /// Makes the HTTP request. The API server gives up on it when we do.
    pub fn request(&self, bound: Duration) -> Result<Request<Vec<u8>>, TargetError> {
        let (method, content) = match self.verb {
            Verb::Get | Verb::List => (Method::GET, None),
            Verb::Create => (Method::POST, Some("application/json")),
            Verb::Patch => (Method::PATCH, Some("application/merge-patch+json")),
        };
        let mut request = Request::builder().method(method).uri(self.uri(bound));
        request = request.header("accept", "application/json");
        if let Some(content) = content {
            request = request.header("content-type", content);
        }
        let body = self.body.as_ref().map(Value::to_string).unwrap_or_default();
        request.body(body.into_bytes()).map_err(|error| self.refused(error.to_string()))
    }

    fn uri(&self, bound: Duration) -> String {
        let root = if self.group.is_empty() { "/api".into() } else { format!("/apis/{}", self.group) };
        let mut uri = format!("{root}/{}/namespaces/{}/{}", self.version, self.namespace, self.plural);
        for part in [self.name, self.subresource].into_iter().flatten() {
            uri.extend(["/", part]);
        }
        uri.push_str(&format!("?timeout={}ms", bound.as_millis()));
        for (key, value) in &self.query {
            uri.push_str(&format!("&{key}={}", escaped(value)));
        }
        uri
    }

    /// Names the right in the words of a Role.
    fn right(&self) -> String {
        let slash = |subresource: &str| format!("/{subresource}");
        let named = |name: &str| format!(" named {name}");
        format!(
            "{} {}{} of {}{} in the namespace {}",
            self.verb.name(),
            self.plural,
            self.subresource.map(slash).unwrap_or_default(),
            if self.group.is_empty() { "the core group" } else { self.group },
            self.name.map(named).unwrap_or_default(),
            self.namespace,
        )
    }

    fn refused(&self, message: String) -> TargetError {
        TargetError::Refused { target: self.target.to_owned(), message }
    }

    /// Makes the error for a request without an answer within the time limit.
    pub fn timed_out(&self, bound: Duration) -> TargetError {
        let error = std::io::Error::new(std::io::ErrorKind::TimedOut, "the bound for requests has passed");
        self.unreachable(&format!("gave no answer within {} ms", bound.as_millis()), Arc::new(error))
    }

    /// Returns what an error of the client means to us.
    pub fn failed(&self, error: kube::Error) -> TargetError {
        let target = self.target.to_owned();
        match error {
            kube::Error::Api(status) => self.answered(*status),
            kube::Error::SerdeError(error) => {
                self.refused(format!("the API server's answer is not understood: {error}"))
            }
            error @ kube::Error::Auth(_) => TargetError::Forbidden {
                target,
                right: "authenticate".into(),
                message: format!("the credentials cannot be read: {error}"),
            },
            error => self.unreachable("cannot be reached", Arc::new(error)),
        }
    }

    fn answered(&self, status: Status) -> TargetError {
        let target = self.target.to_owned();
        // A quota and an admission webhook answer 403 too. These are RBAC's words, in every version.
        let lacks_right = |message: &str| message.contains(" cannot ") && message.contains("User ");
        match status.code {
            401 => TargetError::Forbidden { target, right: "authenticate".into(), message: status.message },
            403 if lacks_right(&status.message) => {
                TargetError::Forbidden { target, right: self.right(), message: status.message }
            }
            404 => TargetError::NotFound { target, message: status.message },
            409 => TargetError::Conflict { target },
            408 | 429 | 500.. => self.unreachable(&format!("answers {}", status.code), Arc::new(status)),
            _ => self.refused(status.message),
        }
    }

    fn unreachable(&self, how: &str, source: Arc<dyn Error + Send + Sync>) -> TargetError {
        let reason = format!("the API server {} (KUBECONFIG, KUBE_CONTEXT) {how}", self.server);
        TargetError::Unreachable { target: self.target.to_owned(), reason, source }
    }
}

/// Percent-encodes a query's value: all but RFC 3986's unreserved characters.
fn escaped(value: &str) -> String {
    let escape = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => (byte as char).to_string(),
        _ => format!("%{byte:02X}"),
    };
    value.bytes().map(escape).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call() -> Call<'static> {
        Call {
            server: "https://api:6443",
            target: "Deployment fleet/workers",
            verb: Verb::Patch,
            group: "apps",
            version: "v1",
            namespace: "fleet",
            plural: "deployments",
            name: Some("workers"),
            subresource: Some("scale"),
            query: vec![("labelSelector", "app in (a,b)")],
            body: None,
        }
    }

    fn answer(code: u16, message: &str) -> TargetError {
        call().failed(kube::Error::Api(Status::failure(message, "").with_code(code).boxed()))
    }

    #[test]
    fn a_request_carries_its_bound_and_its_query() {
        let request = call().request(Duration::from_millis(4321)).unwrap();
        let expected = "/apis/apps/v1/namespaces/fleet/deployments/workers/scale\
                        ?timeout=4321ms&labelSelector=app%20in%20%28a%2Cb%29";
        assert_eq!(request.uri().to_string(), expected);
    }

    #[test]
    fn every_answer_has_one_meaning() {
        let rbac = "deployments.apps \"workers\" is forbidden: User \"x\" cannot patch resource \"deployments/scale\"";
        for (code, message, kind, retryable) in [
            (401, "Unauthorized", "forbidden", false),
            (403, rbac, "forbidden", false),
            (403, "exceeded quota: pods", "refused", false),
            (404, "not found", "not_found", false),
            (409, "the object has been modified", "conflict", true),
            (422, "spec.replicas: Invalid value", "refused", false),
            (429, "too many", "unreachable", true),
            (500, "etcdserver: timeout", "unreachable", true),
            (504, "Timeout", "unreachable", true),
        ] {
            let error = answer(code, message);
            assert_eq!((error.kind(), error.is_retryable()), (kind, retryable), "{code} {message}");
        }
        let named =
            "the right to patch deployments/scale of apps named workers in the namespace fleet is missing";
        assert!(answer(403, rbac).to_string().contains(named), "{}", answer(403, rbac));
    }
}
