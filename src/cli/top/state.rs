//! What `top` shows, and what keys do to it.

use ratatui::crossterm::event::{KeyCode, KeyModifiers};

use crate::admin::api::{FlowSort, Flows, RealServer, Status, VirtualServer};

/// Everything that is on the screen, but for its size.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) status: Status,
    pub(super) services: Vec<VirtualServer>,
    pub(super) flows: Flows,
    view: View,
    order: Order,
    flow_sort: FlowSort,
    filter: String,
    /// Letters go into the filter.
    typing: bool,
    paused: bool,
    /// Rows that are above the screen.
    scroll: usize,
    trouble: Option<String>,
}

/// Which table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum View {
    #[default]
    Services,
    Flows,
    Reasons,
}

/// What virtual servers are sorted by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Order {
    #[default]
    Address,
    Name,
    Flows,
    Payload,
}

/// What to do after a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Draw.
    Stay,
    /// Ask the proxy, then draw.
    Look,
    /// End.
    Quit,
}

/// Rows that a page key moves by.
const PAGE: usize = 10;

impl State {
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "a key that means nothing here does nothing"
    )]
    pub(super) fn key(&mut self, key: KeyCode, modifiers: KeyModifiers) -> Next {
        if modifiers.contains(KeyModifiers::CONTROL) {
            return match key {
                KeyCode::Char('c') => Next::Quit,
                _ => Next::Stay,
            };
        }
        if self.typing {
            return self.type_filter(key);
        }
        match key {
            KeyCode::Char('q') | KeyCode::Esc => return Next::Quit,
            KeyCode::Char('1') => return self.show(View::Services),
            KeyCode::Char('2') => return self.show(View::Flows),
            KeyCode::Char('3') => return self.show(View::Reasons),
            KeyCode::Tab => return self.show(self.view.next()),
            KeyCode::Char(' ') => return Next::Look,
            KeyCode::Char('p') => self.paused = !self.paused,
            KeyCode::Char('/') => self.typing = true,
            KeyCode::Char('s') => {
                self.scroll = 0;
                match self.view {
                    View::Flows => {
                        self.flow_sort = next_sort(self.flow_sort);
                        return Next::Look;
                    }
                    View::Services => self.order = self.order.next(),
                    View::Reasons => {}
                }
            }
            KeyCode::Down | KeyCode::Char('j') => self.scroll_by(1),
            KeyCode::Up | KeyCode::Char('k') => self.scroll = self.scroll.saturating_sub(1),
            KeyCode::PageDown => self.scroll_by(PAGE),
            KeyCode::PageUp => self.scroll = self.scroll.saturating_sub(PAGE),
            KeyCode::Home => self.scroll = 0,
            KeyCode::End => self.scroll_by(usize::MAX),
            _ => {}
        }
        Next::Stay
    }

    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "a key that means nothing here does nothing"
    )]
    fn type_filter(&mut self, key: KeyCode) -> Next {
        self.scroll = 0;
        let before = self.filter.is_empty();
        match key {
            KeyCode::Char(letter) => self.filter.push(letter),
            KeyCode::Backspace => {
                self.filter.pop();
            }
            KeyCode::Enter => self.typing = false,
            KeyCode::Esc => {
                self.typing = false;
                self.filter.clear();
            }
            _ => {}
        }
        // Without a filter the proxy tells of some flows only, with one of all.
        if self.view == View::Flows && self.filter.is_empty() != before {
            Next::Look
        } else {
            Next::Stay
        }
    }

    fn show(&mut self, view: View) -> Next {
        (self.view, self.scroll) = (view, 0);
        Next::Look
    }

    fn scroll_by(&mut self, rows: usize) {
        let most = match self.view {
            View::Services => self.services.iter().map(|s| 1 + s.real_servers.len()).sum(),
            View::Flows => self.flows.flows.len(),
            View::Reasons => 0,
        };
        self.scroll = self.scroll.saturating_add(rows).min(most.saturating_sub(1));
    }

    pub(super) fn set_trouble(&mut self, trouble: Option<String>) {
        self.trouble = trouble;
    }

    pub(super) fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    pub(super) fn view(&self) -> View {
        self.view
    }

    pub(super) fn is_paused(&self) -> bool {
        self.paused
    }

    pub(super) fn is_typing(&self) -> bool {
        self.typing
    }

    pub(super) fn filter(&self) -> &str {
        &self.filter
    }

    pub(super) fn scroll(&self) -> usize {
        self.scroll
    }

    pub(super) fn flow_sort(&self) -> FlowSort {
        self.flow_sort
    }

    /// What the rows are sorted by.
    pub(super) fn order(&self) -> &'static str {
        match (self.view, self.order) {
            (View::Flows, _) => self.flow_sort.as_str(),
            (View::Reasons, _) => "reason",
            (View::Services, Order::Address) => "address",
            (View::Services, Order::Name) => "name",
            (View::Services, Order::Flows) => "flows",
            (View::Services, Order::Payload) => "payload",
        }
    }

    /// The virtual servers that fit the filter, in order.
    pub(super) fn servers(&self) -> Vec<&VirtualServer> {
        let fits = |server: &&VirtualServer| {
            let own = [server.service.clone(), server.address.to_string()];
            let real = server
                .real_servers
                .iter()
                .map(|real| real.address.to_string());
            own.into_iter().chain(real).any(|text| self.takes(&text))
        };
        let mut servers: Vec<_> = self.services.iter().filter(fits).collect();
        match self.order {
            Order::Address => {}
            Order::Name => servers.sort_by(|a, b| a.service.cmp(&b.service)),
            Order::Flows => servers.sort_by_key(|server| std::cmp::Reverse(flows_of(server))),
            Order::Payload => {
                servers.sort_by(|a, b| payload(b).total_cmp(&payload(a)));
            }
        }
        servers
    }

    /// Whether a text has what is looked for.
    pub(super) fn takes(&self, text: &str) -> bool {
        text.to_lowercase().contains(&self.filter.to_lowercase())
    }
}

/// Flows open now.
pub(super) fn flows_of(server: &VirtualServer) -> u64 {
    let of = |real: &RealServer| u64::from(real.active_flows) + u64::from(real.inactive_flows);
    server.real_servers.iter().map(of).sum()
}

fn payload(server: &VirtualServer) -> f64 {
    server.rates.map_or(0.0, |rates| {
        rates.bytes_to_real_server_per_second + rates.bytes_to_client_per_second
    })
}

impl View {
    fn next(self) -> Self {
        match self {
            Self::Services => Self::Flows,
            Self::Flows => Self::Reasons,
            Self::Reasons => Self::Services,
        }
    }
}

impl Order {
    fn next(self) -> Self {
        match self {
            Self::Address => Self::Name,
            Self::Name => Self::Flows,
            Self::Flows => Self::Payload,
            Self::Payload => Self::Address,
        }
    }
}

fn next_sort(sort: FlowSort) -> FlowSort {
    match sort {
        FlowSort::Client => FlowSort::Service,
        FlowSort::Service => FlowSort::RealServer,
        FlowSort::RealServer => FlowSort::State,
        FlowSort::State => FlowSort::Bytes,
        FlowSort::Bytes => FlowSort::Age,
        FlowSort::Age => FlowSort::Client,
    }
}
