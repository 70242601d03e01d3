//! The command line.

use std::net::SocketAddr;

use clap::{Parser, Subcommand};

use crate::api::SecretKeyRef;
use crate::simulate::cli::Simulate;

/// Shares one provider quota among all LiteLLM processes of a fleet.
#[derive(Debug, Parser)]
#[command(
    version,
    about,
    after_help = "Try `kubectl explain tokenbudget.spec` for the resource that this operator acts on."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the operator, in a cluster or with a kubeconfig.
    Run(Box<Run>),
    /// Print the CustomResourceDefinition as YAML, for `kubectl apply -f -`.
    Crd,
    /// Simulate a fleet: how much of a budget it uses beside an ideal bucket, a static split and LiteLLM's own counter.
    Simulate(Box<Simulate>),
}

/// Options of `run`.
#[derive(Debug, clap::Args)]
pub struct Run {
    /// Address of /livez, /readyz and /metrics.
    #[arg(long, env = "TOKENBUDGET_LISTEN", default_value = "0.0.0.0:8080")]
    pub listen: SocketAddr,

    /// Namespace to watch; repeat it for several. Left out: all.
    #[arg(long = "namespace", env = "TOKENBUDGET_NAMESPACES", value_delimiter = ',')]
    pub namespaces: Vec<String>,

    /// Secret with the Redis URL, as NAME/KEY in the TokenBudget's namespace, where neither the TokenBudget nor the LiteLLM
    /// container names a Redis.
    #[arg(long, env = "TOKENBUDGET_DEFAULT_REDIS_SECRET", value_parser = secret_key)]
    pub default_redis_secret: Option<SecretKeyRef>,

    /// Elect one leader among several replicas. Switch it off only where there can be just one process.
    #[arg(long, env = "TOKENBUDGET_LEADER_ELECTION", default_value_t = true, action = clap::ArgAction::Set)]
    pub leader_election: bool,

    /// Namespace of the election's Lease.
    #[arg(long, env = "POD_NAMESPACE", default_value = "default")]
    pub lease_namespace: String,

    /// Name of this replica, in the Lease and in events.
    #[arg(long, env = "POD_NAME", default_value = "tokenbudget")]
    pub identity: String,

    /// What to log, for example `info,tokenbudget=debug`. RUST_LOG means the same.
    #[arg(long, env = "RUST_LOG")]
    pub log: Option<String>,
}

fn secret_key(text: &str) -> Result<SecretKeyRef, String> {
    match text.split_once('/') {
        Some((name, key)) if !name.is_empty() && !key.is_empty() => {
            Ok(SecretKeyRef { name: name.to_owned(), key: key.to_owned() })
        }
        _ => Err("expected NAME/KEY, for example tokenbudget-redis/url".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
        let cli =
            Cli::try_parse_from(["tokenbudget", "run", "--namespace", "a", "--default-redis-secret", "s/url"]).unwrap();
        let Command::Run(run) = cli.command else { panic!("not run") };
        assert_eq!(run.namespaces, ["a"]);
        assert_eq!(run.default_redis_secret.unwrap().key, "url");
        assert!(Cli::try_parse_from(["tokenbudget", "run", "--default-redis-secret", "s"]).is_err());
    }
}
