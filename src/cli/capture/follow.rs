//! What the proxy and the node tell of flows, and of where their packets pass.
//!
//! A [`Follower`] owns one task on the present runtime, which ends when it is dropped.

use std::future::pending;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::{CaptureArgs, failed, say};
use crate::admin::api::{
    AddressFilter, CONFIGZ, Flow, FlowFilter, Flows, SERVICES, Services, VirtualServer,
};
use crate::admin::client::{AskError, ask};
use crate::capture::{Interfaces, ListedFlow, Scope};
use crate::cli::{Failure, Status};
use crate::node::links::Node;
use crate::packet::protocol;

/// Between two questions for flows, unless somebody is in a hurry.
const EVERY: Duration = Duration::from_secs(1);

/// Least time between two questions, also in a hurry.
const AT_LEAST: Duration = Duration::from_millis(20);

/// How much longer than the last answer took it is left in peace, also in a hurry: so
/// that it never spends more than a tenth of its time on us.
const PEACE: u32 = 9;

/// Services and interfaces are asked for with each so many questions for flows.
const EVERYTHING: u32 = 5;

/// An answer.
#[derive(Debug)]
pub(super) struct Update {
    pub(super) flows: Vec<ListedFlow>,
    /// Present when services and interfaces were asked for too.
    pub(super) scope: Option<Scope>,
}

/// What is asked, and of whom.
#[derive(Debug)]
pub(super) struct Question {
    socket: PathBuf,
    filter: FlowFilter,
    node: Node,
    tun: Option<String>,
}

impl Question {
    pub(super) fn new(args: &CaptureArgs) -> Result<Self, Failure> {
        Ok(Self {
            socket: args.proxy.admin_socket.clone(),
            filter: FlowFilter {
                service: args.service.clone(),
                client: args.client,
                real_server: args.real_server,
                ..FlowFilter::default()
            },
            node: Node::open().map_err(|error| failed("netlink", error))?,
            tun: None,
        })
    }

    /// Asks for all that there is to know.
    pub(super) async fn ask_everything(&mut self) -> Result<Update, Failure> {
        if self.tun.is_none() {
            let configuration: Value = self.ask(CONFIGZ).await?;
            let name = configuration
                .pointer("/tunName")
                .and_then(Value::as_str)
                .ok_or_else(|| Failure {
                    status: Status::Failed,
                    message: "the proxy does not tell its TUN device's name".to_owned(),
                    mend: None,
                })?;
            self.tun = Some(name.to_owned());
        }
        // Interfaces first: those that a listed flow uses are among them.
        let interfaces = self
            .interfaces()
            .await
            .map_err(|error| failed("netlink", error))?;
        let services: Services = self.ask(SERVICES).await?;
        let scope = scope(&services.virtual_servers, &self.filter, interfaces);
        Ok(Update {
            flows: self.ask_flows().await?,
            scope: Some(scope),
        })
    }

    async fn ask_flows(&self) -> Result<Vec<ListedFlow>, Failure> {
        let flows: Flows = self.ask(&self.filter.path()).await?;
        Ok(flows.flows.into_iter().map(listed).collect())
    }

    async fn ask<T: serde::de::DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        ask(&self.socket, path)
            .await
            .map_err(|error: AskError| Failure::new(Status::Failed, &error))
    }

    async fn interfaces(&self) -> std::io::Result<Interfaces> {
        let mut interfaces = Interfaces::default();
        for device in self.node.devices().await? {
            if device.master.is_some() {
                interfaces.members.insert(device.index);
            }
            if self.tun.as_deref() == Some(&*device.name) {
                interfaces.tun = Some(device.index);
            }
            interfaces.names.insert(device.index, device.name);
        }
        for (index, address) in self.node.addresses().await? {
            if interfaces.tun != Some(index) {
                interfaces.addresses.insert(address);
            }
        }
        Ok(interfaces)
    }
}

/// Asks again and again.
#[derive(Debug)]
pub(super) struct Follower {
    updates: mpsc::Receiver<Update>,
    hurry: Arc<Notify>,
    stop: Arc<Notify>,
    task: JoinHandle<Question>,
}

impl Follower {
    /// Starts to ask, a second after what was asked before.
    pub(super) fn start(question: Question) -> Self {
        // An answer that nobody has taken yet is as good as a newer one.
        let (sender, updates) = mpsc::channel(1);
        let (hurry, stop) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (in_hurry, stopped) = (Arc::clone(&hurry), Arc::clone(&stop));
        let task = tokio::spawn(async move {
            let mut question = question;
            tokio::select! {
                () = follow(&mut question, &sender, &in_hurry) => {}
                () = stopped.notified() => {}
            }
            question
        });
        Self {
            updates,
            hurry,
            stop,
            task,
        }
    }

    /// The next answer. Nothing is lost if the future is dropped.
    pub(super) async fn next(&mut self) -> Update {
        match self.updates.recv().await {
            Some(update) => update,
            None => pending().await,
        }
    }

    /// Asks sooner.
    pub(super) fn hurry(&self) {
        self.hurry.notify_one();
    }

    /// Asks no more by itself; returns the question, to be asked a last time. None if
    /// the task has panicked.
    pub(super) async fn stop(self) -> Option<Question> {
        self.stop.notify_one();
        self.task.await.ok()
    }
}

async fn follow(question: &mut Question, updates: &mpsc::Sender<Update>, hurry: &Notify) {
    let mut asked: u32 = 0;
    let mut silent = false;
    let mut took = Duration::ZERO;
    loop {
        let ended = Instant::now();
        let peace = (took * PEACE).max(AT_LEAST);
        // Whether it was in time or not: it is asked now.
        let _ = timeout_at(ended + EVERY.max(peace), async {
            sleep_until(ended + peace).await;
            hurry.notified().await;
        })
        .await;
        let began = Instant::now();
        asked = asked.wrapping_add(1);
        let answer = if asked.is_multiple_of(EVERYTHING) {
            question.ask_everything().await
        } else {
            question
                .ask_flows()
                .await
                .map(|flows| Update { flows, scope: None })
        };
        took = began.elapsed();
        match answer {
            Ok(update) => {
                silent = false;
                if updates.send(update).await.is_err() {
                    return;
                }
            }
            Err(failure) if !silent => {
                silent = true;
                say(&format!("flows are not told any more: {}", failure.message));
            }
            Err(_) => {}
        }
    }
}

fn listed(flow: Flow) -> ListedFlow {
    ListedFlow {
        protocol: number(&flow.protocol),
        client: flow.client,
        virtual_address: flow.virtual_address,
        real_server: flow.real_server,
        source: flow.source,
        service: flow.service,
    }
}

/// IP's number of a protocol, by its name in our documents.
fn number(name: &str) -> u8 {
    match name {
        "UDP" => protocol::UDP,
        "SCTP" => protocol::SCTP,
        _ => protocol::TCP,
    }
}

/// What the wanted ones among the virtual servers have packets look like.
fn scope(servers: &[VirtualServer], filter: &FlowFilter, interfaces: Interfaces) -> Scope {
    let wanted = |server: &&VirtualServer| {
        filter
            .service
            .as_ref()
            .is_none_or(|service| is_of(&server.service, &service.to_string()))
    };
    let takes = |filter: &Option<AddressFilter>, address| {
        filter.as_ref().is_none_or(|filter| filter.takes(address))
    };
    let mut scope = Scope {
        interfaces,
        ..Scope::default()
    };
    for server in servers.iter().filter(wanted) {
        let protocol = number(&server.protocol);
        let name = server.service.clone();
        scope
            .virtual_servers
            .insert((protocol, server.address), name);
        let real_servers = server.real_servers.iter().map(|real| real.address);
        for address in real_servers.filter(|&address| takes(&filter.real_server, address)) {
            let services = scope.real_servers.entry((protocol, address)).or_default();
            services.insert(server.service.clone());
        }
    }
    scope
}

/// Whether `namespace/name:port` is the wanted one, or a port of it.
fn is_of(name: &str, wanted: &str) -> bool {
    let rest = name.strip_prefix(wanted);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(':') && !wanted.contains(':'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_meant_with_all_its_ports_or_with_one() {
        assert!(is_of("a/web:http", "a/web"));
        assert!(is_of("a/web", "a/web"));
        assert!(is_of("a/web:http", "a/web:http"));
        assert!(!is_of("a/web:https", "a/web:http"));
        assert!(!is_of("a/website:http", "a/web"));
        assert!(!is_of("b/web:http", "a/web"));
    }
}
