//! The screen of `top`: two lines of the whole, plots, a table, the keys.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Block, Cell, Paragraph, Row, Sparkline, Table};

use super::state::{State, View, flows_of};
use crate::admin::api::{Flow, Rates, Reason, VirtualServer};

/// Height below which the plots make room for the table.
const PLOTS_FROM: u16 = 16;

/// Width below which there are fewer columns, so that addresses and names are still read:
/// those of a terminal of 80 columns.
const WIDE_FROM: u16 = 110;

const KEYS: &str = "1 services  2 flows  3 reasons  Tab next  s order  / filter  p pause  \
    arrows scroll  q quit";

/// The same for narrow screens.
const KEYS_IN_SHORT: &str = "1 services 2 flows 3 reasons  s order  / filter  p pause  q quit";

pub(super) fn draw(frame: &mut Frame<'_>, state: &State) {
    let plots = if frame.area().height >= PLOTS_FROM {
        4
    } else {
        0
    };
    let [head, past, table, keys] = Layout::vertical([
        Constraint::Length(3),
        Constraint::Length(plots),
        Constraint::Min(1),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    frame.render_widget(Paragraph::new(summary(state)), head);
    if plots > 0 {
        draw_past(frame, past, state);
    }
    match state.view() {
        View::Services => services(frame, table, state),
        View::Flows => flows(frame, table, state),
        View::Reasons => reasons(frame, table, state),
    }
    let quiet = Style::new().add_modifier(Modifier::DIM);
    let last = if state.is_typing() || !state.filter().is_empty() {
        let end = if state.is_typing() {
            "_  Enter done  Esc clear"
        } else {
            ""
        };
        format!("filter: {}{end}", state.filter())
    } else {
        let keys = if is_wide(frame.area()) {
            KEYS
        } else {
            KEYS_IN_SHORT
        };
        keys.to_owned()
    };
    frame.render_widget(Paragraph::new(last).style(quiet), keys);
}

fn is_wide(area: Rect) -> bool {
    area.width >= WIDE_FROM
}

fn summary(state: &State) -> Vec<Line<'static>> {
    let status = &state.status;
    let health = if let Some(trouble) = state.trouble() {
        format!("no answer: {trouble}")
    } else if !status.health.healthy {
        "LATE: changes wait to be programmed".to_owned()
    } else if status.health.ready {
        "ready".to_owned()
    } else {
        format!("NOT READY: {}", status.health.waiting_for.join(", "))
    };
    let paused = if state.is_paused() { "  paused" } else { "" };
    let rates = status.rates.unwrap_or_default();
    let busy: Vec<_> = status
        .workers
        .iter()
        .map(|worker| format!("{:.0}%", worker.busy * 100.0))
        .collect();
    vec![
        Line::from(format!(
            "kube-tun-proxy {}  node {}  up {}  {health}{paused}",
            status.version,
            status.node,
            time(status.uptime_seconds)
        )),
        Line::from(format!(
            "flows {} of {}  memory {} of {}  workers {}",
            status.flows,
            status.max_flows,
            bytes(status.memory_bytes as f64),
            bytes(status.max_memory_bytes as f64),
            busy.join(" ")
        )),
        Line::from(format!(
            "new {}/s  to real servers {}/s  to clients {}/s  fail-overs {}",
            amount(rates.new_flows_per_second),
            bytes(rates.bytes_to_real_server_per_second),
            bytes(rates.bytes_to_client_per_second),
            status.failovers
        )),
    ]
}

/// The newest value at the right edge.
fn draw_past(frame: &mut Frame<'_>, area: Rect, state: &State) {
    let Some(history) = &state.status.history else {
        return;
    };
    let both: Vec<f32> = history
        .bytes_to_real_server_per_second
        .iter()
        .zip(&history.bytes_to_client_per_second)
        .map(|(up, down)| up + down)
        .collect();
    let thirds = Layout::horizontal([Constraint::Fill(1); 3]).split(area);
    let flows: Vec<f32> = history.flows.iter().map(|flows| *flows as f32).collect();
    let plots = [
        ("flows", &flows),
        ("new flows/s", &history.new_flows_per_second),
        ("payload B/s", &both),
    ];
    for ((title, values), area) in plots.into_iter().zip(thirds.iter()) {
        let block = Block::bordered().title(title);
        let width = usize::from(block.inner(*area).width);
        let shown = &values[values.len().saturating_sub(width)..];
        let missing = width - shown.len();
        // Thousandths, since small rates count too and the widget takes whole numbers.
        let data: Vec<u64> = std::iter::repeat_n(0, missing)
            .chain(shown.iter().map(|value| (value * 1000.0) as u64))
            .collect();
        frame.render_widget(Sparkline::default().block(block).data(data), *area);
    }
}

fn services(frame: &mut Frame<'_>, area: Rect, state: &State) {
    let servers = state.servers();
    let wide = is_wide(area);
    let rows = servers.iter().flat_map(|server| server_rows(server, wide));
    let title = format!(
        " services {} of {}, by {} ",
        servers.len(),
        state.services.len(),
        state.order()
    );
    let (head, widths) = if wide {
        (
            &[
                "address",
                "service, forward",
                "flows",
                "conns",
                "failed",
                "new/s",
                "up/s",
                "down/s",
            ][..],
            vec![
                Constraint::Fill(2),
                Constraint::Fill(3),
                Constraint::Length(7),
                Constraint::Length(8),
                Constraint::Length(7),
                Constraint::Length(8),
                Constraint::Length(9),
                Constraint::Length(9),
            ],
        )
    } else {
        (
            &["address", "service, forward", "flows", "new/s", "B/s"][..],
            vec![
                Constraint::Fill(1),
                Constraint::Fill(1),
                Constraint::Length(6),
                Constraint::Length(6),
                Constraint::Length(8),
            ],
        )
    };
    let table = Table::new(rows.skip(state.scroll()), widths);
    frame.render_widget(framed(table, head, title), area);
}

fn server_rows(server: &VirtualServer, wide: bool) -> Vec<Row<'static>> {
    let bold = Style::new().add_modifier(Modifier::BOLD);
    let sum = |get: fn(&crate::admin::api::RealServer) -> u64| -> u64 {
        server.real_servers.iter().map(get).sum()
    };
    let mut rows = vec![
        row(
            format!(
                "{} {} {}",
                server.protocol, server.address, server.scheduler
            ),
            server.service.clone(),
            [
                flows_of(server),
                sum(|real| real.connections),
                sum(|real| real.failed_attempts),
            ],
            server.rates,
            wide,
        )
        .style(bold),
    ];
    rows.extend(server.real_servers.iter().map(|real| {
        row(
            format!("  -> {}", real.address),
            format!("{} {}", real.forward, real.weight),
            [
                u64::from(real.active_flows) + u64::from(real.inactive_flows),
                real.connections,
                real.failed_attempts,
            ],
            real.rates,
            wide,
        )
    }));
    rows
}

fn row(
    first: String,
    second: String,
    counts: [u64; 3],
    rates: Option<Rates>,
    wide: bool,
) -> Row<'static> {
    if !wide {
        let [new, payload] = rates.map_or_else(
            || ["-".to_owned(), "-".to_owned()],
            |rates| {
                let both = rates.bytes_to_real_server_per_second + rates.bytes_to_client_per_second;
                [amount(rates.new_flows_per_second), bytes(both)]
            },
        );
        return Row::new([first, second, counts[0].to_string(), new, payload]);
    }
    let rates = rates.map_or_else(
        || ["-".to_owned(), "-".to_owned(), "-".to_owned()],
        |rates| {
            [
                amount(rates.new_flows_per_second),
                bytes(rates.bytes_to_real_server_per_second),
                bytes(rates.bytes_to_client_per_second),
            ]
        },
    );
    let counts = counts.map(|count| count.to_string());
    Row::new([first, second].into_iter().chain(counts).chain(rates))
}

fn flows(frame: &mut Frame<'_>, area: Rect, state: &State) {
    let fits = |flow: &&Flow| {
        let real_server = flow.real_server.map(|address| address.to_string());
        let texts = [
            flow.service.clone(),
            flow.client.to_string(),
            flow.virtual_address.to_string(),
            flow.state.clone(),
            real_server.unwrap_or_default(),
        ];
        texts.iter().any(|text| state.takes(text))
    };
    let shown: Vec<&Flow> = state.flows.flows.iter().filter(fits).collect();
    let title = format!(
        " flows {} of {}, by {} ",
        shown.len(),
        state.flows.matching,
        state.order()
    );
    let wide = is_wide(area);
    let rows = shown.iter().skip(state.scroll());
    let rows = rows.map(|flow| flow_row(flow, wide));
    let (head, widths) = if wide {
        (
            &[
                "state",
                "client",
                "virtual server",
                "real server",
                "service",
                "up",
                "down",
                "age",
            ][..],
            vec![
                Constraint::Length(11),
                Constraint::Fill(3),
                Constraint::Fill(3),
                Constraint::Fill(3),
                Constraint::Fill(3),
                Constraint::Length(8),
                Constraint::Length(8),
                Constraint::Length(7),
            ],
        )
    } else {
        (
            &["state", "client", "real server", "service", "bytes", "age"][..],
            vec![
                // ESTABLISHED and the others are told apart by their first letters.
                Constraint::Length(5),
                Constraint::Fill(1),
                Constraint::Fill(1),
                Constraint::Fill(1),
                Constraint::Length(6),
                Constraint::Length(4),
            ],
        )
    };
    frame.render_widget(framed(Table::new(rows, widths), head, title), area);
}

fn flow_row(flow: &Flow, wide: bool) -> Row<'static> {
    let real_server = flow.real_server.map(|address| address.to_string());
    let real_server = real_server.unwrap_or_else(|| "-".to_owned());
    let (up, down) = (flow.bytes_to_real_server, flow.bytes_to_client);
    let age = time(flow.age_seconds);
    if wide {
        Row::new([
            flow.state.clone(),
            flow.client.to_string(),
            flow.virtual_address.to_string(),
            real_server,
            flow.service.clone(),
            bytes(up as f64),
            bytes(down as f64),
            age,
        ])
    } else {
        Row::new([
            flow.state.clone(),
            flow.client.to_string(),
            real_server,
            flow.service.clone(),
            bytes(up.saturating_add(down) as f64),
            age,
        ])
    }
}

fn reasons(frame: &mut Frame<'_>, area: Rect, state: &State) {
    let status = &state.status;
    let lists: [(&str, &[Reason]); 4] = [
        ("packets dropped", &status.dropped),
        ("flows refused", &status.rejected),
        ("attempts failed", &status.dial_failures),
        ("flows ended", &status.ended),
    ];
    let rows = lists.into_iter().flat_map(|(kind, reasons)| {
        reasons.iter().map(move |reason| {
            Row::new([
                kind.to_owned(),
                reason.reason.clone(),
                reason.count.to_string(),
                amount(reason.per_second),
            ])
        })
    });
    let widths = [
        Constraint::Length(16),
        Constraint::Fill(1),
        Constraint::Length(12),
        Constraint::Length(10),
    ];
    let table = Table::new(rows, widths);
    let head = ["what", "reason", "count", "now/s"];
    frame.render_widget(framed(table, &head, " reasons ".to_owned()), area);
}

fn framed<'a>(table: Table<'a>, head: &[&'a str], title: String) -> Table<'a> {
    let dim = Style::new().add_modifier(Modifier::UNDERLINED);
    table
        .header(Row::new(head.iter().map(|text| Cell::new(*text))).style(dim))
        .block(Block::bordered().title(title))
}

/// With a suffix, in three digits.
fn amount(value: f64) -> String {
    let mut value = value;
    for suffix in ["", "k", "M", "G"] {
        if value < 1000.0 {
            let digits = if value >= 100.0 || value.fract() == 0.0 {
                0
            } else {
                1
            };
            return format!("{value:.digits$}{suffix}");
        }
        value /= 1000.0;
    }
    format!("{value:.1}T")
}

fn bytes(value: f64) -> String {
    format!("{}B", amount(value))
}

fn time(seconds: u64) -> String {
    for (unit, length) in [("d", 86_400), ("h", 3_600), ("m", 60)] {
        if seconds >= length {
            return format!("{}{unit}", seconds / length);
        }
    }
    format!("{seconds}s")
}

#[cfg(test)]
mod tests;
