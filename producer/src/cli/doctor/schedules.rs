//! The check of `producer doctor` on schedules.

use std::time::Duration;

use store::{ScheduleBacklog, Store};

use super::{Checklist, chain};

/// A schedule that has been due for so long waits for more than the next look.
const LATE_AFTER: Duration = Duration::from_secs(60);

pub(super) async fn look(store: &Store, list: &mut Checklist) {
    match store.schedule_backlog().await {
        Ok(ScheduleBacklog { active: 0, paused: 0, .. }) => {}
        Ok(backlog) => _ = list.report("schedules", fares(backlog)),
        Err(error) => _ = list.report("schedules", Err(chain(error))),
    }
}

fn fares(backlog: ScheduleBacklog) -> Result<String, String> {
    let ScheduleBacklog { active, paused, late } = backlog;
    if late >= LATE_AFTER {
        return Err(format!(
            "a schedule has been due for {} s: no worker and no relay runs, or one of an older release leads",
            late.as_secs()
        ));
    }
    Ok(format!("{active} schedules fire, {paused} are paused"))
}
