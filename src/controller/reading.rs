//! What a pass reads of the API server beside the caches: seldom, and not at all while the API server is away.

use std::time::{Duration, Instant};

use tracing::debug;

use crate::causes::Causes;

/// Until when a pass waits for what it could do without: all of it has one time, or several targets of an API server that
/// hangs would keep it from the ledger.
#[derive(Clone, Copy, Debug)]
pub struct Patience(Instant);

impl Patience {
    const LASTS: Duration = Duration::from_secs(2);

    /// That of a pass that begins now.
    #[must_use]
    pub fn of_a_pass(now: Instant) -> Self {
        Self(now + Self::LASTS)
    }
}

/// A value that was read, when, and of what.
#[derive(Clone, Debug)]
pub struct Reading<K, V> {
    at: Instant,
    of: K,
    value: V,
}

/// What was read of a container: by the generation of its Deployment, and its name.
pub type ContainerRead<V> = Option<Reading<(Option<i64>, String), V>>;

impl<K, V> Reading<K, V> {
    /// What was read.
    pub fn value(&self) -> &V {
        &self.value
    }
}

/// What was read of the same less than `age` ago, else what `read` brings. Where the API server does not answer, what was read
/// of the same before counts for another `age`.
///
/// # Errors
/// Those of `read`, where nothing was read of the same before.
pub async fn recent<K: PartialEq, V: Clone>(
    last: &mut Option<Reading<K, V>>,
    of: K,
    age: Duration,
    patience: Patience,
    read: impl Future<Output = Result<V, kube::Error>>,
) -> Result<V, kube::Error> {
    let known = last.as_ref().filter(|known| known.of == of);
    if let Some(known) = known.filter(|known| known.at.elapsed() < age) {
        return Ok(known.value.clone());
    }
    let value = or_before(known.map(|known| &known.value), patience, read).await?;
    *last = Some(Reading { at: Instant::now(), of, value: value.clone() });
    Ok(value)
}

/// What `read` brings; where the API server does not answer, what was read before: an outage of the API server must not keep
/// a pass from the ledger.
///
/// # Errors
/// Those of `read`, where nothing was read before.
pub async fn or_before<V: Clone>(
    before: Option<&V>,
    patience: Patience,
    read: impl Future<Output = Result<V, kube::Error>>,
) -> Result<V, kube::Error> {
    let Some(before) = before else { return read.await };
    match tokio::time::timeout_at(patience.0.into(), read).await {
        Ok(Ok(value)) => return Ok(value),
        Ok(Err(error)) => debug!(error = %Causes(&error), "what was read before still counts"),
        Err(_) => debug!("the API server does not answer: what was read before still counts"),
    }
    Ok(before.clone())
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    fn away() -> Result<u32, kube::Error> {
        Err(kube::Error::LinesCodecMaxLineLengthExceeded)
    }

    #[tokio::test]
    async fn an_outage_leaves_what_was_read_before() {
        let (mut last, now, later) = (None, Duration::ZERO, Duration::from_secs(60));
        let patience = Patience::of_a_pass(Instant::now());
        assert!(recent(&mut last, "a", now, patience, ready(away())).await.is_err(), "nothing was read before");
        assert_eq!(recent(&mut last, "a", now, patience, ready(Ok(1))).await.unwrap(), 1);
        assert_eq!(recent(&mut last, "a", later, patience, ready(Ok(2))).await.unwrap(), 1, "it was read just now");
        assert_eq!(recent(&mut last, "a", now, patience, ready(Ok(3))).await.unwrap(), 3);
        assert_eq!(recent(&mut last, "a", now, patience, ready(away())).await.unwrap(), 3);
        assert!(recent(&mut last, "b", now, patience, ready(away())).await.is_err(), "of something else");
    }

    #[tokio::test]
    async fn whatever_hangs_in_a_pass_has_one_time_together() {
        let (began, now) = (Instant::now(), Duration::ZERO);
        let patience = Patience::of_a_pass(began);
        for _ in 0..16 {
            let mut last = Some(Reading { at: began, of: "a", value: 3 });
            assert_eq!(recent(&mut last, "a", now, patience, pending()).await.unwrap(), 3);
        }
        assert!(began.elapsed() < Patience::LASTS * 2, "{:?}", began.elapsed());
    }
}
