//! How two selectors of LiteLLM deployments lie to each other.

use super::DeploymentSelector;

/// What can be said from two selectors alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    /// What one of them selects, the other one does, too.
    Covers,
    /// One LiteLLM deployment can be selected by both.
    MayMeet,
    /// None can.
    Apart,
}

impl DeploymentSelector {
    /// The fields, as they are named in a manifest.
    #[must_use]
    pub fn fields(&self) -> [(&'static str, Option<&str>); 4] {
        [
            ("modelName", self.model_name.as_deref()),
            ("id", self.id.as_deref()),
            ("litellmModel", self.litellm_model.as_deref()),
            ("apiBase", self.api_base.as_deref()),
        ]
    }

    /// How the two lie to each other, whichever comes first.
    #[must_use]
    pub fn relation(&self, other: &Self) -> Relation {
        let pairs = self.fields().into_iter().zip(other.fields()).map(|((_, mine), (_, theirs))| (mine, theirs));
        let (mut only_mine, mut only_theirs) = (false, false);
        for pair in pairs {
            match pair {
                (Some(mine), Some(theirs)) if mine != theirs => return Relation::Apart,
                (Some(_), None) => only_mine = true,
                (None, Some(_)) => only_theirs = true,
                _ => {}
            }
        }
        if only_mine && only_theirs { Relation::MayMeet } else { Relation::Covers }
    }
}
