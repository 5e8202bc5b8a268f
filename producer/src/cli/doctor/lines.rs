//! The check of `producer doctor` on pools with a line.

use std::time::Duration;

use store::{PoolView, Store};

use super::{Checklist, chain};

/// A line that nobody has looked at for so long has no admitter.
const LATE_AFTER: Duration = Duration::from_secs(60);

pub(super) async fn look(store: &Store, list: &mut Checklist) {
    match store.pools().await {
        Ok(pools) if !pools.iter().any(|pool| pool.line) => {}
        Ok(pools) => _ = list.report("lines", fare(&pools)),
        Err(error) => _ = list.report("lines", Err(chain(error))),
    }
}

fn fare(pools: &[PoolView]) -> Result<String, String> {
    let lined: Vec<&PoolView> = pools.iter().filter(|pool| pool.line).collect();
    if let Some(PoolView { pool, unseen, .. }) = lined.iter().find(|pool| pool.unseen >= LATE_AFTER) {
        return Err(format!(
            "nobody has looked at the line of pool {pool} for {} s: no worker and no relay runs, or the broker is away \
             (`producer relay` runs one)",
            unseen.as_secs()
        ));
    }
    let seen = || lined.iter().filter_map(|pool| pool.seen.as_ref());
    let waiting: u64 = seen().map(|seen| seen.waiting()).sum();
    let held: u64 = seen().map(|seen| seen.waiting() - seen.could_run).sum();
    Ok(format!(
        "pools with a line: {}; jobs that wait there: {waiting}, held back of them: {held}",
        lined.len()
    ))
}

#[cfg(test)]
mod tests {
    use store::PoolSeen;

    use super::*;

    #[test]
    fn a_line_that_nobody_looks_at_is_a_fault() {
        let pool = |unseen_s| PoolView {
            pool: "gpu".parse().unwrap(),
            line: true,
            seen: Some(PoolSeen { normal: 5, could_run: 3, ..PoolSeen::default() }),
            unseen: Duration::from_secs(unseen_s),
        };
        assert_eq!(
            fare(&[pool(1)]).unwrap(),
            "pools with a line: 1; jobs that wait there: 5, held back of them: 2"
        );
        assert!(fare(&[pool(1), pool(60)]).unwrap_err().contains("the line of pool gpu for 60 s"));
        assert!(fare(&[PoolView { line: false, ..pool(600) }, pool(1)]).is_ok());
    }
}
