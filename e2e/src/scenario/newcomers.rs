//! Who was first: the ledger that knows a new pod, or the pod that is Ready. Read from the ledger itself and from a watch of
//! the pods, since the status of a TokenBudget may be seconds behind.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use tokenbudget::ledger::{BookId, Ledger as _, RedisLedger, Timeouts, Unit};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::fleet::{Fleet, text};
use super::rig::Rig;
use crate::load::TargetWatch;

/// How often both are looked at: the most that an order of events can be wrong by.
const TICK: Duration = Duration::from_millis(50);

/// When a pod was seen first. `None`: never.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sighting {
    /// In a book of the ledger, with its share.
    pub recorded: Option<Instant>,
    /// Ready, by its own watch.
    pub ready: Option<Instant>,
}

impl Sighting {
    /// How long its share was there before it was Ready, in seconds; `None` if it was not.
    #[must_use]
    pub fn lead(&self) -> Option<f64> {
        let (recorded, ready) = (self.recorded?, self.ready?);
        (recorded <= ready).then(|| (ready - recorded).as_secs_f64())
    }
}

/// What was seen of each pod, by its name.
pub type Sightings = BTreeMap<String, Sighting>;

/// Looks on until it is told to stop.
#[derive(Debug)]
pub struct Newcomers {
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<Sightings>>,
}

impl Newcomers {
    /// Begins to look at the fleet of this TokenBudget.
    ///
    /// # Errors
    /// When the cluster does not answer, or the TokenBudget has no ledger.
    pub async fn watch(rig: &Rig, budget: &str) -> Result<Self> {
        let object = Fleet::of(rig).get("tokenbudget", budget)?;
        let uid = text(&object["metadata"]["uid"]).to_owned();
        let books: Vec<BookId> = object["status"]["limits"]
            .as_array()
            .context("the TokenBudget shows no limits yet")?
            .iter()
            .map(|row| {
                let unit = if row["unit"] == Unit::Tokens.as_str() { Unit::Tokens } else { Unit::Requests };
                BookId::new(text(&row["name"]), unit)
            })
            .collect();
        let pods = TargetWatch::deployment(rig.client().await?, "llm", "litellm", 4000).await?;
        let ledger = RedisLedger::connect(&rig.redis_url, Timeouts::default())?;
        let (stop, stopped) = oneshot::channel();
        Ok(Self { stop, task: tokio::spawn(look(uid, books, pods, ledger, stopped)) })
    }

    /// What was seen.
    ///
    /// # Errors
    /// When the ledger did not answer.
    pub async fn seen(self) -> Result<Sightings> {
        let _ = self.stop.send(());
        self.task.await?
    }
}

async fn look(
    uid: String,
    books: Vec<BookId>,
    pods: TargetWatch,
    ledger: RedisLedger,
    mut stopped: oneshot::Receiver<()>,
) -> Result<Sightings> {
    let mut seen = Sightings::new();
    let mut tick = tokio::time::interval(TICK);
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            _ = &mut stopped => return Ok(seen),
        }
        // One moment for both: the pods are read first, so a pod that was Ready earlier is never called in time.
        let (now, ready) = (Instant::now(), pods.ready());
        let observation = ledger.observe(&uid, &books).await?;
        for target in ready.iter() {
            seen.entry(target.name.to_string()).or_default().ready.get_or_insert(now);
        }
        for (member, report) in &observation.reports {
            if observation.books.values().any(|book| book.members.contains_key(member)) {
                seen.entry(report.pod.clone()).or_default().recorded.get_or_insert(now);
            }
        }
    }
}
