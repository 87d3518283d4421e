//! Ports that answer with a reason to whatever is sent, one port a reason.
//!
//! `balancer_by_lua` can end a request with a status of its own only where
//! nginx has OpenResty's patch for that; elsewhere any status becomes 500. So a
//! request that no instance can take is sent here, and so is one whose client is to
//! be told how it failed (`failure.mode` `failback`).

use std::convert::Infallible;
use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::board::{Board, Refusal};

/// Conversations at once, of all ports. More wait in the listen queues.
const CONVERSATIONS: usize = 128;

/// A conversation takes no longer; nginx sends its request at once.
const PATIENCE: Duration = Duration::from_secs(1);

/// Rest after a connection that could not be accepted.
const AFTER_ERROR: Duration = Duration::from_millis(100);

/// What is answered, for each reason.
fn answer(reason: Refusal) -> String {
    let (status, phrase) = match reason.status() {
        502 => (502, "Bad Gateway"),
        504 => (504, "Gateway Timeout"),
        _ => (503, "Service Unavailable"),
    };
    // Of the others nobody knows when, or whether at all.
    let retry_after = if status == 503 { "Retry-After: 1\r\n" } else { "" };
    format!(
        "HTTP/1.1 {status} {phrase}\r\n\
         Content-Type: text/plain\r\n\
         Content-Length: {}\r\n\
         {retry_after}\
         ipconfig-reason: {}\r\n\
         Connection: close\r\n\r\n\
         {phrase}\n",
        phrase.len() + 1,
        reason.as_str(),
    )
}

/// Announces the ports on the board and serves them until it is dropped. Where there
/// are no ports to be had, the balancer makes do with nginx's own 500.
pub async fn serve(board: Board) {
    let room = Arc::new(Semaphore::new(CONVERSATIONS));
    let mut listening = JoinSet::new();
    for reason in Refusal::ALL {
        listening.spawn(listen(board, reason, Arc::clone(&room)));
    }
    while let Some(ended) = listening.join_next().await {
        let error = match ended {
            Ok(Err(error)) => error,
            Err(error) => io::Error::other(error),
        };
        tracing::warn!("requests that nobody can take will get 500, not 503: {error}");
    }
    std::future::pending().await
}

async fn listen(board: Board, reason: Refusal, room: Arc<Semaphore>) -> io::Result<Infallible> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let _announced = Announced::new(board, reason, listener.local_addr()?.port());
    let answer: Arc<[u8]> = answer(reason).into_bytes().into();
    let mut conversations = JoinSet::new();
    loop {
        let place = Arc::clone(&room).acquire_owned().await.map_err(io::Error::other)?;
        let Ok((stream, _)) = listener.accept().await else {
            sleep(AFTER_ERROR).await; // the process has no descriptor left
            continue;
        };
        let answer = Arc::clone(&answer);
        conversations.spawn(async move {
            // An answer that could not be given needs no other.
            let _ = timeout(PATIENCE, refuse(stream, &answer)).await;
            drop(place);
        });
        while conversations.try_join_next().is_some() {}
    }
}

/// A port on the board, for as long as this lives.
struct Announced {
    board: Board,
    reason: Refusal,
    port: u16,
}

impl Announced {
    fn new(board: Board, reason: Refusal, port: u16) -> Self {
        board.announce_refusal_port(reason, port);
        Announced { board, reason, port }
    }
}

impl Drop for Announced {
    fn drop(&mut self) {
        self.board.retract_refusal_port(self.reason, self.port);
    }
}

/// Answers, then reads what is still on its way: closing at once would reset
/// the connection and lose the answer.
async fn refuse(mut stream: TcpStream, answer: &[u8]) -> io::Result<()> {
    let mut sink = [0; 4096];
    if stream.read(&mut sink).await? == 0 {
        return Ok(()); // nobody asked
    }
    stream.write_all(answer).await?;
    stream.shutdown().await?;
    while stream.read(&mut sink).await? > 0 {}
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn ask(board: Board, reason: Refusal) -> String {
        while board.refusal_port(reason).is_none() {
            tokio::task::yield_now().await;
        }
        let port = board.refusal_port(reason).unwrap();
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
        stream.write_all(b"POST / HTTP/1.0\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn whatever_is_sent_is_answered_with_the_ports_reason() {
        let board = Board::map_for_tests();
        let ask_all = async {
            for reason in Refusal::ALL {
                let answer = ask(board, reason).await;
                let (head, body) = answer.split_once("\r\n\r\n").unwrap();
                assert!(head.starts_with(&format!("HTTP/1.1 {} ", reason.status())), "{head}");
                let headers: Vec<_> = head.split("\r\n").collect();
                let has = |header: String| headers.contains(&header.as_str());
                assert!(has(format!("ipconfig-reason: {}", reason.as_str())), "{head}");
                assert!(has(format!("Content-Length: {}", body.len())), "{head}");
                assert_eq!(has("Retry-After: 1".into()), reason.status() == 503, "{head}");
            }
        };
        tokio::select! { () = ask_all => {}, () = serve(board) => unreachable!() };
        let left = |reason| board.refusal_port(reason);
        tokio::task::yield_now().await; // the tasks end
        assert_eq!(Refusal::ALL.map(left), [None; 7]);
    }

    #[tokio::test]
    async fn who_says_nothing_or_never_stops_is_in_the_way_for_a_second_and_no_longer() {
        let board = Board::map_for_tests();
        let asked = async {
            while board.refusal_port(Refusal::NoInstance).is_none() {
                tokio::task::yield_now().await;
            }
            let port = board.refusal_port(Refusal::NoInstance).unwrap();
            let mut idle = Vec::new();
            for _ in 0..CONVERSATIONS {
                idle.push(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap());
            }
            let mut flood = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
            let flooding = async { while flood.write_all(&[b'a'; 65536]).await.is_ok() {} };
            // The ends of all of them.
            let ends = async {
                for stream in &mut idle {
                    let mut rest = Vec::new();
                    let _ = stream.read_to_end(&mut rest).await;
                    assert!(rest.is_empty());
                }
            };
            let limit = 20 * PATIENCE;
            timeout(limit, async { tokio::join!(flooding, ends) }).await.expect("they are ended");
            let answer = timeout(limit, ask(board, Refusal::NoInstance)).await.unwrap();
            assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        };
        tokio::select! { () = asked => {}, () = serve(board) => unreachable!() };
    }
}
