//! Requests that no honest client sends.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use futures::StreamExt as _;
use serde_json::{Value, json};

use crate::scenario::bench::MASTER_KEY;
use crate::scenario::fleet::{Fleet, text};
use crate::scenario::operator::restarts;
use crate::scenario::rig::Rig;

/// How many are sent.
const REQUESTS: usize = 10_000;

/// How many at once.
const AT_ONCE: usize = 16;

/// Every so many requests one is huge, and its prompt has so many bytes.
const HUGE: [(usize, usize); 2] = [(2_000, 10_000_000), (200, 1_000_000)];

/// Sends all of them to all pods in turn.
///
/// # Errors
/// When a LiteLLM process or the operator does not live on, or fewer than nine of ten requests got an answer.
pub async fn send(rig: &Rig) -> Result<()> {
    let fleet = Fleet::of(rig);
    let before = (lives(&fleet)?, restarts(rig)?);
    let urls: Vec<String> = fleet
        .ready_pods()?
        .iter()
        .map(|pod| format!("http://{}:4000/v1/chat/completions", text(&pod["status"]["podIP"])))
        .collect();
    ensure!(!urls.is_empty(), "no pod is Ready");
    let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(60)).build()?;
    let answers = [const { AtomicUsize::new(0) }; 6];
    futures::stream::iter(0..REQUESTS)
        .for_each_concurrent(AT_ONCE, |index| {
            let request = http
                .post(&urls[index % urls.len()])
                .header("content-type", "application/json")
                .bearer_auth(MASTER_KEY)
                .body(body(index));
            let answers = &answers;
            async move {
                let class = request.send().await.map_or(0, |response| usize::from(response.status().as_u16() / 100));
                answers[class.min(5)].fetch_add(1, Ordering::Relaxed);
            }
        })
        .await;
    let [none, _, ok, _, refused, failed] = answers.map(AtomicUsize::into_inner);
    println!(
        "{REQUESTS} hostile requests: {ok} answered, {refused} refused (4xx), {failed} failed (5xx), {none} without"
    );
    ensure!((none + failed) * 10 <= REQUESTS, "{failed} requests failed and {none} got no answer");
    ensure!((lives(&fleet)?, restarts(rig)?) == before, "a LiteLLM process or the operator did not live on");
    Ok(())
}

/// The containers of the fleet.
fn lives(fleet: &Fleet<'_>) -> Result<Vec<String>> {
    let pods = fleet.ready_pods()?;
    Ok(pods.iter().map(|pod| text(&pod["status"]["containerStatuses"][0]["containerID"]).to_owned()).collect())
}

fn body(index: usize) -> String {
    if let Some((_, bytes)) = HUGE.iter().find(|(every, _)| index.is_multiple_of(*every)) {
        return json!({"model": "gpt-4o", "messages": [{"role": "user", "content": "x ".repeat(bytes / 2)}]})
            .to_string();
    }
    let said = |content: Value| json!({"model": "gpt-4o", "messages": [{"role": "user", "content": content}]});
    let with = |name: &str, value: Value| {
        let mut request = said(json!("hello"));
        request[name] = value;
        request.to_string()
    };
    let raw = |name: &str, value: &str| format!("{{\"{name}\": {value}, {}", &said(json!("hello")).to_string()[1..]);
    match index % 20 {
        0 => "{".to_owned(),
        1 => String::new(),
        2 => "[]".to_owned(),
        3 => json!({"model": "gpt-4o"}).to_string(),
        4 => json!({"model": "gpt-4o", "messages": "hello"}).to_string(),
        5 => json!({"model": {"a": [1]}, "messages": []}).to_string(),
        6 => json!({"model": "no-such-model", "messages": []}).to_string(),
        7 => said(Value::Null).to_string(),
        8 => said(json!([{"type": "text"}, 5, {"type": "image_url", "image_url": 7}])).to_string(),
        9 => with("max_tokens", json!(-1)),
        10 => with("max_tokens", json!(1_000_000_000_000_000_000_u64)),
        11 => with("max_tokens", json!("many")),
        12 => with("n", json!(1_000_000)),
        13 => with("n", json!({"a": 1})),
        14 => with("tools", json!(5)),
        15 => with("stream", json!("maybe")),
        16 => raw("max_tokens", "NaN"),
        17 => raw("max_tokens", "1e999"),
        18 => raw("user", "\"\\ud800\""),
        _ => raw("metadata", &format!("{}{}", "[".repeat(500), "]".repeat(500))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_meant_to_be_json_is() {
        let bodies: Vec<String> = (1..41).map(body).collect();
        let readable = bodies.iter().filter(|body| serde_json::from_str::<Value>(body).is_ok()).count();
        // All but: {, nothing, NaN, 1e999, a surrogate, and what is nested deeper than this parser goes.
        assert_eq!(readable, 2 * 14, "{bodies:?}");
        assert!(body(2_000).len() > 9_000_000 && body(200).len() > 900_000);
    }
}
