//! What was looked up, for a few seconds: keys, and ids that no key has.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OnceCell, Semaphore, SemaphorePermit};
use tokio::time::Instant;

/// How long an answer counts, from before it was asked for. A look-up is bounded, so a revocation works within 5 s.
pub(super) const COUNTS_FOR: Duration = Duration::from_secs(4);
/// How many answers are kept. A caller that makes up ids cannot use more memory than that.
const CAPACITY: usize = 10_000;
/// How many ids are looked up at a time that no key had a moment ago. A caller that makes up ids takes no more than that
/// of the ledger, and keys that are in use do not wait behind it.
const STRANGERS: usize = 2;

/// An answer, or a look-up under way: callers that ask for the same id share it.
struct Answer<T> {
    asked: Instant,
    found: OnceCell<Option<Arc<T>>>,
    /// Whether there was something under this id when it was asked for before.
    was_known: bool,
}

impl<T> Answer<T> {
    fn counts(&self) -> bool {
        self.asked.elapsed() < COUNTS_FOR
    }

    /// Whether there is something under this id, as far as that is known.
    fn is_known(&self) -> bool {
        self.found.get().map_or(self.was_known, Option::is_some)
    }
}

pub(super) struct Cache<T> {
    answers: Mutex<HashMap<String, Arc<Answer<T>>>>,
    strangers: Semaphore,
}

impl<T> Cache<T> {
    pub(super) fn new() -> Self {
        Cache { answers: Mutex::default(), strangers: Semaphore::new(STRANGERS) }
    }

    /// Returns what there is under an id, and the moment from which it may be out of date. A look-up that fails is not
    /// kept.
    pub(super) async fn get<E>(
        &self,
        id: &str,
        look_up: impl AsyncFnOnce() -> Result<Option<T>, E>,
    ) -> Result<Option<(Arc<T>, Instant)>, E> {
        let answer = self.answer(id);
        let found = answer
            .found
            .get_or_try_init(async || {
                let _turn = if answer.was_known { None } else { self.turn().await };
                Ok(look_up().await?.map(Arc::new))
            })
            .await?;
        Ok(found.clone().map(|found| (found, answer.asked)))
    }

    /// Waits for a turn to look up something that was not there a moment ago.
    pub(super) async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        // The semaphore is never closed.
        self.strangers.acquire().await.ok()
    }

    fn answer(&self, id: &str) -> Arc<Answer<T>> {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        let before = answers.get(id);
        if let Some(answer) = before.filter(|answer| answer.counts()) {
            return answer.clone();
        }
        let was_known = before.is_some_and(|answer| answer.is_known());
        if answers.len() >= CAPACITY {
            make_room(&mut answers);
        }
        let answer = Arc::new(Answer { asked: Instant::now(), found: OnceCell::new(), was_known });
        answers.insert(id.to_owned(), answer.clone());
        answer
    }
}

/// Drops ids that no key has, including those that are looked up at the moment; if that is little, what no longer counts;
/// if that is little too, all.
fn make_room<T>(answers: &mut HashMap<String, Arc<Answer<T>>>) {
    answers.retain(|_, answer| answer.is_known());
    if answers.len() > CAPACITY / 2 {
        answers.retain(|_, answer| answer.counts());
    }
    if answers.len() > CAPACITY / 2 {
        answers.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    /// Looks up what a ledger would hold, and counts how often.
    struct Ledger {
        holds: Mutex<Option<u32>>,
        asked: AtomicU32,
    }

    impl Ledger {
        fn new(holds: Option<u32>) -> Ledger {
            Ledger { holds: Mutex::new(holds), asked: AtomicU32::new(0) }
        }

        async fn find(&self) -> Result<Option<u32>, Infallible> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            let found = *self.holds.lock().unwrap_or_else(PoisonError::into_inner);
            tokio::time::sleep(Duration::from_millis(800)).await;
            Ok(found)
        }

        fn asked(&self) -> u32 {
            self.asked.load(Ordering::Relaxed)
        }
    }

    async fn get(cache: &Cache<u32>, id: &str, ledger: &Ledger) -> Option<u32> {
        let found = cache.get(id, async || ledger.find().await).await.expect("never fails");
        found.map(|(found, _)| *found)
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_is_seen_within_five_seconds_and_callers_share_a_look_up() {
        for (before, after) in [(Some(1), None), (None, Some(1))] {
            let (cache, ledger) = (Cache::new(), Ledger::new(before));
            let both = tokio::join!(get(&cache, "a", &ledger), get(&cache, "a", &ledger));
            assert_eq!((both, ledger.asked()), ((before, before), 1));
            *ledger.holds.lock().unwrap_or_else(PoisonError::into_inner) = after;
            let changed = Instant::now();
            while get(&cache, "a", &ledger).await != after {
                assert!(changed.elapsed() < Duration::from_secs(5));
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            assert_eq!(ledger.asked(), 2);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_look_up_that_fails_is_not_kept() {
        let cache = Cache::new();
        assert_eq!(cache.get("a", async || Err::<Option<u32>, _>("away")).await, Err("away"));
        assert_eq!(get(&cache, "a", &Ledger::new(Some(1))).await, Some(1));
    }

    #[tokio::test(start_paused = true)]
    async fn made_up_ids_take_bounded_memory_and_push_no_key_out() {
        let (cache, ledger) = (Cache::new(), Ledger::new(Some(1)));
        get(&cache, "real", &ledger).await;
        for id in 0..3 * CAPACITY {
            let none = cache.get(&id.to_string(), async || Ok::<_, Infallible>(None)).await;
            assert!(none.is_ok_and(|found| found.is_none()));
            let kept = cache.answers.lock().unwrap_or_else(PoisonError::into_inner).len();
            assert!(kept <= CAPACITY);
        }
        get(&cache, "real", &ledger).await;
        assert_eq!(ledger.asked(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn made_up_ids_are_looked_up_few_at_a_time_and_keys_in_use_do_not_wait_for_them() {
        let (cache, ledger, silent) = (Cache::new(), Ledger::new(Some(1)), AtomicU32::new(0));
        get(&cache, "real", &ledger).await;
        let strangers = (0..2 * CAPACITY).map(|id| {
            let (cache, silent) = (&cache, &silent);
            async move {
                let never = async || {
                    silent.fetch_add(1, Ordering::Relaxed);
                    std::future::pending::<Result<Option<u32>, Infallible>>().await
                };
                cache.get(&id.to_string(), never).await
            }
        });
        let known = async {
            tokio::time::sleep(Duration::from_millis(1)).await;
            // Neither were they more than the cache holds, nor do they hold up the next look-up.
            get(&cache, "real", &ledger).await;
            assert_eq!(ledger.asked(), 1);
            tokio::time::sleep(COUNTS_FOR).await;
            assert_eq!(get(&cache, "real", &ledger).await, Some(1));
            assert_eq!(ledger.asked(), 2);
        };
        tokio::select! {
            () = known => {}
            _ = futures::future::join_all(strangers) => unreachable!("they are not answered"),
        }
        assert!(silent.load(Ordering::Relaxed) <= 2, "{silent:?}");
    }
}
