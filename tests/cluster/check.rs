//! `check`: each finding, as the fault that it tells of is made. Beside a running proxy:
//! `check_running`.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use kube_tun_proxy::check::{Finding, Level, Report};
use kube_tun_proxy::lab::Namespace;
use libtest_mimic::{Failed, Trial};
use rtnetlink::RouteMessageBuilder;
use serde_json::json;

use super::kernel::{KubeProxy, add_device, delete_device, kube_proxy_table};
use super::world::{BINARY, Trials, World};
use crate::kubeconfig;

pub(crate) fn trials() -> Vec<Trial> {
    Trials::of("check")
        .one("a_node_without_faults", without_faults)
        .one("devices_in_the_way", devices)
        .one("what_kube_proxy_leaves", kube_proxy)
        .one("settings_of_the_kernel", settings)
        .one("flannel", flannel)
        .one("an_api_server", cluster)
        .done()
}

/// A node that is looked at again and again.
pub(super) struct Node {
    pub(super) world: World,
    /// No proxy has its socket here.
    directory: tempfile::TempDir,
}

impl Node {
    pub(super) fn new() -> Result<Self, Failed> {
        Ok(Self {
            world: World::other()?,
            directory: tempfile::tempdir()?,
        })
    }

    pub(super) fn file(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    pub(super) fn arguments(&self) -> Vec<String> {
        let cidrs = self.world.service_cidrs().map(|cidr| cidr.to_string());
        let manifests = self.world.manifests.path().display().to_string();
        [
            "check",
            "--manifests",
            &manifests,
            "--service-cidr",
            &cidrs.join(","),
            "--admin-socket",
            &self.file("admin.sock"),
            "--flannel-subnet-file",
            &self.file("subnet.env"),
            "--healthz-bind-address=127.0.0.1:10266",
        ]
        .map(str::to_owned)
        .to_vec()
    }

    /// The report, after its exit status was held against it.
    pub(super) fn report(&self, more: &[&str]) -> Result<Report, Failed> {
        let mut command = self.world.node().namespace().command(BINARY);
        let output = command
            .args(self.arguments())
            .args(["-o", "json"])
            .args(more)
            .output()?;
        let report: Report = serde_json::from_slice(&output.stdout)
            .map_err(|error| format!("{error}: {output:?}"))?;
        let status = if report.level() == Level::Failure {
            3
        } else {
            0
        };
        assert_eq!(output.status.code(), Some(status), "{output:?}");
        Ok(report)
    }

    pub(super) fn finding(&self, subject: &str, more: &[&str]) -> Result<Finding, Failed> {
        let report = self.report(more)?;
        let found = report.findings.iter().find(|one| one.subject == subject);
        Ok(found
            .ok_or_else(|| format!("no {subject} in {report:?}"))?
            .clone())
    }

    /// Looks, and holds what is said of `subject` against `level` and words.
    pub(super) fn expect(&self, subject: &str, level: Level, words: &[&str]) -> Result<(), Failed> {
        self.expect_with(&[], subject, level, words)
    }

    pub(super) fn expect_with(
        &self,
        more: &[&str],
        subject: &str,
        level: Level,
        words: &[&str],
    ) -> Result<(), Failed> {
        let finding = self.finding(subject, more)?;
        assert_eq!(finding.level, level, "{finding:?}");
        assert_eq!(finding.mend.is_some(), level != Level::Ok, "{finding:?}");
        let text = format!("{} [{}]", finding.found, finding.mend.unwrap_or_default());
        for word in words {
            assert!(text.contains(word), "{word:?} is not in {text:?}");
        }
        Ok(())
    }

    pub(super) fn set(&self, key: &str, value: &str) -> Result<(), Failed> {
        Ok(self.world.node().namespace().set_sysctl(key, value)?)
    }
}

fn without_faults() -> Result<(), Failed> {
    let node = Node::new()?;
    node.set("net.ipv4.conf.all.rp_filter", "0")?;
    let report = node.report(&[])?;
    let subjects: Vec<&str> = report
        .findings
        .iter()
        .map(|finding| finding.subject.as_str())
        .collect();
    assert_eq!(
        subjects,
        [
            "tun-driver",
            "capabilities",
            "device",
            "ipvs",
            "kube-ipvs0",
            "netfilter",
            "kube-proxy",
            "healthz",
            "metrics",
            "routes",
            "rules",
            "flannel",
            "ip-forward",
            "ipv6-forwarding",
            "rp-filter",
            "ports",
            "tcp-tw-reuse",
            "open-files",
            "api-server",
        ]
    );
    for finding in &report.findings {
        // The limit is the machine's.
        if finding.subject != "open-files" {
            assert_eq!(finding.level, Level::Ok, "{finding:?}");
        }
    }
    // The table has the same, a line each.
    let mut command = node.world.node().namespace().command(BINARY);
    let output = command.args(node.arguments()).output()?;
    let text = String::from_utf8(output.stdout)?;
    assert_eq!(text.lines().count(), subjects.len(), "{text}");
    for (line, subject) in text.lines().zip(subjects) {
        assert_eq!(line.split_whitespace().nth(1), Some(subject), "{line}");
    }
    node.expect_with(
        &["--max-flows", "100000000000"],
        "open-files",
        Level::Warning,
        &["100000000000", "ulimit -Hn"],
    )
}

fn devices() -> Result<(), Failed> {
    let node = Node::new()?;
    let inside = node.world.node().namespace();
    add_device(inside, "svc-tun0", &[])?;
    node.expect(
        "device",
        Level::Failure,
        &["no TUN", "ip link delete svc-tun0"],
    )?;
    delete_device(inside, "svc-tun0")?;
    node.expect("device", Level::Ok, &["no device"])?;

    // The address of the TUN, and a part of the service range, are taken.
    add_device(inside, "other0", &["169.254.84.78".parse()?])?;
    node.expect(
        "routes",
        Level::Failure,
        &["169.254.84.78", "other0", "--tun-address"],
    )?;
    delete_device(inside, "other0")?;
    // The pods' own network.
    let pods = "--service-cidr=10.44.64.0/18";
    let report = node.report(&[])?;
    assert!(report.level() < Level::Failure, "{report:?}");
    let mut arguments = node.arguments();
    arguments.retain(|argument| argument != "--service-cidr" && !argument.contains("172.20"));
    let output = inside.command(BINARY).args(arguments).arg(pods).output()?;
    let text = String::from_utf8(output.stdout)?;
    let line = text
        .lines()
        .find(|line| line.split_whitespace().nth(1) == Some("routes"))
        .ok_or("no line of routes")?;
    assert!(line.starts_with("failure"), "{line}");
    assert!(line.contains("10.44.64.0/18 dev vx9"), "{line}");
    assert!(line.contains("ip route delete"), "{line}");
    assert_eq!(output.status.code(), Some(3));

    // Somebody has the port.
    let holder = inside.run(|| TcpListener::bind("127.0.0.1:10266"))?;
    node.expect("healthz", Level::Failure, &["127.0.0.1:10266"])?;
    drop(holder);
    node.expect("healthz", Level::Ok, &["free"])
}

fn kube_proxy() -> Result<(), Failed> {
    let node = Node::new()?;
    let inside = node.world.node().namespace();
    // These kernels have no IPVS, so what is on kube-ipvs0 is a trap.
    add_device(inside, "kube-ipvs0", &["172.20.0.1".parse()?])?;
    node.expect(
        "kube-ipvs0",
        Level::Failure,
        &["172.20.0.1", "reaches nobody", "ip link delete kube-ipvs0"],
    )?;
    delete_device(inside, "kube-ipvs0")?;
    node.expect("kube-ipvs0", Level::Ok, &["no kube-ipvs0"])?;

    kube_proxy_table(inside, true)?;
    let fallback = ["--mode", "fallback"];
    node.expect(
        "netfilter",
        Level::Warning,
        &[
            "ip kube-proxy",
            "nft delete table ip kube-proxy",
            "--mode fallback",
        ],
    )?;
    node.expect_with(&fallback, "netfilter", Level::Ok, &["ip kube-proxy"])?;
    kube_proxy_table(inside, false)?;
    node.expect("netfilter", Level::Ok, &["no rules"])?;

    node.expect_with(
        &fallback,
        "kube-proxy",
        Level::Warning,
        &["nothing to fall back from"],
    )?;
    let kube_proxy = KubeProxy::start(inside)?;
    node.expect("kube-proxy", Level::Warning, &["127.0.0.1:10256", "well"])?;
    node.expect_with(&fallback, "kube-proxy", Level::Ok, &["well"])?;
    kube_proxy.set_well(false);
    node.expect_with(
        &fallback,
        "kube-proxy",
        Level::Warning,
        &["not well", "logs"],
    )
}

fn settings() -> Result<(), Failed> {
    let node = Node::new()?;
    for (key, value, subject, words) in [
        (
            "net.ipv4.ip_forward",
            "0",
            "ip-forward",
            "net.ipv4.ip_forward=1",
        ),
        (
            "net.ipv6.conf.all.forwarding",
            "0",
            "ipv6-forwarding",
            "net.ipv6.conf.all.forwarding=1",
        ),
        (
            "net.ipv4.conf.vx9.rp_filter",
            "1",
            "rp-filter",
            "strict on vx9",
        ),
        (
            "net.ipv4.ip_local_port_range",
            "40000 40099",
            "ports",
            "100 connections",
        ),
        (
            "net.ipv4.tcp_tw_reuse",
            "0",
            "tcp-tw-reuse",
            "tcp_tw_reuse=1",
        ),
    ] {
        node.set("net.ipv4.conf.all.rp_filter", "0")?;
        let before = node.finding(subject, &[])?;
        assert_eq!(before.level, Level::Ok, "{before:?}");
        node.set(key, value)?;
        node.expect(subject, Level::Warning, &[words])?;
    }
    node.expect(
        "tcp-tw-reuse",
        Level::Warning,
        &["1 new connections a second"],
    )?;
    // A rule that leads the services' range elsewhere.
    let inside = node.world.node().namespace();
    inside.netlink(async |handle| {
        let rule = handle.rule().add().v4().table_id(100).priority(100);
        let added = rule
            .action(rtnetlink::packet_route::rule::RuleAction::ToTable)
            .execute()
            .await;
        added.map_err(|cause| kube_tun_proxy::lab::LabError::Netlink {
            name: "edge-a".to_owned(),
            step: "adding a rule".to_owned(),
            cause,
        })
    })?;
    node.expect("rules", Level::Warning, &["100: from all lookup 100"])?;
    // That table has no route for it, and then it has.
    node.expect("routes", Level::Ok, &[])?;
    inside.netlink(async |handle| {
        let index = nix::net::if_::if_nametoindex("vx9").expect("the overlay");
        let route = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(Ipv4Addr::new(172, 20, 0, 0), 20)
            .output_interface(index)
            .table_id(100)
            .build();
        let added = handle.route().add(route).execute().await;
        added.map_err(|cause| kube_tun_proxy::lab::LabError::Netlink {
            name: "edge-a".to_owned(),
            step: "adding a route".to_owned(),
            cause,
        })
    })?;
    node.expect(
        "routes",
        Level::Failure,
        &["table 100", "dev vx9", "ip rule"],
    )
}

/// Says its version, and who may do what: everything but to watch EndpointSlices.
fn api_server(at: &Namespace, address: SocketAddr) -> Result<(), Failed> {
    let listener = at.run(|| TcpListener::bind(address))?;
    // Ends with the test's process; nothing waits for it.
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let mut request = String::new();
            let mut buffer = [0; 4096];
            // A review ends with its braces, a question without body with its head.
            while !request.ends_with("}}}") && !request.ends_with("\r\n\r\n")
                || request.starts_with("POST") && !request.ends_with("}}}")
            {
                match stream.read(&mut buffer) {
                    Ok(0) | Err(_) => break,
                    Ok(length) => request.push_str(&String::from_utf8_lossy(&buffer[..length])),
                }
            }
            let denied = request.contains("endpointslices") && request.contains("watch");
            let body = if request.starts_with("GET /version ") {
                r#"{"gitVersion":"v1.36.2"}"#.to_owned()
            } else {
                format!(r#"{{"status":{{"allowed":{}}}}}"#, !denied)
            };
            // Who has asked may have gone.
            let _ = write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            );
        }
    });
    Ok(())
}

fn cluster() -> Result<(), Failed> {
    let node = Node::new()?;
    let inside = node.world.node().namespace();
    let kubeconfig = node.file("kubeconfig");
    let server = json!({"server": "http://127.0.0.1:6443"});
    let config = kubeconfig::text(&server, &json!({"token": "secret"}));
    fs::write(&kubeconfig, config)?;
    let report = |more: &[&str]| -> Result<Vec<Finding>, Failed> {
        let cidrs = node
            .world
            .service_cidrs()
            .map(|cidr| cidr.to_string())
            .join(",");
        let mut command = inside.command(BINARY);
        command.args(["check", "-o", "json", "--kubeconfig", &kubeconfig]);
        let output = command
            .args(["--service-cidr", &cidrs])
            .args(more)
            .output()?;
        let report: Report = serde_json::from_slice(&output.stdout)?;
        assert_eq!(output.status.code(), Some(3), "{report:?}");
        let findings = report.findings.into_iter();
        let of_cluster =
            |finding: &Finding| finding.subject == "api-server" || finding.subject == "permissions";
        Ok(findings.filter(of_cluster).collect())
    };
    let found = report(&[])?;
    assert_eq!(
        (found.len(), found[0].level),
        (1, Level::Failure),
        "{found:?}"
    );
    assert!(
        found[0].found.contains("http://127.0.0.1:6443/"),
        "{found:?}"
    );

    api_server(inside, ([127, 0, 0, 1], 6443).into())?;
    let found = report(&[])?;
    assert_eq!((found.len(), found[0].level), (2, Level::Ok), "{found:?}");
    assert!(found[0].found.contains("v1.36.2"), "{found:?}");
    assert_eq!(found[1].level, Level::Failure, "{found:?}");
    assert_eq!(found[1].found, "may not watch endpointslices");

    // By a service's address, which something else serves at present.
    add_device(inside, "other0", &["172.20.0.1".parse()?])?;
    api_server(inside, ([172, 20, 0, 1], 443).into())?;
    let found = report(&["--master", "http://172.20.0.1:443"])?;
    assert_eq!(found[0].level, Level::Warning, "{found:?}");
    assert!(found[0].found.contains("172.20.0.0/20"), "{found:?}");
    Ok(())
}

fn flannel() -> Result<(), Failed> {
    let node = Node::new()?;
    node.expect("flannel", Level::Ok, &["does not run here"])?;
    add_device(node.world.node().namespace(), "flannel.1", &[])?;
    node.expect("flannel", Level::Warning, &["has left a device"])?;
    let file = node.file("subnet.env");
    let write = |network: &str, subnet: &str| {
        fs::write(
            &file,
            format!("FLANNEL_NETWORK={network}\nFLANNEL_SUBNET={subnet}\nFLANNEL_MTU=1450\n"),
        )
    };
    // As it is: edge-a has 10.44.3.0 on vx9, and edge-b's pods behind it.
    write("10.44.0.0/16", "10.44.3.1/24")?;
    node.expect(
        "flannel",
        Level::Warning,
        &["10.44.3.0/24 on vx9 with 10.44.3.0"],
    )?;
    write("10.44.3.0/24", "10.44.3.1/24")?;
    node.expect("flannel", Level::Ok, &["10.44.3.0/24 on vx9"])?;
    write("10.99.0.0/16", "10.99.3.1/24")?;
    node.expect("flannel", Level::Warning, &["no interface has 10.99.3.0"])?;
    fs::write(&file, "nonsense")?;
    let finding = node.finding("flannel", &[])?;
    assert_eq!(finding.level, Level::Warning, "{finding:?}");
    assert!(finding.found.contains("FLANNEL_NETWORK"), "{finding:?}");
    Ok(())
}
