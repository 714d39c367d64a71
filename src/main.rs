//! argv to subcommand: all of it is in [`kube_tun_proxy::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    kube_tun_proxy::cli::main()
}
