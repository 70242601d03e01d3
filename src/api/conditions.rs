//! Conditions and their reasons: every one there is, in one place.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// The conditions of a TokenBudget. All have positive polarity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ConditionKind {
    /// The spec can be acted on: target, limits and Redis are known.
    Accepted,
    /// Every live pod of the targets runs the agent.
    Attached,
    /// The operator reads and writes the ledger.
    LedgerReachable,
    /// Every live process has applied the policy, for 60 s.
    Enforcing,
    /// The members' spent sums to at most the budget, and nobody else spends the same quota.
    WithinBudget,
    /// All of the above: the promise holds.
    Ready,
}

impl ConditionKind {
    /// Every condition, in the order of the status.
    pub const ALL: [Self; 6] =
        [Self::Accepted, Self::Attached, Self::LedgerReachable, Self::Enforcing, Self::WithinBudget, Self::Ready];

    /// The `type` of the condition.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "Accepted",
            Self::Attached => "Attached",
            Self::LedgerReachable => "LedgerReachable",
            Self::Enforcing => "Enforcing",
            Self::WithinBudget => "WithinBudget",
            Self::Ready => "Ready",
        }
    }
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {
        /// Why a condition has its status. Stable: dashboards and scripts match on it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Reason { $($(#[$doc])* $name),+ }
        impl Reason {
            /// Every reason there is.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];
            /// The text of the reason.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => stringify!($name)),+ }
            }
        }
    };
}

reasons! {
    /// The spec can be acted on.
    Accepted,
    /// A Deployment of `targetRefs` does not exist.
    TargetNotFound,
    /// The container of `targetRefs` does not exist in the pod template.
    NoContainer,
    /// Several containers could be LiteLLM.
    AmbiguousContainer,
    /// An older TokenBudget has claimed the same deployments, or another container: this one is not kept.
    Overlap,
    /// `spec.paused` is true: the operator changes nothing.
    Paused,
    /// No limit in the spec, and LiteLLM's configuration declares none.
    NoLimits,
    /// LiteLLM's configuration declares `tpm` or `rpm` for more deployments than a TokenBudget keeps limits for.
    TooManyLimits,
    /// Processes have not yet said what LiteLLM's configuration declares.
    WaitingForDeclaredLimits,
    /// A Secret or ConfigMap that holds the Redis settings, or its key, is missing.
    RedisSettingsMissing,
    /// The Redis settings cannot be used.
    RedisSettingsInvalid,
    /// No Redis is named anywhere.
    NoLedger,
    /// The targets name different Redis servers.
    SeveralLedgers,
    /// Every live pod runs the agent.
    AllPodsAttached,
    /// Some live pods run without the agent.
    PartiallyAttached,
    /// `LITELLM_WORKER_STARTUP_HOOKS` is the user's and does not name the agent.
    HooksOwnedByUser,
    /// Somebody keeps taking the agent out of the pod template.
    AttachContested,
    /// The operator may not, or could not, change the Deployment or its ConfigMaps, or set its finalizer, the API server did not
    /// answer such a write, or a ConfigMap of that name is somebody else's.
    AttachFailed,
    /// `attach: Admission` needs the chart's admission policy, which this cluster does not serve or does not have.
    AdmissionUnavailable,
    /// `attach: Admission`: the pod template lacks the label that asks for the agent.
    LabelMissing,
    /// There are no pods.
    NoPods,
    /// The ledger answers.
    LedgerAnswers,
    /// The ledger does not answer.
    LedgerUnreachable,
    /// The ledger is new, has lost data or heard nobody for 65 s: for 95 s it lends only what comes back.
    Learning,
    /// Every live process enforces the policy.
    Enforcing,
    /// Every live process observes; nothing is refused.
    Observing,
    /// Some processes have not applied the policy yet.
    WaitingForProcesses,
    /// Traffic from before the last process enforced is still in the 60 s window.
    WindowNotPassed,
    /// The agent in some process cannot do its work.
    AgentDegraded,
    /// A limit of the spec selects no deployment of LiteLLM's configuration in any process.
    LimitMatchesNothing,
    /// Spent is at or under the budget.
    WithinBudget,
    /// Spent is above the budget (a cut, or usage above the estimate).
    OverBudget,
    /// Others spend the same quota: LiteLLM's own counters have more than the members reported.
    TrafficOutside,
    /// Everything holds.
    Ready,
    /// Not known yet.
    Pending,
}

/// A set of conditions that keeps `lastTransitionTime` while a status stays the same.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Conditions {
    old: Vec<Condition>,
    new: Vec<Condition>,
    generation: Option<i64>,
}

impl Conditions {
    /// Starts from the conditions in the status, for this generation of the spec.
    #[must_use]
    pub fn from_status(old: &[Condition], generation: Option<i64>) -> Self {
        Self { old: old.to_vec(), new: Vec::new(), generation }
    }

    /// Sets one condition. `status` None is `Unknown`.
    pub fn set(
        &mut self,
        kind: ConditionKind,
        status: Option<bool>,
        reason: Reason,
        message: impl Into<String>,
        now: Timestamp,
    ) {
        let status = match status {
            Some(true) => "True",
            Some(false) => "False",
            None => "Unknown",
        };
        let kept = self.old.iter().find(|c| c.type_ == kind.as_str() && c.status == status);
        let condition = Condition {
            type_: kind.as_str().to_owned(),
            status: status.to_owned(),
            reason: reason.as_str().to_owned(),
            message: message.into(),
            observed_generation: self.generation,
            last_transition_time: kept.map_or(Time(now), |c| c.last_transition_time.clone()),
        };
        self.new.retain(|c| c.type_ != condition.type_);
        self.new.push(condition);
    }

    /// The conditions, in the order of [`ConditionKind::ALL`].
    #[must_use]
    pub fn into_vec(mut self) -> Vec<Condition> {
        let place = |c: &Condition| ConditionKind::ALL.iter().position(|k| k.as_str() == c.type_);
        self.new.sort_by_key(place);
        self.new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_condition_and_reason_is_documented() {
        let page = include_str!("../../docs/conditions.md");
        for name in Reason::ALL.iter().map(|r| r.as_str()).chain(ConditionKind::ALL.iter().map(|k| k.as_str())) {
            assert!(page.contains(&format!("| `{name}` |")), "docs/conditions.md does not have {name}");
        }
        let documented = page.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
        for name in documented {
            let is_known =
                Reason::ALL.iter().any(|r| r.as_str() == name) || ConditionKind::ALL.iter().any(|k| k.as_str() == name);
            assert!(is_known, "docs/conditions.md has {name}, which does not exist");
        }
    }

    #[test]
    fn transition_time_moves_only_when_the_status_flips() {
        let at = |second: i64| Timestamp::from_second(second).unwrap();
        let mut first = Conditions::from_status(&[], Some(1));
        first.set(ConditionKind::Ready, Some(false), Reason::NoPods, "no pods", at(100));
        let first = first.into_vec();

        let mut same = Conditions::from_status(&first, Some(2));
        same.set(ConditionKind::Ready, Some(false), Reason::Learning, "other reason", at(200));
        let same = same.into_vec();
        assert_eq!(same[0].last_transition_time, Time(at(100)));
        assert_eq!(same[0].observed_generation, Some(2));

        let mut flipped = Conditions::from_status(&same, Some(2));
        flipped.set(ConditionKind::Ready, Some(true), Reason::Ready, "", at(300));
        assert_eq!(flipped.into_vec()[0].last_transition_time, Time(at(300)));
    }
}
