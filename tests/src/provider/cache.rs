//! The cache of prompts: which prefix of a request it has seen before.
//!
//! Messages caches what is marked (`cache_control`), and looks at most 20 blocks back from a mark; OpenAI caches by
//! itself, in steps of 128 tokens. Both begin at 1,024 tokens. (Docs: Prompt caching of both.)

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, Instant};

use super::price::Used;
use super::request::{Asking, Ttl};
use super::wire::Speaks;

const LEAST: u64 = 1_024;
const LOOK_BACK: usize = 20;
const STEP: u64 = 128;
const SHORT: Duration = Duration::from_secs(300);
const LONG: Duration = Duration::from_secs(3_600);

#[derive(Debug, Default)]
pub(super) struct Cache(HashMap<u64, Instant>);

/// The end of a prefix.
struct Boundary {
    hash: u64,
    tokens: u64,
}

impl Cache {
    /// Returns the input of a request by class, and keeps what it writes.
    pub fn input(&mut self, asking: &Asking, bills_writes: bool, now: Instant) -> Used {
        let mut hasher = DefaultHasher::new();
        (asking.speaks, &asking.model).hash(&mut hasher);
        let mut tokens = 0;
        let boundaries: Vec<Boundary> = (asking.segments.iter())
            .map(|segment| {
                segment.text.hash(&mut hasher);
                tokens += segment.tokens();
                Boundary { hash: hasher.finish(), tokens }
            })
            .collect();
        match asking.speaks {
            Speaks::Messages => self.marked(asking, &boundaries, now),
            Speaks::Chat | Speaks::Responses => self.unasked(&boundaries, bills_writes, now),
        }
    }

    fn marked(&mut self, asking: &Asking, boundaries: &[Boundary], now: Instant) -> Used {
        let all = boundaries.last().map_or(0, |last| last.tokens);
        let marks: Vec<(usize, Ttl)> = asking.marks();
        let Some((last, ttl)) = marks.last().copied().filter(|(last, _)| boundaries[*last].tokens >= LEAST)
        else {
            return Used { input: all, ..Used::default() };
        };
        let back = marks.iter().flat_map(|(mark, _)| mark.saturating_sub(LOOK_BACK - 1)..=*mark);
        let found = back.filter(|at| self.lives(boundaries[*at].hash, now)).max();
        let read = found.map_or(0, |at| boundaries[at].tokens);
        for (mark, ttl) in &marks {
            if boundaries[*mark].tokens >= LEAST {
                let lasts = if *ttl == Ttl::Long { LONG } else { SHORT };
                self.0.insert(boundaries[*mark].hash, now + lasts);
            }
        }
        let written = boundaries[last].tokens - read.min(boundaries[last].tokens);
        let (cache_write, cache_write_long) = if ttl == Ttl::Long { (0, written) } else { (written, 0) };
        Used { input: all - read - written, cache_read: read, cache_write, cache_write_long, output: 0 }
    }

    fn unasked(&mut self, boundaries: &[Boundary], bills_writes: bool, now: Instant) -> Used {
        let all = boundaries.last().map_or(0, |last| last.tokens);
        let found = boundaries.iter().rev().find(|boundary| self.lives(boundary.hash, now));
        let in_steps = |tokens: u64| if tokens < LEAST { 0 } else { tokens / STEP * STEP };
        let read = in_steps(found.map_or(0, |boundary| boundary.tokens));
        for boundary in boundaries.iter().filter(|boundary| boundary.tokens >= LEAST) {
            self.0.insert(boundary.hash, now + SHORT);
        }
        let written = if bills_writes { in_steps(all).saturating_sub(read) } else { 0 };
        Used { input: all - read - written, cache_read: read, cache_write: written, ..Used::default() }
    }

    fn lives(&self, hash: u64, now: Instant) -> bool {
        self.0.get(&hash).is_some_and(|until| *until > now)
    }
}
