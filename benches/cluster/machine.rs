//! What the figures were measured on.

use std::fmt;
use std::fs;

use jiff::Timestamp;
use nix::sys::utsname::uname;
use serde::Serialize;

/// The machine, and what of it matters here.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Machine {
    pub(crate) date: String,
    pub(crate) processor: String,
    pub(crate) processors: usize,
    pub(crate) memory_gib: f64,
    pub(crate) kernel: String,
    pub(crate) load_average: String,
    pub(crate) congestion_control: &'static str,
    pub(crate) open_files: u64,
}

impl Machine {
    /// As it is now.
    pub(crate) fn look(congestion_control: &'static str, open_files: u64) -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let value = |text: &str, key: &str| {
            let line = text.lines().find(|line| line.starts_with(key));
            let value = line.and_then(|line| line.split_once(':'));
            value.map_or_else(String::new, |(_, value)| value.trim().to_owned())
        };
        let kilobytes = value(&read("/proc/meminfo"), "MemTotal");
        let kilobytes: f64 = kilobytes
            .trim_end_matches(" kB")
            .parse()
            .unwrap_or_default();
        let load = read("/proc/loadavg");
        let load: Vec<&str> = load.split_whitespace().take(3).collect();
        Self {
            date: Timestamp::now().strftime("%Y-%m-%d %H:%M UTC").to_string(),
            processor: value(&read("/proc/cpuinfo"), "model name"),
            processors: std::thread::available_parallelism().map_or(0, usize::from),
            memory_gib: (kilobytes / f64::from(1 << 20)).round(),
            kernel: uname().map_or_else(
                |_| String::new(),
                |name| name.release().to_string_lossy().into_owned(),
            ),
            load_average: load.join(" "),
            congestion_control,
            open_files,
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}; {} x {}, {} GiB, Linux {}; load average at the start {}; congestion control in \
             every namespace: {}; at most {} open files in a process",
            self.date,
            self.processors,
            self.processor,
            self.memory_gib,
            self.kernel,
            self.load_average,
            self.congestion_control,
            self.open_files
        )
    }
}
