//! How long a change in etcd takes to be what nginx goes by.

use std::time::Duration;

use ipconfig::config::EtcdConfig;
use ipconfig::etcd::Connector;
use ipconfig::wire::Key;
use tokio::time::{Instant, sleep};

use crate::failure::Failure;
use crate::gateway::Gateway;

/// Puts that are measured.
const PUTS: usize = 20;

/// Between two of them, so that each comes alone.
const PAUSE: Duration = Duration::from_millis(25);

const SERVICE: &str = "probe";

/// What the puts took.
pub struct Delays {
    pub puts: usize,
    /// Until etcd said that a put is written.
    pub writing_median: Duration,
    /// From then on, until nginx's API showed a ranking made of it.
    pub ranking_median: Duration,
    pub ranking_worst: Duration,
}

/// Registers an instance of a service of its own, again and again with another
/// weight, and asks nginx for that service without a pause until the weight is
/// there. What is measured includes the asking.
pub async fn measure(etcd_endpoint: String, gateway: Gateway) -> Result<Delays, Failure> {
    let config = EtcdConfig { endpoints: vec![etcd_endpoint], ..EtcdConfig::default() };
    let etcd = Connector::new(&config).connect().await?;
    let key = Key::Instance { service: SERVICE.into(), id: "probe-1".into() };
    let key = key.to_path(&config.prefix);

    let (mut writing, mut ranking) = (Vec::new(), Vec::new());
    for weight in 1..=PUTS {
        sleep(PAUSE).await;
        let value = format!(r#"{{"addr":"127.0.0.1:9","weight":{weight}}}"#);
        let sent = Instant::now();
        let write = async {
            etcd.put(&key, value, None).await?;
            Ok::<_, Failure>(sent.elapsed())
        };
        let rank = async {
            while weight_of(&gateway).await? != Some(weight as f64) {}
            Ok(sent.elapsed())
        };
        let (written, ranked) = tokio::try_join!(write, rank)?;
        writing.push(written);
        // The change may be here before etcd's answer is.
        ranking.push(ranked.saturating_sub(written));
    }
    etcd.delete(&key).await?;
    Ok(Delays {
        puts: PUTS,
        ranking_worst: ranking.iter().max().copied().unwrap_or_default(),
        writing_median: median(writing),
        ranking_median: median(ranking),
    })
}

async fn weight_of(gateway: &Gateway) -> Result<Option<f64>, Failure> {
    let ranking = gateway.ranking(SERVICE).await?;
    Ok(ranking.and_then(|ranking| ranking.instances.first().map(|instance| instance.weight)))
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}
