//! `make up`: everything runs, and stays for looking around.

use crate::Ending;
use crate::failure::Failure;
use crate::gateway;
use crate::screen::Screen;
use crate::stage::{Instance, Knob, SERVICE, Stage};
use crate::traffic::Traffic;

/// Enough to see shares, little enough to leave the machine to whoever looks.
const REQUESTS_PER_SECOND: f64 = 50.0;

/// Runs until `interrupted`.
pub async fn until(
    interrupted: impl Future<Output = &'static str>,
    stage: &mut Stage,
    screen: &mut Screen,
) -> Result<Ending, Failure> {
    stage.start_exporter().await?;
    let uri = stage.gateway.uri(&format!("/{SERVICE}/"));
    let traffic = Traffic::start(uri, REQUESTS_PER_SECOND, &stage.instances);
    screen.say(directions(stage))?;

    let name = interrupted.await;
    traffic.stop().await;
    let record = traffic.record();
    screen.say(format!("{name}: {} requests sent, {} failed", record.sent, record.failed))?;
    Ok(Ending::AsExpected)
}

fn directions(stage: &Stage) -> String {
    let gateway = stage.gateway.addr;
    let exporter = gateway::uri(stage.exporter_addr, "/metrics");
    let etcdctl = format!("ETCDCTL_API=3 etcdctl --endpoints {}", stage.etcd.endpoint());
    let folder = stage.folder().display();
    let pages = [
        ("a request", format!("curl -i http://{gateway}/{SERVICE}/")),
        ("the ranking", format!("curl http://{gateway}/ipconfig/v1/services/{SERVICE}")),
        ("the gateway's metrics", format!("curl http://{gateway}/ipconfig/metrics")),
        ("the exporter's metrics", format!("curl {exporter}")),
    ];
    let pages: String =
        pages.iter().map(|(what, command)| format!("  {what:<23} {command}\n")).collect();
    let instances: String = stage.instances.iter().map(instance_line).collect();
    format!(
        "
everything runs, with {REQUESTS_PER_SECOND} requests/s; Ctrl-C ends it

{pages}
an instance of another service, put by hand:
  {etcdctl} put /ipconfig/v1/instances/u/x '{{\"addr\":\"127.0.0.1:9\"}}'
  curl http://{gateway}/ipconfig/v1/services/u

all that etcd holds:
  {etcdctl} get --prefix --keys-only /ipconfig/v1/

the instances of {SERVICE}; `kill -9` the process of one, or slow it down:
{instances}
logs and configuration are in {folder}"
    )
}

fn instance_line(instance: &Instance) -> String {
    let Instance { id, knob, .. } = instance;
    let slower = instance.knob_uri(Knob::ms(50));
    let process = instance.process_id().map_or("none".to_owned(), |id| id.to_string());
    format!("  {id}  process {process}  {knob:<6} curl '{slower}'\n")
}
