//! The operator in the simulation: what it sees of Kubernetes and of the ledger, and what it writes each second, by the same
//! plan as the real one.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use super::server::Server;
use crate::ledger::rules::{Rule, Rules};
use crate::ledger::{BookId, BookState, Epoch, HOLD_MS, MemberPlan, PlanWrite, Unit};
use crate::plan::{BookDemand, Booted, Departed, plan_book, safe_share};

/// A process without a record is counted from this age on, in seconds (`LEASE` in `controller/arrange.rs`).
const COUNTED_FROM: f64 = 30.0;

/// A process that was never answered admits nothing for so long, in seconds (`SILENCE` in `controller/arrange.rs`).
const SILENCE: f64 = COUNTED_FROM + HOLD_MS as f64 / 1000.0;

/// A pod's process as Kubernetes shows it.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Its member id: in the real thing, by pod UID and start time.
    pub member: Rc<str>,
    /// When its container started.
    pub since: f64,
    /// The kubelet says that it has ended, at this time of its node's wall clock, unix ms.
    pub finished_ms: Option<u64>,
    /// The pod's object is gone, without a word of an end.
    pub vanished: bool,
}

/// What people want.
#[derive(Clone, Debug, PartialEq)]
pub struct Wish {
    /// By book.
    pub budgets: Vec<u64>,
    /// The most processes that are expected.
    pub most: u32,
    /// The longest lease that any member may go by, in seconds.
    pub lease: f64,
}

/// An operator.
#[derive(Clone, Debug)]
pub struct Operator {
    epoch: Option<Epoch>,
    /// Whether a book of this TokenBudget was ever made: the status says so.
    pub ever: bool,
    /// Members that the ledger had, and that have not ended.
    known: BTreeSet<String>,
    /// Processes that ended without a record.
    departed: Departed,
    /// By which safe shares processes may go that have no record, by book.
    booted: Vec<Booted>,
    rules: Rules,
}

impl Operator {
    /// One that has just started, or taken over.
    #[must_use]
    pub fn new(ever: bool, rules: Rules) -> Self {
        Self { epoch: None, ever, known: BTreeSet::new(), departed: Departed::default(), booted: Vec::new(), rules }
    }

    /// One pass: answers whether it wrote. `leads`: it may claim the ledger anew.
    pub fn pass(&mut self, server: &mut Server, wish: &Wish, pods: &[Seen], leads: bool, now: f64) -> bool {
        let epoch = match self.epoch {
            Some(epoch) => epoch,
            None if leads => *self.epoch.insert(server.claim(now)),
            None => return false,
        };
        let taken = |pod: &Seen| (pod.vanished && !self.rules.hold(Rule::Evidence)).then_some(1);
        let gone = pods.iter().filter_map(|pod| Some((&*pod.member, pod.finished_ms.or_else(|| taken(pod))?)));
        let gone: BTreeMap<&str, u64> = gone.collect();
        let ended = |id: &str| gone.contains_key(id);
        self.remember(server, ended);
        let counts = |p: &&Seen| p.finished_ms.is_none() && !p.vanished && now - p.since > COUNTED_FROM;
        let mut live: BTreeSet<&str> = pods.iter().filter(counts).map(|p| &*p.member).collect();
        // A ledger that lost its data does not know of members whose pods are gone without a word.
        if self.rules.hold(Rule::RememberLost) {
            live.extend(self.known.iter().map(String::as_str));
        }
        let unrecorded = |book: Option<&BookState>| {
            let without = live.iter().copied().filter(|id| book.is_none_or(|book| !book.members.contains_key(*id)));
            without.collect::<BTreeSet<&str>>()
        };
        let silent = |p: &&Seen| now - p.since <= SILENCE && !self.known.contains(&*p.member);
        let silent: BTreeSet<&str> = pods.iter().filter(silent).map(|p| &*p.member).collect();
        let there = server.books().iter().flat_map(|book| unrecorded(book.as_ref())).filter(|id| !silent.contains(id));
        let there = there.map(|id| (id.to_owned(), 1)).collect();
        let stays = |id: &str| live.contains(id);
        self.departed = self.departed.pass(there, stays, (now * 1000.0) as u64);
        let departed = if self.rules.hold(Rule::CountDeparted) { self.departed.processes() } else { 0 };
        self.booted.resize(wish.budgets.len(), Booted::default());
        let booted = &mut self.booted;
        let writes: Vec<PlanWrite> = wish
            .budgets
            .iter()
            .enumerate()
            .map(|(place, &budget)| {
                let book = server.books()[place].as_ref();
                let members = book.map(|book| book.demands(ended)).unwrap_or_default();
                let without = unrecorded(book);
                let is_silent = |p: &&Seen| {
                    book.and_then(|b| Some(b.members.get(&*p.member)?.lease_is_over(b.clock_ms))) == Some(true)
                };
                let unheard = pods.iter().filter(|p| without.contains(&*p.member) || is_silent(p)).map(|p| p.since);
                let started = |id: &&&str| pods.iter().find(|p| &*p.member == **id).map_or(0.0, |p| p.since);
                let ended = (departed > 0).then_some(0.0);
                let since = unheard.chain(without.iter().map(|id| started(&id))).chain(ended).reduce(f64::min);
                let safe = safe_share(budget, wish.most);
                let ms = |at: f64| (at * 1000.0) as u64;
                booted[place] = booted[place].pass(safe, since.map(ms), false, ms(now));
                let each = without.iter().map(|id| booted[place].of(ms(started(&id))));
                let owed = each.sum::<u64>() + booted[place].largest() * u64::from(departed);
                let owed = if self.rules.hold(Rule::RememberBooted) { owed } else { 0 };
                let count = u32::try_from(without.len()).unwrap_or(u32::MAX).saturating_add(departed);
                let (unrecorded, owed) = if self.rules.hold(Rule::SetAside) { (count, owed) } else { (0, 0) };
                let demand = BookDemand { budget, most_processes: wish.most, unrecorded, owed, members };
                let plan = plan_book(&demand);
                let members = demand.members.iter().zip(plan.shares);
                let members = members
                    .map(|(m, share)| {
                        (m.member.to_owned(), MemberPlan { share, finished_ms: gone.get(m.member).copied() })
                    })
                    .collect();
                PlanWrite {
                    book: BookId::new(place.to_string(), Unit::Tokens),
                    first: !self.ever,
                    budget,
                    aside: plan.aside,
                    level: plan.level,
                    safe: plan.safe,
                    lease_ms: (wish.lease * 1000.0) as u64,
                    members,
                }
            })
            .collect();
        if server.plan(epoch, &writes, now).is_none() {
            self.epoch = None;
            return false;
        }
        self.ever = true;
        true
    }

    /// Takes note of the members that live, by the ledger; one that it lost stays.
    fn remember(&mut self, server: &Server, ended: impl Fn(&str) -> bool) {
        let members = || server.books().iter().flatten().flat_map(|book| &book.members);
        let all: BTreeSet<&str> = members().map(|(id, _)| id.as_str()).collect();
        self.known.retain(|id| !all.contains(&**id) && !ended(id));
        self.known.extend(members().filter(|(id, m)| m.ended_ms.is_none() && !ended(id)).map(|(id, _)| id.clone()));
    }
}
