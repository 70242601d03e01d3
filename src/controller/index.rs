//! Which objects name a Deployment, without a look at every object there is: with 1,000 TokenBudgets and 20,000 pods that look
//! would be made 1,000 times a second.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Mutex, PoisonError};

use kube::runtime::watcher::Event;
use kube::{Resource, ResourceExt};

/// Namespace and name.
type Key = (String, String);

/// The objects of one kind by the Deployments that they name.
#[derive(Default)]
pub struct Index {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// Names of objects, by the Deployment.
    of: HashMap<Key, BTreeSet<String>>,
    /// The Deployments that each object names.
    named: HashMap<Key, Vec<String>>,
    /// What a list that is under way has shown so far.
    listed: Option<HashSet<Key>>,
}

impl Index {
    /// Takes in an event of the watch; `named` are the Deployments in the object's namespace that it names.
    pub fn take<K: Resource>(&self, event: &Event<K>, named: impl Fn(&K) -> Vec<String>) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let key = |object: &K| (object.namespace().unwrap_or_default(), object.name_any());
        match event {
            Event::Init => inner.listed = Some(HashSet::new()),
            Event::InitApply(object) => {
                if let Some(listed) = &mut inner.listed {
                    listed.insert(key(object));
                }
                inner.set(key(object), named(object));
            }
            Event::InitDone => {
                let listed = inner.listed.take().unwrap_or_default();
                let gone: Vec<Key> = inner.named.keys().filter(|key| !listed.contains(*key)).cloned().collect();
                for key in gone {
                    inner.set(key, Vec::new());
                }
            }
            Event::Apply(object) => inner.set(key(object), named(object)),
            Event::Delete(object) => inner.set(key(object), Vec::new()),
        }
    }

    /// Names of the objects that name this Deployment, sorted. An object that the cache does not have yet can be among them.
    pub fn of(&self, namespace: &str, deployment: &str) -> Vec<String> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (namespace.to_owned(), deployment.to_owned());
        inner.of.get(&key).into_iter().flatten().cloned().collect()
    }
}

impl Inner {
    fn set(&mut self, key: Key, named: Vec<String>) {
        let before = if named.is_empty() {
            self.named.remove(&key).unwrap_or_default()
        } else {
            self.named.insert(key.clone(), named.clone()).unwrap_or_default()
        };
        let (namespace, name) = key;
        for deployment in before.into_iter().filter(|deployment| !named.contains(deployment)) {
            let of = (namespace.clone(), deployment);
            if let Some(names) = self.of.get_mut(&of) {
                names.remove(&name);
                if names.is_empty() {
                    self.of.remove(&of);
                }
            }
        }
        for deployment in named {
            self.of.entry((namespace.clone(), deployment)).or_default().insert(name.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;
    use proptest::prelude::*;

    use super::*;

    /// An object whose data names Deployments.
    fn object(name: &str, deployments: &[&str]) -> ConfigMap {
        let mut object = ConfigMap::default();
        object.metadata.namespace = Some("ns".to_owned());
        object.metadata.name = Some(name.to_owned());
        object.data = Some(deployments.iter().map(|d| ((*d).to_owned(), String::new())).collect());
        object
    }

    fn named(object: &ConfigMap) -> Vec<String> {
        object.data.iter().flatten().map(|(deployment, _)| deployment.clone()).collect()
    }

    #[test]
    fn a_list_that_is_made_again_drops_what_it_does_not_show() {
        let index = Index::default();
        for event in [
            Event::Init,
            Event::InitApply(object("a", &["x", "y"])),
            Event::InitApply(object("b", &["x"])),
            Event::InitDone,
        ] {
            index.take(&event, named);
        }
        assert_eq!((index.of("ns", "x"), index.of("ns", "y")), (vec!["a".into(), "b".into()], vec!["a".to_owned()]));
        assert!(index.of("other", "x").is_empty());
        for event in [Event::Init, Event::InitApply(object("b", &["y"])), Event::InitDone] {
            index.take(&event, named);
        }
        assert_eq!((index.of("ns", "x"), index.of("ns", "y")), (Vec::<String>::new(), vec!["b".to_owned()]));
    }

    proptest! {
        #[test]
        fn it_answers_as_a_look_at_every_object_would(
            changes in prop::collection::vec((0..4_u8, prop::option::of(prop::collection::btree_set(0..3_u8, 0..3))), 0..40)
        ) {
            let (index, mut objects) = (Index::default(), HashMap::new());
            for (name, change) in changes {
                let name = name.to_string();
                match change {
                    Some(deployments) => {
                        let deployments: Vec<String> = deployments.iter().map(u8::to_string).collect();
                        let slices: Vec<&str> = deployments.iter().map(String::as_str).collect();
                        index.take(&Event::Apply(object(&name, &slices)), named);
                        objects.insert(name, deployments);
                    }
                    None => {
                        index.take(&Event::Delete(object(&name, &[])), named);
                        objects.remove(&name);
                    }
                }
            }
            for deployment in ["0", "1", "2"] {
                let has = |names: &Vec<String>| names.iter().any(|name| name == deployment);
                let looked: BTreeSet<String> =
                    objects.iter().filter(|(_, names)| has(names)).map(|(name, _)| name.clone()).collect();
                prop_assert_eq!(index.of("ns", deployment), looked.into_iter().collect::<Vec<_>>());
            }
        }
    }
}
