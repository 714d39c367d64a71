//! The cluster as the source of objects: who is told what of it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::warn;

use super::pods::PodGate;
use super::{Ended, pods};
use crate::config::Source;
use crate::source::Batch;
use crate::source::kubernetes::{
    self, Access, AccessError, Cluster, Connection, ServiceCidrs, Timing,
};

/// Opens the way to the API server, if that is the source; nothing is sent to it
/// yet.
pub(super) async fn connect(source: &Source) -> Result<Option<Connection>, AccessError> {
    match source {
        Source::Manifests(_) => Ok(None),
        Source::Cluster { kubeconfig, master } => {
            let (kubeconfig, master) = (kubeconfig.clone(), master.clone());
            let access = Access { kubeconfig, master };
            Connection::open(access).await.map(Some)
        }
    }
}

/// How long a process that takes over waits for what is read beside the objects. The
/// former one serves meanwhile; without an answer, pods are not served and each service
/// address gets a route until there is one.
const FIRST_READS: Duration = Duration::from_secs(10);

/// Returns when the cluster has said whether it has NetworkPolicies and what its service
/// ranges are, as far as anybody follows them, or after a while.
pub(super) async fn first_reads(
    pods: Option<Arc<PodGate>>,
    ranges: Option<watch::Receiver<ServiceCidrs>>,
) {
    let policies = async {
        if let Some(pods) = pods {
            pods.known().await;
        }
    };
    let ranges = async {
        if let Some(mut ranges) = ranges {
            // Its sender ends with the source.
            let known = |ranges: &ServiceCidrs| !matches!(ranges, ServiceCidrs::Unknown);
            let _ = ranges.wait_for(known).await;
        }
    };
    let both = async { tokio::join!(policies, ranges) };
    if timeout(FIRST_READS, both).await.is_err() {
        warn!(
            "the cluster has not said in time whether it has NetworkPolicies and what its service \
             ranges are: taking over without"
        );
    }
}

/// A cluster that is followed, and for whom.
pub(super) struct Following {
    pub(super) connection: Connection,
    pub(super) node_name: String,
    pub(super) batches: mpsc::Sender<Batch>,
    /// Where the service ranges decide about routes.
    pub(super) service_cidrs: Option<watch::Sender<ServiceCidrs>>,
    /// Where NetworkPolicies decide whether pods are served.
    pub(super) pods: Option<Arc<PodGate>>,
}

impl Following {
    /// Starts the tasks.
    pub(super) fn spawn(self, tasks: &mut JoinSet<Ended>) {
        let network_policies = self.pods.map(|gate| {
            let (sender, receiver) = watch::channel(kubernetes::NetworkPolicies::default());
            tasks.spawn(async move {
                pods::follow(receiver, |serve, known| gate.decided(serve, known)).await;
                ("the follower of NetworkPolicies", None)
            });
            sender
        });
        let cluster = Cluster {
            node_name: self.node_name,
            batches: self.batches,
            service_cidrs: self.service_cidrs,
            network_policies,
            timing: Timing::default(),
        };
        let following = kubernetes::run(
            Arc::new(self.connection),
            cluster,
            std::future::pending::<()>(),
        );
        tasks.spawn(async {
            following.await;
            ("the source of the cluster", None)
        });
    }
}
