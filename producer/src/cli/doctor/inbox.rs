//! The check of `producer doctor` on jobs that services enqueue by SQL.

use std::time::Duration;

use store::{InboxBacklog, RoleView, Store};

use super::{Checklist, chain};

/// A job that has waited for so long waits for more than the next look.
const LATE_AFTER: Duration = Duration::from_secs(60);

pub(super) async fn look(store: &Store, list: &mut Checklist) {
    let (roles, backlog) = (store.roles().await, store.inbox_backlog().await);
    match (roles, backlog) {
        (Ok(roles), Ok(backlog)) if roles.is_empty() && backlog.jobs == 0 => {}
        (Ok(roles), Ok(backlog)) => _ = list.report("inbox", fares(&roles, backlog)),
        (Err(error), _) | (_, Err(error)) => _ = list.report("inbox", Err(chain(error))),
    }
}

fn fares(roles: &[RoleView], backlog: InboxBacklog) -> Result<String, String> {
    let (jobs, waited_s) = (backlog.jobs, backlog.oldest.as_secs());
    if backlog.oldest >= LATE_AFTER {
        return Err(format!(
            "{jobs} jobs enqueued by SQL wait to be taken in, for up to {waited_s} s: no worker and no relay runs, or their tenant \
             has as many waiting jobs as it may have (`producer tenants list`)"
        ));
    }
    let denied: Vec<&str> =
        roles.iter().filter(|role| !role.may_call).map(|role| role.role.as_str()).collect();
    if !denied.is_empty() {
        let denied = denied.join(", ");
        return Err(format!(
            "Postgres does not let these roles call harness_enqueue: {denied}; `producer roles add` grants it, `producer roles \
             remove` forgets a role that is gone"
        ));
    }
    Ok(format!("{} roles may enqueue by SQL, {jobs} jobs wait to be taken in", roles.len()))
}
