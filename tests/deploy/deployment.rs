//! What a directory of `config/deploy/` applies, as the API and the program understand it.

use std::collections::{BTreeMap, BTreeSet};

use clap::{Args, FromArgMatches};
use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetUpdateStrategy};
use k8s_openapi::api::core::v1::{ConfigMap, Container, PodSpec, SecurityContext, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use kube_tun_proxy::config::{Config, Settings};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::kustomize::render;
use super::{NAMESPACE, project};

/// Reads an object as its type, and holds what was understood against what is written: a
/// field of another name, or at another place, is not in the former.
pub(crate) fn typed<T: DeserializeOwned + Serialize>(object: &Value) -> T {
    let typed: T = serde_json::from_value(object.clone()).unwrap();
    lacks_nothing(object, &serde_json::to_value(&typed).unwrap(), "");
    typed
}

fn lacks_nothing(written: &Value, understood: &Value, at: &str) {
    match (written, understood) {
        (Value::Object(fields), Value::Object(known)) => {
            for (name, value) in fields {
                let at = format!("{at}/{name}");
                let known = known.get(name);
                lacks_nothing(
                    value,
                    known.unwrap_or_else(|| panic!("{at}: no such field")),
                    &at,
                );
            }
        }
        (Value::Array(items), Value::Array(known)) => {
            assert_eq!(items.len(), known.len(), "{at}");
            for (number, (item, known)) in items.iter().zip(known).enumerate() {
                lacks_nothing(item, known, &format!("{at}/{number}"));
            }
        }
        _ => assert_eq!(written, understood, "{at}"),
    }
}

/// What a directory applies, understood.
pub(crate) struct Deployment {
    pub(crate) name: &'static str,
    pub(crate) role: ClusterRole,
    pub(crate) pod: PodSpec,
    pub(crate) settings: BTreeMap<String, String>,
    pub(crate) strategy: DaemonSetUpdateStrategy,
}

impl Deployment {
    pub(crate) fn of(name: &'static str) -> Self {
        let objects = render(&project("config/deploy").join(name), &mut BTreeSet::new());
        let of_kind = |kind: &str| {
            let mut found = objects.iter().filter(|object| object["kind"] == kind);
            let only = found.next().unwrap();
            assert!(found.next().is_none(), "{name}: more than one {kind}");
            only
        };
        let account: ServiceAccount = typed(of_kind("ServiceAccount"));
        let role: ClusterRole = typed(of_kind("ClusterRole"));
        let binding: ClusterRoleBinding = typed(of_kind("ClusterRoleBinding"));
        let map: ConfigMap = typed(of_kind("ConfigMap"));
        let daemon_set: DaemonSet = typed(of_kind("DaemonSet"));
        assert_eq!(objects.len(), 5, "{name}");

        // They belong together.
        assert_eq!(binding.role_ref.name, role.metadata.name.clone().unwrap());
        let subject = &binding.subjects.unwrap()[0];
        let account = account.metadata;
        assert_eq!(Some(&subject.name), account.name.as_ref());
        for namespace in [
            &subject.namespace,
            &account.namespace,
            &map.metadata.namespace,
            &daemon_set.metadata.namespace,
        ] {
            assert_eq!(namespace.as_deref(), Some(NAMESPACE), "{name}");
        }
        let spec = daemon_set.spec;
        let labels = spec.template.metadata.unwrap().labels;
        assert_eq!(spec.selector.match_labels, labels);
        let pod = spec.template.spec.unwrap();
        assert_eq!(pod.service_account_name, account.name);
        for container in containers(&pod) {
            for variable in container.env.iter().flatten() {
                let source = variable.value_from.as_ref();
                if let Some(key) = source.and_then(|from| from.config_map_key_ref.as_ref()) {
                    assert_eq!(Some(&key.name), map.metadata.name.as_ref());
                }
            }
        }
        let settings = map.data.unwrap();
        Self {
            name,
            role,
            pod,
            settings,
            strategy: spec.update_strategy.unwrap(),
        }
    }

    pub(crate) fn init(&self) -> &Container {
        let [init] = self.pod.init_containers.as_deref().unwrap() else {
            panic!("{}: not one init container", self.name)
        };
        init
    }

    pub(crate) fn main(&self) -> &Container {
        let [main] = self.pod.containers.as_slice() else {
            panic!("{}: not one container", self.name)
        };
        main
    }

    /// The words that a container's program gets, as the kubelet expands them.
    pub(crate) fn words(&self, container: &Container) -> Vec<String> {
        assert_eq!(container.command, None, "the image's entry point");
        let mut variables: Vec<(String, String)> = Vec::new();
        for variable in container.env.iter().flatten() {
            let value = match (&variable.value, &variable.value_from) {
                (Some(value), None) => expand(value, &variables),
                (None, Some(from)) => match (&from.config_map_key_ref, &from.field_ref) {
                    // Not expanded: the kubelet does so with `value` only.
                    (Some(key), None) => self.settings[&key.key].clone(),
                    (None, Some(field)) => match field.field_path.as_str() {
                        "spec.nodeName" => "node-1".to_owned(),
                        "metadata.labels['pod-template-generation']" => "3".to_owned(),
                        "status.hostIP" => "192.168.0.11".to_owned(),
                        other => panic!("{other}"),
                    },
                    _ => panic!("{variable:?}"),
                },
                _ => panic!("{variable:?}"),
            };
            variables.push((variable.name.clone(), value));
        }
        let words = container.args.as_ref().unwrap().iter();
        let words = words.map(|word| expand(word, &variables)).collect();
        for word in &words {
            let word: &String = word;
            assert!(!word.contains("$("), "{}: {word}", self.name);
        }
        words
    }

    /// The directory of the node that containers have there.
    pub(crate) fn host_path(&self, at: &str) -> String {
        let mounts = self.main().volume_mounts.iter().flatten();
        let mount = mounts.into_iter().find(|mount| mount.mount_path == at);
        let name = &mount.unwrap().name;
        let volumes = self.pod.volumes.iter().flatten();
        let volume = volumes.into_iter().find(|volume| volume.name == *name);
        let host_path = volume.unwrap().host_path.as_ref().unwrap();
        assert_eq!(host_path.type_.as_deref(), Some("DirectoryOrCreate"));
        host_path.path.clone()
    }

    /// The configuration that the main container runs with.
    pub(crate) fn config(&self) -> Config {
        let words = self.words(self.main());
        assert_eq!(words[0], "run");
        let command = Settings::augment_args(clap::Command::new("run"));
        let matches = command.try_get_matches_from(&words).unwrap();
        let settings = Settings::from_arg_matches(&matches).unwrap();
        settings.load().unwrap().config
    }
}

pub(crate) fn expand(word: &str, variables: &[(String, String)]) -> String {
    variables
        .iter()
        .fold(word.to_owned(), |word, (name, value)| {
            word.replace(&format!("$({name})"), value)
        })
}

pub(crate) fn containers(pod: &PodSpec) -> impl Iterator<Item = &Container> {
    pod.init_containers.iter().flatten().chain(&pod.containers)
}

pub(crate) fn context(container: &Container) -> &SecurityContext {
    container.security_context.as_ref().unwrap()
}

pub(crate) fn added(container: &Container) -> Vec<&str> {
    let capabilities = context(container).capabilities.as_ref().unwrap();
    let added = capabilities.add.iter().flatten();
    added.map(String::as_str).collect()
}
