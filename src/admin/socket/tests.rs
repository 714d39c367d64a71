use std::os::unix::fs::PermissionsExt;

use tokio::sync::mpsc;

use super::*;
use crate::admin::api::Check;
use crate::admin::api::{Flow, History, Outcome, Protocol, RealServer};
use crate::admin::client::{AskError, ask, put};

pub(in crate::admin) struct Fixed;

impl View for Fixed {
    fn counters(&self) -> AllCounters {
        let mut counters = AllCounters::default();
        counters.node_ports.opened = 7;
        counters
    }

    async fn check(&self) -> Checks {
        let check = Check {
            result: "warning".to_owned(),
            name: "ip-forward".to_owned(),
            found: "0".to_owned(),
            mend: Some("sysctl -w net.ipv4.ip_forward=1".to_owned()),
        };
        Checks {
            checks: vec![check],
            age_seconds: 3,
        }
    }

    fn services(&self, detail: Detail) -> Vec<VirtualServer> {
        vec![VirtualServer {
            protocol: "TCP".to_owned(),
            address: "10.0.0.3:443".parse().unwrap(),
            service: "kube-system/metrics-server:https".to_owned(),
            exposure: "ClusterIP".to_owned(),
            carried: true,
            scheduler: "rr".to_owned(),
            persistence_seconds: Some(10_800),
            real_servers: vec![RealServer {
                address: "10.1.65.5:443".parse().unwrap(),
                forward: "Masq".to_owned(),
                weight: 1,
                active_flows: 1,
                inactive_flows: 0,
                connections: 7,
                failed_attempts: 2,
                bytes_to_real_server: 1 << 40,
                bytes_to_client: 3,
                rates: None,
            }],
            rates: None,
            history: detail.history.then(History::default),
        }]
    }

    async fn flows(&self, filter: &FlowFilter) -> Flows {
        let flows = vec![Flow {
            protocol: "UDP".to_owned(),
            state: "UDP".to_owned(),
            expires_seconds: Some(299),
            age_seconds: 12,
            client: "[fd00::9]:4000".parse().unwrap(),
            virtual_address: "[fd00:10::a]:53".parse().unwrap(),
            real_server: Some("[fd01::5]:53".parse().unwrap()),
            source: None,
            bytes_to_real_server: 40,
            bytes_to_client: 65_507,
            service: "kube-system/kube-dns:dns".to_owned(),
        }];
        // What arrived of the question.
        let matching = filter.limit.unwrap_or(1);
        Flows { flows, matching }
    }

    fn status(&self, _: Detail) -> Status {
        Status::default()
    }

    fn measurements(&self) -> Measurements {
        crate::admin::metrics::example()
    }

    fn explain(&self, question: &Question) -> Explanation {
        Explanation {
            address: question.address,
            protocol: question.protocol,
            client: question.from.unwrap_or_else(|| [10, 1, 15, 7].into()),
            client_is: "node".to_owned(),
            outcome: Outcome {
                verdict: "reject".to_owned(),
                reason: Some("unknown_port".to_owned()),
                words: "refused".to_owned(),
                affinity: None,
                next: None,
            },
            virtual_server: None,
            others: vec!["TCP 10.0.0.3:443".to_owned()],
        }
    }

    fn configz(&self) -> Value {
        serde_json::json!({"kind": "TunProxyConfiguration", "workers": 2})
    }

    fn log_level(&self) -> String {
        "info".to_owned()
    }

    fn set_log_level(&self, directives: &str) -> Result<(), String> {
        match directives {
            "info" => Ok(()),
            other => Err(format!("'{other}' is no filter")),
        }
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn what_is_told_arrives_whole() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("made/on/the/way/admin.sock");
    let socket = AdminSocket::bind(&path).unwrap();
    assert_eq!(mode(&path), 0o600);
    let server = tokio::spawn(socket.serve(Arc::new(Fixed), mpsc::channel(1).0));

    let services: Services = ask(&path, SERVICES).await.unwrap();
    assert_eq!(services.virtual_servers, Fixed.services(Detail::default()));
    let counters: AllCounters = ask(&path, COUNTERS).await.unwrap();
    assert_eq!(counters, Fixed.counters());
    let flows: Flows = ask(&path, FLOWS).await.unwrap();
    assert_eq!(flows, Fixed.flows(&FlowFilter::default()).await);
    let filter = FlowFilter {
        limit: Some(9),
        ..FlowFilter::default()
    };
    let flows: Flows = ask(&path, &filter.path()).await.unwrap();
    assert_eq!(flows.matching, 9);
    let status: Status = ask(&path, STATUS).await.unwrap();
    assert_eq!(status, Status::default());
    let checks: Checks = ask(&path, CHECK).await.unwrap();
    assert_eq!(checks, Fixed.check().await);
    for (address, protocol, from) in [
        ("10.0.0.3:80", Protocol::Tcp, None),
        (
            "[fd00:10::3]:53",
            Protocol::Udp,
            Some("fd00::9".parse().unwrap()),
        ),
    ] {
        let address = address.parse().unwrap();
        let question = Question {
            address,
            protocol,
            from,
        };
        let explanation: Explanation = ask(&path, &question.path()).await.unwrap();
        assert_eq!(explanation, Fixed.explain(&question));
    }
    let error = ask::<Explanation>(&path, EXPLAIN).await.unwrap_err();
    assert!(matches!(error, AskError::Status { status, .. } if status == 400));
    let error = ask::<Flows>(&path, "/v1/nothing").await.unwrap_err();
    assert!(matches!(error, AskError::Status { status, .. } if status == 404));
    let error = ask::<Flows>(&path, SERVICES).await.unwrap_err();
    assert!(matches!(error, AskError::Json(_)), "{error}");

    server.abort();
    assert!(server.await.unwrap_err().is_cancelled());
    assert!(!path.exists(), "the file stays after the server has ended");
}

#[tokio::test]
async fn nobody_there_is_said_plainly() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("admin.sock");
    let error = ask::<Flows>(&path, FLOWS).await.unwrap_err();
    assert!(matches!(error, AskError::NobodyThere { .. }));
    let said = error.to_string();
    assert!(
        said.contains("no proxy answers on") && said.contains("--admin-socket"),
        "{said}"
    );

    // A socket without a listener, as a killed proxy leaves it.
    drop(net::UnixListener::bind(&path).unwrap());
    let error = ask::<Flows>(&path, FLOWS).await.unwrap_err();
    assert!(matches!(error, AskError::NobodyThere { .. }));
}

#[tokio::test]
async fn a_stale_socket_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("admin.sock");
    drop(net::UnixListener::bind(&path).unwrap());
    assert!(path.exists());

    let socket = AdminSocket::bind(&path).unwrap();
    assert_eq!(mode(&path), 0o600);
    drop(socket);
    assert!(!path.exists());
}

#[tokio::test]
async fn a_living_socket_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("admin.sock");
    let first = AdminSocket::bind(&path).unwrap();
    let error = AdminSocket::bind(&path).unwrap_err();
    assert!(matches!(error, BindError::InUse { .. }));
    assert!(error.to_string().contains(path.to_str().unwrap()));
    assert!(path.exists());
    drop(first);
}

#[tokio::test]
async fn other_files_are_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("admin.sock");
    fs::write(&path, "precious").unwrap();
    let error = AdminSocket::bind(&path).unwrap_err();
    assert!(matches!(error, BindError::NoSocket { .. }));
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");

    let error = AdminSocket::bind(&path.join("below/admin.sock")).unwrap_err();
    assert!(
        error.to_string().contains("cannot make its directory"),
        "{error}"
    );
}

#[tokio::test]
async fn the_socket_of_a_successor_is_not_removed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("admin.sock");
    let first = AdminSocket::bind(&path).unwrap();
    fs::remove_file(&path).unwrap();
    let second = AdminSocket::bind(&path).unwrap();
    drop(first);
    assert!(path.exists());
    drop(second);
    assert!(!path.exists());
}

#[tokio::test]
async fn the_configuration_is_shown_and_the_log_can_be_changed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("admin.sock");
    let socket = AdminSocket::bind(&path).unwrap();
    let server = tokio::spawn(socket.serve(Arc::new(Fixed), mpsc::channel(1).0));

    let shown: Value = ask(&path, CONFIGZ).await.unwrap();
    assert_eq!(shown, Fixed.configz());
    let level = |directives: &str| LogLevel {
        directives: directives.to_owned(),
    };
    let told: LogLevel = ask(&path, LOG_LEVEL).await.unwrap();
    assert_eq!(told, level("info"));
    let told: LogLevel = put(&path, LOG_LEVEL, &level("info")).await.unwrap();
    assert_eq!(told, level("info"));
    let refused = put::<LogLevel>(&path, LOG_LEVEL, &level("=[")).await;
    let told = refused.unwrap_err().to_string();
    assert_eq!(
        told,
        "the proxy answered 400 Bad Request: '=[' is no filter"
    );
    server.abort();
}
