//! A web client for images that have none: one GET, the body on standard output.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

const TIMEOUT: Duration = Duration::from_secs(20);
const END_OF_HEAD: &[u8] = b"\r\n\r\n";

/// `address` is `IP:PORT`. Anything but status 200 is an error.
pub(crate) fn get(address: &str, path: &str) -> Result<(), Box<dyn std::error::Error>> {
    let address: SocketAddr = address.parse()?;
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let end = answer
        .windows(END_OF_HEAD.len())
        .position(|window| window == END_OF_HEAD);
    let (head, body) = answer.split_at(end.ok_or("the answer has no end of its head")? + END_OF_HEAD.len());
    if !head.starts_with(b"HTTP/1.1 200 ") {
        return Err(format!("{address} answers {}", String::from_utf8_lossy(head)).into());
    }
    io::stdout().write_all(body)?;
    Ok(())
}
