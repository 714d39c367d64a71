//! `explain`: what becomes of a new flow, and why, asked of a running proxy.

use std::net::{IpAddr, SocketAddr};

use clap::Args;

use super::{Failure, Form, Output, Proxy, fetch, json, print};
use crate::admin::api::{Explanation, Protocol, Question};

mod text;

#[derive(Args, Debug)]
pub(super) struct ExplainArgs {
    /// Where a client sends to: a service's address and port, or a node's and a node port
    ///
    /// IPv6 in brackets. The protocol is TCP unless /udp follows, as in
    /// 10.0.0.10:53/udp.
    #[arg(value_name = "ADDRESS:PORT[/PROTOCOL]", value_parser = destination)]
    destination: (SocketAddr, Protocol),

    /// The client's address
    ///
    /// It decides where policies are Local, source ranges are set or a client
    /// stays with its endpoint. Default: this node.
    #[arg(long, value_name = "ADDR")]
    from: Option<IpAddr>,

    #[command(flatten)]
    form: Form,

    #[command(flatten)]
    proxy: Proxy,
}

pub(super) fn run(args: &ExplainArgs) -> Result<(), Failure> {
    let (address, protocol) = args.destination;
    let question = Question {
        address,
        protocol,
        from: args.from,
    };
    let explanation: Explanation = fetch(&args.proxy.admin_socket, &question.path())?;
    let text = match args.form.output {
        Output::Table => text::explanation(&explanation),
        Output::Json => json(&explanation)?,
    };
    print(&text)
}

fn destination(text: &str) -> Result<(SocketAddr, Protocol), String> {
    let (address, protocol) = text.rsplit_once('/').unwrap_or((text, "tcp"));
    let all = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
    let is_named = |p: &Protocol| p.as_str().eq_ignore_ascii_case(protocol);
    let Some(protocol) = all.into_iter().find(is_named) else {
        return Err(format!("the protocol {protocol:?} is not tcp, udp or sctp"));
    };
    match address.parse() {
        Ok(address) => Ok((address, protocol)),
        Err(_) => Err("not ADDRESS:PORT, such as 10.0.0.3:443 or [fd00::3]:443".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations() {
        for (text, address, protocol) in [
            ("10.0.0.3:443", "10.0.0.3:443", Protocol::Tcp),
            ("10.0.0.10:53/udp", "10.0.0.10:53", Protocol::Udp),
            ("10.0.0.10:53/UDP", "10.0.0.10:53", Protocol::Udp),
            ("[fd00::3]:9/sctp", "[fd00::3]:9", Protocol::Sctp),
            ("10.0.0.3:443/tcp", "10.0.0.3:443", Protocol::Tcp),
        ] {
            let address = address.parse().unwrap();
            assert_eq!(destination(text), Ok((address, protocol)), "{text}");
        }
        for text in [
            "10.0.0.3",
            "10.0.0.3:443/http",
            "web:80",
            "fd00::3:80",
            ":80",
            "",
        ] {
            assert!(destination(text).is_err(), "{text}");
        }
    }
}
