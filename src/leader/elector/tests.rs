//! A model: replicas with clocks of their own, a network that delays and loses, one API server.

use std::collections::BinaryHeap;

use proptest::prelude::*;

use super::*;

/// A replica's clocks: where they start, how fast they go (per mille), when it is frozen, and when its wall clock is set.
#[derive(Clone, Debug)]
struct Clocks {
    offset_ms: u64,
    rate: u64,
    suspended: Option<(u64, u64)>,
    wall_step: Option<(u64, i64)>,
}

impl Clocks {
    /// The moment at a true time. While suspended the monotonic clock stands still; the wall clock knows afterwards.
    fn at(&self, true_ms: u64) -> Moment {
        let slept = self.suspended.map_or(0, |(from, length)| true_ms.saturating_sub(from).min(length));
        let ms = |passed: u64| Duration::from_millis(self.offset_ms + passed * self.rate / 1000);
        let step = self.wall_step.filter(|(when, _)| true_ms >= *when).map_or(0, |(_, step)| step);
        let wall = i64::try_from(ms(true_ms).as_millis()).unwrap() + 1_000_000_000 + step;
        Moment { monotonic: ms(true_ms - slept), wall: Duration::from_millis(u64::try_from(wall).unwrap()) }
    }

    fn frozen(&self, true_ms: u64) -> Option<u64> {
        self.suspended
            .filter(|(from, length)| (*from..from + length).contains(&true_ms))
            .map(|(from, length)| from + length)
    }
}

/// What happens at a time, to a replica. Ordered by time; the queue pops the greatest, hence `Reverse`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// The replica thinks.
    Wake,
    /// A request reaches the server; the number is its place in `Model::requests`.
    Arrives(usize),
    /// Its answer reaches the replica.
    Answers(usize),
    /// The replica has waited long enough for it.
    TimesOut(usize),
}

struct Request {
    step: Step,
    sent: Moment,
    answer: Option<(Option<Record>, Written)>,
    open: bool,
}

struct Model {
    clocks: Vec<Clocks>,
    replicas: Vec<Elector>,
    lease: Option<Record>,
    versions: u64,
    requests: Vec<Request>,
    queue: BinaryHeap<std::cmp::Reverse<(u64, usize, Event)>>,
    delays: Vec<(u64, u64, bool)>,
    led: Vec<bool>,
    /// Until when it was run.
    ran: u64,
}

impl Model {
    fn new(clocks: Vec<Clocks>, delays: Vec<(u64, u64, bool)>) -> Self {
        let names = ["a", "b", "c", "d"];
        let replicas = clocks.iter().zip(names).map(|(_, name)| Elector::new(name, Timings::default())).collect();
        let queue = (0..clocks.len()).map(|n| std::cmp::Reverse((n as u64, n, Event::Wake))).collect();
        let led = vec![false; clocks.len()];
        Self { clocks, replicas, lease: None, versions: 0, requests: vec![], queue, delays, led, ran: 0 }
    }

    fn push(&mut self, at: u64, who: usize, event: Event) {
        self.queue.push(std::cmp::Reverse((at, who, event)));
    }

    /// Runs for so long, and asks at every event and in between that no two replicas may write.
    fn run(&mut self, until_ms: u64) -> Result<(), TestCaseError> {
        while let Some(std::cmp::Reverse((at, who, event))) = self.queue.pop() {
            if at > until_ms {
                self.push(at, who, event);
                return Ok(());
            }
            for time in (self.ran..at).step_by(250).chain([at]) {
                self.check(time)?;
            }
            self.ran = at;
            // A suspended machine does nothing, and its answers wait for it.
            if !matches!(event, Event::Arrives(_))
                && let Some(awake) = self.clocks[who].frozen(at)
            {
                self.push(awake, who, event);
                continue;
            }
            self.happen(at, who, event);
            self.check(at)?;
        }
        Ok(())
    }

    fn happen(&mut self, at: u64, who: usize, event: Event) {
        let now = self.clocks[who].at(at);
        match event {
            Event::Wake => match self.replicas[who].step(now) {
                Step::Sleep(length) => {
                    let ms = u64::try_from(length.as_millis()).unwrap() * 1000 / self.clocks[who].rate;
                    self.push(at + ms + 1, who, Event::Wake);
                }
                step => {
                    let id = self.requests.len();
                    let (there, back, lost) = self.delays[id % self.delays.len()];
                    self.requests.push(Request { step, sent: now, answer: None, open: true });
                    self.push(at + there, who, Event::Arrives(id));
                    if !lost {
                        self.push(at + there + back, who, Event::Answers(id));
                    }
                    self.push(at + 2_500, who, Event::TimesOut(id));
                }
            },
            Event::Arrives(id) => {
                let answer = match &self.requests[id].step {
                    Step::Write(write) => {
                        let version = self.lease.as_ref().map_or("", |lease| lease.version.as_str());
                        if write.record.version == version {
                            self.versions += 1;
                            let version = self.versions.to_string();
                            self.lease = Some(Record { version: version.clone(), ..write.record.clone() });
                            (None, Written::Stored(version))
                        } else {
                            (None, Written::Failed)
                        }
                    }
                    _ => (self.lease.clone(), Written::Failed),
                };
                self.requests[id].answer = Some(answer);
            }
            Event::Answers(id) => {
                let request = &mut self.requests[id];
                if !std::mem::replace(&mut request.open, false) {
                    return;
                }
                let (record, outcome) = request.answer.clone().unwrap();
                match &request.step {
                    Step::Write(write) => self.replicas[who].written(write, outcome, request.sent, now),
                    _ => self.replicas[who].read(record, request.sent, now),
                }
                self.push(at, who, Event::Wake);
            }
            Event::TimesOut(id) => {
                let request = &mut self.requests[id];
                if !std::mem::replace(&mut request.open, false) {
                    return;
                }
                match &request.step {
                    Step::Write(write) => self.replicas[who].written(write, Written::Failed, request.sent, now),
                    _ => self.replicas[who].unread(request.sent),
                }
                self.push(at, who, Event::Wake);
            }
        }
    }

    fn check(&mut self, at: u64) -> Result<(), TestCaseError> {
        let leads = |who: &usize| {
            let clocks = &self.clocks[*who];
            clocks.frozen(at).is_none() && self.replicas[*who].token(clocks.at(at)).is_some()
        };
        let leaders: Vec<usize> = (0..self.replicas.len()).filter(leads).collect();
        prop_assert!(leaders.len() <= 1, "{leaders:?} lead at {at} ms");
        leaders.iter().for_each(|who| self.led[*who] = true);
        Ok(())
    }
}

fn clocks() -> impl Strategy<Value = Clocks> {
    (
        0..100_000_000_u64,
        900..=1_100_u64,
        proptest::option::of((5_000..60_000_u64, 1_000..60_000_u64)),
        proptest::option::of((5_000..60_000_u64, -100_000..100_000_i64)),
    )
        .prop_map(|(offset_ms, rate, suspended, wall_step)| {
            // A clock that is set back while its machine sleeps hides the sleep from both clocks: that is the exception.
            let wall_step = wall_step.filter(|(_, step)| suspended.is_none() || *step >= 0);
            Clocks { offset_ms, rate, suspended, wall_step }
        })
}

fn delays() -> impl Strategy<Value = Vec<(u64, u64, bool)>> {
    let quick = (1..50_u64, 1..50_u64, Just(false));
    let slow = (1..40_000_u64, 1..5_000_u64, proptest::bool::weighted(0.3));
    proptest::collection::vec(prop_oneof![3 => quick, 1 => slow], 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn there_are_never_two_valid_tokens(clocks in proptest::collection::vec(clocks(), 2..=4), delays in delays()) {
        Model::new(clocks, delays).run(150_000)?;
    }
}

fn steady() -> Clocks {
    Clocks { offset_ms: 0, rate: 1000, suspended: None, wall_step: None }
}

#[test]
fn a_healthy_leader_stays() {
    let mut model = Model::new(vec![steady(), steady(), steady()], vec![(5, 5, false)]);
    model.run(120_000).unwrap();
    assert_eq!(model.led, [true, false, false]);
    assert_eq!(model.lease.unwrap().transitions, 0);
}

#[test]
fn another_takes_over_when_the_leader_freezes() {
    let frozen = Clocks { suspended: Some((10_000, 60_000)), ..steady() };
    let mut model = Model::new(vec![frozen, steady()], vec![(5, 5, false)]);
    model.run(27_500).unwrap();
    assert_eq!(model.led, [true, true], "within a lease and a pause");
    model.run(120_000).unwrap();
    assert_eq!(model.lease.unwrap().holder.as_deref(), Some("b"), "and it stays there");
}

#[test]
fn a_leader_without_answers_stops_in_time() {
    let at = |seconds: u64| Moment { monotonic: Duration::from_secs(seconds), wall: Duration::from_secs(seconds) };
    let mut elector = Elector::new("a", Timings::default());
    elector.read(None, at(0), at(0));
    let Step::Write(write) = elector.step(at(0)) else { panic!("creates it") };
    elector.written(&write, Written::Stored("1".to_owned()), at(0), at(1));
    let token = elector.token(at(1)).unwrap();
    assert!(elector.token(at(9)).is_some());
    assert!(elector.token(at(10)).is_none() && !token.is_valid(at(10)), "ten seconds from sending");
    // A wall clock that runs ahead, as after a suspend, ends it too.
    assert!(!token.is_valid(Moment { wall: Duration::from_secs(60), ..at(2) }));
}

#[test]
fn a_released_lease_is_taken_at_once() {
    let at = |ms: u64| Moment { monotonic: Duration::from_millis(ms), wall: Duration::from_millis(ms) };
    let mut elector = Elector::new("a", Timings::default());
    elector.read(None, at(0), at(0));
    let Step::Write(write) = elector.step(at(0)) else { panic!("creates it") };
    elector.written(&write, Written::Stored("1".to_owned()), at(0), at(1));
    assert_eq!(elector.release(), None, "not while it leads");
    elector.resign();
    let release = elector.release().unwrap();
    assert_eq!((release.record.holder.as_deref(), release.record.version.as_str()), (None, "1"));
    let mut other = Elector::new("b", Timings::default());
    other.read(Some(Record { version: "2".to_owned(), ..release.record }), at(2), at(3));
    assert!(matches!(other.step(at(3)), Step::Write(write) if write.record.transitions == 1));
}
