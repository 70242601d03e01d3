use redis::ConnectionAddr;
use serde_json::{Value, json};

use super::*;

fn client_json(client: &Client) -> Value {
    let info = client.get_connection_info();
    let (host, port, tls) = match info.addr() {
        ConnectionAddr::Tcp(host, port) => (host, port, false),
        ConnectionAddr::TcpTls { host, port, .. } => (host, port, true),
        _ => unreachable!(),
    };
    let login = info.redis_settings();
    json!({"host": host, "port": port, "tls": tls, "username": login.username(), "password": login.password(),
           "db": login.db()})
}

#[test]
fn urls_are_read_as_the_agent_reads_them() {
    let vectors: Value = serde_json::from_str(include_str!("../../../../agent/tests/addresses.json")).unwrap();
    for case in vectors["urls"].as_array().unwrap() {
        let url = case["url"].as_str().unwrap();
        match (Address::read(url, None), case["problem"].as_str()) {
            (Err(error), Some(problem)) => {
                let text = format!("{error} {error:?}");
                assert!(text.contains(problem), "{url:?}: {text}");
                assert!(!text.contains("hunter2"), "{url:?}: {text}");
            }
            (Ok(address), None) => {
                let mut server = client_json(&address.server);
                let sentinels: Vec<Value> = address.sentinels.iter().map(client_json).collect();
                if !sentinels.is_empty() {
                    // It has none of its own.
                    server["host"] = json!(null);
                    server["port"] = json!(null);
                }
                let read = json!({"url": url, "server": server, "sentinels": sentinels, "service": address.service});
                assert_eq!(&read, case);
                assert!(!address.named().contains("hunter2"), "{url:?}: {}", address.named());
            }
            (result, problem) => panic!("{url:?}: {:?}, not {problem:?}", result.err()),
        }
    }
}

#[test]
fn a_ca_has_to_be_a_certificate() {
    for ca in ["", "hunter2", "-----BEGIN CERTIFICATE-----\nhunter2\n-----END CERTIFICATE-----\n"] {
        for url in ["rediss://redis:6380", "rediss+sentinel://a,b/ledger"] {
            let error = Address::read(url, Some(ca)).err().unwrap();
            assert!(matches!(error, LedgerError::InvalidCa), "{ca:?} {url}: {error:?}");
            assert!(error.to_string().contains("ca.crt"), "{error}");
        }
        assert!(Address::read("redis://redis:6379", Some(ca)).is_ok(), "no certificate is looked at");
    }
}
