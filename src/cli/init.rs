//! `init`: prepares a device with privilege, so that `run` needs none.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::Args;
use ipnet::IpNet;
use nix::unistd::User;
use tokio::runtime;

use super::{Failure, Status, print};
use crate::app::prepare::{Preparation, PrepareError, Removal, prepare, remove};
use crate::config::{ADMIN_SOCKET, DeviceArgs};
use crate::tun::LinkConfig;

#[derive(Args, Debug)]
pub(super) struct InitArgs {
    /// The user who is going to run the proxy, by name or number
    #[arg(long, value_name = "USER", value_parser = user, required_unless_present = "remove")]
    user: Option<u32>,

    /// Take the device away again
    #[arg(long, conflicts_with_all = ["user", "service_cidr", "tun_address"])]
    remove: bool,

    /// With --remove: leave a device that a proxy holds
    #[arg(long, requires = "remove")]
    unless_used: bool,

    #[command(flatten)]
    device: DeviceArgs,

    /// Unix socket that the proxy is going to have; its directory is made for the user
    #[arg(long, value_name = "PATH", default_value = ADMIN_SOCKET)]
    admin_socket: PathBuf,
}

pub(super) fn run(args: InitArgs) -> Result<(), Failure> {
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Status::Failed, &error))?;
    let name = args.device.tun_name.to_string();
    let Some(owner) = args.user else {
        let removed = runtime.block_on(remove(&name, args.unless_used));
        return print(&match removed.map_err(|error| failure(&error))? {
            Removal::Done => format!("{name} is removed\n"),
            Removal::Used => format!("{name} stays: a proxy holds it\n"),
            Removal::Nothing => format!("there is no {name}\n"),
        });
    };
    let wanted = Preparation {
        name,
        owner,
        addresses: LinkConfig::addresses_or_default(&args.device.tun_address),
        service_cidrs: args.device.service_cidr,
        admin_socket: args.admin_socket,
    };
    let prepared = runtime.block_on(prepare(&wanted));
    prepared.map_err(|error| failure(&error))?;
    let addresses = wanted.addresses.iter().map(IpAddr::to_string);
    let routes = wanted.service_cidrs.iter().map(IpNet::to_string);
    print(&format!(
        "{} is there for the user {owner}, with {} and routes for {}\n",
        wanted.name,
        list(addresses),
        list(routes)
    ))
}

fn list(items: impl Iterator<Item = String>) -> String {
    let items: Vec<String> = items.collect();
    if items.is_empty() {
        "nothing".to_owned()
    } else {
        items.join(", ")
    }
}

fn failure(error: &PrepareError) -> Failure {
    let (status, mend) = match error {
        PrepareError::Tun(error) => (Status::NodeLacks, error.mend()),
        PrepareError::Node(_) | PrepareError::Directory { .. } => (Status::Failed, None),
    };
    Failure::new(status, error).with_mend(mend)
}

fn user(text: &str) -> Result<u32, String> {
    if let Ok(number) = text.parse() {
        return Ok(number);
    }
    match User::from_name(text) {
        Ok(Some(user)) => Ok(user.uid.as_raw()),
        Ok(None) => Err("there is no such user".to_owned()),
        Err(error) => Err(format!("users cannot be looked up: {error}")),
    }
}
