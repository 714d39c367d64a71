//! CPU time and memory, as /proc tells them.

use std::fs;

use anyhow::{Context, Result};
use nix::unistd::{SysconfVar, sysconf};
use serde::{Deserialize, Serialize};

/// CPU time in seconds.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct CpuTime {
    /// Of the processes asked about, in user and kernel mode.
    pub(crate) processes: f64,
    /// Of the whole machine: whatever is neither idle nor waiting for a disk.
    /// Other work on the machine counts too.
    pub(crate) machine: f64,
}

impl CpuTime {
    /// What went by since `earlier`.
    pub(crate) fn since(self, earlier: Self) -> Self {
        Self {
            processes: self.processes - earlier.processes,
            machine: self.machine - earlier.machine,
        }
    }
}

/// CPU time so far of some processes, and of the machine.
pub(crate) fn cpu_time(processes: &[u32]) -> Result<CpuTime> {
    let per_second = sysconf(SysconfVar::CLK_TCK)?.context("no clock tick")? as f64;
    let mut ticks = 0;
    for pid in processes {
        let path = format!("/proc/{pid}/stat");
        let text = fs::read_to_string(&path).with_context(|| path.clone())?;
        // The name, in brackets, may hold anything (proc_pid_stat(5)).
        let behind_name = text.rsplit(") ").next().unwrap_or_default();
        ticks += fields(behind_name, 11, 2);
    }
    let text = fs::read_to_string("/proc/stat").context("/proc/stat")?;
    let total = text.lines().next().unwrap_or_default();
    let numbers = total.strip_prefix("cpu ").context("/proc/stat: no cpu")?;
    // user nice system; idle and iowait are left out; irq softirq steal.
    let busy = fields(numbers, 0, 3) + fields(numbers, 5, 2);
    Ok(CpuTime {
        processes: ticks as f64 / per_second,
        machine: busy as f64 / per_second,
    })
}

/// Resident memory of processes in bytes.
pub(crate) fn resident(processes: &[u32]) -> Result<u64> {
    let mut sum = 0;
    for pid in processes {
        let path = format!("/proc/{pid}/status");
        let text = fs::read_to_string(&path).with_context(|| path.clone())?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB"));
        let kilobytes: u64 = kilobytes.with_context(|| path.clone())?.trim().parse()?;
        sum += kilobytes * 1024;
    }
    Ok(sum)
}

fn fields(text: &str, skip: usize, take: usize) -> u64 {
    let words = text.split_whitespace().skip(skip).take(take);
    words.filter_map(|word| word.parse::<u64>().ok()).sum()
}
