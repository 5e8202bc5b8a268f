//! Which caller a key stands for, and how often each key is used.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use job::{Tenant, Trouble};
use secrecy::SecretString;
use store::{FoundKey, KeyUse, NewKey, Principal, Scopes, Store, StoreError};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::api_key::{ApiKey, BadKey};
use super::cache::Cache;
use super::ticket::take_ticket;

/// How often the uses of keys are noted.
const NOTED_EVERY: Duration = Duration::from_secs(60);
/// How long that may take.
const NOTED_WITHIN: Duration = Duration::from_secs(5);

/// What a new key is for.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Whose it is.
    pub tenant: Tenant,
    /// What it allows; at least one scope.
    pub scopes: Scopes,
    /// What it is for, in words.
    pub label: String,
    /// For how long it is valid; `None` is until it is revoked.
    pub valid_for: Option<Duration>,
}

/// Makes a key; `None` if its tenant is not there or closed. Returns its text, which is kept nowhere, and its id.
pub async fn create_key(
    store: &Store,
    actor: &str,
    wanted: Wanted,
) -> anyhow::Result<Option<(SecretString, String)>> {
    let (text, key) = ApiKey::make().context("reading random bytes")?;
    let Wanted { tenant, scopes, label, valid_for } = wanted;
    let id = key.id().to_owned();
    let new = NewKey { id: id.clone(), secret_sha256: key.secret_sha256(), tenant, scopes, label, valid_for };
    let made = store.create_key(actor, &new).await.context("writing the key")?;
    Ok(made.then_some((text, id)))
}

/// Looks keys up in the ledger. An answer counts for a few seconds, so a revoked key is refused after 5 s at most.
pub struct Keys {
    store: Store,
    cache: Cache<FoundKey>,
    /// How often each key was used since it was noted. Only keys that are in the ledger are counted.
    uses: Mutex<HashMap<String, u64>>,
}

/// Why a key is refused. A caller without the secret learns nothing about a key from it: an id with another secret is
/// `Unknown`.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// The text is no key.
    #[error("this is no key: {0}")]
    Malformed(#[from] BadKey),
    /// There is no such key.
    #[error("there is no such key")]
    Unknown,
    /// It was revoked.
    #[error("this key was revoked")]
    Revoked,
    /// Its time is over.
    #[error("this key has expired")]
    Expired,
    /// Its tenant is closed.
    #[error("this key's tenant is closed")]
    TenantClosed,
    /// There is no such ticket for this stream.
    #[error("expected a ticket for this stream that is not older than 60 s and was not used before")]
    NoTicket,
    /// The ledger did not answer; the key may be valid.
    #[error("keys cannot be looked up")]
    Unavailable(#[source] StoreError),
}

impl Keys {
    /// Looks keys up here.
    pub fn new(store: Store) -> Keys {
        Keys { store, cache: Cache::new(), uses: Mutex::default() }
    }

    /// Returns the caller that a key stands for, and counts the use.
    pub async fn authenticate(&self, text: &str) -> Result<Principal, Refused> {
        let caller = self.check(text).await?;
        let mut uses = self.uses.lock().unwrap_or_else(PoisonError::into_inner);
        *uses.entry(caller.key_id.clone()).or_default() += 1;
        Ok(caller)
    }

    /// Takes a ticket for this stream: whom it stands for. No ticket was seen before, so each waits for its turn among
    /// the ids that no key had a moment ago.
    pub async fn take_ticket(&self, text: &str, stream: &str) -> Result<Principal, Refused> {
        let _turn = self.cache.turn().await;
        let taken = take_ticket(&self.store, text, stream).await;
        taken.map_err(Refused::Unavailable)?.ok_or(Refused::NoTicket)
    }

    /// Returns the caller that a key stands for at this moment.
    pub async fn check(&self, text: &str) -> Result<Principal, Refused> {
        let key = ApiKey::parse(text)?;
        let found = self.cache.get(key.id(), async || self.store.find_key(key.id()).await).await;
        let (found, asked) = found.map_err(Refused::Unavailable)?.ok_or(Refused::Unknown)?;
        if !key.verify(&found.secret_sha256) {
            return Err(Refused::Unknown);
        }
        if found.revoked {
            return Err(Refused::Revoked);
        }
        if found.valid_for.is_some_and(|valid| valid <= asked.elapsed()) {
            return Err(Refused::Expired);
        }
        if found.closed {
            return Err(Refused::TenantClosed);
        }
        Ok(Principal { tenant: found.tenant.clone(), key_id: key.id().to_owned(), scopes: found.scopes })
    }

    /// Notes the uses once a minute until `end` is cancelled, and then once more.
    pub async fn keep_uses(&self, actor: &str, end: &CancellationToken) {
        let mut trouble = Trouble::default();
        loop {
            let ended = end.run_until_cancelled(sleep(NOTED_EVERY)).await.is_none();
            match self.note_uses(actor).await {
                Ok(_) => {
                    trouble.ends();
                }
                Err(cause) if trouble.begins() => {
                    warn!(cause = cause.as_dyn(), "the uses of keys could not be noted, trying again");
                }
                Err(_) => {}
            }
            if ended {
                return;
            }
        }
    }

    /// Writes into the operators' log how often each key was used since the last call, and by which process (`actor`).
    /// A door calls this once a minute, and at its end. Returns how many keys were used.
    ///
    /// After an error the uses are kept for the next call. If only the reply was lost, they are counted twice.
    pub async fn note_uses(&self, actor: &str) -> Result<usize, StoreError> {
        let taken = std::mem::take(&mut *self.uses.lock().unwrap_or_else(PoisonError::into_inner));
        if taken.is_empty() {
            return Ok(0);
        }
        let mut uses: Vec<KeyUse> = taken.into_iter().map(|(key_id, uses)| KeyUse { key_id, uses }).collect();
        uses.sort_by(|one, other| one.key_id.cmp(&other.key_id));
        let noting = timeout(NOTED_WITHIN, self.store.note_key_uses(actor, &uses)).await;
        match noting.unwrap_or_else(|_| Err(StoreError::unavailable("no answer in time"))) {
            Ok(()) => Ok(uses.len()),
            Err(error) => {
                let mut kept = self.uses.lock().unwrap_or_else(PoisonError::into_inner);
                for used in uses {
                    *kept.entry(used.key_id).or_default() += used.uses;
                }
                Err(error)
            }
        }
    }
}
