//! The command line.

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::api::SecretKeyRef;
use crate::leader::LEASE_NAME;
use crate::output::Format;
use crate::simulate::cli::Simulate;
use crate::terminal::{Attach, Check, Completion, Top};

/// A file of this name is what `kubectl tokenbudget` runs.
const PLUGIN: &str = "kubectl-tokenbudget";

const AFTER_HELP: &str = "\
As a kubectl plugin: put this file, or a link to it, into your PATH as kubectl-tokenbudget.

Examples:
  # Watch what the processes of every TokenBudget in this namespace spend
  kubectl tokenbudget top

  # Before you apply: is the manifest sound, and what is the safe share?
  kubectl tokenbudget check tokenbudget.yaml litellm.yaml

Try `kubectl explain tokenbudget.spec` for the resource that this operator acts on.";

/// Shares one provider quota among all LiteLLM processes of a fleet.
#[derive(Debug, Parser)]
#[command(version, about, after_help = AFTER_HELP)]
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
    /// Take the agent out of the cluster after the operator was uninstalled: limits, pod templates, ledgers and finalizers
    /// are put back as if each TokenBudget were deleted; the TokenBudgets stay. The chart runs it by itself.
    Detach(Box<Detach>),
    /// Print the CustomResourceDefinition as YAML, for `kubectl apply -f -`.
    Crd,
    /// Simulate a fleet: how much of a budget it uses beside an ideal bucket, a static split and LiteLLM's own counter.
    Simulate(Box<Simulate>),
    /// Watch what each limit and each pod spends, from the status of the TokenBudgets.
    Top(Box<Top>),
    /// Print what `attach: Manual` needs in a Deployment: Helm values, a kustomize patch, or a strategic-merge patch.
    Attach(Box<Attach>),
    /// Check manifests without a cluster: fields, rules, overlaps, the safe share. Exits with 1 on problems, 2 when a file
    /// cannot be read.
    Check(Box<Check>),
    /// Print a shell's completion script.
    Completion(Completion),
}

impl Cli {
    /// What the command line says; ends the program with help or an error where clap does.
    #[must_use]
    pub fn from_command_line() -> Self {
        let matches = Self::called_as(std::env::args_os().next().as_deref()).get_matches();
        Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
    }

    /// The command as it is named by the file that was started: kubectl's plugin says `kubectl tokenbudget`.
    #[must_use]
    pub fn called_as(file: Option<&OsStr>) -> clap::Command {
        let command = Self::command();
        if is_plugin(file) { command.bin_name("kubectl tokenbudget") } else { command }
    }
}

/// Whether kubectl started this file as its plugin.
#[must_use]
pub fn is_plugin(file: Option<&OsStr>) -> bool {
    file.and_then(|file| Path::new(file).file_stem()).is_some_and(|stem| stem == PLUGIN)
}

/// Options of `run`.
#[derive(Debug, clap::Args)]
pub struct Run {
    /// Address of /livez, /readyz and /metrics. `[::]` is every address of the pod, of IPv4 too.
    #[arg(long, env = "TOKENBUDGET_LISTEN", default_value = "[::]:8080")]
    pub listen: SocketAddr,

    /// Namespace to watch; repeat it for several. Left out: all.
    #[arg(long = "namespace", env = "TOKENBUDGET_NAMESPACES", value_delimiter = ',')]
    pub namespaces: Vec<String>,

    /// Secret with the Redis URL, as NAME/KEY in the TokenBudget's namespace, where neither the TokenBudget nor the LiteLLM
    /// container names a Redis.
    #[arg(long, env = "TOKENBUDGET_DEFAULT_REDIS_SECRET", value_parser = secret_key)]
    pub default_redis_secret: Option<SecretKeyRef>,

    /// The MutatingAdmissionPolicy that serves `attach: Admission`; the chart names its own.
    #[arg(long, env = "TOKENBUDGET_ADMISSION_POLICY")]
    pub admission_policy: Option<String>,

    /// Elect one leader among several replicas. Switch it off only where there can be just one process.
    #[arg(long, env = "TOKENBUDGET_LEADER_ELECTION", default_value_t = true, action = clap::ArgAction::Set)]
    pub leader_election: bool,

    /// Namespace of the election's Lease: the same for all operators that watch the same namespaces, or each has a leader.
    #[arg(long, env = "POD_NAMESPACE", default_value = "default")]
    pub lease_namespace: String,

    /// Name of the election's Lease. Another for each release in a namespace.
    #[arg(long, default_value = LEASE_NAME)]
    pub lease_name: String,

    /// Name of this replica, in the Lease and in events.
    #[arg(long, env = "POD_NAME", default_value = "tokenbudget")]
    pub identity: String,

    /// What to log, for example `info,tokenbudget=debug`. RUST_LOG means the same.
    #[arg(long, env = "RUST_LOG")]
    pub log: Option<String>,

    /// A file with what to log. It is read every two seconds, and what it says last holds.
    #[arg(long, env = "TOKENBUDGET_LOG_FILE", value_name = "PATH")]
    pub log_file: Option<PathBuf>,
}

/// Options of `detach`.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("where").required(true).args(["namespaces", "all_namespaces"]))]
pub struct Detach {
    /// Namespace to take the agent out of; repeat it for several.
    #[arg(short = 'n', long = "namespace", value_delimiter = ',')]
    pub namespaces: Vec<String>,

    /// All namespaces.
    #[arg(short = 'A', long)]
    pub all_namespaces: bool,

    /// Say of which TokenBudgets, in which cluster, and leave everything as it is.
    #[arg(long)]
    pub dry_run: bool,

    /// How to print what was done; the log of it goes to standard error.
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Format,

    /// How long it may take, in seconds. Nothing that is broken holds it up for longer than 30 s.
    #[arg(long, default_value_t = 120, value_name = "SECONDS")]
    pub timeout: u64,

    /// Secret with the Redis URL, as the operator had it: NAME/KEY.
    #[arg(long, env = "TOKENBUDGET_DEFAULT_REDIS_SECRET", value_parser = secret_key)]
    pub default_redis_secret: Option<SecretKeyRef>,

    /// Namespace of the operator, whose Lease is taken over.
    #[arg(long, env = "POD_NAMESPACE", default_value = "tokenbudget-system")]
    pub lease_namespace: String,

    /// Name of the operator's Lease.
    #[arg(long, default_value = LEASE_NAME)]
    pub lease_name: String,

    /// Name of this process, in the Lease and in events.
    #[arg(long, env = "POD_NAME", default_value = "tokenbudget-detach")]
    pub identity: String,

    /// What to log, for example `info,tokenbudget=debug`. RUST_LOG means the same.
    #[arg(long, env = "RUST_LOG")]
    pub log: Option<String>,
}

/// A key of a Secret, written NAME/KEY.
///
/// # Errors
/// A text that says how to write it.
pub fn secret_key(text: &str) -> Result<SecretKeyRef, String> {
    match text.split_once('/') {
        Some((name, key)) if !name.is_empty() && !key.is_empty() => {
            Ok(SecretKeyRef { name: name.to_owned(), key: key.to_owned() })
        }
        _ => Err("expected NAME/KEY, for example tokenbudget-redis/url".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
        let cli = Cli::try_parse_from([
            "tokenbudget",
            "run",
            "--namespace",
            "a",
            "--default-redis-secret",
            "s/url",
            "--admission-policy",
            "p",
        ])
        .unwrap();
        let Command::Run(run) = cli.command else { panic!("not run") };
        assert_eq!(run.namespaces, ["a"]);
        assert_eq!(run.admission_policy.as_deref(), Some("p"));
        assert_eq!(run.default_redis_secret.unwrap().key, "url");
        assert!(Cli::try_parse_from(["tokenbudget", "run", "--default-redis-secret", "s"]).is_err());
    }

    #[test]
    fn detach_is_told_where() {
        let parsed = |args: &[&str]| Cli::try_parse_from([&["tokenbudget", "detach"], args].concat());
        assert!(parsed(&[]).unwrap_err().to_string().contains("--all-namespaces"));
        assert!(parsed(&["-A", "-n", "a"]).is_err());
        assert!(parsed(&["-A"]).is_ok() && parsed(&["-n", "a", "-n", "b"]).is_ok());
    }

    #[test]
    fn a_plugin_is_called_as_kubectl_calls_it() {
        let usage = |file: &str| {
            let command = Cli::called_as(Some(OsStr::new(file)));
            command.try_get_matches_from([file, "top", "--help"]).unwrap_err().to_string()
        };
        let plugin = usage("/usr/local/bin/kubectl-tokenbudget");
        assert!(plugin.contains("Usage: kubectl tokenbudget top [OPTIONS] [NAME]"), "{plugin}");
        let plain = usage("target/release/tokenbudget");
        assert!(plain.contains("Usage: tokenbudget top [OPTIONS] [NAME]"), "{plain}");
    }
}
