//! `init`, and `run` as a user without privilege; what `run` keeps with privilege.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};

use kube_tun_proxy::check::{Finding, Level, Report};
use kube_tun_proxy::lab::manifests::{self, Port};
use kube_tun_proxy::lab::{ProxyOptions, ProxyProcess, client};
use libtest_mimic::{Failed, Trial};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::geteuid;
use tempfile::TempDir;

use super::world::{BINARY, CLIENTS, FAMILIES, LIMIT, TUN, Trials, World};

pub(crate) fn trials() -> Vec<Trial> {
    Trials::of("init")
        .one("a_user_runs_without_capabilities", without_capabilities)
        .one("what_was_not_prepared_is_said", not_prepared)
        .one("check_knows_a_prepared_device", checked)
        .one("again_and_away_again", again_and_away)
        .one("with_privilege_the_rest_is_dropped", drops)
        .done()
}

/// The driver's file, for a machine on which only root may open it: another of the same
/// device for everybody, to be put in its place in the lab's own mounts. It goes when
/// dropped.
pub(crate) struct Driver(Option<TempDir>);

impl Driver {
    /// Must come before the lab is entered, where no device can be made. Without success
    /// the trials that need it fail, and say what is missing.
    pub(crate) fn for_everybody() -> Self {
        /// The driver's device (TUN_MINOR, linux/miscdevice.h).
        const TUN_DEVICE: (u64, u64) = (10, 200);
        /// Read and write for others.
        const OTHERS: u32 = 0o006;
        let metadata = fs::metadata("/dev/net/tun");
        let is_open = metadata.is_ok_and(|found| found.mode() & OTHERS == OTHERS);
        if is_open || !geteuid().is_root() {
            return Self(None);
        }
        let make = || -> std::io::Result<TempDir> {
            let directory = TempDir::new()?;
            let path = directory.path().join("tun");
            let device = makedev(TUN_DEVICE.0, TUN_DEVICE.1);
            mknod(&path, SFlag::S_IFCHR, Mode::empty(), device)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o666))?;
            Ok(directory)
        };
        Self(make().ok())
    }

    pub(crate) fn put_in_place(&self) {
        let Some(directory) = &self.0 else { return };
        let none: Option<&str> = None;
        let file = directory.path().join("tun");
        // Without it the original stays, which root may open.
        let _ = mount(Some(&file), "/dev/net/tun", none, MsFlags::MS_BIND, none);
    }
}

/// Who runs the proxy: nobody in particular, or the only user that there is.
fn user() -> Result<u32, Failed> {
    let map = fs::read_to_string("/proc/self/uid_map")?;
    let ids: u64 = map
        .lines()
        .filter_map(|line| line.split_whitespace().nth(2)?.parse::<u64>().ok())
        .sum();
    Ok(if ids > 4242 { 4242 } else { 0 })
}

/// A world whose files that user may read.
pub(crate) struct Place {
    pub(crate) world: World,
    user: u32,
    directory: TempDir,
}

impl Place {
    pub(crate) fn new() -> Result<Self, Failed> {
        let world = World::other()?;
        let user = user()?;
        let directory = tempfile::tempdir()?;
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755))?;
        if user != 0 {
            chown(world.manifests.path(), Some(user), None)?;
            let mode = fs::metadata("/dev/net/tun")?.mode();
            assert_eq!(mode & 0o006, 0o006, "sudo chmod 0666 /dev/net/tun");
        }
        Ok(Self {
            world,
            user,
            directory,
        })
    }

    pub(crate) fn socket(&self) -> std::path::PathBuf {
        self.directory.path().join("run").join("admin.sock")
    }

    /// Lets others than its user use the directory of the socket: the lab's own root has
    /// no privilege there.
    pub(crate) fn open_directory(&self) -> Result<(), Failed> {
        let socket = self.socket();
        let directory = socket.parent().ok_or("no directory")?;
        fs::set_permissions(directory, fs::Permissions::from_mode(0o777))?;
        Ok(())
    }

    pub(crate) fn init(&self, more: &[&str]) -> Result<Output, Failed> {
        let mut command = self.world.node().namespace().command(BINARY);
        let command = command.arg("init").args(more);
        let command = command.arg("--admin-socket").arg(self.socket());
        Ok(command.output()?)
    }

    pub(crate) fn prepare(&self, cidrs: &str) -> Result<(), Failed> {
        let user = self.user.to_string();
        let output = self.init(&["--user", &user, "--service-cidr", cidrs])?;
        assert!(output.status.success(), "{output:?}");
        Ok(())
    }

    pub(crate) fn cidrs(&self) -> String {
        self.world
            .service_cidrs()
            .map(|net| net.to_string())
            .join(",")
    }

    pub(crate) fn options(&self) -> ProxyOptions {
        let options = self.world.options().admin_socket(&self.socket());
        options.user(self.user)
    }
}

/// Name and fields of /proc/PID/task/*/status.
pub(crate) fn threads(proxy: &ProxyProcess) -> Result<Vec<(String, String)>, Failed> {
    let mut found = Vec::new();
    for entry in fs::read_dir(format!("/proc/{}/task", proxy.pid()))? {
        // One that waits for blocking work may end meanwhile.
        let Ok(status) = fs::read_to_string(entry?.path().join("status")) else {
            continue;
        };
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name));
            let value = line.and_then(|line| line.split_whitespace().nth(1));
            value.unwrap_or_default().to_owned()
        };
        assert_eq!(field("NoNewPrivs:"), "1", "{status}");
        assert_eq!(field("CapEff:"), field("CapPrm:"), "{status}");
        found.push((field("Name:"), field("CapEff:")));
    }
    found.sort();
    Ok(found)
}

fn without_capabilities() -> Result<(), Failed> {
    let mut place = Place::new()?;
    let world = &place.world;
    world.serve("web", 1, &[Port::tcp("", 80, 8000)], &[world.pod(0)])?;
    let _servers = world.who_servers(8000)?;
    place.prepare(&place.cidrs())?;
    let options = place.options();
    let proxy = place.world.start_with(&options)?;
    for (name, capabilities) in threads(proxy)? {
        assert_eq!(capabilities, "0000000000000000", "{name}");
    }
    let status = fs::read_to_string(format!("/proc/{}/status", proxy.pid()))?;
    let uid = status.lines().find(|line| line.starts_with("Uid:"));
    assert!(
        uid.is_some_and(|line| line.contains(&place.user.to_string())),
        "{uid:?}"
    );
    for family in FAMILIES {
        for from in CLIENTS {
            let vip = place.world.vip_at(family, 1, 80);
            client::who(place.world.from(from), vip, LIMIT)?;
        }
    }
    assert!(!place.world.services()?.is_empty());
    assert!(proxy_says(&place, "without CAP_NET_ADMIN"));

    // Another on the same device would take some of its packets.
    let other = place.options().healthz(([127, 0, 0, 1], 20_256).into());
    let other = other.metrics(([127, 0, 0, 1], 20_249).into());
    let socket = place.directory.path().join("other.sock");
    fs::set_permissions(place.directory.path(), fs::Permissions::from_mode(0o777))?;
    let node = place.world.node().namespace();
    let other = other
        .admin_socket(&socket)
        .metrics(([127, 0, 0, 1], 20_249).into());
    let second = ProxyProcess::spawn(node, Path::new(BINARY), &other)?;
    let status = second.wait(LIMIT).ok_or("the second runs")?;
    assert_eq!(status.code(), Some(3), "{}", second.log());

    // The device stays behind, for the next.
    place.world.proxy_mut().kill()?;
    assert!(super::lifecycle::has_link(&place.world, TUN));
    let options = place.options();
    place.world.start_with(&options)?;
    let vip = place.world.vip_at(FAMILIES[0], 1, 80);
    client::who(place.world.from(CLIENTS[1]), vip, LIMIT)?;
    Ok(())
}

fn proxy_says(place: &Place, words: &str) -> bool {
    place.world.proxy().wait_for_log(words, LIMIT).is_some()
}

fn not_prepared() -> Result<(), Failed> {
    let mut place = Place::new()?;
    let [v4, _] = place.world.service_cidrs();
    place.prepare(&v4.to_string())?;
    // The other family's range has no route, and cannot get one.
    let node = place.world.node().namespace();
    let lacking = ProxyProcess::spawn(node, Path::new(BINARY), &place.options())?;
    let status = lacking.wait(LIMIT).ok_or("it runs")?;
    let log = lacking.log();
    assert_eq!(status.code(), Some(3), "{log}");
    for words in [
        "fd77:0:0:1::/112",
        "CAP_NET_ADMIN",
        "kube-tun-proxy init --user",
    ] {
        assert!(log.contains(words), "{words:?}: {log}");
    }
    drop(lacking);
    // What needs a route of its own is named, and the rest is served.
    let world = &place.world;
    world.serve("web", 1, &[Port::tcp("", 80, 8000)], &[world.pod(0)])?;
    let _servers = world.who_servers(8000)?;
    let ports = [Port::tcp("", 80, 8000)];
    let outside = manifests::service("default", "far", &["203.0.113.7".parse()?], &ports);
    let external = outside.replace("spec:\n", "spec:\n  externalIPs: [198.51.100.9]\n");
    world.manifests.write("far.yaml", &external)?;
    place.prepare(&place.cidrs())?;
    let options = place.options();
    place.world.start_with(&options)?;
    let refused = "services are not reached by this route";
    let said = place.world.proxy().wait_for_log(refused, LIMIT);
    let said = said.ok_or("it does not say which route")?;
    assert!(
        said.contains("198.51.100.9") && said.contains("CAP_NET_ADMIN"),
        "{said}"
    );
    let vip = place.world.vip_at(FAMILIES[1], 1, 80);
    client::who(place.world.from(CLIENTS[0]), vip, LIMIT)?;
    // Routes that come and go need the privilege.
    place.world.proxy_mut().kill()?;
    let falling_back = place.options().argument("--mode").argument("fallback");
    let node = place.world.node().namespace();
    let refused = ProxyProcess::spawn(node, Path::new(BINARY), &falling_back)?;
    let status = refused.wait(LIMIT).ok_or("it runs")?;
    assert_eq!(status.code(), Some(3), "{}", refused.log());
    assert!(
        refused.log().contains("--mode fallback"),
        "{}",
        refused.log()
    );
    Ok(())
}

fn checked() -> Result<(), Failed> {
    let place = Place::new()?;
    place.prepare(&place.cidrs())?;
    let (user, cidrs) = (place.user, place.cidrs());
    let manifests = place.world.manifests.path().to_owned();
    let of = |name: &'static str, user: u32| -> Result<Vec<Finding>, Failed> {
        let (cidrs, manifests) = (&cidrs, &manifests);
        let node = place.world.node().namespace();
        // A user other than root has no capability behind exec(2).
        let output = node.run(move || {
            let mut command = Command::new(BINARY);
            command.args(["check", "-o", "json", "--service-cidr", cidrs]);
            command
                .args(["--tun-name", name, "--manifests"])
                .arg(manifests);
            command.uid(user).output()
        })?;
        let report: Report = serde_json::from_slice(&output.stdout)?;
        let device = |finding: &Finding| {
            ["tun-driver", "capabilities", "device", "routes"].contains(&finding.subject.as_str())
        };
        Ok(report.findings.into_iter().filter(device).collect())
    };
    for finding in of(TUN, user)? {
        assert_eq!(finding.level, Level::Ok, "{finding:?}");
    }
    if user != 0 {
        // Another name is not prepared, and root is another user.
        let unprepared = of("svc-tun7", user)?;
        assert_eq!(unprepared[1].level, Level::Failure, "{unprepared:?}");
        let mend = unprepared[1].mend.as_deref().unwrap_or_default();
        assert!(mend.contains(&format!("init --user {user}")), "{mend}");
        let foreign = of(TUN, 0)?;
        assert_eq!(foreign[2].level, Level::Failure, "{foreign:?}");
        assert!(foreign[2].found.contains(&user.to_string()), "{foreign:?}");
    }
    Ok(())
}

fn again_and_away() -> Result<(), Failed> {
    let place = Place::new()?;
    let has_link = || super::lifecycle::has_link(&place.world, TUN);
    place.prepare(&place.cidrs())?;
    // As an init container that starts anew.
    place.prepare(&place.cidrs())?;
    assert!(has_link());
    let removed = place.init(&["--remove"])?;
    assert!(removed.status.success() && !has_link(), "{removed:?}");
    let removed = place.init(&["--remove"])?;
    assert!(removed.status.success(), "{removed:?}");
    assert!(String::from_utf8(removed.stdout)?.contains("there is no svc-tun0"));
    // A stranger's device is left alone.
    super::kernel::add_device(place.world.node().namespace(), TUN, &[])?;
    for arguments in [&["--remove"][..], &["--user", "0"]] {
        let refused = place.init(arguments)?;
        assert_eq!(refused.status.code(), Some(3), "{refused:?}");
    }
    assert!(has_link());
    Ok(())
}

/// CAP_NET_BIND_SERVICE and CAP_NET_ADMIN, as /proc prints a set of them.
pub(crate) const BIND: &str = "0000000000000400";
const BIND_AND_ADMIN: &str = "0000000000001400";
pub(crate) const NONE: &str = "0000000000000000";

fn drops() -> Result<(), Failed> {
    for (arguments, control) in [(&[][..], BIND_AND_ADMIN), (&["--fixed-routes"], BIND)] {
        let mut world = World::other()?;
        world.serve("web", 1, &[Port::tcp("", 80, 8000)], &[world.pod(0)])?;
        let _servers = world.who_servers(8000)?;
        let proxy = world.start(arguments)?;
        let threads = threads(proxy)?;
        let of = |start: &str| {
            let named = threads.iter().filter(|(name, _)| name.starts_with(start));
            let sets: Vec<&str> = named.map(|(_, set)| set.as_str()).collect();
            assert!(!sets.is_empty(), "no {start} in {threads:?}");
            sets
        };
        for (start, set) in [
            ("kube-tun-proxy", NONE),
            ("worker-", NONE),
            ("access-log", ""),
            ("node-port-", control),
            ("control", control),
        ] {
            // There is one for the workers and one for the node ports.
            if !set.is_empty() {
                assert!(
                    of(start).iter().all(|found| *found == set),
                    "{start}: {threads:?}"
                );
            }
        }
        let known = [NONE, BIND, control];
        assert!(
            threads.iter().all(|(_, set)| known.contains(&set.as_str())),
            "{threads:?}"
        );
        let said = proxy.wait_for_log("privileges that are kept", LIMIT);
        assert!(said.is_some_and(|line| line.contains("CAP_NET_BIND_SERVICE")));
        for family in FAMILIES {
            client::who(world.from(CLIENTS[0]), world.vip_at(family, 1, 80), LIMIT)?;
        }
    }
    Ok(())
}
