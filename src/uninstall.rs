//! `tokenbudget detach`: takes the agent out of a cluster, when the operator is gone or going. It is the leader for so long,
//! and each TokenBudget is cleaned up as if it were deleted; the TokenBudgets themselves stay.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use kube::{Api, Client, ResourceExt};
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use crate::api::{FINALIZER, TokenBudget};
use crate::app::{self, candidate, wait, watched};
use crate::causes::Causes;
use crate::cli::Detach;
use crate::controller::{self, Context, Role, Settings};
use crate::ops::Metrics;

/// How often it is looked whether all are done.
const LOOK: Duration = Duration::from_millis(500);

/// Why not everything was taken out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no API server to talk to.
    #[error(transparent)]
    App(#[from] app::Error),
    /// The TokenBudgets cannot be listed.
    #[error("the TokenBudgets cannot be listed")]
    List(#[source] Box<kube::Error>),
    /// The time was over.
    #[error("{} left after {seconds} s: {}. {hint}", left.len(), left.join(", "))]
    Left {
        /// Their namespaces and names.
        left: Vec<String>,
        /// How long it was tried.
        seconds: u64,
        /// What may be in the way.
        hint: String,
    },
}

/// What `detach` did, or would do: for `-o json`.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Detached {
    /// URL of the API server.
    cluster: String,
    /// Whether nothing was changed.
    dry_run: bool,
    /// The TokenBudgets that nothing of ours is in any more, as NAMESPACE/NAME.
    detached: Vec<String>,
    /// Those that something of ours is still in.
    left: Vec<String>,
    /// How long it took, in seconds.
    seconds: u64,
    /// Why something is left.
    #[serde(skip)]
    problem: Option<Error>,
}

impl Detached {
    /// Whether all that was to be taken out is.
    ///
    /// # Errors
    /// [`Error::Left`]
    pub fn outcome(self) -> Result<(), Error> {
        self.problem.map_or(Ok(()), Err)
    }
}

/// Takes the agent out, and waits until it is done, or the time is over.
///
/// # Errors
/// [`Error`]: when it cannot be begun.
pub async fn run(options: Detach) -> Result<Detached, Error> {
    let (client, cluster) = app::client().await?;
    let namespaces = watched(&options.namespaces);
    let left = remaining(&client, &namespaces).await?;
    let mut answer = Detached { cluster, dry_run: options.dry_run, ..Detached::default() };
    if left.is_empty() {
        info!("there is nothing to take out");
        return Ok(answer);
    }
    if options.dry_run {
        info!("would take out what {} TokenBudgets put in: {}", left.len(), left.join(", "));
        answer.left = left;
        return Ok(answer);
    }
    let mut said = left.clone();
    answer.detached = left;
    let (stop, stopped) = watch::channel(false);
    let (ended, passed) = watch::channel(false);
    let (leadership, election) =
        candidate(&client, (&options.lease_namespace, &options.lease_name), &options.identity, passed);
    let settings = Settings {
        namespaces: options.namespaces,
        default_redis: options.default_redis_secret,
        identity: options.identity,
        admission_policy: None,
        role: Role::DetachAll,
    };
    let ctx = Arc::new(Context::new(client.clone(), settings, leadership.clone(), Metrics::new()));
    let passes = tokio::spawn(join_all(
        namespaces
            .iter()
            .cloned()
            .map(|namespace| controller::run(ctx.clone(), namespace, || (), wait(stopped.clone()))),
    ));

    let started = Instant::now();
    let deadline = Duration::from_secs(options.timeout);
    let outcome = loop {
        // An API server that is away for a moment is waited for.
        let left = remaining(&client, &namespaces)
            .await
            .inspect_err(|error| warn!(error = %Causes(error), "looking for what is left"));
        match left {
            Ok(left) if left.is_empty() => break gave_up(&ctx, started.elapsed()),
            Ok(left) if left != said => {
                info!(leads = leadership.leads(), "{} left: {}", left.len(), left.join(", "));
                said = left;
            }
            _ => {}
        }
        if started.elapsed() > deadline {
            let hint = if leadership.leads() {
                "The log above says what is in the way.".to_owned()
            } else {
                format!(
                    "Another replica leads (Lease {} in namespace {}): uninstall the operator first",
                    options.lease_name, options.lease_namespace
                )
            };
            break Err(Error::Left { left: said, seconds: options.timeout, hint });
        }
        sleep(LOOK).await;
    };
    let _ = stop.send(true);
    let _ = passes.await;
    let _ = ended.send(true);
    let _ = election.await;
    answer.seconds = started.elapsed().as_secs();
    match outcome {
        Ok(()) => info!(seconds = answer.seconds, "everything is taken out; the TokenBudgets stay"),
        Err(problem) => {
            if let Error::Left { left, .. } = &problem {
                answer.detached.retain(|tb| !left.contains(tb));
                answer.left.clone_from(left);
            }
            answer.problem = Some(problem);
        }
    }
    Ok(answer)
}

/// The TokenBudgets are free of us; what was given up on may not be.
fn gave_up(ctx: &Context, took: Duration) -> Result<(), Error> {
    let left = ctx.given_up();
    if left.is_empty() {
        return Ok(());
    }
    let hint = "Their finalizers are gone, but the agent may still be in their Deployments, or their keys in Redis, where both do \
                nothing: the log above says what was in the way";
    Err(Error::Left { left, seconds: took.as_secs(), hint: hint.to_owned() })
}

/// The TokenBudgets that still carry something of ours, as NAMESPACE/NAME. Without the resource there are none.
async fn remaining(client: &Client, namespaces: &[Option<String>]) -> Result<Vec<String>, Error> {
    let mut left = Vec::new();
    for namespace in namespaces {
        let api: Api<TokenBudget> = controller::api_in(client, namespace.as_deref());
        match api.list(&kube::api::ListParams::default()).await {
            Ok(list) => left.extend(
                list.iter()
                    .filter(|tb| is_ours(tb))
                    .map(|tb| format!("{}/{}", tb.namespace().unwrap_or_default(), tb.name_any())),
            ),
            Err(kube::Error::Api(status)) if status.is_not_found() => {}
            Err(error) => return Err(Error::List(Box::new(error))),
        }
    }
    left.sort();
    Ok(left)
}

fn is_ours(tb: &TokenBudget) -> bool {
    tb.status.is_some() || tb.finalizers().iter().any(|f| f == FINALIZER)
}
