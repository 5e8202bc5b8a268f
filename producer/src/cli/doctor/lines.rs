//! The check of `producer doctor` on pools with a line.

use std::time::Duration;

use store::{LineBounds, PoolView, Store, StoreError};

use super::{Checklist, chain};

/// A line that nobody has looked at for so long has no admitter.
const LATE_AFTER: Duration = Duration::from_secs(60);

pub(super) async fn look(store: &Store, list: &mut Checklist) {
    let read = async { Ok((store.pools().await?, store.line_bounds().await?)) };
    let found = read.await.map_err(|error: StoreError| chain(error));
    match found.and_then(|(pools, bounds)| fare(&pools, &bounds)) {
        Ok(None) => {}
        Ok(Some(fine)) => _ = list.report("lines", Ok(fine)),
        Err(fault) => _ = list.report("lines", Err(fault)),
    }
}

/// Returns how lines fare, if there are any.
fn fare(pools: &[PoolView], bounds: &LineBounds) -> Result<Option<String>, String> {
    let lined: Vec<&PoolView> = pools.iter().filter(|pool| pool.line).collect();
    if lined.is_empty() {
        return match bounds.limits.is_empty() && bounds.max_running.is_empty() {
            true => Ok(None),
            false => Err("limits of keys or `max_running` of tenants are set, which hold only in pools with a line, and no pool \
                          has one (`producer pools line POOL on` gives it one)"
                .to_owned()),
        };
    }
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
    Ok(Some(format!(
        "pools with a line: {}; jobs that wait there: {waiting}, held back of them: {held}",
        lined.len()
    )))
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
        let fare = |pools: &[PoolView]| fare(pools, &LineBounds::default());
        assert_eq!(
            fare(&[pool(1)]).unwrap().unwrap(),
            "pools with a line: 1; jobs that wait there: 5, held back of them: 2"
        );
        assert!(fare(&[pool(1), pool(60)]).unwrap_err().contains("the line of pool gpu for 60 s"));
        assert!(fare(&[PoolView { line: false, ..pool(600) }, pool(1)]).is_ok());
    }

    #[test]
    fn limits_that_hold_nowhere_are_a_fault() {
        let pool = |line| PoolView { pool: "gpu".parse().unwrap(), line, seen: None, unseen: Duration::ZERO };
        let limit = LineBounds {
            limits: [(("acme".to_owned(), "gpu".to_owned()), 3)].into(),
            ..LineBounds::default()
        };
        let bound = LineBounds { max_running: [("acme".to_owned(), 3)].into(), ..LineBounds::default() };
        for bounds in [limit, bound] {
            assert!(fare(&[pool(false)], &bounds).unwrap_err().contains("no pool has one"));
            assert!(fare(&[pool(false), pool(true)], &bounds).is_ok());
        }
        assert_eq!(fare(&[pool(false)], &LineBounds::default()), Ok(None));
    }
}
