use super::*;
use crate::service::object::Object;

const SERVICE: &str = r#"{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
 "spec": {"clusterIP": "10.0.0.3", "ports": [{"port": 443}]}}"#;

const SLICE: &str = r#"{"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
 "metadata": {"name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
 "addressType": "IPv4", "ports": [{"port": 8443}], "endpoints": [{"addresses": ["10.1.65.5"]}]}"#;

const NODE: &str = r#"{"apiVersion": "v1", "kind": "Node",
 "metadata": {"name": "n1", "labels": {"topology.kubernetes.io/zone": "a"}}}"#;

const POD: &str = r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web-0"}}"#;

fn parsed(name: &str, text: &str) -> Parsed {
    parse(&Path::new(name).into(), text.as_bytes())
}

/// Objects with their document and item.
fn objects(parsed: &Parsed) -> Vec<String> {
    let line = |l: &Loaded| {
        let item = l.origin.item.map_or(String::new(), |i| format!(".{i}"));
        format!("{}{item} {}", l.origin.document, l.object.key())
    };
    parsed.objects.iter().map(line).collect()
}

fn good(name: &str, text: &str) -> Vec<String> {
    let parsed = parsed(name, text);
    assert_eq!(errors(&parsed), [""; 0], "{name}");
    objects(&parsed)
}

fn errors(parsed: &Parsed) -> Vec<String> {
    parsed.errors.iter().map(ToString::to_string).collect()
}

#[test]
fn yaml_documents() {
    let text = r"# Two documents and an empty one
apiVersion: v1
kind: Service
metadata:
  name: web
  namespace: shop
spec:
  clusterIP: 10.0.0.3
  ports:
    - {name: https, port: 443, targetPort: pod-https}
---
# empty
---
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
endpoints:
- addresses: [10.1.65.5]
  conditions: {ready: true}
  nodeName: node2
ports: [{name: https, port: 8443}]
kind: EndpointSlice
apiVersion: discovery.k8s.io/v1
";
    let parsed = parsed("web.yaml", text);
    assert_eq!(
        objects(&parsed),
        ["1 Service shop/web", "3 EndpointSlice shop/web-1"]
    );
    let Object::EndpointSlice(slice) = &parsed.objects[1].object else {
        panic!("a slice");
    };
    assert_eq!(slice.service.as_deref(), Some("web"));
    assert_eq!(slice.endpoints[0].node.as_deref(), Some("node2"));
    assert_eq!(slice.ports[0].port, 8443);
}

#[test]
fn json_documents_one_after_the_other() {
    let text = format!("\u{feff}{SERVICE}{SLICE}\n\n{NODE}\n");
    let expected = [
        "1 Service default/web",
        "2 EndpointSlice default/web-1",
        "3 Node n1",
    ];
    assert_eq!(good("web.json", &text), expected);
    // Without a telling name.
    assert_eq!(good("manifests", &text), expected);
    assert_eq!(
        good("manifests", &format!("---\n{SERVICE}\n---\n{SLICE}")),
        expected[..2]
    );
    // JSON is YAML.
    assert_eq!(good("web.yaml", SERVICE), expected[..1]);
}

#[test]
fn lists_of_every_shape() {
    let expected = ["1.1 Service default/web", "1.2 EndpointSlice default/web-1"];
    for list in [
        format!(r#"{{"apiVersion": "v1", "kind": "List", "items": [{SERVICE}, {SLICE}]}}"#),
        // As kubectl writes it.
        format!(
            r#"{{"apiVersion": "v1", "items": [{SERVICE}, {SLICE}], "kind": "List", "metadata": {{}}}}"#
        ),
        format!(r#"{{"items": [{SERVICE}, {SLICE}], "kind": "List", "apiVersion": "v1"}}"#),
        // Nested.
        format!(
            r#"{{"apiVersion": "v1", "kind": "List", "items": [
              {{"apiVersion": "v1", "items": [{SERVICE}], "kind": "List"}}, {SLICE}]}}"#
        ),
    ] {
        assert_eq!(good("list.json", &list), expected, "{list}");
        assert_eq!(good("list.yaml", &list), expected, "{list}");
    }
    for empty in ["[]", "null"] {
        let list = format!(r#"{{"kind": "List", "apiVersion": "v1", "items": {empty}}}"#);
        assert_eq!(good("list.json", &list), [""; 0]);
        let list = format!(r#"{{"items": {empty}, "kind": "List", "apiVersion": "v1"}}"#);
        assert_eq!(good("list.yaml", &list), [""; 0]);
    }
}

/// kubectl sorts fields: the endpoints come before the kind.
#[test]
fn a_slice_as_kubectl_writes_it() {
    let slice = r#"{"addressType": "IPv4", "apiVersion": "discovery.k8s.io/v1",
        "endpoints": [{"addresses": ["10.1.65.5"]}], "kind": "EndpointSlice",
        "metadata": {"labels": {"kubernetes.io/service-name": "web"}, "name": "web-1"},
        "ports": [{"port": 80}]}"#;
    for (name, text) in [
        ("a.json", slice.to_owned()),
        ("a.yaml", slice.to_owned()),
        (
            "a.json",
            format!(r#"{{"apiVersion": "v1", "items": [{slice}], "kind": "List"}}"#),
        ),
    ] {
        let parsed = parsed(name, &text);
        assert_eq!(errors(&parsed), [""; 0]);
        let [loaded] = parsed.objects.as_slice() else {
            panic!("one object");
        };
        let Object::EndpointSlice(slice) = &loaded.object else {
            panic!("a slice");
        };
        assert_eq!((slice.endpoints.len(), slice.ports.len()), (1, 1));
        assert_eq!(slice.service.as_deref(), Some("web"));
    }
    let other = slice.replace("EndpointSlice", "Other");
    assert_eq!(parsed("a.json", &other).errors.len(), 1);
}

#[test]
fn typed_lists_name_the_kind_of_their_items() {
    let bare = |text: &str| text.replace(r#""apiVersion": "v1", "kind": "Service", "#, "");
    let item = bare(SERVICE);
    assert_ne!(item, SERVICE);
    for list in [
        format!(
            r#"{{"kind": "ServiceList", "apiVersion": "v1", "metadata": {{}}, "items": [{item}, {item}]}}"#
        ),
        format!(r#"{{"items": [{item}, {item}], "kind": "ServiceList", "apiVersion": "v1"}}"#),
    ] {
        let expected = ["1.1 Service default/web", "1.2 Service default/web"];
        assert_eq!(good("list.json", &list), expected);
        assert_eq!(good("list.yaml", &list), expected);
    }
    let slices = format!(
        r#"{{"kind": "EndpointSliceList", "apiVersion": "discovery.k8s.io/v1", "items": [{SLICE}]}}"#
    );
    assert_eq!(
        good("list.json", &slices),
        ["1.1 EndpointSlice default/web-1"]
    );
    let nodes = format!(r#"{{"kind": "NodeList", "apiVersion": "v1", "items": [{NODE}]}}"#);
    assert_eq!(good("list.json", &nodes), ["1.1 Node n1"]);
}

#[test]
fn other_kinds_are_named_and_left() {
    let knative = SERVICE.replace(r#""v1""#, r#""serving.knative.dev/v1""#);
    let pods = format!(r#"{{"items": [{SERVICE}], "kind": "PodList", "apiVersion": "v1"}}"#);
    let list = format!(r#"{{"apiVersion": "v1", "kind": "List", "items": [{POD}, {NODE}]}}"#);
    let parsed = parsed("all.json", &format!("{POD}{knative}{pods}{list}"));
    assert_eq!(errors(&parsed), [""; 0]);
    assert_eq!(objects(&parsed), ["4.2 Node n1"]);
    let ignored: Vec<_> = parsed.ignored.iter().collect();
    assert_eq!(
        ignored,
        ["serving.knative.dev/v1 Service", "v1 Pod", "v1 PodList"]
    );
}

#[test]
fn files_without_objects() {
    for (name, text) in [
        ("a.yaml", ""),
        ("a.yaml", "# nothing\n---\n---\n"),
        ("a.yaml", "null\n"),
        ("a.json", ""),
        ("a.json", " \n"),
        ("a.json", "null"),
    ] {
        assert_eq!(good(name, text), [""; 0]);
    }
}

#[test]
fn the_ports_of_a_slice_get_the_defaults_of_the_api() {
    let parsed = parsed("a.json", SLICE);
    let Object::EndpointSlice(slice) = &parsed.objects[0].object else {
        panic!("a slice");
    };
    assert_eq!((&*slice.ports[0].name, slice.ports[0].port), ("", 8443));
    assert!(slice.errors.is_empty());
}

#[test]
fn a_wrong_field_is_named_with_object_path_and_line() {
    let text = "apiVersion: v1
kind: Service
metadata: {name: good}
---
apiVersion: v1
kind: Service
metadata:
  namespace: shop
  name: web
spec:
  ports:
  - port: 80
  - port: eighty
---
apiVersion: v1
kind: Service
metadata: {name: better}
";
    let parsed = parsed("web.yaml", text);
    assert_eq!(
        objects(&parsed),
        ["1 Service default/good", "3 Service default/better"]
    );
    let [error] = parsed.errors.as_slice() else {
        panic!("one error: {:?}", parsed.errors);
    };
    assert_eq!((error.document, error.line), (2, Some(13)));
    assert_eq!(error.object.as_deref(), Some("Service shop/web"));
    assert_eq!(error.field.as_deref(), Some("spec.ports[1].port"));
    assert!(error.message.contains("eighty"), "{}", error.message);
}

#[test]
fn one_bad_object_of_a_list_does_not_hide_the_others() {
    let wrong = SERVICE.replace(r#"[{"port": 443}]"#, r#"{"port": 443}"#);
    let nameless = NODE.replace(r#""name": "n1", "#, "");
    let list = format!(
        "{{\"apiVersion\": \"v1\", \"kind\": \"List\", \"items\": [\n{SERVICE},\n{wrong},\n{nameless},\n7,\n{{\"kind\": \"Node\"}},\n{SLICE}]}}"
    );
    for name in ["list.json", "list.yaml"] {
        let parsed = parsed(name, &format!("{list}\n"));
        assert_eq!(
            objects(&parsed),
            ["1.1 Service default/web", "1.6 EndpointSlice default/web-1"]
        );
        let found: Vec<_> = parsed
            .errors
            .iter()
            .map(|e| (e.object.as_deref(), e.field.as_deref(), e.line))
            .collect();
        assert_eq!(
            found,
            [
                (
                    Some("Service default/web"),
                    Some("items[1].spec.ports"),
                    Some(5)
                ),
                (Some("Node"), Some("items[2].metadata.name"), None),
                (None, Some("items[3]"), None),
                (Some("Node"), Some("items[4]"), None),
            ],
            "{name}"
        );
    }
}

#[test]
fn broken_syntax_has_a_line_and_spares_other_documents() {
    let broken = parsed(
        "web.yaml",
        "apiVersion: v1\nkind: Node\nmetadata: {name: n1}\n---\na: 1\n b: [\n---\napiVersion: v1\nkind: Node\nmetadata: {name: n2}\n",
    );
    assert_eq!(objects(&broken), ["1 Node n1", "3 Node n2"]);
    let [error] = broken.errors.as_slice() else {
        panic!("one error: {:?}", broken.errors);
    };
    assert_eq!(error.document, 2);
    assert!((6..=7).contains(&error.line.unwrap()), "{error:?}");
    assert_eq!((&error.object, &error.field), (&None, &None));

    let broken = parsed(
        "web.json",
        &format!("{NODE}\n{{\"apiVersion\": \"v1\",,}}\n{SERVICE}"),
    );
    assert_eq!(objects(&broken), ["1 Node n1"]);
    let [error] = broken.errors.as_slice() else {
        panic!("one error: {:?}", broken.errors);
    };
    assert_eq!((error.document, error.line), (2, Some(3)));

    let cut = parsed("web.json", &SERVICE[..SERVICE.len() - 10]);
    assert_eq!(cut.errors.len(), 1, "{:?}", cut.errors);
    assert!(cut.objects.is_empty());
}

#[test]
fn what_is_no_object_is_said() {
    for (name, text) in [
        ("a.yaml", "just text\n"),
        ("a.yaml", "- a\n- b\n"),
        ("a.json", "[]"),
        ("a.json", "7"),
    ] {
        let parsed = parsed(name, text);
        assert_eq!(errors(&parsed).len(), 1);
        assert!(
            errors(&parsed)[0].contains("is not an object"),
            "{:?}",
            errors(&parsed)
        );
    }
    let kindless = parsed("a.yaml", "apiVersion: v1\nmetadata: {name: web}\n");
    assert_eq!(
        errors(&kindless),
        ["a.yaml, document 1: default/web: apiVersion and kind are missing"]
    );
    let nameless = parsed("a.yaml", "apiVersion: v1\nkind: Service\nmetadata: {}\n");
    assert_eq!(
        errors(&nameless),
        ["a.yaml, document 1: Service: metadata.name: is missing"]
    );
    let binary = parse(&Path::new("a.yaml").into(), b"a: \xff\n");
    assert!(errors(&binary)[0].contains("UTF-8"), "{:?}", binary.errors);
}

#[test]
fn a_large_yaml_list_is_within_the_limits() {
    let mut text = "apiVersion: v1\nkind: List\nitems:\n".to_owned();
    for i in 0..20_000 {
        text += &format!(
            "- apiVersion: v1\n  kind: Service\n  metadata: {{name: s{i}, labels: {{a: b, c: d}}}}\n  spec: {{clusterIP: 10.0.0.1, ports: [{{name: a, port: 80}}]}}\n"
        );
    }
    assert_eq!(good("list.yaml", &text).len(), 20_000);
}

#[test]
fn alias_bombs_are_refused() {
    let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for i in 1..9 {
        let aliases = vec![format!("*a{}", i - 1); 10].join(", ");
        text += &format!("a{i}: &a{i} [{aliases}]\n");
    }
    text += "apiVersion: v1\nkind: Service\n";
    assert_eq!(parsed("bomb.yaml", &text).errors.len(), 1);
}
