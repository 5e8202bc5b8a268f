//! Lists, as streams that read page after page.

use std::collections::{BTreeMap, VecDeque};
use std::pin::pin;

use futures::stream::{Stream, TryStreamExt, try_unfold};
use job::{JobState, Label, Name};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use url::form_urlencoded::Serializer;

use crate::client::Client;
use crate::error::Error;
use crate::send::Ask;
use crate::view::{JobEntry, SessionEntry, SpendEntry};

/// Entries of a page.
const PAGE: usize = 500;

/// Which jobs; what is empty does not count.
#[derive(Clone, Debug, Default)]
pub struct JobFilter {
    /// In one of these states.
    pub states: Vec<JobState>,
    /// Of this agent.
    pub agent: Option<Name>,
    /// Of this session.
    pub session: Option<Name>,
    /// Of this pool.
    pub pool: Option<Name>,
    /// With these labels, all of them; at most 8.
    pub labels: Vec<Label>,
    /// Submitted at this time or later, by the time in the job's id; RFC 3339.
    pub since: Option<String>,
    /// Submitted before this time, likewise.
    pub before: Option<String>,
}

/// Which sessions; what is empty does not count. Times are RFC 3339, as entries show them.
#[derive(Clone, Debug, Default)]
pub struct SessionFilter {
    /// Whose first job was of this agent.
    pub agent: Option<Name>,
    /// Created at this time or later.
    pub created_since: Option<String>,
    /// Created before this time.
    pub created_before: Option<String>,
    /// Last updated, by the end of a job, at this time or later.
    pub updated_since: Option<String>,
    /// Last updated before this time.
    pub updated_before: Option<String>,
}

/// What sums of spend are taken by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpendBy {
    /// The day, in the time zone of the fleet's budgets.
    Day,
    /// The agent.
    Agent,
    /// The user.
    User,
    /// The model that the request named.
    Model,
    /// The job.
    Job,
}

impl SpendBy {
    fn as_str(self) -> &'static str {
        match self {
            SpendBy::Day => "day",
            SpendBy::Agent => "agent",
            SpendBy::User => "user",
            SpendBy::Model => "model",
            SpendBy::Job => "job",
        }
    }

    fn of(self, entry: &SpendEntry) -> Option<String> {
        match self {
            SpendBy::Day => entry.day.clone(),
            SpendBy::Agent => entry.agent_id.clone(),
            SpendBy::User => entry.user_id.clone(),
            SpendBy::Model => entry.model.clone(),
            SpendBy::Job => entry.job_id.clone(),
        }
    }
}

#[derive(Deserialize)]
pub(crate) struct Page<T> {
    pub(crate) items: Vec<T>,
    #[serde(default)]
    next: Option<String>,
}

/// Entries that were read, and the query of the next page.
type Reading<T> = (VecDeque<T>, Option<String>);

impl JobFilter {
    fn query(&self, limit: usize) -> Vec<(&'static str, String)> {
        let mut query = limited(limit);
        if !self.states.is_empty() {
            let states: Vec<&str> = self.states.iter().map(|state| state.as_str()).collect();
            query.push(("state", states.join(",")));
        }
        for (name, value) in [("agent", &self.agent), ("session", &self.session), ("pool", &self.pool)] {
            query.extend(value.as_ref().map(|value| (name, value.to_string())));
        }
        query.extend(self.labels.iter().map(|label| ("label", label.to_string())));
        for (name, time) in [("since", &self.since), ("before", &self.before)] {
            query.extend(time.clone().map(|time| (name, time)));
        }
        query
    }
}

impl SessionFilter {
    fn query(&self, limit: usize) -> Vec<(&'static str, String)> {
        let mut query = limited(limit);
        query.extend(self.agent.as_ref().map(|agent| ("agent", agent.to_string())));
        for (name, time) in [
            ("created_since", &self.created_since),
            ("created_before", &self.created_before),
            ("updated_since", &self.updated_since),
            ("updated_before", &self.updated_before),
        ] {
            query.extend(time.clone().map(|time| (name, time)));
        }
        query
    }
}

impl Client {
    /// Jobs, newest first. `at_a_time` is the size of a page, 500 at most.
    pub fn jobs(
        &self,
        filter: &JobFilter,
        at_a_time: usize,
    ) -> impl Stream<Item = Result<JobEntry, Error>> + use<> {
        self.pages("/v1/jobs", filter.query(at_a_time))
    }

    /// Failed jobs that were neither redriven nor dropped, newest first.
    pub fn dead(
        &self,
        filter: &JobFilter,
        at_a_time: usize,
    ) -> impl Stream<Item = Result<JobEntry, Error>> + use<> {
        let filter = JobFilter { states: Vec::new(), ..filter.clone() };
        self.pages("/v1/dead", filter.query(at_a_time))
    }

    /// Sessions, by name. `at_a_time` is the size of a page, 500 at most.
    pub fn sessions(
        &self,
        filter: &SessionFilter,
        at_a_time: usize,
    ) -> impl Stream<Item = Result<SessionEntry, Error>> + use<> {
        self.pages("/v1/sessions", filter.query(at_a_time))
    }

    /// Sums up what model calls have cost in the last days, today among them; by day, if nothing is named. The API looks at
    /// 10,000 rows at a time, so this may be many requests.
    pub async fn spend(&self, by: &[SpendBy], days: u32) -> Result<Vec<SpendEntry>, Error> {
        let by = if by.is_empty() { &[SpendBy::Day] } else { by };
        let names: Vec<&str> = by.iter().map(|by| by.as_str()).collect();
        let query = vec![("by", names.join(",")), ("days", days.to_string())];
        let mut parts = pin!(self.pages::<SpendEntry>("/v1/spend", query));
        let mut sums = BTreeMap::<Vec<Option<String>>, SpendEntry>::new();
        while let Some(part) = parts.try_next().await? {
            let of = by.iter().map(|by| by.of(&part)).collect();
            match sums.get_mut(&of) {
                Some(sum) => sum.add(&part),
                None => drop(sums.insert(of, part)),
            }
        }
        Ok(sums.into_values().collect())
    }

    pub(crate) fn pages<T: DeserializeOwned>(
        &self,
        path: &'static str,
        query: Vec<(&'static str, String)>,
    ) -> impl Stream<Item = Result<T, Error>> + use<T> {
        let client = self.clone();
        let first: Reading<T> = (VecDeque::new(), Some(asked(path, &query, None)));
        try_unfold(first, move |(mut entries, mut next)| {
            let (client, query) = (client.clone(), query.clone());
            async move {
                loop {
                    if let Some(entry) = entries.pop_front() {
                        return Ok(Some((entry, (entries, next))));
                    }
                    // A page may be empty and have a next one.
                    let Some(asking) = next.take() else { return Ok(None) };
                    let page: Page<T> = client.api.ask(Ask::get(&asking)).await?;
                    entries = page.items.into();
                    next = page.next.map(|cursor| asked(path, &query, Some(&cursor)));
                }
            }
        })
    }
}

/// The size of a page, as a query says it.
fn limited(limit: usize) -> Vec<(&'static str, String)> {
    vec![("limit", limit.clamp(1, PAGE).to_string())]
}

/// A path with its query, of the page behind a cursor.
pub(crate) fn asked(path: &str, query: &[(&'static str, String)], cursor: Option<&str>) -> String {
    let start = path.len() + 1;
    let mut written = Serializer::for_suffix(format!("{path}?"), start);
    written.extend_pairs(query);
    written.extend_pairs(cursor.map(|cursor| ("cursor", cursor)));
    written.finish()
}
