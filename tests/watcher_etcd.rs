//! The watcher and the connection against a real etcd.

#[path = "support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use etcd_client::{Client, DeleteOptions, Txn, TxnOp};
use ipconfig::config::EtcdConfig;
use ipconfig::etcd::{Connection, Connector, EtcdSource};
use ipconfig::watcher::{Event, PageRequest, Source, Timing, Watch, WatchState};
use support::follower::{Follower, SOON, TIMING, config, texts};
use support::wire::{Weather, Wire};
use support::{Etcd, free_port, wait_until};

async fn connect(etcd: &Etcd) -> Connection {
    let connection = Connector::new(&config(&[etcd.endpoint()])).connect().await;
    connection.expect("a connection to a private etcd")
}

fn keys(expected: &[(&str, &str)]) -> BTreeMap<String, String> {
    expected.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

#[tokio::test]
async fn puts_deletes_and_the_end_of_a_lease_are_seen_in_order() {
    let etcd = Etcd::start().await;
    let writer = connect(&etcd).await;
    writer.put("/t/before", "1", None).await.unwrap();
    writer.put("/t2/outside", "1", None).await.unwrap();
    let follower = Follower::start(&[etcd.endpoint()]);
    follower.wait_for_key("/t/before", "1").await;

    let lease = writer.grant_lease(Duration::from_secs(5)).await.unwrap();
    writer.put("/t/leased", "1", Some(lease)).await.unwrap();
    writer.put("/t/a", "1", None).await.unwrap();
    writer.put("/t/outside-before", "", None).await.unwrap();
    writer.put("/tt/outside", "1", None).await.unwrap();
    writer.put("/t/a", "2", None).await.unwrap();
    assert!(writer.delete("/t/before").await.unwrap());
    assert!(!writer.delete("/t/before").await.unwrap());
    follower.wait_for("the lease's key is gone", |seen| !seen.keys.contains_key("/t/leased")).await;

    let wanted = ["+/t/leased", "+/t/a", "+/t/outside-before", "+/t/a", "-/t/before", "-/t/leased"];
    assert_eq!(follower.changes(), wanted);
    assert_eq!(follower.keys(), keys(&[("/t/a", "2"), ("/t/outside-before", "")]));
}

#[tokio::test]
async fn thousands_of_keys_are_listed_in_pages_while_they_are_written() {
    let etcd = Etcd::start().await;
    let writer = connect(&etcd).await;
    let fill = async |round: &str, step: usize| {
        let mut writes = tokio::task::JoinSet::new();
        for first in 0..16 {
            let (writer, round) = (writer.clone(), round.to_owned());
            writes.spawn(async move {
                for n in (first * step..3200).step_by(16 * step) {
                    writer.put(&format!("/t/{n:04}"), round.as_str(), None).await.unwrap();
                }
            });
        }
        writes.join_all().await;
    };
    fill("first", 1).await;
    let follower = Follower::start(&[etcd.endpoint()]);
    fill("second", 7).await;
    writer.delete("/t/0001").await.unwrap();
    writer.put("/t/last", "1", None).await.unwrap();
    follower.wait_for_key("/t/last", "1").await;

    let mut wanted: BTreeMap<_, _> =
        (0..3200).map(|n| (format!("/t/{n:04}"), "first".to_owned())).collect();
    for n in (0..3200).step_by(7) {
        wanted.insert(format!("/t/{n:04}"), "second".to_owned());
    }
    wanted.remove("/t/0001");
    wanted.insert("/t/last".to_owned(), "1".to_owned());
    assert_eq!(follower.keys(), wanted);
    assert_eq!(follower.lists(), 1);
}

#[tokio::test]
async fn compaction_while_disconnected_ends_in_a_list_of_exactly_what_there_is() {
    let etcd = Etcd::start().await;
    let writer = connect(&etcd).await;
    let link = Wire::to(etcd.address()).await;
    writer.put("/t/goes", "1", None).await.unwrap();
    writer.put("/t/stays", "1", None).await.unwrap();
    let follower = Follower::start(&[link.endpoint()]);
    follower.wait_for_key("/t/stays", "1").await;
    follower.wait_for("it watches", |seen| seen.state() == Some(WatchState::Watching)).await;

    link.cut();
    follower
        .wait_for("the cut is noticed", |seen| seen.state() != Some(WatchState::Watching))
        .await;
    writer.delete("/t/goes").await.unwrap();
    let revision = writer.put("/t/comes", "1", None).await.unwrap();
    etcd.ctl(&["compact", &revision.to_string()]);
    link.mend();
    follower.wait_for_key("/t/comes", "1").await;

    assert_eq!(follower.keys(), keys(&[("/t/comes", "1"), ("/t/stays", "1")]));
    assert_eq!(follower.lists(), 2, "history is gone, so everything is listed again");
    writer.put("/t/after", "1", None).await.unwrap();
    follower.wait_for_key("/t/after", "1").await;
    assert_eq!(follower.lists(), 2, "and watched again after that");
}

/// Follows `/t` and two other clusters around it, one of them with more keys than a
/// page has.
async fn of_clusters(etcd: &Etcd, link: &Wire) -> (Connection, Follower) {
    let writer = connect(etcd).await;
    for key in ["/s/a", "/t/a", "/tt/outside", "/w/a", "/x/outside", "/a/outside"] {
        writer.put(key, "1", None).await.unwrap();
    }
    for n in 0..1500 {
        writer.put(&format!("/s/many/{n:04}"), "1", None).await.unwrap();
    }
    let prefixes = [("south", "/s"), ("none", "/n"), ("west", "/w")];
    let prefixes = prefixes.map(|(name, prefix)| (name.to_owned(), prefix.to_owned())).into();
    let config = EtcdConfig { prefixes, ..config(&[link.endpoint()]) };
    let follower = Follower::of(&config);
    follower.wait_for_key("/w/a", "1").await;
    follower.wait_for("it watches", |seen| seen.state() == Some(WatchState::Watching)).await;
    (writer, follower)
}

#[tokio::test]
async fn several_prefixes_are_listed_as_one_and_watched_as_one() {
    let etcd = Etcd::start().await;
    let link = Wire::to(etcd.address()).await;
    let (writer, follower) = of_clusters(&etcd, &link).await;
    let listed = follower.keys();
    assert_eq!(listed.len(), 1503, "and nothing from outside");
    assert!(["/s/a", "/t/a", "/w/a", "/s/many/1499"].iter().all(|key| listed.contains_key(*key)));
    assert_eq!(follower.lists(), 1);

    for key in ["/w/b", "/s/b", "/t/b"] {
        writer.put(key, "1", None).await.unwrap();
    }
    writer.delete("/s/a").await.unwrap();
    follower.wait_for("the delete is seen", |seen| !seen.keys.contains_key("/s/a")).await;
    assert_eq!(follower.changes(), ["+/w/b", "+/s/b", "+/t/b", "-/s/a"]);
}

#[tokio::test]
async fn several_prefixes_are_resumed_and_after_compaction_listed_alike() {
    let etcd = Etcd::start().await;
    let link = Wire::to(etcd.address()).await;
    let (writer, follower) = of_clusters(&etcd, &link).await;
    link.cut();
    follower.wait_for("the cut is noticed", |seen| seen.state() == Some(WatchState::Backoff)).await;
    writer.delete("/s/a").await.unwrap();
    writer.put("/w/b", "1", None).await.unwrap();
    link.mend();
    follower.wait_for_key("/w/b", "1").await;
    assert!(!follower.keys().contains_key("/s/a"));
    assert_eq!(follower.lists(), 1);

    link.cut();
    follower.wait_for("the cut is noticed", |seen| seen.state() == Some(WatchState::Backoff)).await;
    writer.delete("/t/a").await.unwrap();
    writer.delete("/w/a").await.unwrap();
    let revision = writer.put("/s/b", "1", None).await.unwrap();
    etcd.ctl(&["compact", &revision.to_string()]);
    link.mend();
    follower.wait_for("it is listed", |seen| !seen.keys.contains_key("/w/a")).await;
    let gone = ["/t/a", "/w/a", "/s/a"];
    assert!(gone.iter().all(|key| !follower.keys().contains_key(*key)));
    assert!(["/s/b", "/w/b"].iter().all(|key| follower.keys().contains_key(*key)));
    assert_eq!((follower.lists(), follower.keys().len()), (2, 1502));
}

#[tokio::test]
async fn a_cut_without_compaction_is_made_up_for_by_the_watch_alone() {
    let etcd = Etcd::start().await;
    let writer = connect(&etcd).await;
    let link = Wire::to(etcd.address()).await;
    writer.put("/t/goes", "1", None).await.unwrap();
    let follower = Follower::start(&[link.endpoint()]);
    follower.wait_for_key("/t/goes", "1").await;

    link.cut();
    follower.wait_for("the cut is noticed", |seen| seen.state() == Some(WatchState::Backoff)).await;
    assert_eq!(follower.keys(), keys(&[("/t/goes", "1")]), "what cannot be reached is not gone");
    writer.put("/t/comes", "1", None).await.unwrap();
    writer.delete("/t/goes").await.unwrap();
    link.mend();
    follower.wait_for("the delete is seen", |seen| !seen.keys.contains_key("/t/goes")).await;

    assert_eq!(follower.changes(), ["+/t/comes", "-/t/goes"]);
    assert_eq!(follower.lists(), 1);
}

#[tokio::test]
async fn an_etcd_that_is_killed_and_started_again_is_resumed_without_a_loss() {
    let mut etcd = Etcd::start().await;
    connect(&etcd).await.put("/t/a", "1", None).await.unwrap();
    let follower = Follower::start(&[etcd.endpoint()]);
    follower.wait_for_key("/t/a", "1").await;

    for round in ["2", "3"] {
        let lasting = format!("/t/before-{round}");
        connect(&etcd).await.put(&lasting, round, None).await.unwrap();
        etcd.kill();
        follower
            .wait_for("the end is noticed", |seen| seen.state() == Some(WatchState::Backoff))
            .await;
        etcd.restart().await;
        connect(&etcd).await.put("/t/a", round, None).await.unwrap();
        follower.wait_for_key("/t/a", round).await;
    }

    assert_eq!(follower.changes(), ["+/t/before-2", "+/t/a", "+/t/before-3", "+/t/a"]);
    assert_eq!(follower.lists(), 1, "nothing was lost, so nothing is listed again");
}

#[tokio::test]
async fn an_etcd_that_was_wiped_is_listed_and_its_old_keys_are_gone() {
    let mut etcd = Etcd::start().await;
    let writer = connect(&etcd).await;
    for n in 0..20 {
        writer.put(&format!("/t/old-{n}"), "1", None).await.unwrap();
    }
    let follower = Follower::start(&[etcd.endpoint()]);
    follower.wait_for_key("/t/old-19", "1").await;

    etcd.wipe();
    etcd.restart().await;
    let writer = connect(&etcd).await;
    writer.put("/t/new", "1", None).await.unwrap();
    follower.wait_for_key("/t/new", "1").await;
    follower.wait_for("the old keys are gone", |seen| seen.keys.len() == 1).await;

    assert_eq!(follower.lists(), 2);
    writer.put("/t/newer", "1", None).await.unwrap();
    follower.wait_for_key("/t/newer", "1").await;
}

/// Follows, loses sight of etcd while `replace` puts another history in its place that
/// then goes further than the one before, and sees it again.
async fn replaced_in_secret(mut replace: impl AsyncFnMut(&mut Etcd)) -> (Follower, Etcd) {
    let mut etcd = Etcd::start().await;
    let link = Wire::to(etcd.address()).await;
    connect(&etcd).await.put("/t/stays", "1", None).await.unwrap();
    etcd.save();
    etcd.restart().await;
    let writer = connect(&etcd).await;
    writer.put("/t/old", "1", None).await.unwrap();
    let before = writer.put("/t/older", "1", None).await.unwrap();
    let follower = Follower::start(&[link.endpoint()]);
    follower.wait_for_key("/t/older", "1").await;
    follower.wait_for("it watches", |seen| seen.state() == Some(WatchState::Watching)).await;

    link.cut();
    follower.wait_for("the cut is noticed", |seen| seen.state() == Some(WatchState::Backoff)).await;
    replace(&mut etcd).await;
    let writer = connect(&etcd).await;
    while writer.put("/t/new", "1", None).await.unwrap() < before + 3 {}
    link.mend();
    follower.wait_for_key("/t/new", "1").await;
    follower.wait_for("the old keys are gone", |seen| !seen.keys.contains_key("/t/old")).await;
    assert_eq!(follower.lists(), 2);
    writer.put("/t/newer", "1", None).await.unwrap();
    follower.wait_for_key("/t/newer", "1").await;
    assert_eq!(follower.lists(), 2, "and watched after that");
    (follower, etcd)
}

#[tokio::test]
async fn an_etcd_that_was_wiped_and_has_overtaken_what_was_known_is_listed() {
    // With the same flags, and so the same cluster id.
    let (follower, _etcd) = replaced_in_secret(async |etcd: &mut Etcd| {
        etcd.wipe();
        etcd.restart().await;
    })
    .await;
    assert_eq!(follower.keys(), keys(&[("/t/new", "1"), ("/t/newer", "1")]));
}

#[tokio::test]
async fn an_etcd_that_was_restored_and_has_overtaken_what_was_known_is_listed() {
    let (follower, _etcd) = replaced_in_secret(async |etcd: &mut Etcd| {
        etcd.restore();
        etcd.restart().await;
    })
    .await;
    assert_eq!(follower.keys(), keys(&[("/t/new", "1"), ("/t/newer", "1"), ("/t/stays", "1")]));
}

#[tokio::test]
async fn a_member_without_a_leader_is_left_and_nothing_is_lost_or_listed_again() {
    let mut members = Etcd::start_three(&[]).await;
    connect(&members[0]).await.put("/t/a", "1", None).await.unwrap();
    let endpoints: Vec<_> = members.iter().map(Etcd::endpoint).collect();
    let follower = Follower::start(&endpoints);
    follower.wait_for_key("/t/a", "1").await;
    follower.wait_for("it watches", |seen| seen.state() == Some(WatchState::Watching)).await;

    // The one that it is connected to answers, and hears of nothing any more.
    members[1].kill();
    members[2].kill();
    follower
        .wait_for("the loss is noticed", |seen| seen.state() == Some(WatchState::Backoff))
        .await;
    members[1].restart().await;
    connect(&members[1]).await.put("/t/a", "2", None).await.unwrap();
    follower.wait_for_key("/t/a", "2").await;
    follower.wait_for("it watches", |seen| seen.state() == Some(WatchState::Watching)).await;
    assert_eq!(follower.lists(), 1);
    assert_eq!(follower.changes(), ["+/t/a"]);
}

#[tokio::test]
async fn a_stream_on_which_nothing_comes_through_is_left() {
    let etcd = Etcd::start().await;
    let wire = Wire::to(etcd.address()).await;
    let writer = connect(&etcd).await;
    writer.put("/t/a", "1", None).await.unwrap();
    let follower = Follower::start(&[wire.endpoint(), etcd.endpoint()]);
    follower.wait_for_key("/t/a", "1").await;
    follower.wait_for("it watches", |seen| seen.state() == Some(WatchState::Watching)).await;
    wire.set(Weather::Stalled);
    writer.put("/t/a", "2", None).await.unwrap();
    // By the other endpoint, long before TCP or the pings of HTTP/2 notice.
    let noticed = async || follower.keys().get("/t/a").is_some_and(|it| it == "2");
    wait_until("the change comes another way", Duration::from_secs(4), noticed).await;
    assert_eq!(follower.changes(), ["+/t/a"]);
    assert_eq!(follower.lists(), 1);
}

#[tokio::test]
async fn an_audit_of_a_busy_etcd_finds_nothing_and_interrupts_nothing() {
    let etcd = Etcd::start().await;
    let writer = connect(&etcd).await;
    let timing = Timing { audit: Duration::from_millis(50), ..TIMING };
    let follower = Follower::with(&config(&[etcd.endpoint()]), timing);
    for n in 0..2000 {
        writer.put(&format!("/t/{}", n % 50), &*n.to_string(), None).await.unwrap();
        if n % 3 == 0 {
            writer.delete(&format!("/t/{}", n % 49)).await.unwrap();
        }
    }
    writer.put("/t/last", "1", None).await.unwrap();
    follower.wait_for_key("/t/last", "1").await;
    let audits = follower.count(|event| *event == Event::Audit);
    assert!(audits >= 5, "{audits} audits");
    assert_eq!(follower.lists(), 1 + audits);
    assert_eq!(follower.seen.lock().unwrap().audit_differences, 0);
    let backoff = |event: &Event| *event == Event::State(WatchState::Backoff);
    assert_eq!(follower.count(backoff), 0);
}

#[tokio::test]
async fn an_idle_etcd_is_told_from_one_that_hangs() {
    let etcd = Etcd::start().await;
    let writer = connect(&etcd).await;
    writer.put("/t/a", "1", None).await.unwrap();
    let follower = Follower::start(&[etcd.endpoint()]);
    let signs_of_life = || follower.count(|event| matches!(event, Event::Progress { .. }));
    wait_until("signs of life", SOON, async || signs_of_life() >= 4).await;
    let backoff = |event: &Event| *event == Event::State(WatchState::Backoff);
    assert_eq!(follower.count(backoff), 0, "idle is not dead");

    etcd.pause();
    let noticed = async || follower.seen.lock().unwrap().state() == Some(WatchState::Backoff);
    // Long before the pings of the connection could notice it.
    wait_until("silence is noticed", Duration::from_secs(8), noticed).await;
    assert_eq!(follower.keys(), keys(&[("/t/a", "1")]), "what cannot be reached is not gone");
    etcd.resume();
    writer.put("/t/a", "2", None).await.unwrap();
    follower.wait_for_key("/t/a", "2").await;
    assert_eq!(follower.changes(), ["+/t/a"]);
    assert_eq!(follower.lists(), 1);
}

#[tokio::test]
async fn a_dead_endpoint_does_not_keep_from_a_living_one() {
    let mut etcd = Etcd::start().await;
    connect(&etcd).await.put("/t/a", "1", None).await.unwrap();
    let dead = format!("http://127.0.0.1:{}", free_port());
    let followers = [
        Follower::start(&[dead.clone(), etcd.endpoint()]),
        Follower::start(&[etcd.endpoint(), dead]),
    ];
    for follower in &followers {
        follower.wait_for_key("/t/a", "1").await;
    }
    etcd.restart().await;
    connect(&etcd).await.put("/t/a", "2", None).await.unwrap();
    for follower in &followers {
        follower.wait_for_key("/t/a", "2").await;
        assert_eq!(follower.lists(), 1);
    }
}

#[tokio::test]
async fn an_unreachable_etcd_is_an_error_that_names_it_and_may_be_tried_again() {
    let endpoint = format!("http://127.0.0.1:{}", free_port());
    let error =
        Connector::new(&config(std::slice::from_ref(&endpoint))).connect().await.err().unwrap();
    assert_eq!(error.to_string(), format!("failed to connect at {endpoint}"));
    assert!(texts(&error).contains("Connection refused"), "{}", texts(&error));
    assert!(error.is_retryable());
    assert!(!error.is_auth_failure());
}

#[tokio::test]
async fn lists_that_are_too_large_are_read_in_smaller_pages_and_watches_come_in_parts() {
    let etcd = Etcd::start().await;
    let writer = connect(&etcd).await;
    let value = vec![b'x'; 1_400_000];
    let mut first_revision = None;
    for n in 0..20 {
        let revision = writer.put(&format!("/t/{n:02}"), value.clone(), None).await.unwrap();
        first_revision.get_or_insert(revision);
    }
    let mut source = EtcdSource::new(&config(&[etcd.endpoint()]));
    source.connect().await.unwrap();

    let (mut request, mut found) = (PageRequest::default(), vec![]);
    loop {
        let page = source.list(request).await.unwrap();
        let last = page.records.last().expect("a page with keys").key.clone();
        found.extend(page.records.into_iter().map(|record| record.key));
        if !page.more {
            break;
        }
        request = PageRequest { revision: Some(page.revision), after: Some(last) };
    }
    let wanted: Vec<_> = (0..20).map(|n| format!("/t/{n:02}").into_bytes()).collect();
    assert_eq!(found, wanted);

    // All of it at once is more than a connection reads in one message.
    let mut watch = source.watch(first_revision.unwrap()).await.unwrap();
    let mut changed = vec![];
    while changed.len() < 20 {
        let message = watch.next().await.unwrap();
        assert_eq!(message.canceled, None);
        changed.extend(message.changes.into_iter().map(|change| change.key));
    }
    assert_eq!(changed, wanted);
}

/// A transaction of so many keys of so many bytes.
async fn put_at_once(etcd: &Etcd, keys: usize, bytes: usize, tag: &str) -> i64 {
    let mut client = Client::connect([etcd.endpoint()], None).await.unwrap();
    let put = |n| TxnOp::put(format!("/t/{n:03}"), format!("{tag}{n:>bytes$}"), None);
    let txn = Txn::new().and_then((0..keys).map(put).collect::<Vec<_>>());
    client.txn(txn).await.unwrap().header().unwrap().revision()
}

#[tokio::test]
async fn a_revision_is_never_told_in_part_however_many_messages_it_came_in() {
    // Messages are split where they grow larger than a request and 512 KiB.
    let etcd = Etcd::start_with(&["--max-request-bytes", "100000"]).await;
    let first = put_at_once(&etcd, 9, 10_000, "a").await;
    let mut client = Client::connect([etcd.endpoint()], None).await.unwrap();
    let mut last = first;
    for n in 0..40 {
        last = put_at_once(&etcd, 9, 10_000, &format!("b{n}")).await;
    }
    // A single revision that is larger than a message: keys leave at once.
    let long = "x".repeat(20_000);
    for n in 0..60 {
        last = client
            .put(format!("/t/{long}{n}"), "", None)
            .await
            .unwrap()
            .header()
            .unwrap()
            .revision();
    }
    let options = DeleteOptions::new().with_prefix();
    let gone = client.delete("/t/x", Some(options)).await.unwrap();
    assert_eq!((gone.deleted(), gone.header().unwrap().revision()), (60, last + 1));

    let mut source = EtcdSource::new(&config(&[etcd.endpoint()]));
    source.connect().await.unwrap();
    let mut watch = source.watch(first).await.unwrap();
    let (mut seen, mut messages) = (BTreeMap::new(), 0);
    let mut reached = 0;
    while reached < last + 1 {
        let message = watch.next().await.unwrap();
        messages += usize::from(!message.changes.is_empty());
        for change in &message.changes {
            assert!(change.mod_revision > reached, "of a revision that was told before");
            *seen.entry(change.mod_revision).or_insert(0) += 1;
        }
        reached = message.changes.last().map_or(reached, |change| change.mod_revision);
    }
    let in_each: Vec<_> = seen.values().copied().collect();
    assert_eq!(in_each, [vec![9; 41], vec![1; 60], vec![60]].concat());
    assert!(messages > 3, "{messages} messages: nothing was split");
}

#[tokio::test]
async fn a_lease_is_kept_alive_until_it_is_lost() {
    let etcd = Etcd::start().await;
    let connection = connect(&etcd).await;
    let lease = connection.grant_lease(Duration::from_secs(4)).await.unwrap();
    connection.put("/t/a", "1", Some(lease)).await.unwrap();
    let mut alive = connection.keep_lease(lease).await.unwrap();
    for _ in 0..8 {
        tokio::time::sleep(Duration::from_millis(700)).await;
        let left = alive.renew().await.unwrap();
        assert!(left >= Duration::from_secs(4), "{left:?}");
    }
    assert_eq!(connection.get("/t/a").await.unwrap().unwrap().value, b"1");

    connection.revoke_lease(lease).await.unwrap();
    assert_eq!(connection.get("/t/a").await.unwrap(), None);
    let errors = [
        alive.renew().await.unwrap_err(),
        connection.keep_lease(lease).await.err().unwrap(),
        connection.put("/t/a", "2", Some(lease)).await.unwrap_err(),
        connection.revoke_lease(lease).await.unwrap_err(),
    ];
    for error in errors {
        assert!(error.is_lease_gone(), "{}", texts(&error));
        assert!(!error.is_retryable(), "{}", texts(&error));
    }
}

#[tokio::test]
async fn the_version_is_what_etcd_says() {
    let etcd = Etcd::start().await;
    let version = connect(&etcd).await.version().expect("a version").to_string();
    let said = etcd.ctl(&["endpoint", "status"]);
    assert!(said.contains(&format!(", {version}, ")), "{version} is not in {said}");
}

#[tokio::test]
async fn a_list_of_several_pages_has_each_key_once_also_one_that_is_no_text() {
    let etcd = Etcd::start().await;
    let connection = Connector::new(&config(&[etcd.endpoint()])).connect().await.unwrap();
    // A page's last key is one that is no text, and one comes after it.
    let mut client = Client::connect([etcd.endpoint()], None).await.expect("etcd answers");
    for n in 0..999 {
        client.put(format!("/list/{n:04}"), "", None).await.expect("a put");
    }
    for key in [b"/list/\xff".as_slice(), b"/list/\xff\xff"] {
        client.put(key, "", None).await.expect("a put");
    }
    assert_eq!(connection.list("/list/").await.expect("a list").len(), 1001);
}
