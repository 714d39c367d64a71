//! A cluster as a test sees it: the scripted API server, the source that follows
//! it, and the index that takes what comes.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use kube_tun_proxy::service::index::Index;
use kube_tun_proxy::source::Batch;
use kube_tun_proxy::source::kubernetes::{
    self, Access, Cluster, Connection, NetworkPolicies, ServiceCidrs, Timing,
};

use crate::api_server::ApiServer;

/// Longest a test waits for something that must happen.
const PATIENCE: Duration = Duration::from_secs(30);

/// Waits that are short, so that what is tried again is tried soon; what would
/// end by patience does not.
pub(crate) fn impatient() -> Timing {
    Timing {
        first: Duration::from_millis(5),
        most: Duration::from_millis(40),
        most_away: Duration::from_millis(40),
        unavailable: Duration::from_millis(40),
        // Any watch counts as one that lived long.
        steady: Duration::ZERO,
        ..Timing::default()
    }
}

/// A source that follows an API server.
pub(crate) struct Followed {
    pub(crate) index: Index,
    pub(crate) complete: bool,
    pub(crate) triggers: usize,
    pub(crate) cidrs: watch::Receiver<ServiceCidrs>,
    pub(crate) policies: watch::Receiver<NetworkPolicies>,
    batches: mpsc::Receiver<Batch>,
    task: JoinHandle<()>,
    _directory: TempDir,
}

impl Followed {
    /// Follows with a token.
    pub(crate) async fn start(server: &ApiServer) -> Self {
        Self::with(server, impatient()).await
    }

    pub(crate) async fn with(server: &ApiServer, timing: Timing) -> Self {
        let user = json!({"token": "secret"});
        let (directory, path) = server.kubeconfig(&server.url(), &user);
        Self::of(directory, path, None, timing).await
    }

    /// Follows as the kubeconfig says.
    pub(crate) async fn of(
        directory: TempDir,
        kubeconfig: PathBuf,
        master: Option<&str>,
        timing: Timing,
    ) -> Self {
        let access = Access {
            kubeconfig: Some(kubeconfig),
            master: master.map(|url| url.parse().unwrap()),
        };
        let connection = Connection::open(access).await.unwrap();
        let (sender, batches) = mpsc::channel(4);
        let (cidrs_sender, cidrs) = watch::channel(ServiceCidrs::Unknown);
        let (policies_sender, policies) = watch::channel(NetworkPolicies::Unknown);
        let cluster = Cluster {
            node_name: "master".to_owned(),
            batches: sender,
            service_cidrs: Some(cidrs_sender),
            network_policies: Some(policies_sender),
            timing,
        };
        let following = kubernetes::run(Arc::new(connection), cluster, std::future::pending());
        Self {
            index: Index::new("master"),
            complete: false,
            triggers: 0,
            cidrs,
            policies,
            batches,
            task: tokio::spawn(following),
            _directory: directory,
        }
    }

    /// Takes the next batch.
    pub(crate) async fn batch(&mut self) {
        let batch = tokio::time::timeout(PATIENCE, self.batches.recv()).await;
        let batch = batch
            .expect("no batch comes")
            .expect("the source has ended");
        assert!(batch.initial_complete || !self.complete, "complete no more");
        self.complete = batch.initial_complete;
        self.triggers += batch.triggers.len();
        self.index.apply_all(batch.events);
    }

    /// Takes batches until the first state is complete.
    pub(crate) async fn until_complete(&mut self) {
        while !self.complete {
            self.batch().await;
        }
    }

    /// Takes batches until the virtual servers are these; in between they may be
    /// none but these and those of before.
    pub(crate) async fn until(&mut self, expected: &[&str]) {
        let before = self.servers();
        while self.servers() != expected {
            assert_eq!(self.servers(), before, "neither before nor after");
            self.batch().await;
        }
    }

    /// The virtual servers with their real servers.
    pub(crate) fn servers(&self) -> Vec<String> {
        let all = self.index.virtual_servers();
        all.iter()
            .map(|spec| {
                let real: Vec<_> = spec.real_servers.iter().map(ToString::to_string).collect();
                format!("{} > {}", spec.address, real.join(" "))
            })
            .collect()
    }

    /// Nothing has been sent that was not taken.
    pub(crate) fn nothing_more(&mut self) {
        let more = self.batches.try_recv();
        assert!(more.is_err(), "{more:?}");
    }

    /// Waits for these service ranges.
    pub(crate) async fn until_cidrs(&mut self, expected: &ServiceCidrs) {
        let seen = self.cidrs.wait_for(|cidrs| cidrs == expected);
        let seen = tokio::time::timeout(PATIENCE, seen).await;
        seen.expect("they do not come").unwrap();
    }

    /// Waits for this of NetworkPolicies.
    pub(crate) async fn until_policies(&mut self, expected: NetworkPolicies) {
        let seen = self.policies.wait_for(|state| *state == expected);
        let seen = tokio::time::timeout(PATIENCE, seen).await;
        seen.expect("it does not come").unwrap();
    }

    /// Receives no more, upon which the source ends.
    pub(crate) async fn hang_up(self) {
        drop(self.batches);
        let ended = tokio::time::timeout(PATIENCE, self.task).await;
        ended.expect("the source does not end").unwrap();
    }
}

/// A Service with one port 80.
pub(crate) fn service(name: &str, ip: &str) -> Value {
    json!({
        "metadata": {"namespace": "shop", "name": name},
        "spec": {
            "type": "ClusterIP",
            "clusterIP": ip,
            "clusterIPs": [ip],
            "ports": [{"name": "web", "protocol": "TCP", "port": 80, "targetPort": 8080}],
        },
        "status": {"loadBalancer": {}},
    })
}

/// A slice of that Service.
pub(crate) fn slice(service: &str, addresses: &[&str]) -> Value {
    let endpoints: Vec<_> = addresses
        .iter()
        .map(|ip| json!({"addresses": [ip], "conditions": {"ready": true}}))
        .collect();
    json!({
        "metadata": {
            "namespace": "shop",
            "name": format!("{service}-1"),
            "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": [{"name": "web", "protocol": "TCP", "port": 8080}],
    })
}
