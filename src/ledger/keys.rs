//! The names of the ledger's keys. All of one TokenBudget share a hash tag, and so one slot of a Redis Cluster.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What a book counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    /// Tokens per minute.
    Tokens,
    /// Requests per minute.
    Requests,
}

impl Unit {
    /// The name in keys and metrics: `tokens` or `requests`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tokens => "tokens",
            Self::Requests => "requests",
        }
    }
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One book: a limit of a TokenBudget in one unit.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BookId {
    /// The limit's name.
    pub limit: String,
    /// What the book counts.
    pub unit: Unit,
}

impl BookId {
    /// The book of `limit` in `unit`.
    pub fn new(limit: impl Into<String>, unit: Unit) -> Self {
        Self { limit: limit.into(), unit }
    }
}

impl fmt::Display for BookId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.limit, self.unit)
    }
}

/// The keys of the TokenBudget with this UID.
#[derive(Clone, Debug)]
pub struct Keys {
    prefix: String,
}

impl Keys {
    /// The keys of the TokenBudget whose `metadata.uid` is `uid`.
    pub fn new(uid: &str) -> Self {
        Self { prefix: format!("tokenbudget:{{{uid}}}") }
    }

    /// The hash with `epoch`, `version` and `policy`.
    pub fn meta(&self) -> String {
        format!("{}:meta", self.prefix)
    }

    /// The hash with the members' reports.
    pub fn members(&self) -> String {
        format!("{}:members", self.prefix)
    }

    /// The hash of one book.
    pub fn book(&self, book: &BookId) -> String {
        format!("{}:book:{}:{}", self.prefix, book.limit, book.unit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_keys_share_the_hash_tag() {
        let keys = Keys::new("a1b2");
        assert_eq!(keys.meta(), "tokenbudget:{a1b2}:meta");
        assert_eq!(keys.members(), "tokenbudget:{a1b2}:members");
        assert_eq!(keys.book(&BookId::new("gpt-4o", Unit::Tokens)), "tokenbudget:{a1b2}:book:gpt-4o:tokens");
    }
}
