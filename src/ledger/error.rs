//! What can go wrong with the ledger.

use std::time::Duration;

/// Why the ledger could not do what it was asked. No variant ever holds the URL's password.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The URL cannot be used; the text says why, without quoting it.
    #[error("the Redis URL cannot be used: {problem}")]
    InvalidUrl {
        /// What is wrong with it.
        problem: String,
    },
    /// What is to be trusted is no certificate; the text does not quote it.
    #[error("key ca.crt of the Redis URL's Secret cannot be used: it has to hold certificates in PEM form")]
    InvalidCa,
    /// No server, or one that does not serve now (wrong password, loading, read-only replica).
    #[error("the ledger cannot be reached")]
    Unreachable {
        /// What the client or the server said.
        source: RedisFault,
    },
    /// No answer in time. The call may still have been, or yet be, carried out.
    #[error("the ledger did not answer within {} ms", after.as_millis())]
    Timeout {
        /// The deadline that passed.
        after: Duration,
    },
    /// Another operator has claimed the ledger since, or it was flushed or closed. Nothing was changed.
    #[error("the ledger belongs to another epoch")]
    Fenced,
    /// What is stored, or was answered, is not what the protocol says.
    #[error("the ledger holds something unreadable under {key}")]
    Malformed {
        /// The Redis key, or the name of the script that gave the answer.
        key: String,
    },
    /// The server refused the script, or it failed.
    #[error("the ledger refused the script: {message}")]
    Script {
        /// What the server said.
        message: String,
    },
}

impl LedgerError {
    pub(super) fn malformed(key: impl Into<String>) -> Self {
        Self::Malformed { key: key.into() }
    }
}

/// An error of the Redis client as text, free of secrets.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct RedisFault(pub(super) String);
