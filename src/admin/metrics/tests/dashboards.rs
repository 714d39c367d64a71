//! What dashboards and alert rules ask for is there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use serde::Deserialize;
use serde_json::Value;

use super::{example, text};

/// A rule file of Prometheus; unknown fields are mistakes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleFile {
    groups: Vec<Group>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Group {
    name: String,
    rules: Vec<Rule>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    alert: String,
    expr: String,
    #[serde(default, rename = "for")]
    lasting: Option<String>,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
}

fn read(name: &str) -> String {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("config/dashboards");
    fs::read_to_string(directory.join(name)).unwrap()
}

/// Names of series in a scrape that has everything, with the labels of each.
fn series() -> BTreeMap<String, BTreeSet<String>> {
    let mut series: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in text(example()).unwrap().lines() {
        if line.starts_with('#') {
            continue;
        }
        let name = line.split([' ', '{']).next().unwrap();
        let labels = series.entry(name.to_owned()).or_default();
        if let Some((_, rest)) = line.split_once('{') {
            let (inside, _) = rest.rsplit_once('}').unwrap();
            let named = inside
                .split("\",")
                .filter_map(|label| label.split_once('='));
            labels.extend(named.map(|(label, _)| label.to_owned()));
        }
    }
    series
}

/// A metric and the labels that it is matched by.
type Asked = (String, Vec<String>);

/// The metrics that an expression names, and for each the labels that it is matched by.
/// Balanced brackets are part of what is checked.
fn metrics(expression: &str) -> Result<Vec<Asked>, String> {
    let chars: Vec<char> = expression.chars().collect();
    let (mut found, mut open, mut at) = (Vec::<Asked>::new(), Vec::new(), 0);
    while let Some(&c) = chars.get(at) {
        let word = |at: usize| -> String {
            let rest = chars.iter().skip(at);
            rest.take_while(|c| c.is_ascii_alphanumeric() || "_:".contains(**c))
                .collect()
        };
        if c == '"' {
            let length = chars[at + 1..].iter().position(|c| *c == '"');
            at += length.ok_or("a text has no end")? + 2;
            continue;
        }
        if c.is_ascii_alphabetic() || c == '_' {
            let name = word(at);
            at += name.len();
            let next = chars[at..].iter().find(|c| !c.is_whitespace());
            match open.last() {
                Some('{') => match found.last_mut() {
                    Some((_, labels)) => labels.push(name),
                    None => return Err(format!("{name} is a label of nothing")),
                },
                Some('[') => {}
                _ if ["by", "on", "without", "ignoring"].contains(&name.as_str()) => {
                    // The labels of a grouping, which belong to no single metric.
                    let length = chars[at..].iter().position(|c| *c == ')');
                    at += length.ok_or("a grouping has no end")? + 1;
                }
                _ if ["and", "or", "unless", "sum", "count"].contains(&name.as_str()) => {}
                _ if next == Some(&'(') => {}
                _ => found.push((name, Vec::new())),
            }
            continue;
        }
        if c.is_ascii_digit() {
            // With an exponent or a unit.
            at += word(at).len();
            continue;
        }
        match c {
            '(' | '{' | '[' => open.push(c),
            ')' | '}' | ']' => {
                let opened = open.pop();
                let pairs = [('(', ')'), ('{', '}'), ('[', ']')];
                if !pairs.iter().any(|(o, e)| opened == Some(*o) && *e == c) {
                    return Err(format!("{c} closes nothing"));
                }
            }
            _ => {}
        }
        at += 1;
    }
    if open.is_empty() {
        Ok(found)
    } else {
        Err(format!("{open:?} is not closed"))
    }
}

/// Labels that Prometheus adds to what it scrapes.
const ADDED: [&str; 2] = ["instance", "job"];

fn check(expression: &str, series: &BTreeMap<String, BTreeSet<String>>) {
    // Grafana's variables stand for durations and texts.
    let plain = expression.replace("$__rate_interval", "5m");
    let found = metrics(&plain).unwrap_or_else(|error| panic!("{expression}: {error}"));
    assert!(!found.is_empty(), "{expression} asks for nothing");
    for (name, labels) in found {
        let known = series.get(&name);
        let known = known.unwrap_or_else(|| panic!("{expression}: there is no metric {name}"));
        for label in labels {
            let is_known = known.contains(&label) || ADDED.contains(&label.as_str());
            assert!(is_known, "{expression}: {name} has no label {label}");
        }
    }
}

#[test]
fn alert_rules_are_well_formed_and_ask_for_what_is_there() {
    let file: RuleFile = serde_saphyr::from_str(&read("alerts.yaml")).unwrap();
    let series = series();
    let mut names = BTreeSet::new();
    for group in &file.groups {
        assert!(!group.name.is_empty() && !group.rules.is_empty());
        for rule in &group.rules {
            assert!(names.insert(rule.alert.clone()), "{} is twice", rule.alert);
            check(&rule.expr, &series);
            if let Some(lasting) = &rule.lasting {
                let (number, unit) = lasting.split_at(lasting.len() - 1);
                assert!(
                    number.parse::<u32>().is_ok() && "smhd".contains(unit),
                    "{lasting}"
                );
            }
            let severity = rule.labels.get("severity").map(String::as_str);
            assert!(
                matches!(severity, Some("warning" | "critical")),
                "{}",
                rule.alert
            );
            for annotation in ["summary", "description"] {
                let text = rule.annotations.get(annotation).map_or("", String::as_str);
                assert!(text.len() > 20, "{} has no {annotation}", rule.alert);
                assert_eq!(text.matches("{{").count(), text.matches("}}").count());
            }
        }
    }
    assert!(names.len() > 5);
}

#[test]
fn the_dashboard_asks_for_what_is_there() {
    let dashboard: Value = serde_json::from_str(&read("grafana.json")).unwrap();
    let series = series();
    let panels = dashboard["panels"].as_array().unwrap();
    let (mut ids, mut asked) = (BTreeSet::new(), 0);
    for panel in panels {
        assert!(
            ids.insert(panel["id"].as_u64().unwrap()),
            "an id is twice: {panel}"
        );
        assert!(
            panel["title"]
                .as_str()
                .is_some_and(|title| !title.is_empty())
        );
        if panel["type"] == "row" {
            continue;
        }
        assert!(panel["description"].is_string(), "{panel}");
        for target in panel["targets"].as_array().unwrap() {
            check(target["expr"].as_str().unwrap(), &series);
            asked += 1;
        }
    }
    assert!(asked > 20, "{asked}");
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        if variable["type"] == "query" {
            let query = variable["definition"].as_str().unwrap();
            let inside = query.strip_prefix("label_values(").unwrap();
            let (name, label) = inside.trim_end_matches(')').split_once(", ").unwrap();
            check(&format!("{name}{{{label}=\"\"}}"), &series);
        }
    }
}

#[test]
fn a_wrong_expression_is_found() {
    let series = series();
    for wrong in [
        "kube_tun_proxy_flow",
        "rate(kube_tun_proxy_flows[5m]",
        "kube_tun_proxy_flows{ending=\"closed\"}",
        "sum by (le) (1)",
    ] {
        let checked = std::panic::catch_unwind(|| check(wrong, &series));
        assert!(checked.is_err(), "{wrong} passes");
    }
    check(
        "sum by (x) (rate(kube_tun_proxy_flows{instance=~\"a{b\"}[5m])) > 1e9",
        &series,
    );
}
