//! The file and the generation before it: `PATH` and `PATH.1`.
//!
//! A new one is written beside them under a name of its own, brought to the disk, and
//! then renamed, so that at each moment one of the two names is a whole file, whoever
//! is killed and however many processes write: between the last look and the rename a
//! process has the folder to itself. A file that is no snapshot is not
//! overwritten: it becomes `PATH.bad`. One that says something later is left: a thread
//! that has ended, or an old worker, may wait for its disk longer than its successor.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use thiserror::Error;
use tokio::time::Instant;

use super::{MAX_LEN, Miss, Snapshot};
use crate::clock::unix_ms;

/// For its owner, which is the user of nginx's workers, and for its group to read.
const MODE: u32 = 0o640;

/// What a process that was killed while it wrote left behind is removed after this.
const LEFT_BEHIND: Duration = Duration::from_secs(600);

/// One of the two files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Generation {
    /// `PATH`.
    Newest,
    /// `PATH.1`.
    Older,
}

impl Generation {
    /// The name in the metrics and the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Newest => "newest",
            Self::Older => "older",
        }
    }

    fn of(self, path: &Path) -> PathBuf {
        match self {
            Self::Newest => path.to_owned(),
            Self::Older => with_suffix(path, ".1"),
        }
    }
}

/// What was found at a path.
#[derive(Debug)]
pub struct Loaded {
    /// The newest generation that is sound.
    pub found: Option<(Generation, Snapshot)>,
    /// Why those before it are not.
    pub misses: Vec<(PathBuf, Miss)>,
}

/// Why nothing was written. What was there is as it was.
#[derive(Debug, Error)]
pub enum SaveError {
    /// More than what is ever read.
    #[error("it would have {0} bytes, and {MAX_LEN} at most are written")]
    TooLarge(usize),
    /// The system's answer.
    #[error("failed to {action} {}: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
}

impl SaveError {
    /// The name in the metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::TooLarge(_) => "too_large",
            Self::Io { source, .. } => match source.kind() {
                ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "no_space",
                ErrorKind::FileTooLarge => "no_space",
                ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => "denied",
                ErrorKind::NotFound | ErrorKind::NotADirectory => "no_folder",
                _ => "failed",
            },
        }
    }
}

/// What is in the file.
#[derive(Debug)]
pub struct Saved {
    /// Whether it was written; if not, it says something later.
    pub is_written: bool,
    /// [`Snapshot::as_of_ms`] of the file.
    pub as_of_ms: u64,
    /// A file that was no snapshot and is `PATH.bad` now.
    pub put_aside: Option<Miss>,
    /// Services that have lost most of their instances, whose keys the file keeps for
    /// now.
    pub doubted: Vec<String>,
}

/// The newest of the two generations that is sound and of this prefix.
pub fn load(path: &Path, prefix: &str) -> Loaded {
    let mut misses = Vec::new();
    for generation in [Generation::Newest, Generation::Older] {
        let path = generation.of(path);
        match read(&path, prefix) {
            Ok(snapshot) => return Loaded { found: Some((generation, snapshot)), misses },
            Err(miss) => misses.push((path, miss)),
        }
    }
    Loaded { found: None, misses }
}

/// Puts a snapshot in the place of the file, which becomes the older generation if it
/// says anything else, and stays if it says something later. A service that has lost
/// most of its instances keeps those that are on disk, until the loss has stood for
/// `stands`; one that this gateway does not serve goes.
///
/// # Errors
/// Why the file is as it was.
pub fn save(
    path: &Path,
    snapshot: Snapshot,
    stands: Duration,
    serves: impl Fn(&str) -> bool,
) -> Result<Saved, SaveError> {
    Draft::write(path, snapshot, stands, serves)?.put_in_place()
}

/// A file beside the one whose place it is to take.
pub(super) struct Draft<'a> {
    path: &'a Path,
    new: PathBuf,
    snapshot: Snapshot,
}

impl<'a> Draft<'a> {
    /// On the disk when this returns, which may take long.
    pub(super) fn write(
        path: &'a Path,
        mut snapshot: Snapshot,
        stands: Duration,
        serves: impl Fn(&str) -> bool,
    ) -> Result<Self, SaveError> {
        if let Some((_, known)) = load(path, &snapshot.prefix).found {
            snapshot.hold_losses(&known, stands, serves);
        }
        let bytes = snapshot.encode();
        if bytes.len() > MAX_LEN {
            return Err(SaveError::TooLarge(bytes.len()));
        }
        remove_left_behind(path);
        let draft = Draft { path, new: with_suffix(path, &unique_suffix()), snapshot };
        match write(&draft.new, &bytes) {
            Ok(()) => Ok(draft),
            Err(source) => {
                draft.remove();
                Err(in_folder("write a file in", path, source))
            }
        }
    }

    pub(super) fn put_in_place(self) -> Result<Saved, SaveError> {
        let turn = Turn::take(self.path);
        turn.and_then(|_turn| self.replace()).inspect_err(|_| self.remove())
    }

    fn replace(&self) -> Result<Saved, SaveError> {
        // Read as late as this: others may have written since the draft was begun.
        let put_aside = match read(self.path, &self.snapshot.prefix) {
            Ok(there) if self.is_overtaken_by(&there) => {
                self.remove();
                return Ok(Saved::of(&there));
            }
            Ok(there) if there.services == self.snapshot.services => None,
            Ok(_) => {
                move_away(self.path, &Generation::Older.of(self.path))?;
                None
            }
            Err(Miss::Missing) => None,
            Err(miss) => {
                move_away(self.path, &with_suffix(self.path, ".bad"))?;
                Some(miss)
            }
        };
        rename(&self.new, self.path)?;
        sync_folder(self.path)?;
        Ok(Saved { is_written: true, put_aside, ..Saved::of(&self.snapshot) })
    }

    /// What is later than now says that the clock was put back, and nothing else.
    fn is_overtaken_by(&self, there: &Snapshot) -> bool {
        there.as_of_ms > self.snapshot.as_of_ms && there.as_of_ms <= unix_ms()
    }

    fn remove(&self) {
        // What cannot be removed is removed later.
        let _ = fs::remove_file(&self.new);
    }
}

/// Between the look at what is there and the rename no other process renames: a lock on
/// the folder, which ends with its holder, however that one ends. Nothing is left behind,
/// and a file system that has no such locks does without.
struct Turn {
    _folder: Option<File>,
}

impl Turn {
    /// Renames take a moment. Who takes longer hangs, and is not waited for.
    const PATIENCE: Duration = Duration::from_secs(1);

    fn take(path: &Path) -> Result<Self, SaveError> {
        let folder = path.parent().unwrap_or(path);
        let opened = File::open(folder);
        let file = opened.map_err(|source| in_folder("open", path, source))?;
        let begun = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Self { _folder: Some(file) }),
                Err(TryLockError::Error(_)) => return Ok(Self { _folder: None }),
                Err(TryLockError::WouldBlock) if begun.elapsed() > Self::PATIENCE => {
                    return Err(in_folder("lock", path, ErrorKind::ResourceBusy.into()));
                }
                Err(TryLockError::WouldBlock) => {
                    std::thread::park_timeout(Duration::from_millis(5))
                }
            }
        }
    }
}

impl Saved {
    fn of(there: &Snapshot) -> Self {
        Saved {
            is_written: false,
            as_of_ms: there.as_of_ms,
            put_aside: None,
            doubted: there.doubted.keys().cloned().collect(),
        }
    }
}

fn read(path: &Path, prefix: &str) -> Result<Snapshot, Miss> {
    let unreadable = |error: io::Error| match error.kind() {
        ErrorKind::NotFound => Miss::Missing,
        _ => Miss::Unreadable(error),
    };
    // Nobody is waited for who may write into a pipe.
    let mut options = OpenOptions::new();
    let file = options.read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(unreadable)?;
    let about = file.metadata().map_err(unreadable)?;
    if !about.is_file() {
        return Err(Miss::NoFile);
    }
    let mut bytes = Vec::new();
    file.take(MAX_LEN as u64 + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() > MAX_LEN {
        return Err(Miss::TooLarge(about.len()));
    }
    let snapshot = Snapshot::decode(&bytes)?;
    if snapshot.prefix != prefix {
        return Err(Miss::Prefix { found: snapshot.prefix, wanted: prefix.to_owned() });
    }
    Ok(snapshot)
}

/// A new file with these bytes, on the disk when this returns.
fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(MODE).open(path)?;
    // Whatever the umask is.
    file.set_permissions(Permissions::from_mode(MODE))?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Named by the folder: the file's own name is another one each time.
fn in_folder(action: &'static str, path: &Path, source: io::Error) -> SaveError {
    SaveError::Io { action, path: path.parent().unwrap_or(path).to_owned(), source }
}

fn rename(from: &Path, to: &Path) -> Result<(), SaveError> {
    fs::rename(from, to).map_err(|source| in_folder("rename a file in", from, source))
}

/// Renames a file that another process may have renamed in the meantime.
fn move_away(from: &Path, to: &Path) -> Result<(), SaveError> {
    match rename(from, to) {
        Err(SaveError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Brings the renames to the disk.
fn sync_folder(path: &Path) -> Result<(), SaveError> {
    let folder = path.parent().unwrap_or(path);
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(|source| in_folder("sync", path, source))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

const TMP: &str = ".tmp";

/// Another one for each write of each process of the host; several hosts that share a
/// folder find out when they make the file.
fn unique_suffix() -> String {
    static WRITES: AtomicU32 = AtomicU32::new(0);
    let n = WRITES.fetch_add(1, Ordering::Relaxed);
    format!(".{}-{n}{TMP}", std::process::id())
}

fn remove_left_behind(path: &Path) {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else { return };
    let Some(begin) = name.to_str().map(|name| format!("{name}.")) else { return };
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let is_ours = |name: &str| name.starts_with(&begin) && name.ends_with(TMP);
        let age = || entry.metadata().ok()?.modified().ok()?.elapsed().ok();
        if name.to_str().is_some_and(is_ours) && age().is_some_and(|age| age > LEFT_BEHIND) {
            let _ = fs::remove_file(entry.path());
        }
    }
}
