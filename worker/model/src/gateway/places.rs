//! How many calls a provider is sent at a time: as many as it takes.
//!
//! The limit grows by one after as many answers as it counts, if all places were taken, and is halved when the provider has
//! too much to do (429, 503, 529, or no connection in time). Calls that began before that halve it no further, because
//! they say the same. This is the rule by which TCP shares a line (additive increase, multiplicative decrease; Chiu and
//! Jain, 1989). Who waits for a place gets it in order.

use std::sync::{Arc, Mutex};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::lock;

/// The places of one provider.
pub(super) struct Places {
    /// Has one permit for each place: those that are free, and those that are taken.
    semaphore: Arc<Semaphore>,
    most: usize,
    state: Mutex<State>,
}

struct State {
    limit: usize,
    /// Taken places that go when they are free again.
    surplus: usize,
    /// Answers since the limit changed.
    answers: usize,
    /// How often it was halved.
    halved: u64,
}

/// How a provider fares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// How many calls it is sent at a time.
    pub limit: usize,
    /// How many are under way.
    pub in_flight: usize,
}

/// A place that is taken until this is dropped.
pub(super) struct Slot {
    places: Arc<Places>,
    permit: Option<OwnedSemaphorePermit>,
    was_last: bool,
    halved: u64,
}

impl Places {
    /// Begins with as many as there may be at most.
    pub fn new(most: usize) -> Arc<Places> {
        let state = State { limit: most, surplus: 0, answers: 0, halved: 0 };
        Arc::new(Places { semaphore: Arc::new(Semaphore::new(most)), most, state: Mutex::new(state) })
    }

    /// Returns whether a place is free now.
    pub fn has_room(&self) -> bool {
        self.semaphore.available_permits() > 0
    }

    /// Waits for a place.
    pub async fn take(self: &Arc<Places>) -> Option<Slot> {
        // It is never closed.
        let permit = self.semaphore.clone().acquire_owned().await.ok()?;
        let was_last = self.semaphore.available_permits() == 0;
        let halved = lock(&self.state).halved;
        Some(Slot { places: self.clone(), permit: Some(permit), was_last, halved })
    }

    pub fn load(&self) -> Load {
        let state = lock(&self.state);
        let all = state.limit + state.surplus;
        Load { limit: state.limit, in_flight: all.saturating_sub(self.semaphore.available_permits()) }
    }
}

impl Slot {
    /// Notes what became of a request: its answer, or that there was none.
    pub fn heard(&self, sent: &reqwest::Result<reqwest::Response>) {
        match sent {
            Ok(answer) => self.answered(Some(answer.status().as_u16())),
            Err(error) if error.is_timeout() => self.answered(None),
            Err(_) => {}
        }
    }

    /// Notes what the provider answered: a status, or that there was no connection in time.
    pub fn answered(&self, status: Option<u16>) {
        let state = &mut *lock(&self.places.state);
        if self.halved != state.halved {
            return;
        }
        if status.is_none_or(|status| matches!(status, 429 | 503 | 529)) {
            let limit = (state.limit / 2).max(1);
            let cut = state.limit - limit;
            state.surplus += cut - self.places.semaphore.forget_permits(cut);
            (state.limit, state.answers) = (limit, 0);
            state.halved += 1;
        } else if self.was_last && state.limit < self.places.most {
            state.answers += 1;
            if state.answers >= state.limit {
                (state.limit, state.answers) = (state.limit + 1, 0);
                match state.surplus {
                    0 => self.places.semaphore.add_permits(1),
                    _ => state.surplus -= 1,
                }
            }
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut state = lock(&self.places.state);
        if state.surplus > 0
            && let Some(permit) = self.permit.take()
        {
            state.surplus -= 1;
            permit.forget();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Take,
        Answer(usize, Option<u16>),
        Leave(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        let status =
            prop_oneof![Just(Some(200)), Just(Some(200)), Just(Some(400)), Just(Some(529)), Just(None)];
        prop_oneof![
            3 => Just(Step::Take),
            3 => (0..64_usize, status).prop_map(|(at, status)| Step::Answer(at, status)),
            2 => (0..64_usize).prop_map(Step::Leave),
        ]
    }

    proptest! {
        #[test]
        fn no_more_calls_begin_than_the_limit_says_and_no_place_is_lost(
            most in 1..12_usize,
            steps in prop::collection::vec(step(), 1..200),
        ) {
            let places = Places::new(most);
            let mut slots: Vec<Slot> = Vec::new();
            for step in steps {
                let before = places.load();
                match step {
                    Step::Take => {
                        let taken = places.take().now_or_never().flatten();
                        prop_assert_eq!(taken.is_some(), before.in_flight < before.limit);
                        slots.extend(taken);
                    }
                    Step::Answer(at, status) if !slots.is_empty() => {
                        let (at, limit) = (at % slots.len(), before.limit);
                        slots[at].answered(status);
                        let now = places.load().limit;
                        match status {
                            Some(200 | 400) => prop_assert!(now == limit || now == limit + 1),
                            _ => prop_assert!(now == limit || now == (limit / 2).max(1)),
                        }
                    }
                    Step::Leave(at) if !slots.is_empty() => drop(slots.swap_remove(at % slots.len())),
                    _ => {}
                }
                let now = places.load();
                prop_assert!((1..=most).contains(&now.limit));
                prop_assert_eq!(now.in_flight, slots.len());
            }
            slots.clear();
            let limit = places.load().limit;
            let all: Vec<_> = (0..=most).map_while(|_| places.take().now_or_never().flatten()).collect();
            prop_assert_eq!(all.len(), limit);
        }
    }

    #[tokio::test]
    async fn one_burst_halves_it_once_and_a_window_of_answers_gives_one_more() {
        let places = Places::new(8);
        let mut slots = Vec::new();
        for _ in 0..8 {
            slots.extend(places.take().await);
        }
        slots.iter().for_each(|slot| slot.answered(Some(529)));
        assert_eq!(places.load(), Load { limit: 4, in_flight: 8 });
        drop(slots);
        for (answers, limit) in [(4, 5), (5, 6)] {
            for _ in 0..answers {
                assert_eq!(places.load().limit, limit - 1);
                let mut slots = Vec::new();
                while let Some(slot) = places.take().now_or_never().flatten() {
                    slots.push(slot);
                }
                slots.pop().expect("a place").answered(Some(200));
            }
            assert_eq!(places.load().limit, limit);
        }
        places.take().await.expect("a place").answered(Some(200));
        assert_eq!(places.load(), Load { limit: 6, in_flight: 0 }, "there were free places");
    }

    #[tokio::test]
    async fn a_place_that_is_free_goes_to_the_one_that_has_waited_longest() {
        let places = Places::new(1);
        let taken = places.take().await;
        let (mut first, mut second) = (Box::pin(places.take()), Box::pin(places.take()));
        assert!(futures::poll!(&mut first).is_pending());
        assert!(futures::poll!(&mut second).is_pending());
        drop(taken);
        assert!(futures::poll!(&mut second).is_pending());
        assert!(futures::poll!(&mut first).is_ready());
    }
}
