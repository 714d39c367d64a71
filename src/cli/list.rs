//! `list`: the virtual and real servers, or the flows, of a running proxy.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::runtime;

use super::{Failure, Output, Status, print};
use crate::admin::api::{self, Flows, Services};
use crate::admin::client::ask;
use crate::config::ADMIN_SOCKET;

mod table;

#[derive(Args, Debug)]
pub(super) struct ListArgs {
    /// List flows, laid out as `ipvsadm -Lnc` does, instead of virtual servers, as `ipvsadm -Ln`
    #[arg(long)]
    flows: bool,

    /// Form of the output
    #[arg(
        short,
        long,
        value_name = "FORMAT",
        default_value = "table",
        value_enum
    )]
    output: Output,

    /// Leave the names of services out of the table: addresses and ports only
    ///
    /// Addresses and ports are printed as numbers in any case, since asking for
    /// their names could need the very services that are listed.
    #[arg(short, long)]
    numeric: bool,

    /// Unix socket of the proxy
    #[arg(long, value_name = "PATH", default_value = ADMIN_SOCKET)]
    admin_socket: PathBuf,
}

pub(super) fn run(args: &ListArgs) -> Result<(), Failure> {
    let text = if args.flows {
        let flows: Flows = fetch(args, api::FLOWS)?;
        match args.output {
            Output::Table => table::flows(&flows.flows, args.numeric),
            Output::Json => json(&flows)?,
        }
    } else {
        let services: Services = fetch(args, api::SERVICES)?;
        match args.output {
            Output::Table => table::services(&services.virtual_servers, args.numeric),
            Output::Json => json(&services)?,
        }
    };
    print(&text)
}

fn fetch<T: DeserializeOwned>(args: &ListArgs, path: &str) -> Result<T, Failure> {
    let failed = |error: &dyn std::error::Error| Failure::new(Status::Failed, error);
    runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| failed(&error))?
        .block_on(ask(&args.admin_socket, path))
        .map_err(|error| failed(&error))
}

fn json(document: &impl Serialize) -> Result<String, Failure> {
    let mut text = serde_json::to_string_pretty(document)
        .map_err(|error| Failure::new(Status::Failed, &error))?;
    text.push('\n');
    Ok(text)
}
