//! Members by the thousand: each does what an agent does (its model, `src/simulate/process.rs`), over the real protocol.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use jiff::Timestamp;
use tokenbudget::ledger::rules::Rules;
use tokenbudget::ledger::{BookCall, BookId, Call, Ledger, MemberState, Policy, RedisLedger, Report, Timeouts, Unit};
use tokenbudget::simulate::Manners;
use tokenbudget::simulate::member::Clocks;
use tokenbudget::simulate::process::{DRAW_GAP, Process, Request, Verdict};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;

use super::pods::{Made, NODE};
use super::shifted::{Shift, Shifted, quantile};

/// Tokens of a request.
const SIZE: f64 = 300.0;

/// What a member spends when it is its turn, as a multiple of its fair part, and when it is not.
const BUSY: f64 = 2.0;
const IDLE: f64 = 0.1;

/// A report is made anew so often.
const REPORT: Duration = Duration::from_secs(10);

/// Connections to Redis; an agent has one of its own, which costs Redis memory and no more.
const CONNECTIONS: usize = 16;

/// All members, as they live.
pub struct Members {
    ledgers: Vec<RedisLedger>,
    shared: Arc<Shared>,
    /// Whether it is the turn of the members with an odd number to be busy.
    turn: watch::Sender<bool>,
    /// Members of one TokenBudget per pod, in the order of the pods.
    live: BTreeMap<String, CancellationToken>,
    started: usize,
}

#[derive(Default)]
struct Shared {
    calls: AtomicU64,
    failed: AtomicU64,
    /// Of those that have been busy since the last shift.
    shifted: Mutex<Shifted>,
    /// How long calls took, in ms, in the current window.
    took_ms: Mutex<Vec<f64>>,
    /// When a member was first lent something, seconds after its first request; 0 when it was before it.
    first: Mutex<Vec<f64>>,
}

/// What the members saw in a while.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Calls that were answered.
    pub calls: u64,
    /// Calls that failed.
    pub failed: u64,
    /// 99 % of calls took no longer, in ms.
    pub p99_ms: Option<f64>,
}

impl Members {
    /// None yet.
    ///
    /// # Errors
    /// When the URL cannot be used.
    pub fn new(redis_url: &str) -> Result<Self> {
        let connect = |_| RedisLedger::connect(redis_url, Timeouts::default());
        let ledgers = (0..CONNECTIONS).map(connect).collect::<Result<_, _>>()?;
        let (turn, _) = watch::channel(false);
        Ok(Self { ledgers, shared: Arc::default(), turn, live: BTreeMap::new(), started: 0 })
    }

    /// How many live.
    #[must_use]
    pub fn count(&self) -> usize {
        self.live.len()
    }

    /// Starts a member in each of these pods.
    ///
    /// # Errors
    /// When the ledger has no book yet.
    pub async fn start(&mut self, made: &Made, pods: &[(String, String)]) -> Result<()> {
        let book = BookId::new(super::LIMIT, Unit::Tokens);
        let seen = self.ledgers[0].observe(&made.uid, std::slice::from_ref(&book)).await?;
        let state = seen.books.get(&book).with_context(|| format!("{} has no book", made.name))?;
        let fair = state.budget as f64 / made.pods.len().max(1) as f64;
        for (pod, pod_uid) in pods {
            let number = self.started;
            self.started += 1;
            let end = CancellationToken::new();
            self.live.insert(pod_uid.clone(), end.clone());
            let member = Member {
                uid: made.uid.clone(),
                id: format!("{pod_uid}.1.{number}"),
                pod: pod.clone(),
                pod_uid: pod_uid.clone(),
                started: Timestamp::now(),
                book: book.clone(),
                limits: (state.budget, state.safe),
                odd: number % 2 == 1,
                fair: fair / 60.0,
                offset: (number * 7919 % 1000) as f64 / 1000.0,
                ledger: self.ledgers[number % CONNECTIONS].clone(),
                shared: self.shared.clone(),
                turn: self.turn.subscribe(),
            };
            tokio::spawn(async move { end.run_until_cancelled(member.live()).await });
        }
        Ok(())
    }

    /// Ends members without a word, by the UIDs of their pods.
    pub fn kill(&mut self, pods: &[(String, String)]) {
        for (_, pod_uid) in pods {
            if let Some(end) = self.live.remove(pod_uid) {
                end.cancel();
            }
        }
    }

    /// Those that were idle are busy from now on, and the other way round.
    pub fn shift(&self) {
        *lock(&self.shared.shifted) = Shifted::default();
        self.turn.send_modify(|odd| *odd = !*odd);
    }

    /// What those that have been busy since the last shift made of it.
    #[must_use]
    pub fn shifted(&self) -> Shifted {
        lock(&self.shared.shifted).clone()
    }

    /// Forgets when members were first lent something.
    pub fn forget_first(&self) {
        lock(&self.shared.first).clear();
    }

    /// How many were lent something since then, and within how many seconds of their first request so many of them (0 to 1) were.
    #[must_use]
    pub fn first(&self, part: f64) -> (usize, Option<f64>) {
        let mut times = lock(&self.shared.first).clone();
        (times.len(), quantile(&mut times, part))
    }

    /// What was seen since the last time that this was asked.
    pub fn seen(&self) -> Seen {
        let mut took = std::mem::take(&mut *lock(&self.shared.took_ms));
        Seen {
            calls: self.shared.calls.swap(0, Relaxed),
            failed: self.shared.failed.swap(0, Relaxed),
            p99_ms: quantile(&mut took, 0.99),
        }
    }
}

impl Drop for Members {
    fn drop(&mut self) {
        self.live.values().for_each(CancellationToken::cancel);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Member {
    uid: String,
    id: String,
    pod: String,
    pod_uid: String,
    started: Timestamp,
    book: BookId,
    limits: (u64, u64),
    odd: bool,
    /// Its fair part of the budget, tokens per second.
    fair: f64,
    /// Where in its beats and requests it begins, 0 to 1.
    offset: f64,
    ledger: RedisLedger,
    shared: Arc<Shared>,
    turn: watch::Receiver<bool>,
}

impl Member {
    async fn live(mut self) {
        let origin = Instant::now();
        let clocks = || {
            let since = origin.elapsed().as_secs_f64();
            Clocks { boot: 1000.0 + since, wall: Timestamp::now().as_millisecond() as f64 / 1000.0 }
        };
        let mut manners = Manners { lease: 30.0, beat: 0.5, max_wait: 0.25 };
        let mut process = Process::new(self.id.clone(), &[self.limits], manners, clocks(), Rules::default());
        let (mut version, mut reported, mut number, mut lent) = (String::new(), None::<Instant>, 0, false);
        let mut asked = None::<Instant>;
        let mut shift = Shift::default();
        let mut beat = Instant::now() + Duration::from_secs_f64(manners.beat * self.offset);
        let mut request = Instant::now() + self.gap().mul_f64(self.offset);
        loop {
            let draws = process.wants();
            let draw = process.last_call + DRAW_GAP - clocks().boot;
            let call = if draws { Instant::now() + Duration::from_secs_f64(draw.max(0.0)) } else { beat };
            let next = call.min(beat).min(request);
            if timeout_at(next, self.turn.changed()).await.is_ok() {
                // Somebody's turn has come: the next request is as far away as the new demand says.
                request = Instant::now() + self.gap().mul_f64(self.offset);
                shift = Shift::default();
                continue;
            }
            sleep_until(next).await;
            let now = clocks();
            process.ran_until(now);
            if request <= Instant::now() {
                request += self.gap();
                number += 1;
                asked.get_or_insert_with(Instant::now);
                let wanted = Request { id: number, needs: vec![(0, SIZE)], actual: vec![SIZE], latency: 0.0 };
                if self.is_busy() {
                    lock(&self.shared.shifted).offered(&mut shift);
                }
                if process.offer(wanted, now) == Verdict::Admitted {
                    ends(&mut process, number, now);
                    lock(&self.shared.shifted).admitted(&mut shift);
                }
            }
            let (admitted, _) = process.recheck(now);
            for id in admitted {
                ends(&mut process, id, now);
                lock(&self.shared.shifted).admitted(&mut shift);
            }
            let beats = beat <= Instant::now();
            if !(beats || process.wants() && now.boot - process.last_call >= DRAW_GAP) {
                continue;
            }
            let report = reported.is_none_or(|at| at.elapsed() >= REPORT).then(|| self.report(&version));
            if report.is_some() {
                reported = Some(Instant::now());
            }
            let out = process.call(beats, false, now);
            let books = [BookCall { book: self.book.clone(), ask: out.asks[0] }];
            let call = Call {
                member: &self.id,
                seq: out.seq,
                leave: false,
                version: &version,
                report: report.as_ref(),
                books: &books,
            };
            let began = Instant::now();
            match self.ledger.call(&self.uid, &call).await {
                Ok(answer) => {
                    process.answered(out.seq, &answer.books, answer.time_ms as f64 / 1000.0, clocks());
                    self.shared.calls.fetch_add(1, Relaxed);
                    lock(&self.shared.took_ms).push(began.elapsed().as_secs_f64() * 1e3);
                    if let Some(policy) = answer.policy.and_then(|text| serde_json::from_str::<Policy>(&text).ok()) {
                        manners.beat = policy.beat_ms as f64 / 1000.0;
                        process.set_manners(manners);
                        version = policy.version;
                    }
                    if !lent && process.books[0].grant > 0 {
                        lent = true;
                        lock(&self.shared.first).push(asked.map_or(0.0, |at| at.elapsed().as_secs_f64()));
                    }
                }
                Err(_) => {
                    process.give_up(out.seq);
                    self.shared.failed.fetch_add(1, Relaxed);
                }
            }
            beat = Instant::now() + Duration::from_secs_f64(process.time_to_beat(clocks()));
        }
    }

    /// Between two requests.
    fn gap(&self) -> Duration {
        Duration::from_secs_f64(SIZE / (self.fair * if self.is_busy() { BUSY } else { IDLE }))
    }

    fn is_busy(&self) -> bool {
        *self.turn.borrow() == self.odd
    }

    fn report(&self, version: &str) -> Report {
        Report {
            pod: self.pod.clone(),
            pod_uid: self.pod_uid.clone(),
            node: NODE.to_owned(),
            container: "litellm".to_owned(),
            worker: 1,
            started_ms: u64::try_from(self.started.as_millisecond()).unwrap_or(0),
            siblings: None,
            agent: env!("CARGO_PKG_VERSION").to_owned(),
            policy: version.to_owned(),
            state: MemberState::Enforcing,
            problems: Vec::new(),
            declared: Some(Vec::new()),
            private: false,
            limits: None,
            calls: None,
            outside: Vec::new(),
        }
    }
}

/// An admitted request is sent and ends at once.
fn ends(process: &mut Process, id: u64, now: Clocks) {
    if process.before_send(id, now) {
        process.end(id, true, now);
    }
}
