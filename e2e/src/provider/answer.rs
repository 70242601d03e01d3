//! The bodies of answers, streamed and not, as the OpenAI API writes them.

use serde_json::{Value, json};

use crate::request::{Endpoint, Request};

/// Common words that are one token each (with the space before them) for the
/// usual tokenizers, so that a text of n words is counted as n tokens.
const WORDS: [&str; 16] =
    ["the", "and", "for", "you", "not", "but", "all", "can", "was", "one", "our", "out", "day", "get", "has", "new"];

/// Words number `from..to` of an answer: `to - from` tokens.
#[must_use]
pub fn words(from: u64, to: u64) -> String {
    let mut text = String::with_capacity(usize::try_from(to - from).unwrap_or(0) * 4);
    for n in from..to {
        if n > 0 {
            text.push(' ');
        }
        // The remainder is below 16, so the cast loses nothing.
        text.push_str(WORDS[(n % 16) as usize]);
    }
    text
}

/// An answer that is about to be written.
#[derive(Clone, Debug)]
pub struct Answer {
    /// What was asked.
    pub request: Request,
    /// Tokens of each choice.
    pub choice_tokens: u64,
    /// The answer's id, without a prefix.
    pub id: u64,
    /// Unix seconds.
    pub created: u64,
}

impl Answer {
    /// Tokens of all choices.
    #[must_use]
    pub const fn answer_tokens(&self) -> u64 {
        self.choice_tokens * self.request.choices
    }

    /// Why a choice ended: `length` when max_tokens cut it.
    const fn finish_reason(&self) -> &'static str {
        match self.request.max_tokens {
            Some(max) if max <= self.choice_tokens => "length",
            _ => "stop",
        }
    }

    fn usage(&self) -> Value {
        let (prompt, answer) = (self.request.prompt_tokens, self.answer_tokens());
        match self.request.endpoint {
            Endpoint::Responses => json!({
                "input_tokens": prompt,
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens": answer,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": prompt + answer,
            }),
            Endpoint::Embeddings => json!({"prompt_tokens": prompt, "total_tokens": prompt}),
            Endpoint::Chat | Endpoint::Completions => json!({
                "prompt_tokens": prompt,
                "completion_tokens": answer,
                "total_tokens": prompt + answer,
            }),
        }
    }

    /// The whole answer.
    #[must_use]
    pub fn whole(&self) -> Value {
        let text = || words(0, self.choice_tokens);
        match self.request.endpoint {
            Endpoint::Chat => json!({
                "id": format!("chatcmpl-{:x}", self.id),
                "object": "chat.completion",
                "created": self.created,
                "model": self.request.model,
                "choices": (0..self.request.choices).map(|index| json!({
                    "index": index,
                    "message": {"role": "assistant", "content": text(), "refusal": null},
                    "logprobs": null,
                    "finish_reason": self.finish_reason(),
                })).collect::<Vec<_>>(),
                "usage": self.usage(),
                "system_fingerprint": "fp_rig",
            }),
            Endpoint::Completions => json!({
                "id": format!("cmpl-{:x}", self.id),
                "object": "text_completion",
                "created": self.created,
                "model": self.request.model,
                "choices": (0..self.request.choices).map(|index| json!({
                    "index": index,
                    "text": text(),
                    "logprobs": null,
                    "finish_reason": self.finish_reason(),
                })).collect::<Vec<_>>(),
                "usage": self.usage(),
            }),
            Endpoint::Embeddings => json!({
                "object": "list",
                "model": self.request.model,
                "data": (0..self.request.inputs).map(|index| json!({
                    "object": "embedding",
                    "index": index,
                    "embedding": [0.1, 0.2, -0.3, 0.4, -0.5, 0.6, -0.7, 0.8],
                })).collect::<Vec<_>>(),
                "usage": self.usage(),
            }),
            Endpoint::Responses => self.response("completed", &text()),
        }
    }

    /// The object of the Responses API; `text` is what is there so far.
    fn response(&self, status: &str, text: &str) -> Value {
        let done = status == "completed";
        let output = if done { json!([self.item("completed", Some(text))]) } else { json!([]) };
        json!({
            "id": format!("resp_{:x}", self.id),
            "object": "response",
            "created_at": self.created,
            "status": status,
            "error": null,
            "incomplete_details": null,
            "instructions": null,
            "max_output_tokens": self.request.max_tokens,
            "model": self.request.model,
            "output": output,
            "parallel_tool_calls": true,
            "previous_response_id": null,
            "reasoning": {"effort": null, "summary": null},
            "store": false,
            "temperature": 1.0,
            "text": {"format": {"type": "text"}},
            "tool_choice": "auto",
            "tools": [],
            "top_p": 1.0,
            "truncation": "disabled",
            "usage": if done { self.usage() } else { Value::Null },
            "user": self.request.user,
            "metadata": {},
        })
    }

    fn item(&self, status: &str, text: Option<&str>) -> Value {
        let content: Vec<Value> = text.map(part).into_iter().collect();
        json!({"id": self.item_id(), "type": "message", "status": status,
            "role": "assistant", "content": content})
    }

    fn item_id(&self) -> String {
        format!("msg_{:x}", self.id)
    }

    /// The events of a stream: the text of each and how many tokens it brings.
    pub fn events(self, chunk_tokens: u64) -> impl Iterator<Item = (String, u64)> {
        let chunk = chunk_tokens.max(1);
        let mut sequence = 0;
        let (head, tail) = self.head_and_tail();
        let responses = self.request.endpoint == Endpoint::Responses;
        let choices = self.request.choices;
        let tokens = self.choice_tokens;
        let chunks = tokens.div_ceil(chunk);
        let deltas = (0..chunks).flat_map(move |n| (0..choices).map(move |choice| (n, choice)));
        let deltas = deltas.map(move |(n, choice)| {
            let (from, to) = (n * chunk, tokens.min((n + 1) * chunk));
            (self.delta(choice, &words(from, to)), to - from)
        });
        let done = (!responses).then(|| ("data: [DONE]\n\n".to_owned(), 0));
        head.into_iter()
            .map(|event| (event, 0))
            .chain(deltas)
            .chain(tail.into_iter().map(|event| (event, 0)))
            .map(move |(mut event, tokens)| {
                if !responses {
                    return (format!("data: {event}\n\n"), tokens);
                }
                event["sequence_number"] = json!(sequence);
                sequence += 1;
                let name = event["type"].as_str().unwrap_or("message").to_owned();
                (format!("event: {name}\ndata: {event}\n\n"), tokens)
            })
            .chain(done)
    }

    /// The events before the first token and after the last.
    fn head_and_tail(&self) -> (Vec<Value>, Vec<Value>) {
        if self.request.endpoint == Endpoint::Responses {
            return self.response_head_and_tail();
        }
        let chat = self.request.endpoint == Endpoint::Chat;
        let choices = || 0..self.request.choices;
        let head = choices().filter(|_| chat).map(|index| {
            self.chunk(json!([{"index": index, "logprobs": null, "finish_reason": null,
                "delta": {"role": "assistant", "content": "", "refusal": null}}]))
        });
        let tail = choices().map(|index| {
            let mut choice = json!({"index": index, "logprobs": null,
                "finish_reason": self.finish_reason()});
            if chat {
                choice["delta"] = json!({});
            } else {
                choice["text"] = json!("");
            }
            self.chunk(json!([choice]))
        });
        let usage = self.request.include_usage.then(|| {
            let mut last = self.chunk(json!([]));
            last["usage"] = self.usage();
            last
        });
        (head.collect(), tail.chain(usage).collect())
    }

    fn response_head_and_tail(&self) -> (Vec<Value>, Vec<Value>) {
        let text = words(0, self.choice_tokens);
        let at = |name: &str, more: Value| {
            let mut event = json!({"type": name, "output_index": 0});
            if let (Some(event), Value::Object(more)) = (event.as_object_mut(), more) {
                event.extend(more);
            }
            event
        };
        let within = json!({"item_id": self.item_id(), "content_index": 0});
        let within = |name: &str, field: &str, value: Value| {
            let mut more = within.clone();
            more[field] = value;
            at(name, more)
        };
        let begun = self.response("in_progress", "");
        let head = vec![
            json!({"type": "response.created", "response": begun}),
            json!({"type": "response.in_progress", "response": begun}),
            at("response.output_item.added", json!({"item": self.item("in_progress", None)})),
            within("response.content_part.added", "part", part("")),
        ];
        let tail = vec![
            within("response.output_text.done", "text", json!(text)),
            within("response.content_part.done", "part", part(&text)),
            at("response.output_item.done", json!({"item": self.item("completed", Some(&text))})),
            json!({"type": "response.completed", "response": self.response("completed", &text)}),
        ];
        (head, tail)
    }

    /// One event that brings text.
    fn delta(&self, index: u64, text: &str) -> Value {
        match self.request.endpoint {
            Endpoint::Responses => json!({"type": "response.output_text.delta",
                "item_id": self.item_id(), "output_index": 0, "content_index": 0,
                "delta": text, "logprobs": []}),
            Endpoint::Chat => self.chunk(json!([{"index": index, "delta": {"content": text},
                "logprobs": null, "finish_reason": null}])),
            Endpoint::Completions | Endpoint::Embeddings => self.chunk(json!([{"index": index,
                "text": text, "logprobs": null, "finish_reason": null}])),
        }
    }

    fn chunk(&self, choices: Value) -> Value {
        let (prefix, object) = match self.request.endpoint {
            Endpoint::Chat => ("chatcmpl", "chat.completion.chunk"),
            _ => ("cmpl", "text_completion"),
        };
        let mut chunk = json!({"id": format!("{prefix}-{:x}", self.id), "object": object,
            "created": self.created, "model": self.request.model, "choices": choices});
        if self.request.include_usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }
}

/// A piece of output text.
fn part(text: &str) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(endpoint: Endpoint, body: &Value) -> Answer {
        Answer { request: Request::from_json(endpoint, body).unwrap(), choice_tokens: 25, id: 1, created: 0 }
    }

    #[test]
    fn chunks_of_words_join_to_the_whole() {
        assert_eq!(words(0, 3) + &words(3, 20), words(0, 20));
        assert_eq!(words(0, 20).split(' ').count(), 20);
    }

    #[test]
    fn a_stream_brings_every_token_once_and_usage_only_if_asked() {
        for (options, usages) in [(json!({}), 0), (json!({"include_usage": true}), 1)] {
            let body = json!({"model": "m", "n": 2, "messages": [{"content": "hi"}],
                "stream": true, "stream_options": options});
            let events: Vec<_> = answer(Endpoint::Chat, &body).events(10).collect();
            assert_eq!(events.iter().map(|(_, t)| t).sum::<u64>(), 50);
            let usage = |e: &&(String, u64)| e.0.contains("\"total_tokens\":54");
            assert_eq!(events.iter().filter(usage).count(), usages);
            assert_eq!(events.last().unwrap().0, "data: [DONE]\n\n");
        }
    }

    #[test]
    fn a_responses_stream_ends_with_its_usage() {
        let body = json!({"model": "m", "input": "hi", "stream": true});
        let events: Vec<_> = answer(Endpoint::Responses, &body).events(10).collect();
        assert_eq!(events.len(), 4 + 3 + 4);
        let last = &events.last().unwrap().0;
        assert!(last.starts_with("event: response.completed\n"));
        assert!(last.contains("\"output_tokens\":25"));
    }
}
