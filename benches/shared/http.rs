//! As little HTTP as is needed, blocking: nothing but the socket is between a
//! request and its time.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

/// More than any answer takes that comes at all.
const TIMEOUT: Duration = Duration::from_secs(60);

/// One connection that is kept alive.
pub struct Client {
    stream: BufReader<TcpStream>,
    line: String,
}

impl Client {
    /// Connects to a port on this host.
    pub fn connect(port: u16) -> io::Result<Self> {
        Ok(Client { stream: BufReader::new(connect(port)?), line: String::new() })
    }

    /// The body of an answer with 200, with a `Content-Length` or in chunks.
    pub fn get(&mut self, path: &str) -> io::Result<String> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n");
        self.stream.get_mut().write_all(request.as_bytes())?;
        let status = self.read_line()?.to_owned();
        let mut length = None;
        let mut is_chunked = false;
        loop {
            let header = self.read_line()?;
            if header.is_empty() {
                break;
            }
            let Some((name, value)) = header.split_once(':') else { continue };
            if name.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse().ok();
            } else if name.eq_ignore_ascii_case("transfer-encoding") {
                is_chunked = true;
            }
        }
        let mut body = Vec::new();
        if is_chunked {
            while self.read_chunk(&mut body)? > 0 {}
        } else {
            let length = length.ok_or_else(|| unexpected(path, "neither a length nor chunks"))?;
            self.read_body(length, &mut body)?;
        }
        check_status(path, &status)?;
        String::from_utf8(body).map_err(|_| unexpected(path, "a body that is no text"))
    }

    /// Appends the next chunk; returns its length, which is 0 after the last one.
    fn read_chunk(&mut self, body: &mut Vec<u8>) -> io::Result<usize> {
        let length = usize::from_str_radix(self.read_line()?, 16).map_err(io::Error::other)?;
        self.read_body(length, body)?;
        self.read_line()?;
        Ok(length)
    }

    fn read_body(&mut self, length: usize, body: &mut Vec<u8>) -> io::Result<()> {
        let begin = body.len();
        body.resize(begin + length, 0);
        self.stream.read_exact(&mut body[begin..])
    }

    fn read_line(&mut self) -> io::Result<&str> {
        self.line.clear();
        if self.stream.read_line(&mut self.line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(self.line.trim_end())
    }
}

/// The body of any answer with 200, over a connection of its own.
pub fn get(port: u16, path: &str) -> io::Result<String> {
    let mut stream = connect(port)?;
    // By HTTP/1.0 the body ends with the connection.
    stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    check_status(path, answer.lines().next().unwrap_or_default())?;
    let (_, body) = answer.split_once("\r\n\r\n").ok_or_else(|| unexpected(path, "no body"))?;
    Ok(body.to_owned())
}

fn connect(port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    Ok(stream)
}

fn check_status(path: &str, line: &str) -> io::Result<()> {
    if line.starts_with("HTTP/1.1 200") { Ok(()) } else { Err(unexpected(path, line)) }
}

fn unexpected(path: &str, found: &str) -> io::Error {
    io::Error::other(format!("GET {path}: {found}"))
}
