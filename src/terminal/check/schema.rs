//! A value against a structural schema, as the API server holds it: types, bounds, required and unknown fields, and the
//! rules in CEL.

use regex::Regex;
use serde_json::{Map, Value};

use super::rules;

/// Something wrong in one field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The field, as `spec.limits[0].name`; empty for the object itself.
    pub field: String,
    /// What is wrong, and the way out.
    pub message: String,
}

/// What is wrong with the value, in the order of the schema.
#[must_use]
pub fn faults(schema: &Value, field: &str, value: &Value) -> Vec<Fault> {
    let mut found = Vec::new();
    walk(schema, field, value, &mut found);
    found
}

/// Without the fields that are null: they count as left out.
#[must_use]
pub fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let kept = map.iter().filter(|(_, value)| !value.is_null());
            Value::Object(kept.map(|(key, value)| (key.clone(), without_nulls(value))).collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(without_nulls).collect()),
        other => other.clone(),
    }
}

fn walk(schema: &Value, field: &str, value: &Value, found: &mut Vec<Fault>) {
    let before = found.len();
    if let Some(wanted) = schema["type"].as_str().filter(|wanted| !has_type(value, wanted)) {
        found.push(fault(field, format!("must be {}, and is {}", called(wanted), shown(value))));
        return;
    }
    match value {
        Value::Object(map) => object(schema, field, map, found),
        Value::Array(items) => {
            sized(schema, field, items.len(), ["minItems", "maxItems"], "entries", found);
            for (place, item) in items.iter().enumerate() {
                walk(&schema["items"], &format!("{field}[{place}]"), item, found);
            }
        }
        Value::String(text) => string(schema, field, text, found),
        Value::Number(number) => {
            let number = number.as_f64().unwrap_or(f64::NAN);
            if schema["minimum"].as_f64().is_some_and(|least| number < least) {
                found.push(fault(
                    field,
                    format!("must be at least {}, and is {}", bound(&schema["minimum"]), shown(value)),
                ));
            }
            if schema["maximum"].as_f64().is_some_and(|most| number > most) {
                found.push(fault(
                    field,
                    format!("must be at most {}, and is {}", bound(&schema["maximum"]), shown(value)),
                ));
            }
        }
        Value::Null | Value::Bool(_) => {}
    }
    // As the API server does: rules are for values that are well formed.
    if found.len() == before {
        let broken = rules::broken(&schema["x-kubernetes-validations"], value);
        found.extend(broken.into_iter().map(|message| fault(field, message)));
    }
}

fn object(schema: &Value, field: &str, map: &Map<String, Value>, found: &mut Vec<Fault>) {
    let Some(properties) = schema["properties"].as_object() else {
        return;
    };
    let under = |name: &str| if field.is_empty() { name.to_owned() } else { format!("{field}.{name}") };
    for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if !map.contains_key(name) {
            let what = properties.get(name).and_then(|property| property["description"].as_str()).unwrap_or_default();
            found.push(fault(&under(name), format!("missing: {}", first_sentence(what))));
        }
    }
    for (name, value) in map {
        match properties.get(name) {
            Some(schema) => walk(schema, &under(name), value, found),
            None => found.push(fault(&under(name), unknown(name, properties.keys().map(String::as_str)))),
        }
    }
}

/// What to say of a field that the schema does not have.
#[must_use]
pub fn unknown<'a>(name: &str, known: impl Iterator<Item = &'a str> + Clone) -> String {
    let (lower, distance) =
        (name.to_lowercase(), |other: &str| strsim::damerau_levenshtein(&name.to_lowercase(), &other.to_lowercase()));
    let near = known
        .clone()
        .min_by_key(|other| distance(other))
        .filter(|other| distance(other) <= 2.max(name.len() / 4) || other.to_lowercase().starts_with(&lower));
    match near {
        Some(near) => format!("no such field; did you mean {near}?"),
        None => format!("no such field; there are {}", known.collect::<Vec<_>>().join(", ")),
    }
}

fn string(schema: &Value, field: &str, text: &str, found: &mut Vec<Fault>) {
    if let Some(choices) = schema["enum"].as_array()
        && !choices.iter().any(|choice| choice == text)
    {
        let choices: Vec<&str> = choices.iter().filter_map(Value::as_str).collect();
        found.push(fault(field, format!("must be {}, and is {text:?}", choices.join(" or "))));
    }
    sized(schema, field, text.chars().count(), ["minLength", "maxLength"], "characters", found);
    if let Some(pattern) = schema["pattern"].as_str()
        && !Regex::new(pattern).is_ok_and(|pattern| pattern.is_match(text))
    {
        found.push(fault(field, format!("must match {pattern}, and is {text:?}")));
    }
}

fn sized(schema: &Value, field: &str, size: usize, bounds: [&str; 2], of: &str, found: &mut Vec<Fault>) {
    let bound = |name: &str| schema[name].as_u64().and_then(|bound| usize::try_from(bound).ok());
    if let Some(least) = bound(bounds[0]).filter(|least| size < *least) {
        found.push(fault(field, format!("must have at least {least} {of}, and has {size}")));
    }
    if let Some(most) = bound(bounds[1]).filter(|most| size > *most) {
        found.push(fault(field, format!("must have at most {most} {of}, and has {size}")));
    }
}

/// A bound as a person writes it: schemas have `1.0` for 1.
fn bound(bound: &Value) -> String {
    let text = bound.to_string();
    text.strip_suffix(".0").unwrap_or(&text).to_owned()
}

fn fault(field: &str, message: String) -> Fault {
    Fault { field: field.to_owned(), message }
}

fn has_type(value: &Value, wanted: &str) -> bool {
    match wanted {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        _ => true,
    }
}

fn called(wanted: &str) -> &'static str {
    match wanted {
        "object" => "a map",
        "array" => "a list",
        "string" => "a text (in quotes, if it looks like a number)",
        "boolean" => "true or false",
        "integer" => "a whole number, without quotes",
        _ => "a number",
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::Object(_) => "a map".to_owned(),
        Value::Array(_) => "a list".to_owned(),
        Value::String(text) => format!("the text {text:?}"),
        other => other.to_string(),
    }
}

fn first_sentence(text: &str) -> &str {
    text.split_once(". ").map_or(text, |(first, _)| first).trim_end_matches('.')
}

#[cfg(test)]
mod tests;
