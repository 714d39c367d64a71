//! `demo`, as a newcomer types it. It enters namespaces of its own, inside ours.

use std::process::{Command, Output};

use libtest_mimic::{Failed, Trial};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        Trial::test("demo::tells_its_story", tells_its_story),
        Trial::test(
            "demo::runs_a_command_on_the_master",
            runs_a_command_on_the_master,
        ),
    ]
}

fn tells_its_story() -> Result<(), Failed> {
    let output = demo(&["--once"])?;
    let text = String::from_utf8(output.stdout)?;
    let errors = String::from_utf8(output.stderr)?;
    assert_eq!(output.status.code(), Some(0), "{text}{errors}");
    assert_eq!(text.matches("\n  ok ").count(), 8, "{text}");
    for line in [
        "> 10.0.0.3: ICMP echo request",
        "10.0.0.3:443 arrives at 10.1.65.5:443 from 10.1.15.0",
        "> 10.1.65.5.443: Flags [S], length 0",
        "  -> 10.1.65.5:443                Masq    1",
    ] {
        assert!(text.contains(line), "{line:?} is not in:\n{text}");
    }
    assert!(
        !text.contains('\x1b'),
        "colours without a terminal:\n{text}"
    );
    Ok(())
}

fn runs_a_command_on_the_master() -> Result<(), Failed> {
    let output = demo(&[
        "--",
        "sh",
        "-c",
        "cat /proc/net/fib_trie; test -S $ADMIN_SOCKET && exit 7",
    ])?;
    let text = String::from_utf8(output.stdout)?;
    assert_eq!(
        output.status.code(),
        Some(7),
        "{}",
        String::from_utf8(output.stderr)?
    );
    assert!(
        text.contains("10.1.15.0") && !text.contains("10.1.65.5"),
        "{text}"
    );
    Ok(())
}

fn demo(arguments: &[&str]) -> std::io::Result<Output> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kube-tun-proxy"));
    command
        .arg("demo")
        .args(arguments)
        .env_remove("NO_COLOR")
        .output()
}
