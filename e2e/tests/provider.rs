//! The provider over real HTTP, and the load against it.

#![allow(clippy::unwrap_used, reason = "a helper of a test fails the test")]

use std::time::Duration;

use rig::load::{self, LoadSpec, TargetSpec};
use rig::provider::{Provider, Range, Remote, Settings};
use rig::size::Size;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

async fn start(settings: Settings) -> (Provider, Remote) {
    let provider = Provider::start("127.0.0.1:0".parse().unwrap(), settings).await.unwrap();
    let remote = Remote::new(&provider.url()).unwrap();
    (provider, remote)
}

async fn post(provider: &Provider, path: &str, body: Value) -> reqwest::Response {
    reqwest::Client::new()
        .post(format!("{}{path}", provider.url()))
        .bearer_auth("sk-1")
        .json(&body)
        .send()
        .await
        .unwrap()
}

fn chat(more: Value) -> Value {
    let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "12345678"}]});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

fn model(name: &str) -> Range {
    Range::default().model(name)
}

#[tokio::test]
async fn usage_and_books_agree_and_max_tokens_is_honoured() {
    let (provider, remote) = start(Settings::default()).await;
    for (path, body, tokens) in [
        ("/v1/chat/completions", chat(json!({})), 55),
        ("/chat/completions", chat(json!({"max_tokens": 7})), 12),
        ("/v1/chat/completions", chat(json!({"max_completion_tokens": 9})), 14),
        ("/v1/completions", json!({"model": "m", "prompt": "1234", "max_tokens": 5}), 6),
        ("/v1/responses", json!({"model": "m", "input": "1234", "max_output_tokens": 6}), 10),
        ("/v1/embeddings", json!({"model": "m", "input": ["1234", "5678"]}), 2),
    ] {
        remote.reset().await.unwrap();
        let answer: Value = post(&provider, path, body).await.json().await.unwrap();
        assert_eq!(answer["usage"]["total_tokens"], tokens, "{path} {answer}");
        let usage = remote.usage(&model("m")).await.unwrap();
        assert_eq!(usage.totals.admitted_tokens, tokens, "{path}");
        assert_eq!(usage.totals.ended_tokens, tokens, "{path}");
        assert_eq!((usage.totals.requests, usage.in_flight), (1, 0));
        assert_eq!(usage.by[0].key, "sk-1");
        assert_eq!(usage.worst_60s.tokens, tokens);
        assert_eq!(usage.worst_60s_exact.unwrap().tokens, tokens);
        assert_eq!(usage.series.unwrap().admitted.iter().sum::<u64>(), tokens);
        let arrivals = remote.arrivals(&Range::default()).await.unwrap();
        assert_eq!(arrivals.admitted()[0].tokens, tokens);
    }
}

#[tokio::test]
async fn streams_bring_the_text_and_usage_if_asked() {
    let (provider, remote) = start(Settings::default()).await;
    let stream = chat(json!({"stream": true, "max_tokens": 25}));
    let text = post(&provider, "/v1/chat/completions", stream).await;
    let text = text.text().await.unwrap();
    assert!(text.ends_with("data: [DONE]\n\n"));
    assert!(!text.contains("usage"));
    let mut words = String::new();
    for line in text.lines().filter_map(|l| l.strip_prefix("data: {")) {
        let event: Value = serde_json::from_str(&format!("{{{line}")).unwrap();
        words += event["choices"][0]["delta"]["content"].as_str().unwrap_or_default();
    }
    assert_eq!(words.split(' ').count(), 25);
    let options = json!({"stream": true, "stream_options": {"include_usage": true}});
    let text = post(&provider, "/v1/chat/completions", chat(options)).await;
    assert!(text.text().await.unwrap().contains("\"total_tokens\":55"));
    let body = json!({"model": "m", "input": "1234", "stream": true});
    let text = post(&provider, "/v1/responses", body).await;
    assert!(text.text().await.unwrap().contains("event: response.completed"));
    let usage = remote.usage(&Range::default().totals_only()).await.unwrap();
    assert_eq!(usage.totals.admitted_tokens, 30 + 55 + 54);
    assert_eq!(usage.totals.ended_tokens, usage.totals.admitted_tokens);
    assert!(usage.series.is_none());
}

#[tokio::test]
async fn failures_are_injected_live_and_counted_apart() {
    let (provider, remote) = start(Settings::default()).await;
    let patch = json!({"failures": {"probability": 1, "status": 503, "retry_after_s": 3}});
    remote.set(&patch).await.unwrap();
    assert!(remote.set(&json!({"nonsense": 1})).await.is_err());
    let response = post(&provider, "/v1/chat/completions", chat(json!({}))).await;
    assert_eq!(response.status(), 503);
    assert_eq!(response.headers()["retry-after"], "3");
    let patch = json!({"failures": {"probability": 0, "drop_probability": 1}});
    remote.set(&patch).await.unwrap();
    for stream in [false, true] {
        let body = chat(json!({"stream": stream}));
        let response = post(&provider, "/v1/chat/completions", body).await;
        assert_eq!(response.status(), 200);
        assert!(response.bytes().await.is_err(), "stream {stream}");
    }
    let usage = remote.usage(&model("m")).await.unwrap();
    assert_eq!((usage.totals.failed_requests, usage.totals.failed_tokens), (1, 55));
    assert_eq!((usage.totals.requests, usage.totals.admitted_tokens), (2, 110));
}

#[tokio::test]
async fn a_quota_is_enforced_over_rolling_minutes() {
    let mut settings = Settings::default();
    settings.quota.insert("m".to_owned(), 120);
    let (provider, remote) = start(settings).await;
    let ask = || post(&provider, "/v1/chat/completions", chat(json!({})));
    assert_eq!(ask().await.status(), 200);
    assert_eq!(ask().await.status(), 200);
    let refused = ask().await;
    assert_eq!(refused.status(), 429);
    let wait: u64 = refused.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((58..=60).contains(&wait), "{wait}");
    let usage = remote.usage(&model("m")).await.unwrap();
    assert_eq!((usage.totals.requests, usage.totals.failed_requests), (2, 1));
}

#[tokio::test]
async fn pace_holds_for_streams_and_whole_answers() {
    let settings = Settings { latency_ms: Size::fixed(50.0), first_token_ms: 50, token_ms: 2.0, ..Settings::default() };
    let (provider, _remote) = start(settings).await;
    for stream in [false, true] {
        let begun = std::time::Instant::now();
        let body = chat(json!({"stream": stream}));
        let response = post(&provider, "/v1/chat/completions", body).await;
        response.bytes().await.unwrap();
        let took = begun.elapsed().as_millis();
        assert!((198..600).contains(&took), "stream {stream}: {took} ms");
    }
}

#[tokio::test]
async fn bad_requests_are_not_counted() {
    let (provider, remote) = start(Settings::default()).await;
    let response = post(&provider, "/v1/chat/completions", json!({"model": "m"})).await;
    assert_eq!(response.status(), 400);
    assert!(remote.usage(&Range::default()).await.unwrap().by.is_empty());
    let models = reqwest::get(format!("{}/v1/models", provider.url())).await.unwrap();
    let models: Value = models.json().await.unwrap();
    assert_eq!(models["data"][0]["id"], "gpt-4o");
}

#[tokio::test]
async fn the_load_prices_exactly_what_the_provider_admits() {
    let settings = Settings { seed: 9, answer: Size::lognormal(60.0, 1.0), ..Settings::default() };
    let (provider, remote) = start(settings.clone()).await;
    let spec = LoadSpec {
        targets: TargetSpec::Urls(vec![provider.url()]),
        rate: 100.0,
        duration: Duration::from_secs(2),
        burst: Some("20@1s".parse().unwrap()),
        stream: 0.5,
        max_tokens: Some(Size::fixed(80.0)),
        key: Some("sk-2".to_owned()),
        ..LoadSpec::default()
    }
    .priced_by(&settings);
    let report = load::run(spec, CancellationToken::new()).await.unwrap();
    let s = report.summary();
    assert!(s.requests > 150, "{s:?}");
    assert_eq!(s.counts.ok, s.requests, "{s:?}");
    let usage = remote.usage(&model("gpt-4o")).await.unwrap();
    assert_eq!(usage.totals.admitted_tokens, s.tokens);
    assert_eq!(usage.totals.requests, s.requests);
    assert_eq!(usage.by[0].key, "sk-2");
}

#[tokio::test]
async fn refused_connections_go_elsewhere_and_drops_are_counted() {
    let settings = Settings { latency_ms: Size::fixed(400.0), ..Settings::default() };
    let (provider, _remote) = start(settings).await;
    // Port 1 refuses connections.
    let spec = LoadSpec {
        targets: TargetSpec::Urls(vec!["http://127.0.0.1:1".to_owned(), provider.url()]),
        rate: 0.0,
        burst: Some("40@100ms".parse().unwrap()),
        duration: Duration::from_millis(150),
        concurrency: 30,
        ..LoadSpec::default()
    };
    let report = load::run(spec, CancellationToken::new()).await.unwrap();
    let s = report.summary();
    assert_eq!((s.counts.ok, s.counts.dropped), (30, 10), "{s:?}");
    assert!((5..26).contains(&s.retried_connect), "{s:?}");
    assert_eq!(s.by_pod[&provider.url()].ok, 30);
}

#[tokio::test]
async fn a_cancelled_load_stops_at_once() {
    let settings = Settings { latency_ms: Size::fixed(30_000.0), ..Settings::default() };
    let (provider, _remote) = start(settings).await;
    let spec = LoadSpec { targets: TargetSpec::Urls(vec![provider.url()]), rate: 50.0, ..LoadSpec::default() };
    let cancel = CancellationToken::new();
    let stop = cancel.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(500)).await;
        stop.cancel();
    });
    let begun = std::time::Instant::now();
    let report = load::run(spec, cancel).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(5));
    assert!(report.summary().counts.cancelled > 5);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(provider.usage(&Range::default()).in_flight, 0);
}
