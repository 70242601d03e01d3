//! What a member says of the traffic that it saw. All of it may be missing (an older agent), and a value that is not
//! what `docs/protocol.md` says is left out without taking the rest of the report with it.

use super::report::Siblings;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

/// Deployments of a limit that are looked at: as many as an agent names.
pub const MOST_DEPLOYMENTS: usize = 20;

/// Limits of one TokenBudget that are looked at. Derived limits are one for each deployment that declares a quota.
pub const MOST_LIMITS: usize = 512;

/// Kinds of traffic that one report may list.
const MOST_KINDS: usize = 16;

/// The longest name of a limit or a deployment, bytes.
const LONGEST_NAME: usize = 512;

/// The largest amount of the protocol.
const MOST: u64 = 1_000_000_000_000;

/// What one process saw of one limit's traffic.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LimitUsage {
    /// Name of the limit.
    pub name: String,
    /// `<model id>:<litellm model>` of the limit's deployments in this process; at most [`MOST_DEPLOYMENTS`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub deployments: Vec<String>,
    /// How far reservations were from what was used; none while no call's usage is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reserved: Option<Reserved>,
    /// What ended well in the last whole minute; none until that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minute: Option<Minute>,
}

/// What was reserved for calls, as a percentage of what they used, 0 to 10^12.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Reserved {
    /// So many calls, the last ones whose usage is known.
    pub calls: u64,
    /// Half of them had this percentage or less.
    pub p50: u64,
    /// 99 of 100 had this percentage or less.
    pub p99: u64,
}

/// A minute by UTC, and what ended well in it as LiteLLM counts: when a call ends, all its tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Minute {
    /// Unix time in minutes.
    pub at: u64,
    /// Tokens, those of the prompt included.
    pub tokens: u64,
    /// Calls that ended well.
    pub requests: u64,
    /// Requests that waited for room before they were admitted or refused; 0 of an older agent.
    pub waited: u64,
}

/// The calls of the ledger that a process made in a minute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Calls {
    /// Unix time in minutes.
    pub at: u64,
    /// Those that renew the lease, made whatever happens.
    pub beats: u64,
    /// Those that ask for more because a request had no room.
    pub draws: u64,
}

/// A way to a provider that does not ask the router.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OutsideKind {
    /// Batches.
    Batch,
    /// Any other, or a word that this operator does not know.
    Other,
    /// Pass-through routes.
    Passthrough,
}

impl OutsideKind {
    /// The word in reports and in the status.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Batch => "batch",
            Self::Other => "other",
            Self::Passthrough => "passthrough",
        }
    }
}

/// What one process sent to a provider without asking the router, in the last 5 minutes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct OutsideUsage {
    /// How.
    pub kind: OutsideKind,
    /// Requests.
    pub requests: u64,
    /// Tokens; 0 where they are not known.
    pub tokens: u64,
}

/// Whether the process keeps its counters to itself. Anything but a plain no counts as yes: then nothing is claimed.
pub(super) fn private<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    Ok(!matches!(Value::deserialize(deserializer)?, Value::Null | Value::Bool(false)))
}

/// The processes beside one; none if they cannot be read.
pub(super) fn siblings<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Siblings>, D::Error> {
    Ok(serde_json::from_value(Value::deserialize(deserializer)?).ok())
}

/// The limits, or none if it cannot be told whose figures one of them has: a sum without it would claim too much.
pub(super) fn limits<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<LimitUsage>>, D::Error> {
    Ok(match Value::deserialize(deserializer)? {
        Value::Array(all) if all.len() <= MOST_LIMITS => all.iter().map(limit).collect(),
        _ => None,
    })
}

/// The last whole minute's calls of the ledger.
pub(super) fn calls<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Calls>, D::Error> {
    let found = figures(&Value::deserialize(deserializer)?, ["at", "beats", "draws"]);
    Ok(found.map(|[at, beats, draws]| Calls { at, beats, draws }))
}

/// The traffic that did not ask the router; what cannot be read of it is left out.
pub(super) fn outside<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<OutsideUsage>, D::Error> {
    Ok(match Value::deserialize(deserializer)? {
        Value::Array(all) => all.iter().take(MOST_KINDS).filter_map(outside_usage).collect(),
        _ => Vec::new(),
    })
}

fn limit(value: &Value) -> Option<LimitUsage> {
    let name = name(value.get("name")?)?;
    let named = value.get("deployments").and_then(Value::as_array);
    let deployments = named.into_iter().flatten().filter_map(self::name).take(MOST_DEPLOYMENTS).collect();
    let reserved = value.get("reserved").and_then(|of| figures(of, ["calls", "p50", "p99"]));
    let minute = value.get("minute").and_then(|of| Some((figures(of, ["at", "tokens", "requests"])?, of)));
    Some(LimitUsage {
        name,
        deployments,
        reserved: reserved.map(|[calls, p50, p99]| Reserved { calls, p50, p99 }).filter(|r| r.calls > 0),
        minute: minute.map(|([at, tokens, requests], of)| Minute {
            at,
            tokens,
            requests,
            waited: of.get("waited").and_then(amount).unwrap_or(0),
        }),
    })
}

/// An amount, or none where something else stands.
pub(super) fn maybe_amount<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    Ok(amount(&Value::deserialize(deserializer)?))
}

/// These amounts of an object, if it has all of them.
fn figures(object: &Value, of: [&str; 3]) -> Option<[u64; 3]> {
    Some([amount(object.get(of[0])?)?, amount(object.get(of[1])?)?, amount(object.get(of[2])?)?])
}

fn outside_usage(value: &Value) -> Option<OutsideUsage> {
    let kind = match value.get("kind")?.as_str()? {
        "passthrough" => OutsideKind::Passthrough,
        "batch" => OutsideKind::Batch,
        _ => OutsideKind::Other,
    };
    let tokens = value.get("tokens").and_then(amount).unwrap_or(0);
    Some(OutsideUsage { kind, requests: amount(value.get("requests")?)?, tokens })
}

fn name(value: &Value) -> Option<String> {
    let text = value.as_str()?;
    (!text.is_empty() && text.len() <= LONGEST_NAME).then(|| text.to_owned())
}

/// A whole number from 0 to 10^12; Python may write one as `12.0`.
fn amount(value: &Value) -> Option<u64> {
    if let Some(whole) = value.as_u64() {
        return Some(whole).filter(|whole| *whole <= MOST);
    }
    let number = value.as_f64().filter(|number| (0.0..=MOST as f64).contains(number))?;
    // In range, so nothing is cut off but the fraction.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    Some(number as u64)
}

/// Python's `json` writes `NaN` and `Infinity`, which are no JSON, and any number of digits. Makes them `null`.
pub(super) fn plain_json(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let length = match first {
            '"' => string_length(rest),
            first if is_word(first) => rest.find(|c| !is_word(c)).unwrap_or(rest.len()),
            _ => first.len_utf8(),
        };
        let (token, left) = rest.split_at(length);
        let fine = !is_word(first) || serde_json::from_str::<Value>(token).is_ok();
        plain.push_str(if fine { token } else { "null" });
        rest = left;
    }
    plain
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.')
}

/// Bytes of the string that `text` begins with, its quotes included; all of it where there is no end.
fn string_length(text: &str) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            '"' if !escaped => return at + 1,
            '\\' => escaped = !escaped,
            _ => escaped = false,
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::super::Report;
    use super::*;

    fn report(figures: &str) -> Option<Report> {
        Report::read(&format!(
            r#"{{"pod": "p", "podUid": "u", "container": "c", "worker": 1, "startedMs": 0, "agent": "a", "state": "Enforcing"{figures}}}"#
        ))
    }

    #[test]
    fn reads_what_the_protocol_shows() {
        let report = report(
            r#", "private": true, "limits": [{"name": "gpt", "deployments": ["id-1:openai/gpt-4o"],
                 "reserved": {"calls": 120, "p50": 118, "p99": 640},
                 "minute": {"at": 29756321, "tokens": 51234.0, "requests": 77, "waited": 3}}],
               "calls": {"at": 29756321, "beats": 120, "draws": 14},
               "outside": [{"kind": "passthrough", "requests": 12, "tokens": 3400}, {"kind": "new", "requests": 1}]"#,
        )
        .unwrap();
        assert!(report.private);
        let limit = &report.limits.as_ref().unwrap()[0];
        assert_eq!(limit.deployments, ["id-1:openai/gpt-4o"]);
        assert_eq!(limit.reserved, Some(Reserved { calls: 120, p50: 118, p99: 640 }));
        assert_eq!(limit.minute, Some(Minute { at: 29_756_321, tokens: 51_234, requests: 77, waited: 3 }));
        assert_eq!(report.calls, Some(Calls { at: 29_756_321, beats: 120, draws: 14 }));
        let kinds: Vec<_> = report.outside.iter().map(|o| (o.kind, o.requests, o.tokens)).collect();
        assert_eq!(kinds, [(OutsideKind::Passthrough, 12, 3400), (OutsideKind::Other, 1, 0)]);
        assert_eq!(Report::read(&serde_json::to_string(&report).unwrap()), Some(report));
    }

    #[test]
    fn an_older_agent_says_none_of_it() {
        let report = report("").unwrap();
        assert_eq!((report.private, report.limits, report.outside, report.calls), (false, None, vec![], None));
    }

    #[test]
    fn what_is_not_a_figure_is_left_out_alone() {
        let minute = |at: &str, tokens: &str| {
            let minute = format!(r#"{{"at": {at}, "tokens": {tokens}, "requests": 1}}"#);
            let text = format!(r#", "limits": [{{"name": "gpt", "deployments": ["a:b", 7, ""], "minute": {minute}}}]"#);
            report(&text).unwrap().limits.unwrap().remove(0)
        };
        assert_eq!(minute("5", "1").minute, Some(Minute { at: 5, tokens: 1, requests: 1, waited: 0 }));
        for bad in ["-1", "NaN", "Infinity", "-Infinity", "1e400", "1e13", "1000000000001", "\"1\"", "null", "[1]"] {
            let limit = minute("5", bad);
            assert_eq!((limit.minute, &*limit.deployments), (None, &["a:b".to_owned()][..]), "{bad}");
        }
        assert_eq!(minute("99999999999999999999", "1").minute, None);
    }

    #[test]
    fn limits_of_which_one_has_no_name_are_not_known() {
        for bad in ["{}", "7", r#"[{"name": "a"}, {}]"#, r#"[{"name": "a"}, {"name": 5}]"#, "null"] {
            assert_eq!(report(&format!(r#", "limits": {bad}"#)).unwrap().limits, None, "{bad}");
        }
        let many = json!(vec![json!({"name": "a"}); MOST_LIMITS + 1]);
        assert_eq!(report(&format!(r#", "limits": {many}"#)).unwrap().limits, None);
        let many = json!([{"name": "a", "deployments": (0..30).map(|i| format!("{i}:m")).collect::<Vec<_>>()}]);
        let limits = report(&format!(r#", "limits": {many}"#)).unwrap().limits.unwrap();
        assert_eq!(limits[0].deployments.len(), MOST_DEPLOYMENTS);
    }

    #[test]
    fn anything_but_no_is_private() {
        let private = |value: &str| report(&format!(r#", "private": {value}"#)).unwrap().private;
        assert!(!private("false") && !private("null") && private("true") && private("1") && private("\"no\""));
    }

    #[test]
    fn only_numbers_that_are_none_are_replaced() {
        assert_eq!(
            plain_json(r#"{"NaN \" NaN\\": NaN, "b": [-Infinity, 1e999, -2.5e3, true], "é": "1e999"}"#),
            r#"{"NaN \" NaN\\": null, "b": [null, null, -2.5e3, true], "é": "1e999"}"#
        );
        assert_eq!(plain_json("{\"open"), "{\"open");
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            "[a-zé\"\\\\]{0,9}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            let key = prop_oneof![
                Just("name"),
                Just("deployments"),
                Just("reserved"),
                Just("calls"),
                Just("minute"),
                Just("at"),
                Just("kind")
            ];
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec((key, inner), 0..4)
                    .prop_map(|all| Value::Object(all.into_iter().map(|(k, v)| (k.to_owned(), v)).collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn no_figures_break_a_report(limits in any_json(), outside in any_json(), private in any_json(), calls in any_json()) {
            let text = format!(r#", "limits": {limits}, "outside": {outside}, "private": {private}, "calls": {calls}"#);
            prop_assert_eq!(report(&text).unwrap().pod, "p");
            prop_assert_eq!(plain_json(&text), text);
        }
    }
}
