//! Its end, and etcd's faults.

use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::support::wire::Wire;
use crate::support::{Etcd, wait_until};
use serde_json::json;
use tokio::net::TcpStream;
use tokio::time::sleep;

use crate::parts::*;

#[tokio::test]
async fn sigterm_and_sigint_remove_every_key_at_once_and_end_with_0() {
    for name in ["TERM", "INT"] {
        let etcd = Etcd::start().await;
        let (_, addr) = Service::start(Manner::Answers).await;
        let mut exporter = Exporter::start(&config(&etcd.endpoint(), &[addr]));
        let etcd = connect(&etcd).await;
        first_status(&etcd).await;

        exporter.signal(name).await;
        let (code, took) = exporter.end().await;
        assert_eq!(code, Some(0), "after SIG{name}");
        assert!(took < Duration::from_secs(1), "it took {took:?}");
        for key in keys() {
            assert!(!exists(&etcd, key).await, "{key} is still there");
        }
    }
}

#[tokio::test]
async fn it_ends_with_0_within_2_s_also_while_etcd_is_dead_or_frozen() {
    for frozen in [false, true] {
        let mut etcd = Etcd::start().await;
        let (_, addr) = Service::start(Manner::Answers).await;
        let mut exporter = Exporter::start(&config(&etcd.endpoint(), &[addr]));
        first_status(&connect(&etcd).await).await;
        match frozen {
            true => etcd.pause(),
            false => etcd.kill(),
        }
        sleep(2 * INTERVAL).await;

        exporter.signal("TERM").await;
        let (code, took) = exporter.end().await;
        assert_eq!(code, Some(0));
        assert!(took < Duration::from_secs(2), "it took {took:?}");
    }
}

#[tokio::test]
async fn a_password_that_is_replaced_is_used_by_the_writer_too_and_a_wrong_one_costs_nothing() {
    let etcd = Etcd::start().await;
    etcd.admit("writer", "first-password", "/ipconfig/", "/ipconfig0");
    let (_, addr) = Service::start(Manner::Answers).await;
    let password = etcd.dir().join("writer-password");
    std::fs::write(&password, "first-password\n").unwrap();
    let mut config = config(&etcd.endpoint(), &[addr]);
    config["etcd"]["username"] = json!("writer");
    config["etcd"]["password_file"] = json!(password.to_str().unwrap());
    let exporter = Exporter::start(&config);
    let logged = async |text: &str| std::fs::read_to_string(&exporter.log).unwrap().contains(text);
    let puts = async || exporter.metric("ipconfig_exporter_etcd_puts_total").await;
    wait_until("it writes", PATIENCE, async || logged("writing into etcd").await).await;
    let goes_on = async || {
        let before = puts().await;
        wait_until("it writes on", PATIENCE, async || puts().await > before + 3.0).await;
    };
    goes_on().await;

    std::fs::write(&password, "a wrong one\n").unwrap();
    let is_refused = async || logged("what etcd's files hold now is of no use").await;
    wait_until("it is tried", PATIENCE, is_refused).await;
    goes_on().await;
    sleep(LEASE_TTL).await;
    let log = std::fs::read_to_string(&exporter.log).unwrap();
    assert_eq!(log.matches("is of no use").count(), 1, "it is tried once: {log}");

    // A user whose password changes loses its tokens: what was connected is refused.
    std::fs::write(&password, "second-password\n").unwrap();
    etcd.change_password("writer", "second-password");
    goes_on().await;
    sleep(LEASE_TTL).await;
    goes_on().await;
    let grants = exporter.metric("ipconfig_exporter_lease_grants_total").await;
    assert_eq!(grants, 1.0, "nothing of what it had written was gone");
}

#[tokio::test]
async fn the_keys_of_a_killed_exporter_go_when_its_lease_ends_and_not_before() {
    let etcd = Etcd::start().await;
    let (_, addr) = Service::start(Manner::Answers).await;
    let mut exporter = Exporter::start(&config(&etcd.endpoint(), &[addr]));
    let etcd = connect(&etcd).await;
    first_status(&etcd).await;
    sleep(2 * LEASE_TTL).await;
    let grants = exporter.metric("ipconfig_exporter_lease_grants_total").await;
    assert_eq!(grants, 1.0, "the lease was not kept alive");

    exporter.signal("KILL").await;
    exporter.end().await;
    for key in keys() {
        assert!(exists(&etcd, key).await, "{key} went before the lease ended");
    }
    for key in keys() {
        wait_until("the end of the lease", PATIENCE, async || !exists(&etcd, key).await).await;
    }
}

#[tokio::test]
async fn everything_is_written_again_after_etcd_lost_its_data() {
    let mut etcd = Etcd::start().await;
    let (_, addr) = Service::start(Manner::Answers).await;
    let exporter = Exporter::start(&config(&etcd.endpoint(), &[addr]));
    first_status(&connect(&etcd).await).await;

    etcd.wipe();
    wait_until("503", PATIENCE, async || exporter.page("/healthz").await.0 == 503).await;
    let (_, body) = exporter.page("/healthz").await;
    assert!(body.contains("etcd was last written") && body.contains("failed to"), "{body}");

    etcd.restart().await;
    let connection = connect(&etcd).await;
    first_status(&connection).await;
    for key in keys() {
        assert!(exists(&connection, key).await, "{key} did not come back");
    }
    assert_eq!(exporter.metric("ipconfig_exporter_lease_grants_total").await, 2.0);
    wait_until("200", PATIENCE, async || exporter.page("/healthz").await.0 == 200).await;
}

#[tokio::test]
async fn everything_is_written_again_after_the_lease_was_lost() {
    let etcd = Etcd::start().await;
    let (_, addr) = Service::start(Manner::Answers).await;
    let exporter = Exporter::start(&config(&etcd.endpoint(), &[addr]));
    let connection = connect(&etcd).await;
    first_status(&connection).await;

    // Its own one, and the one that the registrations hang on.
    let leases = etcd.ctl(&["lease", "list"]);
    for lease in leases.lines().filter(|line| !line.contains(' ')) {
        etcd.ctl(&["lease", "revoke", lease]);
    }
    for key in keys() {
        wait_until(key, PATIENCE, async || exists(&connection, key).await).await;
    }
    assert_eq!(exporter.metric("ipconfig_exporter_lease_grants_total").await, 2.0);
}

#[tokio::test]
async fn a_lease_that_outlives_a_restart_of_etcd_is_kept() {
    let mut etcd = Etcd::start().await;
    let (_, addr) = Service::start(Manner::Answers).await;
    let exporter = Exporter::start(&config(&etcd.endpoint(), &[addr]));
    first_status(&connect(&etcd).await).await;

    etcd.kill();
    etcd.restart().await;
    let before = exporter.metric("ipconfig_exporter_etcd_puts_total").await;
    wait_until("a put", PATIENCE, async || {
        exporter.metric("ipconfig_exporter_etcd_puts_total").await > before
    })
    .await;
    assert_eq!(exporter.metric("ipconfig_exporter_lease_grants_total").await, 1.0);
}

#[tokio::test]
async fn ticks_are_skipped_and_not_queued_while_etcd_is_slow() {
    let etcd = Etcd::start().await;
    let (service, addr) = Service::start(Manner::Answers).await;
    let exporter = Exporter::start(&config(&etcd.endpoint(), &[addr]));
    let connection = connect(&etcd).await;
    first_status(&connection).await;

    etcd.pause();
    let asked = service.asked.load(Ordering::Relaxed);
    sleep(6 * INTERVAL).await;
    let asked = service.asked.load(Ordering::Relaxed) - asked;
    assert!(asked >= 4, "asked {asked} times in 6 intervals: instances wait for etcd");
    let puts = exporter.metric("ipconfig_exporter_etcd_puts_total").await;
    etcd.resume();

    let current = service.asked.load(Ordering::Relaxed);
    wait_until("a current status", PATIENCE, async || {
        first_status(&connection).await.seq >= current
    })
    .await;
    assert!(exporter.metric("ipconfig_exporter_ticks_skipped_total").await >= 3.0);
    let puts = exporter.metric("ipconfig_exporter_etcd_puts_total").await - puts;
    assert!(puts <= 4.0, "{puts} puts when etcd was back: ticks were queued");
}

#[tokio::test]
async fn an_exporter_that_starts_before_etcd_waits_for_it() {
    let mut etcd = Etcd::start().await;
    etcd.kill();
    let (_, addr) = Service::start(Manner::Answers).await;
    let exporter = Exporter::start(&config(&etcd.endpoint(), &[addr]));
    wait_until("its pages", PATIENCE, async || TcpStream::connect(&exporter.listen).await.is_ok())
        .await;
    let (code, body) = exporter.page("/healthz").await;
    assert_eq!(code, 503, "{body}");
    assert!(body.contains("etcd has not been written yet"), "{body}");

    etcd.restart().await;
    first_status(&connect(&etcd).await).await;
}

#[tokio::test]
async fn an_etcd_that_is_full_is_counted_and_told_and_written_again_when_it_has_room() {
    let etcd = Etcd::start_with(&["--quota-backend-bytes", "1000000"]).await;
    let (service, addr) = Service::start(Manner::Answers).await;
    let exporter = Exporter::start(&config(&etcd.endpoint(), &[addr]));
    let connection = connect(&etcd).await;
    first_status(&connection).await;

    let megabyte = "x".repeat(1 << 20);
    while connection.put("filler", megabyte.clone(), None).await.is_ok() {}
    wait_until("503", PATIENCE, async || exporter.page("/healthz").await.0 == 503).await;
    let (_, body) = exporter.page("/healthz").await;
    assert!(body.contains("database space exceeded"), "{body}");
    assert!(exporter.metric("ipconfig_exporter_etcd_put_failures_total").await > 0.0);
    let asked = service.asked.load(Ordering::Relaxed);
    sleep(3 * INTERVAL).await;
    assert!(service.asked.load(Ordering::Relaxed) > asked, "instances wait for etcd");

    connection.delete("filler").await.unwrap();
    let now = connection.get(STATUS_KEY).await.unwrap().unwrap().mod_revision;
    etcd.ctl(&["compact", &now.to_string()]);
    etcd.ctl(&["defrag"]);
    etcd.ctl(&["alarm", "disarm"]);
    wait_until("200", PATIENCE, async || exporter.page("/healthz").await.0 == 200).await;
    let current = service.asked.load(Ordering::Relaxed);
    wait_until("a current status", PATIENCE, async || {
        first_status(&connection).await.seq >= current
    })
    .await;
}

#[tokio::test]
async fn what_left_while_etcd_was_out_of_reach_and_compacted_is_dropped() {
    let etcd = Etcd::start().await;
    let link = Wire::to(etcd.address()).await;
    let (_, addr) = Service::start(Manner::Answers).await;
    let exporter = Exporter::start(&config(&link.endpoint(), &[]));
    let connection = connect(&etcd).await;
    let record = |addr| format!(r#"{{"addr":"127.0.0.1:9001","status":"grpc://{addr}"}}"#);
    let key = |id: &str| format!("/ipconfig/v1/instances/chat/{id}");
    for id in ["chat-1", "chat-2"] {
        connection.put(&key(id), record(addr), None).await.unwrap();
    }
    let asked = async || exporter.metric("ipconfig_exporter_targets_asked").await;
    wait_until("its start", PATIENCE, async || exists(&connection, keys()[2]).await).await;
    wait_until("both", PATIENCE, async || asked().await == 2.0).await;

    link.cut();
    connection.delete(&key("chat-2")).await.unwrap();
    let revision = connection.put("a", "1", None).await.unwrap();
    etcd.ctl(&["compact", &revision.to_string()]);
    link.mend();
    wait_until("one", PATIENCE, async || asked().await == 1.0).await;
}

#[tokio::test]
async fn an_announcement_that_was_deleted_is_put_again() {
    let etcd = Etcd::start().await;
    let (_, addr) = Service::start(Manner::Answers).await;
    let _exporter = Exporter::start(&config(&etcd.endpoint(), &[addr]));
    let connection = connect(&etcd).await;
    first_status(&connection).await;
    assert!(connection.delete(keys()[2]).await.unwrap());
    wait_until("it is back", PATIENCE, async || exists(&connection, keys()[2]).await).await;
}

#[tokio::test]
async fn a_status_key_that_an_outage_left_behind_goes_with_the_next_session() {
    let etcd = Etcd::start().await;
    let (_, addr) = Service::start(Manner::Answers).await;
    let link = Wire::to(etcd.address()).await;
    let _exporter = Exporter::start(&config(&link.endpoint(), &[addr]));
    let connection = connect(&etcd).await;
    first_status(&connection).await;
    let stale = "/ipconfig/v1/status/exporter-1/gone/0";
    connection.put(stale, "", None).await.unwrap();
    link.cut();
    sleep(INTERVAL).await;
    link.mend();
    wait_until("its end", PATIENCE, async || !exists(&connection, stale).await).await;
    assert!(exists(&connection, STATUS_KEY).await);
}
