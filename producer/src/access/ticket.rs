//! The text of a ticket: `hft_` + id + `_` + secret. It stands in an address, so it is for one stream, once, within a
//! minute; the ledger keeps the SHA-256 of its secret alone.

use std::time::Duration;

use anyhow::Context as _;
use secrecy::SecretString;
use sha2::{Digest, Sha256};
use store::{NewTicket, Principal, Scope, Store, StoreError};

use super::api_key::random;

const PREFIX: &str = "hft_";
/// Random characters of the id, and of the secret.
const ID: usize = 10;
const SECRET: usize = 43;
/// For how long a ticket is valid.
pub const VALID_FOR: Duration = Duration::from_secs(60);

/// Makes a ticket for this stream, with what its caller may see. `unix_ms` is Postgres's time.
pub async fn create_ticket(
    store: &Store,
    principal: &Principal,
    stream: String,
    unix_ms: u64,
) -> anyhow::Result<SecretString> {
    let no_random = "reading random bytes";
    let (id, secret) = (random::<ID>().context(no_random)?, random::<SECRET>().context(no_random)?);
    let id = NewTicket::id(unix_ms, &id);
    let shown = [Scope::Read, Scope::Content].into_iter().filter(|scope| principal.scopes.has(*scope));
    let ticket = NewTicket {
        id: id.clone(),
        secret_sha256: Sha256::digest(&secret).into(),
        principal: principal.clone(),
        scopes: shown.collect(),
        stream,
        valid_for: VALID_FOR,
    };
    store.create_ticket(&ticket).await?;
    Ok(format!("{PREFIX}{id}_{secret}").into())
}

/// Takes a ticket for this stream; `None` if it is none, or none for this stream, or was taken before.
pub async fn take_ticket(store: &Store, text: &str, stream: &str) -> Result<Option<Principal>, StoreError> {
    let parts = text.strip_prefix(PREFIX).and_then(|rest| rest.split_once('_'));
    let Some((id, secret)) = parts.filter(|(id, _)| id.starts_with('~')) else { return Ok(None) };
    store.take_ticket(id, &Sha256::digest(secret).into(), stream).await
}
