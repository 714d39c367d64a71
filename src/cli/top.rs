//! `top`: virtual servers and flows of a running proxy, live in a terminal.
//!
//! One thread asks the proxy over its admin socket, draws and reads keys in turn. The
//! terminal is as before when it ends, also by a panic.

use std::io::{self, IsTerminal};
use std::path::Path;
use std::time::{Duration, Instant};

use clap::Args;
use ratatui::crossterm::event::{self, Event, KeyEventKind};

use super::{Failure, Proxy, Status, fetch};
use crate::admin::api::{Detail, FlowFilter, Flows, SERVICES, STATUS, Services};

mod draw;
mod state;

use state::{Next, State, View};

/// Flows asked for at most while none are filtered: nobody scrolls through more, and the
/// proxy sorts them.
const MOST_FLOWS: usize = 500;

#[derive(Args, Debug)]
pub(super) struct TopArgs {
    /// Seconds between two looks
    #[arg(short = 'd', long, value_name = "SECONDS", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=3600))]
    interval: u64,

    #[command(flatten)]
    proxy: Proxy,
}

pub(super) fn run(args: &TopArgs) -> Result<(), Failure> {
    let mut state = State::default();
    // Before the screen changes, so that a mistake is said where it can be read.
    look(&args.proxy.admin_socket, &mut state)?;
    if !io::stdout().is_terminal() {
        return Err(Failure {
            status: Status::Usage,
            message: "top needs a terminal".to_owned(),
            mend: Some("kube-tun-proxy list -o json is for programs".to_owned()),
        });
    }
    let failed = |error: io::Error| Failure::new(Status::Failed, &error);
    let mut terminal = ratatui::try_init().map_err(failed)?;
    let every = Duration::from_secs(args.interval);
    let done = watch(&mut terminal, &args.proxy.admin_socket, &mut state, every);
    ratatui::restore();
    done.map_err(failed)
}

fn watch(
    terminal: &mut ratatui::DefaultTerminal,
    socket: &Path,
    state: &mut State,
    every: Duration,
) -> io::Result<()> {
    let mut due = Instant::now() + every;
    loop {
        terminal.draw(|frame| draw::draw(frame, state))?;
        let mut next = Next::Stay;
        if event::poll(due.saturating_duration_since(Instant::now()))? {
            if let Event::Key(key) = event::read()?
                && key.kind == KeyEventKind::Press
            {
                next = state.key(key.code, key.modifiers);
            }
        } else if !state.is_paused() {
            next = Next::Look;
        }
        if Instant::now() >= due {
            due = Instant::now() + every;
        }
        match next {
            Next::Stay => {}
            Next::Quit => return Ok(()),
            Next::Look => {
                // A proxy that restarts is waited for; its last numbers stay.
                let looked = look(socket, state);
                state.set_trouble(looked.err().map(|failure| failure.message));
            }
        }
    }
}

/// Asks for what is shown.
fn look(socket: &Path, state: &mut State) -> Result<(), Failure> {
    let detail = Detail { history: true };
    let history = format!("?history={}", detail.history);
    state.status = fetch(socket, &format!("{STATUS}{history}"))?;
    match state.view() {
        View::Services => {
            let services: Services = fetch(socket, &format!("{SERVICES}{history}"))?;
            state.services = services.virtual_servers;
        }
        View::Flows => {
            let filter = FlowFilter {
                sort: state.flow_sort(),
                // What is looked for may be anywhere among them.
                limit: state.filter().is_empty().then_some(MOST_FLOWS),
                ..FlowFilter::default()
            };
            let flows: Flows = fetch(socket, &filter.path())?;
            state.flows = flows;
        }
        View::Reasons => {}
    }
    Ok(())
}
