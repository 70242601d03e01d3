//! How many worker processes LiteLLM starts in a container, also where a Secret or ConfigMap says it.

use std::time::Duration;

use k8s_openapi::api::core::v1::Container;
use kube::Client;
use tracing::warn;

use super::reading::{ContainerRead, Patience, recent};
use super::redis_url::read_all;
use crate::litellm::{worker_refs, workers};

/// What was read counts for so long: processes take a change with their next start only.
const AGE: Duration = Duration::from_secs(30);

/// How many worker processes the container starts; `last` is what an earlier pass read, and `of` which container this is.
///
/// # Errors
/// When the API server does not answer. What does not exist or may not be read counts as not set.
pub async fn count_workers(
    client: &Client,
    namespace: &str,
    container: &Container,
    of: (Option<i64>, String),
    last: &mut ContainerRead<u32>,
    patience: Patience,
) -> Result<u32, kube::Error> {
    let refs = worker_refs(container);
    if refs.is_empty() {
        return Ok(workers(container, |_| None));
    }
    let is_first = last.is_none();
    let read = async {
        let values = read_all(client, namespace, &refs).await?;
        if let (Some(refused), true) = (values.refused(), is_first) {
            warn!("the number of workers may stand where it counts as not set: {refused}");
        }
        Ok(workers(container, |reference| values.get(reference)))
    };
    recent(last, of, AGE, patience, read).await
}
