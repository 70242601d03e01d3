//! The ways to keep a quota that are compared, each as its users have it.

use clap::ValueEnum;
use serde_json::{Value, json};

use crate::scenario::bench::BUDGET;

/// Replicas of LiteLLM.
pub const REPLICAS: u64 = 5;

/// One way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Arm {
    /// TokenBudget 1.106.2.
    #[value(name = "tokenbudget", help = "TokenBudget (LiteLLM 1.106.2, simple-shuffle)")]
    TokenBudget,
    /// LiteLLM's check, after it was repaired.
    #[value(name = "enforce", help = "enforce_model_rate_limits, LiteLLM 1.106.2")]
    Enforce,
    /// LiteLLM's check before that.
    #[value(name = "enforce-1.102", help = "enforce_model_rate_limits, LiteLLM 1.102.0")]
    EnforceBefore,
    /// LiteLLM's strategy.
    #[value(name = "usage-based", help = "usage-based-routing-v2, LiteLLM 1.106.2")]
    UsageBased,
    /// The same before.
    #[value(name = "usage-based-1.102", help = "usage-based-routing-v2, LiteLLM 1.102.0")]
    UsageBasedBefore,
    /// The strategy without Redis, and a limit that was divided by hand.
    #[value(name = "divided", help = "tpm / 5 by hand (usage-based-routing-v2 without Redis), LiteLLM 1.106.2")]
    Divided,
    /// The same before.
    #[value(name = "divided-1.102", help = "tpm / 5 by hand (usage-based-routing-v2 without Redis), LiteLLM 1.102.0")]
    DividedBefore,
    /// Input and output tokens, reserved before the call.
    #[value(name = "itpm-otpm", help = "itpm and otpm (beta), LiteLLM 1.106.2")]
    InputOutput,
}

impl Arm {
    /// Its name on the command line, and what it is.
    #[must_use]
    pub fn told(self) -> (String, String) {
        let value = self.to_possible_value().unwrap_or_default();
        (value.get_name().to_owned(), value.get_help().map(ToString::to_string).unwrap_or_default())
    }

    /// The version of LiteLLM.
    #[must_use]
    pub const fn version(self) -> &'static str {
        match self {
            Self::EnforceBefore | Self::UsageBasedBefore | Self::DividedBefore => "1.102.0",
            Self::TokenBudget | Self::Enforce | Self::UsageBased | Self::Divided | Self::InputOutput => "1.106.2",
        }
    }

    /// Whether its processes know of Redis. LiteLLM 1.106.2 shares its counters where the environment names one, whatever the
    /// configuration says (`_init_coordination_redis_env_fallback` in proxy/proxy_server.py).
    #[must_use]
    pub const fn has_redis(self) -> bool {
        !matches!(self, Self::Divided | Self::DividedBefore)
    }

    /// LiteLLM's configuration. `input` is the part of the tokens that prompts have.
    #[must_use]
    pub fn config(self, input: f64) -> Value {
        let mut params = json!({
            "model": "openai/gpt-4o", "api_base": "os.environ/PROVIDER_URL", "api_key": "sk-provider"
        });
        // Without retries: the router sleeps 60 s after a refusal of usage-based-routing-v2, where the client has gone.
        let mut router = json!({
            "num_retries": 0, "redis_host": "os.environ/REDIS_HOST", "redis_port": "os.environ/REDIS_PORT"
        });
        match self {
            Self::TokenBudget => params["tpm"] = json!(BUDGET),
            Self::Enforce | Self::EnforceBefore => {
                params["tpm"] = json!(BUDGET);
                router["optional_pre_call_checks"] = json!(["enforce_model_rate_limits"]);
            }
            Self::UsageBased | Self::UsageBasedBefore => {
                params["tpm"] = json!(BUDGET);
                router["routing_strategy"] = json!("usage-based-routing-v2");
            }
            Self::Divided | Self::DividedBefore => {
                params["tpm"] = json!(BUDGET / REPLICAS);
                router = json!({"num_retries": 0, "routing_strategy": "usage-based-routing-v2"});
            }
            Self::InputOutput => {
                let of_budget = |part: f64| json!((BUDGET as f64 * part).round() as u64);
                (params["itpm"], params["otpm"]) = (of_budget(input), of_budget(1.0 - input));
                router["optional_pre_call_checks"] = json!(["enforce_model_rate_limits"]);
            }
        }
        json!({"model_list": [{"model_name": "gpt-4o", "litellm_params": params}], "router_settings": router})
    }
}

/// What is offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Demand {
    /// 1.3 times the budget.
    #[value(name = "1.3", help = "1.3 times the budget")]
    Over,
    /// 0.9 times.
    #[value(name = "0.9", help = "0.9 times the budget")]
    Under,
    /// 1.3 times the budget, of which a third is streamed.
    #[value(name = "streams", help = "1.3 times the budget, a third of the requests streamed")]
    Streams,
    /// Half of the budget, and bursts of more than it.
    #[value(name = "burst", help = "half the budget, and 200 requests at once every 40 s")]
    Burst,
    /// 1.3 times the budget, and Redis ends after 30 s.
    #[value(name = "no-redis", help = "1.3 times the budget, Redis gone after 30 s")]
    WithoutRedis,
}

impl Demand {
    /// Its name on the command line.
    #[must_use]
    pub fn name(self) -> String {
        self.to_possible_value().unwrap_or_default().get_name().to_owned()
    }

    /// What it is.
    #[must_use]
    pub fn told(self) -> String {
        let value = self.to_possible_value().unwrap_or_default();
        value.get_help().map(ToString::to_string).unwrap_or_default()
    }

    /// Tokens per minute, as a multiple of the budget, without bursts.
    #[must_use]
    pub const fn multiple(self) -> f64 {
        match self {
            Self::Over | Self::Streams | Self::WithoutRedis => 1.3,
            Self::Under => 0.9,
            Self::Burst => 0.5,
        }
    }

    /// The part of the requests that is streamed.
    #[must_use]
    pub const fn streamed(self) -> f64 {
        if matches!(self, Self::Streams) { 1.0 / 3.0 } else { 0.0 }
    }

    /// Whether this way runs under it: streams are only for those that count otherwise than another.
    #[must_use]
    pub const fn is_for(self, arm: Arm) -> bool {
        !matches!(self, Self::Streams) || matches!(arm, Arm::TokenBudget | Arm::Enforce | Arm::UsageBased)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_arm_is_configured_as_it_is_called() {
        let params = |arm: Arm| arm.config(0.4)["model_list"][0]["litellm_params"].clone();
        let router = |arm: Arm| arm.config(0.4)["router_settings"].clone();
        assert_eq!(params(Arm::Divided)["tpm"], 12_000);
        assert!(router(Arm::Divided)["redis_host"].is_null() && !Arm::Divided.has_redis());
        assert_eq!(params(Arm::InputOutput)["itpm"], 24_000);
        assert_eq!(params(Arm::InputOutput)["otpm"], 36_000);
        assert!(params(Arm::InputOutput)["tpm"].is_null());
        assert_eq!(router(Arm::Enforce)["optional_pre_call_checks"][0], "enforce_model_rate_limits");
        assert_eq!(router(Arm::UsageBased)["routing_strategy"], "usage-based-routing-v2");
        for arm in Arm::value_variants() {
            assert!(arm.told().1.contains(arm.version()), "{arm:?}");
        }
        assert!(router(Arm::TokenBudget)["optional_pre_call_checks"].is_null());
        assert!(Arm::value_variants().iter().all(|arm| router(*arm)["num_retries"] == 0));
    }
}
