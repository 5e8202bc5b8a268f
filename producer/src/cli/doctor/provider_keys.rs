//! The check of `producer doctor` on keys of model providers.

use store::{ShutKey, Store};

use super::{Checklist, chain};

pub(super) async fn look(store: &Store, list: &mut Checklist) {
    match store.shut_keys().await {
        Ok(shut) if shut.is_empty() => {}
        Ok(shut) => _ = list.report("provider_keys", fare(&shut)),
        Err(error) => _ = list.report("provider_keys", Err(chain(error))),
    }
}

/// A rate limit passes by itself. An account without credit does not.
fn fare(shut: &[ShutKey]) -> Result<String, String> {
    let named: Vec<_> =
        shut.iter().map(|it| format!("{} for {} s ({})", it.key, it.remaining.as_secs(), it.why)).collect();
    let named = format!("no call is granted with {}", named.join(", "));
    if shut.iter().any(|it| it.why == "quota") {
        return Err(format!("{named}: the provider says that the account has no credit left"));
    }
    Ok(named)
}
