//! Where etcd is and which addresses are allowed: the configuration file, and
//! what was said in place of its keys.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::json;

use super::CtlError;
use crate::config::{Config, EtcdConfig};
use crate::model::{Allow, Instance};

/// What commands need of the configuration.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The cluster, and how to be let in.
    pub etcd: EtcdConfig,
    /// Where instances may be.
    pub allow: Allow,
    /// The services that the file names, each with the instances that it has there.
    pub services: BTreeMap<String, Vec<Instance>>,
}

/// Values in place of the file's `etcd` keys; empty or `None`: as in the file.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// `etcd.endpoints`.
    pub endpoints: Vec<String>,
    /// `etcd.prefix`.
    pub prefix: Option<String>,
    /// `etcd.username`.
    pub username: Option<String>,
    /// `etcd.password_file`.
    pub password_file: Option<String>,
    /// `etcd.tls.ca`.
    pub ca: Option<String>,
    /// `etcd.tls.cert`.
    pub cert: Option<String>,
    /// `etcd.tls.key`.
    pub key: Option<String>,
}

impl Settings {
    /// Reads `file`, or the defaults where there is none, and puts `overrides` in
    /// place of its keys. What comes of it is checked as a file's keys are.
    ///
    /// # Errors
    /// [`CtlError::Load`] if the file is not taken, [`CtlError::Overrides`] if
    /// what stands in its place is not.
    pub fn load(file: Option<&Path>, overrides: &Overrides) -> Result<Self, CtlError> {
        let (file, allow, services) = match file.map(Config::load).transpose()? {
            Some(config) => {
                let services = config.services.into_iter().map(|(name, it)| (name, it.instances));
                (config.etcd, config.allow, services.collect())
            }
            None => Default::default(),
        };
        let or =
            |value: &Option<String>, of_file: &String| value.as_ref().unwrap_or(of_file).clone();
        let endpoints = match overrides.endpoints.is_empty() {
            true => &file.endpoints,
            false => &overrides.endpoints,
        };
        let none = BTreeMap::new();
        let merged = json!({
            "services": {},
            "etcd": {
                "endpoints": endpoints,
                "prefix": or(&overrides.prefix, &file.prefix),
                // Those of the file are beside the file's own one.
                "prefixes": if overrides.prefix.is_some() { &none } else { &file.prefixes },
                "username": or(&overrides.username, &file.username),
                "password_file": or(&overrides.password_file, &file.password_file),
                "tls": {
                    "ca": or(&overrides.ca, &file.tls.ca),
                    "cert": or(&overrides.cert, &file.tls.cert),
                    "key": or(&overrides.key, &file.tls.key),
                },
            },
        });
        let checked = Config::parse(&merged.to_string()).map_err(CtlError::Overrides)?;
        Ok(Self { etcd: checked.etcd, allow, services })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_stands_in_place_of_the_files_keys_and_the_others_stay() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ipconfig.json");
        let text = r#"{"services": {"chat": {}}, "allow": ["10.0.0.0/8"], "etcd": {"prefix": "/other", "prefixes": {"west": "/west"},
            "endpoints": ["http://10.0.0.1:2379"], "tls": {"ca": "/etc/ca.pem"}}}"#;
        std::fs::write(&file, text).unwrap();
        let endpoints = vec!["http://10.0.0.2:2379".to_owned(), "http://10.0.0.3:2379".to_owned()];
        let west = BTreeMap::from([("west".to_owned(), "/west".to_owned())]);
        let overrides = Overrides { endpoints: endpoints.clone(), ..Default::default() };

        let Settings { etcd, allow, services } = Settings::load(Some(&file), &overrides).unwrap();
        assert_eq!(etcd.endpoints, endpoints);
        assert_eq!((etcd.prefix.as_str(), etcd.tls.ca.as_str()), ("/other", "/etc/ca.pem"));
        assert_eq!(etcd.prefixes, west);
        assert_eq!(allow.to_string(), "10.0.0.0/8");
        assert_eq!(services, BTreeMap::from([("chat".to_owned(), vec![])]));
        let overrides = Overrides { prefix: Some("/west".into()), ..Default::default() };
        let Settings { etcd, .. } = Settings::load(Some(&file), &overrides).unwrap();
        assert_eq!((etcd.prefix.as_str(), etcd.prefixes.len()), ("/west", 0), "one alone");
    }

    #[test]
    fn without_a_file_the_defaults_hold() {
        let settings = Settings::load(None, &Overrides::default()).unwrap();
        assert_eq!(settings.etcd, EtcdConfig::default());
    }

    #[test]
    fn what_is_said_is_checked_as_the_file_is() {
        let refused = |overrides| Settings::load(None, &overrides).unwrap_err().to_string();
        let endpoints = vec!["127.0.0.1:2379".to_owned()];
        let message = refused(Overrides { endpoints, ..Default::default() });
        assert!(message.contains("etcd.endpoints"), "{message}");
        let username = Some("operator".to_owned());
        let message = refused(Overrides { username, ..Default::default() });
        assert!(message.contains("etcd.password_file"), "{message}");
    }
}
