//! A guest that breaks the rules, by packet, by chain, by ring and by number.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::guest::{CID, Guest, Random};
use super::packet::{Credit, HEADER_BYTES, Header, MAX_DATA_BYTES, Op, SHUTDOWN_SEND};
use super::table::{LARGE_WINDOW_BYTES, MAX_CONNECTIONS, SMALL_WINDOW_BYTES};

const WAIT: Duration = Duration::from_secs(5);

#[test]
fn packets_from_nowhere_are_reset_or_dropped() {
    let mut guest = Guest::new();
    let _host = guest.connect(5000, 1024);
    let good = Guest::header(Op::Request, 6000, 1024);
    guest.send_raw(
        &Header {
            src_cid: CID + 1,
            ..good
        },
        &[],
    );
    guest.send_raw(&Header { dst_cid: 1, ..good }, &[]);
    // Not a word about those; a socket type that does not exist is refused in kind.
    guest.send_raw(&Header { kind: 2, ..good }, &[]);
    assert_eq!(guest.expect(Op::Reset, 6000, 1024).kind, 2);
    for op in [
        Op::Response,
        Op::Shutdown,
        Op::Data,
        Op::CreditUpdate,
        Op::CreditRequest,
    ] {
        guest.send(op, 6000, 1024);
        guest.expect(Op::Reset, 6000, 1024);
    }
    guest.send(Op::Reset, 6000, 1024);
    guest.send_raw(&Header { op: 99, ..good }, &[]);
    guest.expect(Op::Reset, 6000, 1024);
    guest.send(Op::Request, 6000, u32::MAX);
    guest.expect(Op::Reset, 6000, u32::MAX);
    guest.sync(5000, 1024);
    assert_eq!(guest.metrics().device_errors, 2);
}

#[test]
fn violations_end_the_connection_and_no_other() {
    type Violation = fn(&mut Guest, u32);
    let violations: [Violation; 7] = [
        // A second request, a response to nothing, an operation that does not exist.
        |guest, port| guest.send(Op::Request, port, 1024),
        |guest, port| guest.send(Op::Response, port, 1024),
        |guest, port| {
            guest.send_raw(
                &Header {
                    op: 0,
                    ..Guest::header(Op::Data, port, 1024)
                },
                &[],
            )
        },
        // A length that the packet does not have.
        |guest, port| {
            let header = Header {
                len: u32::MAX,
                ..Guest::header(Op::Data, port, 1024)
            };
            guest.send_raw(&header, &[1, 2, 3]);
        },
        // Bytes acknowledged that were never sent.
        |guest, port| {
            let credit = Credit {
                buf_alloc: u32::MAX,
                fwd_cnt: 1,
            };
            guest.send_raw(
                &Header {
                    credit,
                    ..Guest::header(Op::CreditUpdate, port, 1024)
                },
                &[],
            );
        },
        |guest, port| {
            guest.shutdown(port, 1024, SHUTDOWN_SEND);
            guest.send_data(port, 1024, b"more");
        },
        // Beyond the window and what the socket takes.
        |guest, port| {
            for _ in 0..16 {
                guest.send_data(port, 1024, &[0; MAX_DATA_BYTES]);
            }
        },
    ];
    let mut guest = Guest::new();
    let mut bystander = guest.connect(4999, 1024);
    for (port, violation) in (5000..).zip(violations) {
        let host = guest.connect(port, 1024);
        let before = guest.metrics().device_errors;
        violation(&mut guest, port);
        loop {
            let (header, _) = guest.receive();
            assert_eq!(header.dst_port, port);
            if header.op == Op::Reset as u16 {
                break;
            }
        }
        assert!(guest.metrics().device_errors > before, "{port}");
        drop(host);
        while guest.try_receive().is_some() {}
    }
    bystander.write_all(b"fine").unwrap();
    loop {
        let (header, data) = guest.receive();
        if header.dst_port == 4999 {
            assert_eq!(data, b"fine");
            break;
        }
    }
}

#[test]
fn malformed_chains_are_counted_and_the_device_goes_on() {
    let mut guest = Guest::new();
    let _host = guest.connect(5000, 1024);
    guest
        .transmit
        .offer(&[(0x80_0000, HEADER_BYTES as u32 - 1)], false);
    guest.transmit.offer(&[(0x80_0000, 100)], true);
    guest.transmit.offer(&[(u64::MAX - 3, 100)], false);
    guest.transmit.offer(&[(0x80_0000, u32::MAX)], false);
    guest.sync(5000, 1024);
    assert_eq!(guest.metrics().device_errors, 4);
}

#[test]
fn unusable_receive_buffers_are_returned_empty() {
    let mut guest = Guest::without_receive_buffers();
    guest.receive.offer(&[(0x10_0000, HEADER_BYTES as u32)], true);
    guest.receive.offer(&[(0x10_0000, 4096)], false);
    guest.receive.offer(&[(u64::MAX - 3, 4096)], true);
    guest.send(Op::Request, 5000, 1024);
    for _ in 0..3 {
        assert_eq!(guest.receive.wait_used(&guest.interrupt).1, 0);
    }
    guest.offer_receive_buffers();
    guest.expect(Op::Response, 5000, 1024);
    assert_eq!(guest.metrics().device_errors, 3);
}

#[test]
fn unusable_receive_buffer_among_others_is_returned_in_its_turn() {
    let mut guest = Guest::without_receive_buffers();
    let accepted = guest.listen();
    guest.receive.offer(&[(0x10_0000, 4096)], true);
    guest.send(Op::Request, 5000, 1024);
    guest.receive.wait_used(&guest.interrupt);
    let mut host = accepted.recv_timeout(WAIT).unwrap().1;
    let heads: Vec<u16> = (0..8)
        .map(|slot| {
            let len = if slot == 5 { 8 } else { 4096 };
            guest.receive.offer(&[(0x10_0000 + slot * 4096, len)], true)
        })
        .collect();
    let full = 4096 - HEADER_BYTES;
    let mut used = Vec::new();
    // The end of the first finds more buffers taken than it fills, the unusable one among them.
    for (bytes, buffers) in [(3 * full + 100, 4), (3 * full, 4)] {
        host.write_all(&vec![7; bytes]).unwrap();
        used.extend((0..buffers).map(|_| guest.receive.wait_used(&guest.interrupt)));
    }
    let lengths = [4096, 4096, 4096, 100 + HEADER_BYTES, 4096, 0, 4096, 4096];
    let expected: Vec<(u16, u32)> = heads.into_iter().zip(lengths.map(|len| len as u32)).collect();
    assert_eq!(used, expected);
}

#[test]
fn broken_ring_stops_its_queue_and_reset_cures_it() {
    let mut guest = Guest::new();
    guest.transmit.set_available(1000);
    guest.transmit.kick();
    let start = Instant::now();
    while guest.metrics().device_errors == 0 {
        assert!(start.elapsed() < WAIT);
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(guest.interrupt.device_failed());
    guest.activate();
    guest.offer_receive_buffers();
    let _host = guest.connect(5000, 1024);
    assert_eq!(guest.metrics().device_errors, 1);
}

#[test]
fn connections_and_large_windows_are_bounded() {
    // Two descriptors for each connection.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    let mut guest = Guest::new();
    // Kept open, for as long as the test process lives.
    guest.handle.set_listener(Some(Box::new(|_, socket| {
        std::mem::forget(socket);
        Ok(())
    })));
    let mut windows = Vec::new();
    for port in 0..MAX_CONNECTIONS as u32 {
        guest.send(Op::Request, port, 1024);
        let (header, _) = guest.receive();
        assert_eq!(header.op, Op::Response as u16, "connection {port}");
        windows.push(header.credit.buf_alloc);
    }
    guest.send(Op::Request, 5000, 1024);
    guest.expect(Op::Reset, 5000, 1024);
    assert_eq!(
        windows
            .iter()
            .filter(|&&window| window == LARGE_WINDOW_BYTES)
            .count(),
        32
    );
    assert_eq!(windows.last(), Some(&SMALL_WINDOW_BYTES));
    guest.send(Op::Reset, 0, 1024);
    guest.send(Op::Request, 5000, 1024);
    assert_eq!(
        guest.expect(Op::Response, 5000, 1024).credit.buf_alloc,
        LARGE_WINDOW_BYTES
    );
}

#[test]
fn flood_without_receive_buffers_is_survived() {
    let mut guest = Guest::without_receive_buffers();
    for i in 0..20_000 {
        guest.send(Op::Data, i, 1024);
    }
    while guest.can_send() && guest.transmit.free_descriptors() < 128 {
        std::thread::yield_now();
    }
    guest.offer_receive_buffers();
    for i in 0..1024 {
        guest.expect(Op::Reset, i, 1024);
    }
    assert_eq!(guest.metrics().device_errors, 20_000 - 1024);
}

#[test]
fn random_packets_never_break_the_device() {
    let mut guest = Guest::new();
    let accepted = guest.listen();
    let mut random = Random(7);
    let mut hosts: Vec<UnixStream> = Vec::new();
    let mut waiting = Vec::new();
    for _ in 0..20_000 {
        let pick = |random: &mut Random, values: &[u32]| values[random.below(values.len())];
        let data = vec![1; random.below(300)];
        let len = match random.below(20) {
            0 => random.below(1 << 32) as u32,
            _ => data.len() as u32,
        };
        let header = Header {
            src_cid: CID,
            dst_cid: if random.below(50) == 0 { 9 } else { 2 },
            src_port: random.below(4) as u32,
            dst_port: pick(&mut random, &[1024, 1025, 1 << 30, (1 << 30) + 1]),
            len,
            kind: if random.below(50) == 0 { 3 } else { 1 },
            op: pick(&mut random, &[1, 1, 2, 3, 4, 5, 5, 5, 6, 7, 8, 0]) as u16,
            flags: random.below(5) as u32,
            credit: Credit {
                buf_alloc: pick(&mut random, &[0, 1, 100, 100_000, u32::MAX]),
                fwd_cnt: pick(&mut random, &[0, 0, 0, 0, 0, 1, 50, u32::MAX]),
            },
        };
        guest.send_raw(&header, &data);
        while guest.try_receive().is_some() {}
        hosts.extend(accepted.try_iter().map(|(_, socket)| socket));
        if let Some(host) = hosts.last_mut()
            && random.below(3) == 0
        {
            host.set_nonblocking(true).unwrap();
            let _ = host.write(&[2; 100]);
        }
        if random.below(10) == 0 && !hosts.is_empty() {
            hosts.swap_remove(random.below(hosts.len()));
        }
        if random.below(50) == 0 {
            waiting.push(guest.host_connects(random.below(4) as u32));
        }
    }
    // What remains must work.
    guest.activate();
    guest.offer_receive_buffers();
    let _host = guest.connect(5000, 1024);
    guest.sync(5000, 1024);
    for done in waiting {
        let _ = done.recv_timeout(WAIT).unwrap();
    }
}
