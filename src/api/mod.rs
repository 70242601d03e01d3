//! The TokenBudget resource: what users write, what the operator answers. Pure: no client, no clock.

mod clash;
mod conditions;
mod relation;
mod spec;
mod status;

pub use clash::Clash;
pub use conditions::{ConditionKind, Conditions, Reason};
pub use relation::Relation;
pub use spec::{
    AgentUpdatePolicy, AttachPolicy, DeploymentSelector, LedgerLossPolicy, Limit, Mode, RedisSource, ReservePolicy,
    SecretKeyRef, TargetRef, TokenBudget, TokenBudgetSpec,
};
pub use status::{
    LimitObserved, LimitOutside, LimitStatus, OutsideTraffic, PodStatus, ReservedPercent, TokenBudgetStatus,
};

use kube::CustomResourceExt;
use serde::ser::Error as _;

/// Field manager of everything that this operator applies to objects of others.
pub const FIELD_MANAGER: &str = "tokenbudget";

/// Finalizer of a TokenBudget: its ledger and the entries in pod templates are to be taken away first.
pub const FINALIZER: &str = "tokenbudget.dev/detach";

/// The CustomResourceDefinition as YAML, as `crds/tokenbudgets.yaml` and the chart carry it.
///
/// # Errors
/// When the schema cannot be written as YAML, which is a fault of this program.
pub fn crd_yaml() -> Result<String, serde_json::Error> {
    let crd = TokenBudget::crd();
    let value = serde_json::to_value(&crd)?;
    serde_saphyr::to_string(&value).map_err(|error| serde_json::Error::custom(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_crd_in_the_tree_is_the_one_that_the_code_generates() {
        let committed =
            std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/crds/tokenbudgets.yaml")).unwrap();
        assert_eq!(crd_yaml().unwrap(), committed, "run: make generate");
    }
}
