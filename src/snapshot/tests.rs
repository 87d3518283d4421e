#![allow(unsafe_code, reason = "a test calls what is not safe")]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use proptest::prelude::*;
use tempfile::TempDir;
use tokio::time::Instant;

use super::disk::Draft;
use super::*;
use crate::clock::unix_ms;
use crate::config::{Config, Discover, ServiceConfig, SnapshotConfig};

const PREFIX: &str = "/ipconfig/v1";
const MINUTES: Duration = Duration::from_secs(600);

fn record(key: &str, value: &str) -> Record {
    Record { key: key.into(), mod_revision: 7, value: value.into() }
}

/// `chat` with these instances.
fn chat(ids: &[&str]) -> Snapshot {
    let instance = |id: &&str| {
        let key = format!("{PREFIX}/instances/chat/{id}");
        record(&key, r#"{"addr":"10.0.0.1:80"}"#)
    };
    let records = Records { instances: ids.iter().map(instance).collect(), ..Records::default() };
    Snapshot {
        as_of_ms: 1_700_000_000_000,
        revision: 17,
        prefix: PREFIX.into(),
        services: [("chat".to_owned(), records)].into(),
        ..Snapshot::default()
    }
}

fn as_of(as_of_ms: u64, ids: &[&str]) -> Snapshot {
    Snapshot { as_of_ms, ..chat(ids) }
}

/// Every service.
fn all(_: &str) -> bool {
    true
}

fn ids(snapshot: &Snapshot) -> Vec<&str> {
    let instances = snapshot.services.values().flat_map(|it| &it.instances);
    instances.filter_map(|it| it.key.rsplit('/').next()).collect()
}

/// A folder with a file in it, or a place for one.
struct Place {
    _folder: TempDir,
    path: PathBuf,
}

impl Place {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("snapshot");
        Place { _folder: folder, path }
    }

    fn with(suffix: &str) -> (Self, PathBuf) {
        let place = Self::new();
        let path = place.file(suffix);
        (place, path)
    }

    fn file(&self, suffix: &str) -> PathBuf {
        format!("{}{suffix}", self.path.display()).into()
    }

    fn save(&self, snapshot: Snapshot) -> Saved {
        save(&self.path, snapshot, MINUTES, all).expect("a folder to write in")
    }

    fn load(&self) -> Loaded {
        load(&self.path, PREFIX)
    }

    /// The ids of the generation that would serve, and why those before it would not.
    fn serves(&self) -> (Option<Vec<String>>, Vec<&'static str>) {
        let Loaded { found, misses } = self.load();
        let owned = |ids: Vec<&str>| ids.into_iter().map(str::to_owned).collect();
        let found = found.map(|(_, snapshot)| owned(ids(&snapshot)));
        (found, misses.iter().map(|(_, miss)| miss.reason()).collect())
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path.parent().unwrap()).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

fn serving(ids: &[&str]) -> Option<Vec<String>> {
    Some(ids.iter().map(|id| (*id).to_owned()).collect())
}

// === the bytes ===

#[test]
fn the_first_line_says_what_the_file_is_and_the_rest_is_json() {
    let bytes = chat(&["a"]).encode();
    let text = String::from_utf8(bytes.clone()).unwrap();
    let (header, body) = text.split_once('\n').unwrap();
    let len = format!("{:016x}\n", body.len());
    let crc = crc32fast::hash(format!("{len}{body}").as_bytes());
    assert_eq!(format!("{header}\n"), format!("ipconfig-snapshot 1 {crc:08x} {len}"));
    assert_eq!(
        body,
        concat!(
            r#"{"as_of_ms":1700000000000,"revision":17,"prefix":"/ipconfig/v1","services":"#,
            r#"{"chat":{"instances":[["/ipconfig/v1/instances/chat/a",7,"#,
            r#""{\"addr\":\"10.0.0.1:80\"}"]],"controls":[]}}}"#
        )
    );
    assert_eq!(Snapshot::decode(&bytes).unwrap(), chat(&["a"]));
}

#[test]
fn what_is_no_snapshot_of_this_format_is_told_apart() {
    let whole = chat(&["a"]).encode();
    let reason = |bytes: &[u8]| Snapshot::decode(bytes).unwrap_err().reason();
    assert_eq!(reason(b"root:x:0:0:root:/root:/bin/bash\n"), "foreign");
    assert_eq!(reason(b""), "truncated");
    assert_eq!(reason(&whole[..30]), "truncated");
    assert_eq!(reason(&whole[..whole.len() - 1]), "truncated");
    assert_eq!(reason(&[&whole[..], b"\n"].concat()), "overlong");
    let mut other = whole.clone();
    other[18] = b'2';
    let miss = Snapshot::decode(&other).unwrap_err();
    assert_eq!(miss.to_string(), r#"it is of format "2", and this version reads 1"#);

    // Whole, with a key that this version does not know: what it says is not known.
    let text = String::from_utf8(whole[HEADER_LEN..].to_vec()).unwrap();
    let body = text.replace("\"revision\"", "\"revisio\"").into_bytes();
    let covered = [format!("{:016x}\n", body.len()).into_bytes(), body].concat();
    let crc = crc32fast::hash(&covered);
    let sealed = [format!("ipconfig-snapshot 1 {crc:08x} ").into_bytes(), covered].concat();
    assert_eq!(reason(&sealed), "body");
}

fn any_snapshot() -> impl Strategy<Value = Snapshot> {
    let record = || {
        (".{0,40}", any::<i64>(), ".{0,80}").prop_map(|(key, mod_revision, value)| Record {
            key: key.into(),
            mod_revision,
            value: value.into(),
        })
    };
    let records = (prop::collection::vec(record(), 0..6), prop::collection::vec(record(), 0..2))
        .prop_map(|(instances, controls)| Records { instances, controls });
    (
        any::<u64>(),
        any::<i64>(),
        ".{0,20}",
        prop::collection::btree_map(".{0,10}", records, 0..5),
        prop::collection::btree_map(
            ".{0,10}",
            prop::collection::vec(any::<(usize, u64)>(), 0..3),
            0..3,
        ),
        prop::collection::btree_map(".{0,10}", any::<usize>(), 0..3),
    )
        .prop_map(|(as_of_ms, revision, prefix, services, had, doubted)| Snapshot {
            as_of_ms,
            revision,
            prefix,
            services,
            had,
            doubted,
        })
}

proptest! {
    #[test]
    fn a_snapshot_comes_back_as_it_went(snapshot in any_snapshot()) {
        let back = Snapshot::decode(&snapshot.encode()).unwrap();
        let revisions = |of: &Snapshot| -> Vec<i64> {
            of.services.values().flat_map(|it| &it.instances).map(|it| it.mod_revision).collect()
        };
        prop_assert_eq!(revisions(&back), revisions(&snapshot));
        prop_assert_eq!(back, snapshot);
    }

    #[test]
    fn a_file_that_was_cut_short_or_went_on_is_a_miss(
        snapshot in any_snapshot(), at in any::<prop::sample::Index>(), more in ".{1,40}",
    ) {
        let whole = snapshot.encode();
        let miss = Snapshot::decode(&whole[..at.index(whole.len())]).unwrap_err();
        prop_assert_eq!(miss.reason(), "truncated");
        let miss = Snapshot::decode(&[whole, more.into_bytes()].concat()).unwrap_err();
        prop_assert_eq!(miss.reason(), "overlong");
    }

    #[test]
    fn a_file_with_flipped_bits_is_a_miss(
        snapshot in any_snapshot(),
        flips in prop::collection::vec((any::<prop::sample::Index>(), 0..8_u32), 1..4),
    ) {
        let whole = snapshot.encode();
        let mut bytes = whole.clone();
        for (at, bit) in flips {
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
        }
        prop_assert_eq!(Snapshot::decode(&bytes).is_err(), bytes != whole);
    }

    #[test]
    fn no_bytes_make_the_reader_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..200), header in any::<bool>(),
    ) {
        let begin: &[u8] = if header { b"ipconfig-snapshot 1 " } else { b"" };
        prop_assert!(Snapshot::decode(&[begin, &bytes].concat()).is_err());
    }
}

/// The header is short enough to be tried whole.
#[test]
fn each_single_flipped_bit_of_the_header_is_a_miss() {
    let whole = chat(&["a"]).encode();
    for at in 0..HEADER_LEN {
        for bit in 0..8 {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << bit;
            assert!(Snapshot::decode(&bytes).is_err(), "bit {bit} of byte {at}");
        }
    }
}

// === the files ===

#[test]
fn a_new_view_makes_the_last_one_the_older_generation_and_the_same_one_does_not() {
    let place = Place::new();
    assert_eq!(place.serves(), (None, vec!["missing", "missing"]));
    place.save(as_of(1, &["a"]));
    assert_eq!(place.names(), ["snapshot"]);
    place.save(as_of(2, &["a", "b"]));
    place.save(as_of(3, &["a", "b"]));
    assert_eq!(place.names(), ["snapshot", "snapshot.1"]);
    let Loaded { found: Some((Generation::Newest, newest)), .. } = place.load() else {
        panic!("{:?}", place.load())
    };
    assert_eq!((newest.as_of_ms, ids(&newest)), (3, vec!["a", "b"]));
    let older = Snapshot::decode(&fs::read(place.file(".1")).unwrap()).unwrap();
    assert_eq!((older.as_of_ms, ids(&older)), (1, vec!["a"]));
    assert_eq!(fs::metadata(&place.path).unwrap().permissions().mode() & 0o777, 0o640);
}

#[test]
fn one_that_is_no_snapshot_gives_way_to_the_older_generation_and_is_not_overwritten() {
    let place = Place::new();
    place.save(chat(&["a"]));
    place.save(chat(&["a", "b"]));
    fs::write(&place.path, "listen 80;").unwrap();
    assert_eq!(place.serves(), (serving(&["a"]), vec!["foreign"]));

    let saved = place.save(chat(&["a", "b", "c"]));
    assert_eq!(saved.put_aside.map(|miss| miss.reason()), Some("foreign"));
    assert_eq!(place.serves(), (serving(&["a", "b", "c"]), vec![]));
    assert_eq!(fs::read_to_string(place.file(".bad")).unwrap(), "listen 80;");
    fs::write(&place.path, "").unwrap();
    assert_eq!(
        place.serves(),
        (serving(&["a"]), vec!["truncated"]),
        "what is no snapshot did not take the older one's place"
    );
}

#[test]
fn with_both_of_them_bad_each_has_its_reason() {
    let place = Place::new();
    place.save(chat(&["a"]));
    place.save(chat(&["a", "b"]));
    let whole = fs::read(&place.path).unwrap();
    fs::write(&place.path, &whole[..whole.len() / 2]).unwrap();
    let mut torn = whole;
    torn[100] ^= 1;
    fs::write(place.file(".1"), torn).unwrap();
    assert_eq!(place.serves(), (None, vec!["truncated", "checksum"]));
}

#[test]
fn what_is_no_file_of_this_gateway_is_a_miss_and_nobody_waits_for_it() {
    let (place, older) = Place::with(".1");
    fs::create_dir(&place.path).unwrap();
    let pipe = std::ffi::CString::new(older.to_str().unwrap()).unwrap();
    // SAFETY: a terminated path.
    assert_eq!(unsafe { libc::mkfifo(pipe.as_ptr(), 0o600) }, 0);
    assert_eq!(place.serves(), (None, vec!["no_file", "no_file"]));

    let (place, older) = Place::with(".1");
    fs::File::create(&place.path).unwrap().set_len(MAX_LEN as u64 + 1).unwrap();
    let other = Snapshot { prefix: "/other".into(), ..chat(&["a"]) };
    fs::write(older, other.encode()).unwrap();
    assert_eq!(place.serves(), (None, vec!["too_large", "prefix"]));
}

#[test]
fn a_failure_leaves_what_is_there_says_why_and_leaves_nothing_behind() {
    let missing = Path::new("/nonexistent/ipconfig/snapshot");
    let error = save(missing, chat(&["a"]), MINUTES, all).unwrap_err();
    assert_eq!(error.reason(), "no_folder");
    assert_eq!(
        error.to_string(),
        "failed to write a file in /nonexistent/ipconfig: No such file or directory (os error 2)"
    );

    let place = Place::new();
    place.save(chat(&["a"]));
    // Its older generation cannot be replaced by a file.
    fs::create_dir(place.file(".1")).unwrap();
    fs::write(place.file(".1/x"), "").unwrap();
    let error = save(&place.path, chat(&["b", "a"]), MINUTES, all).unwrap_err();
    assert!(error.to_string().starts_with("failed to rename a file in /"), "{error}");
    assert_eq!(place.serves().0, serving(&["a"]));
    assert_eq!(place.names(), ["snapshot", "snapshot.1"]);

    let too_large = Record { value: "x".repeat(MAX_LEN).into(), ..record("k", "") };
    let mut snapshot = chat(&["a"]);
    snapshot.services.get_mut("chat").unwrap().instances.push(too_large);
    let error = save(&place.path, snapshot, MINUTES, all).unwrap_err();
    assert_eq!(error.reason(), "too_large");
    assert_eq!(place.serves().0, serving(&["a"]));
}

#[test]
fn each_failure_of_the_disk_has_its_name() {
    let reason = |code| {
        let source = io::Error::from_raw_os_error(code);
        SaveError::Io { action: "write a file in", path: "/".into(), source }.reason()
    };
    let codes = [libc::ENOSPC, libc::EDQUOT, libc::EFBIG, libc::EACCES, libc::EROFS, libc::ENOTDIR];
    assert_eq!(
        codes.map(reason),
        ["no_space", "no_space", "no_space", "denied", "denied", "no_folder"]
    );
    assert_eq!(reason(libc::EIO), "failed");
    for result in ["no_space", "denied", "no_folder", "failed", "too_large"] {
        assert!(RESULTS_OF_A_WRITE.contains(&result), "{result}");
    }
}

#[test]
fn what_a_killed_writer_left_behind_is_removed_and_what_one_writes_is_not() {
    let place = Place::new();
    let (old, new) = (place.file(".7-0.tmp"), place.file(".8-0.tmp"));
    let others = place.path.with_file_name("other.7-0.tmp");
    for path in [&old, &new, &others] {
        fs::write(path, "half").unwrap();
    }
    let long_ago = SystemTime::now() - Duration::from_secs(3600);
    for path in [&old, &others] {
        fs::File::options().write(true).open(path).unwrap().set_modified(long_ago).unwrap();
    }
    place.save(chat(&["a"]));
    assert_eq!(place.names(), ["other.7-0.tmp", "snapshot", "snapshot.8-0.tmp"]);
}

#[test]
fn with_several_writers_each_moment_has_a_whole_generation() {
    let place = Place::new();
    place.save(chat(&["a"]));
    std::thread::scope(|scope| {
        let writers = ["b", "c", "d"].map(|id| {
            let place = &place;
            scope.spawn(move || {
                for n in 0..20 {
                    let names: Vec<_> = ["a", id].into_iter().take(1 + n % 2).collect();
                    // Another one's rename may come first; the file is there all the same.
                    let _ = save(&place.path, chat(&names), Duration::ZERO, all);
                }
            })
        });
        let mut reads = 0;
        while reads == 0 || writers.iter().any(|writer| !writer.is_finished()) {
            let loaded = place.load();
            assert!(loaded.found.is_some(), "{:?} after {reads} reads", loaded.misses);
            reads += 1;
        }
    });
}

#[test]
fn who_waited_for_the_disk_does_not_overwrite_what_a_later_one_wrote() {
    let place = Place::new();
    place.save(as_of(1, &["a"]));
    let late = Draft::write(&place.path, as_of(2, &["a", "b"]), MINUTES, all).unwrap();
    assert!(place.save(as_of(3, &["a", "c"])).is_written);
    let saved = late.put_in_place().unwrap();
    assert_eq!((saved.is_written, saved.as_of_ms), (false, 3));
    assert_eq!(place.serves().0, serving(&["a", "c"]));
    assert_eq!(place.names(), ["snapshot", "snapshot.1"]);
    let older = Snapshot::decode(&fs::read(place.file(".1")).unwrap()).unwrap();
    assert_eq!(ids(&older), ["a"]);
}

#[test]
fn while_another_process_renames_nothing_is_written_and_its_death_lets_the_next_one() {
    let place = Place::new();
    place.save(as_of(1, &["a"]));
    let folder = place.path.parent().unwrap();
    // Whoever holds the lock ends with its process, and so does the lock.
    let hold = ["--exclusive", folder.to_str().unwrap(), "sleep", "60"];
    let mut holder = std::process::Command::new("flock");
    // It may outlive a test that fails, and is to hold up nobody who reads our output.
    holder.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    let mut holder = holder.args(hold).spawn().unwrap();
    let is_held = || fs::File::open(folder).unwrap().try_lock().is_err();
    while !is_held() {
        std::thread::park_timeout(Duration::from_millis(5));
    }
    let begun = Instant::now();
    let error = save(&place.path, as_of(2, &["a", "b"]), MINUTES, all).unwrap_err();
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert!(error.to_string().starts_with("failed to lock "), "{error}");
    assert_eq!((error.reason(), place.serves().0), ("failed", serving(&["a"])));
    assert_eq!(place.names(), ["snapshot"], "and nothing is left behind");

    // The command that it runs has the lock too.
    let sleeper = format!("/proc/{0}/task/{0}/children", holder.id());
    let sleeper = fs::read_to_string(sleeper).unwrap();
    holder.kill().unwrap();
    holder.wait().unwrap();
    std::process::Command::new("kill").args(["-9", sleeper.trim()]).status().unwrap();
    while is_held() {
        std::thread::park_timeout(Duration::from_millis(5));
    }
    assert!(place.save(as_of(3, &["a", "b"])).is_written);
}

#[test]
fn of_many_who_write_at_once_the_latest_stays() {
    let place = Place::new();
    let next = std::sync::atomic::AtomicU64::new(1);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..50 {
                    let n = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    let saved = save(&place.path, as_of(n, &["a"]), MINUTES, all).unwrap();
                    let there = place.load().found.unwrap().1.as_of_ms;
                    assert!(there >= n.max(saved.as_of_ms), "{there} after {n}");
                }
            });
        }
    });
    assert_eq!(place.load().found.unwrap().1.as_of_ms, 200);
}

#[test]
fn a_file_of_the_time_to_come_says_that_the_clock_was_put_back_and_gives_way() {
    let place = Place::new();
    let now_ms = unix_ms();
    let hour = 3_600_000;
    let at = |ms: u64, ids: &[&str]| place.save(as_of(now_ms + ms, ids));
    at(hour, &["a", "b", "c", "d"]);
    at(hour + 1, &["a", "b"]);
    let saved = at(0, &["a"]);
    assert_eq!((saved.is_written, saved.as_of_ms), (true, now_ms));
    assert_eq!(saved.doubted, ["chat"], "what it had in the time to come it had now");
    assert!(at(600_000, &["a"]).doubted.is_empty(), "and is not waited for");
}

// === no less than was read ===

#[test]
fn a_service_that_loses_most_of_its_instances_keeps_them_until_that_has_stood() {
    let place = Place::new();
    let minute = |n: u64, ids: &[&str]| place.save(as_of(60_000 * n, ids)).doubted;
    assert!(minute(0, &["a", "b", "c", "d"]).is_empty());
    assert!(minute(1, &["a", "b"]).is_empty(), "a half is not most");
    minute(2, &["a", "b", "c", "d"]);

    assert_eq!(minute(3, &["e"]), ["chat"]);
    assert_eq!(place.serves().0, serving(&["a", "b", "c", "d", "e"]));
    assert_eq!(minute(12, &["e"]), ["chat"], "nine minutes, over however many processes");
    assert!(minute(13, &["e"]).is_empty());
    assert_eq!(place.serves().0, serving(&["e"]));
    let older = Snapshot::decode(&fs::read(place.file(".1")).unwrap()).unwrap();
    assert_eq!(ids(&older), ["a", "b", "c", "d", "e"]);
}

#[test]
fn a_loss_that_was_made_good_begins_anew_and_an_empty_view_loses_nothing() {
    let place = Place::new();
    let minute = |n: u64, ids: &[&str]| place.save(as_of(60_000 * n, ids)).doubted;
    minute(0, &["a", "b", "c"]);
    assert_eq!(minute(1, &["a"]), ["chat"]);
    assert!(minute(6, &["a", "b", "c"]).is_empty());
    assert_eq!(minute(7, &["a"]), ["chat"]);
    assert_eq!(minute(12, &["a"]), ["chat"], "eleven minutes after the first");

    let nothing = Snapshot { services: BTreeMap::new(), ..as_of(60_000 * 13, &[]) };
    assert_eq!(place.save(nothing).doubted, ["chat"]);
    assert_eq!(place.serves().0, serving(&["a", "b", "c"]));
}

#[test]
fn losses_one_after_another_are_as_one() {
    let place = Place::new();
    let second = |n: u64, ids: &[&str]| place.save(as_of(1000 * n, ids)).doubted;
    second(0, &["a", "b", "c", "d"]);
    assert!(second(5, &["a", "b"]).is_empty());
    assert_eq!(second(10, &["a"]), ["chat"], "one of four, if one of two");
    assert_eq!(second(15, &[]), ["chat"]);
    assert_eq!(place.serves().0, serving(&["a", "b"]));

    // Ten minutes after there were four, and after there were two, and after one.
    assert!(second(605, &["a"]).is_empty(), "one of two");
    assert_eq!(place.serves().0, serving(&["a"]));
    assert_eq!(second(610, &[]), ["chat"]);
    assert_eq!(second(1209, &[]), ["chat"]);
    assert!(second(1210, &[]).is_empty());
    assert_eq!(place.serves().0, serving(&[]));
}

/// A half may go in ten minutes, and a half of that in the next ten, whenever they go.
#[test]
fn a_slow_decline_is_compared_with_the_most_of_the_last_ten_minutes() {
    let names: Vec<_> = (0..100).map(|n| format!("i{n:02}")).collect();
    let minute = |n: usize| {
        let left: Vec<_> = names[n..].iter().map(String::as_str).collect();
        as_of(60_000 * n as u64, &left)
    };
    let mut known = minute(0);
    for n in 1..100 {
        let mut next = minute(n);
        next.hold_losses(&known, MINUTES, all);
        let (kept, _) = next.size();
        // Since the write before the last ten there were no more.
        let most = 100 - n.saturating_sub(10);
        assert!(2 * kept >= most, "{kept} of {most} in minute {n}");
        assert!(n > 90 || kept == 100 - n, "it is followed as long as it is slow: {kept}");
        assert!(next.had["chat"].len() <= 10);
        known = next;
    }
}

#[test]
fn a_service_that_is_doubted_keeps_what_the_operator_wished() {
    let with_control = |as_of_ms, ids: &[&str], value: &str| {
        let mut snapshot = as_of(as_of_ms, ids);
        let control = record("/ipconfig/v1/control/chat", value);
        snapshot.services.get_mut("chat").unwrap().controls.push(control);
        snapshot
    };
    let place = Place::new();
    let kept = || {
        let (_, found) = place.load().found.unwrap();
        found.services["chat"].controls.iter().map(|it| it.value.to_string()).collect::<Vec<_>>()
    };
    place.save(with_control(0, &["a", "b", "c"], r#"{"disable":["b"]}"#));
    let nothing = || Snapshot { services: BTreeMap::new(), ..as_of(1, &[]) };
    assert_eq!(place.save(nothing()).doubted, ["chat"]);
    assert_eq!(kept(), [r#"{"disable":["b"]}"#]);
    place.save(with_control(2, &[], "{}"));
    assert_eq!(kept(), ["{}"], "a newer wish is one");
    place.save(as_of(3, &["a", "b"]));
    assert!(kept().is_empty(), "etcd is believed again");
}

#[test]
fn a_service_that_is_not_served_any_more_goes_at_once_and_is_no_loss() {
    let place = Place::new();
    place.save(chat(&["a", "b"]));
    let config = Config { discover: Discover::Names(vec!["mail*".into()]), ..Config::default() };
    let with = |name: &str| {
        let services = [(name.to_owned(), ServiceConfig::default())].into();
        let keeper = Keeper::new(&Config { services, ..config.clone() }, Timing::default());
        move |service: &str| keeper.serves(service)
    };
    let nothing = || Snapshot { services: BTreeMap::new(), ..chat(&[]) };
    let saved = save(&place.path, nothing(), MINUTES, with("chat")).unwrap();
    assert_eq!(saved.doubted, ["chat"]);
    let saved = save(&place.path, nothing(), MINUTES, with("other")).unwrap();
    assert!(saved.doubted.is_empty());
    assert_eq!(place.serves().0, serving(&[]));
    assert!(with("other")("mail2"));
}

#[test]
fn other_services_and_control_are_written_while_one_is_doubted() {
    let place = Place::new();
    place.save(chat(&["a", "b", "c"]));
    let mut next = chat(&["a"]);
    let control = record("/ipconfig/v1/control/chat", "{}");
    next.services.get_mut("chat").unwrap().controls.push(control.clone());
    let mail = record("/ipconfig/v1/instances/mail/m", "{}");
    next.services.entry("mail".into()).or_default().instances.push(mail);
    assert_eq!(place.save(next).doubted, ["chat"]);
    let (_, found) = place.load().found.unwrap();
    assert_eq!(ids(&found), ["a", "b", "c", "m"]);
    assert_eq!(found.services["chat"].controls, [control]);
}

// === the keeper ===

fn keeper(path: &Path) -> Keeper {
    let snapshot = SnapshotConfig { path: path.display().to_string() };
    Keeper::new(&Config { snapshot, ..Config::default() }, Timing::default())
}

/// Looks at `now` and waits for the write, if that began one; the writes so far.
async fn look(keeper: &mut Keeper, changes: u64, is_watched: bool, now: Instant) -> u64 {
    let view = || chat(&["a", "b"][..1 + changes as usize % 2]);
    keeper.look(changes, is_watched, now, view);
    let total = |keeper: &Keeper| keeper.report().unwrap().writes.values().sum::<u64>();
    let before = total(keeper);
    while keeper.is_writing() {
        tokio::time::sleep(Duration::from_millis(1)).await;
        // No later than `now`, and after nothing else.
        keeper.look(changes, is_watched, now, view);
        if total(keeper) > before {
            break;
        }
    }
    total(keeper)
}

#[tokio::test]
async fn changes_are_collected_and_what_stays_is_written_now_and_then() {
    let place = Place::new();
    let mut keeper = keeper(&place.path);
    let start = Instant::now();
    let at = |seconds: u64| start + Duration::from_secs(seconds);
    assert_eq!(look(&mut keeper, 1, true, at(0)).await, 1, "the first at once");
    assert_eq!(look(&mut keeper, 2, true, at(4)).await, 1);
    assert_eq!(look(&mut keeper, 3, true, at(5)).await, 2);
    assert_eq!(look(&mut keeper, 3, true, at(64)).await, 2);
    let inode = || fs::metadata(&place.path).unwrap().ino();
    let before = inode();
    assert_eq!(look(&mut keeper, 3, true, at(65)).await, 3);
    assert_ne!(inode(), before);
    assert_eq!(look(&mut keeper, 3, false, at(500)).await, 3, "etcd is not seen any more");
    assert_eq!(look(&mut keeper, 4, false, at(500)).await, 4, "what was seen last is");
    let report = keeper.report().unwrap();
    assert_eq!(
        (report.as_of_ms, report.writes),
        (1_700_000_000_000, [("written".into(), 4)].into())
    );
}

#[tokio::test]
async fn the_keeper_holds_losses_of_its_own_services_and_counts_what_it_wrote() {
    let place = Place::new();
    let before = |as_of_ms| {
        let mut snapshot = as_of(as_of_ms, &["a", "b", "c"]);
        let mail = record("/ipconfig/v1/instances/mail/m", "{}");
        snapshot.services.entry("mail".into()).or_default().instances.push(mail);
        snapshot
    };
    place.save(before(1));
    let snapshot = SnapshotConfig { path: place.path.display().to_string() };
    let services = [("chat".to_owned(), ServiceConfig::default())].into();
    let config = Config { snapshot, services, ..Config::default() };
    let mut keeper = Keeper::new(&config, Timing::default());
    let writes = look(&mut keeper, 0, true, Instant::now()).await;
    assert_eq!((writes, place.serves().0), (1, serving(&["a", "b", "c"])));

    // Another process has written in the meantime.
    let later_ms = 1_700_000_000_001;
    place.save(before(later_ms));
    let later = Instant::now() + Duration::from_secs(60);
    assert_eq!(look(&mut keeper, 0, true, later).await, 1);
    assert_eq!(keeper.report().unwrap().as_of_ms, later_ms);
}

#[tokio::test]
async fn failures_are_counted_and_tried_again_ever_more_seldom_until_one_succeeds() {
    let place = Place::new();
    let path = place.path.with_file_name("folder").join("snapshot");
    let mut keeper = keeper(&path);
    let start = Instant::now();
    let mut tries = Vec::new();
    let mut writes = 0;
    for second in 0..1200 {
        let now = look(&mut keeper, 1, true, start + Duration::from_secs(second)).await;
        if now > writes {
            tries.push(second);
        }
        writes = now;
    }
    assert_eq!(tries, [0, 5, 15, 35, 75, 155, 315, 615, 915]);
    let report = keeper.report().unwrap();
    assert_eq!(report.writes, [("no_folder".into(), 9)].into());
    assert!(report.error.contains("No such file"), "{report:?}");

    fs::create_dir(path.parent().unwrap()).unwrap();
    look(&mut keeper, 1, true, start + Duration::from_secs(1215)).await;
    let report = keeper.report().unwrap();
    assert_eq!((report.writes["written"], &*report.error), (1, ""));
}

#[tokio::test]
async fn the_file_is_read_once_and_its_report_says_what_came_of_it() {
    let place = Place::new();
    place.save(chat(&["a"]));
    place.save(chat(&["a", "b"]));
    fs::write(&place.path, "").unwrap();
    let mut reader = keeper(&place.path);
    assert_eq!(reader.loaded().await.map(|it| it.size()), Some((1, 1)));
    let again = tokio::time::timeout(Duration::from_millis(20), reader.loaded()).await;
    assert!(again.is_err());
    let report = reader.report().unwrap();
    assert_eq!((&*report.loaded, &*report.misses[0].reason), ("older", "truncated"));
    assert!(report.age_ms > Some(1000));
    let text = serde_json::to_string(&report).unwrap();
    assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report);

    fs::remove_file(place.file(".1")).unwrap();
    let mut reader = keeper(&place.path);
    assert!(reader.loaded().await.is_none());
    assert_eq!(reader.report().unwrap().loaded, "none");

    let mut off = Keeper::new(&Config::default(), Timing::default());
    assert!(tokio::time::timeout(Duration::from_millis(20), off.loaded()).await.is_err());
    assert_eq!((off.report(), off.is_on()), (None, false));
}
