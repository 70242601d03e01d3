//! Step 3, plan: the policy and the books' shares that follow from what was validated. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use super::limits::{EffectiveLimit, Limits};
use super::observe::Observed;
use super::validate::Validated;
use crate::api;
use crate::api::TokenBudget;
use crate::ledger::{
    self, BookId, BookState, LimitPolicy, MemberPlan, ModelSelector, OnLedgerLoss, PlanWrite, Policy, Reserve, Unit,
    UnitPolicy,
};
use crate::plan::{BookDemand, Departed, FleetSize, plan_book};

/// How long a grant lasts without an answer of the ledger.
pub const LEASE: SignedDuration = SignedDuration::from_secs(30);

/// For so long a process that was never answered admits nothing: a lease, and the 65 s in which what others spent leaves.
const SILENCE: SignedDuration = SignedDuration::from_millis((LEASE_MS + ledger::HOLD_MS) as i64);

/// [`LEASE`] in milliseconds.
const LEASE_MS: u64 = 30_000;

/// What the ledger is to hold.
pub struct Intent {
    /// What the agents are to do.
    pub policy: Policy,
    /// What each book is to say.
    pub writes: Vec<PlanWrite>,
    /// Books of limits that are no more.
    pub forgotten: Vec<BookId>,
    /// The most processes that may run at once.
    pub processes: u32,
    /// Processes that ended without a record.
    pub departed: Departed,
}

/// Plans every book. `known` are the books that the ledger may hold.
#[must_use]
pub fn arrange(tb: &TokenBudget, observed: &Observed, valid: &Validated, known: &BTreeSet<BookId>) -> Intent {
    let limits = match &valid.limits {
        Limits::Known(limits) => limits.as_slice(),
        Limits::Waiting | Limits::NoneDeclared => &[],
    };
    let (mut fleet, before) = (Fleet::of(valid, observed), Before::of(tb, limits));
    let departed = fleet.departed(observed, limits);
    fleet.departed = departed.processes();
    let writes: Vec<PlanWrite> = limits
        .iter()
        .flat_map(|limit| limit.books().map(move |(unit, budget)| (limit, BookId::new(&limit.name, unit), budget)))
        .map(|(limit, book, budget)| {
            let first = before.is_first(limit, book.unit);
            write(observed, &fleet, book, budget, first)
        })
        .collect();
    let wanted: BTreeSet<&BookId> = writes.iter().map(|w| &w.book).collect();
    let forgotten = known.iter().filter(|book| !wanted.contains(book)).cloned().collect();
    let beat_ms = fleet.size.beat_ms(observed.beside).max(observed.least_beat_ms);
    let policy = policy(tb, limits, &writes, beat_ms);
    Intent { policy, writes, forgotten, processes: fleet.size.most_processes, departed }
}

/// What all books have in common. Lookups, as there may be thousands of members.
struct Fleet<'a> {
    /// How many processes it may come to.
    size: FleetSize,
    /// Every process that has reported: when it ended, if it has.
    reported: BTreeMap<&'a str, Option<u64>>,
    /// Pods that are old enough to come to a safe share without the ledger.
    grown: Vec<GrownPod<'a>>,
    /// Members of pods that are gone without evidence, which the ledger had and lost.
    lost: Vec<&'a str>,
    /// Processes that ended without a record and still count.
    departed: u32,
}

/// A live pod that runs for longer than a lease.
struct GrownPod<'a> {
    uid: &'a str,
    /// It may have admitted something without ever having been answered.
    admits: bool,
    /// LiteLLM worker processes in it.
    workers: u32,
    /// Those that have reported and not ended, by id.
    members: Vec<&'a str>,
}

impl GrownPod<'_> {
    /// Its processes that have no record in this book. One that has said good-bye keeps its record, and a successor in its
    /// container admits nothing for longer than that.
    fn without_record(&self, book: Option<&BookState>) -> u32 {
        let has_record = |id: &&&str| book.is_some_and(|book| book.members.contains_key(**id));
        let recorded = self.members.iter().filter(has_record).count();
        self.workers.saturating_sub(u32::try_from(recorded).unwrap_or(u32::MAX))
    }
}

impl<'a> Fleet<'a> {
    fn of(valid: &'a Validated, observed: &'a Observed) -> Self {
        let now = observed.now;
        let sizes: Vec<_> = valid.targets.iter().map(|t| t.size).collect();
        let mut by_pod: HashMap<&str, Vec<&str>> = HashMap::new();
        for member in valid.members.iter().filter(|m| m.finished_ms.is_none()) {
            by_pod.entry(&member.report.pod_uid).or_default().push(&member.id);
        }
        let pods = valid.targets.iter().flat_map(|target| target.pods.iter().map(move |pod| (target, pod)));
        let grown = pods
            .filter_map(|(target, pod)| {
                let runs = now.duration_since(running_since(pod, &target.container)?);
                let uid = pod.metadata.uid.as_deref().unwrap_or_default();
                let members = by_pod.get(uid).cloned().unwrap_or_default();
                let workers = observed.other_workers.get(uid).copied().unwrap_or(target.size.workers);
                (runs > LEASE).then(|| GrownPod { uid, admits: runs > SILENCE, workers, members })
            })
            .collect();
        let uids =
            || valid.targets.iter().flat_map(|target| &target.pods).filter_map(|pod| pod.metadata.uid.as_deref());
        // Mostly there are none, and then the pods, which may be thousands, are not looked at.
        let there: BTreeSet<&str> = if observed.lost.is_empty() { BTreeSet::new() } else { uids().collect() };
        let lost = observed.lost.iter().filter(|(_, pod_uid)| !there.contains(pod_uid.as_str()));
        Self {
            lost: lost.map(|(id, _)| id.as_str()).collect(),
            size: FleetSize::of(&sizes),
            reported: valid.members.iter().map(|m| (m.id.as_str(), m.finished_ms)).collect(),
            grown,
            departed: 0,
        }
    }

    /// What the last pass remembers, and this one has to. Without the ledger nothing new is known.
    fn departed(&self, observed: &Observed, limits: &[EffectiveLimit]) -> Departed {
        let Some(Ok(seen)) = &observed.ledger else { return observed.departed.clone() };
        let ids = limits.iter().flat_map(|l| l.books().map(move |(unit, _)| BookId::new(&l.name, unit)));
        let books: Vec<&BookState> = ids.filter_map(|id| seen.books.get(&id)).collect();
        let has_record = |id: &str| books.iter().any(|book| book.members.contains_key(id));
        let was_lost = |uid: &str| observed.lost.values().any(|lost| lost == uid);
        let pods = self.grown.iter().filter(|pod| pod.admits || was_lost(pod.uid)).map(|pod| {
            let without = books.iter().map(|book| pod.without_record(Some(book)));
            (pod.uid, without.max().unwrap_or(pod.workers))
        });
        let there = pods.chain(self.lost.iter().map(|id| (*id, 1))).filter(|(_, without)| *without > 0);
        let there = there.map(|(key, without)| (key.to_owned(), without)).collect();
        let stays = |key: &str| has_record(key) || self.grown.iter().any(|pod| pod.uid == key);
        observed.departed.pass(there, stays, u64::try_from(observed.now.as_millisecond()).unwrap_or(0))
    }

    fn finished_ms(&self, id: &str) -> Option<u64> {
        *self.reported.get(id)?
    }

    fn has_ended(&self, id: &str) -> bool {
        self.finished_ms(id).is_some()
    }

    /// Processes that have no record in this book: of the grown pods, and those that the ledger lost.
    fn unrecorded(&self, state: Option<&BookState>) -> u32 {
        let lost = self.lost.iter().filter(|id| state.is_none_or(|s| !s.members.contains_key(**id))).count();
        let lost = u32::try_from(lost).unwrap_or(u32::MAX);
        self.grown
            .iter()
            .map(|pod| pod.without_record(state))
            .fold(lost.saturating_add(self.departed), u32::saturating_add)
    }
}

fn running_since(pod: &Pod, container: &str) -> Option<Timestamp> {
    let statuses = pod.status.iter().flat_map(|s| s.container_statuses.iter().flatten());
    let running = statuses.filter(|c| c.name == container).find_map(|c| c.state.as_ref()?.running.clone());
    running.and_then(|r| r.started_at).map(|t| t.0)
}

/// The books that the status names: every one that was made. Lookups, as there may be hundreds of derived limits.
struct Before<'a> {
    /// By name and unit. One that the ledger lacks was lost.
    named: BTreeSet<(&'a str, &'a str)>,
    /// Those of limits that are no more.
    gone: Vec<&'a api::LimitStatus>,
}

impl<'a> Before<'a> {
    fn of(tb: &'a TokenBudget, limits: &[EffectiveLimit]) -> Self {
        let rows = tb.status.as_ref().map_or(&[][..], |s| s.limits.as_slice());
        let stay: BTreeSet<(&str, &str)> =
            limits.iter().flat_map(|l| l.books().map(|(unit, _)| (l.name.as_str(), unit.as_str()))).collect();
        let key = |row: &'a api::LimitStatus| (row.name.as_str(), row.unit.as_str());
        Self {
            named: rows.iter().map(key).collect(),
            gone: rows.iter().filter(|row| !stay.contains(&key(row))).collect(),
        }
    }

    /// Whether a missing book may lend at once, as nothing that was spent before counts for it.
    fn is_first(&self, limit: &EffectiveLimit, unit: Unit) -> bool {
        // One that is gone may have been about the same deployments; of derived limits each is about its own.
        let counts =
            |row: &api::LimitStatus| row.unit == unit.as_str() && (row.derived.is_none() || limit.derived.is_none());
        !self.named.contains(&(limit.name.as_str(), unit.as_str())) && !self.gone.iter().any(|row| counts(row))
    }
}

fn write(observed: &Observed, fleet: &Fleet<'_>, book: BookId, budget: u64, first: bool) -> PlanWrite {
    let state = match &observed.ledger {
        Some(Ok(observation)) => observation.books.get(&book),
        _ => None,
    };
    let demand = BookDemand {
        budget,
        most_processes: fleet.size.most_processes,
        unrecorded: fleet.unrecorded(state),
        members: state.map(|state| state.demands(|id| fleet.has_ended(id))).unwrap_or_default(),
    };
    let plan = plan_book(&demand);
    let member_plan = |id: &str, share| (id.to_owned(), MemberPlan { share, finished_ms: fleet.finished_ms(id) });
    // One that has reported and has no record has no share, but goes from the reports when it is gone.
    let unrecorded = fleet.reported.keys().filter(|id| state.is_none_or(|s| !s.members.contains_key(**id)));
    let recorded = demand.members.iter().zip(plan.shares).map(|(m, share)| member_plan(m.member, share));
    let members = recorded.chain(unrecorded.map(|id| member_plan(id, 0))).collect();
    PlanWrite {
        book,
        first,
        budget,
        aside: plan.aside,
        level: plan.level,
        safe: plan.safe,
        lease_ms: LEASE_MS,
        members,
    }
}

fn policy(tb: &TokenBudget, limits: &[EffectiveLimit], writes: &[PlanWrite], beat_ms: u64) -> Policy {
    let book = |limit: &EffectiveLimit, unit: Unit| {
        writes
            .iter()
            .find(|w| w.book.limit == limit.name && w.book.unit == unit)
            .map(|w| UnitPolicy { budget: w.budget, safe: w.safe })
    };
    let limits = limits
        .iter()
        .map(|limit| LimitPolicy {
            name: limit.name.clone(),
            models: limit.models.iter().map(selector).collect(),
            derived: limit.derived.clone(),
            tokens: book(limit, Unit::Tokens),
            requests: book(limit, Unit::Requests),
        })
        .collect();
    Policy {
        version: String::new(),
        token_budget: format!("{}/{}", tb.namespace().unwrap_or_default(), tb.name_any()),
        uid: tb.uid().unwrap_or_default(),
        mode: match tb.spec.mode {
            api::Mode::Enforce => ledger::Mode::Enforce,
            api::Mode::Observe => ledger::Mode::Observe,
        },
        reserve: match tb.spec.reserve {
            api::ReservePolicy::MaxTokens => Reserve::MaxTokens,
            api::ReservePolicy::Estimate => Reserve::Estimate,
        },
        max_wait_ms: tb.spec.max_wait_ms(),
        on_ledger_loss: match tb.spec.on_ledger_loss {
            api::LedgerLossPolicy::SafeShare => OnLedgerLoss::SafeShare,
            api::LedgerLossPolicy::Open => OnLedgerLoss::Open,
        },
        lease_ms: LEASE_MS,
        beat_ms,
        deriving: tb.spec.derives_limits(),
        limits,
    }
    .stamped()
}

fn selector(selector: &api::DeploymentSelector) -> ModelSelector {
    ModelSelector {
        model_name: selector.model_name.clone(),
        id: selector.id.clone(),
        litellm_model: selector.litellm_model.clone(),
        api_base: selector.api_base.clone(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::validate::{Member, Target};
    use super::*;
    use crate::ledger::{MemberRecord, Observation, Report};
    use crate::litellm::Wanted;
    use crate::plan;

    const NOW: &str = "2026-11-24T12:00:00Z";

    fn json<T: serde::de::DeserializeOwned>(value: serde_json::Value) -> T {
        serde_json::from_value(value).unwrap()
    }

    fn pod(uid: &str, started: &str) -> Arc<Pod> {
        let running = serde_json::json!({"running": {"startedAt": started}});
        let status = serde_json::json!({"name": "litellm", "image": "", "imageID": "", "ready": true, "restartCount": 0,
            "state": running});
        Arc::new(json(serde_json::json!({"metadata": {"uid": uid}, "status": {"containerStatuses": [status]}})))
    }

    fn member(id: &str, pod_uid: &str, ended: bool) -> Member {
        let report: Report =
            json(serde_json::json!({"pod": "p", "podUid": pod_uid, "container": "litellm", "worker": 1,
            "startedMs": 0, "agent": "0.1.0", "state": "Enforcing"}));
        Member { id: id.to_owned(), report, finished_ms: ended.then_some(1) }
    }

    /// One Deployment of four pods with one limit of 60,000 tokens.
    fn fleet(pods: Vec<Arc<Pod>>, members: Vec<Member>) -> Validated {
        let target = Target {
            deployment: Arc::default(),
            container: "litellm".to_owned(),
            wanted: Wanted::default(),
            size: plan::Target { replicas: 4, most_replicas: None, surge: 0, workers: 1 },
            pods,
            pods_without_agent: 0,
        };
        let limit = EffectiveLimit { name: "gpt".to_owned(), tokens: Some(60_000), ..EffectiveLimit::default() };
        Validated { targets: vec![target], problems: Vec::new(), limits: Limits::Known(vec![limit]), members }
    }

    fn written(valid: &Validated, records: &[(&str, u64)]) -> PlanWrite {
        intent(valid, records, at_noon()).writes.remove(0)
    }

    /// When the ledger lost these members, of these pods.
    fn written_without(valid: &Validated, records: &[(&str, u64)], lost: &[(&str, &str)]) -> PlanWrite {
        let lost = lost.iter().map(|(id, uid)| ((*id).to_owned(), (*uid).to_owned())).collect();
        intent(valid, records, Observed { lost, ..at_noon() }).writes.remove(0)
    }

    fn intent(valid: &Validated, records: &[(&str, u64)], before: Observed) -> Intent {
        let record = |&(id, share): &(&str, u64)| {
            (id.to_owned(), MemberRecord { share, spent: 40_000, until_ms: 30_000, ..MemberRecord::default() })
        };
        let book = BookState { members: records.iter().map(record).collect(), clock_ms: 1, ..BookState::default() };
        let books = [(BookId::new("gpt", Unit::Tokens), book)].into();
        let ledger = Observation { policy_version: None, reports: BTreeMap::new(), unreadable: Vec::new(), books };
        arrange(&budget(), &Observed { ledger: Some(Ok(ledger)), ..before }, valid, &BTreeSet::new())
    }

    fn at_noon() -> Observed {
        Observed { now: NOW.parse().unwrap(), ..Observed::default() }
    }

    fn budget() -> TokenBudget {
        json(serde_json::json!({"apiVersion": "tokenbudget.dev/v1alpha1", "kind": "TokenBudget",
            "metadata": {"name": "tb"}, "spec": {"targetRefs": [{"name": "litellm"}]}}))
    }

    fn shares(write: &PlanWrite) -> Vec<(&str, u64, bool)> {
        write.members.iter().map(|(id, m)| (id.as_str(), m.share, m.finished_ms.is_some())).collect()
    }

    #[test]
    fn a_limit_that_takes_the_place_of_another_is_not_the_first() {
        let limit = |name: &str, derived: bool| EffectiveLimit {
            name: name.to_owned(),
            derived: derived.then(|| name.to_owned()),
            tokens: Some(60_000),
            ..EffectiveLimit::default()
        };
        let first = |before: &[EffectiveLimit], now: &[EffectiveLimit], name: &str| {
            let row = |l: &EffectiveLimit| api::LimitStatus {
                name: l.name.clone(),
                unit: Unit::Tokens.as_str().to_owned(),
                derived: l.derived.clone(),
                ..api::LimitStatus::default()
            };
            let status = api::TokenBudgetStatus { limits: before.iter().map(row).collect(), ..Default::default() };
            let spec = json(serde_json::json!({"targetRefs": [{"name": "litellm"}]}));
            let mut tb = TokenBudget::new("tb", spec);
            tb.status = Some(status);
            let limit = now.iter().find(|l| l.name == name).unwrap();
            Before::of(&tb, now).is_first(limit, Unit::Tokens)
        };
        let (a, b) = (limit("a", false), limit("b", false));
        let (x, y) = (limit("x", true), limit("y", true));
        let (a, b, x, y) = (&a, &b, &x, &y);
        let one = std::slice::from_ref::<EffectiveLimit>;
        let both = |one: &EffectiveLimit, other: &EffectiveLimit| [one.clone(), other.clone()];
        assert!(first(&[], one(a), "a"), "a new TokenBudget");
        assert!(!first(one(a), one(a), "a"), "its book was lost");
        assert!(!first(one(a), one(b), "b"), "a got another name");
        assert!(!first(one(x), one(a), "a"), "what was derived is explicit now");
        assert!(!first(one(a), one(x), "x"), "and the other way round");
        assert!(first(one(a), &both(a, b), "b"), "beside one that stays");
        assert!(first(one(x), one(y), "y"), "LiteLLM has another deployment in the place of x");
        assert!(first(&both(x, y), &[y.clone(), limit("z", true)], "z"));
    }

    #[test]
    fn shares_stay_within_the_dead_band_of_what_the_ledger_has() {
        let valid = fleet(Vec::new(), vec![member("a", "1", false), member("b", "2", false)]);
        assert_eq!(
            shares(&written(&valid, &[("a", 30_200), ("b", 29_800)])),
            [("a", 30_200, false), ("b", 29_800, false)]
        );
        assert_eq!(
            shares(&written(&valid, &[("a", 30_300), ("b", 29_700)])),
            [("a", 30_000, false), ("b", 30_000, false)]
        );
    }

    #[test]
    fn who_has_ended_and_who_has_no_record_gets_no_share() {
        let valid = fleet(Vec::new(), vec![member("a", "1", false), member("b", "2", true), member("c", "3", true)]);
        let write = written(&valid, &[("a", 15_000), ("b", 15_000)]);
        let a = 40_000 + 40_000 / 120 + (60_000 - 40_000 - 40_000 / 120 - 6_000);
        assert_eq!(shares(&write), [("a", a, false), ("b", 0, true), ("c", 0, true)]);
    }

    #[test]
    fn a_safe_share_is_set_aside_for_each_grown_process_without_a_record() {
        let (old, young) = ("2026-11-24T11:59:00Z", "2026-11-24T11:59:45Z");
        let pods = vec![pod("1", old), pod("2", old), pod("3", young), pod("4", old)];
        // The first has a record, the second only a report, the third is young, the fourth was never heard.
        let valid = fleet(pods, vec![member("a", "1", false), member("b", "2", false)]);
        let write = written(&valid, &[("a", 15_000)]);
        assert_eq!((write.safe, write.aside), (15_000, 30_000));
    }

    #[test]
    fn a_safe_share_is_set_aside_for_each_member_that_the_ledger_lost_and_whose_pod_is_gone() {
        let valid = fleet(vec![pod("1", "2026-11-24T11:59:00Z")], vec![member("a", "1", false)]);
        // The first is counted by its pod, the second is back.
        let write = written_without(&valid, &[("b", 15_000)], &[("a", "1"), ("b", "2"), ("c", "3")]);
        assert_eq!((write.safe, write.aside), (15_000, 30_000));
    }

    #[test]
    fn a_pod_counts_the_workers_that_it_began_with() {
        let old = "2026-11-24T11:00:00Z";
        let mut valid = fleet(vec![pod("u1", old)], vec![member("a", "u1", false)]);
        valid.targets[0].size.workers = 4;
        assert!(written(&valid, &[("a", 0)]).aside > 0, "three of four have no record");
        let before = Observed { other_workers: [("u1".to_owned(), 1)].into(), ..at_noon() };
        assert_eq!(intent(&valid, &[("a", 0)], before).writes[0].aside, 0);
    }

    #[test]
    fn a_crash_loop_that_was_never_answered_leaves_nothing_to_count() {
        let crashes = fleet(vec![pod("u1", "2026-11-24T11:59:00Z")], Vec::new());
        let before = intent(&crashes, &[], at_noon());
        assert_eq!(before.writes[0].aside, 15_000, "it lives, and may come to it");
        let after = Observed { departed: before.departed, ..at_noon() };
        assert_eq!(intent(&fleet(Vec::new(), Vec::new()), &[], after).writes[0].aside, 0);
    }

    #[test]
    fn one_that_ended_without_a_record_counts_for_a_window() {
        let old = "2026-11-24T11:00:00Z";
        let (two, members) = (vec![pod("u1", old), pod("u2", old)], vec![member("a", "u1", false)]);
        let before = intent(&fleet(two.clone(), members), &[("a", 0)], at_noon());
        assert_eq!(before.writes[0].aside, 15_000, "u2 has no record");
        // Then both pods end.
        let after = |seconds: i64| {
            let now = NOW.parse::<Timestamp>().unwrap() + SignedDuration::from_secs(seconds);
            Observed { now, departed: before.departed.clone(), ..Observed::default() }
        };
        let next = intent(&fleet(Vec::new(), Vec::new()), &[("a", 0)], after(1));
        assert_eq!(next.writes[0].aside, 15_000, "a has its record");
        let away = Observed { ledger: Some(Err(ledger::LedgerError::Fenced)), ..after(1) };
        assert_eq!(arrange(&budget(), &away, &fleet(two, Vec::new()), &BTreeSet::new()).departed, before.departed);
        let last = Observed { departed: next.departed, ..after(66) };
        assert_eq!(intent(&fleet(Vec::new(), Vec::new()), &[("a", 0)], last).writes[0].aside, 0);
    }
}
