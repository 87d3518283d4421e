//! What etcd bears of one key for each instance, which is what shards are instead
//! of.

use std::time::Duration;

use etcd_client::{Client, PutOptions};
use ipconfig::config::EtcdConfig;
use ipconfig::model::InstanceReport;
use ipconfig::wire;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::fleet;
use crate::machine;
use crate::stage;
use crate::support::Etcd;
use crate::table::Table;
use crate::work::Work;

/// Puts under way at once: with fewer etcd waits for its disk, with many more it
/// is no faster.
const AT_ONCE: usize = 64;

const LEASE_TTL_S: i64 = 60;

/// Puts statuses of as many instances as `shards` had, each under its own key, as
/// fast as etcd takes them.
pub async fn run(shards: &Work, time: Duration) {
    let etcd = Etcd::start().await;
    let client = Client::connect([etcd.endpoint()], None).await.expect("etcd answers");
    let lease = client.lease_client().grant(LEASE_TTL_S, None).await.expect("a lease").id();
    let (begun, cpu_before) = (Instant::now(), machine::cpu_time(etcd.id()));
    let mut writers = JoinSet::new();
    for writer in 0..AT_ONCE {
        let (mut etcd, size) = (client.kv_client(), shards.size);
        writers.spawn(async move {
            let mut puts = 0;
            for index in (writer..size).step_by(AT_ONCE).cycle() {
                if begun.elapsed() >= time {
                    break;
                }
                let report =
                    InstanceReport::new(stage::id(index), fleet::status(index, puts).into());
                let key =
                    format!("{}/status/exporter-1/fleet/{index}", EtcdConfig::default().prefix);
                let options = PutOptions::new().with_lease(lease);
                let put = etcd.put(key, wire::encode_batch(&[report]), Some(options));
                put.await.expect("a put");
                puts += 1;
            }
            puts
        });
    }
    let puts: u64 = writers.join_all().await.into_iter().sum();
    let cpu = machine::cpu_time(etcd.id()) - cpu_before;
    print(
        shards,
        puts as f64 / begun.elapsed().as_secs_f64(),
        cpu / u32::try_from(puts).unwrap_or(u32::MAX),
    );
}

fn print(shards: &Work, puts_per_s: f64, cpu_of_put: Duration) {
    println!(
        "\n3. etcd's part, beside one key for each instance: its own etcd, {AT_ONCE} puts at once."
    );
    let mut table = Table::new(&["", "puts/s", "statuses/s", "etcd's CPU for 1,000 statuses"]);
    let written = shards.rates.read - shards.rates.unchanged;
    let ms = |seconds: f64| format!("{:.1} ms", seconds * 1e3);
    table.row(vec![
        "in shards of 100, as above".to_owned(),
        format!("{:.0}", shards.rates.puts),
        format!("{written:.0}"),
        ms(shards.etcd_cores() / written * 1e3),
    ]);
    table.row(vec![
        "one key each, one lease, at most".to_owned(),
        format!("{puts_per_s:.0}"),
        format!("{puts_per_s:.0}"),
        ms(cpu_of_put.as_secs_f64() * 1e3),
    ]);
    table.print();
    println!(
        "  The first row is what was asked of etcd, one watcher and one exporter included; the"
    );
    println!("  second what it took at most here, without anybody watching.");
}
