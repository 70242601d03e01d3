//! A fleet, its ledger, its operator and what goes wrong: one seeded run in virtual time. Everything that happens is an
//! event; nothing reads a clock.

mod calls;
mod event;
mod faults;
mod passes;
mod requests;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::rc::Rc;

use super::choice::Choice;
use super::demand::Offered;
use super::fault::Fault;
use super::member::Clocks;
use super::operator::{Operator, Seen, Wish};
use super::process::{Manners, Process};
use super::server::Server;
use super::size::SplitMix64;
use super::watch::Watch;
use crate::ledger::rules::Rules;
use event::{Entry, Event};

/// What a run is made of.
#[derive(Clone, Debug)]
pub struct Config {
    /// Budgets by book, per minute.
    pub budgets: Vec<u64>,
    /// Processes at the start.
    pub processes: usize,
    /// The most processes that are declared.
    pub most: u32,
    /// Zipf exponent of the demand over processes; 0: even.
    pub skew: f64,
    /// At this moment the demand turns over to other processes at once: the last becomes the most asked.
    pub turn_at: Option<f64>,
    /// How the processes behave.
    pub manners: Manners,
    /// What goes wrong, in the order of time.
    pub faults: Vec<(f64, Fault)>,
    /// Messages get lost, late, doubled, and clocks differ.
    pub rough: bool,
    /// From the check to the last hook, in seconds.
    pub send_delay: f64,
    /// What is allowed beyond the budget, as a part of it: where estimates are too low, it is bounded, not 0.
    pub excess: f64,
    /// How long it lasts, in seconds.
    pub seconds: f64,
    /// Same seed, same run.
    pub seed: u64,
    /// Which rules hold.
    pub rules: Rules,
}

/// A process and what surrounds it.
struct Slot {
    process: Process,
    /// Its member id.
    name: Rc<str>,
    /// The pod's, for its restarts.
    pod: usize,
    boot_rate: f64,
    boot_offset: f64,
    wall_offset: f64,
    since: f64,
    alive: bool,
    leaving: bool,
    frozen_until: f64,
    cut_until: f64,
    failing_until: f64,
    deferred: Vec<Event>,
    beat: u32,
}

/// What a run came to.
#[derive(Clone, Debug, Default)]
pub struct Run {
    /// What reached the provider: seconds, process, tokens of the first book.
    pub admitted: Vec<(f64, usize, u64)>,
    /// Requests refused.
    pub refused: u64,
    /// When they were, in seconds.
    pub refusals: Vec<f64>,
    /// Requests offered.
    pub offered: u64,
    /// Calls to the ledger.
    pub calls: u64,
    /// Events.
    pub events: u64,
    /// Sum of grants of the first book, each second.
    pub grants: Vec<(f64, u64)>,
    /// Live processes from each moment on.
    pub replicas: Vec<(f64, u32)>,
    /// The fullest 60 s of each book, as a part of what was allowed then.
    pub worst: f64,
    /// The first promise that was broken, if any.
    pub breach: Option<String>,
    /// What the ledger still holds at the end, in the first book.
    pub left: u64,
}

/// The world.
pub struct World<'a> {
    config: &'a Config,
    trace: &'a [Offered],
    now: f64,
    queue: BinaryHeap<Reverse<Entry>>,
    number: u64,
    slots: Vec<Slot>,
    server: Server,
    operators: Vec<(Operator, f64, Wish)>,
    operator_away_until: f64,
    second_until: f64,
    kubernetes_lag: f64,
    views: VecDeque<(f64, Vec<Seen>)>,
    pods: Vec<(usize, bool)>,
    ended: Vec<Seen>,
    wish: Wish,
    lease_falls_at: f64,
    /// The budgets that the operator has written, and when one of them was cut last.
    budgets: Vec<u64>,
    cut_at: f64,
    manners: Manners,
    rng: SplitMix64,
    watch: Watch,
    run: Run,
    /// The live processes, and which of them a request goes to.
    live: Vec<usize>,
    choice: Choice,
    attempts: u64,
}

impl<'a> World<'a> {
    /// A fleet at rest.
    #[must_use]
    pub fn new(config: &'a Config, trace: &'a [Offered]) -> Self {
        let wish = Wish { budgets: config.budgets.clone(), most: config.most, lease: config.manners.lease };
        let keeps_history = config.faults.iter().any(|(_, fault)| matches!(fault, Fault::Failover(_)));
        let mut world = Self {
            config,
            trace,
            now: 0.0,
            queue: BinaryHeap::new(),
            number: 0,
            slots: Vec::new(),
            server: Server::new(config.budgets.len(), keeps_history, config.rules),
            operators: vec![(Operator::new(false, config.rules), 0.0, wish.clone())],
            operator_away_until: 0.0,
            second_until: 0.0,
            kubernetes_lag: 0.0,
            views: VecDeque::new(),
            pods: Vec::new(),
            ended: Vec::new(),
            wish,
            lease_falls_at: f64::INFINITY,
            budgets: config.budgets.clone(),
            cut_at: f64::NEG_INFINITY,
            manners: config.manners,
            rng: SplitMix64::new(config.seed),
            watch: Watch::new(&config.budgets, config.excess),
            run: Run::default(),
            live: Vec::new(),
            choice: Choice::default(),
            attempts: 0,
        };
        world.push(0.0, Event::Pass(0));
        for _ in 0..config.processes {
            world.start(None);
        }
        if !trace.is_empty() {
            world.push(trace[0].at, Event::Request(0));
        }
        for (place, (at, _)) in config.faults.iter().enumerate() {
            world.push(*at, Event::Fault(place));
        }
        world
    }

    fn push(&mut self, at: f64, event: Event) {
        self.number += 1;
        self.queue.push(Reverse(Entry { at, number: self.number, event }));
    }

    /// Runs to the end.
    #[must_use]
    pub fn run(self) -> Run {
        self.run_telling(&mut |_| {})
    }

    /// Runs to the end, and tells each second how far it is, in seconds.
    #[must_use]
    pub fn run_telling(mut self, tell: &mut dyn FnMut(f64)) -> Run {
        let mut next = 0.0;
        while let Some(Reverse(entry)) = self.queue.pop() {
            if entry.at > self.config.seconds {
                break;
            }
            self.now = entry.at;
            self.run.events += 1;
            if self.now >= next {
                tell(self.now);
                next = self.now + 1.0;
            }
            self.happen(entry.event);
            if self.run.breach.is_some() {
                break;
            }
        }
        self.run.worst = self.watch.worst;
        self.run.left = self.server.books().first().and_then(Option::as_ref).map_or(0, |book| book.lent);
        self.run
    }

    fn clocks(&self, who: usize) -> Clocks {
        let slot = &self.slots[who];
        let boot = slot.boot_offset + (self.now - slot.since) * slot.boot_rate;
        Clocks { boot, wall: 1_790_000_000.0 + self.now + slot.wall_offset }
    }

    /// When `seconds` of a process's boot clock will have passed.
    fn later(&self, who: usize, seconds: f64) -> f64 {
        self.now + seconds / self.slots[who].boot_rate
    }

    fn limits(&self) -> Vec<(u64, u64)> {
        self.wish.budgets.iter().map(|&budget| (budget, budget / u64::from(self.wish.most.max(1)))).collect()
    }

    /// A new process, in a pod of its own or in one whose container ended.
    fn start(&mut self, pod: Option<usize>) {
        let pod = pod.unwrap_or_else(|| {
            self.pods.push((0, false));
            self.pods.len() - 1
        });
        let who = self.slots.len();
        let member = format!("p{pod}.{who}");
        let drift = if self.config.rough { [0.99, 1.0, 1.01][self.rng.below(3)] } else { 1.0 };
        let offset = 1000.0 * self.rng.unit();
        let clocks = Clocks { boot: offset, wall: 1_790_000_000.0 + self.now };
        let process = Process::new(member, &self.limits(), self.manners, clocks, self.config.rules);
        self.add(process, pod, drift, offset);
        let first = if self.now == 0.0 { self.rng.unit() * self.manners.beat } else { 0.0 };
        self.push(self.now + first, Event::Beat(who, 0));
    }

    fn add(&mut self, process: Process, pod: usize, boot_rate: f64, boot_offset: f64) {
        self.pods[pod] = (self.slots.len(), false);
        self.slots.push(Slot {
            name: process.member.as_str().into(),
            process,
            pod,
            boot_rate,
            boot_offset,
            wall_offset: 0.0,
            since: self.now,
            alive: true,
            leaving: false,
            frozen_until: 0.0,
            cut_until: 0.0,
            failing_until: 0.0,
            deferred: Vec::new(),
            beat: 0,
        });
        self.count();
    }

    /// Who lives has changed.
    fn count(&mut self) {
        self.live = (0..self.slots.len()).filter(|&i| self.slots[i].alive && !self.slots[i].leaving).collect();
        self.run.replicas.push((self.now, u32::try_from(self.live.len()).unwrap_or(u32::MAX)));
        self.choice = Choice::zipf(self.config.skew, self.live.len());
    }

    /// Which process a request goes to.
    fn pick(&self, dice: f64) -> Option<usize> {
        let turned = self.config.turn_at.is_some_and(|at| self.now >= at);
        self.live.get(self.choice.place(dice, turned)?).copied()
    }

    fn refuse(&mut self, requests: usize) {
        self.run.refused += requests as u64;
        self.run.refusals.resize(self.run.refusals.len() + requests, self.now);
    }

    fn happen(&mut self, event: Event) {
        let who = match &event {
            Event::Beat(who, _)
            | Event::Call(who, _)
            | Event::Look(who)
            | Event::Answer(who, ..)
            | Event::GiveUp(who, _)
            | Event::Send(who, _)
            | Event::End(who, ..)
            | Event::Retry(who, _) => Some(*who),
            _ => None,
        };
        if let Some(who) = who {
            let slot = &mut self.slots[who];
            if !slot.alive {
                return;
            }
            if slot.frozen_until > self.now {
                slot.deferred.push(event);
                return;
            }
            let clocks = self.clocks(who);
            self.slots[who].process.ran_until(clocks);
        }
        match event {
            Event::Request(place) => self.request(place),
            Event::Beat(who, beat) => self.beat(who, beat),
            Event::Call(who, beat) => self.call(who, beat),
            Event::Look(who) => self.look(who),
            Event::CallArrives(who, out, back) => self.call_arrives(who, &out, back),
            Event::Answer(who, seq, answers, time) => self.answer(who, seq, &answers, time),
            Event::GiveUp(who, seq) => self.slots[who].process.give_up(seq),
            Event::Send(who, id) => self.send(who, id),
            Event::Reaches(who, amounts) => self.reaches(who, &amounts),
            Event::End(who, id, known) => self.end(who, id, known),
            Event::Retry(who, id) => self.retry(who, id),
            Event::Wake(who) => self.wake(who),
            Event::Boot(pod) => self.start(Some(pod)),
            Event::Pass(number) => self.pass(number),
            Event::Fault(place) => self.fault(self.config.faults[place].1),
        }
    }
}
