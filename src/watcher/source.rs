//! What the watcher needs of a place that has keys: etcd, a stream straight
//! from the exporters, a file.

use std::error::Error;

/// Where keys come from: something with revisions, that can be listed at one
/// of them and watched from one of them.
///
/// Every call but [`Watch::next`] ends within a bounded time, by itself.
pub trait Source {
    /// Why a call failed.
    type Error: Error + Send + Sync + 'static;
    /// An open stream of changes.
    type Watch: Watch<Error = Self::Error>;

    /// Connects to the next endpoint, if there are several, in place of the
    /// connection that there is. Where that fails, it stays; streams that were
    /// opened on it stay in any case.
    fn connect(&mut self) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Reads a part of all keys, in the order of the keys.
    fn list(&mut self, page: PageRequest)
    -> impl Future<Output = Result<Page, Self::Error>> + Send;

    /// Opens a stream of all changes at or after `from_revision`.
    fn watch(
        &mut self,
        from_revision: i64,
    ) -> impl Future<Output = Result<Self::Watch, Self::Error>> + Send;

    /// How far the source has come, by the word of all its members and not of the
    /// one that is asked: a member that lags does not answer before it is there.
    fn newest(&mut self) -> impl Future<Output = Result<Head, Self::Error>> + Send;

    /// Whether the files that the connection was made with are others by now. `false`
    /// as well while that takes long to find out.
    fn is_outdated(&mut self) -> impl Future<Output = bool> + Send {
        std::future::ready(false)
    }

    /// Whether a progress message's revision is a promise that every change up
    /// to it was delivered.
    fn progress_is_exact(&self) -> bool;

    /// Whether `error` means that the source cannot tell what came after the
    /// revision that was asked for, so that only a list helps.
    fn history_is_lost(error: &Self::Error) -> bool;

    /// Whether `error` means that the source refuses whoever asks, and will until
    /// somebody changes that, so that asking soon is of no use.
    fn is_refusal(error: &Self::Error) -> bool;
}

/// An open stream of changes.
pub trait Watch {
    /// Why the stream broke.
    type Error;

    /// The next message; the end of the stream is an error. Dropping the
    /// future before it is ready loses no message.
    fn next(&mut self) -> impl Future<Output = Result<Message, Self::Error>> + Send;

    /// Asks for a message without changes, as a sign of life.
    fn request_progress(&mut self) -> impl Future<Output = Result<(), Self::Error>> + Send;
}

/// How far a source has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Whose revisions these are; another number is another history.
    pub cluster_id: u64,
    /// The last one.
    pub revision: i64,
}

/// Which part of a list is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PageRequest {
    /// The revision to read at; `None`: the newest, which the page tells.
    pub revision: Option<i64>,
    /// Keys after this one; `None`: from the first.
    pub after: Option<Vec<u8>>,
}

/// A part of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// Whose revisions these are; another number is another history.
    pub cluster_id: u64,
    /// The source's revision when it answered.
    pub revision: i64,
    /// In the order of the keys.
    pub records: Vec<Record>,
    /// Whether there are keys after the last one of these.
    pub more: bool,
}

/// A key and what it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The whole key, with its prefix.
    pub key: Vec<u8>,
    /// What it holds.
    pub value: Vec<u8>,
    /// When it was written.
    pub mod_revision: i64,
    /// See [`Change::mark`].
    pub mark: u64,
}

/// What a stream says. More than one of the parts may be set: the watcher
/// looks at them in the order of the fields.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Message {
    /// Whose revisions these are; another number is another history.
    pub cluster_id: u64,
    /// The source's revision when it sent the message.
    pub revision: i64,
    /// Not 0: the source forgot what came before this revision, and the stream
    /// asked for some of it. The stream ends; etcd sets `canceled` as well.
    pub compact_revision: i64,
    /// The source ends the stream, for this reason. May come in place of the
    /// first message, and together with `created`.
    pub canceled: Option<String>,
    /// The stream is open. Says nothing about what was delivered.
    pub created: bool,
    /// Whole revisions, in order. None, if this is a sign of life.
    pub changes: Vec<Change>,
}

/// One change of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The whole key, with its prefix.
    pub key: Vec<u8>,
    /// `None`: the key was deleted.
    pub value: Option<Vec<u8>>,
    /// When it changed.
    pub mod_revision: i64,
    /// A hash of all that is known of the write. What was written at this revision
    /// in another history has another one.
    pub mark: u64,
}
