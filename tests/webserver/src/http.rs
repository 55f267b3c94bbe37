//! A web server of four pages, one thread a connection, every answer closes. UDP datagrams on the same port are
//! remembered and listed.

use std::error::Error;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Longest request head that is read.
const MAX_HEAD: u64 = 16 * 1024;
const PATIENCE: Duration = Duration::from_secs(30);

type Datagrams = Arc<Mutex<Vec<String>>>;

/// `/` greets with the host's name, `/env` lists the environment, `/bytes/N` gives N bytes, `/datagrams` what came by
/// UDP.
pub(crate) fn serve() -> Result<(), Box<dyn Error>> {
    let port: u16 = std::env::var("PORT").map_or(Ok(80), |port| port.parse())?;
    let datagrams = Datagrams::default();
    let udp = UdpSocket::bind(("0.0.0.0", port))?;
    let heard = Arc::clone(&datagrams);
    std::thread::spawn(move || listen_udp(&udp, &heard));
    let listener = TcpListener::bind(("0.0.0.0", port))?;
    println!("listening on port {port}");
    for connection in listener.incoming().flatten() {
        let datagrams = Arc::clone(&datagrams);
        std::thread::spawn(move || {
            if let Err(error) = answer(connection, &datagrams) {
                println!("failed: {error}");
            }
        });
    }
    Ok(())
}

fn listen_udp(socket: &UdpSocket, datagrams: &Datagrams) {
    let mut buffer = [0u8; 2048];
    while let Ok((length, from)) = socket.recv_from(&mut buffer) {
        let line = format!(
            "datagram from {}: {}",
            from.ip(),
            String::from_utf8_lossy(&buffer[..length])
        );
        println!("{line}");
        datagrams
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(line);
    }
}

fn answer(mut connection: TcpStream, datagrams: &Datagrams) -> std::io::Result<()> {
    connection.set_read_timeout(Some(PATIENCE))?;
    connection.set_write_timeout(Some(PATIENCE))?;
    let mut head = BufReader::new(connection.try_clone()?.take(MAX_HEAD));
    let mut request = String::new();
    head.read_line(&mut request)?;
    let mut line = String::new();
    while head.read_line(&mut line)? > 2 {
        line.clear();
    }
    let path = request.split(' ').nth(1).unwrap_or("");
    println!("{} {path}", connection.peer_addr()?.ip());
    match page(path, datagrams) {
        Some(body) => {
            write!(
                connection,
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                body.len()
            )?;
            connection.write_all(&body)
        }
        None => {
            connection.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        }
    }
}

fn page(path: &str, datagrams: &Datagrams) -> Option<Vec<u8>> {
    match path {
        "/" => Some(format!("hello from {}\n", hostname()).into_bytes()),
        "/env" => {
            let mut lines: Vec<String> = std::env::vars()
                .map(|(name, value)| format!("{name}={value}\n"))
                .collect();
            lines.sort();
            Some(lines.concat().into_bytes())
        }
        "/datagrams" => {
            let datagrams = datagrams.lock().unwrap_or_else(PoisonError::into_inner);
            Some(
                datagrams
                    .iter()
                    .map(|line| format!("{line}\n"))
                    .collect::<String>()
                    .into_bytes(),
            )
        }
        _ => {
            let count: usize = path
                .strip_prefix("/bytes/")?
                .parse()
                .ok()
                .filter(|count| *count <= 64 << 20)?;
            Some(b"0123456789abcdef".iter().copied().cycle().take(count).collect())
        }
    }
}

fn hostname() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map(|name| name.trim().to_owned())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_what_the_tests_expect() {
        let datagrams = Datagrams::default();
        assert_eq!(page("/bytes/18", &datagrams).unwrap(), b"0123456789abcdef01");
        assert!(page("/", &datagrams).unwrap().starts_with(b"hello from "));
        assert_eq!(page("/nowhere", &datagrams), None);
        assert_eq!(page("/bytes/99999999999", &datagrams), None);
    }
}
