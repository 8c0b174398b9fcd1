//! A file that lists targets.

use std::{fs, net::SocketAddr};

use serde_json::Value;
use tempfile::TempDir;
use tower_lb::discover::{self, Source};

use crate::traffic::Registry;

/// A file in a folder of its own. At first it is not there.
#[derive(Debug)]
pub struct File(TempDir);

impl Default for File {
    fn default() -> Self {
        Self(tempfile::tempdir().unwrap())
    }
}

impl File {
    /// Returns a source of the targets in the file.
    pub fn source(&self) -> Source {
        discover::file(self.0.path().join("users.json"))
    }

    /// Replaces the file, as a careful writer does.
    pub fn write(&self, text: &str) {
        let new = self.0.path().join("new");
        fs::write(&new, text).unwrap();
        fs::rename(new, self.0.path().join("users.json")).unwrap();
    }

    /// Removes the file, if it is there.
    pub fn remove(&self) {
        let _ = fs::remove_file(self.0.path().join("users.json"));
    }
}

impl Registry for File {
    async fn list(&mut self, servers: &[SocketAddr]) {
        let servers: Vec<_> = servers.iter().map(ToString::to_string).collect();
        self.write(&Value::from(servers).to_string());
    }
}
