//! What stands while the tests run.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::load::Window;
use crate::systems::{Found, Site, System};

/// How long a run takes.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Times {
    /// Under load before anything counts.
    pub(crate) warm_up: Duration,
    /// That counts.
    pub(crate) length: Duration,
}

/// The clusters, and how long to measure.
pub(crate) struct Bench {
    pub(crate) congestion_control: &'static str,
    pub(crate) times: Times,
    pub(crate) quick: bool,
    /// Files that a process may have open.
    pub(crate) open_files: u64,
    /// The systems that are there.
    pub(crate) found: BTreeMap<System, Found>,
    /// Clusters with more than one service, for the test that is about that.
    larger: BTreeMap<(System, usize), Result<Site>>,
}

impl Bench {
    /// Nothing stands yet.
    pub(crate) fn new(
        congestion_control: &'static str,
        times: Times,
        quick: bool,
        open_files: u64,
    ) -> Self {
        Self {
            congestion_control,
            times,
            quick,
            open_files,
            found: BTreeMap::new(),
            larger: BTreeMap::new(),
        }
    }

    /// Builds a cluster with a system that was found.
    pub(crate) fn build(&self, system: System, services: usize) -> Result<Site> {
        let found = self.found.get(&system).context("not installed")?;
        Site::build(system, found, self.congestion_control, services).with_context(|| system.name())
    }

    /// Builds one with many services, to stand until [`Self::clear_larger`]; not
    /// if the system is not there.
    pub(crate) fn build_larger(&mut self, system: System, services: usize) {
        if self.found.contains_key(&system) {
            let site = self.build(system, services);
            self.larger.insert((system, services), site);
        }
    }

    /// One with many services.
    pub(crate) fn larger(&self, system: System, services: usize) -> Result<&Site> {
        let site = self.larger.get(&(system, services));
        match site.with_context(|| format!("no cluster with {services} services"))? {
            Ok(site) => Ok(site),
            Err(error) => bail!("{services} services: {error:#}"),
        }
    }

    /// Takes those with many services down.
    pub(crate) fn clear_larger(&mut self) {
        self.larger.clear();
    }

    /// The window of a run on a site.
    pub(crate) fn window(&self, site: &Site) -> Window {
        Window {
            warm_up: self.times.warm_up,
            length: self.times.length,
            processes: site.processes(),
        }
    }
}
