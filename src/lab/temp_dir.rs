//! A directory that vanishes with its handle.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use nix::unistd::mkdtemp;

use super::error::LabError;

/// A fresh directory of mode 0700, removed with everything in it on drop.
#[derive(Debug)]
pub struct TempDir(PathBuf);

impl TempDir {
    /// Makes one under the system's directory for temporary files.
    ///
    /// # Errors
    ///
    /// [`LabError::File`].
    pub fn new() -> Result<Self, LabError> {
        let template = env::temp_dir().join("kube-tun-proxy-lab-XXXXXX");
        match mkdtemp(&template) {
            Ok(path) => Ok(Self(path)),
            Err(errno) => Err(LabError::File {
                path: template,
                cause: errno.into(),
            }),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        // Nobody is left to tell; the directory is for temporary files.
        drop(fs::remove_dir_all(&self.0));
    }
}
