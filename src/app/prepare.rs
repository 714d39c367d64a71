//! `init`: a device that a user without privilege can run the proxy with.

use std::io;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, chown};
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use thiserror::Error;

use crate::node::links::{Device, Node};
use crate::tun::{Link, LinkConfig, TunError, open_queues};

/// What is to be prepared.
#[derive(Clone, Debug)]
pub struct Preparation {
    /// Name of the device.
    pub name: String,
    /// The user who is going to run the proxy.
    pub owner: u32,
    /// The device's addresses.
    pub addresses: Vec<IpAddr>,
    /// What is routed into it.
    pub service_cidrs: Vec<IpNet>,
    /// Where that user's proxy is going to have its admin socket.
    pub admin_socket: PathBuf,
}

/// Why it was not prepared.
#[derive(Debug, Error)]
pub enum PrepareError {
    /// The node lacks something, or has something in the way.
    #[error(transparent)]
    Tun(#[from] TunError),
    /// The node cannot be looked at.
    #[error("cannot read the node's devices")]
    Node(#[source] io::Error),
    /// The directory of the admin socket cannot be made or given away.
    #[error("cannot make the directory {} for the user {owner}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Whose it was to be.
        owner: u32,
        /// What the system says.
        source: io::Error,
    },
}

/// Makes the device, or brings one that a proxy holds up to date; what was prepared
/// before and is not in use is made anew. Must be called within a tokio runtime.
///
/// # Errors
///
/// [`PrepareError`]; a device that could not be configured is not left behind.
pub async fn prepare(wanted: &Preparation) -> Result<(), PrepareError> {
    let name = wanted.name.as_str();
    let node = Node::open().map_err(PrepareError::Node)?;
    let config = |index| LinkConfig {
        addresses: wanted.addresses.clone(),
        service_routes: wanted.service_cidrs.clone(),
        ..LinkConfig::new(name, index)
    };
    directory(wanted)?;
    if let Some(device) = node.device(name).await.map_err(PrepareError::Node)? {
        let idle = device.tun.is_some_and(|tun| tun.queues == 0);
        if is_left(&device) && idle {
            Link::delete(name, device.index).await?;
        } else if device.is_prepared_for(wanted.owner) {
            Link::adopt(config(device.index)).await?;
            return Ok(());
        } else {
            let name = name.to_owned();
            return Err(TunError::DeviceExists { name }.into());
        }
    }
    let queues = open_queues(name, 1)?;
    Link::configure(config(queues.index)).await?;
    queues.keep_for(wanted.owner)?;
    Ok(())
}

/// What has become of a device that was to be removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// It is gone.
    Done,
    /// A proxy holds it, so it stays.
    Used,
    /// There was none.
    Nothing,
}

/// Takes a prepared device away. A proxy that holds it fails, unless `unless_used`: then
/// the device stays, also one that the proxy has made itself.
///
/// # Errors
///
/// [`PrepareError`]; a device of that name that `init` has not made.
pub async fn remove(name: &str, unless_used: bool) -> Result<Removal, PrepareError> {
    let node = Node::open().map_err(PrepareError::Node)?;
    match node.device(name).await.map_err(PrepareError::Node)? {
        None => Ok(Removal::Nothing),
        Some(device) if unless_used && device.tun.is_some_and(|tun| tun.queues > 0) => {
            Ok(Removal::Used)
        }
        Some(device) if is_left(&device) => {
            Link::delete(name, device.index).await?;
            Ok(Removal::Done)
        }
        Some(_) => {
            let name = name.to_owned();
            Err(TunError::DeviceExists { name }.into())
        }
    }
}

/// Made by `init`, for whomever: what stays, takes several queues and has an owner.
fn is_left(device: &Device) -> bool {
    device
        .tun
        .is_some_and(|tun| tun.persistent && tun.multi_queue && tun.owner.is_some())
}

/// `/run` is root's: a user cannot make a directory there.
fn directory(wanted: &Preparation) -> Result<(), PrepareError> {
    let parent = wanted.admin_socket.parent();
    let Some(path) = parent.filter(|path| !path.as_os_str().is_empty()) else {
        return Ok(());
    };
    let owner = wanted.owner;
    make_directory(path, owner).map_err(|source| PrepareError::Directory {
        path: path.to_owned(),
        owner,
        source,
    })
}

/// One that is there keeps its owner, unless nothing is in it: it may be `/run` itself, or
/// one that somebody has just made for this, as a kubelet does.
fn make_directory(path: &Path, owner: u32) -> io::Result<()> {
    if path.is_dir() {
        if path.metadata()?.uid() != owner && path.read_dir()?.next().is_none() {
            chown(path, Some(owner), None)?;
        }
        return Ok(());
    }
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true).mode(0o755).create(path)?;
    chown(path, Some(owner), None)
}
