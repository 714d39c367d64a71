//! `list`: the virtual and real servers, or the flows, of a running proxy.

use std::path::PathBuf;

use clap::Args;

use super::{Failure, Output, fetch, json, print};
use crate::admin::api::{self, AllCounters, Flows, Services};
use crate::config::ADMIN_SOCKET;

mod table;

#[derive(Args, Debug)]
pub(super) struct ListArgs {
    /// List flows, laid out as `ipvsadm -Lnc` does, instead of virtual servers, as `ipvsadm -Ln`
    #[arg(long)]
    flows: bool,

    /// List what was counted since the start instead: flows, and packets and flows that
    /// were dropped or refused, by reason
    #[arg(long, conflicts_with = "flows")]
    counters: bool,

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
    let text = if args.counters {
        let counters: AllCounters = fetch(&args.admin_socket, api::COUNTERS)?;
        match args.output {
            Output::Table => table::counters(&counters),
            Output::Json => json(&counters)?,
        }
    } else if args.flows {
        let flows: Flows = fetch(&args.admin_socket, api::FLOWS)?;
        match args.output {
            Output::Table => table::flows(&flows.flows, args.numeric),
            Output::Json => json(&flows)?,
        }
    } else {
        let services: Services = fetch(&args.admin_socket, api::SERVICES)?;
        match args.output {
            Output::Table => {
                let servers = table::services(&services.virtual_servers, args.numeric);
                match &services.fallback {
                    Some(standing) => table::standing(standing) + &servers,
                    None => servers,
                }
            }
            Output::Json => json(&services)?,
        }
    };
    print(&text)
}
