//! A port that answers 503 to whatever is sent.
//!
//! `balancer_by_lua` can end a request with a status of its own only where
//! nginx has OpenResty's patch for that; elsewhere any status becomes 500. So a
//! request that no instance can take is sent here.

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

use crate::board::Board;

/// Conversations at once. More wait in the listen queue.
const CONVERSATIONS: usize = 128;

/// A conversation takes no longer; nginx sends its request at once.
const PATIENCE: Duration = Duration::from_secs(1);

/// Rest after a connection that could not be accepted.
const AFTER_ERROR: Duration = Duration::from_millis(100);

const ANSWER: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\n\
    Content-Type: text/plain\r\n\
    Content-Length: 20\r\n\
    Retry-After: 1\r\n\
    Connection: close\r\n\r\n\
    Service Unavailable\n";

/// Announces a port on the board and serves it until it is dropped. Where there
/// is no port to be had, the balancer makes do with nginx's own 500.
pub async fn serve(board: Board) {
    let Err(error) = listen(board).await;
    tracing::warn!("requests that nobody can take will get 500, not 503: {error}");
    std::future::pending().await
}

async fn listen(board: Board) -> io::Result<Infallible> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let _announced = Announced::new(board, listener.local_addr()?.port());
    let room = Arc::new(Semaphore::new(CONVERSATIONS));
    let mut conversations = JoinSet::new();
    loop {
        let place = Arc::clone(&room).acquire_owned().await.map_err(io::Error::other)?;
        let Ok((stream, _)) = listener.accept().await else {
            sleep(AFTER_ERROR).await; // the process has no descriptor left
            continue;
        };
        conversations.spawn(async move {
            // An answer that could not be given needs no other.
            let _ = timeout(PATIENCE, refuse(stream)).await;
            drop(place);
        });
        while conversations.try_join_next().is_some() {}
    }
}

/// The port on the board, for as long as this lives.
struct Announced {
    board: Board,
    port: u16,
}

impl Announced {
    fn new(board: Board, port: u16) -> Self {
        board.announce_refusal_port(port);
        Announced { board, port }
    }
}

impl Drop for Announced {
    fn drop(&mut self) {
        self.board.retract_refusal_port(self.port);
    }
}

/// Answers, then reads what is still on its way: closing at once would reset
/// the connection and lose the answer.
async fn refuse(mut stream: TcpStream) -> io::Result<()> {
    let mut sink = [0; 4096];
    if stream.read(&mut sink).await? == 0 {
        return Ok(()); // nobody asked
    }
    stream.write_all(ANSWER).await?;
    stream.shutdown().await?;
    while stream.read(&mut sink).await? > 0 {}
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn whatever_is_sent_is_answered_with_503() {
        let board = Board::map_for_tests();
        let ask = async {
            while board.refusal_port().is_none() {
                tokio::task::yield_now().await;
            }
            let port = board.refusal_port().unwrap();
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
            stream.write_all(b"POST / HTTP/1.0\r\n\r\n").await.unwrap();
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await.unwrap();
            answer
        };
        let answer = tokio::select! { answer = ask => answer, () = serve(board) => unreachable!() };
        assert_eq!(answer, ANSWER);
        let (head, body) =
            ANSWER.split_at(ANSWER.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4);
        assert!(
            String::from_utf8_lossy(head).contains(&format!("Content-Length: {}\r\n", body.len()))
        );
    }
}
