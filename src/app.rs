//! Puts the parts together: election, caches, passes, probes; and takes them down in order.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use kube::client::ClientBuilder;
use kube::{Api, Client};
use tokio::sync::watch;
use tower::timeout::TimeoutLayer;
use tracing::{info, warn};

use crate::api::TokenBudget;
use crate::causes::Causes;
use crate::cli::Run;
use crate::controller::{self, Context, Role, Settings};
use crate::leader::{self, Leadership};
use crate::ops::{self, Metrics, Readiness};

/// What has to happen before this replica is ready.
const CRD: &str = "the CustomResourceDefinition tokenbudgets.tokenbudget.dev";
const CACHES: &str = "the caches";
const ELECTION: &str = "the leader election";

/// How often the CustomResourceDefinition is looked for at the start.
const CRD_RETRY: Duration = Duration::from_secs(1);

/// How long the API server may take to begin an answer.
const REQUEST_DEADLINE: Duration = Duration::from_secs(8);

/// How long an answer that has begun may bring nothing. A watch that nothing happens in is ended by the API server after 290 s,
/// as kube-runtime asks for (`watcher::Config`), and begun again.
const SILENCE_DEADLINE: Duration = Duration::from_secs(300);

/// Why the operator ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Neither in a cluster nor with a usable kubeconfig.
    #[error("no Kubernetes API server: {0}")]
    Config(#[source] Box<kube::Error>),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: std::net::SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// No signal handler could be set.
    #[error("signals cannot be handled")]
    Signals(#[source] std::io::Error),
}

/// Runs the operator until SIGTERM or SIGINT.
///
/// # Errors
/// [`Error`], at the start.
pub async fn run(options: Run, filter: ops::Filter) -> Result<(), Error> {
    if let Some(path) = options.log_file.clone() {
        tokio::spawn(ops::follow(path, filter));
    }
    let (client, _) = client().await?;
    let listener =
        ops::listen(options.listen).await.map_err(|source| Error::Listen { address: options.listen, source })?;
    let (stop, stopped) = watch::channel(false);
    let signals = signals().map_err(Error::Signals)?;
    tokio::spawn(async move {
        signals.await;
        info!("stopping");
        let _ = stop.send(true);
    });

    let metrics = Metrics::new();
    let readiness = Readiness::waiting_for(&[CRD, CACHES, ELECTION]);
    let http =
        tokio::spawn(ops::serve(listener, ops::router(metrics.clone(), readiness.clone()), wait(stopped.clone())));
    info!(version = env!("CARGO_PKG_VERSION"), listen = %options.listen, "TokenBudget");

    tokio::select! {
        () = wait_for_crd(&client, &options.namespaces) => readiness.done(CRD),
        () = wait(stopped.clone()) => return Ok(()),
    }
    // It leads until its last pass has ended: the next leader must not write beside it.
    let (passes, passed) = watch::channel(false);
    let (leadership, election) = elect(&client, &options, passed);
    let settings = Settings {
        namespaces: options.namespaces,
        default_redis: options.default_redis_secret,
        admission_policy: options.admission_policy,
        identity: options.identity,
        role: Role::Operate,
    };
    let namespaces = watched(&settings.namespaces);
    let ctx = Arc::new(Context::new(client, settings, leadership.clone(), metrics.clone()));
    tokio::spawn(follow_leadership(leadership, ctx.clone(), metrics, readiness.clone()));

    let (unsynced, mut synced) = watch::channel(namespaces.len());
    tokio::spawn(async move {
        if synced.wait_for(|left| *left == 0).await.is_ok() {
            readiness.done(CACHES);
        }
    });
    let unsynced = Arc::new(unsynced);
    join_all(namespaces.into_iter().map(|namespace| {
        let unsynced = unsynced.clone();
        let whole = move || unsynced.send_modify(|left| *left = left.saturating_sub(1));
        controller::run(ctx.clone(), namespace, whole, wait(stopped.clone()))
    }))
    .await;
    let _ = passes.send(true);
    if let Some(election) = election {
        let _ = election.await;
    }
    let _ = http.await;
    info!("stopped");
    Ok(())
}

/// A client whose requests have deadlines, which kube 5 leaves out, and the URL of its API server: one for the beginning of an
/// answer, and a longer one for its pauses, as a watch is answered at once and lasts. Without the second a list whose server
/// went away in the middle would never end, and its cache never change again.
pub(crate) async fn client() -> Result<(Client, String), Error> {
    let unusable = |e: kube::Error| Error::Config(Box::new(e));
    let mut config = kube::Config::infer().await.map_err(|e| unusable(kube::Error::InferConfig(e)))?;
    config.read_timeout = Some(SILENCE_DEADLINE);
    config.reset_reader_on_write = true;
    let server = config.cluster_url.to_string();
    info!(server, "the API server");
    let builder = ClientBuilder::try_from(config).map_err(unusable)?;
    Ok((builder.with_layer(&TimeoutLayer::new(REQUEST_DEADLINE)).build(), server))
}

/// What is watched: each of these namespaces, or all by one watch.
pub(crate) fn watched(namespaces: &[String]) -> Vec<Option<String>> {
    match namespaces {
        [] => vec![None],
        some => some.iter().cloned().map(Some).collect(),
    }
}

fn elect(
    client: &Client,
    options: &Run,
    passed: watch::Receiver<bool>,
) -> (Leadership, Option<tokio::task::JoinHandle<()>>) {
    if !options.leader_election {
        return (Leadership::always(), None);
    }
    let (leadership, work) =
        candidate(client, (&options.lease_namespace, &options.lease_name), &options.identity, passed);
    (leadership, Some(work))
}

/// Takes part in the election by the Lease with this namespace and name, until the last pass has ended.
pub(crate) fn candidate(
    client: &Client,
    (namespace, name): (&str, &str),
    identity: &str,
    passed: watch::Receiver<bool>,
) -> (Leadership, tokio::task::JoinHandle<()>) {
    let config = leader::Config {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        identity: leader::unique_identity(identity),
        timings: leader::Timings::default(),
    };
    let (leadership, work) = leader::run(client.clone(), config, wait(passed));
    (leadership, tokio::spawn(work))
}

/// Tells the metrics and the probes; forgets what was known when another replica takes over.
async fn follow_leadership(mut leadership: Leadership, ctx: Arc<Context>, metrics: Metrics, readiness: Readiness) {
    let mut election = leadership.clone();
    tokio::spawn(async move {
        if election.known().await {
            readiness.done(ELECTION);
        }
    });
    while leadership.gained().await {
        info!("leads");
        metrics.set_leader(true);
        leadership.lost().await;
        warn!("does not lead any more");
        metrics.set_leader(false);
        ctx.forget_all();
    }
}

/// Without the CustomResourceDefinition there is nothing to watch; the operator waits for it, and does not crash.
async fn wait_for_crd(client: &Client, namespaces: &[String]) {
    let name = <TokenBudget as kube::CustomResourceExt>::crd_name();
    // Listing where it watches needs no more rights than it has anyway.
    let api: Api<TokenBudget> = controller::api_in(client, namespaces.first().map(String::as_str));
    let mut said = String::new();
    loop {
        let one = kube::api::ListParams::default().limit(1);
        let Err(error) = api.list(&one).await else { return };
        let text = Causes(&error).to_string();
        if text != said {
            let hint = match &error {
                kube::Error::Api(status) if status.is_not_found() => {
                    ": install it with the chart, or `tokenbudget crd | kubectl apply -f -`"
                }
                kube::Error::Api(status) if status.is_forbidden() => ": give its ServiceAccount the chart's roles",
                _ => "",
            };
            warn!(crd = name, error = text, "waiting for the CustomResourceDefinition{hint}");
            said = text;
        }
        tokio::time::sleep(CRD_RETRY).await;
    }
}

pub(crate) async fn wait(mut stopped: watch::Receiver<bool>) {
    let _ = stopped.wait_for(|stop| *stop).await;
}

fn signals() -> std::io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
