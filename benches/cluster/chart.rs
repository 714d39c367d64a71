//! Charts: for each test a group of bars, one bar for each system.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::results::Results;
use crate::systems::{Client, System};

/// A chart that is drawn.
pub(crate) struct Chart {
    /// Its file, beside the others.
    pub(crate) file: &'static str,
    /// What a reader sees first.
    pub(crate) title: &'static str,
    /// Its groups: a test, and how it is called below the bars.
    groups: &'static [(&'static str, &'static str)],
}

/// All charts, in the order a reader meets them.
pub(crate) const CHARTS: [Chart; 4] = [
    Chart {
        file: "bulk.svg",
        title: "Bulk, Gbit/s (more is better)",
        groups: &[
            ("bulk-up-1", "up, 1 stream"),
            ("bulk-down-1", "down, 1 stream"),
            ("bulk-up-8", "up, 8 streams"),
            ("bulk-down-8", "down, 8 streams"),
        ],
    },
    Chart {
        file: "requests.svg",
        title: "Requests on kept connections, thousands a second (more is better)",
        groups: &[
            ("requests-1", "1 connection"),
            ("requests-50", "50 connections"),
        ],
    },
    Chart {
        file: "connections.svg",
        title: "A connection for each request, thousands a second (more is better)",
        groups: &[
            ("connections-client", "client closes"),
            ("connections-server", "server closes"),
        ],
    },
    Chart {
        file: "dns.svg",
        title: "DNS-shaped queries, thousands a second (more is better)",
        groups: &[
            ("dns-new", "a socket for each"),
            ("dns-kept", "50 kept sockets"),
        ],
    },
];

const WIDTH: i32 = 1080;
const LEFT: i32 = 20;
/// Above the panels: title and legend.
const HEAD: i32 = 76;
/// Height of a panel, and in it of the tallest bar and of what is written below.
const PANEL: i32 = 290;
const TALLEST: i32 = 200;
const BELOW: i32 = 44;
const INK: RGBColor = RGBColor(40, 40, 40);
const LINE: RGBColor = RGBColor(200, 200, 200);

/// The colour of a system: this proxy stands out, the kernel's ways are grey.
fn colour(system: System) -> RGBColor {
    match system {
        System::Direct => RGBColor(205, 205, 205),
        System::KubeTunProxy => RGBColor(214, 69, 65),
        System::KernelNat => RGBColor(120, 120, 120),
        System::Haproxy => RGBColor(58, 110, 165),
        System::Ipstack => RGBColor(233, 185, 73),
        System::NetstackForward => RGBColor(120, 170, 90),
        System::NetstackOffload => RGBColor(70, 130, 80),
        System::Pasta => RGBColor(140, 100, 160),
    }
}

impl Chart {
    /// Draws it, a panel for each client; false when there is nothing to show.
    pub(crate) fn draw(
        &self,
        results: &Results,
        systems: &[System],
        clients: &[Client],
        path: &Path,
    ) -> Result<bool> {
        let rate = |test, client, system| {
            let cell = results.get(test, system, client)?;
            Some(cell.figure("rate")?.median)
        };
        let mut panels = Vec::new();
        for &client in clients {
            let mut groups = Vec::new();
            for &(test, name) in self.groups {
                let bar = |&system| Some((system, rate(test, client, system)?));
                let bars: Vec<_> = systems.iter().filter_map(bar).collect();
                if !bars.is_empty() {
                    groups.push(Group { name, bars });
                }
            }
            if !groups.is_empty() {
                panels.push((client, groups));
            }
        }
        let bars = panels.iter().flat_map(|(_, groups)| groups);
        let rates = bars.flat_map(|group| &group.bars).map(|bar| bar.1);
        let Some(highest) = rates.max_by(f64::total_cmp) else {
            return Ok(false);
        };
        let height = HEAD + PANEL * i32::try_from(panels.len())?;
        let size = (WIDTH.cast_unsigned(), height.cast_unsigned());
        let canvas = Canvas(SVGBackend::new(path, size).into_drawing_area());
        canvas.0.fill(&WHITE).map_err(failed)?;
        canvas.head(self.title, systems)?;
        for (index, (client, groups)) in panels.iter().enumerate() {
            let top = HEAD + PANEL * i32::try_from(index)?;
            canvas.text(client.described(), (LEFT, top + 10), 17, HPos::Left)?;
            canvas.panel(top + PANEL - BELOW, groups, systems, highest)?;
        }
        canvas.0.present().map_err(failed)?;
        Ok(true)
    }
}

/// The bars of a test.
struct Group {
    name: &'static str,
    bars: Vec<(System, f64)>,
}

struct Canvas<'a>(DrawingArea<SVGBackend<'a>, Shift>);

impl Canvas<'_> {
    fn head(&self, title: &str, systems: &[System]) -> Result<()> {
        self.text(title, (LEFT, 20), 24, HPos::Left)?;
        let room = (WIDTH - 2 * LEFT) / i32::try_from(systems.len())?;
        for (index, &system) in systems.iter().enumerate() {
            let x = LEFT + room.min(140) * i32::try_from(index)?;
            self.rectangle([(x, 44), (x + 14, 58)], colour(system))?;
            self.text(system.name(), (x + 19, 51), 15, HPos::Left)?;
        }
        Ok(())
    }

    /// Bars that stand on `ground`.
    fn panel(&self, ground: i32, groups: &[Group], systems: &[System], highest: f64) -> Result<()> {
        let line = PathElement::new(vec![(LEFT, ground), (WIDTH - LEFT, ground)], LINE);
        self.0.draw(&line).map_err(failed)?;
        let room = (WIDTH - 2 * LEFT) / i32::try_from(groups.len())?;
        let width = ((room - 30) / i32::try_from(systems.len())?).min(56);
        for (index, group) in groups.iter().enumerate() {
            let start = LEFT + room * i32::try_from(index)?;
            // Without gaps for systems that have no figure.
            let bars = i32::try_from(group.bars.len())?;
            let mut x = start + (room - width * bars) / 2;
            for &(system, value) in &group.bars {
                let top = ground - (value / highest * f64::from(TALLEST)).round() as i32;
                self.rectangle([(x + 2, top), (x + width - 2, ground)], colour(system))?;
                self.text(&short(value), (x + width / 2, top - 9), 15, HPos::Center)?;
                x += width;
            }
            let middle = start + room / 2;
            self.text(group.name, (middle, ground + 16), 16, HPos::Center)?;
        }
        Ok(())
    }

    fn rectangle(&self, corners: [(i32, i32); 2], colour: RGBColor) -> Result<()> {
        let rectangle = Rectangle::new(corners, colour.filled());
        self.0.draw(&rectangle).map_err(failed)
    }

    /// Text whose middle is at this height.
    fn text(&self, text: &str, at: (i32, i32), size: i32, from: HPos) -> Result<()> {
        let font = ("sans-serif", size).into_font().color(&INK);
        let style = font.pos(Pos::new(from, VPos::Center));
        self.0.draw(&Text::new(text, at, style)).map_err(failed)
    }
}

/// At most three characters, as there is little room above a bar.
fn short(value: f64) -> String {
    let digits = usize::from(value < 9.95);
    format!("{value:.digits$}")
}

fn failed(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("chart: {error}")
}
