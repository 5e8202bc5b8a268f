//! A ledger in memory: one limit, the reservations, the settlements and the stored answers.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use job::Usd;
use model::{
    Answer, Call, Checkpoints, Given, Ledger, Outcome, Purchase, RequestKey, Reserve, Settlement,
    Unavailable, WithoutRoom,
};
use tokio::sync::{Notify, Semaphore};

/// The accounts of one job. Its attempts share them.
#[derive(Default)]
pub struct Accounts {
    pub books: Mutex<Books>,
    /// Settlements wait for it, if there is one.
    pub gate: Mutex<Option<Arc<Semaphore>>>,
    settled: Notify,
}

#[derive(Default)]
pub struct Books {
    pub limit: Option<u64>,
    pub down: bool,
    /// Whether lines of the program never become durable.
    pub undurable: bool,
    /// How many requests wait for them.
    pub waits_for_lines: u32,
    pub reserve: Option<Reserve>,
    /// When a busy request is to ask again.
    pub busy_retry_s: u64,
    /// How many reservations were asked for.
    pub asked: u64,
    /// How many calls were refused for good.
    pub given_up: u64,
    pub held: HashMap<uuid::Uuid, u64>,
    pub spent: u64,
    pub calls: Vec<(Call, Settlement)>,
    pub answers: HashMap<RequestKey, Answer>,
    /// What other jobs may be given, if anything.
    pub cache: Option<HashMap<[u8; 32], Answer>>,
    pub purchases: Vec<(Purchase, Outcome)>,
    /// How far the attempt has come.
    pub checkpoints: Checkpoints,
}

/// What one attempt sees of them: answers of earlier attempts only.
pub struct Own {
    accounts: Arc<Accounts>,
    earlier: HashMap<RequestKey, Answer>,
}

impl Accounts {
    pub fn attempt(self: &Arc<Self>) -> Arc<Own> {
        let earlier = self.books(|books| books.answers.clone());
        Arc::new(Own { accounts: self.clone(), earlier })
    }

    pub fn books<T>(&self, look: impl FnOnce(&mut Books) -> T) -> T {
        look(&mut self.books.lock().expect("not poisoned"))
    }

    /// Returns the settlements, once there are this many.
    pub async fn settled(&self, count: usize) -> Vec<(Call, Settlement)> {
        let all = async {
            loop {
                let changed = self.settled.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                let calls = self.books(|books| books.calls.clone());
                if calls.len() >= count {
                    return calls;
                }
                changed.await;
            }
        };
        tokio::time::timeout(tests::TIMEOUT, all).await.expect("settled in time")
    }

    /// Returns the one outcome there is.
    pub async fn outcome(&self) -> Outcome {
        self.settled(1).await.remove(0).1.outcome
    }
}

impl Own {
    fn hold(&self, id: uuid::Uuid, most: u64) -> Result<Reserve, Unavailable> {
        self.accounts.books(|books| {
            if books.down {
                return Err(Unavailable("Postgres is away".to_owned()));
            }
            if let Some(answer) = &books.reserve {
                return Ok(answer.clone());
            }
            books.asked += 1;
            let limit = books.limit.unwrap_or(u64::MAX);
            let held: u64 = books.held.values().sum();
            if books.spent + most > limit {
                let room = Usd::from_micros(limit.saturating_sub(books.spent));
                return Ok(Reserve::Spent { limit: "the job's $1".to_owned(), room });
            }
            if books.spent + held + most > limit {
                let retry_after = Duration::from_secs(books.busy_retry_s);
                return Ok(Reserve::Busy { behind: "job".to_owned(), retry_after });
            }
            books.held.insert(id, most);
            Ok(Reserve::Granted)
        })
    }
}

#[async_trait]
impl Ledger for Own {
    async fn until_durable(&self) {
        let waits = self.accounts.books(|books| {
            books.waits_for_lines += u32::from(books.undurable);
            books.undurable
        });
        if waits {
            std::future::pending::<()>().await;
        }
    }

    async fn reserve(&self, call: &Call) -> Result<Reserve, Unavailable> {
        match self.look_up(call).await? {
            Some(given) => Ok(Reserve::Answered(given)),
            None => self.hold(call.id, call.bound.cost.micros()),
        }
    }

    async fn reserve_purchase(&self, purchase: &Purchase) -> Result<Reserve, Unavailable> {
        self.hold(purchase.id, purchase.most.micros())
    }

    fn checkpoints(&self) -> Checkpoints {
        self.accounts.books(|books| books.checkpoints)
    }

    fn note_spent(&self, _: &WithoutRoom) {
        self.accounts.books(|books| books.given_up += 1);
    }

    async fn settle(&self, call: &Call, settlement: Settlement) -> Result<(), Unavailable> {
        let gate = self.accounts.gate.lock().expect("not poisoned").clone();
        if let Some(gate) = gate {
            gate.acquire().await.expect("open").forget();
        }
        self.accounts.books(|books| {
            let held = books.held.remove(&call.id).unwrap_or_default();
            books.spent += match &settlement.outcome {
                Outcome::Settled(settled) => settled.cost.micros(),
                Outcome::Unknown(_) => held,
                Outcome::Free => 0,
            };
            if let Some(answer) = &settlement.answer {
                books.answers.insert(call.request, answer.clone());
                if let (Some(cache), Some(key), true) =
                    (&mut books.cache, call.cache_key, settlement.is_shareable)
                {
                    cache.insert(key, answer.clone());
                }
            }
            books.calls.push((call.clone(), settlement));
        });
        self.accounts.settled.notify_waiters();
        Ok(())
    }

    async fn settle_purchase(&self, purchase: &Purchase, outcome: Outcome) -> Result<(), Unavailable> {
        self.accounts.books(|books| {
            let held = books.held.remove(&purchase.id).unwrap_or_default();
            books.spent += match &outcome {
                Outcome::Settled(settled) => settled.cost.micros(),
                Outcome::Unknown(_) => held,
                Outcome::Free => 0,
            };
            books.purchases.push((purchase.clone(), outcome));
        });
        self.accounts.settled.notify_waiters();
        Ok(())
    }

    fn counts_in(&self, limit: &str) -> bool {
        limit == "job"
    }

    async fn look_up(&self, call: &Call) -> Result<Option<Given>, Unavailable> {
        self.accounts.books(|books| {
            if books.down {
                return Err(Unavailable("Postgres is away".to_owned()));
            }
            let earlier = self.earlier.get(&call.request).map(|answer| (answer.clone(), false));
            let cached = || Some((books.cache.as_ref()?.get(&call.cache_key?)?.clone(), true));
            Ok(earlier.or_else(cached).map(|(answer, cached)| Given {
                answer,
                cached,
                paid: job::Usage::default(),
            }))
        })
    }
}
