use super::*;

#[test]
fn sizes_are_kept_apart_and_the_limit_holds() {
    let mut pool = EndpointPool::new(2);
    let full = pool.take(RingSize::FULL);
    let small: Vec<TcpEndpoint> = (0..3).map(|_| pool.take(RingSize::SMALL)).collect();
    assert!(pool.give(full));
    let kept: Vec<bool> = small
        .into_iter()
        .map(|endpoint| pool.give(endpoint))
        .collect();
    assert_eq!(kept, [true, true, false]);
    for rings in [
        RingSize::FULL,
        RingSize::SMALL,
        RingSize::SMALL,
        RingSize::SMALL,
    ] {
        assert_eq!(pool.take(rings).rings(), rings);
    }
    assert!(pool.full.is_empty() && pool.small.is_empty());
}
