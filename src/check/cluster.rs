//! The API server, and what we may do there.

use std::error::Error;
use std::io;
use std::time::Duration;

use super::{Asker, Finding, Surroundings, UNSEEN, chain};
use crate::config::Source;
use crate::source::kubernetes::{Access, Connection, Permission, permissions, version};

const SERVER: &str = "api-server";
const PERMISSIONS: &str = "permissions";

pub(super) async fn cluster(around: &Surroundings<'_>) -> Vec<Finding> {
    let (kubeconfig, master) = match &around.config.source {
        Source::Manifests(path) => {
            let found = format!("not asked: objects come from {}", path.display());
            return vec![Finding::ok(SERVER, found)];
        }
        Source::Cluster { kubeconfig, master } => (kubeconfig.clone(), master.clone()),
    };
    let connection = match Connection::open(Access { kubeconfig, master }).await {
        Ok(connection) => connection,
        Err(error) if around.asker == Asker::Proxy && is_denied(&error) => {
            let found = format!("{UNSEEN}: {}", chain(&error));
            return vec![Finding::warning(
                SERVER,
                found,
                "as root: kube-tun-proxy check",
            )];
        }
        Err(error) => {
            let mend = "give --kubeconfig FILE with a current context, or run in a pod with a \
                        service account";
            return vec![Finding::failure(SERVER, chain(&error), mend)];
        }
    };
    let server = connection.server();
    let mut findings = Vec::new();
    match version(&connection).await {
        Ok(version) => findings.push(reached(around, &connection, &version).await),
        Err(error) => {
            let mend = format!(
                "see whether it is reached: curl -k {server}version; another address: --master URL"
            );
            let found = format!("{server} is not reached: {error}");
            findings.push(Finding::failure(SERVER, found, mend));
            return findings;
        }
    }
    match permissions(&connection, &around.config.node_name).await {
        Ok(permissions) => findings.extend(judge(&permissions)),
        Err(error) => findings.push(Finding::unknown(PERMISSIONS, "permissions", error)),
    }
    findings
}

/// What is said when it has not told everything within this time.
pub(super) fn slow(limit: Duration) -> Finding {
    Finding::warning(
        SERVER,
        format!("not all is answered within {} s", limit.as_secs()),
        "see what takes so long: kube-tun-proxy check",
    )
}

/// Whether a file of the configuration may not be read.
fn is_denied(error: &(dyn Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let failed = error.downcast_ref::<io::Error>();
        if failed.is_some_and(|failed| failed.kind() == io::ErrorKind::PermissionDenied) {
            return true;
        }
        cause = error.source();
    }
    false
}

/// The server answers; by a service's address it will not once nothing else serves that.
async fn reached(around: &Surroundings<'_>, connection: &Connection, version: &str) -> Finding {
    let found = format!("{} answers ({version})", connection.server());
    let addresses = connection.addresses().await;
    let hazard = addresses.iter().find_map(|address| {
        let mut ranges = around.config.service_cidrs.iter();
        ranges
            .find(|range| range.contains(address))
            .map(|range| (address, range))
    });
    match hazard {
        None => Finding::ok(SERVER, found),
        Some((address, range)) => Finding::warning(
            SERVER,
            format!(
                "{found}, but {address} is a service's address ({range}), which this proxy serves \
                 itself"
            ),
            "give the server's own address with --master URL",
        ),
    }
}

fn judge(permissions: &[Permission]) -> Vec<Finding> {
    let denied = permissions.iter().filter(|one| !one.denied.is_empty());
    let mut findings: Vec<Finding> = denied.map(lacking).collect();
    if findings.is_empty() {
        let names: Vec<&str> = permissions.iter().map(|one| one.resource).collect();
        let found = format!("may list and watch {}", names.join(", "));
        findings.push(Finding::ok(PERMISSIONS, found));
    }
    findings
}

fn lacking(permission: &Permission) -> Finding {
    let verbs = permission.denied.join(" and ");
    let found = format!("may not {verbs} {}", permission.resource);
    let mend = format!(
        "kubectl create clusterrole kube-tun-proxy-{0} --verb=list,watch --resource={0}{1}{2}, and \
         bind it to this user or service account",
        permission.resource,
        if permission.group.is_empty() { "" } else { "." },
        permission.group,
    );
    match permission.without {
        None => Finding::failure(PERMISSIONS, found, mend),
        Some(without) => Finding::warning(PERMISSIONS, format!("{found}: {without}"), mend),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Level;

    #[test]
    fn what_is_denied_is_named_with_the_command() {
        let permission = |denied, without| Permission {
            resource: "endpointslices",
            group: "discovery.k8s.io",
            denied,
            without,
        };
        let found = judge(&[permission(vec!["watch"], None)]);
        assert_eq!(found[0].level, Level::Failure);
        assert_eq!(found[0].found, "may not watch endpointslices");
        let mend = found[0].mend.as_deref().unwrap();
        assert!(
            mend.contains("--resource=endpointslices.discovery.k8s.io,"),
            "{mend}"
        );
        let found = judge(&[permission(vec!["list", "watch"], Some("no hints"))]);
        assert_eq!(found[0].level, Level::Warning);
        assert_eq!(judge(&[permission(Vec::new(), None)])[0].level, Level::Ok);
    }
}
