use super::*;

#[test]
fn the_families_read_alike() {
    assert_eq!(
        digits_as_ipv6(Ipv4Addr::new(10, 1, 65, 5)).to_string(),
        "fd00:10:1:65::5"
    );
    let node = NodeSpec::new(
        "n",
        Ipv4Addr::new(172, 100, 101, 5),
        ipv4_net([10, 1, 15, 0], 24),
    );
    assert_eq!(node.vtep().to_string(), "10.1.15.0");
    assert_eq!(node.vtep6().to_string(), "fd00:10:1:15::");
    let (ipv4, ipv6) = node.addresses_of(&PodSpec::new("p", 110));
    assert_eq!(ipv4.to_string(), "10.1.15.110");
    assert_eq!(ipv6.to_string(), "fd00:10:1:15::110");
}

#[test]
fn a_plan_that_makes_no_sense_is_refused_before_anything_is_made() {
    let refused = |plan: ClusterBuilder| plan.check().unwrap_err().to_string();
    let seed = ClusterBuilder::seed;
    assert!(seed().check().is_ok());
    assert!(refused(seed().pod("node2", PodSpec::new("pod-5", 9))).contains("pod-5 is used twice"));
    assert!(refused(seed().pod("node2", PodSpec::new("x", 5))).contains("10.1.65.5 is used twice"));
    assert!(refused(seed().pod("node2", PodSpec::new("x", 1))).contains("10.1.65.1 is used twice"));
    assert!(
        refused(seed().pod("node2", PodSpec::new("x", 300))).contains("is not in 10.1.65.0/24")
    );
    assert!(refused(seed().pod("node9", PodSpec::new("x", 5))).contains("node9"));
}
