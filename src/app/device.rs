//! The device of a running proxy: made here, or found as `init` left it.

use std::io;
use std::sync::Arc;
use std::thread;

use nix::unistd::geteuid;
use tokio::runtime;
use tokio::sync::oneshot;

use super::AppError;
use super::settings::link_config;
use crate::config::{Config, Mode};
use crate::node::links::{self, Node};
use crate::tun::{Link, LinkConfig, Queues, TunError, attach_queues, open_queues};

/// A device that carries packets.
pub(super) struct Device {
    pub(super) queues: Queues,
    pub(super) link: Arc<Link>,
    /// It was there before, and stays.
    pub(super) is_prepared: bool,
}

/// Opens the device with its queues, or goes on with those of another process.
///
/// Where nothing is going to change later, it is set up on a thread of its own: only this
/// one's privileges are needed then, and the threads of the runtime need none.
pub(super) async fn open(config: &Config, adopted: Option<Queues>) -> Result<Device, AppError> {
    let name = config.tun.name.as_str();
    let workers = config.tun.workers.get();
    let node = Node::open().map_err(AppError::Node)?;
    if config.mode == Mode::Fallback && !node.may_configure().await.map_err(AppError::Node)? {
        return Err(AppError::Tun(TunError::NoCapability {
            name: name.to_owned(),
            operation: "--mode fallback, which adds and removes routes,".to_owned(),
            source: io::Error::from_raw_os_error(libc::EPERM),
        }));
    }
    let found = node.device(name).await.map_err(AppError::Node)?;
    let prepared = found.filter(|device| device.is_prepared_for(geteuid().as_raw()));
    if let Some(queues) = adopted {
        let settings = link_config(config, queues.index);
        let is_prepared = prepared.is_some();
        let link = if is_prepared {
            Link::adopt(settings).await?
        } else {
            set_up(config, settings).await?
        };
        return Ok(Device {
            queues,
            link: Arc::new(link),
            is_prepared,
        });
    }
    let is_free = |device: &links::Device| device.tun.is_some_and(|tun| tun.queues == 0);
    if prepared.as_ref().is_some_and(is_free) {
        let queues = attach_queues(name, workers)?;
        let now = node.device(name).await.map_err(AppError::Node)?;
        let attached = now
            .and_then(|device| device.tun)
            .map_or(0, |tun| tun.queues);
        if usize::try_from(attached) != Ok(workers) {
            // Another has come at the same time: its packets must not come here.
            let name = name.to_owned();
            return Err(AppError::Tun(TunError::DeviceExists { name }));
        }
        let link = Link::adopt(link_config(config, queues.index)).await?;
        return Ok(Device {
            queues,
            link: Arc::new(link),
            is_prepared: true,
        });
    }
    let queues = open_queues(name, workers)?;
    let link = set_up(config, link_config(config, queues.index)).await?;
    Ok(Device {
        queues,
        link: Arc::new(link),
        is_prepared: false,
    })
}

/// Sets a device up that was not prepared.
async fn set_up(config: &Config, settings: LinkConfig) -> Result<Link, AppError> {
    if config.fixed_routes {
        configure_here(settings.clone()).await?;
        return Ok(Link::adopt(settings).await?);
    }
    Ok(Link::configure(settings).await?)
}

/// Sets the device up with the privileges of the calling thread.
async fn configure_here(settings: LinkConfig) -> Result<(), AppError> {
    let (sender, done) = oneshot::channel();
    let work = move || {
        let configured = runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(AppError::Node)
            .and_then(|runtime| {
                let configured = runtime.block_on(Link::configure(settings));
                configured.map(drop).map_err(AppError::Tun)
            });
        // Whoever waits for it may have gone.
        drop(sender.send(configured));
    };
    let named = thread::Builder::new().name("set-up".to_owned());
    named.spawn(work).map_err(AppError::Node)?;
    done.await.unwrap_or_else(|_| {
        Err(AppError::Ended {
            part: "setting up the device",
            source: None,
        })
    })
}
