//! What `ipconfigctl check` and `ipconfig-exporter --check-config` tell of a file.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use thiserror::Error;

use super::{ExporterError, check};
use crate::config::{Config, LoadError};

/// What a configuration file that is good holds; as text for instance
/// `ipconfig.json: ok: 1 service, 2 instances`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Summary {
    file: PathBuf,
    services: usize,
    instances: usize,
}

/// Why a configuration file was refused.
#[derive(Debug, Error)]
pub enum CheckError {
    /// By itself.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// By what an exporter of this version can do.
    #[error("{}: {source}", .file.display())]
    Exporter {
        /// The file.
        file: PathBuf,
        /// What an exporter would end with.
        source: ExporterError,
    },
}

/// Reads a configuration file as gateway and exporter do when they start, and
/// starts nothing.
///
/// # Errors
/// [`CheckError`], what they would end with.
pub fn check_file(file: &Path) -> Result<Summary, CheckError> {
    let config = Config::load(file)?;
    check(&config).map_err(|source| CheckError::Exporter { file: file.to_owned(), source })?;
    let instances = config.services.values().map(|service| service.instances.len()).sum();
    Ok(Summary { file: file.to_owned(), services: config.services.len(), instances })
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counted = |number: usize, noun: &str| {
            format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
        };
        let services = counted(self.services, "service");
        let instances = counted(self.instances, "instance");
        write!(f, "{}: ok: {services}, {instances}", self.file.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_one_and_the_others_are_many() {
        let told = |services, instances| {
            Summary { file: "a.json".into(), services, instances }.to_string()
        };
        assert_eq!(told(1, 2), "a.json: ok: 1 service, 2 instances");
        assert_eq!(told(0, 1), "a.json: ok: 0 services, 1 instance");
    }
}
