//! The program as it is called: exit status, and what goes to which stream.

#![expect(clippy::unwrap_used, reason = "a helper of a test fails the test")]

use std::fs;
use std::process::{Command, Output};

use kube_tun_proxy::node::privileges::{Capabilities, confine};

fn call(words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kube-tun-proxy"))
        .args(words)
        .env_remove("RUST_LOG")
        .env_remove("KUBERNETES_SERVICE_HOST")
        .output()
        .unwrap()
}

/// Ends with `status`, says all of `parts` on standard error and nothing on
/// standard output.
fn fails(words: &[&str], status: i32, parts: &[&str]) {
    let output = call(words);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(status), "{words:?}: {said}");
    assert_eq!(output.stdout, b"", "{words:?}");
    for part in parts {
        assert!(said.contains(part), "{words:?}: {said:?} lacks {part:?}");
    }
}

#[test]
fn a_capture_needs_its_capability() {
    std::thread::spawn(|| {
        confine(&Capabilities::none()).unwrap();
        let words = ["capture", "-w", "/dev/null"];
        fails(
            &words,
            3,
            &["error: no packet socket without CAP_NET_RAW", "mend: "],
        );
    })
    .join()
    .unwrap();
    fails(&["capture", "--service", "web"], 2, &["is no service"]);
    fails(&["capture", "--count", "0"], 2, &["--count"]);
}

#[test]
fn wrong_usage_names_flag_and_value() {
    let here = env!("CARGO_MANIFEST_DIR");
    fails(&[], 2, &["Usage:", "run", "list"]);
    fails(&["walk"], 2, &["walk"]);
    fails(
        &["run"],
        2,
        &[
            "error: neither --manifests nor --kubeconfig is given",
            "mend: ",
        ],
    );
    fails(
        &["run", "--manifests", here, "--kubeconfig", here],
        2,
        &["--manifests", "cannot be used with", "--kubeconfig"],
    );
    let broken = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    fails(
        &["run", "--kubeconfig", broken],
        2,
        &["error: --kubeconfig '", "Cargo.toml' cannot be used: "],
    );
    fails(
        &[
            "run",
            "--manifests",
            "/no/such",
            "--service-cidr=10.0.0.0/16",
        ],
        2,
        &["error: --manifests '/no/such' cannot be read: No such file"],
    );
    fails(
        &["run", "--manifests", here, "--service-cidr=10.0.0.0/33"],
        2,
        &["--service-cidr", "10.0.0.0/33", "is no network"],
    );
    fails(
        &["list", "-o", "xml"],
        2,
        &["--output", "xml", "table, json"],
    );
}

#[test]
fn a_wrong_filter_for_the_log_is_wrong_usage() {
    let here = env!("CARGO_MANIFEST_DIR");
    let output = Command::new(env!("CARGO_BIN_EXE_kube-tun-proxy"))
        .args(["run", "--manifests", here, "--service-cidr=10.0.0.0/16"])
        .env("RUST_LOG", "info,=[")
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    for part in [
        "error: invalid value 'info,=[' for '--log-level",
        "RUST_LOG",
    ] {
        assert!(said.contains(part), "{said:?} lacks {part:?}");
    }
}

#[test]
fn help_and_version_are_data() {
    for words in [
        &["--help"][..],
        &["run", "--help"],
        &["list", "-h"],
        &["--version"],
    ] {
        let output = call(words);
        assert_eq!(output.status.code(), Some(0), "{words:?}");
        assert!(!output.stdout.is_empty(), "{words:?}");
        assert_eq!(output.stderr, b"", "{words:?}");
    }
}

#[test]
fn completions_and_pages_are_made_of_the_command_line() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let output = call(&["completions", shell]);
        assert_eq!(output.status.code(), Some(0), "{shell}");
        let script = String::from_utf8(output.stdout).unwrap();
        for word in ["connect-attempts", "log-level", "explain"] {
            assert!(script.contains(word), "{shell} lacks {word}");
        }
    }
    fails(&["completions", "csh"], 2, &["csh", "bash"]);

    let page = call(&["man"]);
    assert_eq!(page.status.code(), Some(0));
    assert!(
        String::from_utf8(page.stdout)
            .unwrap()
            .contains(".TH kube-tun-proxy 1")
    );
    let directory = tempfile::tempdir().unwrap();
    let into = directory.path().join("man1");
    let written = call(&["man", into.to_str().unwrap()]);
    assert_eq!(written.status.code(), Some(0));
    assert_eq!(written.stdout, b"");
    let run = fs::read_to_string(into.join("kube-tun-proxy-run.1")).unwrap();
    assert!(run.contains("connect\\-attempts"));
}

#[test]
fn list_without_a_proxy_says_what_is_wrong() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("admin.sock");
    let path = path.to_str().unwrap();
    let said = [
        "error: no proxy answers on ",
        path,
        "is `kube-tun-proxy run` running",
    ];
    fails(&["list", "--admin-socket", path], 1, &said);
    fails(&["list", "--flows", "--admin-socket", path], 1, &said);
}

/// Listeners are opened before the device. Should that change, the name of a
/// device that is always there still keeps these from touching the network.
#[test]
fn what_is_taken_ends_the_start() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("admin.sock");
    let socket = socket.to_str().unwrap();
    let run = [
        "run",
        "--manifests",
        env!("CARGO_MANIFEST_DIR"),
        "--service-cidr=10.0.0.0/16",
        "--tun-name=lo",
        "--admin-socket",
        socket,
        "--healthz-bind-address",
    ];

    let mut words = run.to_vec();
    words.push(&address);
    let said = format!("error: --healthz-bind-address {address}: cannot listen");
    fails(&words, 1, &[&said, "mend: "]);
    assert!(!fs::exists(socket).unwrap());

    fs::write(socket, "precious").unwrap();
    let mut words = run.to_vec();
    words.push("127.0.0.1:0");
    fails(
        &words,
        1,
        &["--admin-socket", socket, "no socket", "mend: "],
    );
    assert_eq!(fs::read_to_string(socket).unwrap(), "precious");
}
