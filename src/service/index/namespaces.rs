//! What Namespaces say for the Services in them.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Dirty, Index};
use crate::service::ServicePortName;
use crate::service::namespace::Namespace;
use crate::service::object::{NamespacedName, ObjectKey, ObjectKind, Origin};

/// The Namespaces, by name.
#[derive(Debug, Default)]
pub(super) struct Namespaces(BTreeMap<Arc<str>, Arc<Namespace>>);

impl Namespaces {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Index {
    pub(super) fn take_namespace(
        &mut self,
        namespace: Arc<Namespace>,
        origin: Option<&Origin>,
        dirty: &mut Dirty,
    ) {
        let name = Arc::clone(&namespace.name.name);
        let before = self.namespaces.0.get(&name);
        if before == Some(&namespace) {
            return;
        }
        let key = || ObjectKey {
            kind: ObjectKind::Namespace,
            name: namespace.name.clone(),
        };
        super::warn(dirty, &namespace.errors, key, origin);
        let access_log = before.and_then(|before| before.access_log);
        let changed = access_log != namespace.access_log;
        self.namespaces.0.insert(Arc::clone(&name), namespace);
        if changed {
            self.touch_namespace(&name, dirty);
        }
    }

    pub(super) fn forget_namespace(&mut self, name: &Arc<str>, dirty: &mut Dirty) {
        if let Some(namespace) = self.namespaces.0.remove(name)
            && namespace.access_log.is_some()
        {
            self.touch_namespace(name, dirty);
        }
    }

    /// Whether finished flows of a service port are logged, as far as its Service
    /// or its Namespace say so.
    pub(super) fn access_log(&self, port: &ServicePortName) -> Option<bool> {
        let name = NamespacedName {
            namespace: Arc::clone(&port.namespace),
            name: Arc::clone(&port.name),
        };
        let service = self.service(&name);
        let namespace = || self.namespaces.0.get(&port.namespace);
        service
            .and_then(|service| service.access_log)
            .or_else(|| namespace().and_then(|namespace| namespace.access_log))
    }

    /// Virtual servers of Services in a Namespace may have to be otherwise.
    fn touch_namespace(&self, name: &Arc<str>, dirty: &mut Dirty) {
        let inside = self.services.values().filter(|stored| {
            let service = &stored.service;
            service.name.namespace == *name && service.access_log.is_none()
        });
        for stored in inside {
            let addresses = stored.service.addresses();
            let addresses = addresses.into_iter().map(|(address, ..)| address);
            dirty.addresses.extend(addresses);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::fixtures::apply;
    use crate::service::object::{Event, Object};
    use crate::service::service_port::Service;
    use crate::service::{Change, index::Outcome};
    use serde_json::{Value, json};

    fn annotated(text: Option<&str>) -> Value {
        match text {
            Some(text) => json!({"kube-tun-proxy.io/access-log": text}),
            None => json!({}),
        }
    }

    fn service(text: Option<&str>) -> Event {
        let service = serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "shop", "annotations": annotated(text)},
            "spec": {"clusterIP": "10.0.0.9", "ports": [{"port": 80, "nodePort": 30080}], "type": "NodePort"},
        }));
        let service = Service::from_api(&service.unwrap()).unwrap();
        apply(Object::Service(Arc::new(service)))
    }

    fn namespace(text: Option<&str>) -> Event {
        let namespace = serde_json::from_value(json!({
            "metadata": {"name": "shop", "annotations": annotated(text)},
        }));
        let namespace = Namespace::from_api(&namespace.unwrap()).unwrap();
        apply(Object::Namespace(Arc::new(namespace)))
    }

    fn gone() -> Event {
        Event::Delete(ObjectKey {
            kind: ObjectKind::Namespace,
            name: NamespacedName::new("", "shop"),
        })
    }

    /// What the virtual servers that change are to do; cluster IP and node port.
    fn told(outcome: &Outcome) -> Vec<Option<bool>> {
        let access_log = |change: &Change| match change {
            Change::Upsert(spec) => Some(spec.access_log),
            Change::Remove(_)
            | Change::HealthCheck(_)
            | Change::RemoveHealthCheck(_)
            | Change::Node(_) => None,
        };
        outcome.changes.iter().filter_map(access_log).collect()
    }

    #[test]
    fn a_services_word_wins_over_its_namespaces() {
        let mut index = Index::new("n1");
        let mut after = |event| told(&index.apply(event));
        assert_eq!(after(service(None)), [None, None]);
        assert_eq!(after(namespace(Some("false"))), [Some(false), Some(false)]);
        assert_eq!(after(service(Some("true"))), [Some(true), Some(true)]);
        assert_eq!(after(namespace(Some(" true "))), []);
        assert_eq!(after(service(None)), []);
        assert_eq!(after(service(Some("false"))), [Some(false), Some(false)]);
        assert_eq!(after(service(None)), [Some(true), Some(true)]);
        assert_eq!(after(gone()), [None, None]);
        assert_eq!(after(namespace(None)), []);
        assert!(!index.is_empty());
        index.apply(gone());
    }

    #[test]
    fn the_namespace_may_come_first() {
        let mut index = Index::new("n1");
        assert_eq!(told(&index.apply(namespace(Some("false")))), []);
        assert_eq!(
            told(&index.apply(service(None))),
            [Some(false), Some(false)]
        );
    }

    #[test]
    fn another_word_is_warned_of_and_taken_as_absent() {
        let mut index = Index::new("n1");
        for event in [namespace(Some("yes")), service(Some("no"))] {
            let outcome = index.apply(event);
            let [warning] = outcome.warnings.as_slice() else {
                panic!("{:?}", outcome.warnings);
            };
            let text = format!("{}: {}", warning.object, warning.error);
            let field = "metadata.annotations[kube-tun-proxy.io/access-log]";
            assert!(text.contains(field), "{text}");
            assert!(told(&outcome).iter().all(Option::is_none));
        }
    }
}
