//! The ledger in Redis.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{Client, ErrorKind, FromRedisValue, RedisError, RedisResult, Script, ServerErrorKind, Value};

use super::error::{LedgerError, RedisFault};
use super::scripts::{self, call_script};
use super::{
    Answer, BookAnswer, BookId, BookStanding, BookState, Call, Epoch, Keys, Ledger, MemberPlan, Observation, PlanWrite,
    Planned, PlannedBook, Policy,
};

/// Members that one run of the plan script handles, so that it never holds the server up for long.
const ROWS_PER_RUN: usize = 500;

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

/// A ledger on one Redis server, reached when it is first needed and again after every loss. Clones share a connection.
#[derive(Clone)]
pub struct RedisLedger {
    inner: Arc<Inner>,
}

struct Inner {
    client: Client,
    timeouts: Timeouts,
    connection: Mutex<(u64, ConnectionManager)>,
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
    /// Prepares a ledger at a `redis://` or `rediss://` URL; nothing is sent yet. Needs a tokio runtime.
    pub fn connect(url: &str, timeouts: Timeouts) -> Result<Self, LedgerError> {
        let client = open(url)?;
        let connection =
            manager(&client, timeouts).map_err(|error| LedgerError::InvalidUrl { problem: error.kind_text() })?;
        Ok(Self {
            inner: Arc::new(Inner {
                client,
                timeouts,
                connection: Mutex::new((0, connection)),
                claim: Script::new(scripts::CLAIM),
                publish: Script::new(scripts::PUBLISH),
                plan: Script::new(scripts::PLAN),
                close: Script::new(scripts::CLOSE),
                call: Script::new(call_script()),
            }),
        })
    }

    /// Host and port (or path) of the server, for logs.
    pub fn server(&self) -> String {
        self.inner.client.get_connection_info().addr().to_string()
    }

    async fn run<T, W, F>(&self, name: &str, work: W) -> Result<T, LedgerError>
    where
        W: FnOnce(ConnectionManager) -> F + Send,
        F: Future<Output = RedisResult<T>> + Send,
    {
        let deadline = self.inner.timeouts.call;
        let (generation, connection) = self.connection().clone();
        let result = match tokio::time::timeout(deadline, work(connection)).await {
            Err(_) => Err(LedgerError::Timeout { after: deadline }),
            Ok(result) => result.map_err(|error| self.explain(name, &error)),
        };
        if let Err(LedgerError::Timeout { .. } | LedgerError::Unreachable { .. }) = result {
            self.replace(generation);
        }
        result
    }

    async fn script<T: FromRedisValue + Send>(
        &self,
        name: &str,
        script: &Script,
        keys: &[String],
        args: &[String],
    ) -> Result<T, LedgerError> {
        self.run(name, |mut connection| async move { script.key(keys).arg(args).invoke_async(&mut connection).await })
            .await
    }

    /// A script of the operator: the first element of the answer says whether the epoch held.
    async fn fenced(
        &self,
        name: &str,
        script: &Script,
        keys: &[String],
        args: &[String],
    ) -> Result<Vec<Value>, LedgerError> {
        let mut answer: Vec<Value> = self.script(name, script, keys, args).await?;
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

    fn connection(&self) -> std::sync::MutexGuard<'_, (u64, ConnectionManager)> {
        self.inner.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection manager mends a broken connection only after some errors: not after a time-out, a wrong
    /// password, or while the server loads. So it is replaced after every failure.
    fn replace(&self, generation: u64) {
        let mut current = self.connection();
        if current.0 == generation
            && let Ok(fresh) = manager(&self.inner.client, self.inner.timeouts)
        {
            *current = (generation + 1, fresh);
        }
    }

    fn explain(&self, name: &str, error: &RedisError) -> LedgerError {
        if error.is_timeout() {
            return LedgerError::Timeout { after: self.inner.timeouts.response };
        }
        // A server may quote the arguments of a command that it does not know.
        let mut text = error.to_string();
        if let Some(password) = self.inner.client.get_connection_info().redis_settings().password()
            && !password.is_empty()
        {
            text = text.replace(password, "***");
        }
        match error.kind() {
            ErrorKind::UnexpectedReturnType => LedgerError::malformed(name),
            ErrorKind::Server(
                ServerErrorKind::BusyLoading
                | ServerErrorKind::ReadOnly
                | ServerErrorKind::MasterDown
                | ServerErrorKind::ClusterDown
                | ServerErrorKind::TryAgain,
            ) => LedgerError::Unreachable { source: RedisFault(text) },
            // A write inside a script is wrapped in an error of the script, before Redis 7.
            ErrorKind::Server(_) if text.contains("READONLY ") => LedgerError::Unreachable { source: RedisFault(text) },
            ErrorKind::Server(_) => LedgerError::Script { message: text },
            ErrorKind::Extension if error.code() != Some("NOAUTH") => LedgerError::Script { message: text },
            _ => LedgerError::Unreachable { source: RedisFault(text) },
        }
    }
}

impl Ledger for RedisLedger {
    async fn claim(&self, uid: &str) -> Result<Epoch, LedgerError> {
        let rest = self.fenced("claim.lua", &self.inner.claim, &[Keys::new(uid).meta()], &[]).await?;
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
        let answers: Vec<Value> =
            self.run("observe", |mut connection| async move { pipe.query_async(&mut connection).await }).await?;
        let mut answers = answers.into_iter();

        let policy_version = read(&mut answers, &keys.meta())?;
        let mut observation = Observation { policy_version, ..Observation::default() };
        let reports: HashMap<String, String> = read(&mut answers, &keys.members())?;
        for (member, text) in reports {
            match serde_json::from_str(&text) {
                Ok(report) => {
                    observation.reports.insert(member, report);
                }
                Err(_) => observation.unreadable.push(member),
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

    async fn publish(&self, uid: &str, epoch: Epoch, policy: &Policy, removed: &[BookId]) -> Result<(), LedgerError> {
        let keys = Keys::new(uid);
        let text = serde_json::to_string(policy).map_err(|_| LedgerError::malformed(keys.meta()))?;
        let names: Vec<String> =
            std::iter::once(keys.meta()).chain(removed.iter().map(|book| keys.book(book))).collect();
        let args = [epoch.to_string(), policy.version.clone(), text];
        self.fenced("publish.lua", &self.inner.publish, &names, &args).await.map(drop)
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
            let mut rest = self.fenced("plan.lua", &self.inner.plan, &names, &args).await?.into_iter();
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
        self.fenced("close.lua", &self.inner.close, &names, &[epoch.to_string()]).await.map(drop)
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
            args.extend([book.keep, book.want, book.spent, book.denied, book.off].map(|amount| amount.to_string()));
        }
        let mut answer = self.script::<Vec<Value>>("call.lua", &self.inner.call, &names, &args).await?.into_iter();
        let version = read(&mut answer, "call.lua")?;
        let policy = read::<String>(&mut answer, "call.lua")?;
        let books: Vec<Vec<String>> = read(&mut answer, "call.lua")?;
        let books = books.iter().map(|book| book_answer(book)).collect::<Option<_>>();
        Ok(Answer {
            version,
            policy: Some(policy).filter(|text| !text.is_empty()),
            books: books.ok_or_else(|| LedgerError::malformed("call.lua"))?,
        })
    }
}

fn read<T: FromRedisValue>(answers: &mut impl Iterator<Item = Value>, key: &str) -> Result<T, LedgerError> {
    let value = answers.next().ok_or_else(|| LedgerError::malformed(key))?;
    T::from_redis_value(value).map_err(|_| LedgerError::malformed(key))
}

/// One book's part of a run: its place among all books, and some of its members.
type Part<'a> = (usize, &'a PlanWrite, Vec<(&'a String, &'a MemberPlan)>);

/// Packs the plan into runs of the script. A book with many members takes several.
fn runs(writes: &[PlanWrite]) -> Vec<Vec<Part<'_>>> {
    let (mut runs, mut run, mut room) = (Vec::new(), Vec::new(), ROWS_PER_RUN);
    for (place, write) in writes.iter().enumerate() {
        let mut members = write.members.iter();
        let mut left = members.len();
        loop {
            let part: Vec<_> = members.by_ref().take(room).collect();
            left -= part.len();
            room -= part.len();
            run.push((place, write, part));
            if room == 0 {
                runs.push(std::mem::take(&mut run));
                room = ROWS_PER_RUN;
            }
            if left == 0 {
                break;
            }
        }
    }
    // Also without a book: the keys live on, and the epoch is checked.
    if !run.is_empty() || runs.is_empty() {
        runs.push(run);
    }
    runs
}

fn plan_args((place, write, members): &Part<'_>, args: &mut Vec<String>) {
    let PlanWrite { book: _, budget, aside, safe, lease_ms, first, members: _ } = write;
    // The keys of the books follow meta and members, and Lua counts from 1.
    args.push((place + 3).to_string());
    args.extend([*budget, *aside, *safe, *lease_ms, u64::from(*first)].map(|number| number.to_string()));
    args.push(members.len().to_string());
    for (id, member) in members {
        args.extend([(*id).clone(), member.share.to_string(), u8::from(member.gone).to_string()]);
    }
}

fn planned_book(answer: &[i64]) -> Option<PlannedBook> {
    let [clock, budget, lent, aside, pool, learning, created] = *answer else {
        return None;
    };
    Some(PlannedBook {
        clock_ms: clock.try_into().ok()?,
        budget: budget.try_into().ok()?,
        lent: lent.try_into().ok()?,
        aside: aside.try_into().ok()?,
        pool,
        learning: learning == 1,
        created: created == 1,
    })
}

fn book_answer(answer: &[String]) -> Option<BookAnswer> {
    let [state, grant, share, pool, budget, safe] = answer else {
        return None;
    };
    Some(BookAnswer {
        state: match state.as_str() {
            "ok" => BookStanding::Ok,
            "contended" => BookStanding::Contended,
            "learning" => BookStanding::Learning,
            "stale" => BookStanding::Stale,
            "none" => BookStanding::None,
            _ => return None,
        },
        grant: grant.parse().ok()?,
        share: share.parse().ok()?,
        pool: pool.parse().ok()?,
        budget: budget.parse().ok()?,
        safe: safe.parse().ok()?,
    })
}

fn manager(client: &Client, timeouts: Timeouts) -> RedisResult<ConnectionManager> {
    // One attempt: who asks tries again at the next tick, and hears the reason now.
    let config = ConnectionManagerConfig::new()
        .set_connection_timeout(Some(timeouts.connect))
        .set_response_timeout(Some(timeouts.response))
        .set_number_of_retries(0);
    client.get_connection_manager_lazy(config)
}

/// Reads the URL. What the client says of a bad one may quote it, so only its fixed texts are passed on.
fn open(url: &str) -> Result<Client, LedgerError> {
    let invalid = |problem: &str| LedgerError::InvalidUrl { problem: problem.to_owned() };
    let url = url.trim();
    if url.is_empty() {
        return Err(invalid("it is empty"));
    }
    let Some((scheme, rest)) = url.split_once("://") else {
        return Err(invalid("it does not start with redis:// or rediss://"));
    };
    if !["redis", "rediss", "valkey", "valkeys", "unix", "redis+unix", "valkey+unix"].contains(&scheme) {
        return Err(invalid("its scheme is neither redis nor rediss"));
    }
    if rest.is_empty() {
        return Err(invalid("it names no host"));
    }
    if redis::parse_redis_url(url).is_none() {
        return Err(invalid(
            "it does not parse: the port has to be a number, and special characters of user and password have to be \
             percent-encoded (%2F for /, %23 for #, %3F for ?, %40 for @)",
        ));
    }
    Client::open(url).map_err(|error| LedgerError::InvalidUrl { problem: error.kind_text() })
}

trait FixedText {
    fn kind_text(&self) -> String;
}

impl FixedText for RedisError {
    /// The error's text without its detail.
    fn kind_text(&self) -> String {
        let text = self.to_string();
        match self.detail() {
            Some(detail) if !detail.is_empty() => text.replace(detail, "…"),
            _ => text,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::Unit;

    #[test]
    fn a_bad_url_is_named_without_its_secret() {
        for (url, problem) in [
            ("", "empty"),
            (" \n", "empty"),
            ("default:hunter2@redis:6379", "redis:// or rediss://"),
            ("http://:hunter2@redis", "scheme"),
            ("redis://", "no host"),
            ("redis://:hunter2@redis:port", "port"),
            ("redis://:hunter2#more@redis:6379", "percent-encoded"),
            ("redis://:hunter2@redis:6379/cache", "database"),
            ("redis://:hunter2@redis:6379/?protocol=hunter2", "protocol"),
        ] {
            let error = open(url).unwrap_err();
            let text = format!("{error} {error:?}");
            assert!(text.to_lowercase().contains(problem), "{url:?}: {text}");
            assert!(!text.contains("hunter2"), "{url:?}: {text}");
        }
        assert!(open("rediss://user:p%40ss@redis.example:6380/2\n").is_ok());
    }

    #[test]
    fn large_plans_are_run_in_parts() {
        let write = |limit: usize, members: usize| PlanWrite {
            book: BookId::new(limit.to_string(), Unit::Tokens),
            budget: 0,
            aside: 0,
            safe: 0,
            lease_ms: 0,
            first: false,
            members: (0..members).map(|i| (i.to_string(), MemberPlan::default())).collect(),
        };
        let writes = [write(0, 300), write(1, 900), write(2, 0), write(3, 300), write(4, 1)];
        let parts: Vec<Vec<(usize, usize)>> = runs(&writes)
            .iter()
            .map(|run| run.iter().map(|(place, _, members)| (*place, members.len())).collect())
            .collect();
        assert_eq!(parts, [vec![(0, 300), (1, 200)], vec![(1, 500)], vec![(1, 200), (2, 0), (3, 300)], vec![(4, 1)]]);
        assert_eq!(runs(&[]).len(), 1);
    }
}
