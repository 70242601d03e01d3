//! Where the value of a container's environment variable comes from.

use std::fmt;

use k8s_openapi::api::core::v1::{Container, EnvVar};

use crate::api::Reason;

/// A key of a Secret or ConfigMap in the namespace of the pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ref {
    /// A key of a Secret.
    Secret {
        /// Name of the Secret.
        name: String,
        /// Key in it.
        key: String,
    },
    /// A key of a ConfigMap.
    ConfigMap {
        /// Name of the ConfigMap.
        name: String,
        /// Key in it.
        key: String,
    },
}

impl Ref {
    /// Key in the object.
    #[must_use]
    pub fn key(&self) -> &str {
        match self {
            Self::Secret { key, .. } | Self::ConfigMap { key, .. } => key,
        }
    }
}

impl fmt::Display for Ref {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Secret { name, key } => write!(f, "key {key} of Secret {name}"),
            Self::ConfigMap { name, key } => write!(f, "key {key} of ConfigMap {name}"),
        }
    }
}

/// A part of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Stands in the pod template.
    Text(String),
    /// The first of these that there is.
    From {
        /// Where to look, in order.
        refs: Vec<Ref>,
        /// Whether the pod cannot start without it.
        required: bool,
    },
}

/// Where the value of a variable comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Setting {
    /// The variable is not set.
    Absent,
    /// The parts of the value, in order: more than one where it names others as `$(NAME)`.
    Value(Vec<Piece>),
    /// It is set, from where an operator cannot read it.
    Unsupported(String),
}

/// A value that could not be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Missing {
    /// A Secret, ConfigMap or key does not exist.
    #[error("{variable} comes from {source_ref}, which does not exist or cannot be read")]
    Reference {
        /// The variable.
        variable: String,
        /// Where it should come from.
        source_ref: Ref,
    },
    /// The variable comes from where the operator cannot read it.
    #[error(
        "{variable} comes from {from}, which the operator cannot read: name the ledger's Redis in spec.redis.urlSecretRef"
    )]
    Unsupported {
        /// The variable.
        variable: String,
        /// Where it comes from.
        from: String,
    },
    /// The value is none that can be used.
    #[error("{variable} {problem}")]
    Invalid {
        /// The variable.
        variable: String,
        /// What is wrong with it.
        problem: String,
    },
}

impl Missing {
    /// The reason to show in the condition.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Reference { .. } => Reason::RedisSettingsMissing,
            Self::Unsupported { .. } | Self::Invalid { .. } => Reason::RedisSettingsInvalid,
        }
    }
}

impl Setting {
    /// The value, with what Secrets and ConfigMaps hold by `resolve`; none when the variable is not set.
    ///
    /// # Errors
    /// [`Missing`], naming `variable`.
    pub fn resolve(
        &self,
        variable: &str,
        resolve: &impl Fn(&Ref) -> Option<String>,
    ) -> Result<Option<String>, Missing> {
        let pieces = match self {
            Self::Absent => return Ok(None),
            Self::Unsupported(from) => {
                return Err(Missing::Unsupported { variable: variable.to_owned(), from: from.clone() });
            }
            Self::Value(pieces) => pieces,
        };
        let mut value = String::new();
        for piece in pieces {
            match piece {
                Piece::Text(text) => value.push_str(text),
                Piece::From { refs, required } => match refs.iter().find_map(resolve) {
                    Some(text) => value.push_str(&text),
                    None if !required && pieces.len() == 1 => return Ok(None),
                    None => {
                        let Some(first) = refs.first() else {
                            return Ok(None);
                        };
                        return Err(Missing::Reference { variable: variable.to_owned(), source_ref: first.clone() });
                    }
                },
            }
        }
        Ok(Some(value))
    }

    /// Everything that has to be read to know the value.
    pub fn refs(&self) -> impl Iterator<Item = &Ref> {
        let pieces = if let Self::Value(pieces) = self { pieces.as_slice() } else { &[] };
        pieces.iter().flat_map(|piece| match piece {
            Piece::Text(_) => &[][..],
            Piece::From { refs, .. } => refs.as_slice(),
        })
    }
}

/// Variables within variables that are followed for one of them. Thirty that each name the one before twice would be a
/// billion.
const MOST_EXPANSIONS: u32 = 64;

/// Where the variable `name` of a container comes from: its `env`, else its `envFrom`.
#[must_use]
pub fn setting(container: &Container, name: &str) -> Setting {
    let env = container.env.as_deref().unwrap_or_default();
    setting_among(container, env, name, &mut { MOST_EXPANSIONS })
}

/// As [`setting`], with only the first variables of the container: a variable can name those before it. `left`: how many more
/// variables may be put in.
fn setting_among(container: &Container, env: &[EnvVar], name: &str, left: &mut u32) -> Setting {
    // Of several with the same name the last one counts.
    let Some((at, variable)) = env.iter().enumerate().rev().find(|(_, variable)| variable.name == name) else {
        return inherited(container, name);
    };
    let Some(from) = &variable.value_from else {
        let before = env.get(..at).unwrap_or_default();
        return expand(container, before, variable.value.as_deref().unwrap_or_default(), left);
    };
    if let Some(secret) = &from.secret_key_ref {
        let found = Ref::Secret { name: secret.name.clone(), key: secret.key.clone() };
        Setting::Value(vec![Piece::From { refs: vec![found], required: !secret.optional.unwrap_or(false) }])
    } else if let Some(map) = &from.config_map_key_ref {
        let found = Ref::ConfigMap { name: map.name.clone(), key: map.key.clone() };
        Setting::Value(vec![Piece::From { refs: vec![found], required: !map.optional.unwrap_or(false) }])
    } else if from.field_ref.is_some() || from.resource_field_ref.is_some() {
        Setting::Unsupported("a field of the pod".to_owned())
    } else {
        Setting::Unsupported("a file of the pod".to_owned())
    }
}

/// What `envFrom` can give to a variable. Of several sources the last one that has the key counts.
fn inherited(container: &Container, name: &str) -> Setting {
    let sources = container.env_from.iter().flatten().rev();
    let refs: Vec<Ref> = sources
        .filter_map(|source| {
            let key = name.strip_prefix(source.prefix.as_deref().unwrap_or_default())?.to_owned();
            if let Some(secret) = &source.secret_ref {
                Some(Ref::Secret { name: secret.name.clone(), key })
            } else {
                source.config_map_ref.as_ref().map(|map| Ref::ConfigMap { name: map.name.clone(), key })
            }
        })
        .collect();
    if refs.is_empty() { Setting::Absent } else { Setting::Value(vec![Piece::From { refs, required: false }]) }
}

/// Replaces `$(NAME)` by the variables before it as the kubelet does; `$$` is a dollar.
fn expand(container: &Container, before: &[EnvVar], text: &str, left: &mut u32) -> Setting {
    let mut pieces = Vec::new();
    let mut plain = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        let (head, tail) = rest.split_at(at);
        plain.push_str(head);
        let named = tail.strip_prefix("$(").and_then(|inner| inner.split_once(')'));
        if let Some(after) = tail.strip_prefix("$$") {
            plain.push('$');
            rest = after;
        } else if let Some((name, after)) = named {
            let Some(fewer) = left.checked_sub(1) else {
                return Setting::Unsupported(format!("more than {MOST_EXPANSIONS} other variables"));
            };
            *left = fewer;
            match setting_among(container, before, name, left) {
                Setting::Value(found) => {
                    pieces.push(Piece::Text(std::mem::take(&mut plain)));
                    pieces.extend(found);
                }
                Setting::Unsupported(from) => {
                    return Setting::Unsupported(format!("{name}, and that from {from}"));
                }
                Setting::Absent => plain.push_str(&format!("$({name})")),
            }
            rest = after;
        } else {
            plain.push('$');
            rest = tail.get(1..).unwrap_or_default();
        }
    }
    plain.push_str(rest);
    pieces.push(Piece::Text(plain));
    pieces.retain(|piece| !matches!(piece, Piece::Text(text) if text.is_empty()));
    Setting::Value(pieces)
}

#[cfg(test)]
mod tests {
    use super::super::test_support::container;
    use super::*;

    fn text(yaml: &str, name: &str) -> Result<Option<String>, Missing> {
        setting(&container(yaml), name).resolve(name, &|found| match found {
            Ref::Secret { name, key } if name == "s" => Some(format!("<{key}>")),
            Ref::ConfigMap { name, key } if name == "c" => Some(format!("[{key}]")),
            _ => None,
        })
    }

    #[test]
    fn variables_that_double_are_given_up() {
        for first in ["", "x"] {
            let doubles = (1..=30).map(|n| format!("{{name: A{n}, value: $(A{0})$(A{0})}}", n - 1));
            let env: Vec<String> = [format!("{{name: A0, value: '{first}'}}")].into_iter().chain(doubles).collect();
            let yaml = format!("{{name: a, env: [{}]}}", env.join(", "));
            assert_eq!(text(&yaml, "A5"), Ok(Some(first.repeat(32))));
            assert!(matches!(text(&yaml, "A30"), Err(Missing::Unsupported { .. })));
        }
    }

    #[test]
    fn each_source_is_read() {
        let yaml = "{name: a, env: [{name: A, value: x}, {name: B, valueFrom: {secretKeyRef: {name: s, key: k}}},
            {name: C, valueFrom: {configMapKeyRef: {name: c, key: k}}},
            {name: D, valueFrom: {fieldRef: {fieldPath: status.podIP}}},
            {name: E, valueFrom: {secretKeyRef: {name: none, key: k, optional: true}}},
            {name: F, valueFrom: {secretKeyRef: {name: none, key: k}}}]}";
        assert_eq!(text(yaml, "A"), Ok(Some("x".to_owned())));
        assert_eq!(text(yaml, "B"), Ok(Some("<k>".to_owned())));
        assert_eq!(text(yaml, "C"), Ok(Some("[k]".to_owned())));
        assert!(matches!(text(yaml, "D"), Err(Missing::Unsupported { .. })));
        assert_eq!(text(yaml, "E"), Ok(None));
        assert_eq!(
            text(yaml, "F").unwrap_err().to_string(),
            "F comes from key k of Secret none, which does not exist or cannot be read"
        );
        assert_eq!(text(yaml, "G"), Ok(None));
    }

    #[test]
    fn values_name_variables_before_them() {
        let yaml = "{name: a, env: [{name: P, valueFrom: {secretKeyRef: {name: s, key: pw}}},
            {name: U, value: 'redis://:$(P)@$(H):$$1$x'}, {name: H, value: later}]}";
        assert_eq!(text(yaml, "U"), Ok(Some("redis://:<pw>@$(H):$1$x".to_owned())));
    }

    #[test]
    fn env_from_counts_from_the_last_source_and_after_env() {
        let yaml =
            "{name: a, env: [{name: A, value: own}], envFrom: [{configMapRef: {name: c}}, {secretRef: {name: s}},
            {secretRef: {name: gone}}, {prefix: X_, configMapRef: {name: c}}]}";
        assert_eq!(text(yaml, "A"), Ok(Some("own".to_owned())));
        assert_eq!(text(yaml, "B"), Ok(Some("<B>".to_owned())));
        assert_eq!(text(yaml, "X_B"), Ok(Some("[B]".to_owned())));
        assert_eq!(setting(&container(yaml), "B").refs().count(), 3);
    }

    #[test]
    fn of_two_with_one_name_the_last_counts() {
        assert_eq!(
            text("{name: a, env: [{name: A, value: x}, {name: A, value: 'y$(A)'}]}", "A"),
            Ok(Some("yx".to_owned()))
        );
    }
}
