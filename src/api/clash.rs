//! Two TokenBudgets that cannot both be kept on one Deployment, as far as their specs alone show it.

use super::{DeploymentSelector, Relation, TargetRef, TokenBudgetSpec};

/// Why they cannot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Clash<'a> {
    /// They name different ledgers, and a process has one.
    Ledgers,
    /// They name different containers of the Deployment.
    Containers {
        /// The first one's.
        mine: String,
        /// The other's.
        theirs: String,
    },
    /// Both make every declared tpm and rpm fleet-wide.
    Derived,
    /// A limit of one selects all that a limit of the other does.
    Limits {
        /// The first one's: name of the limit, and the selector.
        mine: (&'a str, &'a DeploymentSelector),
        /// The other's.
        theirs: (&'a str, &'a DeploymentSelector),
    },
}

impl TokenBudgetSpec {
    /// Why this and the other cannot both be kept on a Deployment that both name; none if they can, or do not both name it.
    /// `container` says which container a target means, where that is known.
    #[must_use]
    pub fn clash<'a>(
        &'a self,
        other: &'a Self,
        deployment: &str,
        container: impl Fn(&TargetRef) -> Option<String>,
    ) -> Option<Clash<'a>> {
        let named = |spec: &'a Self| spec.target_refs.iter().find(|target| target.name == deployment);
        let (mine, theirs) = (named(self)?, named(other)?);
        if self.redis != other.redis {
            return Some(Clash::Ledgers);
        }
        if let (Some(mine), Some(theirs)) = (container(mine), container(theirs))
            && mine != theirs
        {
            return Some(Clash::Containers { mine, theirs });
        }
        if self.derives_limits() && other.derives_limits() {
            return Some(Clash::Derived);
        }
        let mut pairs = self.selectors().flat_map(|mine| other.selectors().map(move |theirs| (mine, theirs)));
        let covered = pairs.find(|(mine, theirs)| mine.1.relation(theirs.1) == Relation::Covers);
        covered.map(|(mine, theirs)| Clash::Limits { mine, theirs })
    }

    /// Every selector, with the name of its limit.
    pub fn selectors(&self) -> impl Iterator<Item = (&str, &DeploymentSelector)> {
        self.limits.iter().flat_map(|limit| limit.models.iter().map(|model| (limit.name.as_str(), model)))
    }
}
