//! The TUN driver, permission, and a device of our name.

use nix::unistd::geteuid;

use super::{Asker, Finding, Surroundings, UNSEEN, chain};
use crate::node::links::Device;
use crate::node::privileges::{Capabilities, Capability};
use crate::tun::{TunError, check_driver};

pub(super) fn driver(around: &Surroundings<'_>) -> Finding {
    const SUBJECT: &str = "tun-driver";
    match check_driver() {
        Ok(()) => Finding::ok(SUBJECT, "/dev/net/tun can be opened"),
        Err(TunError::DriverDenied { .. }) if around.asker == Asker::Proxy => {
            let found = format!("this proxy has its queues open; the file itself is {UNSEEN}");
            Finding::ok(SUBJECT, found)
        }
        Err(error) => Finding::failure(SUBJECT, chain(&error), error.mend().unwrap_or_default()),
    }
}

/// What counts is whether the kernel lets us, since a capability may be one of another
/// user namespace than the network's.
pub(super) async fn capabilities(around: &Surroundings<'_>) -> Finding {
    const SUBJECT: &str = "capabilities";
    let here = match Capabilities::of_this_thread() {
        Ok(here) => here,
        Err(error) => return Finding::unknown(SUBJECT, "the thread's capabilities", error),
    };
    match around.node.may_configure().await {
        Ok(true) => Finding::ok(SUBJECT, format!("devices and routes may be set ({here})")),
        Ok(false) if prepared(around).await => Finding::ok(
            SUBJECT,
            format!(
                "devices and routes may not be set, and need not: {} is prepared for this user",
                around.config.tun.name
            ),
        ),
        Ok(false) if around.running => Finding::ok(
            SUBJECT,
            match around.asker {
                Asker::Proxy => format!(
                    "this proxy has set its device and has kept {here}: routes that change need \
                     CAP_NET_ADMIN"
                ),
                Asker::Command => {
                    format!("the proxy that runs here has what it needs ({here} is left to look)")
                }
            },
        ),
        Ok(false) => {
            let found = if here.contains(Capability::NetAdmin) {
                "CAP_NET_ADMIN does not hold for this network namespace"
            } else {
                "no CAP_NET_ADMIN: devices and routes cannot be set"
            };
            let needed = TunError::NoCapability {
                name: around.config.tun.name.to_string(),
                operation: String::new(),
                source: std::io::Error::from_raw_os_error(libc::EPERM),
            };
            let mend = needed.mend().unwrap_or_default();
            let user = format!("--user {}", geteuid());
            Finding::failure(SUBJECT, found, mend.replace("--user USER", &user))
        }
        Err(error) => Finding::unknown(SUBJECT, "whether routes may be set", error),
    }
}

async fn prepared(around: &Surroundings<'_>) -> bool {
    let device = around.node.device(around.config.tun.name.as_str()).await;
    device.is_ok_and(|device| device.is_some_and(|device| is_ours(&device)))
}

/// Made by `init` for the user that we are.
fn is_ours(device: &Device) -> bool {
    device.is_prepared_for(geteuid().as_raw())
}

pub(super) async fn device(around: &Surroundings<'_>) -> Finding {
    const SUBJECT: &str = "device";
    let name = around.config.tun.name.as_str();
    let device = match around.node.device(name).await {
        Ok(Some(device)) => device,
        Ok(None) if around.asker == Asker::Proxy => {
            let found = format!("{name}, the device of this proxy, is gone");
            return Finding::failure(SUBJECT, found, "start the proxy again");
        }
        Ok(None) => return Finding::ok(SUBJECT, format!("no device is named {name}")),
        Err(error) => return Finding::unknown(SUBJECT, "the list of devices", error),
    };
    let exists = TunError::DeviceExists {
        name: name.to_owned(),
    };
    let mend = exists.mend().unwrap_or_default();
    match device.tun {
        Some(_) if around.asker == Asker::Proxy => {
            Finding::ok(SUBJECT, format!("{name} belongs to this proxy"))
        }
        Some(_) if around.running => Finding::ok(
            SUBJECT,
            format!("{name} belongs to the proxy that runs here"),
        ),
        Some(tun) if is_ours(&device) && tun.queues == 0 => {
            Finding::ok(SUBJECT, format!("{name} is prepared for this user by init"))
        }
        Some(tun) if tun.queues > 0 => Finding::failure(
            SUBJECT,
            format!("{name} is a TUN that some process holds"),
            mend,
        ),
        Some(tun) => Finding::failure(
            SUBJECT,
            match tun.owner {
                Some(owner) => format!("{name} is a TUN left for the user {owner}"),
                None => format!("{name} is a TUN left by someone"),
            },
            mend,
        ),
        None => Finding::failure(
            SUBJECT,
            format!("a device that is no TUN is named {name}"),
            mend,
        ),
    }
}
