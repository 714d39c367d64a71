//! The TUN on a real kernel, in network namespaces of its own.
//!
//! `main` moves the process into a fresh user, network and mount namespace while
//! it has one thread. Every test then runs on a thread with a network namespace
//! of its own, so that they cannot see each other.

#![expect(
    clippy::unwrap_used,
    reason = "with `harness = false` clippy does not recognise test code"
)]

mod batch;
mod children;
mod conflicts;
mod namespace;
mod netlink;
mod packets;
mod set_up;
mod traffic;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

fn main() -> ExitCode {
    // A test may start this program again, to be killed or to run without
    // some right.
    if let Some(code) = children::run_if_child() {
        return code;
    }
    namespace::enter();
    let mut arguments = Arguments::from_args();
    // One at a time: a child that one test starts holds, from fork to exec, the
    // queues of all others, and their devices would not go when they should.
    arguments.test_threads = Some(1);
    let tests: [(&str, fn()); _] = [
        (
            "datagram_v4_is_read_with_its_checksum_open",
            traffic::datagram_v4_is_read,
        ),
        (
            "datagram_v6_is_read_with_its_checksum_open",
            traffic::datagram_v6_is_read,
        ),
        (
            "reply_v4_passes_a_strict_reverse_path_filter",
            traffic::reply_v4_is_received,
        ),
        ("reply_v6_is_received", traffic::reply_v6_is_received),
        (
            "tcp_v4_super_packets_pass_both_ways",
            traffic::tcp_v4_super_packets,
        ),
        (
            "tcp_v6_super_packets_pass_both_ways",
            traffic::tcp_v6_super_packets,
        ),
        (
            "udp_super_packet_is_read_whole",
            traffic::udp_super_packet_is_read,
        ),
        (
            "malformed_frames_are_refused",
            traffic::malformed_frames_are_refused,
        ),
        ("frames_arrive_in_order", batch::frames_arrive_in_order),
        ("one_bad_frame_is_refused", batch::one_bad_frame_is_refused),
        ("all_frames_are_refused", batch::all_frames_are_refused),
        ("room_that_is_not_used", batch::room_that_is_not_used),
        ("every_queue_is_readable", traffic::every_queue_is_readable),
        ("device_is_as_configured", set_up::device_is_as_configured),
        ("device_is_quiet", set_up::device_is_quiet),
        (
            "addresses_serve_service_routes_only",
            set_up::addresses_serve_service_routes_only,
        ),
        (
            "own_address_v4_replaces_the_default",
            set_up::own_address_replaces_the_default,
        ),
        ("routes_come_and_go", set_up::routes_come_and_go),
        ("without_ipv6_only_ipv6_is_missing", set_up::without_ipv6),
        (
            "name_pattern_is_filled_in",
            set_up::name_pattern_is_filled_in,
        ),
        (
            "device_goes_with_its_last_queue",
            set_up::device_goes_with_its_last_queue,
        ),
        (
            "descriptor_can_be_handed_over",
            set_up::descriptor_can_be_handed_over,
        ),
        (
            "deleted_device_is_an_error",
            set_up::deleted_device_is_an_error,
        ),
        (
            "killed_process_leaves_nothing",
            children::killed_process_leaves_nothing,
        ),
        ("without_capability_says_so", children::without_capability),
        ("without_driver_says_so", children::without_driver),
        ("name_in_use_is_an_error", conflicts::name_in_use),
        (
            "route_of_the_same_prefix_is_a_conflict",
            conflicts::same_prefix,
        ),
        (
            "route_for_a_part_is_a_conflict",
            conflicts::part_of_the_prefix,
        ),
        ("blackhole_is_a_conflict", conflicts::blackhole),
        ("wider_route_is_no_conflict", conflicts::wider_route),
        (
            "node_address_in_the_range_is_no_conflict",
            conflicts::node_address_in_the_range,
        ),
        (
            "host_route_elsewhere_is_a_conflict",
            conflicts::host_route_elsewhere,
        ),
        (
            "rule_to_another_table_is_found",
            conflicts::rule_to_another_table,
        ),
        ("address_in_use_is_an_error", conflicts::address_in_use),
        (
            "address_in_a_service_range_is_an_error",
            conflicts::address_in_service_range,
        ),
    ];
    let trials = tests
        .into_iter()
        .map(|(name, test)| Trial::test(name, move || namespace::run_isolated(test)))
        .collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}
