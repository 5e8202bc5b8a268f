//! The tokens that a provider has counted for conversations, so that the next turn is not counted by its bytes again.

use std::collections::{HashMap, VecDeque};

/// Counts by the hash of a conversation. The oldest are forgotten.
#[derive(Debug, Default)]
pub struct Counted {
    tokens: HashMap<[u8; 32], u64>,
    order: VecDeque<[u8; 32]>,
}

/// A forgotten conversation is only reserved for by its bytes, so few are enough.
const KEPT: usize = 1024;

impl Counted {
    /// Remembers what a provider has counted for a conversation.
    pub fn remember(&mut self, conversation: [u8; 32], tokens: u64) {
        if self.tokens.insert(conversation, tokens).is_none() {
            self.order.push_back(conversation);
        }
        while self.order.len() > KEPT {
            if let Some(oldest) = self.order.pop_front() {
                self.tokens.remove(&oldest);
            }
        }
    }

    /// Returns the tokens that were counted last.
    pub fn tokens(&self, conversation: &[u8; 32]) -> Option<u64> {
        self.tokens.get(conversation).copied()
    }
}
