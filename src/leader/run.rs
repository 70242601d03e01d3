//! The election against the API server.

use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{Api, ObjectMeta, PostParams};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::{Elector, LeaderToken, Moment, Record, Step, Timings, Write, Written};

/// How often a token is looked at.
const LOOK: Duration = Duration::from_millis(500);

/// Who runs for which Lease.
#[derive(Clone, Debug)]
pub struct Config {
    /// Namespace of the Lease.
    pub namespace: String,
    /// Name of the Lease.
    pub name: String,
    /// This process among all: see [`unique_identity`].
    pub identity: String,
    /// How long things take.
    pub timings: Timings,
}

/// What a replica is while it does not lead.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standby {
    /// Whether the Lease was ever seen.
    pub known: bool,
}

/// Whether this replica leads, for all who have to know.
#[derive(Clone, Debug)]
pub struct Leadership {
    state: watch::Receiver<Result<LeaderToken, Standby>>,
    /// Keeps the channel of a replica without election open.
    _sender: Option<Arc<watch::Sender<Result<LeaderToken, Standby>>>>,
}

impl Leadership {
    /// The leadership of a replica that runs without an election.
    #[must_use]
    pub fn always() -> Self {
        let (sender, state) = watch::channel(Ok(LeaderToken::unbounded()));
        Self { state, _sender: Some(Arc::new(sender)) }
    }

    /// Proof that this replica leads now, by a clock that also runs while the machine is suspended.
    #[must_use]
    pub fn token(&self) -> Option<LeaderToken> {
        self.state.borrow().as_ref().ok().filter(|token| token.is_valid(Moment::now())).cloned()
    }

    /// Whether this replica leads now.
    #[must_use]
    pub fn leads(&self) -> bool {
        self.token().is_some()
    }

    /// Waits until the state of the election is known: it leads, or has seen who does. False when the election has ended.
    pub async fn known(&mut self) -> bool {
        self.state.wait_for(|state| state.as_ref().map_or_else(|standby| standby.known, |_| true)).await.is_ok()
    }

    /// Waits until this replica leads; false when the election has ended.
    pub async fn gained(&mut self) -> bool {
        self.state.wait_for(|state| state.as_ref().is_ok_and(|token| token.is_valid(Moment::now()))).await.is_ok()
    }

    /// Waits until this replica does not lead: it is told, or its token has run out.
    pub async fn lost(&mut self) {
        while let Some(token) = self.token() {
            // Looked at again soon: after a pause of the machine its sleep may be longer than what is left by the token's clock.
            let over = token.remaining(Moment::now()).min(LOOK);
            tokio::select! {
                changed = self.state.changed() => if changed.is_err() { return },
                () = sleep(over) => {}
            }
        }
    }
}

/// An identity that no other process has: a restarted container must not take the Lease of its predecessor for its own.
#[must_use]
pub fn unique_identity(name: &str) -> String {
    let random = std::hash::RandomState::new().build_hasher().finish();
    format!("{name}_{random:016x}")
}

/// Takes part in the election until `shutdown`, and gives the Lease back then. The second value is the work to spawn: the
/// election lasts as long as it is polled.
pub fn run(
    client: kube::Client,
    config: Config,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> (Leadership, impl Future<Output = ()> + Send + 'static) {
    let (sender, state) = watch::channel(Err(Standby::default()));
    (Leadership { state, _sender: None }, elect(client, config, sender, shutdown))
}

async fn elect(
    client: kube::Client,
    config: Config,
    sender: watch::Sender<Result<LeaderToken, Standby>>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) {
    let api = Api::<Lease>::namespaced(client, &config.namespace);
    let mut elector = Elector::new(&config.identity, config.timings);
    let mut lease = Lease::default();
    {
        let shutdown = std::pin::pin!(shutdown);
        let course = std::pin::pin!(course(&api, &config, &mut elector, &mut lease, &sender));
        futures::future::select(shutdown, course).await;
    }
    elector.resign();
    sender.send_modify(|state| *state = Err(Standby { known: true }));
    // The last write may have been cut off: look at what is there.
    look(&api, &config, &mut elector, &mut lease).await;
    if let Some(write) = elector.release() {
        let _ = store(&api, &config, &mut lease, &write).await;
        tracing::info!(lease = config.name, "gave the lease back");
    }
}

/// The election, without end.
async fn course(
    api: &Api<Lease>,
    config: &Config,
    elector: &mut Elector,
    lease: &mut Lease,
    sender: &watch::Sender<Result<LeaderToken, Standby>>,
) {
    let mut led = false;
    loop {
        match elector.step(Moment::now()) {
            Step::Sleep(length) => {
                let token = elector.token(Moment::now());
                // Wakes to say that the token has run out, too.
                let until_over = token.map_or(length, |token| token.remaining(Moment::now()));
                sleep(length.min(until_over)).await;
            }
            Step::Read => look(api, config, elector, lease).await,
            Step::Write(write) => {
                let sent = Moment::now();
                let outcome = store(api, config, lease, &write).await;
                elector.written(&write, outcome, sent, Moment::now());
            }
        }
        let now = Moment::now();
        let state = elector.token(now).ok_or_else(|| Standby { known: elector.has_looked() });
        if state.is_ok() != led {
            led = state.is_ok();
            tracing::info!(lease = config.name, leads = led, holder = elector.holder(), "leadership changed");
        }
        sender.send_if_modified(|old| {
            let changed = *old != state;
            *old = state;
            changed
        });
    }
}

/// No request may use up the time that a leader has to renew.
fn patience(timings: Timings) -> Duration {
    timings.renew_deadline / 4
}

async fn look(api: &Api<Lease>, config: &Config, elector: &mut Elector, lease: &mut Lease) {
    let sent = Moment::now();
    match timeout(patience(config.timings), api.get_opt(&config.name)).await {
        Ok(Ok(found)) => {
            elector.read(found.as_ref().map(|found| record_of(found, config.timings)), sent, Moment::now());
            *lease = found.unwrap_or_default();
        }
        Ok(Err(error)) => {
            elector.unread(sent);
            tracing::warn!(lease = config.name, error = &error as &dyn std::error::Error, "cannot read the lease");
        }
        Err(_) => {
            elector.unread(sent);
            tracing::warn!(lease = config.name, "no answer to a read of the lease");
        }
    }
}

/// Writes the record over the Lease as it was seen. Only a version that is still the same is replaced.
async fn store(api: &Api<Lease>, config: &Config, lease: &mut Lease, write: &Write) -> Written {
    let object = lease_of(lease, config, &write.record, Timestamp::now());
    let params = PostParams { field_manager: Some(crate::api::FIELD_MANAGER.to_owned()), ..PostParams::default() };
    let request = async {
        if write.record.version.is_empty() {
            api.create(&params, &object).await
        } else {
            api.replace(&config.name, &params, &object).await
        }
    };
    match timeout(patience(config.timings), request).await {
        Ok(Ok(stored)) => {
            let version = stored.metadata.resource_version.clone();
            *lease = stored;
            version.map_or(Written::Failed, Written::Stored)
        }
        Ok(Err(kube::Error::Api(status))) if status.is_conflict() || status.is_already_exists() => Written::Failed,
        Ok(Err(error)) => {
            tracing::warn!(lease = config.name, error = &error as &dyn std::error::Error, "cannot write the lease");
            Written::Failed
        }
        Err(_) => {
            tracing::warn!(lease = config.name, "no answer to a write of the lease");
            Written::Failed
        }
    }
}

fn record_of(lease: &Lease, timings: Timings) -> Record {
    let spec = lease.spec.clone().unwrap_or_default();
    let seconds = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
    Record {
        holder: spec.holder_identity.filter(|holder| !holder.is_empty()),
        // Never shorter than our own: a holder by these timings relies on it.
        lease: seconds.map_or(timings.lease, Duration::from_secs).max(timings.lease),
        transitions: spec.lease_transitions.unwrap_or(0),
        version: lease.metadata.resource_version.clone().unwrap_or_default(),
    }
}

fn lease_of(seen: &Lease, config: &Config, record: &Record, now: Timestamp) -> Lease {
    let before = seen.spec.clone().unwrap_or_default();
    let renews = before.holder_identity.is_some() && before.holder_identity == record.holder;
    let metadata = if record.version.is_empty() {
        ObjectMeta {
            name: Some(config.name.clone()),
            namespace: Some(config.namespace.clone()),
            ..ObjectMeta::default()
        }
    } else {
        ObjectMeta { resource_version: Some(record.version.clone()), ..seen.metadata.clone() }
    };
    Lease {
        metadata,
        spec: Some(LeaseSpec {
            // Empty, not absent: what released Leases look like everywhere.
            holder_identity: Some(record.holder.clone().unwrap_or_default()),
            lease_duration_seconds: i32::try_from(record.lease.as_secs()).ok(),
            lease_transitions: Some(record.transitions),
            renew_time: Some(MicroTime(now)),
            acquire_time: if renews { before.acquire_time } else { Some(MicroTime(now)) },
            ..LeaseSpec::default()
        }),
    }
}

#[cfg(test)]
mod tests;
