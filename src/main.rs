//! argv to subcommand.

fn main() {}
