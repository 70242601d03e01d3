//! The cluster that a kubeconfig names, and what is read from it. Every request has a deadline.

use std::path::PathBuf;
use std::time::Duration;

use jiff::SignedDuration;
use k8s_openapi::api::apps::v1::Deployment;
use kube::api::ListParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, ResourceExt};

use crate::api::TokenBudget;

/// Which cluster, as for kubectl.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Cluster")]
pub struct ClusterOptions {
    /// The kubeconfig. Left out: KUBECONFIG, else ~/.kube/config, else the cluster that this runs in.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,

    /// The kubeconfig's context. Left out: its current one.
    #[arg(long)]
    pub context: Option<String>,

    /// How long a whole request may take.
    #[arg(long, value_name = "TIME", default_value = "8s", value_parser = duration)]
    pub request_timeout: Duration,
}

/// Why nothing was read.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// No kubeconfig that can be used.
    #[error("no Kubernetes API server: {0}; name one with --kubeconfig, --context or KUBECONFIG")]
    Config(String),
    /// The API server is too slow, or away.
    #[error("the API server did not answer within {:#}", SignedDuration::try_from(*.0).unwrap_or_default())]
    Deadline(Duration),
    /// The CustomResourceDefinition is not there.
    #[error(
        "this cluster has no TokenBudgets: install the operator's chart, or `tokenbudget crd | kubectl apply -f -`"
    )]
    NoCrd,
    /// It answers with an error.
    #[error("the API server: {}", reason(.0))]
    Api(Box<kube::Error>),
}

/// What the API server says; else the last cause, such as `Connection refused`, which the ones before only wrap.
fn reason(error: &kube::Error) -> String {
    if let kube::Error::Api(status) = error {
        return status.message.clone();
    }
    let causes = std::iter::successors(Some(error as &dyn std::error::Error), |error| error.source());
    causes.last().map(ToString::to_string).unwrap_or_default()
}

/// A time such as `2s`, `500ms` or `1m`, above 0.
///
/// # Errors
/// A text that says how to write it.
pub fn duration(text: &str) -> Result<Duration, String> {
    let parsed = text.parse::<SignedDuration>().ok().and_then(|time| Duration::try_from(time).ok());
    parsed.filter(|time| !time.is_zero()).ok_or_else(|| "expected a time such as 2s, 500ms or 1m".to_owned())
}

/// A cluster, and the namespace that its context names.
pub struct Cluster {
    client: Client,
    /// The context's namespace.
    pub namespace: String,
    deadline: Duration,
}

impl Cluster {
    /// Finds the cluster; asks it nothing yet.
    ///
    /// # Errors
    /// [`ClusterError::Config`].
    pub async fn find(options: &ClusterOptions) -> Result<Self, ClusterError> {
        let unusable = |error: &dyn std::fmt::Display| ClusterError::Config(error.to_string());
        let wanted = KubeConfigOptions { context: options.context.clone(), ..KubeConfigOptions::default() };
        let config = match (&options.kubeconfig, &options.context) {
            (Some(file), _) => {
                let file = Kubeconfig::read_from(file).map_err(|e| unusable(&e))?;
                kube::Config::from_custom_kubeconfig(file, &wanted).await.map_err(|e| unusable(&e))?
            }
            (None, Some(_)) => kube::Config::from_kubeconfig(&wanted).await.map_err(|e| unusable(&e))?,
            (None, None) => kube::Config::infer().await.map_err(|e| unusable(&e))?,
        };
        let namespace = config.default_namespace.clone();
        let client = Client::try_from(config).map_err(|e| unusable(&e))?;
        Ok(Self { client, namespace, deadline: options.request_timeout })
    }

    /// The TokenBudgets of a namespace (none: of all), by namespace and name.
    ///
    /// # Errors
    /// [`ClusterError`].
    pub async fn budgets(&self, namespace: Option<&str>) -> Result<Vec<TokenBudget>, ClusterError> {
        let api: Api<TokenBudget> = match namespace {
            Some(namespace) => Api::namespaced(self.client.clone(), namespace),
            None => Api::all(self.client.clone()),
        };
        let params = ListParams::default();
        let mut budgets = match self.within(api.list(&params)).await {
            Ok(list) => list.items,
            Err(ClusterError::Api(error)) if not_found(&error) => return Err(ClusterError::NoCrd),
            Err(error) => return Err(error),
        };
        budgets.sort_by_cached_key(|budget| (budget.namespace(), budget.name_any()));
        Ok(budgets)
    }

    /// One TokenBudget.
    ///
    /// # Errors
    /// [`ClusterError`].
    pub async fn budget(&self, namespace: &str, name: &str) -> Result<TokenBudget, ClusterError> {
        self.within(Api::namespaced(self.client.clone(), namespace).get(name)).await
    }

    /// One Deployment.
    ///
    /// # Errors
    /// [`ClusterError`].
    pub async fn deployment(&self, namespace: &str, name: &str) -> Result<Deployment, ClusterError> {
        self.within(Api::namespaced(self.client.clone(), namespace).get(name)).await
    }

    async fn within<T>(&self, request: impl Future<Output = kube::Result<T>>) -> Result<T, ClusterError> {
        match tokio::time::timeout(self.deadline, request).await {
            Ok(answer) => answer.map_err(|error| ClusterError::Api(Box::new(error))),
            Err(_) => Err(ClusterError::Deadline(self.deadline)),
        }
    }
}

fn not_found(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.is_not_found())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_above_0() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("1m"), Ok(Duration::from_secs(60)));
        assert!(["0s", "-1s", "2", ""].iter().all(|text| duration(text).is_err()));
    }
}
