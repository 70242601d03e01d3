//! What a pass reads of the API server beside the caches: seldom, and not at all while the API server is away.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Container;
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
    generation: Option<i64>,
    of: K,
    value: V,
}

/// What was read of a container: by [`read_of`] it.
pub type ContainerRead<V> = Option<Reading<Container, V>>;

/// What of a container says how its variables come about: the generation of its Deployment is another with each replica.
#[must_use]
pub fn read_of(container: &Container) -> Container {
    Container {
        name: container.name.clone(),
        command: container.command.clone(),
        args: container.args.clone(),
        env: container.env.clone(),
        env_from: container.env_from.clone(),
        ..Container::default()
    }
}

impl<K, V> Reading<K, V> {
    /// What was read.
    pub fn value(&self) -> &V {
        &self.value
    }
}

/// What was read of the same less than `age` ago and by the same `generation`, else what `read` brings. Where the API server does
/// not answer, what was read of the same before counts for another `age`, whatever the generation was.
///
/// # Errors
/// Those of `read`, where nothing was read of the same before.
pub async fn recent<K: PartialEq, V: Clone>(
    last: &mut Option<Reading<K, V>>,
    generation: Option<i64>,
    of: K,
    age: Duration,
    patience: Patience,
    read: impl Future<Output = Result<V, kube::Error>>,
) -> Result<V, kube::Error> {
    let known = last.as_ref().filter(|known| known.of == of);
    if let Some(known) = known.filter(|known| known.generation == generation && known.at.elapsed() < age) {
        return Ok(known.value.clone());
    }
    let value = or_before(known.map(|known| &known.value), patience, read).await?;
    *last = Some(Reading { at: Instant::now(), generation, of, value: value.clone() });
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
        assert!(recent(&mut last, None, "a", now, patience, ready(away())).await.is_err(), "nothing was read before");
        assert_eq!(recent(&mut last, None, "a", now, patience, ready(Ok(1))).await.unwrap(), 1);
        assert_eq!(
            recent(&mut last, None, "a", later, patience, ready(Ok(2))).await.unwrap(),
            1,
            "it was read just now"
        );
        assert_eq!(recent(&mut last, None, "a", now, patience, ready(Ok(3))).await.unwrap(), 3);
        assert_eq!(recent(&mut last, None, "a", now, patience, ready(away())).await.unwrap(), 3);
        assert!(recent(&mut last, None, "b", now, patience, ready(away())).await.is_err(), "of something else");
    }

    #[tokio::test]
    async fn another_generation_is_read_anew_and_in_an_outage_the_same_container_counts_as_before() {
        let container = |replaced: serde_json::Value| {
            let mut container =
                serde_json::json!({"name": "litellm", "image": "a", "envFrom": [{"secretRef": {"name": "s"}}]});
            container.as_object_mut().unwrap().extend(replaced.as_object().unwrap().clone());
            read_of(&serde_json::from_value(container).unwrap())
        };
        let (mut last, age, patience) = (None, Duration::from_secs(60), Patience::of_a_pass(Instant::now()));
        let same = container(serde_json::json!({"image": "b"}));
        let of = container(serde_json::json!({}));
        assert_eq!(recent(&mut last, Some(1), of.clone(), age, patience, ready(Ok(1))).await.unwrap(), 1);
        assert_eq!(
            recent(&mut last, Some(2), of, age, patience, ready(Ok(2))).await.unwrap(),
            2,
            "a rollout may be why"
        );
        assert_eq!(recent(&mut last, Some(3), same, age, patience, ready(away())).await.unwrap(), 2, "a replica more");
        let other = container(serde_json::json!({"envFrom": [{"secretRef": {"name": "t"}}]}));
        assert!(recent(&mut last, Some(3), other, age, patience, ready(away())).await.is_err(), "another Secret");
    }

    #[tokio::test]
    async fn whatever_hangs_in_a_pass_has_one_time_together() {
        let (began, now) = (Instant::now(), Duration::ZERO);
        let patience = Patience::of_a_pass(began);
        for _ in 0..16 {
            let mut last = Some(Reading { at: began, generation: None, of: "a", value: 3 });
            assert_eq!(recent(&mut last, None, "a", now, patience, pending()).await.unwrap(), 3);
        }
        assert!(began.elapsed() < Patience::LASTS * 2, "{:?}", began.elapsed());
    }
}
