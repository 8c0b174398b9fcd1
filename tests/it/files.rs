//! Targets from files that change in the ways files do.

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    time::Duration,
};

use tower_lb::{
    Target,
    discover::{self, Found, WhenEmpty},
};

/// A folder of its own for each test, which goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let folder = format!("tower-lb-{name}-{}", std::process::id());
        let folder = std::env::temp_dir().join(folder);
        fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Replaces a file as a careful writer does.
fn rename_into(path: &Path, text: &str) {
    let new = path.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::rename(new, path).unwrap();
}

/// Waits until the source serves these ports. Real time: files know no other.
async fn serves(found: &Found, ports: &[u16]) {
    let mut sets = found.subscribe();
    let has_ports = |targets: &[Target<SocketAddr>]| {
        let served = targets.iter().map(|target| target.address.port());
        served.eq(ports.iter().copied())
    };
    let served = sets.wait_for(|set| set.as_ref().is_some_and(|set| has_ports(set)));
    let in_time = tokio::time::timeout(PATIENCE, served).await;
    assert!(
        in_time.is_ok(),
        "{ports:?}: {:?} {found:?}",
        found.targets()
    );
}

/// Waits until the source has failed, and returns how.
async fn fails(found: &Found) -> String {
    let failing = async {
        loop {
            let state = found.state();
            match state.last_failure {
                Some(failure) if state.is_failing => return failure.error,
                _ => tokio::task::yield_now().await,
            }
        }
    };
    let failure = tokio::time::timeout(PATIENCE, failing).await;
    failure.expect("a failure in time")
}

#[tokio::test]
async fn a_file_is_read_again_when_it_changes() {
    let folder = Folder::new("changes");
    let path = folder.path("targets");
    fs::write(&path, "10.0.0.1:1\n10.0.0.1:2 weight=3\n").unwrap();
    let found = discover::file(&path).start().unwrap();
    let first = found.first(PATIENCE).await.unwrap();
    assert_eq!((first.len(), first[1].weight), (2, 3));
    // Written in place, then replaced.
    fs::write(&path, "10.0.0.1:3").unwrap();
    serves(&found, &[3]).await;
    rename_into(&path, r#"["10.0.0.1:4", {"address": "10.0.0.1:5"}]"#);
    serves(&found, &[4, 5]).await;
    // Removed, and there again.
    fs::remove_file(&path).unwrap();
    assert!(fails(&found).await.contains("No such file"));
    assert_eq!(found.targets().len(), 2);
    rename_into(&path, "10.0.0.1:6");
    serves(&found, &[6]).await;
    assert!(!found.state().is_stale());
}

#[tokio::test]
async fn a_bad_file_keeps_the_last_set_and_the_error_names_the_place() {
    let folder = Folder::new("bad");
    let path = folder.path("targets.json");
    fs::write(&path, r#"["10.0.0.1:1", "10.0.0.1:2"]"#).unwrap();
    let found = discover::file(&path).start().unwrap();
    serves(&found, &[1, 2]).await;
    fs::write(&path, "[\"10.0.0.1:1\",\n \"10.0.").unwrap();
    let error = fails(&found).await;
    assert!(error.ends_with("at line 2 column 7"), "{error}");
    assert_eq!(found.targets().len(), 2);
    fs::write(&path, r#"["10.0.0.1:3"]"#).unwrap();
    serves(&found, &[3]).await;
}

/// A config map is a link to a link to a folder. An update swaps the second link.
#[tokio::test]
async fn a_config_map_is_followed_through_its_links() {
    let folder = Folder::new("config-map");
    for (version, text) in [("v1", "10.0.0.1:1"), ("v2", "10.0.0.1:2")] {
        fs::create_dir(folder.path(version)).unwrap();
        fs::write(folder.path(version).join("targets"), text).unwrap();
    }
    symlink("v1", folder.path("..data")).unwrap();
    symlink("..data/targets", folder.path("targets")).unwrap();
    let found = discover::file(folder.path("targets")).start().unwrap();
    serves(&found, &[1]).await;
    symlink("v2", folder.path("..new")).unwrap();
    fs::rename(folder.path("..new"), folder.path("..data")).unwrap();
    serves(&found, &[2]).await;
}

#[tokio::test]
async fn a_file_may_come_later_and_an_empty_one_means_what_it_is_told_to() {
    let folder = Folder::new("later");
    let path = folder.path("targets");
    let kept = discover::file(&path).start().unwrap();
    let believed = discover::file(&path).when_empty(WhenEmpty::Believe);
    let believed = believed.start().unwrap();
    let error = kept.first(Duration::from_millis(200)).await.unwrap_err();
    assert!(error.failure().unwrap().contains("No such file"), "{error}");
    rename_into(&path, "10.0.0.1:1");
    serves(&kept, &[1]).await;
    serves(&believed, &[1]).await;
    rename_into(&path, "# nobody");
    serves(&believed, &[]).await;
    assert_eq!(kept.targets().len(), 1);
    rename_into(&path, "10.0.0.1:2");
    serves(&kept, &[2]).await;
    serves(&believed, &[2]).await;
}

/// Long, for machines that are busy. A test that passes takes some hundredths of it.
const PATIENCE: Duration = Duration::from_secs(30);
