//! The addresses that the proxy itself listens on.

use std::net::{SocketAddr, TcpListener};

use super::{Asker, Finding, Surroundings};

pub(super) fn healthz(around: &Surroundings<'_>) -> Finding {
    let address = around.config.healthz_bind_address;
    port(around, "healthz", "--healthz-bind-address", address)
}

pub(super) fn metrics(around: &Surroundings<'_>) -> Finding {
    let address = around.config.metrics_bind_address;
    port(around, "metrics", "--metrics-bind-address", address)
}

fn port(
    around: &Surroundings<'_>,
    subject: &str,
    flag: &str,
    address: Option<SocketAddr>,
) -> Finding {
    let Some(address) = address else {
        return Finding::ok(subject, "no address of its own is asked for");
    };
    if around.asker == Asker::Proxy {
        return Finding::ok(subject, format!("{address} belongs to this proxy"));
    }
    match TcpListener::bind(address) {
        Ok(_) => Finding::ok(subject, format!("{address} is free")),
        Err(_) if around.running => Finding::ok(
            subject,
            format!("{address} belongs to the proxy that runs here"),
        ),
        Err(error) => Finding::failure(
            subject,
            format!("{address} cannot be had: {error}"),
            format!("choose another with {flag} ADDRESS:PORT, or none with {flag} ''"),
        ),
    }
}
