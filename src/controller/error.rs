//! Why a pass was given up, and what of it is for the user.

use super::PASS_DEADLINE;

/// Why a pass was given up. What a user has to mend is no error: it is a condition.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server refused or did not answer.
    #[error("the API server")]
    Kubernetes(#[source] Box<kube::Error>),
    /// A Deployment in the cache cannot be read, which says nothing of whether there is one.
    #[error("Deployment {name} in the cache: {source}")]
    Packed {
        /// Its name.
        name: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A ConfigMap that has the name of one of ours is somebody else's; the text names it and the way out.
    #[error("{0}")]
    NotOurs(String),
    /// The file of the policies in a ConfigMap of ours is none that any version writes.
    #[error("policy.json of ConfigMap {name} cannot be read: {why}; delete the ConfigMap, and it is made anew")]
    Unreadable {
        /// Of the ConfigMap.
        name: String,
        /// What is wrong with it.
        why: String,
    },
    /// The machine was suspended, or the lease ran out: another replica may write now.
    #[error("this replica does not lead any more")]
    NotLeading,
    /// A write to what is not ours had no answer for a while.
    #[error("the API server did not answer in time")]
    Unanswered,
    /// The Deployment in the cache is of before our own last write, so what it holds of ours is not known.
    #[error("the watch has not brought the last write to Deployment {name} yet")]
    CacheBehind {
        /// Its name.
        name: String,
    },
    /// The pass took too long.
    #[error("the pass was given up after {} s", PASS_DEADLINE.as_secs())]
    Deadline,
}

impl Error {
    /// What the API server says to a write that only others can make possible: no right, another owner, an admission policy, a
    /// webhook that denies it (400 where it names no code) or is away (500). Or what the operator itself does not write over.
    pub(super) fn refusal(&self) -> Option<&str> {
        match self {
            Self::Kubernetes(error) => match error.as_ref() {
                kube::Error::Api(status) if is_refusal(status.code) => Some(&status.message),
                _ => None,
            },
            Self::NotOurs(message) => Some(message),
            _ => None,
        }
    }

    /// Whether the object was changed meanwhile: the next pass sees the change.
    pub(super) fn is_conflict(&self) -> bool {
        matches!(self, Self::Kubernetes(error) if matches!(error.as_ref(), kube::Error::Api(status) if status.is_conflict()))
    }
}

/// Not: no login, not found, too slow, too many requests, and what an API server in trouble says.
const fn is_refusal(code: u16) -> bool {
    matches!(code, 400..=500) && !matches!(code, 401 | 404 | 408 | 429)
}

impl From<kube::Error> for Error {
    fn from(error: kube::Error) -> Self {
        Self::Kubernetes(Box::new(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_have_to_mend_is_a_refusal() {
        assert!([400, 403, 409, 422, 500].into_iter().all(is_refusal));
        assert!(![200, 401, 404, 408, 429, 502, 503, 504].into_iter().any(is_refusal));
    }
}
