//! The Redis that a LiteLLM container is set up with. The agent makes the same URL of the same variables
//! (`agent/tests/addresses.json` holds both to it).

use k8s_openapi::api::core::v1::Container;

use super::env::{Missing, Ref, Setting, setting};

/// Kinds of Redis that LiteLLM can use and the ledger cannot, by the variable that switches them on.
const OTHER_KINDS: [(&str, &str); 3] = [
    ("REDIS_CLUSTER_NODES", "names a Redis Cluster"),
    ("REDIS_GCP_SERVICE_ACCOUNT", "asks for Google IAM authentication"),
    ("REDIS_AZURE_AD_TOKEN", "asks for Microsoft Entra authentication"),
];

/// Where a container's own Redis settings come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedisSource {
    /// `REDIS_URL`; it beats the others.
    pub url: Setting,
    /// `REDIS_HOST`.
    pub host: Setting,
    /// `REDIS_PORT`, 6379 when absent.
    pub port: Setting,
    /// `REDIS_USERNAME`.
    pub username: Setting,
    /// `REDIS_PASSWORD`.
    pub password: Setting,
    /// `REDIS_SSL`.
    pub ssl: Setting,
    /// `REDIS_SENTINEL_NODES`: a JSON list of `[host, port]`; it beats the host.
    pub sentinels: Setting,
    /// `REDIS_SERVICE_NAME`: what the Sentinels call the Redis.
    pub service: Setting,
    /// `REDIS_SENTINEL_PASSWORD`.
    pub sentinel_password: Setting,
    /// Settings that make LiteLLM use a Redis in a way that the ledger cannot.
    others: Vec<(&'static str, &'static str, Setting)>,
}

impl RedisSource {
    /// Reads the settings of a container.
    #[must_use]
    pub fn of(container: &Container) -> Self {
        let get = |name| setting(container, name);
        Self {
            url: get("REDIS_URL"),
            host: get("REDIS_HOST"),
            port: get("REDIS_PORT"),
            username: get("REDIS_USERNAME"),
            password: get("REDIS_PASSWORD"),
            ssl: get("REDIS_SSL"),
            sentinels: get("REDIS_SENTINEL_NODES"),
            service: get("REDIS_SERVICE_NAME"),
            sentinel_password: get("REDIS_SENTINEL_PASSWORD"),
            others: OTHER_KINDS.iter().map(|(name, does)| (*name, *does, get(name))).collect(),
        }
    }

    /// Everything that has to be read before [`Self::url`] can answer.
    pub fn refs(&self) -> impl Iterator<Item = &Ref> {
        [&self.url, &self.host, &self.port, &self.username, &self.password, &self.ssl]
            .into_iter()
            .chain([&self.sentinels, &self.service, &self.sentinel_password])
            .chain(self.others.iter().map(|(_, _, found)| found))
            .flat_map(Setting::refs)
    }

    /// The URL of the Redis; none when the container names none.
    ///
    /// # Errors
    /// [`Missing`] when a setting is named and cannot be read or used.
    pub fn url(&self, resolve: impl Fn(&Ref) -> Option<String>) -> Result<Option<String>, Missing> {
        let get = |variable: &str, from: &Setting| -> Result<Option<String>, Missing> {
            Ok(from.resolve(variable, &resolve)?.filter(|text| !text.is_empty()))
        };
        if let Some(url) = get("REDIS_URL", &self.url)? {
            if !(url.starts_with("redis://") || url.starts_with("rediss://")) {
                return Err(invalid("REDIS_URL", "must start with redis:// or rediss://"));
            }
            return Ok(Some(url));
        }
        for (variable, does, from) in &self.others {
            if get(variable, from)?.is_some() {
                let problem = format!("{does}, which the ledger cannot use: name a Redis in spec.redis.urlSecretRef");
                return Err(invalid(variable, &problem));
            }
        }
        let encrypted = get("REDIS_SSL", &self.ssl)?.is_some_and(|text| is_true(&text));
        let scheme = if encrypted { "rediss" } else { "redis" };
        let user = get("REDIS_USERNAME", &self.username)?.unwrap_or_default();
        let login = match get("REDIS_PASSWORD", &self.password)? {
            None => String::new(),
            Some(password) => format!("{}:{}@", percent_encode(&user), percent_encode(&password)),
        };
        if let Some(nodes) = get("REDIS_SENTINEL_NODES", &self.sentinels)? {
            let Some(service) = get("REDIS_SERVICE_NAME", &self.service)? else {
                return Err(invalid(
                    "REDIS_SERVICE_NAME",
                    "is not set: it is what the REDIS_SENTINEL_NODES call the Redis",
                ));
            };
            let password = get("REDIS_SENTINEL_PASSWORD", &self.sentinel_password)?;
            let hosts = sentinels(&nodes)?;
            return Ok(Some(format!(
                "{scheme}+sentinel://{login}{hosts}/{service}{}",
                sentinel_login(&user, password)
            )));
        }
        let Some(host) = get("REDIS_HOST", &self.host)? else {
            return Ok(None);
        };
        let port = match get("REDIS_PORT", &self.port)? {
            None => 6379,
            Some(text) => text.trim().parse::<u16>().map_err(|_| invalid("REDIS_PORT", "must be a port number"))?,
        };
        Ok(Some(format!("{scheme}://{login}{}:{port}", bracketed(&host))))
    }
}

/// `host:port,host:port` of the JSON list.
fn sentinels(nodes: &str) -> Result<String, Missing> {
    let list: Vec<(String, u16)> = serde_json::from_str(nodes)
        .map_err(|_| invalid("REDIS_SENTINEL_NODES", r#"must be a list of hosts and ports: [["host", 26379]]"#))?;
    let hosts: Vec<String> = list.iter().map(|(host, port)| format!("{}:{port}", bracketed(host))).collect();
    Ok(hosts.join(","))
}

/// LiteLLM (1.92 and later) logs in at the Sentinels as the same user, with their own password.
fn sentinel_login(user: &str, password: Option<String>) -> String {
    let Some(password) = password else {
        return String::new();
    };
    let user = if user.is_empty() { String::new() } else { format!("sentinel_username={}&", percent_encode(user)) };
    format!("?{user}sentinel_password={}", percent_encode(&password))
}

/// An IPv6 address as it stands in a URL.
fn bracketed(host: &str) -> String {
    if host.contains(':') && !host.starts_with('[') { format!("[{host}]") } else { host.to_owned() }
}

fn invalid(variable: &str, problem: &str) -> Missing {
    Missing::Invalid { variable: variable.to_owned(), problem: problem.to_owned() }
}

fn is_true(text: &str) -> bool {
    ["true", "1", "yes"].contains(&text.trim().to_ascii_lowercase().as_str())
}

/// Percent-encodes all but the unreserved characters of RFC 3986.
fn percent_encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::choose_container;
    use super::super::test_support::{componentized, container, litellm_helm};
    use super::*;

    fn url(yaml: &str) -> Result<Option<String>, Missing> {
        RedisSource::of(&container(yaml)).url(|found| match found {
            Ref::Secret { key, .. } if key == "password" => Some("p@ss/w:rd".to_owned()),
            _ => None,
        })
    }

    #[test]
    fn the_charts_settings_make_a_url() {
        let helm = litellm_helm();
        let source = RedisSource::of(choose_container(&helm, None).unwrap());
        let refs: Vec<String> = source.refs().map(ToString::to_string).collect();
        assert!(refs.contains(&"key redis-password of Secret llm-redis".to_owned()), "{refs:?}");
        assert_eq!(
            source.url(
                |found| matches!(found, Ref::Secret { name, .. } if name == "llm-redis")
                    .then(|| "a b".to_owned())
            ),
            Ok(Some("redis://:a%20b@llm-redis-master:6379".to_owned()))
        );
        let gateway = componentized();
        let source = RedisSource::of(choose_container(&gateway, None).unwrap());
        assert_eq!(
            source.url(|_| Some("s3cret".to_owned())),
            Ok(Some("redis://:s3cret@redis.llm.svc:6380".to_owned()))
        );
    }

    #[test]
    fn a_url_beats_the_parts() {
        assert_eq!(
            url("{name: a, env: [{name: REDIS_URL, value: 'redis://r:1/2'}, {name: REDIS_HOST, value: h}]}"),
            Ok(Some("redis://r:1/2".to_owned()))
        );
        assert!(url("{name: a, env: [{name: REDIS_URL, value: 'unix:///x'}]}").is_err());
        assert_eq!(url("{name: a, env: [{name: REDIS_URL, value: ''}]}"), Ok(None));
    }

    #[test]
    fn the_environment_is_read_as_the_agent_reads_it() {
        let vectors: Value = serde_json::from_str(include_str!("../../agent/tests/addresses.json")).unwrap();
        for case in vectors["environments"].as_array().unwrap() {
            let variables = case["env"].as_object().unwrap();
            let env: Vec<Value> = variables.iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
            let container = serde_json::from_value(json!({"name": "litellm", "env": env})).unwrap();
            let url = RedisSource::of(&container).url(|_| None).unwrap();
            assert_eq!(url.as_deref(), case["url"].as_str(), "{case}");
        }
    }

    #[test]
    fn passwords_of_secrets_are_encoded() {
        let yaml = "{name: a, env: [{name: REDIS_HOST, value: h},
            {name: REDIS_PASSWORD, valueFrom: {secretKeyRef: {name: s, key: password}}}]}";
        assert_eq!(url(yaml), Ok(Some("redis://:p%40ss%2Fw%3Ard@h:6379".to_owned())));
        let yaml =
            "{name: a, env: [{name: REDIS_SENTINEL_NODES, value: '[[\"s\", 1]]'}, {name: REDIS_SERVICE_NAME, value: m},
            {name: REDIS_SENTINEL_PASSWORD, valueFrom: {secretKeyRef: {name: s, key: password}}}]}";
        assert_eq!(url(yaml), Ok(Some("redis+sentinel://s:1/m?sentinel_password=p%40ss%2Fw%3Ard".to_owned())));
    }

    #[test]
    fn sentinels_need_a_service_and_a_list() {
        let sentinels = |nodes: &str, more: &str| {
            url(&format!("{{name: a, env: [{{name: REDIS_SENTINEL_NODES, value: '{nodes}'}}{more}]}}"))
                .unwrap_err()
                .to_string()
        };
        let error = sentinels(r#"[["s", 1]]"#, "");
        assert!(error.contains("REDIS_SERVICE_NAME is not set"), "{error}");
        for nodes in ["s:1", r#"["s", 1]"#, r#"[{"host": "s", "port": 1}]"#, r#"[["s", 66000]]"#] {
            let error = sentinels(nodes, ", {name: REDIS_SERVICE_NAME, value: m}");
            assert!(error.contains("REDIS_SENTINEL_NODES must be a list"), "{nodes}: {error}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let yaml = "{name: a, env: [{name: REDIS_HOST, value: h},
            {name: REDIS_PASSWORD, valueFrom: {secretKeyRef: {name: s, key: other}}}]}";
        assert!(url(yaml).unwrap_err().to_string().contains("key other of Secret s"));
        let cluster = "{name: a, env: [{name: REDIS_HOST, value: h}, {name: REDIS_CLUSTER_NODES, value: '[]'}]}";
        assert!(url(cluster).unwrap_err().to_string().contains("Redis Cluster"));
        assert!(url("{name: a, env: [{name: REDIS_HOST, value: h}, {name: REDIS_PORT, value: 'tcp://1:2'}]}").is_err());
    }

    #[test]
    fn no_redis_is_none() {
        assert_eq!(url("{name: a}"), Ok(None));
        assert_eq!(url("{name: a, envFrom: [{secretRef: {name: nothing}}]}"), Ok(None));
    }
}
