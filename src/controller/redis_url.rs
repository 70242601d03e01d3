//! Which Redis holds the ledger of a TokenBudget: the one of its spec, else the LiteLLM container's own, else the default.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::net::IpAddr;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Container, Secret};
use kube::{Api, Client};

use crate::api::{Reason, SecretKeyRef};
use crate::ledger::{LedgerError, RedisLedger, Timeouts};
use crate::litellm::{CA_KEY, RedisSource, Ref};

/// Where a URL comes from, and the URL. The URL may hold a password: it is never logged or shown.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisLocation {
    /// The URL.
    pub url: String,
    /// The certificates (PEM) to trust instead of the public ones.
    pub ca: Option<String>,
    /// The Secret that the agent's environment has to name, if the container has no Redis of its own.
    pub secret: Option<SecretKeyRef>,
}

impl RedisLocation {
    /// Prepares the connection; nothing is sent yet.
    ///
    /// # Errors
    /// When the URL or the certificate cannot be used.
    pub fn connect(&self) -> Result<RedisLedger, LedgerError> {
        RedisLedger::connect_trusting(&self.url, self.ca.as_deref(), Timeouts::default())
    }
}

/// The ledger's Redis, or what the user has to mend for there to be one.
pub type Located = Result<RedisLocation, NoRedis>;

/// Why there is no URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoRedis {
    /// For the condition.
    pub reason: Reason,
    /// What is missing, and what to do.
    pub message: String,
}

impl NoRedis {
    /// The targets name different servers.
    #[must_use]
    pub fn several(deployment: &str) -> Self {
        let message = format!(
            "Deployment {deployment} names another Redis than the other targets: set spec.redis.urlSecretRef, so that all \
             of them share one ledger"
        );
        Self { reason: Reason::SeveralLedgers, message }
    }
}

/// Finds the URL.
///
/// # Errors
/// [`NoRedis`] says which object or key is missing. An API server that does not answer is an error of the pass.
pub async fn locate(
    client: &Client,
    namespace: &str,
    wanted: Option<&SecretKeyRef>,
    container: &Container,
    default: Option<&SecretKeyRef>,
) -> Result<Located, kube::Error> {
    if let Some(secret) = wanted {
        return from_secret(client, namespace, secret, "spec.redis.urlSecretRef").await;
    }
    let source = RedisSource::of(container);
    let values = read_all(client, namespace, source.refs()).await?;
    let refused = values.refused().map(|refused| format!("; {refused}")).unwrap_or_default();
    match source.url(|reference| values.get(reference)) {
        Ok(Some(url)) => Ok(Ok(RedisLocation { url: qualified(&url, namespace), ca: None, secret: None })),
        Ok(None) => match default {
            Some(secret) => from_secret(client, namespace, secret, "the operator's default").await,
            None => Ok(Err(NoRedis {
                reason: Reason::NoLedger,
                message: format!(
                    "no Redis is named: set spec.redis.urlSecretRef, or REDIS_URL, REDIS_HOST or REDIS_SENTINEL_NODES in \
                     the LiteLLM container{refused}"
                ),
            })),
        },
        Err(missing) => {
            let message = format!("the LiteLLM container's Redis settings: {missing}{refused}");
            Ok(Err(NoRedis { reason: missing.reason(), message }))
        }
    }
}

async fn from_secret(
    client: &Client,
    namespace: &str,
    secret: &SecretKeyRef,
    origin: &str,
) -> Result<Located, kube::Error> {
    let name = &secret.name;
    let missing =
        |why: String| Ok(Err(NoRedis { reason: Reason::RedisSettingsMissing, message: format!("{origin}: {why}") }));
    let found = match Api::<Secret>::namespaced(client.clone(), namespace).get_opt(name).await {
        Ok(Some(found)) => found,
        Ok(None) => return missing(format!("there is no Secret {name} in namespace {namespace}")),
        Err(kube::Error::Api(status)) if status.is_forbidden() => {
            return missing(may_not_read(&format!("Secret {name}")));
        }
        Err(error) => return Err(error),
    };
    Ok(in_secret(found.data.unwrap_or_default(), namespace, secret, origin))
}

fn in_secret(mut data: BTreeMap<String, ByteString>, namespace: &str, secret: &SecretKeyRef, origin: &str) -> Located {
    let (name, key) = (&secret.name, &secret.key);
    let Some(ByteString(bytes)) = data.remove(key) else {
        let message = format!("{origin}: the Secret {name} has no key {key}");
        return Err(NoRedis { reason: Reason::RedisSettingsMissing, message });
    };
    let Ok(url) = String::from_utf8(bytes) else {
        let message = format!("{origin}: key {key} of the Secret {name} is not text");
        return Err(NoRedis { reason: Reason::RedisSettingsInvalid, message });
    };
    // What is no text is no certificate either, which is said when it is used.
    let ca = data.remove(CA_KEY).map(|ByteString(bytes)| String::from_utf8_lossy(&bytes).into_owned());
    Ok(RedisLocation { url: qualified(url.trim(), namespace), ca, secret: Some(secret.clone()) })
}

/// What was read of keys of Secrets and ConfigMaps.
#[derive(Default)]
pub struct Values {
    texts: HashMap<Ref, String>,
    refused: BTreeSet<String>,
}

impl Values {
    /// The text of a key; none where there is no such key, or it may not be read.
    #[must_use]
    pub fn get(&self, reference: &Ref) -> Option<String> {
        self.texts.get(reference).cloned()
    }

    /// Which objects the operator may not read, and the way out.
    #[must_use]
    pub fn refused(&self) -> Option<String> {
        let names: Vec<&str> = self.refused.iter().map(String::as_str).collect();
        (!names.is_empty()).then(|| may_not_read(&names.join(", ")))
    }
}

fn may_not_read(objects: &str) -> String {
    format!("the operator may not read {objects}: list it in the chart's rbac.secretNames")
}

/// Reads what can be read of these keys.
///
/// # Errors
/// When the API server does not answer. What does not exist is left out, and so is what may not be read (`rbac.secretNames`
/// narrows it): a container's `envFrom` may name Secrets that are not the operator's business.
pub async fn read_all(
    client: &Client,
    namespace: &str,
    references: impl IntoIterator<Item = &Ref>,
) -> Result<Values, kube::Error> {
    let mut by_object: BTreeMap<Object<'_>, Vec<&Ref>> = BTreeMap::new();
    for reference in references {
        by_object.entry(Object::of(reference)).or_default().push(reference);
    }
    let mut values = Values::default();
    for (object, keys) in by_object {
        match object.read(client, namespace).await {
            Ok(data) => {
                values.texts.extend(keys.into_iter().filter_map(|r| Some((r.clone(), data.get(r.key())?.clone()))))
            }
            Err(kube::Error::Api(status)) if status.is_forbidden() => drop(values.refused.insert(object.to_string())),
            Err(error) => return Err(error),
        }
    }
    Ok(values)
}

/// A Secret or ConfigMap, by name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Object<'a> {
    Secret(&'a str),
    ConfigMap(&'a str),
}

impl<'a> Object<'a> {
    fn of(reference: &'a Ref) -> Self {
        match reference {
            Ref::Secret { name, .. } => Self::Secret(name),
            Ref::ConfigMap { name, .. } => Self::ConfigMap(name),
        }
    }

    /// Its keys that hold text; none where there is no such object.
    async fn read(self, client: &Client, namespace: &str) -> Result<BTreeMap<String, String>, kube::Error> {
        match self {
            Self::Secret(name) => {
                let found = Api::<Secret>::namespaced(client.clone(), namespace).get_opt(name).await?;
                let data = found.and_then(|secret| secret.data).unwrap_or_default().into_iter();
                Ok(data.filter_map(|(key, ByteString(bytes))| Some((key, String::from_utf8(bytes).ok()?))).collect())
            }
            Self::ConfigMap(name) => {
                let found = Api::<ConfigMap>::namespaced(client.clone(), namespace).get_opt(name).await?;
                Ok(found.and_then(|map| map.data).unwrap_or_default())
            }
        }
    }
}

impl fmt::Display for Object<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Secret(name) => write!(f, "Secret {name}"),
            Self::ConfigMap(name) => write!(f, "ConfigMap {name}"),
        }
    }
}

/// A name without a dot means a Service of the pod's namespace; from the operator's namespace it has to say so.
fn qualified(url: &str, namespace: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return url.to_owned();
    };
    let authority_end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(authority_end);
    let (login, hosts) = authority.split_at(authority.rfind('@').map_or(0, |at| at + 1));
    let hosts: Vec<String> = hosts.split(',').map(|host| qualified_host(host, namespace)).collect();
    format!("{scheme}://{login}{}{path}", hosts.join(","))
}

fn qualified_host(host_port: &str, namespace: &str) -> String {
    let (host, port) = host_port.split_at(host_port.find(':').unwrap_or(host_port.len()));
    let is_short =
        !host.is_empty() && !host.contains(['.', '[']) && host != "localhost" && host.parse::<IpAddr>().is_err();
    if is_short { format!("{host}.{namespace}{port}") } else { host_port.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::test_support::{REFUSED, answering};

    #[test]
    fn a_secret_holds_the_url_and_the_ca() {
        let secret = SecretKeyRef { name: "ledger".into(), key: "url".into() };
        let read = |entries: &[(&str, &[u8])]| {
            let data = entries.iter().map(|(key, value)| ((*key).to_owned(), ByteString(value.to_vec()))).collect();
            in_secret(data, "llm", &secret, "spec.redis.urlSecretRef")
        };
        let found = read(&[("url", b"rediss://redis\n"), ("ca.crt", b"pem"), ("tls.crt", b"x")]).ok().unwrap();
        assert_eq!((found.url.as_str(), found.ca.as_deref()), ("rediss://redis.llm", Some("pem")));
        assert_eq!(found.secret, Some(secret.clone()));
        let found = read(&[("url", b"redis+sentinel://a,b/m")]).ok().unwrap();
        assert_eq!((found.url.as_str(), found.ca), ("redis+sentinel://a.llm,b.llm/m", None));
        for (entries, reason, message) in [
            (&[("ca.crt", &b"pem"[..])], Reason::RedisSettingsMissing, "the Secret ledger has no key url"),
            (&[("url", &b"\xff"[..])], Reason::RedisSettingsInvalid, "key url of the Secret ledger is not text"),
        ] {
            let problem = read(entries).err().unwrap();
            assert_eq!((problem.reason, problem.message), (reason, format!("spec.redis.urlSecretRef: {message}")));
        }
    }

    /// Where the container's `envFrom` names Secret `keys`, which the operator may not read.
    async fn located(wanted: Option<&SecretKeyRef>, env: serde_json::Value) -> Located {
        let client = answering(&[("/api/v1/namespaces/llm/secrets/keys", 403, REFUSED)]);
        let container =
            serde_json::json!({"name": "litellm", "envFrom": [{"secretRef": {"name": "keys"}}], "env": env});
        let container: Container = serde_json::from_value(container).unwrap();
        locate(&client, "llm", wanted, &container, None).await.unwrap()
    }

    #[tokio::test]
    async fn a_secret_that_may_not_be_read_is_no_fault_of_the_pass() {
        let found = located(None, serde_json::json!([{"name": "REDIS_HOST", "value": "redis"}])).await.ok().unwrap();
        assert_eq!(found.url, "redis://redis.llm:6379");
        let hint = "the operator may not read Secret keys: list it in the chart's rbac.secretNames";
        let none = located(None, serde_json::json!([])).await.err().unwrap();
        assert_eq!(none.reason, Reason::NoLedger);
        assert!(none.message.ends_with(hint), "{}", none.message);
        let wanted = SecretKeyRef { name: "keys".into(), key: "url".into() };
        let refused = located(Some(&wanted), serde_json::json!([])).await.err().unwrap();
        assert_eq!(refused.reason, Reason::RedisSettingsMissing);
        assert_eq!(refused.message, format!("spec.redis.urlSecretRef: {hint}"));
    }

    #[test]
    fn an_own_ca_is_checked_before_anything_is_sent() {
        let location = RedisLocation { url: "rediss://redis.llm".into(), ca: Some("pem".into()), secret: None };
        assert!(matches!(location.connect(), Err(LedgerError::InvalidCa)));
    }

    #[test]
    fn short_names_get_the_namespace_of_the_pods() {
        assert_eq!(qualified("redis://:p%40@redis:6379/1", "llm"), "redis://:p%40@redis.llm:6379/1");
        assert_eq!(
            qualified("redis+sentinel://u:p,@a,b.svc:1,[::1]:2,c:3/m/1?sentinel_password=d,e@f", "llm"),
            "redis+sentinel://u:p,@a.llm,b.svc:1,[::1]:2,c.llm:3/m/1?sentinel_password=d,e@f"
        );
        for complete in [
            "redis://127.0.0.1:6379",
            "rediss://u:p@redis.prod.svc:1/0",
            "redis://localhost",
            "redis://[::1]:1",
            "nothing",
        ] {
            assert_eq!(qualified(complete, "llm"), complete);
        }
    }
}
