//! The ledger in Redis.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::aio::ConnectionManager;
use redis::{ErrorKind, FromRedisValue, RedisError, RedisResult, Script, ServerErrorKind, Value};

use self::address::Address;
use self::connect::Nodes;
use self::wire::{book_answer, call_args, leaves_arg, plan_args, planned_book, read, runs};
use super::error::{LedgerError, RedisFault};
use super::scripts::{self, call_script};
use super::{Answer, BookId, BookState, Call, Epoch, Keys, Ledger, Observation, PlanWrite, Planned, Policy, Report};

mod address;
mod connect;
mod counters;
mod sentinel;
mod wire;

/// How often one command is sent on from node to node of a cluster: once, and again when the slot moves meanwhile.
const MOST_HOPS: usize = 3;

const UNKNOWN_CA: &str = ": no CA that is known has signed it; put the CA's certificate into key ca.crt of the Secret that \
     spec.redis.urlSecretRef names";

/// How long to wait for the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// For one attempt to connect.
    pub connect: Duration,
    /// For the answer to one command.
    pub response: Duration,
    /// For all of one call: connecting, loading the script and its run.
    pub call: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { connect: Duration::from_secs(1), response: Duration::from_secs(1), call: Duration::from_millis(2_500) }
    }
}

/// A ledger on one Redis server, behind Sentinels or in a Redis Cluster, reached when it is first needed and again after every
/// loss. Clones share connections.
#[derive(Clone)]
pub struct RedisLedger {
    inner: Arc<Inner>,
    told: Option<Told>,
}

/// Hears how long each call took.
type Told = Arc<dyn Fn(Duration) + Send + Sync>;

struct Inner {
    nodes: Nodes,
    timeouts: Timeouts,
    claim: Script,
    publish: Script,
    plan: Script,
    close: Script,
    call: Script,
}

impl fmt::Debug for RedisLedger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisLedger").field("server", &self.server()).finish_non_exhaustive()
    }
}

impl RedisLedger {
    /// Prepares a ledger at a `redis://` or `rediss://` URL, or behind the Sentinels of a `redis+sentinel://` or
    /// `rediss+sentinel://` one; nothing is sent yet. Needs a tokio runtime. In a cluster, the URL names any of the nodes, or
    /// all of them by one DNS name.
    ///
    /// # Errors
    /// [`LedgerError::InvalidUrl`].
    pub fn connect(url: &str, timeouts: Timeouts) -> Result<Self, LedgerError> {
        Self::connect_trusting(url, None, timeouts)
    }

    /// [`connect`](Self::connect) that trusts the certificates of `ca` (PEM) instead of the public ones.
    ///
    /// # Errors
    /// [`LedgerError::InvalidUrl`] and [`LedgerError::InvalidCa`].
    pub fn connect_trusting(url: &str, ca: Option<&str>, timeouts: Timeouts) -> Result<Self, LedgerError> {
        let nodes = Nodes::new(Address::read(url, ca)?, timeouts)?;
        Ok(Self {
            told: None,
            inner: Arc::new(Inner {
                nodes,
                timeouts,
                claim: Script::new(scripts::CLAIM),
                publish: Script::new(scripts::PUBLISH),
                plan: Script::new(scripts::PLAN),
                close: Script::new(scripts::CLOSE),
                call: Script::new(call_script()),
            }),
        })
    }

    /// Whether there are clones of it.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        Arc::strong_count(&self.inner) > 1
    }

    /// The same ledger; `told` hears how long each call took, whatever came of it.
    #[must_use]
    pub fn telling(self, told: impl Fn(Duration) + Send + Sync + 'static) -> Self {
        Self { told: Some(Arc::new(told)), ..self }
    }

    /// Host and port of the server that the URL names, or the Sentinels and their name for it; for logs.
    pub fn server(&self) -> String {
        self.inner.nodes.named()
    }

    async fn run<T, W, F>(&self, uid: &str, name: &str, work: W) -> Result<T, LedgerError>
    where
        W: Fn(ConnectionManager) -> F + Send + Sync,
        F: Future<Output = RedisResult<T>> + Send,
    {
        let (nodes, deadline, began) = (&self.inner.nodes, self.inner.timeouts.call, Instant::now());
        let mut taken = None;
        let sent = async {
            let mut hops = 0;
            loop {
                let route = taken.insert(nodes.route(uid).await?);
                match work(route.connection.clone()).await {
                    Err(error) if hops < MOST_HOPS && nodes.follow(uid, route, &error) => hops += 1,
                    result => return result,
                }
            }
        };
        let result = match tokio::time::timeout(deadline, sent).await {
            Err(_) => Err(LedgerError::Timeout { after: deadline }),
            Ok(result) => result.map_err(|error| self.explain(name, &error)),
        };
        if let (Some(route), Err(LedgerError::Timeout { .. } | LedgerError::Unreachable { .. })) = (&taken, &result) {
            nodes.failed(uid, route);
        }
        if let Some(told) = &self.told {
            told(began.elapsed());
        }
        result
    }

    async fn script<T: FromRedisValue + Send>(
        &self,
        uid: &str,
        name: &str,
        script: &Script,
        keys: &[String],
        args: &[String],
    ) -> Result<T, LedgerError> {
        let work = |mut connection| async move { script.key(keys).arg(args).invoke_async(&mut connection).await };
        self.run(uid, name, work).await
    }

    /// A script of the operator: the first element of the answer says whether the epoch held.
    async fn fenced(
        &self,
        uid: &str,
        name: &str,
        script: &Script,
        keys: &[String],
        args: &[String],
    ) -> Result<Vec<Value>, LedgerError> {
        let mut answer: Vec<Value> = self.script(uid, name, script, keys, args).await?;
        if answer.is_empty() {
            return Err(LedgerError::malformed(name));
        }
        let rest = answer.split_off(1);
        match answer.pop().map(String::from_redis_value) {
            Some(Ok(word)) if word == "ok" => Ok(rest),
            Some(Ok(word)) if word == "fenced" => Err(LedgerError::Fenced),
            _ => Err(LedgerError::malformed(name)),
        }
    }

    fn explain(&self, name: &str, error: &RedisError) -> LedgerError {
        if error.is_timeout() {
            return LedgerError::Timeout { after: self.inner.timeouts.response };
        }
        // A server may quote the arguments of a command that it does not know.
        let mut text = error.to_string();
        for password in self.inner.nodes.passwords() {
            text = text.replace(password, "***");
        }
        // The second where another CA has the name of the right one.
        if text.contains("UnknownIssuer") || text.contains("BadSignature") {
            text += UNKNOWN_CA;
        }
        match error.kind() {
            ErrorKind::UnexpectedReturnType => LedgerError::malformed(name),
            ErrorKind::Server(
                ServerErrorKind::BusyLoading
                | ServerErrorKind::ReadOnly
                | ServerErrorKind::MasterDown
                | ServerErrorKind::ClusterDown
                // The slot is being moved, or nobody says where to: the next call will find it.
                | ServerErrorKind::TryAgain
                | ServerErrorKind::Ask
                | ServerErrorKind::Moved,
            ) => LedgerError::Unreachable { source: RedisFault(text) },
            // Not the primary, or cut off from its replicas. A write inside a script is wrapped in an error of the script, before
            // Redis 7.
            ErrorKind::Server(_) | ErrorKind::Extension if ["READONLY ", "NOREPLICAS "].iter().any(|word| text.contains(word)) => {
                LedgerError::Unreachable { source: RedisFault(text) }
            }
            ErrorKind::Server(_) => LedgerError::Script { message: text },
            ErrorKind::Extension if error.code() != Some("NOAUTH") => LedgerError::Script { message: text },
            _ => LedgerError::Unreachable { source: RedisFault(text) },
        }
    }
}

impl Ledger for RedisLedger {
    async fn claim(&self, uid: &str) -> Result<Epoch, LedgerError> {
        let rest = self.fenced(uid, "claim.lua", &self.inner.claim, &[Keys::new(uid).meta()], &[]).await?;
        match rest.into_iter().next().map(u64::from_redis_value) {
            Some(Ok(epoch)) => Ok(Epoch(epoch)),
            _ => Err(LedgerError::malformed("claim.lua")),
        }
    }

    async fn observe(&self, uid: &str, books: &[BookId]) -> Result<Observation, LedgerError> {
        let keys = Keys::new(uid);
        let mut pipe = redis::pipe();
        pipe.hget(keys.meta(), "version").hgetall(keys.members());
        for book in books {
            pipe.hgetall(keys.book(book));
        }
        // Each answer is looked at by itself: the error of a whole pipeline does not say which node to ask instead.
        pipe.ignore_errors();
        let pipe = &pipe;
        let work = |mut connection| async move {
            let answers: Vec<RedisResult<Value>> = pipe.query_async(&mut connection).await?;
            answers.into_iter().collect::<RedisResult<Vec<Value>>>()
        };
        let mut answers = self.run(uid, "observe", work).await?.into_iter();

        let policy_version = read(&mut answers, &keys.meta())?;
        let mut observation = Observation { policy_version, ..Observation::default() };
        let reports: HashMap<String, String> = read(&mut answers, &keys.members())?;
        for (member, text) in reports {
            match Report::read(&text) {
                Some(report) => {
                    observation.reports.insert(member, report);
                }
                None => observation.unreadable.push(member),
            }
        }
        observation.unreadable.sort();
        for id in books {
            let key = keys.book(id);
            if let Some(book) = BookState::parse(&key, read(&mut answers, &key)?)? {
                observation.books.insert(id.clone(), book);
            }
        }
        Ok(observation)
    }

    async fn policy(&self, uid: &str) -> Result<Option<Policy>, LedgerError> {
        let meta = Keys::new(uid).meta();
        let meta = &meta;
        let work = |mut connection: ConnectionManager| async move {
            redis::cmd("HGET").arg(meta).arg("policy").query_async::<Option<String>>(&mut connection).await
        };
        Ok(self.run(uid, "policy", work).await?.and_then(|text| serde_json::from_str(&text).ok()))
    }

    async fn publish(&self, uid: &str, epoch: Epoch, policy: &Policy, removed: &[BookId]) -> Result<(), LedgerError> {
        let keys = Keys::new(uid);
        let text = serde_json::to_string(policy).map_err(|_| LedgerError::malformed(keys.meta()))?;
        let names: Vec<String> =
            std::iter::once(keys.meta()).chain(removed.iter().map(|book| keys.book(book))).collect();
        let args = [epoch.to_string(), policy.version.clone(), text];
        self.fenced(uid, "publish.lua", &self.inner.publish, &names, &args).await.map(drop)
    }

    async fn plan(&self, uid: &str, epoch: Epoch, writes: &[PlanWrite]) -> Result<Planned, LedgerError> {
        let keys = Keys::new(uid);
        let names: Vec<String> = [keys.meta(), keys.members()]
            .into_iter()
            .chain(writes.iter().map(|write| keys.book(&write.book)))
            .collect();
        let mut planned = Planned::default();
        for run in runs(writes) {
            let mut args = vec![epoch.to_string(), run.len().to_string()];
            for part in &run {
                plan_args(part, &mut args);
            }
            let mut rest = self.fenced(uid, "plan.lua", &self.inner.plan, &names, &args).await?.into_iter();
            let books: Vec<Vec<i64>> = read(&mut rest, "plan.lua")?;
            for ((_, write, _), answer) in run.iter().zip(books) {
                let mut book = planned_book(&answer).ok_or_else(|| LedgerError::malformed("plan.lua"))?;
                book.created |= planned.books.get(&write.book).is_some_and(|part| part.created);
                planned.books.insert(write.book.clone(), book);
            }
            planned.dropped.extend(read::<Vec<String>>(&mut rest, "plan.lua")?);
        }
        planned.dropped.sort();
        Ok(planned)
    }

    async fn close(&self, uid: &str, epoch: Epoch, books: &[BookId]) -> Result<(), LedgerError> {
        let keys = Keys::new(uid);
        let names: Vec<String> =
            [keys.meta(), keys.members()].into_iter().chain(books.iter().map(|book| keys.book(book))).collect();
        self.fenced(uid, "close.lua", &self.inner.close, &names, &[epoch.to_string()]).await?;
        self.inner.nodes.forget(uid);
        Ok(())
    }

    async fn call(&self, uid: &str, call: &Call<'_>) -> Result<Answer, LedgerError> {
        let keys = Keys::new(uid);
        let mut names = vec![keys.meta(), keys.members()];
        let report = match call.report {
            Some(report) => serde_json::to_string(report).map_err(|_| LedgerError::malformed(keys.members()))?,
            None => String::new(),
        };
        let leave = if call.leave { "1" } else { "0" };
        let mut args =
            vec![call.member.to_owned(), call.seq.to_string(), leave.to_owned(), call.version.to_owned(), report];
        for book in call.books {
            names.push(keys.book(&book.book));
            call_args(&book.ask, &mut args);
        }
        args.extend(call.books.iter().map(|book| leaves_arg(&book.ask)));
        let mut answer = self.script::<Vec<Value>>(uid, "call.lua", &self.inner.call, &names, &args).await?.into_iter();
        let version = read(&mut answer, "call.lua")?;
        let policy = read::<String>(&mut answer, "call.lua")?;
        let books: Vec<Vec<String>> = read(&mut answer, "call.lua")?;
        let time_ms = read(&mut answer, "call.lua")?;
        let books = books.iter().map(|book| book_answer(book)).collect::<Option<_>>();
        Ok(Answer {
            version,
            time_ms,
            policy: Some(policy).filter(|text| !text.is_empty()),
            books: books.ok_or_else(|| LedgerError::malformed("call.lua"))?,
        })
    }
}
