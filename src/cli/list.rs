//! `list`: the virtual and real servers, or the flows, of a running proxy.

use clap::Args;

use super::{Failure, Form, Output, Proxy, fetch, json, print};
use crate::admin::api::{
    self, AddressFilter, AllCounters, FlowFilter, Flows, ServiceFilter, Services,
};

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
    /// Only flows of this service, or of its port of that name
    #[arg(long, value_name = "NS/NAME[:PORT]", requires = "flows")]
    service: Option<ServiceFilter>,

    /// Only flows that this client has opened, from any port or from this one
    #[arg(long, value_name = "ADDR[:PORT]", requires = "flows")]
    client: Option<AddressFilter>,

    /// Only flows to this real server, at any port or at this one
    #[arg(long, value_name = "ADDR[:PORT]", requires = "flows")]
    real_server: Option<AddressFilter>,

    /// Only flows in this state, as the table names it: ESTABLISHED, SYN_RECV, UDP …
    #[arg(long, value_name = "STATE", requires = "flows")]
    state: Option<String>,

    #[command(flatten)]
    form: Form,

    /// Leave the names of services out of the table: addresses and ports only
    ///
    /// Addresses and ports are printed as numbers in any case, since asking for
    /// their names could need the very services that are listed.
    #[arg(short, long)]
    numeric: bool,

    #[command(flatten)]
    proxy: Proxy,
}

pub(super) fn run(args: &ListArgs) -> Result<(), Failure> {
    let text = if args.counters {
        let counters: AllCounters = fetch(&args.proxy.admin_socket, api::COUNTERS)?;
        match args.form.output {
            Output::Table => table::counters(&counters),
            Output::Json => json(&counters)?,
        }
    } else if args.flows {
        let filter = FlowFilter {
            service: args.service.clone(),
            client: args.client,
            real_server: args.real_server,
            state: args.state.clone(),
            ..FlowFilter::default()
        };
        let flows: Flows = fetch(&args.proxy.admin_socket, &filter.path())?;
        match args.form.output {
            Output::Table => table::flows(&flows.flows, args.numeric),
            Output::Json => json(&flows)?,
        }
    } else {
        let services: Services = fetch(&args.proxy.admin_socket, api::SERVICES)?;
        match args.form.output {
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
