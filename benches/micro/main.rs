//! `cargo bench --bench micro`: what is pure, without namespaces or sockets.

mod packets;
mod table;
mod tcp_turn;
mod wire;

fn main() {
    divan::main();
}
