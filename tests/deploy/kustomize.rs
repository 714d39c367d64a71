//! Kustomizations put together as kustomize does, as far as `config/deploy/` uses it; what
//! it does not use is refused. `kubectl kustomize` gives the same, but for the hash behind
//! the names of generated ConfigMaps.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Value, json};

/// A kustomization.yaml, of which every field that may be used is here.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Kustomization {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    #[serde(default)]
    resources: Vec<String>,
    #[serde(default)]
    components: Vec<String>,
    #[serde(default)]
    config_map_generator: Vec<Generator>,
    #[serde(default)]
    patches: Vec<Patch>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Generator {
    name: String,
    namespace: String,
    behavior: Option<String>,
    literals: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Patch {
    target: Target,
    patch: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Target {
    kind: String,
    name: String,
}

/// One operation of a JSON patch (RFC 6902).
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Operation {
    op: String,
    path: String,
    value: Option<Value>,
}

/// The objects that a directory stands for. Each file read is added to `seen`.
pub(crate) fn render(directory: &Path, seen: &mut BTreeSet<PathBuf>) -> Vec<Value> {
    let mut objects = Vec::new();
    build(directory, &mut objects, seen);
    objects
}

/// Adds a kustomization to what there is.
fn build(directory: &Path, objects: &mut Vec<Value>, seen: &mut BTreeSet<PathBuf>) {
    let file = directory.join("kustomization.yaml");
    let said: Kustomization = serde_saphyr::from_str(&read(&file))
        .unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    seen.insert(file.canonicalize().unwrap());
    for name in &said.resources {
        let path = directory.join(name);
        if path.is_dir() {
            objects.append(&mut render(&path, seen));
        } else {
            objects.extend(serde_saphyr::from_multiple::<Value>(&read(&path)).unwrap());
            seen.insert(path.canonicalize().unwrap());
        }
    }
    for generator in said.config_map_generator {
        generate(generator, objects);
    }
    for component in &said.components {
        build(&directory.join(component), objects, seen);
    }
    for patch in said.patches {
        let Target { kind, name } = patch.target;
        let object = find(objects, &kind, &name);
        let operations: Vec<Operation> = serde_saphyr::from_str(&patch.patch).unwrap();
        for operation in operations {
            apply(object, operation);
        }
    }
}

fn find<'a>(objects: &'a mut [Value], kind: &str, name: &str) -> &'a mut Value {
    let is_it = |object: &&mut Value| object["kind"] == kind && object["metadata"]["name"] == name;
    objects.iter_mut().find(is_it).unwrap()
}

fn generate(generator: Generator, objects: &mut Vec<Value>) {
    let literals = generator.literals.iter();
    let data = literals.map(|literal| literal.split_once('=').unwrap());
    let name = generator.name.as_str();
    if generator.behavior.is_none() {
        objects.push(json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": name, "namespace": generator.namespace},
            "data": {},
        }));
    } else {
        assert_eq!(generator.behavior.as_deref(), Some("merge"));
    }
    let map = find(objects, "ConfigMap", name);
    assert_eq!(map["metadata"]["namespace"], generator.namespace.as_str());
    for (key, value) in data {
        map["data"][key] = value.into();
    }
}

fn apply(object: &mut Value, operation: Operation) {
    let Operation { op, path, value } = operation;
    let (parent, key) = path.rsplit_once('/').unwrap();
    let key = key.replace("~1", "/").replace("~0", "~");
    let parent = object.pointer_mut(parent).expect(&path);
    match (op.as_str(), parent) {
        ("add", Value::Array(items)) if key == "-" => items.push(value.unwrap()),
        ("add", Value::Object(fields)) => {
            fields.insert(key, value.unwrap());
        }
        ("remove", Value::Object(fields)) => {
            fields.remove(&key).expect(&path);
        }
        ("replace", Value::Object(fields)) => *fields.get_mut(&key).expect(&path) = value.unwrap(),
        ("replace", Value::Array(items)) => {
            items[key.parse::<usize>().unwrap()] = value.unwrap();
        }
        ("test", Value::Object(fields)) => assert_eq!(fields.get(&key), value.as_ref(), "{path}"),
        (op, _) => panic!("{op} {path} is not understood here"),
    }
}

pub(crate) fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
