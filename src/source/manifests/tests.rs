//! The source against real files. Every wait is for a batch or a report, never
//! for time: the only clock is the limit after which a test has failed.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::*;
use crate::service::index::Index;
use crate::service::object::Event;

mod scanner;

/// Generous: the machine may be busy.
const LIMIT: Duration = Duration::from_secs(20);

/// A running source with an index behind it.
struct Running {
    batches: mpsc::Receiver<Batch>,
    index: Index,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Running {
    fn start(path: &Path) -> Self {
        let (sender, batches) = mpsc::channel(4);
        let (stop, stopped) = oneshot::channel();
        let path = path.to_owned();
        let task = tokio::spawn(run(path, sender, async {
            let _ = stopped.await;
        }));
        Self {
            batches,
            index: Index::new("n1"),
            stop: Some(stop),
            task,
        }
    }

    /// The next batch, applied.
    async fn batch(&mut self) -> Batch {
        let batch = timeout(LIMIT, self.batches.recv()).await;
        let batch = batch.expect("a batch in time").expect("the source runs");
        self.index.apply_all(batch.events.clone());
        batch
    }

    /// Takes batches until the names and addresses of the virtual servers are so.
    async fn until(&mut self, expected: &[&str]) {
        while services(&self.index) != expected {
            self.batch().await;
        }
    }

    async fn stop(mut self) {
        self.stop.take().unwrap().send(()).unwrap();
        timeout(LIMIT, self.task)
            .await
            .expect("an end in time")
            .unwrap();
        assert!(self.batches.recv().await.is_none());
    }
}

fn services(index: &Index) -> Vec<String> {
    let all = index.virtual_servers();
    all.iter()
        .map(|s| format!("{} {}", s.service.name, s.address.ip))
        .collect()
}

fn service(name: &str, ip: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{clusterIP: {ip}, ports: [{{port: 80}}]}}\n"
    )
}

fn write(dir: &Path, name: &str, text: &str) {
    fs::write(dir.join(name), text).unwrap();
}

/// Puts a file in place at once, as careful writers do.
fn replace(dir: &Path, name: &str, text: &str) {
    let temporary = dir.join(".new");
    fs::write(&temporary, text).unwrap();
    fs::rename(temporary, dir.join(name)).unwrap();
}

/// A ConfigMap volume: `..data` leads to a directory that holds the files.
fn project(volume: &Path, version: &str, files: &[(&str, &str)]) {
    let hidden = format!("..{version}");
    fs::create_dir(volume.join(&hidden)).unwrap();
    for (name, text) in files {
        write(&volume.join(&hidden), name, text);
        let link = volume.join(name);
        if link.symlink_metadata().is_err() {
            symlink(format!("..data/{name}"), link).unwrap();
        }
    }
    symlink(&hidden, volume.join("..data_tmp")).unwrap();
    fs::rename(volume.join("..data_tmp"), volume.join("..data")).unwrap();
}

#[tokio::test]
async fn an_empty_directory_is_complete() {
    let dir = TempDir::new().unwrap();
    let mut source = Running::start(dir.path());
    let expected = Batch {
        events: vec![],
        initial_complete: true,
        ..Batch::default()
    };
    assert_eq!(source.batch().await, expected);
    source.stop().await;
}

#[tokio::test]
async fn files_are_written_replaced_added_and_removed() {
    let dir = TempDir::new().unwrap();
    write(dir.path(), "a.yaml", &service("a", "10.0.0.1"));
    write(dir.path(), "b.yml", &service("b", "10.0.0.2"));
    write(dir.path(), "c.txt", &service("c", "10.0.0.3"));
    write(dir.path(), ".d.yaml", &service("d", "10.0.0.4"));
    let mut source = Running::start(dir.path());
    let first = source.batch().await;
    assert!(first.initial_complete);
    assert_eq!(services(&source.index), ["a 10.0.0.1", "b 10.0.0.2"]);
    // In place.
    write(dir.path(), "a.yaml", &service("a", "10.0.0.11"));
    source.until(&["b 10.0.0.2", "a 10.0.0.11"]).await;
    // By rename.
    replace(dir.path(), "a.yaml", &service("a", "10.0.0.12"));
    source.until(&["b 10.0.0.2", "a 10.0.0.12"]).await;
    // Added, as JSON.
    let json = r#"{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "e"},
        "spec": {"clusterIP": "10.0.0.5", "ports": [{"port": 80}]}}"#;
    write(dir.path(), "e.json", json);
    source
        .until(&["b 10.0.0.2", "e 10.0.0.5", "a 10.0.0.12"])
        .await;
    // Removed.
    fs::remove_file(dir.path().join("b.yml")).unwrap();
    source.until(&["e 10.0.0.5", "a 10.0.0.12"]).await;
    source.stop().await;
}

#[tokio::test]
async fn the_path_is_a_file() {
    let dir = TempDir::new().unwrap();
    write(dir.path(), "all", &service("a", "10.0.0.1"));
    let path = dir.path().join("all");
    let mut source = Running::start(&path);
    source.until(&["a 10.0.0.1"]).await;
    replace(dir.path(), "all", &service("a", "10.0.0.2"));
    source.until(&["a 10.0.0.2"]).await;
    // Away for a moment: what was read stays until it is back.
    fs::remove_file(&path).unwrap();
    write(dir.path(), "all", &service("a", "10.0.0.3"));
    source.until(&["a 10.0.0.3"]).await;
    source.stop().await;
}

#[tokio::test]
async fn a_configmap_volume() {
    let volume = TempDir::new().unwrap();
    let (a, b) = (service("a", "10.0.0.1"), service("b", "10.0.0.2"));
    project(volume.path(), "v1", &[("a.yaml", &a), ("b.yaml", &b)]);
    let mut source = Running::start(volume.path());
    source.until(&["a 10.0.0.1", "b 10.0.0.2"]).await;
    let (a, c) = (service("a", "10.0.0.9"), service("c", "10.0.0.3"));
    project(volume.path(), "v2", &[("a.yaml", &a), ("c.yaml", &c)]);
    fs::remove_dir_all(volume.path().join("..v1")).unwrap();
    fs::remove_file(volume.path().join("b.yaml")).unwrap();
    source.until(&["c 10.0.0.3", "a 10.0.0.9"]).await;
    source.stop().await;
}

#[tokio::test]
async fn the_path_is_a_link_that_is_repointed() {
    let dir = TempDir::new().unwrap();
    for (version, ip) in [("v1", "10.0.0.1"), ("v2", "10.0.0.2"), ("v3", "10.0.0.3")] {
        let version = dir.path().join(version);
        fs::create_dir(&version).unwrap();
        write(&version, "a.yaml", &service("a", ip));
    }
    let path = dir.path().join("current");
    symlink("v1", &path).unwrap();
    let mut source = Running::start(&path);
    source.until(&["a 10.0.0.1"]).await;
    symlink("v2", dir.path().join("next")).unwrap();
    fs::rename(dir.path().join("next"), &path).unwrap();
    source.until(&["a 10.0.0.2"]).await;
    // The new target is watched as the old one was.
    replace(&dir.path().join("v2"), "a.yaml", &service("a", "10.0.0.4"));
    source.until(&["a 10.0.0.4"]).await;
    // Not atomically: for a moment there is no such path.
    fs::remove_file(&path).unwrap();
    symlink("v3", &path).unwrap();
    source.until(&["a 10.0.0.3"]).await;
    source.stop().await;
}

/// No watch sees behind a link to a file: the periodic look does.
#[tokio::test]
async fn what_inotify_does_not_tell_is_found() {
    let (dir, outside) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    write(outside.path(), "x", &service("a", "10.0.0.1"));
    symlink(outside.path().join("x"), dir.path().join("a.yaml")).unwrap();
    let mut source = Running::start(dir.path());
    source.until(&["a 10.0.0.1"]).await;
    replace(outside.path(), "x", &service("a", "10.0.0.2"));
    source.until(&["a 10.0.0.2"]).await;
    source.stop().await;
}

#[tokio::test]
async fn a_path_that_comes_later_is_waited_for() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("later");
    let mut source = Running::start(&path);
    fs::create_dir(&path).unwrap();
    write(&path, "a.yaml", &service("a", "10.0.0.1"));
    source.until(&["a 10.0.0.1"]).await;
    // Gone for good: the last good state is served, and the source goes on.
    fs::rename(&path, dir.path().join("elsewhere")).unwrap();
    fs::create_dir(&path).unwrap();
    write(&path, "a.yaml", &service("a", "10.0.0.2"));
    source.until(&["a 10.0.0.2"]).await;
    source.stop().await;
}

#[tokio::test]
async fn it_ends_when_nobody_receives() {
    let dir = TempDir::new().unwrap();
    let mut source = Running::start(dir.path());
    source.batch().await;
    drop(source.batches);
    timeout(LIMIT, source.task)
        .await
        .expect("an end in time")
        .unwrap();
}

#[tokio::test]
async fn it_ends_while_the_channel_is_full() {
    let dir = TempDir::new().unwrap();
    let (sender, mut batches) = mpsc::channel(1);
    let filler = Batch {
        events: vec![],
        initial_complete: false,
        ..Batch::default()
    };
    sender.send(filler.clone()).await.unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let task = tokio::spawn(run(dir.path().to_owned(), sender, async {
        let _ = stopped.await;
    }));
    stop.send(()).unwrap();
    timeout(LIMIT, task).await.expect("an end in time").unwrap();
    assert_eq!(batches.recv().await, Some(filler));
    assert_eq!(batches.recv().await, None);
}

#[tokio::test]
async fn nothing_that_matters_changed_is_no_batch() {
    let dir = TempDir::new().unwrap();
    write(dir.path(), "a.yaml", &service("a", "10.0.0.1"));
    let mut source = Running::start(dir.path());
    source.until(&["a 10.0.0.1"]).await;
    // A comment, a touch, a file that is none: then something real, which must be
    // the next batch there is.
    write(
        dir.path(),
        "a.yaml",
        &format!("# same\n{}", service("a", "10.0.0.1")),
    );
    write(dir.path(), "b.txt", "x");
    write(dir.path(), "z.yaml", &service("z", "10.0.0.9"));
    let next = source.batch().await;
    assert_eq!(next.events.len(), 1);
    let Event::Apply { object, origin } = &next.events[0] else {
        panic!("applied");
    };
    assert_eq!(object.key().to_string(), "Service default/z");
    let origin = origin.as_ref().unwrap().to_string();
    assert!(origin.ends_with("z.yaml, document 1"), "{origin}");
    source.stop().await;
}
