//! The demo's text: short, indented, in colour on a terminal.

use std::env;
use std::io::{self, IsTerminal, Write};

use crate::lab::capture::Packet;

const BOLD: &str = "1";
const DIM: &str = "2";
const RED: &str = "31";
const GREEN: &str = "32";
const CYAN: &str = "36";

/// Standard output.
pub(super) struct Console {
    colour: bool,
}

impl Console {
    /// In colour on a terminal, unless NO_COLOR is set (no-color.org).
    pub(super) fn of_stdout() -> Self {
        let unwanted = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self {
            colour: io::stdout().is_terminal() && !unwanted,
        }
    }

    /// A headline.
    pub(super) fn title(&mut self, text: &str) -> io::Result<()> {
        self.line(&format!("\n{}", self.paint(BOLD, text)))
    }

    /// A sentence.
    pub(super) fn say(&mut self, text: &str) -> io::Result<()> {
        self.line(&format!("  {text}"))
    }

    /// What was done, as one would type it.
    pub(super) fn command(&mut self, text: &str) -> io::Result<()> {
        self.line(&format!("    {}", self.paint(CYAN, text)))
    }

    /// A packet as it passed an interface.
    pub(super) fn wire(&mut self, interface: &str, packet: &Packet) -> io::Result<()> {
        self.line(&format!(
            "    {}",
            self.paint(DIM, &format!("{interface:<10} {packet}"))
        ))
    }

    /// Text that something else printed.
    pub(super) fn quote(&mut self, text: &str) -> io::Result<()> {
        text.lines()
            .try_for_each(|line| self.line(&format!("    {line}")))
    }

    /// How it came out.
    pub(super) fn verdict(&mut self, result: &Result<String, String>) -> io::Result<()> {
        match result {
            Ok(text) => self.line(&format!("  {} {text}", self.paint(GREEN, "ok"))),
            Err(text) => self.line(&format!("  {} {text}", self.paint(RED, "FAILED"))),
        }
    }

    /// An empty line.
    pub(super) fn gap(&mut self) -> io::Result<()> {
        self.line("")
    }

    fn paint(&self, style: &str, text: &str) -> String {
        if self.colour {
            format!("\x1b[{style}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    fn line(&mut self, text: &str) -> io::Result<()> {
        let mut out = io::stdout().lock();
        match writeln!(out, "{text}").and_then(|()| out.flush()) {
            // A reader that has gone, as `head` does, is no failure.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}
