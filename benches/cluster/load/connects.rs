//! How long connect(2) takes, on one service after the other.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::{Outcome, Quantiles, Window, nanos};

/// A connect that takes longer has failed.
const LIMIT: Duration = Duration::from_secs(3);

/// Apart from each other, so that neighbours in the table do not help; prime, so
/// that each of 10, 1,000 and 10,000 has its turn.
const STRIDE: usize = 7919;

pub(super) fn run(window: &Window, first: SocketAddr, services: usize) -> Result<Outcome> {
    let IpAddr::V4(base) = first.ip() else {
        bail!("services have IPv4 addresses here");
    };
    let mut index = 0;
    let mut connect = || -> Result<u32> {
        index = (index + STRIDE) % services;
        let ip = Ipv4Addr::from(u32::from(base) + u32::try_from(index)?);
        let to = SocketAddrV4::new(ip, first.port()).into();
        let started = Instant::now();
        let stream = TcpStream::connect_timeout(&to, LIMIT);
        let took = nanos(started);
        stream.with_context(|| format!("connect to {to}"))?;
        Ok(took)
    };
    let warm_until = Instant::now() + window.warm_up;
    while Instant::now() < warm_until {
        connect()?;
    }
    let mut outcome = Outcome::default();
    let mut latencies = Vec::new();
    let measured = window.begin()?;
    while Instant::now() < measured.until {
        latencies.push(connect()?);
    }
    measured.end(&mut outcome)?;
    outcome.count = latencies.len() as u64;
    outcome.micros = Quantiles::of(latencies);
    Ok(outcome)
}
