//! `ready`: whether the proxy that runs here is ready, for a probe that runs a command.

use clap::Args;

use super::{Failure, Proxy, fetch, print};
use crate::admin::api::{STATUS, Status};

#[derive(Args, Debug)]
pub(super) struct ReadyArgs {
    /// Count only a proxy of this generation, or of a higher one
    ///
    /// While pods of two generations run on a node, the other one may be who answers.
    #[arg(long, value_name = "N", env = "KUBE_TUN_PROXY_GENERATION")]
    generation: Option<u64>,

    #[command(flatten)]
    proxy: Proxy,
}

pub(super) fn run(args: &ReadyArgs) -> Result<(), Failure> {
    let status: Status = fetch(&args.proxy.admin_socket, STATUS)?;
    match not_ready(&status, args.generation) {
        None => print("ready\n"),
        Some(message) => Err(Failure {
            status: super::Status::Failed,
            message,
            mend: None,
        }),
    }
}

/// Why that is no ready proxy.
fn not_ready(status: &Status, wanted: Option<u64>) -> Option<String> {
    if let Some(wanted) = wanted
        && status.generation.is_none_or(|its| its < wanted)
    {
        let its = match status.generation {
            Some(its) => format!("of generation {its}"),
            None => "without a generation".to_owned(),
        };
        return Some(format!("the proxy that runs here is still one {its}"));
    }
    (!status.health.ready).then(|| format!("not ready: {}", status.health.waiting_for.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_proxy_does_not_count() {
        let mut status = Status::default();
        status.health.waiting_for = vec!["this".to_owned(), "that".to_owned()];
        let told = not_ready(&status, None).unwrap();
        assert_eq!(told, "not ready: this, that");
        status.health.ready = true;
        assert_eq!(not_ready(&status, None), None);
        assert!(not_ready(&status, Some(1)).is_some());
        status.generation = Some(4);
        assert_eq!(not_ready(&status, Some(3)), None);
        assert_eq!(not_ready(&status, Some(4)), None);
        let told = not_ready(&status, Some(5)).unwrap();
        assert_eq!(
            told,
            "the proxy that runs here is still one of generation 4"
        );
    }
}
