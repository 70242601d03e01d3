//! Makes requests whose cost is known before they are sent.

use bytes::Bytes;
use serde_json::{Value, json};

use crate::request::{Endpoint, Request};
use crate::size::SplitMix64;

use super::spec::LoadSpec;

/// Words of three letters: with a space, four bytes and one token each, for
/// the rig's count (`bytes / 4`) and for the usual tokenizers alike.
const WORDS: [&str; 32] = [
    "the", "and", "for", "you", "not", "but", "all", "can", "was", "one", "our", "out", "day", "get", "has", "new",
    "her", "him", "his", "how", "man", "now", "old", "see", "two", "way", "who", "boy", "did", "its", "let", "say",
];

/// A request that is ready to send.
#[derive(Clone, Debug)]
pub struct Ask {
    /// Its JSON body.
    pub body: Bytes,
    /// What it costs: prompt plus answer.
    pub tokens: u64,
    /// Whether it is streamed.
    pub stream: bool,
}

impl Ask {
    /// Draws the next request of a load.
    pub fn draw(spec: &LoadSpec, rng: &mut SplitMix64) -> Self {
        let prompt = spec.prompt_tokens.draw_whole(rng);
        let text = match spec.endpoint {
            // A message costs three tokens more than its text.
            Endpoint::Chat | Endpoint::Responses => text(prompt.saturating_sub(3), rng),
            Endpoint::Completions | Endpoint::Embeddings => text(prompt, rng),
        };
        let max = spec.max_tokens.map(|size| size.draw_whole(rng).max(1));
        let stream = rng.unit() < spec.stream && spec.endpoint != Endpoint::Embeddings;
        let mut body = json!({"model": spec.model});
        let max_name = match spec.endpoint {
            Endpoint::Chat => {
                body["messages"] = json!([{"role": "user", "content": text}]);
                Some("max_tokens")
            }
            Endpoint::Completions => {
                body["prompt"] = json!(text);
                Some("max_tokens")
            }
            Endpoint::Embeddings => {
                body["input"] = json!([text]);
                None
            }
            Endpoint::Responses => {
                body["input"] = json!(text);
                Some("max_output_tokens")
            }
        };
        if let (Some(name), Some(max)) = (max_name, max) {
            body[name] = json!(max);
        }
        if stream {
            body["stream"] = Value::Bool(true);
            if spec.include_usage && spec.endpoint != Endpoint::Responses {
                body["stream_options"] = json!({"include_usage": true});
            }
        }
        // A body made here always parses; were it not so, it would cost nothing
        // and the tests would see it.
        let tokens =
            Request::from_json(spec.endpoint, &body).map_or(0, |request| request.cost(&spec.answer, spec.answer_seed));
        Self { body: Bytes::from(body.to_string()), tokens, stream }
    }
}

/// Random words that count `tokens` tokens (at least 1).
fn text(tokens: u64, rng: &mut SplitMix64) -> String {
    let words: Vec<&str> = (0..tokens.max(1)).filter_map(|_| WORDS.get(rng.below(WORDS.len())).copied()).collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::size::Size;

    #[test]
    fn a_request_costs_what_was_wanted() {
        for (endpoint, tokens) in [
            (Endpoint::Chat, 140),
            (Endpoint::Completions, 140),
            (Endpoint::Responses, 140),
            (Endpoint::Embeddings, 100),
        ] {
            let spec = LoadSpec {
                endpoint,
                prompt_tokens: Size::fixed(100.0),
                max_tokens: Some(Size::fixed(40.0)),
                ..LoadSpec::default()
            };
            let ask = Ask::draw(&spec, &mut SplitMix64::new(3));
            assert_eq!(ask.tokens, tokens, "{endpoint:?}");
            let request = Request::parse(endpoint, &ask.body).unwrap();
            assert_eq!(request.prompt_tokens, 100, "{endpoint:?}");
        }
    }

    #[test]
    fn the_same_seed_draws_the_same_requests_and_streams_the_share() {
        let spec = LoadSpec { stream: 0.3, ..LoadSpec::default() };
        let draw = || {
            let mut rng = SplitMix64::new(spec.seed);
            (0..1000).map(|_| Ask::draw(&spec, &mut rng)).collect::<Vec<_>>()
        };
        let asks = draw();
        assert!(asks.iter().zip(draw()).all(|(a, b)| a.body == b.body));
        let streamed = asks.iter().filter(|a| a.stream).count();
        assert!((250..350).contains(&streamed), "{streamed}");
    }
}
