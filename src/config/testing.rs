//! Configurations for tests.

use clap::Parser;

use super::{Config, Settings};

#[derive(Debug, Parser)]
#[command(name = "run")]
struct Run {
    #[command(flatten)]
    settings: Settings,
}

/// The options of `run` that these words are.
pub(crate) fn settings(words: &[&str]) -> Result<Settings, clap::Error> {
    let words = ["run"].iter().chain(words);
    Run::try_parse_from(words).map(|run| run.settings)
}

/// The configuration that `run` makes of these words, beside manifests.
pub(crate) fn config(words: &[&str]) -> Config {
    let all = [&["--manifests", env!("CARGO_MANIFEST_DIR")], words].concat();
    settings(&all).unwrap().load().unwrap().config
}
