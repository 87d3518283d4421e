//! Who listens on a TCP port, from `/proc`.
//!
//! ```text
//! /proc/net/tcp       0: 0100007F:2329 00000000:0000 0A 00000000:00000002 … 4711 …
//! /proc/812/fd/7      socket:[4711]
//! ```

use std::fs;
use std::path::Path;

use super::Life;

/// A socket that listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Listener {
    pub inode: u64,
    /// Connections that wait to be accepted.
    pub waiting: u64,
}

impl Listener {
    /// Of a line of `/proc/net/tcp` or `tcp6`, if it is of a socket that listens
    /// on `port`. The columns are the slot, the addresses of both ends, the state,
    /// the queues (what listens has its waiting connections in the second), three
    /// of no use here, the user, the time-out, and the inode.
    fn parse(line: &str, port: u16) -> Option<Self> {
        /// `TCP_LISTEN` of the kernel.
        const LISTEN: &str = "0A";
        let columns: Vec<&str> = line.split_whitespace().collect();
        let [_, local, _, state, queues, _, _, _, _, inode, ..] = columns[..] else {
            return None;
        };
        let (_, local_port) = local.rsplit_once(':')?;
        let is_asked = state == LISTEN && u16::from_str_radix(local_port, 16) == Ok(port);
        let (_, waiting) = queues.split_once(':')?;
        let waiting = u64::from_str_radix(waiting, 16).ok()?;
        is_asked.then_some(Self { inode: inode.parse().ok()?, waiting })
    }
}

/// The sockets that listen on `port`, of both families.
pub(super) fn listeners(root: &Path, port: u16) -> Vec<Listener> {
    let tables = ["proc/net/tcp", "proc/net/tcp6"];
    let texts = tables.map(|table| fs::read_to_string(root.join(table)).unwrap_or_default());
    let lines = texts.iter().flat_map(|text| text.lines());
    lines.filter_map(|line| Listener::parse(line, port)).collect()
}

/// The oldest process that holds one of the sockets, and that socket; `None` if
/// nobody does whose files may be read.
pub(super) fn owner(root: &Path, listeners: &[Listener]) -> Option<(Life, u64)> {
    let pids = fs::read_dir(root.join("proc")).ok()?;
    let pids = pids.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let owners = pids.filter_map(|pid| {
        let inode = held(&root.join(format!("proc/{pid}/fd")), listeners)?;
        Some((Life::of(root, pid)?, inode))
    });
    owners.min_by_key(|(life, _)| (life.started_ticks, life.pid))
}

/// The inode of the socket among a process's files that is one of `listeners`.
fn held(files: &Path, listeners: &[Listener]) -> Option<u64> {
    fs::read_dir(files).ok()?.find_map(|file| {
        let link = fs::read_link(file.ok()?.path()).ok()?;
        let inode = link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?;
        let inode = inode.parse::<u64>().ok()?;
        listeners.iter().any(|listener| listener.inode == inode).then_some(inode)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINES: [&str; 4] = [
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode",
        "   0: 0100007F:2329 00000000:0000 0A 00000000:00000002 00:00000000 00000000  1000        0 4711 1 0 100 0 0 10 0",
        "   1: 0100007F:2329 0100007F:9C40 01 00000000:00000000 00:00000000 00000000  1000        0 4712 1 0 20 4 30 10 -1",
        "   0: 00000000000000000000000000000000:2329 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4713 1 0 100 0 0 10 0",
    ];

    #[test]
    fn only_what_listens_on_the_port_counts() {
        let parsed = LINES.map(|line| Listener::parse(line, 9001));
        let listener = |inode, waiting| Some(Listener { inode, waiting });
        assert_eq!(parsed, [None, listener(4711, 2), None, listener(4713, 0)]);
        assert_eq!(LINES.map(|line| Listener::parse(line, 9002)), [None; 4]);
    }

    #[test]
    fn garbage_is_no_listener() {
        for line in ["", "0:", "0: x y 0A z 0 0 0 0 4711", "0: 1:2329 0:0 0A 0:g 0 0 0 0 4711"] {
            assert_eq!(Listener::parse(line, 9001), None, "{line:?}");
        }
    }

    #[test]
    fn this_process_owns_the_socket_that_it_listens_on() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let root = Path::new("/");
        let listeners = listeners(root, socket.local_addr().unwrap().port());
        let (life, inode) = owner(root, &listeners).unwrap();
        assert_eq!(Some(life), Life::of(root, std::process::id()));
        assert_eq!(inode, listeners[0].inode);
        assert_eq!(owner(root, &[Listener { inode: 0, waiting: 0 }]), None);
    }
}
