//! The TokenBudgets that a watch has shown, so that each that is no more is told once: also one that went while the watch was
//! interrupted, of which no deletion is heard, and one whose name another has by now.

use std::collections::{HashMap, HashSet};
use std::mem;

use kube::ResourceExt;
use kube::runtime::reflector::ObjectRef;
use kube::runtime::watcher::Event;

use crate::api::TokenBudget;

type Name = (String, String);

/// By namespace and name.
#[derive(Debug, Default)]
pub struct Roster {
    there: HashMap<Name, ObjectRef<TokenBudget>>,
    /// What a list that is under way has shown so far.
    listed: HashSet<Name>,
}

impl Roster {
    /// Takes in an event of the watch, and answers with those that are no more.
    pub fn take(&mut self, event: &Event<TokenBudget>) -> Vec<ObjectRef<TokenBudget>> {
        match event {
            Event::Init => {
                self.listed.clear();
                Vec::new()
            }
            Event::InitApply(tb) => {
                self.listed.insert(name(tb));
                self.set(tb)
            }
            Event::InitDone => {
                let listed = mem::take(&mut self.listed);
                self.there.extract_if(|name, _| !listed.contains(name)).map(|(_, gone)| gone).collect()
            }
            Event::Apply(tb) => self.set(tb),
            Event::Delete(tb) => {
                self.there.remove(&name(tb));
                vec![ObjectRef::from_obj(tb)]
            }
        }
    }

    fn set(&mut self, tb: &TokenBudget) -> Vec<ObjectRef<TokenBudget>> {
        let before = self.there.insert(name(tb), ObjectRef::from_obj(tb));
        before.filter(|before| before.extra.uid != tb.uid()).into_iter().collect()
    }
}

fn name(tb: &TokenBudget) -> Name {
    (tb.namespace().unwrap_or_default(), tb.name_any())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(name: &str, uid: &str) -> TokenBudget {
        serde_json::from_value(serde_json::json!({"apiVersion": "tokenbudget.dev/v1alpha1", "kind": "TokenBudget",
            "metadata": {"name": name, "namespace": "llm", "uid": uid}, "spec": {"targetRefs": [{"name": "litellm"}]}}))
        .unwrap()
    }

    #[test]
    fn each_that_is_no_more_is_told() {
        let mut roster = Roster::default();
        let mut gone = |events: Vec<Event<TokenBudget>>| -> Vec<String> {
            events.iter().flat_map(|event| roster.take(event)).filter_map(|gone| gone.extra.uid).collect()
        };
        let (a, b, c) = (budget("a", "1"), budget("b", "2"), budget("c", "3"));
        let first =
            [Event::Init, Event::InitApply(a.clone()), Event::InitApply(b), Event::InitDone, Event::Apply(c.clone())];
        assert!(gone(first.into()).is_empty());
        assert_eq!(gone(vec![Event::Delete(c)]), ["3"]);
        assert_eq!(gone(vec![Event::Init, Event::InitApply(a), Event::InitDone]), ["2"], "it went unheard");
        assert_eq!(gone(vec![Event::Apply(budget("a", "4"))]), ["1"], "another has its name");
    }
}
