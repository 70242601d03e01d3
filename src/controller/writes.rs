//! How long writes to what is not ours may take, and what is said of one that came to nothing. The plan and the status go on.

use std::time::{Duration, Instant};

use tokio::time::timeout;

use super::Error;
use super::validate::Problem;
use crate::api::Reason;

/// How long the first write of a pass that hangs is waited for.
const PATIENCE: Duration = Duration::from_secs(3);

/// How long each that comes after it: all of a TokenBudget's 16 targets may hang, and the pass is to come to its status.
const LITTLE: Duration = Duration::from_millis(250);

/// How soon a write that was refused is tried again.
const REFUSED_AGAIN: Duration = Duration::from_secs(5);

/// How soon one that was not answered: each attempt may be a pass that is late by [`PATIENCE`].
const UNANSWERED_AGAIN: Duration = Duration::from_secs(15);

/// The writes of one pass.
#[derive(Debug, Default)]
pub struct Writes {
    one_hung: bool,
}

impl Writes {
    /// Waits for a write, for a while.
    ///
    /// # Errors
    /// The write's, and [`Error::Unanswered`].
    pub async fn answer<T>(&mut self, write: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let patience = if self.one_hung { LITTLE } else { PATIENCE };
        timeout(patience, write).await.unwrap_or_else(|_| {
            self.one_hung = true;
            Err(Error::Unanswered)
        })
    }
}

/// A write that came to nothing, for a reason that is told to the user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    /// When it is tried again.
    pub again: Instant,
    /// Why.
    pub message: String,
}

impl Failed {
    /// What a write came to, if that is for the user. `what` could not be done.
    pub fn of<T>(outcome: &Result<T, Error>, what: &str) -> Option<Self> {
        let error = outcome.as_ref().err()?;
        let now = Instant::now();
        let (again, why) = match error.refusal() {
            Some(why) => (now + REFUSED_AGAIN, why.to_owned()),
            None => (now + UNANSWERED_AGAIN, unanswered(error)?),
        };
        Some(Self { again, message: format!("{what}: {why}") })
    }

    /// The condition that says so.
    #[must_use]
    pub fn problem(&self) -> Problem {
        Problem { reason: Reason::AttachFailed, message: self.message.clone() }
    }

    /// Whether it is not to be tried again yet.
    #[must_use]
    pub fn stands(&self) -> bool {
        Instant::now() < self.again
    }
}

/// What is said of a write that had no answer that counts. The text is the same for each attempt, as a status that changes is
/// written, and an event.
fn unanswered(error: &Error) -> Option<String> {
    match error {
        Error::Unanswered => Some(
            "the API server did not answer in time; if others' writes work, a webhook that it asks hangs: kubectl get \
             validatingwebhookconfigurations,mutatingwebhookconfigurations"
                .to_owned(),
        ),
        Error::Kubernetes(error) => match error.as_ref() {
            kube::Error::Api(status) if matches!(status.code, 408 | 429 | 501..=599) => {
                Some(format!("the API server answered {}: {}", status.code, status.message))
            }
            kube::Error::Service(_) | kube::Error::HyperError(_) => {
                Some("the connection to the API server failed".to_owned())
            }
            _ => None,
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn all_targets_of_a_pass_may_hang_and_it_comes_to_its_status() {
        let mut writes = Writes::default();
        let started = Instant::now();
        for _ in 0..16 {
            let outcome = writes.answer(std::future::pending::<Result<(), Error>>()).await;
            let failed = Failed::of(&outcome, "it").unwrap();
            assert!(failed.stands() && failed.message.starts_with("it: the API server did not answer"), "{failed:?}");
        }
        assert!(started.elapsed() < super::super::PASS_DEADLINE - Duration::from_secs(2), "{:?}", started.elapsed());
    }

    #[test]
    fn what_is_no_answer_is_told_and_what_is_the_operators_own_is_not() {
        let said = |code: u16| {
            let status = kube::core::Status::failure("no", "x").with_code(code);
            Failed::of(&Err::<(), _>(Error::from(kube::Error::Api(status.boxed()))), "it").map(|failed| failed.message)
        };
        assert_eq!(said(403).as_deref(), Some("it: no"));
        for code in [408, 429, 502, 503, 504] {
            assert_eq!(said(code), Some(format!("it: the API server answered {code}: no")));
        }
        assert_eq!((said(401), said(404)), (None, None));
        let cut = |error: &str| Failed::of(&Err::<(), _>(Error::from(kube::Error::Service(error.into()))), "it");
        assert_eq!(cut("refused").unwrap().message, cut("reset").unwrap().message, "a status that does not flap");
        assert_eq!(Failed::of(&Err::<(), _>(Error::NotLeading), "it"), None);
        assert_eq!(Failed::of(&Ok(()), "it"), None);
    }
}
