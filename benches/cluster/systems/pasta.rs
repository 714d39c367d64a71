//! pasta: a namespace of its own for the client, whose TAP pasta serves from
//! sockets in the node's namespace.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};

use anyhow::{Context, Result};
use kube_tun_proxy::lab::{Namespace, TempDir};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::Found;
use crate::process::Process;
use crate::wiring::wait_for_default_route;

/// In the foreground, told to standard error, as the lab's root, IPv4; no port
/// leads into the client's namespace or, by loopback, out; the file that names the
/// namespace may go. What the client's interface gets is written out: pasta binds
/// its sockets to the device that it takes as model, and the one that leads to the
/// real server, the overlay, has no network to copy.
const OPTIONS: &str = "-f -e -q --runas 0 -4 -t none -u none -T none -U none --no-netns-quit \
                       --config-net -a 192.0.2.2 -n 24 -g 192.0.2.1";

/// Starts pasta on the node, for the client's namespace, and waits until that has
/// a default route.
pub(super) fn start(
    node: &Namespace,
    client: &Namespace,
    found: &Found,
    overlay: &str,
) -> Result<Process> {
    let directory = TempDir::new()?;
    let path = directory.path().join("netns");
    File::create(&path)?;
    // pasta has dropped what it needs to look into /proc of others by the time it
    // opens the namespace: it gets a file of its own for it.
    let fd = client.as_fd().as_raw_fd();
    let source = format!("/proc/self/fd/{fd}");
    mount(
        Some(source.as_str()),
        &path,
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )
    .context("bind mount of a network namespace")?;
    let path_text = path.to_string_lossy();
    let fixed = OPTIONS.split_whitespace();
    let arguments = fixed.chain(["-i", overlay, "--netns", &path_text]);
    let started = Process::start(node, &found.program, arguments);
    let ready = started.and_then(|mut process| {
        wait_for_default_route(client, &mut process)?;
        Ok(process)
    });
    // It has the namespace open by now; the file must go with the directory.
    umount2(&path, MntFlags::MNT_DETACH)?;
    ready
}
