//! How many worker processes LiteLLM starts in a container, also where a Secret or ConfigMap says it.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Container;
use kube::Client;
use tracing::warn;

use super::redis_url::read_all;
use crate::litellm::{worker_refs, workers};

/// What was read counts for so long: processes take a change with their next start only.
const AGE: Duration = Duration::from_secs(30);

/// What was read of one Deployment's container.
#[derive(Debug)]
pub struct WorkersRead {
    at: Instant,
    generation: Option<i64>,
    count: u32,
}

/// How many worker processes the container starts; `read_before` is what the last pass knew. `generation` is the Deployment's.
///
/// # Errors
/// When the API server does not answer. What does not exist or may not be read counts as not set.
pub async fn count_workers(
    client: &Client,
    namespace: &str,
    container: &Container,
    generation: Option<i64>,
    read_before: &mut Option<WorkersRead>,
) -> Result<u32, kube::Error> {
    let refs = worker_refs(container);
    if refs.is_empty() {
        return Ok(workers(container, |_| None));
    }
    if let Some(known) = read_before.as_ref().filter(|r| r.generation == generation && r.at.elapsed() < AGE) {
        return Ok(known.count);
    }
    let values = read_all(client, namespace, &refs).await?;
    if let (Some(refused), None) = (values.refused(), &read_before) {
        warn!("the number of workers may stand where it counts as not set: {refused}");
    }
    let count = workers(container, |reference| values.get(reference));
    *read_before = Some(WorkersRead { at: Instant::now(), generation, count });
    Ok(count)
}
