//! Manifests in files: YAML or JSON, several in one file, lists taken apart.

use std::path::Path;

use k8s_openapi::api::apps::v1::Deployment;
use serde_json::Value;

/// One object of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    /// The file, as it was named; `-` is the standard input.
    pub file: String,
    /// The object.
    pub value: Value,
}

/// A file that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    /// It cannot be opened.
    #[error("{file}: {source}")]
    File {
        /// The file.
        file: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is no YAML.
    #[error("{file}: no YAML: {problem}{hint}")]
    Yaml {
        /// The file.
        file: String,
        /// Where and why.
        problem: String,
        /// A way out, if one is known.
        hint: &'static str,
    },
}

const TEMPLATE_HINT: &str =
    "\nThis looks like a Helm template; check what it renders: helm template ... | kubectl tokenbudget check -";

/// Reads a file, or the standard input for `-`.
///
/// # Errors
/// [`Unreadable`].
pub fn read(path: &Path) -> Result<Vec<Document>, Unreadable> {
    let file = path.display().to_string();
    let text = if file == "-" { std::io::read_to_string(std::io::stdin()) } else { std::fs::read_to_string(path) };
    parse(&file, &text.map_err(|source| Unreadable::File { file: file.clone(), source })?)
}

/// The objects in a text.
///
/// # Errors
/// [`Unreadable::Yaml`].
pub fn parse(file: &str, text: &str) -> Result<Vec<Document>, Unreadable> {
    let values: Vec<Value> = serde_saphyr::from_multiple(text).map_err(|error| Unreadable::Yaml {
        file: file.to_owned(),
        problem: error.to_string(),
        hint: if text.contains("{{") { TEMPLATE_HINT } else { "" },
    })?;
    let items = |value: Value| match value.get("items").and_then(Value::as_array) {
        Some(items) if value["kind"].as_str().is_some_and(|kind| kind.ends_with("List")) => items.clone(),
        _ => vec![value],
    };
    let present = values.into_iter().flat_map(items).filter(|value| !value.is_null());
    Ok(present.map(|value| Document { file: file.to_owned(), value }).collect())
}

impl Document {
    /// A text of the object; empty where there is none.
    #[must_use]
    pub fn text(&self, pointer: &str) -> &str {
        self.value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
    }

    /// `kind`.
    #[must_use]
    pub fn kind(&self) -> &str {
        self.text("/kind")
    }

    /// The group of `apiVersion`; empty for core objects.
    #[must_use]
    pub fn group(&self) -> &str {
        self.text("/apiVersion").split_once('/').map_or("", |(group, _)| group)
    }

    /// `metadata.name`.
    #[must_use]
    pub fn name(&self) -> &str {
        self.text("/metadata/name")
    }

    /// The Deployment that this is; none of another kind.
    ///
    /// # Errors
    /// A text about the field that is wrong.
    pub fn deployment(&self) -> Option<Result<Deployment, String>> {
        (self.group() == "apps" && self.kind() == "Deployment")
            .then(|| serde_json::from_value(self.value.clone()).map_err(|error| error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_several_documents_are_taken_apart() {
        let text = "kind: A\n---\n---\nkind: List\nitems: [{kind: B}, {apiVersion: apps/v1, kind: C}]\n";
        let all = parse("x", text).unwrap();
        assert_eq!(all.iter().map(Document::kind).collect::<Vec<_>>(), ["A", "B", "C"]);
        assert_eq!((all[1].group(), all[2].group()), ("", "apps"));
        assert_eq!(parse("x", r#"{"kind": "J"}"#).unwrap()[0].kind(), "J");
        assert_eq!(parse("x", "").unwrap(), []);
    }

    #[test]
    fn what_is_no_yaml_is_named_with_its_place() {
        let text = parse("values.yaml", "a: {{ .Values.x }}\nb: [").unwrap_err().to_string();
        assert!(text.starts_with("values.yaml: no YAML: ") && text.contains("helm template"), "{text}");
        assert!(read(Path::new("/none/x.yaml")).unwrap_err().to_string().starts_with("/none/x.yaml: "));
    }
}
