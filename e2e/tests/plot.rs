//! A chart of made-up data; `PLOT=file.svg` writes it, to be looked at.

use rig::plot::{Chart, Phase, svg};

fn phase(from_s: u64, to_s: u64, label: &str, governed: bool) -> Phase {
    Phase { from_ms: from_s * 1000, to_ms: to_s * 1000, label: label.to_owned(), governed }
}

fn chart() -> Chart {
    let rate = |slot: usize| match slot / 10 {
        0..100 => 100,
        100..180 => 320,
        180..200 => 0,
        _ => 98,
    };
    Chart {
        title: "3 to 10 LiteLLM replicas, one quota of 60,000 tokens a minute".to_owned(),
        subtitle: "LiteLLM 1.106.2 <enforce_model_rate_limits> & five times the demand".to_owned(),
        budget_tokens: 60_000,
        start_ms: 0,
        admitted: (0..4_200).map(|s| rate(s) + (s as u64 * 7) % 5).collect(),
        offered: vec![500; 4_200],
        phases: vec![
            phase(0, 100, "without, 3 replicas", false),
            phase(100, 180, "without, burst", false),
            phase(200, 300, "with TokenBudget, 3 replicas", true),
            phase(300, 345, "scale to 10 while Redis restarts", true),
            phase(345, 420, "kill -9 of two pods", true),
        ],
        replicas: vec![(0, 3), (305_000, 6), (312_000, 10), (350_000, 8), (365_000, 10)],
        marks: vec![(350_000, "kill -9".to_owned())],
    }
}

#[test]
fn draws_a_document_with_everything_in_it() {
    let text = svg(&chart());
    if let Ok(path) = std::env::var("PLOT") {
        std::fs::write(path, &text).unwrap();
    }
    for part in ["60,000", "&lt;enforce_model_rate_limits&gt; &amp;", "min:s", "ready replicas"] {
        assert!(text.contains(part), "{part}");
    }
    assert!(text.starts_with("<svg ") && text.ends_with("</svg>\n"));
    assert!(!text.contains("NaN") && !text.contains("inf"));
    assert!(text.len() < 300_000, "{}", text.len());
}

#[test]
fn an_empty_chart_is_still_a_document() {
    let text = svg(&Chart::default());
    assert!(text.ends_with("</svg>\n") && !text.contains("NaN"));
}
