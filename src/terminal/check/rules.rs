//! The rules in CEL that stand in a schema (`x-kubernetes-validations`).

use std::sync::Arc;

use cel::{Context, ExecutionError, Program, Value as Cel};
use serde_json::Value;

/// The messages of the rules that the value breaks.
#[must_use]
pub fn broken(rules: &Value, value: &Value) -> Vec<String> {
    let broken = |rule: &Value| {
        let text = rule["rule"].as_str().unwrap_or_default();
        match holds(text, value) {
            Ok(true) => None,
            Ok(false) => Some(rule["message"].as_str().unwrap_or(text).to_owned()),
            Err(why) => Some(format!("the rule `{text}` cannot be evaluated: {why}")),
        }
    };
    rules.as_array().into_iter().flatten().filter_map(broken).collect()
}

/// Whether the rule is true of the value.
///
/// # Errors
/// A text where the rule is no CEL, does not fit the value, or is not of truth.
fn holds(rule: &str, value: &Value) -> Result<bool, String> {
    let program = Program::compile(rule).map_err(|error| error.to_string())?;
    let mut context = Context::default();
    context.add_variable_from_value("self", cel::to_value(value).map_err(|error| error.to_string())?);
    context.add_function("duration", milliseconds);
    match program.execute(&context).map_err(|error| error.to_string())? {
        Cel::Bool(holds) => Ok(holds),
        other => Err(format!("it is {other:?}, neither true nor false")),
    }
}

/// `duration()`, for comparing: the durations of this resource are whole and in one unit, and the crate's own function
/// would bring a second library for times (deny.toml).
fn milliseconds(text: Arc<String>) -> Result<i64, ExecutionError> {
    let (digits, factor) = match text.strip_suffix("ms") {
        Some(digits) => (digits, 1),
        None => (text.strip_suffix('s').unwrap_or_default(), 1000),
    };
    let amount = digits.parse::<i64>().ok().and_then(|amount| amount.checked_mul(factor));
    amount.ok_or_else(|| ExecutionError::function_error("duration", format!("{text:?} is no duration")))
}

#[cfg(test)]
mod tests {
    use kube::CustomResourceExt;
    use serde_json::json;

    use super::*;
    use crate::api::TokenBudget;

    fn all(schema: &Value, rules: &mut Vec<String>) {
        match schema {
            Value::Object(map) => {
                let own = map.get("x-kubernetes-validations").and_then(Value::as_array).into_iter().flatten();
                rules.extend(own.map(|rule| rule["rule"].as_str().unwrap().to_owned()));
                map.values().for_each(|inner| all(inner, rules));
            }
            Value::Array(items) => items.iter().for_each(|inner| all(inner, rules)),
            _ => {}
        }
    }

    #[test]
    fn every_rule_of_the_resource_can_be_read() {
        let mut rules = Vec::new();
        all(&serde_json::to_value(TokenBudget::crd()).unwrap(), &mut rules);
        assert!(rules.len() >= 6, "{rules:?}");
        for rule in rules {
            assert!(Program::compile(&rule).is_ok(), "{rule}");
        }
    }

    #[test]
    fn durations_compare_by_their_length() {
        let rule = "self == '0' || duration(self) <= duration('10s')";
        for (text, expected) in [("0", true), ("250ms", true), ("10s", true), ("10001ms", false), ("11s", false)] {
            assert_eq!(holds(rule, &json!(text)), Ok(expected), "{text}");
        }
        assert!(holds(rule, &json!("9999999999999999999s")).is_err());
        assert!(holds("self +", &json!(1)).is_err());
        assert!(holds("self", &json!("x")).is_err());
    }
}
