use tokio::sync::mpsc;

use super::*;
use crate::admin::readiness::Readiness;
use crate::service::{Protocol, ServicePortName};

/// Notes what is asked for, and refuses some of it.
#[derive(Clone)]
struct Kernel {
    said: mpsc::Sender<String>,
    refused: Arc<Mutex<BTreeSet<IpNet>>>,
    used: Arc<Mutex<BTreeSet<IpAddr>>>,
}

impl RouteTable for Kernel {
    type Error = &'static str;

    async fn add(&self, route: IpNet) -> Result<(), &'static str> {
        self.said.try_send(format!("+{route}")).unwrap();
        if self.refused.lock().unwrap().contains(&route) {
            return Err("in the way");
        }
        Ok(())
    }

    async fn remove(&self, route: IpNet) -> Result<(), &'static str> {
        self.said.try_send(format!("-{route}")).unwrap();
        Ok(())
    }

    async fn used(&self, routes: Vec<IpNet>) -> BTreeSet<IpAddr> {
        let mut used = self.used.lock().unwrap().clone();
        used.retain(|ip| routes.iter().any(|route| route.contains(ip)));
        used
    }
}

struct Fixture {
    kernel: Kernel,
    said: mpsc::Receiver<String>,
    wanted: Wanted,
    cidrs: watch::Sender<ServiceCidrs>,
    readiness: Readiness,
    _keeping: tokio::task::JoinSet<()>,
}

impl Fixture {
    fn start(cidrs: ServiceCidrs) -> Self {
        Self::with(Wanted::default(), cidrs)
    }

    fn with(wanted: Wanted, cidrs: ServiceCidrs) -> Self {
        let (said, receiver) = mpsc::channel(1_000);
        let kernel = Kernel {
            said,
            refused: Arc::default(),
            used: Arc::default(),
        };
        let (cidrs, ranges) = watch::channel(cidrs);
        let readiness = Readiness::new();
        let blocker = readiness.block("routes");
        let mut tasks = tokio::task::JoinSet::new();
        let retry = Duration::from_millis(20);
        let keeping = keep(
            kernel.clone(),
            wanted.clone(),
            ranges,
            blocker,
            retry,
            Vec::new(),
            BTreeSet::new(),
        );
        tasks.spawn(keeping);
        Self {
            kernel,
            said: receiver,
            wanted,
            cidrs,
            readiness,
            _keeping: tasks,
        }
    }

    /// What is said until nothing more is to be done. Nothing here waits for
    /// anything but its turn, and turns go round.
    async fn said(&mut self) -> Vec<String> {
        for _ in 0..50 {
            tokio::task::yield_now().await;
        }
        std::iter::from_fn(|| self.said.try_recv().ok()).collect()
    }

    fn refuse(&self, routes: &[&str]) {
        let routes = routes.iter().map(|route| route.parse().unwrap());
        *self.kernel.refused.lock().unwrap() = routes.collect();
    }
}

fn known(nets: &[&str]) -> ServiceCidrs {
    ServiceCidrs::Known(nets.iter().map(|net| net.parse().unwrap()).collect())
}

fn address(ip: &str, port: u16) -> VirtualAddress {
    VirtualAddress {
        ip: ip.parse().unwrap(),
        port,
        protocol: Protocol::Tcp,
    }
}

fn spec(ip: &str, port: u16) -> VirtualServerSpec {
    let name = ServicePortName {
        namespace: "shop".into(),
        name: "cart".into(),
        port: "".into(),
        protocol: Protocol::Tcp,
    };
    VirtualServerSpec::new(address(ip, port), Arc::new(name))
}

fn upsert(ip: &str, port: u16) -> Change {
    Change::Upsert(spec(ip, port))
}

fn external(ip: &str) -> Change {
    Change::Upsert(VirtualServerSpec {
        exposure: Exposure::ExternalIp,
        ..spec(ip, 80)
    })
}

#[tokio::test]
async fn nothing_is_routed_before_ranges_or_services_are_known() {
    let mut fixture = Fixture::start(ServiceCidrs::Unknown);
    fixture.wanted.programmed(&[upsert("10.0.0.7", 80)], false);
    assert!(fixture.said().await.is_empty());
    assert_eq!(fixture.readiness.blockers(), ["routes"]);

    fixture.cidrs.send_replace(known(&["10.0.0.0/16"]));
    assert_eq!(fixture.said().await, ["+10.0.0.0/16"]);
    assert_eq!(fixture.readiness.blockers(), ["routes"]);
    fixture.wanted.programmed(&[upsert("10.0.0.8", 80)], true);
    assert!(fixture.said().await.is_empty());
    assert!(fixture.readiness.blockers().is_empty());
}

#[tokio::test]
async fn without_ranges_each_address_has_a_route_while_it_has_a_service() {
    let mut fixture = Fixture::start(ServiceCidrs::Unavailable);
    let some = [upsert("10.0.0.7", 80), upsert("10.0.0.7", 443)];
    fixture.wanted.programmed(&some, true);
    assert_eq!(fixture.said().await, ["+10.0.0.7/32"]);
    assert!(fixture.readiness.blockers().is_empty());

    let remove = |port| [Change::Remove(address("10.0.0.7", port))];
    fixture.wanted.programmed(&remove(80), false);
    assert!(fixture.said().await.is_empty());
    fixture.wanted.programmed(&[upsert("fd00::7", 80)], false);
    fixture.wanted.programmed(&remove(443), false);
    assert_eq!(fixture.said().await, ["+fd00::7/128", "-10.0.0.7/32"]);
}

#[tokio::test]
async fn ranges_are_followed_and_what_is_outside_has_its_own() {
    let mut fixture = Fixture::start(known(&["10.0.0.0/16"]));
    let some = [upsert("10.0.0.7", 80), upsert("10.1.0.9", 80)];
    fixture.wanted.programmed(&some, true);
    assert_eq!(fixture.said().await, ["+10.0.0.0/16", "+10.1.0.9/32"]);

    // The wider takes the place of the narrower, added before that is removed.
    fixture
        .cidrs
        .send_replace(known(&["10.0.0.0/12", "10.0.0.0/16"]));
    assert_eq!(
        fixture.said().await,
        ["+10.0.0.0/12", "-10.0.0.0/16", "-10.1.0.9/32"]
    );
    // A range that goes away leaves none of its services behind.
    fixture.cidrs.send_replace(known(&[]));
    assert_eq!(
        fixture.said().await,
        ["+10.0.0.7/32", "+10.1.0.9/32", "-10.0.0.0/12"]
    );
}

#[tokio::test]
async fn a_range_that_is_refused_is_covered_by_single_routes_until_it_is_not() {
    let mut fixture = Fixture::start(ServiceCidrs::Unknown);
    fixture.refuse(&["10.0.0.0/16", "10.0.0.8/32"]);
    fixture.cidrs.send_replace(known(&["10.0.0.0/16"]));
    let some = [upsert("10.0.0.7", 80), upsert("10.0.0.8", 80)];
    fixture.wanted.programmed(&some, true);
    // It is ready all the same: the rest is served.
    fixture.readiness.ready().await;
    let mut said = Vec::new();
    for _ in 0..3 {
        said.push(fixture.said.recv().await.unwrap());
    }
    assert_eq!(said, ["+10.0.0.0/16", "+10.0.0.7/32", "+10.0.0.8/32"]);

    fixture.refuse(&[]);
    while said.last().unwrap() != "-10.0.0.7/32" {
        said.push(fixture.said.recv().await.unwrap());
    }
    assert_eq!(said[said.len() - 2], "+10.0.0.0/16");
}

#[tokio::test]
async fn beside_fixed_routes_only_external_addresses_have_their_own() {
    let wanted = Wanted::beside(vec!["10.0.0.0/16".parse().unwrap()]);
    let mut fixture = Fixture::with(wanted, ServiceCidrs::Unknown);
    let some = [
        upsert("10.0.0.7", 80),
        upsert("172.16.0.7", 80),
        external("10.0.0.9"),
        external("198.51.100.7"),
        external("198.51.100.8"),
    ];
    fixture.wanted.programmed(&some, true);
    let both = ["+198.51.100.7/32", "+198.51.100.8/32"];
    assert_eq!(fixture.said().await, both);

    // The node gets one of them as its own: listeners serve it.
    let own = "198.51.100.7".parse().unwrap();
    fixture.wanted.set_own([own].into());
    assert_eq!(fixture.said().await, ["-198.51.100.7/32"]);
}

#[tokio::test]
async fn fixed_routes_alone_leave_external_addresses_out() {
    let fixed = Wanted::beside(vec!["10.0.0.0/16".parse().unwrap()]).only_fixed();
    let mut fixture = Fixture::with(fixed, ServiceCidrs::Unknown);
    fixture.wanted.programmed(&[external("192.0.2.7")], true);
    assert!(fixture.said().await.is_empty());
    assert!(fixture.readiness.blockers().is_empty());
}

#[tokio::test]
async fn what_is_idle_routes_nothing_until_it_is_active() {
    let fixed = Wanted::beside(vec!["10.0.0.0/16".parse().unwrap()]).idle();
    let mut fixture = Fixture::with(fixed, ServiceCidrs::Unknown);
    fixture.wanted.programmed(&[external("192.0.2.7")], true);
    assert!(fixture.said().await.is_empty());
    // Standing by is being ready.
    assert!(fixture.readiness.blockers().is_empty());
    fixture.wanted.set_active(true);
    assert_eq!(fixture.said().await, ["+10.0.0.0/16", "+192.0.2.7/32"]);
    fixture.wanted.set_active(false);
    assert_eq!(fixture.said().await, ["-10.0.0.0/16", "-192.0.2.7/32"]);
    // Meanwhile a service has gone.
    fixture
        .wanted
        .programmed(&[Change::Remove(address("192.0.2.7", 80))], false);
    assert!(fixture.said().await.is_empty());
    fixture.refuse(&["10.0.0.0/16"]);
    fixture.wanted.set_active(true);
    assert_eq!(fixture.said().await.first().unwrap(), "+10.0.0.0/16");
    fixture.refuse(&[]);
    sleep(Duration::from_millis(30)).await;
    assert!(fixture.said().await.contains(&"+10.0.0.0/16".to_owned()));
}

#[tokio::test]
async fn a_route_stays_for_as_long_as_flows_use_it() {
    let mut fixture = Fixture::start(known(&["10.0.0.0/16"]));
    let some = [
        upsert("10.0.0.7", 80),
        external("192.0.2.7"),
        external("192.0.2.8"),
    ];
    fixture.wanted.programmed(&some, true);
    assert_eq!(fixture.said().await.len(), 3);
    let uses = |fixture: &Fixture, ips: &[&str]| {
        let ips = ips.iter().map(|ip| ip.parse().unwrap()).collect();
        *fixture.kernel.used.lock().unwrap() = ips;
    };
    uses(&fixture, &["192.0.2.7", "10.0.0.7"]);
    let gone = ["192.0.2.7", "192.0.2.8"].map(|ip| Change::Remove(address(ip, 80)));
    fixture.wanted.programmed(&gone, false);
    assert_eq!(fixture.said().await, ["-192.0.2.8/32"]);
    // What another route leads to need not hold this one.
    fixture.cidrs.send_replace(known(&[]));
    assert_eq!(fixture.said().await, ["+10.0.0.7/32", "-10.0.0.0/16"]);
    // Looked at some times.
    sleep(Duration::from_millis(30)).await;
    assert!(fixture.said().await.is_empty());
    uses(&fixture, &[]);
    assert_eq!(fixture.said.recv().await.unwrap(), "-192.0.2.7/32");
    // It is wanted again, held, and gone at once with everything else.
    fixture.wanted.programmed(&[external("192.0.2.7")], false);
    assert_eq!(fixture.said().await, ["+192.0.2.7/32"]);
    uses(&fixture, &["192.0.2.7"]);
    fixture.wanted.programmed(&gone, false);
    assert!(fixture.said().await.is_empty());
    fixture.wanted.set_active(false);
    assert_eq!(fixture.said().await, ["-10.0.0.7/32", "-192.0.2.7/32"]);
}

#[tokio::test]
async fn many_routes_are_set_together() {
    let mut fixture = Fixture::start(ServiceCidrs::Unavailable);
    let many: Vec<_> = (0..500)
        .map(|i| upsert(&format!("10.0.{}.{}", i / 250, i % 250), 80))
        .collect();
    fixture.wanted.programmed(&many, true);
    fixture.readiness.ready().await;
    assert_eq!(fixture.said().await.len(), 500);
}

#[test]
fn a_server_that_is_reached_through_ourselves_is_warned_of_once() {
    let routes: Vec<IpNet> = vec!["10.0.0.0/16".parse().unwrap()];
    let mut outside = vec!["192.168.0.10".parse().unwrap()];
    warn_of_hazard(&mut outside, routes.iter());
    assert_eq!(outside.len(), 1);
    let mut within = vec!["10.0.0.1".parse().unwrap()];
    warn_of_hazard(&mut within, routes.iter());
    assert!(within.is_empty());
}
