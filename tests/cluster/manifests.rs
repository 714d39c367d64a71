//! The files that objects come from, changed as people and machines change them.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, Instant};

use kube_tun_proxy::lab::manifests::{self, Port};
use kube_tun_proxy::lab::{ProxyOptions, TempDir, client};
use libtest_mimic::{Failed, Trial};

use super::world::{Client, Family, LIMIT, Trials, World};

/// Within a second a change is to be seen; what a busy machine adds is here too.
const SEEN_WITHIN: Duration = Duration::from_secs(3);

pub(crate) fn trials() -> Vec<Trial> {
    Trials::of("manifests")
        .one("files_come_change_and_go", files)
        .one("one_file", one_file)
        .one("a_config_map_volume", config_map)
        .one("a_directory_behind_a_link", linked_directory)
        .one("a_file_that_breaks", broken_file)
        .one("an_object_that_makes_no_sense", bad_object)
        .one("a_list_in_json", json_list)
        .done()
}

/// A service at `number` with one endpoint: a pod by number.
fn text(world: &World, name: &str, number: u16, pod: usize) -> String {
    let pod = world.pod(pod);
    let endpoints = [pod.address().into(), pod.address6().into()];
    let ports = [Port::tcp("", 80, 8000)];
    manifests::service_with_endpoints("files", name, &world.vips(number), &ports, &endpoints)
}

/// Waits until the pod is what the service has; not longer than it may take.
fn seen(world: &World, number: u16, pod: usize) -> Result<(), Failed> {
    let began = Instant::now();
    for family in [Family::V4, Family::V6] {
        let at = world.vip_at(family, number, 80);
        world.wait_for_real_servers(at, &[family.at(world.pod(pod), 8000)])?;
    }
    assert!(began.elapsed() < SEEN_WITHIN, "{:?}", began.elapsed());
    let vip = world.vip_at(Family::V6, number, 80);
    let seen = client::who(world.from(Client::Pod), vip, LIMIT)?;
    assert_eq!(seen.name, world.pod(pod).name());
    Ok(())
}

fn files() -> Result<(), Failed> {
    let mut world = World::other()?;
    let _servers = world.who_servers(8000)?;
    let path = world.manifests.path().to_owned();
    world.manifests.write("a.yaml", &text(&world, "a", 1, 0))?;
    world.start(&[])?;
    seen(&world, 1, 0)?;
    // Written in place.
    fs::write(path.join("a.yaml"), text(&world, "a", 1, 1))?;
    seen(&world, 1, 1)?;
    // Replaced by rename.
    world.manifests.write("a.yaml", &text(&world, "a", 1, 2))?;
    seen(&world, 1, 2)?;
    // Added, by other names too; what is none of ours is left alone.
    world.manifests.write("b.yml", &text(&world, "b", 2, 0))?;
    world.manifests.write("c.txt", &text(&world, "c", 3, 0))?;
    seen(&world, 2, 0)?;
    assert_eq!(world.services()?.len(), 4);
    // Renamed, and removed.
    fs::rename(path.join("b.yml"), path.join("d.yaml"))?;
    world.manifests.write("d.yaml", &text(&world, "b", 2, 1))?;
    seen(&world, 2, 1)?;
    world.manifests.remove("a.yaml")?;
    world.wait_for_no_service(world.vip_at(Family::V4, 1, 80))?;
    world.wait_for_no_service(world.vip_at(Family::V6, 1, 80))?;
    assert_eq!(world.services()?.len(), 2);
    Ok(())
}

fn one_file() -> Result<(), Failed> {
    let mut world = World::other()?;
    let _servers = world.who_servers(8000)?;
    world
        .manifests
        .write("only.yaml", &text(&world, "a", 1, 0))?;
    world
        .manifests
        .write("other.yaml", &text(&world, "b", 2, 0))?;
    start_at(&mut world, |path| path.join("only.yaml"))?;
    seen(&world, 1, 0)?;
    assert_eq!(world.services()?.len(), 2);
    world
        .manifests
        .write("only.yaml", &text(&world, "a", 1, 1))?;
    seen(&world, 1, 1)
}

/// Links through `..data`, which is replaced whole (kubelet's atomic writer).
fn config_map() -> Result<(), Failed> {
    let mut world = World::other()?;
    let _servers = world.who_servers(8000)?;
    let path = world.manifests.path().to_owned();
    let publish = |world: &World, version: usize| -> Result<(), Failed> {
        let directory = path.join(format!("..version-{version}"));
        fs::create_dir(&directory)?;
        fs::write(directory.join("objects.yaml"), text(world, "a", 1, version))?;
        symlink(format!("..version-{version}"), path.join("..data_tmp"))?;
        Ok(fs::rename(path.join("..data_tmp"), path.join("..data"))?)
    };
    publish(&world, 0)?;
    symlink("..data/objects.yaml", path.join("objects.yaml"))?;
    world.start(&[])?;
    seen(&world, 1, 0)?;
    for version in [1, 2] {
        publish(&world, version)?;
        fs::remove_dir_all(path.join(format!("..version-{}", version - 1)))?;
        seen(&world, 1, version)?;
    }
    Ok(())
}

/// The directory itself is replaced: the link that leads to it points elsewhere.
fn linked_directory() -> Result<(), Failed> {
    let mut world = World::other()?;
    let _servers = world.who_servers(8000)?;
    let elsewhere = TempDir::new()?;
    let path = elsewhere.path().to_owned();
    for version in 0..3 {
        let directory = path.join(format!("v{version}"));
        fs::create_dir(&directory)?;
        fs::write(directory.join("a.yaml"), text(&world, "a", 1, version))?;
    }
    symlink("v0", path.join("now"))?;
    start_at(&mut world, |_| path.join("now"))?;
    seen(&world, 1, 0)?;
    for version in [1, 2] {
        symlink(format!("v{version}"), path.join("next"))?;
        fs::rename(path.join("next"), path.join("now"))?;
        seen(&world, 1, version)?;
    }
    // The directory that it leads to now is the one that is watched.
    fs::write(path.join("v2/a.yaml"), text(&world, "a", 1, 0))?;
    seen(&world, 1, 0)
}

/// Its last good content stays in force, the others go on, and it is told once.
fn broken_file() -> Result<(), Failed> {
    let mut world = World::other()?;
    let _servers = world.who_servers(8000)?;
    world.manifests.write("a.yaml", &text(&world, "a", 1, 0))?;
    world.manifests.write("b.yaml", &text(&world, "b", 2, 0))?;
    world.start(&[])?;
    let broken = text(&world, "a", 1, 1) + "---\nkind: [unclosed\n";
    world.manifests.write("a.yaml", &broken)?;
    let line = world
        .proxy()
        .wait_for_log("its last good content stays in force", LIMIT)
        .ok_or_else(|| world.proxy().log())?;
    assert!(
        line.contains("a.yaml") && line.contains("document=4"),
        "{line}"
    );
    seen(&world, 1, 0)?;
    world.manifests.write("b.yaml", &text(&world, "b", 2, 1))?;
    seen(&world, 2, 1)?;
    let told = |world: &World| world.proxy().log().matches("a.yaml").count();
    assert_eq!(told(&world), 1, "{}", world.proxy().log());
    // Mended.
    world.manifests.write("a.yaml", &text(&world, "a", 1, 2))?;
    seen(&world, 1, 2)?;
    assert_eq!(told(&world), 1, "{}", world.proxy().log());
    Ok(())
}

/// One that parses, but says what cannot be: told with file, document, object
/// and field; the objects beside it are served.
fn bad_object() -> Result<(), Failed> {
    let mut world = World::other()?;
    let _servers = world.who_servers(8000)?;
    let bad = manifests::service("files", "bad", &world.vips(3), &[Port::tcp("", 80, 8000)])
        .replace("port: 80\n", "port: 80000\n");
    let both = format!("{}---\n{bad}", text(&world, "a", 1, 0));
    world.manifests.write("a.yaml", &both)?;
    world.start(&[])?;
    seen(&world, 1, 0)?;
    let line = world
        .proxy()
        .wait_for_log("80000", LIMIT)
        .ok_or_else(|| world.proxy().log())?;
    for part in ["a.yaml", "document", "files/bad", "port"] {
        assert!(line.contains(part), "{part} is not in {line}");
    }
    assert_eq!(world.services()?.len(), 2);
    Ok(())
}

fn json_list() -> Result<(), Failed> {
    let mut world = World::other()?;
    let _servers = world.who_servers(8000)?;
    let vip = world.vip(Family::V4, 1);
    let pod = world.pod(1).address();
    let list = serde_json::json!({
        "apiVersion": "v1",
        "kind": "List",
        "items": [
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {"namespace": "files", "name": "a"},
                "spec": {
                    "clusterIP": vip.to_string(),
                    "clusterIPs": [vip.to_string()],
                    "ports": [{"port": 80, "targetPort": 8000}],
                },
            },
            {
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {
                    "namespace": "files",
                    "name": "a-1",
                    "labels": {"kubernetes.io/service-name": "a"},
                },
                "addressType": "IPv4",
                "ports": [{"port": 8000}],
                "endpoints": [{"addresses": [pod.to_string()]}],
            },
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "not-ours"}},
        ],
    });
    world.manifests.write("all.json", &list.to_string())?;
    world.start(&[])?;
    let at = world.vip_at(Family::V4, 1, 80);
    let seen = client::who(world.from(Client::Node), at, LIMIT)?;
    assert_eq!(seen.name, "green");
    Ok(())
}

/// Starts the proxy with another path than the manifests' directory.
fn start_at(
    world: &mut World,
    path: impl FnOnce(&Path) -> std::path::PathBuf,
) -> Result<(), Failed> {
    let path = path(world.manifests.path());
    let options = ProxyOptions::new(&path, &world.service_cidrs());
    world.start_with(&options)?;
    Ok(())
}
