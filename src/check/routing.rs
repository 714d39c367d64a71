//! Routes, rules, flannel, and the settings of the kernel's forwarding.

use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;

use super::{Finding, Surroundings, chain, sysctl};
use crate::node::flannel::Subnet;
use crate::tun::Link;

/// A finding for each thing in the way, or one that there is none.
pub(super) async fn routes(around: &Surroundings<'_>) -> Vec<Finding> {
    const SUBJECT: &str = "routes";
    let config = around.config;
    let name = config.tun.name.as_str();
    let index = match around.node.device(name).await {
        Ok(device) => device.map(|device| device.index),
        Err(error) => return vec![Finding::unknown(SUBJECT, "the list of devices", error)],
    };
    let ranges = &config.service_cidrs;
    match Link::conflicts(name, index, &around.tun_addresses, ranges).await {
        Err(error) => vec![Finding::unknown(
            SUBJECT,
            "the routing table",
            chain(&error),
        )],
        Ok(found) if found.is_empty() => {
            let what = if ranges.is_empty() {
                "nothing has the device's addresses; routes follow the services".to_owned()
            } else {
                let ranges: Vec<String> = ranges.iter().map(IpNet::to_string).collect();
                format!("nothing is in the way of {}", ranges.join(", "))
            };
            vec![Finding::ok(SUBJECT, what)]
        }
        Ok(found) => found
            .iter()
            .map(|error| {
                Finding::failure(SUBJECT, error.to_string(), error.mend().unwrap_or_default())
            })
            .collect(),
    }
}

/// Rules alone are no fault: those that take services away are found as conflicts.
pub(super) async fn rules(around: &Surroundings<'_>) -> Finding {
    const SUBJECT: &str = "rules";
    let mut found = Vec::new();
    for v6 in [false, true] {
        match around.node.rules(v6).await {
            Ok(rules) => found.extend(rules),
            Err(_) if v6 => {}
            Err(error) => return Finding::unknown(SUBJECT, "the rules of routing", error),
        }
    }
    match found.first() {
        None => Finding::ok(SUBJECT, "no rules beside the kernel's own"),
        Some(first) => Finding::warning(
            SUBJECT,
            format!(
                "{} rules beside the kernel's own, such as \"{first}\": packets that they choose \
                 do not follow the services' routes if that table has another",
                found.len()
            ),
            "look at ip rule, and keep the service range out of those tables",
        ),
    }
}

pub(super) async fn flannel(around: &Surroundings<'_>, file: &Path) -> Finding {
    const SUBJECT: &str = "flannel";
    let subnet = match Subnet::read(file) {
        Ok(Some(subnet)) => subnet,
        Ok(None) => {
            let found = format!("no {}: flannel does not run here", file.display());
            return match around.node.devices().await {
                Ok(devices) if devices.iter().any(|device| is_flannel(&device.name)) => {
                    Finding::warning(
                        SUBJECT,
                        format!("{found}, though it has left a device"),
                        "start flanneld, or wait until it has its lease",
                    )
                }
                Ok(_) | Err(_) => Finding::ok(SUBJECT, found),
            };
        }
        Err(error) => return Finding::unknown(SUBJECT, &file.display().to_string(), error),
    };
    match source(around, &subnet).await {
        Ok(finding) => finding,
        Err(error) => Finding::unknown(SUBJECT, "devices and routes", error),
    }
}

/// As flannel names its devices: `flannel.1`, `flannel0`, `flannel-wg`.
fn is_flannel(name: &str) -> bool {
    name.starts_with("flannel")
}

/// Whether `auto` chooses an address of flannel's.
async fn source(around: &Surroundings<'_>, subnet: &Subnet) -> std::io::Result<Finding> {
    const SUBJECT: &str = "flannel";
    let devices = around.node.devices().await?;
    let addresses = around.node.addresses().await?;
    let own: IpNet = subnet.subnet.trunc().into();
    // The device that carries pods' traffic between nodes has an address of the subnet
    // of its own: the network's (flannel vxlan), not the bridge's.
    let interface = addresses.iter().find_map(|(index, address)| {
        let device = devices.iter().find(|device| device.index == *index)?;
        let is_overlay = own.contains(address) && *address == own.network();
        is_overlay.then(|| (device.name.clone(), *address))
    });
    let Some((name, address)) = interface else {
        return Ok(Finding::warning(
            SUBJECT,
            format!(
                "the subnet file says {own}, but no interface has {}",
                own.network()
            ),
            "see whether flanneld runs and its backend makes an interface: ip address",
        ));
    };
    let probe = outside(subnet);
    let chosen = match probe {
        Some(probe) => around.node.way(probe).await.ok().and_then(|way| way.source),
        None => None,
    };
    let has = format!("{own} on {name} with {address}");
    Ok(match (probe, chosen) {
        (Some(_), Some(chosen)) if chosen == address => {
            Finding::ok(SUBJECT, format!("{has}, the source that auto chooses"))
        }
        (Some(probe), Some(chosen)) => Finding::warning(
            SUBJECT,
            format!("{has}, but towards {probe} auto chooses {chosen}"),
            format!("--masquerade-source {name}"),
        ),
        (Some(probe), None) => Finding::warning(
            SUBJECT,
            format!("{has}, but there is no way to {probe}, a pod of another node"),
            "see whether flanneld has the other nodes' subnets: ip route",
        ),
        (None, _) => Finding::ok(SUBJECT, has),
    })
}

/// An address of the pods' network that is another node's.
fn outside(subnet: &Subnet) -> Option<IpAddr> {
    let network = subnet.networks.iter().find_map(|network| match network {
        IpNet::V4(network) => Some(*network),
        IpNet::V6(_) => None,
    })?;
    let size = 1_u32.checked_shl(32 - u32::from(subnet.subnet.prefix_len()))?;
    let own = u32::from(subnet.subnet.network());
    let beside = [own.checked_add(size), own.checked_sub(size)];
    // The third of a node's subnet: behind the overlay's and the bridge's.
    let pods = beside.into_iter().flatten().map(|start| (start + 2).into());
    let mut pods = pods.filter(|pod| network.contains(pod));
    pods.next().map(IpAddr::V4)
}

pub(super) fn forwarding(around: &Surroundings<'_>) -> Vec<Finding> {
    let v6 = around
        .config
        .service_cidrs
        .iter()
        .any(|net| net.addr().is_ipv6());
    let mut keys = vec![("ip-forward", "net/ipv4/ip_forward")];
    if v6 {
        keys.push(("ipv6-forwarding", "net/ipv6/conf/all/forwarding"));
    }
    let look = |(subject, key): (&str, &str)| match sysctl(key).as_deref() {
        Ok("0") => Finding::warning(
            subject,
            "0: the node's own connections are served, those of pods are not",
            format!("sysctl -w {}=1", key.replace('/', ".")),
        ),
        Ok(value) => Finding::ok(subject, value),
        Err(error) => Finding::unknown(subject, key, error),
    };
    keys.into_iter().map(look).collect()
}

/// The greater of `all` and the interface's own holds (IN_DEV_RPFILTER,
/// linux/inetdevice.h): 1 is strict, 2 loose.
pub(super) async fn reverse_path(around: &Surroundings<'_>) -> Finding {
    const SUBJECT: &str = "rp-filter";
    let all = match sysctl("net/ipv4/conf/all/rp_filter") {
        Ok(all) => all,
        Err(error) => return Finding::unknown(SUBJECT, "net.ipv4.conf.all.rp_filter", error),
    };
    let devices = match around.node.devices().await {
        Ok(devices) => devices,
        Err(error) => return Finding::unknown(SUBJECT, "the list of devices", error),
    };
    let strict = devices.iter().filter(|device| device.name != "lo");
    let strict = strict.filter(|device| {
        let own = sysctl(&format!("net/ipv4/conf/{}/rp_filter", device.name));
        let own: u8 = own.ok().and_then(|own| own.parse().ok()).unwrap_or(0);
        let all: u8 = all.parse().unwrap_or(0);
        own.max(all) == 1
    });
    let names: Vec<&str> = strict.map(|device| device.name.as_str()).collect();
    if names.is_empty() {
        return Finding::ok(SUBJECT, "no interface filters strictly");
    }
    Finding::warning(
        SUBJECT,
        format!(
            "strict on {}: answers of real servers that come back by another interface than \
             packets to them take are dropped",
            names.join(", ")
        ),
        "sysctl -w net.ipv4.conf.all.rp_filter=2",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_of_another_node_is_next_door() {
        let subnet = |network: &str, own: &str| Subnet {
            networks: vec![network.parse().unwrap()],
            subnet: own.parse().unwrap(),
        };
        let outside = |network, own| outside(&subnet(network, own)).map(|pod| pod.to_string());
        assert_eq!(outside("10.1.0.0/16", "10.1.15.1/24").unwrap(), "10.1.16.2");
        assert_eq!(
            outside("10.1.0.0/16", "10.1.255.1/24").unwrap(),
            "10.1.254.2"
        );
        assert_eq!(outside("10.1.0.0/24", "10.1.0.1/24"), None);
    }
}
