//! Who asks, and what they may.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::FromRequestParts;
use axum::http::header::{AUTHORIZATION, HOST, ORIGIN};
use axum::http::request::Parts;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, Method};
use job::{Name, SessionKey, Tenant};
use secrecy::{ExposeSecret, SecretString};
pub use store::Scope;
use store::Scopes;
use tracing::warn;

use super::answers::Asker;
use super::cors::Origins;
use super::ledger::Timeout;
use super::problem::{Kind, Problem};
use super::query::only_known;
use super::{Door, metrics};
use crate::access::{Keys, Refused};

/// Who asks.
#[derive(Clone, Debug)]
pub struct Principal {
    caller: store::Principal,
    /// The key that was shown.
    key: Option<SecretString>,
    /// The limit of its request, which has begun with the look at the key.
    timeout: Timeout,
}

impl Principal {
    /// The tenant on whose behalf it asks.
    pub fn tenant(&self) -> &Tenant {
        &self.caller.tenant
    }

    /// The time limit for what the request asks the ledger.
    pub fn timeout(&self) -> Timeout {
        self.timeout
    }

    /// Refuses a caller whose key counts no longer. A request that takes long asks this again and again, because a key that
    /// was revoked meanwhile must be refused within seconds.
    pub async fn still_counts(&self, keys: &Keys, timeout: Timeout) -> Result<(), Problem> {
        let Some(key) = &self.key else { return Ok(()) };
        let asking = async { Ok::<_, Problem>(keys.check(key.expose_secret()).await) };
        timeout.ask(asking).await?.map(drop).map_err(|why| refused(why, "authorization"))
    }

    /// Lets what the request asks the ledger begin later, because it has spent this long on something else.
    pub fn waited(&mut self, spent: Duration) {
        self.timeout = self.timeout.after(spent);
    }

    /// Its name in the operators' log.
    pub fn actor(&self) -> String {
        match self.key_id() {
            "" => "API, without a key".to_owned(),
            key => format!("key {key}"),
        }
    }

    /// The key of its tenant's session of this name. What cannot be a name names no session.
    pub fn session_key(&self, name: &str) -> Result<SessionKey, Problem> {
        let name: Name = name.parse().map_err(|_| Problem::no_session())?;
        Ok(SessionKey::new(self.tenant(), &name))
    }

    /// The holder of a ticket for this stream.
    pub async fn of_ticket(
        parts: &Parts,
        door: &Door,
        ticket: &str,
        stream: &str,
    ) -> Result<Principal, Problem> {
        // A ticket opens one stream, and is not spent on a request that is wrong.
        only_known(parts)?;
        let (timeout, address) = (door.timeout(), door.proxies.of(parts));
        let taking = door.keys.take_ticket(ticket, stream);
        let caller = sign_in(door, address, ticket, "ticket", timeout, taking).await?;
        Ok(Principal { caller, key: None, timeout })
    }

    /// The caller of a request.
    pub async fn of_request(parts: &Parts, door: &Door) -> Result<Principal, Problem> {
        let principal = match parts.headers.get(AUTHORIZATION) {
            Some(given) => of_key(door, door.proxies.of(parts), given).await?,
            None => door.auth.without_key(parts, door.timeout())?,
        };
        if let Some(asker) = parts.extensions.get::<Asker>() {
            asker.is(principal.tenant());
        }
        if parts.method != Method::GET {
            door.answers.room(principal.tenant())?;
        }
        only_known(parts)?;
        Ok(principal)
    }

    /// The id of the key that was shown; empty where there are no keys.
    pub fn key_id(&self) -> &str {
        &self.caller.key_id
    }

    /// Who asks, as operations know it.
    pub fn inner(&self) -> &store::Principal {
        &self.caller
    }

    /// Whether this is allowed.
    pub fn may(&self, scope: Scope) -> bool {
        self.caller.scopes.has(scope)
    }

    /// The same as an answer.
    pub fn needs(&self, scope: Scope) -> Result<(), Problem> {
        if self.may(scope) {
            return Ok(());
        }
        Err(Problem::new(Kind::Forbidden, format!("the key lacks the scope \"{scope}\"")))
    }
}

/// How callers are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Auth {
    /// Every caller may do everything: on this machine, in development.
    Open,
    /// Every caller needs a key.
    Keys,
}

impl Auth {
    /// Without keys the API is open on loopback in development, and to no one elsewhere.
    pub fn of(environment: &str, address: IpAddr) -> Auth {
        if environment == "development" && address.is_loopback() { Auth::Open } else { Auth::Keys }
    }

    /// The caller of a request without a key.
    fn without_key(self, parts: &Parts, timeout: Timeout) -> Result<Principal, Problem> {
        match self {
            Auth::Open if !is_of_this_machine(&parts.headers) => {
                let detail = "without keys only this machine may ask, by localhost or a loopback address";
                Err(Problem::new(Kind::Forbidden, detail).at("host"))
            }
            Auth::Open if !parts.method.is_safe() && is_of_another_page(parts) => {
                let detail =
                    "without keys no page of another site may change anything; list it in CORS_ORIGINS";
                Err(Problem::new(Kind::Forbidden, detail).at("origin"))
            }
            Auth::Open => Ok(Principal {
                caller: store::Principal {
                    tenant: Tenant::default(),
                    key_id: String::new(),
                    scopes: Scopes::all(),
                },
                key: None,
                timeout,
            }),
            Auth::Keys => {
                let detail = "expected a key of this fleet in the header Authorization, as \"Bearer KEY\"";
                Err(Problem::new(Kind::Unauthenticated, detail).at("authorization"))
            }
        }
    }
}

/// The caller of a key, who asks from this address.
async fn of_key(door: &Door, address: Option<IpAddr>, given: &HeaderValue) -> Result<Principal, Problem> {
    let timeout = door.timeout();
    let text = given.to_str().ok().and_then(|text| text.split_once(' '));
    let key = match text {
        Some((scheme, key)) if scheme.eq_ignore_ascii_case("bearer") => key.trim(),
        _ => return Err(unauthenticated("expected \"Bearer KEY\"", "authorization")),
    };
    let caller = sign_in(door, address, key, "authorization", timeout, door.keys.authenticate(key)).await?;
    door.sign_ins.succeeded(key);
    Ok(Principal { caller, key: Some(key.into()), timeout })
}

/// Looks up the caller of what was shown from this address in this field: a key or a ticket. An address that has shown
/// too many that are not valid is refused before that.
async fn sign_in(
    door: &Door,
    address: Option<IpAddr>,
    shown: &str,
    field: &'static str,
    timeout: Timeout,
    looking: impl Future<Output = Result<store::Principal, Refused>>,
) -> Result<store::Principal, Problem> {
    if let Some(left) = address.and_then(|address| door.sign_ins.refused(address, shown)) {
        metrics::failed_sign_in("refused");
        let detail = "too many keys or tickets that are not valid were shown from this address";
        return Err(Problem::new(Kind::TooManySignIns, detail).at(field).retry_after(left));
    }
    let looking = async { Ok::<_, Problem>(looking.await) };
    timeout.ask(looking).await?.map_err(|why| {
        if !matches!(why, Refused::Unavailable(_)) {
            metrics::failed_sign_in("answered");
            if let Some(address) = address.filter(|address| door.sign_ins.failed(*address, shown)) {
                warn!(%address, "an address has shown many keys that are not valid, and is refused for a minute");
            }
        }
        refused(why, field)
    })
}

fn refused(why: Refused, field: &'static str) -> Problem {
    match why {
        Refused::Unavailable(error) => error.into(),
        why => unauthenticated(why.to_string(), field),
    }
}

fn unauthenticated(why: impl Into<String>, field: &'static str) -> Problem {
    Problem::new(Kind::Unauthenticated, why).at(field)
}

/// A page of another site can make a browser ask here, under that site's name (DNS rebinding).
fn is_of_this_machine(headers: &HeaderMap) -> bool {
    // HTTP/2 has it in the request's address, which no browser sends without TLS.
    let Some(host) = headers.get(HOST) else { return true };
    let Some(host) = host.to_str().ok().and_then(|host| host.parse::<Authority>().ok()) else { return false };
    let name = host.host().trim_matches(['[', ']']);
    name == "localhost" || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Whether a browser asks on behalf of a page that is neither ours nor listed. The page would not be shown the answer, but
/// could act by it. What is no browser sends neither of these headers.
fn is_of_another_page(parts: &Parts) -> bool {
    let origin = parts.headers.get(ORIGIN);
    if let (Some(origin), Some(listed)) = (origin, parts.extensions.get::<Origins>())
        && listed.has(origin)
    {
        return false;
    }
    let site = parts.headers.get("sec-fetch-site").map(HeaderValue::as_bytes);
    match site {
        Some(b"cross-site" | b"same-site") => true,
        // Behind a proxy the page's host may be another one than the request's.
        Some(b"same-origin") => false,
        _ => origin.is_some_and(|origin| !is_ours(origin, parts)),
    }
}

/// Whether this is the origin of the pages that are served here, by the name by which the request asks.
fn is_ours(origin: &HeaderValue, parts: &Parts) -> bool {
    let host = match parts.headers.get(HOST) {
        Some(host) => host.to_str().ok(),
        None => parts.uri.authority().map(Authority::as_str),
    };
    let of = origin.to_str().ok().and_then(|origin| Some(origin.split_once("://")?.1));
    of.zip(host).is_some_and(|(of, host)| of.eq_ignore_ascii_case(host))
}

impl FromRequestParts<Arc<Door>> for Principal {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, door: &Arc<Door>) -> Result<Principal, Problem> {
        Principal::of_request(parts, door).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asking(method: &str, headers: &[(&str, &str)]) -> Parts {
        let request = axum::http::Request::builder().method(method).uri("/v1/jobs");
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        request.body(()).expect("a request").into_parts().0
    }

    fn refusal(auth: Auth, parts: &Parts) -> Option<u16> {
        let asked = auth.without_key(parts, Timeout::begin(Duration::ZERO));
        asked.map_err(|problem| problem.status()).err()
    }

    #[test]
    fn without_keys_another_name_than_this_machine_s_is_refused() {
        let asked = |host: &'static str| {
            let parts = asking("POST", &[("host", host)]);
            refusal(Auth::Open, &parts)
        };
        for host in ["localhost", "localhost:8080", "127.0.0.1:8080", "[::1]:8080"] {
            assert_eq!(asked(host), None, "{host}");
        }
        for host in ["evil.example", "localhost.evil.example:8080", "10.0.0.7", ""] {
            assert_eq!(asked(host), Some(403), "{host}");
        }
    }

    #[test]
    fn without_keys_it_is_open_on_loopback_in_development_alone() {
        let (here, everywhere) = ("127.0.0.1".parse().unwrap(), "0.0.0.0".parse().unwrap());
        assert_eq!(Auth::of("development", here), Auth::Open);
        assert_eq!(Auth::of("development", "::1".parse().unwrap()), Auth::Open);
        for (environment, address) in [("development", everywhere), ("production", here)] {
            let auth = Auth::of(environment, address);
            assert_eq!(refusal(auth, &asking("GET", &[])), Some(401));
        }
    }

    #[test]
    fn without_keys_a_page_of_another_site_may_read_but_change_nothing() {
        let status = |method: &str, headers: &[(&str, &str)]| {
            let mut parts = asking(method, headers);
            parts.extensions.insert("https://app.example.com".parse::<Origins>().unwrap());
            refusal(Auth::Open, &parts)
        };
        let host = ("host", "localhost:8080");
        let (site, origin) = (|site| ("sec-fetch-site", site), |origin| ("origin", origin));
        for headers in [
            vec![host],
            vec![host, site("none")],
            vec![host, site("same-origin"), origin("http://localhost:8080")],
            vec![host, origin("http://LOCALHOST:8080")],
            vec![host, site("cross-site"), origin("https://app.example.com")],
        ] {
            assert_eq!(status("POST", &headers), None, "{headers:?}");
        }
        for headers in [
            vec![host, site("cross-site")],
            vec![host, site("same-site"), origin("http://localhost:3000")],
            vec![host, origin("http://localhost:3000")],
            vec![host, origin("https://evil.example")],
            vec![host, origin("null")],
            vec![origin("https://evil.example")],
        ] {
            assert_eq!(status("POST", &headers), Some(403), "{headers:?}");
            assert_eq!(status("DELETE", &headers), Some(403), "{headers:?}");
            assert_eq!(status("GET", &headers), None, "{headers:?}");
        }
    }
}
