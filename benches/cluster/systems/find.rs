//! Which systems this machine has, and what brings the others.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Serialize;

use super::{System, kube_tun_proxy_itself};

/// A system that is there.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Found {
    /// The program; empty where there is none.
    pub(crate) program: PathBuf,
    /// What it calls itself.
    pub(crate) version: String,
}

impl System {
    /// Looks for the program it needs; else what to type for it.
    pub(crate) fn find(self) -> Result<Found, &'static str> {
        let asked = |name: &str, argument| {
            let program = program(name)?;
            let version = first_line(&program, argument);
            Some(Found { program, version })
        };
        // The examples do not tell their version: it is the one to install.
        let example = |name: &str, version: &str| {
            Some(Found {
                program: program(name)?,
                version: version.to_owned(),
            })
        };
        match self {
            Self::Direct => Some(Found {
                program: PathBuf::new(),
                version: "no proxy".to_owned(),
            }),
            Self::KubeTunProxy => Some(Found {
                program: kube_tun_proxy_itself::BINARY.into(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
            }),
            Self::KernelNat => asked("nft", "--version"),
            Self::Haproxy => asked("haproxy", "-v"),
            Self::Ipstack => example("tun", "ipstack 1.0.1, example tun (MSS 1460, 64 KiB MTU)"),
            Self::NetstackForward => example("forward", "netstack-smoltcp 0.2.4, example forward"),
            Self::NetstackOffload => example(
                "forward-offload-linux",
                "netstack-smoltcp 0.2.4, example forward-offload-linux",
            ),
            Self::Pasta => asked("pasta", "--version"),
        }
        .ok_or_else(|| self.brought_by())
    }

    fn brought_by(self) -> &'static str {
        match self {
            Self::Direct | Self::KubeTunProxy => "nothing",
            Self::KernelNat => "apt-get install nftables",
            Self::Haproxy => "apt-get install haproxy",
            Self::Ipstack => {
                "CARGO_PROFILE_RELEASE_OPT_LEVEL=3 cargo install ipstack --version 1.0.1 \
                 --example tun --locked"
            }
            Self::NetstackForward | Self::NetstackOffload => {
                "cargo install netstack-smoltcp --version 0.2.4 --example forward \
                 --example forward-offload-linux --locked"
            }
            Self::Pasta => "apt-get install passt",
        }
    }
}

/// A program in PATH, where administrators have theirs, or where cargo installs.
fn program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let cargo = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")));
    env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .chain(cargo.map(|cargo| cargo.join("bin")))
        .map(|place| place.join(name))
        .find(|program| program.is_file())
}

fn first_line(program: &Path, argument: &str) -> String {
    let output = Command::new(program).arg(argument).output();
    let text = output.map(|output| output.stdout).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    text.lines().next().unwrap_or("unknown").trim().to_owned()
}
