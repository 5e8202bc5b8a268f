//! The checks of `producer doctor` on keys of the HTTP API and on the operators' log.

use std::time::Duration;

use store::{AccessHealth, Store};

use super::{Checklist, chain};

/// A key that ends so soon is named: its callers need another one.
const SOON: Duration = Duration::from_secs(14 * 86_400);

pub(super) async fn look(store: &Store, list: &mut Checklist) {
    match store.access_health(SOON).await {
        Ok(health) => {
            if health.keys > 0 {
                list.report("api_keys", Ok(keys(&health)));
            }
            if health.rows > 0 || !health.missing_guards.is_empty() {
                list.report("operators_log", log(&health));
            }
        }
        Err(error) => _ = list.report("api_keys", Err(chain(error))),
    }
}

/// Whether an API is served with keys is not known here, and a key that ends is its tenant's concern. So all of this is
/// shown, and nothing is missing.
fn keys(health: &AccessHealth) -> String {
    if health.live == 0 {
        return "no key is valid, so `producer serve` refuses every request that shows one: `producer keys create` makes one"
            .to_owned();
    }
    let mut said = format!("{} keys of {} tenants are valid", health.live, health.tenants);
    if health.admins == 0 {
        said += ", none with the scope admin: pools, workers and reply_to are out of reach over HTTP";
    }
    if !health.ending.is_empty() {
        let ending = health.ending.iter().map(|key| {
            let hours = key.ends_in.as_secs() / 3_600;
            let time = if hours < 48 { format!("{hours} h") } else { format!("{} days", hours / 24) };
            format!("{} of {} in {time}", key.id, key.tenant)
        });
        let ending = ending.collect::<Vec<_>>().join(", ");
        said += &format!("; the first to end: {ending} (`producer keys create` makes another one)");
    }
    said
}

fn log(health: &AccessHealth) -> Result<String, String> {
    if !health.missing_guards.is_empty() {
        return Err(format!(
            "its guards are not there or disabled, so rows can be changed: {}; enable these triggers of harness_audit_log",
            health.missing_guards.join(", ")
        ));
    }
    match health.broken_row {
        Some(row) => Err(format!(
            "row {row} does not fit: it was changed, or the row before it was taken out; `producer audit` looks at all rows"
        )),
        None => Ok(format!("its newest {} rows are one chain", health.rows)),
    }
}

#[cfg(test)]
mod tests {
    use store::EndingKey;

    use super::*;

    #[test]
    fn a_key_that_ends_and_a_missing_admin_are_named() {
        let health = AccessHealth { keys: 4, live: 2, tenants: 2, admins: 1, ..AccessHealth::default() };
        assert_eq!(keys(&health), "2 keys of 2 tenants are valid");
        let ends = |id: &str, hours: u64| EndingKey {
            id: id.to_owned(),
            tenant: "acme".to_owned(),
            ends_in: Duration::from_secs(hours * 3_600),
        };
        let ending = AccessHealth { admins: 0, ending: vec![ends("k1", 5), ends("k2", 100)], ..health };
        let said = keys(&ending);
        assert!(said.contains("none with the scope admin"), "{said}");
        assert!(said.contains("k1 of acme in 5 h, k2 of acme in 4 days"), "{said}");
        assert!(keys(&AccessHealth { live: 0, ..ending }).starts_with("no key is valid"));
    }
}
