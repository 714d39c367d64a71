use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{KeyCode, KeyModifiers};

use super::super::state::Next;
use super::*;
use crate::admin::api::{FlowSort, Flows, History, RealServer};

fn real(address: &str, active: u32) -> RealServer {
    RealServer {
        address: address.parse().unwrap(),
        forward: "Masq".to_owned(),
        weight: 1,
        active_flows: active,
        inactive_flows: 0,
        connections: 40,
        failed_attempts: 2,
        bytes_to_real_server: 0,
        bytes_to_client: 0,
        rates: None,
    }
}

fn server(address: &str, service: &str, active: u32, down: f64) -> VirtualServer {
    VirtualServer {
        protocol: "TCP".to_owned(),
        address: address.parse().unwrap(),
        service: service.to_owned(),
        exposure: "ClusterIP".to_owned(),
        carried: true,
        scheduler: "rr".to_owned(),
        persistence_seconds: None,
        real_servers: vec![real("10.1.65.5:443", active)],
        rates: Some(Rates {
            new_flows_per_second: 2.5,
            bytes_to_real_server_per_second: 10.0,
            bytes_to_client_per_second: down,
        }),
        history: None,
    }
}

fn state() -> State {
    let mut state = State::default();
    let status = &mut state.status;
    status.version = "0.1.0".to_owned();
    status.node = "master".to_owned();
    status.uptime_seconds = 7300;
    status.health.ready = true;
    status.health.healthy = true;
    (status.flows, status.max_flows) = (12, 65_536);
    status.dropped = vec![Reason {
        reason: "unknown_address".to_owned(),
        count: 31,
        per_second: 0.5,
    }];
    status.history = Some(History {
        interval_seconds: 2.0,
        new_flows_per_second: vec![0.0, 1.0, 2.0],
        bytes_to_real_server_per_second: vec![0.0; 3],
        bytes_to_client_per_second: vec![0.0, 5.0, 10.0],
        flows: vec![1, 2, 12],
    });
    state.services = vec![
        server("10.0.0.3:443", "kube-system/metrics-server:https", 1, 0.0),
        server("10.0.94.107:3000", "default/grafana:http", 11, 2_500_000.0),
    ];
    state.flows = Flows {
        flows: vec![Flow {
            protocol: "TCP".to_owned(),
            state: "ESTABLISHED".to_owned(),
            expires_seconds: None,
            age_seconds: 75,
            client: "10.1.15.7:48080".parse().unwrap(),
            virtual_address: "10.0.0.3:443".parse().unwrap(),
            real_server: None,
            source: None,
            bytes_to_real_server: 1_500,
            bytes_to_client: 7,
            service: "kube-system/metrics-server:https".to_owned(),
        }],
        matching: 9,
    };
    state
}

/// The rows of a screen of that size.
fn screen(state: &State, width: u16, height: u16) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(frame, state)).unwrap();
    let buffer = terminal.backend().buffer().clone();
    let rows = (0..height).map(|y| {
        let row: String = (0..width).map(|x| buffer[(x, y)].symbol()).collect();
        row.trim_end().to_owned()
    });
    rows.collect()
}

fn press(state: &mut State, keys: &str) -> Next {
    let mut next = Next::Stay;
    for key in keys.chars() {
        next = state.key(KeyCode::Char(key), KeyModifiers::NONE);
    }
    next
}

fn at(screen: &[String], text: &str) -> usize {
    let found = screen.iter().position(|row| row.contains(text));
    found.unwrap_or_else(|| panic!("{text} is not on\n{}", screen.join("\n")))
}

#[test]
fn services_with_their_real_servers() {
    let screen = screen(&state(), 120, 24);
    assert_eq!(screen[0], "kube-tun-proxy 0.1.0  node master  up 2h  ready");
    assert!(screen[1].starts_with("flows 12 of 65536  memory 0B"));
    at(&screen, "services 2 of 2, by address");
    let metrics = at(&screen, "kube-system/metrics-server:https");
    assert!(screen[metrics].contains("TCP 10.0.0.3:443 rr"));
    assert!(screen[metrics + 1].contains("-> 10.1.65.5:443"));
    assert!(screen[metrics + 1].contains("Masq 1"));
    let grafana = at(&screen, "default/grafana:http");
    assert!(screen[grafana].contains("2.5MB"), "{}", screen[grafana]);
    // The plots: the last value is the highest, at the right edge.
    assert!(screen[5].contains('█'), "{}", screen.join("\n"));
    assert_eq!(screen[23], KEYS);
}

#[test]
fn keys_change_order_filter_and_view() {
    let mut state = state();
    assert_eq!(press(&mut state, "ss"), Next::Stay);
    let by_flows = screen(&state, 120, 24);
    at(&by_flows, "by flows");
    assert!(at(&by_flows, "default/grafana") < at(&by_flows, "kube-system/metrics"));

    press(&mut state, "/METRq");
    assert!(screen(&state, 120, 24)[23].starts_with("filter: METRq_"));
    state.key(KeyCode::Backspace, KeyModifiers::NONE);
    state.key(KeyCode::Enter, KeyModifiers::NONE);
    let filtered = screen(&state, 120, 24);
    at(&filtered, "services 1 of 2");
    assert!(!filtered.iter().any(|row| row.contains("grafana")));

    assert_eq!(press(&mut state, "2"), Next::Look);
    let flows = screen(&state, 140, 24);
    at(&flows, "flows 1 of 9, by client");
    let flow = at(&flows, "10.1.15.7:48080");
    assert!(flows[flow].contains("ESTABLISHED") && flows[flow].contains("1.5kB"));
    assert_eq!(press(&mut state, "s"), Next::Look);
    assert_eq!(state.flow_sort(), FlowSort::Service);

    press(&mut state, "3");
    let reasons = screen(&state, 80, 24);
    let dropped = at(&reasons, "unknown_address");
    assert!(reasons[dropped].contains("31") && reasons[dropped].contains("0.5"));
    assert_eq!(state.key(KeyCode::Tab, KeyModifiers::NONE), Next::Look);
    assert_eq!(state.view(), View::Services);
    assert_eq!(press(&mut state, "q"), Next::Quit);
    assert_eq!(
        state.key(KeyCode::Char('c'), KeyModifiers::CONTROL),
        Next::Quit
    );
}

#[test]
fn eighty_columns_are_enough() {
    let mut state = state();
    let screen_of = |state: &State| screen(state, 80, 24);
    let services = screen_of(&state);
    assert_eq!(services[23], KEYS_IN_SHORT);
    let grafana = at(&services, "TCP 10.0.94.107:3000 rr");
    for text in ["default/grafana:http", " 11 ", " 2.5 ", "2.5MB"] {
        assert!(services[grafana].contains(text), "{}", services[grafana]);
    }
    assert!(services[grafana + 1].contains("-> 10.1.65.5:443"));
    press(&mut state, "2");
    let flows = screen_of(&state);
    let flow = at(&flows, "10.1.15.7:48080");
    assert!(flows[flow].starts_with("│ESTAB "), "{}", flows[flow]);
    assert!(flows[flow].contains("kube-system/metri"), "{}", flows[flow]);
    assert!(flows[flow].contains("1.5kB"), "{}", flows[flow]);
}

#[test]
fn what_is_looked_for_is_asked_of_all_flows() {
    let mut state = state();
    press(&mut state, "2/");
    assert_eq!(press(&mut state, "g"), Next::Look);
    assert_eq!(press(&mut state, "r"), Next::Stay);
    state.key(KeyCode::Backspace, KeyModifiers::NONE);
    let back = state.key(KeyCode::Backspace, KeyModifiers::NONE);
    assert_eq!((back, state.filter()), (Next::Look, ""));
    press(&mut state, "x");
    assert_eq!(state.key(KeyCode::Esc, KeyModifiers::NONE), Next::Look);
}

#[test]
fn scrolling_ends_with_the_last_row() {
    let mut state = state();
    press(&mut state, "jjjjjjjjj");
    assert_eq!(state.scroll(), 3);
    let rows = screen(&state, 120, 24);
    assert!(!rows.iter().any(|row| row.contains("grafana")));
    press(&mut state, "kkkkk");
    assert_eq!(state.scroll(), 0);
    state.key(KeyCode::End, KeyModifiers::NONE);
    assert_eq!(state.scroll(), 3);
}

#[test]
fn trouble_is_said_and_numbers_stay() {
    let mut state = state();
    press(&mut state, "p");
    state.set_trouble(Some("no proxy answers".to_owned()));
    let rows = screen(&state, 120, 24);
    assert!(
        rows[0].contains("no answer: no proxy answers  paused"),
        "{}",
        rows[0]
    );
    at(&rows, "default/grafana:http");
}

#[test]
fn any_size_is_drawn() {
    let mut state = state();
    for view in ["1", "2", "3"] {
        press(&mut state, view);
        for (width, height) in [(1, 1), (20, 5), (80, 15), (300, 100)] {
            assert_eq!(screen(&state, width, height).len(), usize::from(height));
        }
    }
}
