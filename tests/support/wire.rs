//! A way to a process that can be cut, stalled, slowed down and garbled, by a task
//! that copies bytes.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;

/// What the way is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Weather {
    /// As if it were not there.
    #[default]
    Fair,
    /// Connections break, new ones at once.
    Cut,
    /// Connections stay, also new ones, and nothing comes through: what was sent
    /// meanwhile does when it is fair again.
    Stalled,
    /// Each piece takes so long, to either side.
    Slow(Duration),
}

/// The way.
pub struct Wire {
    address: SocketAddr,
    weather: watch::Sender<Weather>,
    garble: Arc<AtomicU64>,
    accepting: JoinHandle<()>,
}

impl Wire {
    /// Opens a port of its own that leads to `target`.
    pub async fn to(target: SocketAddr) -> Self {
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
        let listener = listener.expect("a free loopback port");
        let address = listener.local_addr().expect("a bound address");
        let (weather, seen) = watch::channel(Weather::Fair);
        let garble = Arc::new(AtomicU64::new(0));
        let armed = Arc::clone(&garble);
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(carry(client, target, seen.clone(), Arc::clone(&armed)));
            }
        });
        Self { address, weather, garble, accepting }
    }

    /// `http://127.0.0.1:port` of this way.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Changes what the way is like.
    pub fn set(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }

    /// Breaks all connections, and each new one at once.
    pub fn cut(&self) {
        self.set(Weather::Cut);
    }

    /// Lets everything through again.
    pub fn mend(&self) {
        self.set(Weather::Fair);
    }

    /// Puts nonsense before one of the next frames of HTTP/2 that come back, and so
    /// breaks what a connection says without breaking it. Not within a frame, where
    /// nothing but a checksum could tell it from what was meant.
    pub fn garble(&self, seed: u64) {
        self.garble.store(seed | 1, Ordering::Relaxed);
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.accepting.abort();
        self.set(Weather::Cut);
    }
}

async fn carry(
    mut client: TcpStream,
    target: SocketAddr,
    weather: watch::Receiver<Weather>,
    garble: Arc<AtomicU64>,
) {
    let mut until_cut = weather.clone();
    if *weather.borrow() == Weather::Cut {
        return;
    }
    let Ok(mut server) = TcpStream::connect(target).await else { return };
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    tokio::select! {
        () = copy(from_client, to_server, weather.clone(), None) => {}
        () = copy(from_server, to_client, weather, Some(garble)) => {}
        _ = until_cut.wait_for(|weather| *weather == Weather::Cut) => {}
    }
}

async fn copy(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut weather: watch::Receiver<Weather>,
    garble: Option<Arc<AtomicU64>>,
) {
    let mut buffer = vec![0; 16 << 10];
    let mut frames = Frames::default();
    loop {
        let Ok(read @ 1..) = from.read(&mut buffer).await else { return };
        if weather.wait_for(|weather| *weather != Weather::Stalled).await.is_err() {
            return;
        }
        let now = *weather.borrow();
        if let Weather::Slow(by) = now {
            sleep(by).await;
        }
        let at_start = frames.is_between();
        frames.pass(&buffer[..read]);
        if let Some(garble) = garble.as_ref().filter(|_| at_start) {
            let seed = garble.swap(0, Ordering::Relaxed);
            let nonsense = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes();
            if seed != 0 && to.write_all(&nonsense.repeat(4)).await.is_err() {
                return;
            }
        }
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}

/// Where the frames of an HTTP/2 connection begin: each with nine bytes, the first
/// three of them the length of the rest.
#[derive(Default)]
struct Frames {
    header: Vec<u8>,
    left: usize,
}

impl Frames {
    fn is_between(&self) -> bool {
        self.header.is_empty() && self.left == 0
    }

    fn pass(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let take =
                bytes.len().min(if self.left > 0 { self.left } else { 9 - self.header.len() });
            let (now, rest) = bytes.split_at(take);
            bytes = rest;
            if self.left > 0 {
                self.left -= take;
                continue;
            }
            self.header.extend(now);
            if let [a, b, c, _, _, _, _, _, _] = self.header[..] {
                self.left = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
                self.header.clear();
            }
        }
    }
}
