//! What keeps the TUN from coming up, and the command that mends it.

use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use thiserror::Error;

use super::queue::MAX_QUEUES;

/// What keeps the TUN from coming up, or a route from being set.
///
/// Each of them is something that the node lacks or has in the way: exit
/// status 3 while starting.
#[derive(Debug, Error)]
pub enum TunError {
    /// The driver, or the file that leads to it, is missing.
    #[error("cannot open /dev/net/tun: this kernel or container has no TUN driver")]
    NoDriver {
        /// ENOENT, ENODEV or ENXIO.
        source: io::Error,
    },
    /// The file is there, but not for us.
    #[error("cannot open /dev/net/tun: no permission")]
    DriverDenied {
        /// EACCES: the file's mode; EPERM: the container's device rules.
        source: io::Error,
    },
    /// Opening failed for a reason that has nothing to do with the driver.
    #[error("cannot open /dev/net/tun for queue {queue} of device {name}")]
    OpenDriver {
        /// The device that was to be made.
        name: String,
        /// Queue number, from 0.
        queue: usize,
        /// Such as EMFILE.
        source: io::Error,
    },
    /// The kernel would not take this name for a device.
    #[error(
        "{name:?} is no name for a network device: 1 to 15 bytes, no '/', ':' or white space, not \
         '.' or '..'"
    )]
    BadName {
        /// The name that was asked for.
        name: String,
    },
    /// CAP_NET_ADMIN is missing in the user namespace that owns the network
    /// namespace.
    #[error("device {name}: {operation} needs CAP_NET_ADMIN")]
    NoCapability {
        /// The device.
        name: String,
        /// What was attempted.
        operation: String,
        /// EPERM.
        source: io::Error,
    },
    /// A device of that name is there already, of whatever kind, made by
    /// somebody else or held by another instance.
    #[error("there is a network device {name} already, left or held by someone else")]
    DeviceExists {
        /// The device.
        name: String,
    },
    /// A device that was prepared is not as it must be.
    #[error("device {name} is not prepared: {what}")]
    NotPrepared {
        /// The device.
        name: String,
        /// What is missing or different.
        what: String,
    },
    /// More queues than a TUN has, or none.
    #[error("device {name}: {count} queues asked for, a TUN has 1 to {MAX_QUEUES}")]
    QueueCount {
        /// The device.
        name: String,
        /// Queues asked for.
        count: usize,
    },
    /// The kernel refused a queue for another reason.
    #[error("device {name}, queue {queue}: {operation} failed")]
    Queue {
        /// The device.
        name: String,
        /// Queue number, from 0.
        queue: usize,
        /// The system call and request.
        operation: &'static str,
        /// Its error.
        source: io::Error,
    },
    /// There is no netlink socket to be had.
    #[error("device {name}: cannot open a netlink socket")]
    Netlink {
        /// The device that was to be configured.
        name: String,
        /// Such as EMFILE, or EAFNOSUPPORT under a seccomp filter.
        source: io::Error,
    },
    /// A netlink request failed.
    #[error("device {name}: {operation} failed")]
    Link {
        /// The device.
        name: String,
        /// The request, with its values.
        operation: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The TUN's own address is in use on another device.
    #[error("device {name}: its address {address} is in use on device {other}")]
    AddressInUse {
        /// Our device.
        name: String,
        /// The address that was to be set.
        address: IpAddr,
        /// The device that has it.
        other: String,
    },
    /// The TUN's own address is in a range that is routed into the TUN: as a
    /// local address it would swallow what is sent to the service of that
    /// address.
    #[error("device {name}: its address {address} lies in the service range {route}")]
    AddressInServiceRange {
        /// Our device.
        name: String,
        /// The address that was to be set.
        address: IpAddr,
        /// The range that was to be routed.
        route: IpNet,
    },
    /// A route for the same prefix, or for a part of it, leads elsewhere.
    #[error(
        "device {name}: cannot route {route} into it: the route {existing} {target} would take \
         that traffic"
    )]
    RouteConflict {
        /// Our device.
        name: String,
        /// The prefix that was to be routed.
        route: IpNet,
        /// The prefix that is routed already.
        existing: IpNet,
        /// Where it leads, as `ip route` prints it: `dev eth1`, `blackhole`.
        target: String,
    },
    /// The route is in, yet the kernel sends the traffic elsewhere: a rule
    /// (`ip rule`) leads to another table first.
    #[error(
        "device {name}: {route} is routed into it, but traffic to {probe} goes {target} by \
         table {table}"
    )]
    RouteBypassed {
        /// Our device.
        name: String,
        /// The prefix that was to be routed.
        route: IpNet,
        /// The address in it that was looked up.
        probe: IpAddr,
        /// Where it leads, as `ip route` prints it.
        target: String,
        /// The routing table that said so.
        table: u32,
    },
}

impl TunError {
    /// The command, or the setting, that mends it; `None` where nothing general
    /// can be said.
    pub fn mend(&self) -> Option<String> {
        match self {
            Self::NoDriver { source } => Some(no_driver_mend(source).to_owned()),
            Self::DriverDenied { source } => Some(denied_mend(source).to_owned()),
            Self::OpenDriver { source, .. } | Self::Netlink { source, .. } => {
                matches!(source.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
                    .then(|| "raise the limit of open files (ulimit -n)".to_owned())
            }
            Self::BadName { .. } => Some("choose another with --tun-name".to_owned()),
            Self::NoCapability { .. } => Some(
                "run as root, or: sudo setcap cap_net_admin+ep /path/to/kube-tun-proxy; in a \
                 container: --cap-add NET_ADMIN (Kubernetes: \
                 securityContext.capabilities.add: [NET_ADMIN]); or prepare device and routes \
                 once, as root: kube-tun-proxy init --user USER --service-cidr CIDR"
                    .to_owned(),
            ),
            Self::DeviceExists { name } => Some(format!(
                "if nothing uses it: ip link delete {name}; otherwise choose another with \
                 --tun-name"
            )),
            Self::NotPrepared { name, .. } => Some(format!(
                "as root, with the options that run has: kube-tun-proxy init --remove --tun-name \
                 {name}; kube-tun-proxy init --user USER --tun-name {name} --service-cidr CIDR"
            )),
            Self::QueueCount { .. } => Some(format!("--workers 1 to {MAX_QUEUES}")),
            Self::Queue { .. } | Self::Link { .. } => None,
            Self::AddressInUse { .. } | Self::AddressInServiceRange { .. } => {
                Some("choose an address that nobody uses with --tun-address".to_owned())
            }
            Self::RouteConflict {
                existing, target, ..
            } => Some(format!(
                "if nothing needs it: ip {}route delete {}{existing}{}; otherwise give the ranges \
                 that hold services only with --service-cidr",
                if existing.addr().is_ipv6() { "-6 " } else { "" },
                // A device stands behind the prefix, a kind of route before it.
                if target.starts_with("dev ") {
                    String::new()
                } else {
                    format!("{target} ")
                },
                if target.starts_with("dev ") {
                    format!(" {target}")
                } else {
                    String::new()
                },
            )),
            Self::RouteBypassed { probe, .. } => Some(format!(
                "look at ip {0}rule and ip {0}route get {probe}, and keep the service range out \
                 of that table",
                if probe.is_ipv6() { "-6 " } else { "" },
            )),
        }
    }
}

fn no_driver_mend(source: &io::Error) -> &'static str {
    if source.raw_os_error() == Some(libc::ENOENT) {
        "modprobe tun; if the file is still missing: mkdir -p /dev/net && mknod -m 0666 \
         /dev/net/tun c 10 200; in a container: --device /dev/net/tun"
    } else {
        "modprobe tun (the kernel needs CONFIG_TUN)"
    }
}

fn denied_mend(source: &io::Error) -> &'static str {
    if source.raw_os_error() == Some(libc::EPERM) {
        "the container's device rules forbid it: --device /dev/net/tun (device rule \
         c 10:200 rwm)"
    } else {
        "chmod 0666 /dev/net/tun, or run as root"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_conflict_names_both_routes_and_the_command() {
        let conflict = |existing: &str, target: &str| TunError::RouteConflict {
            name: "svc-tun0".to_owned(),
            route: "10.0.0.0/16".parse().unwrap(),
            existing: existing.parse().unwrap(),
            target: target.to_owned(),
        };
        let error = conflict("10.0.5.0/24", "dev cni0");
        assert_eq!(
            error.to_string(),
            "device svc-tun0: cannot route 10.0.0.0/16 into it: the route 10.0.5.0/24 dev cni0 \
             would take that traffic"
        );
        let mend = |error: TunError| error.mend().unwrap();
        assert!(mend(error).contains("ip route delete 10.0.5.0/24 dev cni0;"));
        assert!(
            mend(conflict("10.0.5.0/24", "blackhole"))
                .contains("ip route delete blackhole 10.0.5.0/24;")
        );
        assert!(
            mend(conflict("fd00::/64", "dev eth0"))
                .contains("ip -6 route delete fd00::/64 dev eth0;")
        );
    }

    #[test]
    fn the_mend_depends_on_what_is_missing() {
        let source = |errno| io::Error::from_raw_os_error(errno);
        let no_driver = |errno| {
            TunError::NoDriver {
                source: source(errno),
            }
            .mend()
            .unwrap()
        };
        assert!(no_driver(libc::ENOENT).contains("mknod"));
        assert!(!no_driver(libc::ENODEV).contains("mknod"));
        let denied = |errno| {
            TunError::DriverDenied {
                source: source(errno),
            }
            .mend()
            .unwrap()
        };
        assert!(denied(libc::EACCES).contains("chmod"));
        assert!(denied(libc::EPERM).contains("--device"));
    }
}
