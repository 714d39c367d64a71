//! One flow between a client and a real server, in virtual time.
//!
//! The client is a smoltcp of its own ([`client`]) or segments written by hand
//! ([`hand`]); the real server is a stand-in for a kernel socket with the edges of
//! epoll ([`server`]); between client and flow lies a link that loses, repeats,
//! delays and reorders by a seed ([`link`]). [`proxy`] drives the flow as the worker
//! does, and [`world`] moves the clock from event to event: no test waits.

mod client;
mod hand;
mod link;
mod proxy;
mod server;
mod world;

mod bulk;
mod closing;
mod limits;
mod proptests;
mod resets;
mod reuse;
mod slow;
mod strays;
mod time_wait;
mod traps;

use std::net::SocketAddr;

/// The stream from the client to the real server.
const UP: u64 = 1;
/// The stream from the real server to the client.
const DOWN: u64 = 2;

/// Both ends of a connection.
#[derive(Clone, Copy, Debug)]
struct Ends {
    client: SocketAddr,
    virtual_server: SocketAddr,
}

impl Ends {
    fn v4() -> Self {
        Self {
            client: "10.1.65.5:40000".parse().unwrap(),
            virtual_server: "10.0.0.3:443".parse().unwrap(),
        }
    }

    fn v6() -> Self {
        Self {
            client: "[fd00:10:1:65::5]:40000".parse().unwrap(),
            virtual_server: "[fd00:10::3]:443".parse().unwrap(),
        }
    }
}
