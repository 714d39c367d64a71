//! Connections that are made, used once, and then idle.

use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};

use super::requests::ask_once;

/// Connections that are made at a time.
const AT_A_TIME: usize = 16;

/// Making one may take so long.
const LIMIT: Duration = Duration::from_secs(5);

/// Prints a line once all are made; ends when it is killed.
pub(super) fn run(to: SocketAddr, connections: usize) -> Result<()> {
    let makers: Vec<_> = (0..AT_A_TIME)
        .map(|maker| {
            let share = (connections + maker) / AT_A_TIME;
            thread::spawn(move || make(to, share))
        })
        .collect();
    let mut held = Vec::with_capacity(connections);
    for maker in makers {
        held.append(&mut maker.join().map_err(|_| anyhow!("a thread panicked"))??);
    }
    writeln!(io::stdout(), "ready")?;
    loop {
        thread::park();
    }
}

fn make(to: SocketAddr, count: usize) -> Result<Vec<TcpStream>> {
    let mut made = Vec::with_capacity(count);
    for _ in 0..count {
        let stream = TcpStream::connect_timeout(&to, LIMIT)
            .with_context(|| format!("idle connection to {to}"))?;
        stream.set_read_timeout(Some(LIMIT))?;
        ask_once(stream.try_clone()?).with_context(|| format!("request to {to}"))?;
        made.push(stream);
    }
    Ok(made)
}
