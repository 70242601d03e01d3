//! `tokenbudget attach`: finds the Deployment, and prints what is to be pasted.

use std::path::PathBuf;

use anyhow::{anyhow, bail};
use k8s_openapi::api::apps::v1::Deployment;
use kube::ResourceExt;

use super::cluster::{Cluster, ClusterOptions};
use super::manifests;
use super::paste::{Print, paste};
use crate::api::SecretKeyRef;
use crate::cli::secret_key;
use crate::litellm::Wanted;

const EXAMPLES: &str = "\
With attach: Manual in a TokenBudget the operator leaves the pod template to you. This prints
what it would have added: the startup hook, variables that name the pod, two mounts, a label.

Examples:
  # From the Deployment in the cluster, as values of LiteLLM's chart
  kubectl tokenbudget attach --print helm --deployment litellm -n llm

  # Without a cluster, as a patch of a kustomization.yaml
  kubectl tokenbudget attach --print kustomize -f litellm.yaml

  # At once, with the ledger's Redis from a Secret (as spec.redis.urlSecretRef)
  kubectl tokenbudget attach --deployment litellm --redis-secret litellm-redis/url > patch.yaml
  kubectl patch deployment litellm --patch-file patch.yaml";

/// Options of `attach`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Attach {
    /// The form.
    #[arg(short = 'o', long, visible_alias = "output", value_enum, default_value = "yaml")]
    pub print: Print,

    /// Name of the Deployment. May be left out where --filename has one only.
    #[arg(long, value_name = "NAME", required_unless_present = "filename")]
    pub deployment: Option<String>,

    /// The namespace. Left out: the context's, or the manifest's.
    #[arg(short, long)]
    pub namespace: Option<String>,

    /// The container that runs LiteLLM. Left out: litellm, gateway or proxy, else the only one.
    #[arg(long, value_name = "NAME")]
    pub container: Option<String>,

    /// A file with the Deployment, `-` for the standard input. Left out: it is read from the cluster.
    #[arg(short, long, value_name = "FILE")]
    pub filename: Option<PathBuf>,

    /// Secret with the ledger's URL, where the container's own Redis is not the ledger.
    #[arg(long, value_name = "NAME/KEY", value_parser = secret_key)]
    pub redis_secret: Option<SecretKeyRef>,

    /// Which cluster.
    #[command(flatten)]
    pub cluster: ClusterOptions,
}

impl Attach {
    /// What is to be pasted.
    ///
    /// # Errors
    /// When there is no such Deployment, or the agent cannot be added to it.
    pub async fn run(&self) -> anyhow::Result<String> {
        let deployment = match &self.filename {
            Some(_) => self.read_file()?,
            None => {
                let cluster = Cluster::find(&self.cluster).await?;
                let namespace = self.namespace.as_ref().unwrap_or(&cluster.namespace);
                let name = self.deployment.as_deref().unwrap_or_default();
                cluster
                    .deployment(namespace, name)
                    .await
                    .map_err(|error| anyhow!("Deployment {namespace}/{name}: {error}"))?
            }
        };
        let wanted = Wanted {
            container: self.container.clone(),
            redis_secret: self.redis_secret.clone(),
            inherited_hooks: None,
            roll_out_agent: false,
        };
        paste(&deployment, &wanted, self.print).map_err(|error| match &self.container {
            // The refusal speaks of the resource; here it is a flag.
            None => anyhow!("{}", error.to_string().replace("set targetRefs[].container to", "name with --container")),
            Some(_) => {
                anyhow!("{}", error.to_string().replace("correct targetRefs[].container", "correct --container"))
            }
        })
    }

    fn read_file(&self) -> anyhow::Result<Deployment> {
        let path = self.filename.clone().unwrap_or_default();
        let mut found = Vec::new();
        for document in manifests::read(&path)? {
            if let Some(deployment) = document.deployment() {
                found.push(
                    deployment.map_err(|why| anyhow!("{}: Deployment {}: {why}", document.file, document.name()))?,
                );
            }
        }
        let names = found.iter().map(ResourceExt::name_any).collect::<Vec<_>>().join(", ");
        if let Some(name) = &self.deployment {
            found.retain(|deployment| deployment.name_any() == *name);
        }
        let mut deployment = match <[Deployment; 1]>::try_from(found) {
            Ok([deployment]) => deployment,
            Err(_) if names.is_empty() => bail!("{} has no Deployment", path.display()),
            Err(_) => bail!("{} has the Deployments {names}: name one of them with --deployment", path.display()),
        };
        if let Some(namespace) = &self.namespace {
            deployment.metadata.namespace = Some(namespace.clone());
        }
        Ok(deployment)
    }
}
