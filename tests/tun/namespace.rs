//! Namespaces for the process and for each test.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};

use kube_tun_proxy::tun::{LinkConfig, Queues, TunError, open_queues};
use libtest_mimic::Failed;
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{getegid, geteuid};

/// Moves the process into fresh user, network and mount namespaces, as root of
/// them.
pub(crate) fn enter() {
    let (uid, gid) = (geteuid(), getegid());
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
        .expect("cannot make namespaces; sysctl kernel.unprivileged_userns_clone=1, or root");
    fs::write("/proc/self/setgroups", "deny").unwrap();
    fs::write("/proc/self/uid_map", format!("0 {uid} 1")).unwrap();
    fs::write("/proc/self/gid_map", format!("0 {gid} 1")).unwrap();
}

/// Runs a test on a new thread in a new network namespace, with a runtime for
/// its netlink.
pub(crate) fn run_isolated(test: fn()) -> Result<(), Failed> {
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).map(|()| catch_unwind(AssertUnwindSafe(test)))
    });
    // The thread has caught the test's panic, so it has an outcome of its own.
    let outcome = thread
        .join()
        .map_err(|_| "the thread of the test panicked")??;
    outcome.map_err(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        text.unwrap_or_else(|| "panicked".to_owned()).into()
    })
}

/// Runs netlink work on this thread and so in its namespace.
pub(crate) fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(work)
}

/// Unwraps, or fails with the error and its mend.
#[track_caller]
pub(crate) fn ok<T>(result: Result<T, TunError>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => panic!("{error} ({error:?}); {}", error.mend().unwrap_or_default()),
    }
}

/// The device `svc-tun0`.
pub(crate) fn open(count: usize) -> Queues {
    ok(open_queues("svc-tun0", count))
}

/// The defaults and these routes.
pub(crate) fn config(queues: &Queues, routes: &[&str]) -> LinkConfig {
    LinkConfig {
        service_routes: routes.iter().map(|route| route.parse().unwrap()).collect(),
        ..LinkConfig::new(&queues.name, queues.index)
    }
}

/// Sets a value below /proc/sys/net, in the namespace of this thread.
pub(crate) fn sysctl(path: &str, value: &str) {
    fs::write(format!("/proc/sys/net/{path}"), value).unwrap();
}
