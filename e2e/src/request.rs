//! What a request to the OpenAI API costs, as a pure function of its content.
//!
//! The provider charges with it, and the load computes with the same code what
//! a refused request would have cost. Nothing here depends on time, on the
//! order of requests, or on whether the answer is streamed.
//!
//! * Prompt tokens: `ceil(bytes / 4)` over all text, plus 3 per message,
//!   at least 1.
//! * Answer tokens: a draw of [`Size`] seeded with the seed and a hash of the
//!   prompt's text, at least 1, at most the request's max_tokens, times the
//!   number of choices. An embedding has none.

use serde_json::Value;

use crate::size::{FNV_START, Size, SplitMix64, fnv1a};

/// The endpoints of the OpenAI API that are priced here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Endpoint {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/completions`
    Completions,
    /// `/v1/embeddings`
    Embeddings,
    /// `/v1/responses`
    Responses,
}

impl Endpoint {
    /// The path, with the `/v1` prefix.
    #[must_use]
    pub const fn path(self) -> &'static str {
        match self {
            Self::Chat => "/v1/chat/completions",
            Self::Completions => "/v1/completions",
            Self::Embeddings => "/v1/embeddings",
            Self::Responses => "/v1/responses",
        }
    }
}

/// The parts of a request that decide what it costs and how it is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Which endpoint it came to.
    pub endpoint: Endpoint,
    /// The model it names.
    pub model: String,
    /// Tokens of the prompt.
    pub prompt_tokens: u64,
    /// FNV-1a over the prompt's text.
    pub prompt_hash: u64,
    /// The most tokens one choice may have: max_completion_tokens,
    /// max_output_tokens or max_tokens, whichever is there first.
    pub max_tokens: Option<u64>,
    /// How many answers are wanted: `n` times the number of prompts (1 to 128).
    pub choices: u64,
    /// Whether the answer is streamed.
    pub stream: bool,
    /// `stream_options.include_usage`.
    pub include_usage: bool,
    /// How many inputs an embedding request has.
    pub inputs: usize,
    /// The `user` field.
    pub user: Option<String>,
}

impl Request {
    /// Reads a request's body.
    ///
    /// # Errors
    /// When the body is not a JSON object, or names no model or no prompt.
    pub fn parse(endpoint: Endpoint, body: &[u8]) -> Result<Self, String> {
        let body: Value = serde_json::from_slice(body).map_err(|e| format!("body: {e}"))?;
        Self::from_json(endpoint, &body)
    }

    /// Reads a request's body that is already JSON.
    ///
    /// # Errors
    /// When it is not an object, or names no model or no prompt.
    pub fn from_json(endpoint: Endpoint, body: &Value) -> Result<Self, String> {
        let model = body.get("model").and_then(Value::as_str).ok_or("you must provide a model parameter")?;
        let field = match endpoint {
            Endpoint::Chat => "messages",
            Endpoint::Completions => "prompt",
            Endpoint::Embeddings | Endpoint::Responses => "input",
        };
        let prompt =
            body.get(field).filter(|v| !v.is_null()).ok_or_else(|| format!("missing required parameter: '{field}'"))?;
        let mut count = Count::default();
        if let Some(text) = body.get("instructions").and_then(Value::as_str) {
            count.message();
            count.text(text);
        }
        let list = prompt.as_array();
        match (endpoint, list) {
            (Endpoint::Chat | Endpoint::Responses, Some(messages)) => {
                for message in messages {
                    count.message();
                    count.content(message.get("content").unwrap_or(message));
                }
            }
            (Endpoint::Responses, None) => {
                count.message();
                count.content(prompt);
            }
            _ => count.content(prompt),
        }
        let texts = list.filter(|l| !l.iter().all(Value::is_number));
        let inputs = texts.map_or(1, Vec::len);
        let prompts = match endpoint {
            Endpoint::Completions => inputs as u64,
            _ => 1,
        };
        let n = body.get("n").and_then(Value::as_u64).unwrap_or(1);
        Ok(Self {
            endpoint,
            model: model.to_owned(),
            prompt_tokens: count.tokens(),
            prompt_hash: count.hash,
            max_tokens: ["max_completion_tokens", "max_output_tokens", "max_tokens"]
                .iter()
                .find_map(|name| body.get(*name).and_then(Value::as_u64)),
            choices: n.saturating_mul(prompts).clamp(1, 128),
            stream: body.get("stream").and_then(Value::as_bool) == Some(true),
            include_usage: body.pointer("/stream_options/include_usage").and_then(Value::as_bool) == Some(true),
            inputs,
            user: body.get("user").and_then(Value::as_str).map(ToOwned::to_owned),
        })
    }

    /// Tokens of one choice of the answer.
    #[must_use]
    pub fn choice_tokens(&self, answer: &Size, seed: u64) -> u64 {
        if self.endpoint == Endpoint::Embeddings {
            return 0;
        }
        let mut rng = SplitMix64::new(seed ^ self.prompt_hash);
        let drawn = answer.draw_whole(&mut rng).max(1);
        self.max_tokens.map_or(drawn, |max| drawn.min(max.max(1)))
    }

    /// Prompt plus answer: what the provider charges.
    #[must_use]
    pub fn cost(&self, answer: &Size, seed: u64) -> u64 {
        self.prompt_tokens + answer_tokens(answer, seed, self)
    }
}

/// Tokens the answer of `request` will have, over all choices.
///
/// Pure: it depends on the distribution, the seed and the request's content.
#[must_use]
pub fn answer_tokens(answer: &Size, seed: u64, request: &Request) -> u64 {
    request.choice_tokens(answer, seed).saturating_mul(request.choices)
}

/// Bytes, messages and hash of a prompt while it is walked.
struct Count {
    bytes: u64,
    messages: u64,
    whole_tokens: u64,
    hash: u64,
}

impl Default for Count {
    fn default() -> Self {
        Self { bytes: 0, messages: 0, whole_tokens: 0, hash: FNV_START }
    }
}

impl Count {
    const fn message(&mut self) {
        self.messages += 1;
    }

    fn text(&mut self, text: &str) {
        self.bytes += text.len() as u64;
        self.hash = fnv1a(self.hash, text.as_bytes());
    }

    /// A string, a list of strings or parts, or a list of token ids.
    fn content(&mut self, value: &Value) {
        match value {
            Value::String(text) => self.text(text),
            Value::Array(parts) => parts.iter().for_each(|part| self.content(part)),
            Value::Object(part) => {
                if let Some(text) = part.get("text").or_else(|| part.get("output")) {
                    self.content(text);
                }
            }
            // A token id: it is one token, whatever its digits.
            Value::Number(id) => {
                self.whole_tokens += 1;
                self.hash = fnv1a(self.hash, id.to_string().as_bytes());
            }
            Value::Null | Value::Bool(_) => {}
        }
    }

    fn tokens(&self) -> u64 {
        (self.bytes.div_ceil(4) + self.whole_tokens + 3 * self.messages).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn chat(body: Value) -> Request {
        Request::from_json(Endpoint::Chat, &body).unwrap()
    }

    #[test]
    fn counts_all_text_and_three_per_message() {
        let r = chat(json!({"model": "m", "messages": [
            {"role": "system", "content": "12345"},
            {"role": "user", "content": [{"type": "text", "text": "678"}]},
        ]}));
        assert_eq!(r.prompt_tokens, 2 + 6);
        assert_eq!((r.stream, r.include_usage, r.choices), (false, false, 1));
    }

    #[test]
    fn string_and_parts_cost_the_same() {
        let plain = chat(json!({"model": "m", "messages": [{"content": "hello"}]}));
        let parts = chat(json!({"model": "m", "stream": true,
            "messages": [{"content": [{"type": "text", "text": "hello"}]}]}));
        assert_eq!(plain.prompt_hash, parts.prompt_hash);
        let size = Size::lognormal(300.0, 1.5);
        assert_eq!(plain.cost(&size, 4), parts.cost(&size, 4));
    }

    #[test]
    fn other_endpoints_count_their_own_field() {
        let r = Request::from_json(Endpoint::Responses, &json!({"model": "m", "input": "12345678"})).unwrap();
        assert_eq!(r.prompt_tokens, 5);
        let r = Request::from_json(
            Endpoint::Responses,
            &json!({"model": "m", "instructions": "1234", "max_output_tokens": 7,
                "input": [{"role": "user", "content": [{"type": "input_text", "text": "1234"}]}]}),
        )
        .unwrap();
        assert_eq!((r.prompt_tokens, r.max_tokens), (8, Some(7)));
        let r = Request::from_json(Endpoint::Embeddings, &json!({"model": "m", "input": ["1234", "12345"]})).unwrap();
        assert_eq!((r.prompt_tokens, r.inputs), (3, 2));
        assert_eq!(r.cost(&Size::fixed(50.0), 1), 3);
        let r = Request::from_json(Endpoint::Embeddings, &json!({"model": "m", "input": [101, 7, 2024]})).unwrap();
        assert_eq!((r.prompt_tokens, r.inputs), (3, 1));
        let r =
            Request::from_json(Endpoint::Completions, &json!({"model": "m", "prompt": ["a", "b"], "n": 2})).unwrap();
        assert_eq!(r.choices, 4);
    }

    #[test]
    fn max_tokens_caps_and_choices_multiply() {
        let r = chat(json!({"model": "m", "n": 3, "max_tokens": 10,
            "messages": [{"content": "x"}]}));
        assert_eq!(answer_tokens(&Size::fixed(50.0), 0, &r), 30);
        assert_eq!(answer_tokens(&Size::fixed(4.0), 0, &r), 12);
        assert_eq!(answer_tokens(&Size::fixed(0.0), 0, &r), 3);
    }

    #[test]
    fn length_depends_on_seed_and_text() {
        let size = Size::lognormal(300.0, 1.0);
        let a = chat(json!({"model": "m", "messages": [{"content": "a"}]}));
        let b = chat(json!({"model": "m", "messages": [{"content": "b"}]}));
        assert_eq!(answer_tokens(&size, 1, &a), answer_tokens(&size, 1, &a));
        assert_ne!(answer_tokens(&size, 1, &a), answer_tokens(&size, 1, &b));
        assert_ne!(answer_tokens(&size, 1, &a), answer_tokens(&size, 2, &a));
    }

    #[test]
    fn says_what_is_missing() {
        let missing = |body: Value| Request::from_json(Endpoint::Chat, &body).unwrap_err();
        assert!(missing(json!({"messages": []})).contains("model"));
        assert!(missing(json!({"model": "m"})).contains("messages"));
        assert!(Request::parse(Endpoint::Chat, b"{").is_err());
    }
}
