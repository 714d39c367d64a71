//! Objects from the API server of a cluster.
//!
//! [`run`] follows Services, EndpointSlices, Namespaces, this node's Node, ServiceCIDRs, and
//! whether there are NetworkPolicies. It has a task for each of them and is itself
//! the one that collects what they find into batches; all end when told to, or
//! when nobody receives any more.
//!
//! # How a resource is followed
//!
//! First everything is listed: as a stream where the server offers that
//! (`sendInitialEvents`), otherwise in pages. What a list tells is in force once
//! the list is complete, as one update that holds the differences: what is not in
//! it is deleted, what is as it was costs nothing. So a list that is slow or
//! breaks off changes nothing. Then it is watched for changes, each watch for some
//! minutes. What happens at the end of each request is decided by the state machine in
//! `machine`; how long is waited, by [`Timing`]. In all that time the last good
//! state stays in force.
//!
//! The loop is our own, on kube's client. kube-runtime's watcher takes up a watch
//! where it ended without looking whether the server still has that version, so
//! that behind a server restored from a backup it waits for ever for a future that
//! does not come; it hides the status and Retry-After that decide when to ask
//! again, and one object that does not parse ends its watch.
//!
//! # What is kept
//!
//! Each object is read by itself, as far as it is used, reduced to its compact form
//! and dropped. An update takes one line or one page of memory on its way.

use std::future::{Future, pending};
use std::panic::resume_unwind;
use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::Batch;
use crate::service::object::ObjectKind;
use collect::{Part, UPDATES, collect};
use collection::Collection;
use facts::{Cidrs, Policies};
use follow::Follower;
use objects::Objects;
use resource::Resource;

mod answer;
mod backoff;
mod chance;
mod collect;
mod collection;
mod connection;
mod facts;
mod follow;
mod machine;
mod objects;
mod permissions;
mod requests;
mod resource;
mod slim;
mod version;
mod wire;

pub use backoff::Timing;
pub use connection::{Access, AccessError, Connection};
pub use facts::{NetworkPolicies, ServiceCidrs};
pub use permissions::{Permission, permissions, version};
pub use requests::{BUCKETS_MS as REQUEST_BUCKETS_MS, RequestCounts, Requests};

/// What of a cluster is followed, and for whom.
#[derive(Debug)]
pub struct Cluster {
    /// This node's name.
    pub node_name: String,
    /// Takes Services, EndpointSlices and this node's Node.
    pub batches: mpsc::Sender<Batch>,
    /// Takes the service ranges; `None` if nobody wants to know.
    pub service_cidrs: Option<watch::Sender<ServiceCidrs>>,
    /// Takes whether there are NetworkPolicies; `None` if nobody wants to know.
    pub network_policies: Option<watch::Sender<NetworkPolicies>>,
    /// How patient it is.
    pub timing: Timing,
}

/// Follows a cluster until `shutdown` completes or the batches' receiver is
/// dropped.
///
/// A batch says that the first state is complete once the first lists of Services
/// and of EndpointSlices are, and the rest is too or is not to be had. By then
/// the watch channels hold what was found.
///
/// The channel of batches is bounded: while it is full nothing is read, and the
/// API server has to wait. Nothing is dropped.
pub async fn run(
    connection: Arc<Connection>,
    cluster: Cluster,
    shutdown: impl Future<Output = ()> + Send,
) {
    let Cluster {
        node_name,
        batches,
        service_cidrs,
        network_policies,
        timing,
    } = cluster;
    let since = Timestamp::now();
    let (updates, receiver) = mpsc::channel(UPDATES);
    let mut followers = Followers {
        connection,
        updates,
        timing,
        tasks: JoinSet::new(),
        missing: Vec::new(),
    };
    let objects = |kind| Objects::new(kind, since);
    followers.add(
        Resource::services(),
        Part::Services,
        objects(ObjectKind::Service),
    );
    followers.add(
        Resource::endpoint_slices(),
        Part::EndpointSlices,
        objects(ObjectKind::EndpointSlice),
    );
    followers.add(
        Resource::node(&node_name),
        Part::Node,
        objects(ObjectKind::Node),
    );
    followers.add(
        Resource::namespaces(),
        Part::Namespaces,
        objects(ObjectKind::Namespace),
    );
    if let Some(sender) = service_cidrs {
        let part = Part::ServiceCidrs;
        followers.add(Resource::service_cidrs(), part, Cidrs::new(sender));
    }
    if let Some(sender) = network_policies {
        let part = Part::NetworkPolicies;
        followers.add(Resource::network_policies(), part, Policies::new(sender));
    }
    let Followers {
        updates,
        mut tasks,
        missing,
        ..
    } = followers;
    // What is left of the senders is the followers'.
    drop(updates);
    let unwanted = batches.clone();
    tokio::select! {
        () = shutdown => {}
        () = unwanted.closed() => {}
        () = collect(receiver, missing, batches) => {}
        () = panicked(&mut tasks) => {}
    }
}

/// Passes on the panic of a task; the others end by themselves only together.
async fn panicked(tasks: &mut JoinSet<()>) {
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended
            && let Ok(panic) = error.try_into_panic()
        {
            resume_unwind(panic);
        }
    }
    pending().await
}

/// Those who follow; they end with this.
struct Followers {
    connection: Arc<Connection>,
    updates: mpsc::Sender<collect::Update>,
    timing: Timing,
    tasks: JoinSet<()>,
    /// What the first state is made of.
    missing: Vec<Part>,
}

impl Followers {
    fn add(&mut self, resource: Resource, part: Part, collection: impl Collection + 'static) {
        let follower = Follower::new(
            Arc::clone(&self.connection),
            resource,
            part,
            collection,
            self.updates.clone(),
            self.timing,
        );
        self.missing.push(part);
        self.tasks.spawn(follower.run());
    }
}
