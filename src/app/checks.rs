//! What `check` says of the node, asked of the running proxy.
//!
//! Each look is a thread of its own, named `check`, with the privileges that the control
//! runtime has kept; it ends with its look, after [`LIMIT`] at the latest, and nobody waits
//! for it at the end of the process. There is one at a time.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use tokio::runtime;
use tokio::sync::{Mutex, oneshot, watch};
use tokio::time::timeout;

use crate::admin::api::{Check, Checks};
use crate::check::{Asker, Finding, Question, check};
use crate::config::Config;
use crate::node::flannel::SUBNET_FILE;

/// How long an answer holds, so that neither a page that is loaded again and again nor many
/// pages make the API server answer more often.
const HOLDS: Duration = Duration::from_secs(10);

/// How long a look may take, and so whoever asks may wait: longer than the looks at health
/// (four, of a second at most) and at the API server take.
const LIMIT: Duration = Duration::from_secs(10);

/// Looks when somebody asks, and keeps what it saw.
#[derive(Debug)]
pub(super) struct Checker {
    config: watch::Receiver<Arc<Config>>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    seen: Option<(Instant, Vec<Check>)>,
    /// A look that has not ended; dropped by its thread without an answer if it could not
    /// look.
    looking: Option<oneshot::Receiver<Vec<Check>>>,
}

impl Checker {
    pub(super) fn new(config: watch::Receiver<Arc<Config>>) -> Self {
        Self {
            config,
            state: Mutex::default(),
        }
    }

    /// What is known, not older than [`HOLDS`]; if it cannot be had, that as the only check.
    pub(super) async fn checks(&self) -> Checks {
        let mut state = self.state.lock().await;
        if let Some((at, checks)) = &state.seen
            && at.elapsed() < HOLDS
        {
            return Checks {
                checks: checks.clone(),
                age_seconds: at.elapsed().as_secs(),
            };
        }
        if state.looking.is_none() {
            match look(Arc::clone(&self.config.borrow())) {
                Ok(looking) => state.looking = Some(looking),
                Err(error) => return failed(format!("no thread to look with: {error}")),
            }
        }
        let Some(looking) = &mut state.looking else {
            return Checks::default();
        };
        let Ok(seen) = timeout(LIMIT, looking).await else {
            return failed(format!("the look takes longer than {} s", LIMIT.as_secs()));
        };
        state.looking = None;
        match seen {
            Ok(checks) => {
                state.seen = Some((Instant::now(), checks.clone()));
                Checks {
                    checks,
                    age_seconds: 0,
                }
            }
            Err(_) => failed("the look has failed".to_owned()),
        }
    }
}

/// Begins to look.
fn look(config: Arc<Config>) -> std::io::Result<oneshot::Receiver<Vec<Check>>> {
    let (sender, looking) = oneshot::channel();
    let question = Question {
        config: Config::clone(&config),
        subnet_file: PathBuf::from(SUBNET_FILE),
        asker: Asker::Proxy,
    };
    thread::Builder::new()
        .name("check".to_owned())
        .spawn(move || {
            let runtime = runtime::Builder::new_current_thread().enable_all().build();
            let checks = match runtime {
                Ok(runtime) => {
                    match runtime.block_on(async { timeout(LIMIT, check(&question)).await }) {
                        Ok(Ok(report)) => report.findings.into_iter().map(told).collect(),
                        Ok(Err(error)) => failed(format!("no netlink socket: {error}")).checks,
                        Err(_) => failed(format!("not seen within {} s", LIMIT.as_secs())).checks,
                    }
                }
                Err(error) => failed(format!("no runtime to look with: {error}")).checks,
            };
            // Who asked may have gone.
            let _ = sender.send(checks);
        })?;
    Ok(looking)
}

fn told(finding: Finding) -> Check {
    Check {
        result: finding.level.to_string(),
        name: finding.subject,
        found: finding.found,
        mend: finding.mend,
    }
}

fn failed(why: String) -> Checks {
    let check = Check {
        result: "failure".to_owned(),
        name: "check".to_owned(),
        found: why,
        mend: Some("kube-tun-proxy check".to_owned()),
    };
    Checks {
        checks: vec![check],
        age_seconds: 0,
    }
}
