//! Where keys are from: below the own prefix, or below that of another
//! cluster whose instances are served with its own ones. Such an instance `chat-1` of
//! `west` is `west:chat-1` here, and has the label `cluster=west`. What operators say
//! of a service is below the own prefix alone.

use crate::config::EtcdConfig;
use crate::model::{Instance, is_name};
use crate::wire::{self, Key, RecordError};

/// The label of another cluster's instances.
const LABEL: &str = "cluster";

/// All prefixes that a gateway follows, and `ipconfigctl` reads.
#[derive(Debug)]
pub struct Prefixes {
    own: String,
    /// Each with a colon after its name, and its prefix.
    clusters: Vec<(String, String)>,
}

impl Prefixes {
    /// Those of the configuration.
    pub fn new(config: &EtcdConfig) -> Self {
        let cluster = |(name, prefix): (&String, &String)| (format!("{name}:"), prefix.clone());
        let clusters = config.prefixes.iter().map(cluster).collect();
        Prefixes { own: config.prefix.clone(), clusters }
    }

    /// The gateway's own prefix.
    pub fn own(&self) -> &str {
        &self.own
    }

    /// What a key means here; `None` if nothing: it is somebody else's, between two
    /// prefixes, or is of a kind that counts below the own prefix alone.
    ///
    /// # Errors
    /// Why a key below one of the prefixes is not taken.
    pub fn parse(&self, key: &[u8]) -> Option<Result<Key, RecordError>> {
        let is_below = |prefix: &str| {
            key.strip_prefix(prefix.as_bytes()).is_some_and(|rest| rest.starts_with(b"/"))
        };
        let Some((cluster, prefix)) = self.clusters.iter().find(|(_, prefix)| is_below(prefix))
        else {
            let is_ours = self.clusters.is_empty() || is_below(&self.own);
            return is_ours.then(|| self.parse_own(key));
        };
        match wire::parse_key(prefix, key) {
            Ok(Key::Instance { service, id }) => {
                let id = format!("{cluster}{id}");
                let why = "its id is longer than 128 bytes with the cluster's name before it";
                let is_short = is_name(&id);
                Some(
                    is_short
                        .then_some(Key::Instance { service, id })
                        .ok_or_else(|| refused(key, why)),
                )
            }
            Ok(Key::Status { exporter, service, shard }) => {
                let exporter = format!("{cluster}{exporter}");
                Some(Ok(Key::Status { exporter, service, shard }))
            }
            Ok(
                Key::Control { .. }
                | Key::Policy { .. }
                | Key::Exporter { .. }
                | Key::Checks { .. },
            ) => None,
            Err(error) => Some(Err(error)),
        }
    }

    fn parse_own(&self, key: &[u8]) -> Result<Key, RecordError> {
        match wire::parse_key(&self.own, key)? {
            Key::Instance { id, .. } if self.cluster(&id).is_some() => {
                Err(refused(key, "its id begins with the name of a cluster in etcd.prefixes"))
            }
            key => Ok(key),
        }
    }

    /// What ids begin with that an exporter of this name reports.
    pub fn of_exporter(&self, exporter: &str) -> &str {
        self.cluster(exporter).map_or("", |(cluster, _)| cluster)
    }

    /// Labels another cluster's instance.
    pub fn label(&self, instance: &mut Instance) {
        if let Some((cluster, _)) = self.cluster(&instance.id) {
            let name = cluster.trim_end_matches(':').to_owned();
            instance.labels.insert(LABEL.to_owned(), name);
        }
    }

    /// The key of an instance.
    pub fn path(&self, service: &str, id: &str) -> String {
        let (prefix, id) = self.home(id);
        Key::Instance { service: service.to_owned(), id: id.to_owned() }.to_path(prefix)
    }

    /// Below which prefix an instance is registered, and its id there.
    pub fn home<'a>(&'a self, id: &'a str) -> (&'a str, &'a str) {
        match self.cluster(id) {
            Some((cluster, prefix)) => (prefix, &id[cluster.len()..]),
            None => (&self.own, id),
        }
    }

    /// Each prefix after what the ids of instances below it begin with here: nothing
    /// for the own one, which is the first.
    pub fn all(&self) -> impl Iterator<Item = (&str, &str)> {
        let clusters = self.clusters.iter().map(|(name, prefix)| (name.as_str(), prefix.as_str()));
        std::iter::once(("", self.own.as_str())).chain(clusters)
    }

    fn cluster(&self, id: &str) -> Option<(&str, &String)> {
        let cluster = self.clusters.iter().find(|(cluster, _)| id.starts_with(cluster));
        cluster.map(|(cluster, prefix)| (cluster.as_str(), prefix))
    }
}

fn refused(key: &[u8], why: &'static str) -> RecordError {
    RecordError::Key { key: key.escape_ascii().to_string(), why }
}
