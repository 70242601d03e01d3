//! What the ledger costs: `cargo bench --bench ledger`. One redis-server on one core, 4 limits in each call.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../tests/common/mod.rs"]
mod common;

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::RedisServer;
use redis::aio::MultiplexedConnection;
use tokenbudget::ledger::{
    Ask, BookCall, BookId, Call, Epoch, Keys, Ledger, MemberPlan, PlanWrite, RedisLedger, Timeouts, Unit, call_script,
};

const UID: &str = "5f2d9c60-1111-2222-3333-0123456789ab";
/// Callers at once, on their own connections: more than one server can serve.
const CALLERS: usize = 32;
/// How long one figure is measured.
const FOR: Duration = Duration::from_secs(4);

fn books() -> Vec<BookId> {
    ["gpt-4o", "gpt-4o-mini", "o3", "embeddings"].map(|limit| BookId::new(limit, Unit::Tokens)).into()
}

struct Loaded {
    server: RedisServer,
    ledger: RedisLedger,
    redis: MultiplexedConnection,
    epoch: Epoch,
    writes: Vec<PlanWrite>,
    members: Vec<String>,
}

impl Loaded {
    /// A server whose books hold a record of each member.
    async fn new(members: usize) -> Self {
        let server = RedisServer::start().await;
        let mut redis = server.connection().await;
        let ids: Vec<String> = (0..members).map(|i| format!("5f2d9c60-1111-2222-3333-{i:012x}.7.abcd1234")).collect();
        let shares: BTreeMap<_, _> =
            ids.iter().map(|id| (id.clone(), MemberPlan { share: 100, finished_ms: None })).collect();
        let ledger =
            RedisLedger::connect(&server.url(), Timeouts { call: Duration::from_secs(9), ..Timeouts::default() });
        let ledger = ledger.unwrap();
        let epoch = ledger.claim(UID).await.unwrap();
        let writes: Vec<PlanWrite> = books()
            .into_iter()
            .map(|book| PlanWrite {
                book,
                budget: 1_000_000_000,
                aside: 0,
                level: 1_000,
                safe: 100,
                lease_ms: 30_000,
                first: true,
                members: shares.clone(),
            })
            .collect();
        ledger.plan(UID, epoch, &writes).await.unwrap();
        for id in &ids {
            call(&ledger, id, 1, 0).await;
        }
        // Only now: the members of this measurement are not what is measured.
        pin(&mut redis).await;
        Self { server, ledger, redis, epoch, writes, members: ids }
    }

    /// Calls per second, and the time that a call's script takes on the server, us.
    async fn calls(&mut self) -> (f64, f64) {
        reset(&mut self.redis).await;
        let start = Instant::now();
        let callers: Vec<_> = (0..CALLERS)
            .map(|caller| {
                let ids: Vec<String> = self.members.iter().skip(caller).step_by(CALLERS).cloned().collect();
                let ledger = RedisLedger::connect(&self.server.url(), Timeouts::default()).unwrap();
                tokio::spawn(async move {
                    let mut calls = 0_u64;
                    for seq in 2.. {
                        for id in &ids {
                            if start.elapsed() >= FOR {
                                return calls;
                            }
                            call(&ledger, id, seq, seq % 90).await;
                            calls += 1;
                        }
                        if ids.is_empty() {
                            break;
                        }
                    }
                    calls
                })
            })
            .collect();
        let mut calls = 0;
        for caller in callers {
            calls += caller.await.unwrap();
        }
        (calls as f64 / start.elapsed().as_secs_f64(), evalsha_us(&mut self.redis).await)
    }

    /// The most calls per second, by two callers that send 250 at once, so that the server never waits for them; and the
    /// server's own CPU time for each, us. On a machine with other work only the second says what one core carries.
    async fn most_calls(&mut self) -> (f64, f64) {
        let before = cpu_us(&mut self.redis).await;
        let start = Instant::now();
        let callers: Vec<_> = (0..2)
            .map(|caller| {
                let (members, server) = (self.members.clone(), self.server.url());
                tokio::spawn(async move {
                    let client = redis::Client::open(server).unwrap();
                    let mut redis = client.get_multiplexed_async_connection().await.unwrap();
                    let (script, keys) = (redis::Script::new(call_script()), Keys::new(UID));
                    let names: Vec<String> =
                        [keys.meta(), keys.members()].into_iter().chain(books().iter().map(|b| keys.book(b))).collect();
                    let mut ids = members.iter().skip(caller).step_by(2).cycle();
                    let mut calls = 0_u64;
                    while start.elapsed() < FOR {
                        let mut pipe = redis::pipe();
                        for _ in 0..250 {
                            calls += 1;
                            let command = pipe.cmd("EVALSHA").arg(script.get_hash()).arg(names.len()).arg(&names);
                            command.arg(ids.next()).arg(1_000_000 + calls).arg(0).arg("").arg("");
                            for _ in 0..4 {
                                command.arg(&[100, 100 + calls % 20, 0, calls % 90, 0, 50]);
                            }
                            command.ignore();
                        }
                        let _: () = pipe.query_async(&mut redis).await.unwrap();
                    }
                    calls
                })
            })
            .collect();
        let mut calls = 0;
        for caller in callers {
            calls += caller.await.unwrap();
        }
        let calls = calls as f64;
        (calls / start.elapsed().as_secs_f64(), (cpu_us(&mut self.redis).await - before) / calls)
    }

    /// The longest that one run of the plan's script takes on average, us; and how long the operator reads, ms.
    async fn passes(&mut self) -> (f64, f64) {
        reset(&mut self.redis).await;
        for _ in 0..5 {
            for write in &mut self.writes {
                write.members.values_mut().for_each(|member| member.share += 1);
            }
            self.ledger.plan(UID, self.epoch, &self.writes).await.unwrap();
        }
        let plan = evalsha_us(&mut self.redis).await;
        let start = Instant::now();
        for _ in 0..5 {
            self.ledger.observe(UID, &books()).await.unwrap();
        }
        (plan, start.elapsed().as_secs_f64() * 1e3 / 5.0)
    }
}

async fn call(ledger: &RedisLedger, member: &str, seq: u64, spent: u64) {
    let books: Vec<BookCall> = books()
        .into_iter()
        .map(|book| BookCall { book, ask: Ask { keep: 100, want: 100 + seq % 20, spent, off: 50, ..Ask::default() } })
        .collect();
    ledger.call(UID, &Call { member, seq, books: &books, ..Call::default() }).await.unwrap();
}

/// To the first core, where there is `taskset`; the client has the others.
async fn pin(redis: &mut MultiplexedConnection) {
    let info: String = redis::cmd("INFO").arg("server").query_async(redis).await.unwrap();
    let process = info.lines().find_map(|line| line.strip_prefix("process_id:")).unwrap().trim();
    let pinned = Command::new("taskset").args(["-acp", "0", process]).stdout(Stdio::null()).status();
    if !pinned.is_ok_and(|status| status.success()) {
        println!("(the server is not pinned to one core)");
    }
}

async fn reset(redis: &mut MultiplexedConnection) {
    let _: () = redis::cmd("CONFIG").arg("RESETSTAT").query_async(redis).await.unwrap();
}

async fn evalsha_us(redis: &mut MultiplexedConnection) -> f64 {
    let stats: String = redis::cmd("INFO").arg("commandstats").query_async(redis).await.unwrap();
    let line = stats.lines().find(|line| line.starts_with("cmdstat_evalsha:")).unwrap();
    line.split("usec_per_call=").nth(1).unwrap().split(',').next().unwrap().parse().unwrap()
}

/// CPU time of the server's process so far, us.
async fn cpu_us(redis: &mut MultiplexedConnection) -> f64 {
    let info: String = redis::cmd("INFO").arg("cpu").query_async(redis).await.unwrap();
    let seconds = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<f64>().ok());
    (seconds("used_cpu_user:").unwrap() + seconds("used_cpu_sys:").unwrap()) * 1e6
}

#[tokio::main]
async fn main() {
    println!(
        "members | script of a call, us | calls/s, one by one | calls/s, many at once | CPU of a call, us | a run of the \
         plan, us | observe, ms"
    );
    for members in [20, 1_000, 10_000] {
        let mut loaded = Loaded::new(members).await;
        let (rate, script) = loaded.calls().await;
        let (most, cpu) = loaded.most_calls().await;
        let (plan, observe) = loaded.passes().await;
        println!("{members:7} | {script:20.1} | {rate:19.0} | {most:21.0} | {cpu:17.1} | {plan:21.0} | {observe:11.1}");
    }
}
