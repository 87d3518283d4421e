use super::*;
use tempfile::TempDir;
use tokio::time::advance;

/// `/proc` of a host whose processes come and go.
struct Host {
    root: TempDir,
}

impl Host {
    fn new() -> Self {
        let host = Self { root: tempfile::tempdir().unwrap() };
        host.write("proc/sys/kernel/random/boot_id", "08970518-2ef5\n");
        host.write("proc/uptime", "100.25 90.00\n");
        host
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn start(&self, pid: u32, started_ticks: u64) {
        let stat = format!("{pid} (x) S 1 0 0 0 0 0 0 0 0 0 1 2 0 0 20 0 1 0 {started_ticks} 0\n");
        self.write(&format!("proc/{pid}/stat"), &stat);
    }

    fn kill(&self, pid: u32) {
        fs::remove_dir_all(self.root.path().join(format!("proc/{pid}"))).unwrap();
    }

    fn agent(&self, target: Target) -> Agent {
        Agent::under(self.root.path(), target)
    }

    /// Lets the process listen by that socket.
    fn listen(&self, pid: u32, inode: u64) {
        let dir = self.root.path().join(format!("proc/{pid}/fd"));
        fs::create_dir_all(&dir).unwrap();
        std::os::unix::fs::symlink(format!("socket:[{inode}]"), dir.join("7")).unwrap();
    }

    /// The sockets that listen on port 9001, each with 2 waiting connections.
    fn sockets(&self, inodes: &[u64]) {
        let line =
            |inode| format!("0: 0100007F:2329 0:0 0A 00000000:00000002 0:0 0 0 0 {inode} 1\n");
        let lines: String = inodes.iter().map(line).collect();
        self.write("proc/net/tcp", &lines);
    }
}

/// What it tells when all that it knew is too old.
async fn news(agent: &Agent) -> Result<Status, tonic::Status> {
    advance(TOLD_FOR).await;
    agent.status()
}

async fn boot_id(agent: &Agent) -> u64 {
    news(agent).await.unwrap().boot_id
}

async fn refusal(agent: &Agent) -> String {
    let status = news(agent).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::Unavailable);
    status.message().to_owned()
}

#[tokio::test(start_paused = true)]
async fn a_restart_of_the_agent_is_none_of_the_process() {
    let host = Host::new();
    host.start(7, 4242);
    let last = {
        let agent = host.agent(Target::Pid(7));
        (0..100).map(|_| agent.status().unwrap()).last().unwrap()
    };
    host.write("proc/uptime", "100.26 90.00\n");
    let status = host.agent(Target::Pid(7)).status().unwrap();
    assert_eq!(status.boot_id, last.boot_id);
    assert!(status.seq > last.seq, "{} after {}", status.seq, last.seq);
}

#[tokio::test(start_paused = true)]
async fn a_status_is_newer_than_the_last_also_within_one_tick() {
    let host = Host::new();
    host.start(7, 4242);
    let agent = host.agent(Target::Pid(7));
    let (first, second) = (agent.status().unwrap(), agent.status().unwrap());
    assert!(second.seq > first.seq);
}

#[tokio::test(start_paused = true)]
async fn who_asks_often_is_told_what_was_found_out_and_how_old_it_is() {
    let host = Host::new();
    let agent = host.agent(Target::Port(9001));
    assert_eq!(refusal(&agent).await, "nobody listens on port 9001");
    host.start(7, 1);
    host.listen(7, 4711);
    host.sockets(&[4711]);
    assert!(agent.status().is_err(), "that is not looked for so soon");
    let first = news(&agent).await.unwrap();
    host.kill(7);
    advance(TOLD_FOR / 2).await;
    let second = agent.status().unwrap();
    assert_eq!((first.age, second.age), (Duration::ZERO, TOLD_FOR / 2));
    assert_eq!(second, Status { seq: first.seq + 1, age: TOLD_FOR / 2, ..first });
    advance(TOLD_FOR / 2).await;
    assert!(agent.status().is_err());
}

#[tokio::test(start_paused = true)]
async fn boots_of_processes_and_hosts_differ() {
    let host = Host::new();
    let boot_of = async |pid, started| {
        host.start(pid, started);
        boot_id(&host.agent(Target::Pid(pid))).await
    };
    let (one, later, other) =
        (boot_of(7, 4242).await, boot_of(7, 4243).await, boot_of(8, 4242).await);
    host.write("proc/sys/kernel/random/boot_id", "18970518-2ef5\n");
    let mut boots = vec![one, later, other, boot_of(7, 4242).await];
    boots.dedup();
    assert_eq!(boots.len(), 4, "{boots:?}");
}

#[tokio::test(start_paused = true)]
async fn who_gets_the_id_of_a_dead_process_is_not_it() {
    let host = Host::new();
    host.start(7, 4242);
    let agent = host.agent(Target::Pid(7));
    boot_id(&agent).await;
    host.kill(7);
    assert_eq!(refusal(&agent).await, "process 7 is gone");
    host.start(7, 5000);
    assert_eq!(refusal(&agent).await, "process 7 is gone");
}

#[tokio::test(start_paused = true)]
async fn a_process_that_nobody_has_waited_for_is_gone() {
    let host = Host::new();
    host.write("proc/7/stat", "7 (x) Z 1 0 0 0 0 0 0 0 0 0 1 2 0 0 20 0 1 0 4242 0\n");
    assert_eq!(refusal(&host.agent(Target::Pid(7))).await, "process 7 is gone");
}

#[tokio::test(start_paused = true)]
async fn a_pid_file_is_read_anew_each_time() {
    let host = Host::new();
    host.start(7, 1);
    host.start(8, 2);
    let file = host.root.path().join("x.pid");
    let agent = host.agent(Target::PidFile(file.clone()));
    let name = file.display().to_string();
    assert!(refusal(&agent).await.starts_with(&format!("failed to read {name}: No such file")));
    for garbage in ["", "\n7\n", "seven", "-7", "0"] {
        host.write("x.pid", garbage);
        assert_eq!(refusal(&agent).await, format!("{name} holds no process id"), "{garbage:?}");
    }
    host.write("x.pid", "9\n");
    assert_eq!(refusal(&agent).await, "process 9 is gone");
    host.write("x.pid", "7\n");
    let first = boot_id(&agent).await;
    host.write("x.pid", " 8 \nmore\n");
    assert_ne!(boot_id(&agent).await, first);
}

#[tokio::test(start_paused = true)]
async fn a_port_leads_to_whoever_listens_on_it() {
    let host = Host::new();
    let agent = host.agent(Target::Port(9001));
    assert_eq!(refusal(&agent).await, "nobody listens on port 9001");
    host.sockets(&[4711]);
    assert!(refusal(&agent).await.contains("cannot be read"), "{}", refusal(&agent).await);

    host.start(7, 1);
    host.listen(7, 4711);
    let status = news(&agent).await.unwrap();
    assert_eq!((status.queue, status.in_flight), (Some(2), None));
    host.kill(7);
    host.start(8, 2);
    host.listen(8, 4712);
    host.sockets(&[4712]);
    assert_ne!(boot_id(&agent).await, status.boot_id);
}

#[tokio::test(start_paused = true)]
async fn of_those_that_share_a_socket_the_oldest_is_told_of() {
    let host = Host::new();
    for (pid, started) in [(7, 3), (8, 1), (9, 2)] {
        host.start(pid, started);
        host.listen(pid, 4711);
    }
    host.sockets(&[4711]);
    let agent = host.agent(Target::Port(9001));
    let oldest = boot_id(&agent).await;
    assert_eq!(oldest, boot_id(&host.agent(Target::Pid(8))).await);
    host.kill(8);
    assert_eq!(boot_id(&agent).await, boot_id(&host.agent(Target::Pid(9))).await, "its heir");
}
