//! Tests that need a process of their own: this program again, in the namespace
//! of the test that starts it.

use std::env;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::process::{Child, Command, ExitCode, Stdio};

use kube_tun_proxy::tun::{Link, TunError, open_queues};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::namespace::{block_on, config, ok, open};
use crate::netlink;

/// Names the part that a child has to play.
const PART: &str = "TUN_TEST_PART";

/// Plays a child's part, if this process is one.
pub(crate) fn run_if_child() -> Option<ExitCode> {
    match env::var(PART).ok()?.as_str() {
        "hold" => hold(),
        "no-capability" => {
            // Root of a user namespace that does not own the network namespace.
            unshare(CloneFlags::CLONE_NEWUSER).unwrap();
            report_open();
        }
        "no-driver" => {
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            mount(
                Some("none"),
                "/dev/net",
                Some("tmpfs"),
                MsFlags::empty(),
                None::<&str>,
            )
            .unwrap();
            report_open();
        }
        part => panic!("no such part: {part}"),
    }
    Some(ExitCode::SUCCESS)
}

/// Opens and configures, says so, and stays until standard input ends.
fn hold() {
    let queues = open(2);
    let routes = ["10.0.0.0/16", "fd00:10::/112"];
    let link = block_on(async { ok(Link::configure(config(&queues, &routes)).await) });
    say("ready");
    io::stdin().read_to_end(&mut Vec::new()).unwrap();
    drop((link, queues));
}

/// Says what opening came to: the variant's name, the error and its mend.
fn report_open() {
    match open_queues("svc-tun0", 1) {
        Ok(_) => say("opened"),
        Err(error) => {
            let variant = if matches!(error, TunError::NoCapability { .. }) {
                "NoCapability"
            } else if matches!(error, TunError::NoDriver { .. }) {
                "NoDriver"
            } else {
                "another error"
            };
            say(&format!(
                "{variant}: {error}; {}",
                error.mend().unwrap_or_default()
            ));
        }
    }
}

fn say(line: &str) {
    io::stdout()
        .write_all(format!("{line}\n").as_bytes())
        .unwrap();
}

/// Starts a child in this thread's namespaces and reads its first line.
fn start(part: &str) -> (Child, String) {
    let mut child = Command::new(env::current_exe().unwrap())
        .env(PART, part)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    (child, line)
}

pub(crate) fn killed_process_leaves_nothing() {
    let (mut child, line) = start("hold");
    assert_eq!(line, "ready\n");
    assert_eq!(netlink::device_names(), ["lo", "svc-tun0"]);
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(netlink::device_names(), ["lo"]);
    // The next start finds nothing in its way.
    let queues = open(1);
    block_on(async { ok(Link::configure(config(&queues, &["10.0.0.0/16"])).await) });
}

pub(crate) fn without_capability() {
    let (mut child, line) = start("no-capability");
    assert!(child.wait().unwrap().success());
    assert!(
        line.starts_with("NoCapability: device svc-tun0: making a TUN device needs CAP_NET_ADMIN"),
        "{line}"
    );
    assert!(line.contains("setcap cap_net_admin+ep"), "{line}");
}

pub(crate) fn without_driver() {
    let (mut child, line) = start("no-driver");
    assert!(child.wait().unwrap().success());
    assert!(
        line.starts_with("NoDriver: cannot open /dev/net/tun"),
        "{line}"
    );
    assert!(line.contains("modprobe tun"), "{line}");
}
