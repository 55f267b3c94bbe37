//! The whole device, with a guest driver made by hand: connections, ends, credit, hostile packets, bulk data.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::guest::{Guest, Random};
use super::packet::{Credit, Header, MAX_DATA_BYTES, Op, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use super::table::{ANSWER_TIMEOUT, LARGE_WINDOW_BYTES, MAX_WAITING};
use super::{Vsock, VsockHandle};
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::worker::Worker;

const WAIT: Duration = Duration::from_secs(5);

fn read(socket: &mut UnixStream, len: usize) -> Vec<u8> {
    let mut data = vec![0; len];
    socket.read_exact(&mut data).unwrap();
    data
}

fn is_handle<T: Clone + Send + Sync + 'static>() {}

#[test]
fn host_connects_and_both_sides_talk() {
    is_handle::<VsockHandle>();
    let mut guest = Guest::new();
    let done = guest.host_connects(80);
    let (request, _) = guest.receive();
    assert_eq!((request.op, request.dst_port), (Op::Request as u16, 80));
    let host_port = request.src_port;
    guest.send(Op::Response, 80, host_port);
    let mut host = UnixStream::from(done.recv_timeout(WAIT).unwrap().unwrap());
    host.write_all(b"ping").unwrap();
    assert_eq!(guest.receive().1, b"ping");
    guest.send_data(80, host_port, b"pong");
    assert_eq!(read(&mut host, 4), b"pong");
    let metrics = guest.metrics();
    assert_eq!(
        (
            metrics.vsock_connections,
            metrics.vsock_rx_bytes,
            metrics.vsock_tx_bytes
        ),
        (1, 4, 4)
    );
}

#[test]
fn refused_late_and_impossible_connections_are_errors() {
    let mut guest = Guest::new();
    let done = guest.host_connects(81);
    let (request, _) = guest.receive();
    guest.send(Op::Reset, 81, request.src_port);
    assert!(
        done.recv_timeout(WAIT)
            .unwrap()
            .unwrap_err()
            .contains("refused the connection to port 81")
    );

    let start = Instant::now();
    let done = guest.host_connects(82);
    let (request, _) = guest.receive();
    assert!(
        done.recv_timeout(WAIT)
            .unwrap()
            .unwrap_err()
            .contains("did not answer at port 82")
    );
    assert!(start.elapsed() >= ANSWER_TIMEOUT);
    guest.send(Op::Response, 82, request.src_port);
    guest.expect(Op::Reset, 82, request.src_port);

    let done = guest.host_connects(83);
    guest.device.stop();
    assert!(done.recv_timeout(WAIT).unwrap().is_err());
    let done = guest.host_connects(84);
    assert!(done.try_recv().unwrap().unwrap_err().contains("not active"));
}

#[test]
fn guest_connections_wait_for_a_listener() {
    let mut guest = Guest::new();
    guest.send(Op::Request, 5000, 1024);
    guest.expect(Op::Response, 5000, 1024);
    guest.send_data(5000, 1024, b"before");
    // A listener that takes nothing changes nothing.
    guest.handle.set_listener(Some(Box::new(|_, socket| Err(socket))));
    guest.sync(5000, 1024);
    let accepted = guest.listen();
    let (port, mut host) = accepted.recv_timeout(WAIT).unwrap();
    assert_eq!(port, 1024);
    guest.send_data(5000, 1024, b" after");
    assert_eq!(read(&mut host, 12), b"before after");
}

#[test]
fn only_so_many_guest_connections_wait() {
    let mut guest = Guest::new();
    for port in 0..MAX_WAITING as u32 {
        guest.send(Op::Request, port, 1024);
        guest.expect(Op::Response, port, 1024);
    }
    guest.send(Op::Request, 100, 1024);
    guest.expect(Op::Reset, 100, 1024);
    // One that the guest has given up makes room.
    guest.send(Op::Reset, 3, 1024);
    guest.send(Op::Request, 101, 1024);
    guest.expect(Op::Response, 101, 1024);
    let accepted = guest.listen();
    for _ in 0..MAX_WAITING {
        accepted.recv_timeout(WAIT).unwrap();
    }
}

#[test]
fn connections_end_with_the_device_and_new_ones_work() {
    let mut guest = Guest::new();
    let mut host = guest.connect(5000, 1024);
    guest.device.stop();
    assert_eq!(host.read(&mut [0; 8]).unwrap(), 0);
    guest.activate();
    guest.offer_receive_buffers();
    let mut host = guest.connect(5000, 1024);
    guest.send_data(5000, 1024, b"again");
    assert_eq!(read(&mut host, 5), b"again");
}

#[test]
fn a_restored_guest_hears_that_its_connections_are_gone() {
    const EVENT_BUFFER: u64 = 0xf_0000;
    let mut guest = Guest::new();
    guest.event.offer(&[(EVENT_BUFFER, 8)], true);
    guest.event.write(EVENT_BUFFER, &[0xee; 8]);
    let mut host = guest.connect(5000, 1024);
    guest.send_data(5000, 1024, b"before");
    assert_eq!(read(&mut host, 6), b"before");
    guest.restore();
    assert_eq!(host.read(&mut [0; 8]).unwrap(), 0);
    let (head, len) = guest.event.wait_used(&guest.interrupt);
    assert_eq!((head, len), (0, 4));
    assert_eq!(guest.event.read(EVENT_BUFFER, 5), [0, 0, 0, 0, 0xee]);
    // All queues go on: the receive buffers that were offered before are still there.
    let mut host = guest.connect(5001, 1024);
    guest.send_data(5001, 1024, b"after");
    assert_eq!(read(&mut host, 5), b"after");
    // A guest that offers nothing to hear it with is restored all the same.
    guest.restore();
    guest.connect(5002, 1024);
}

#[test]
fn half_closed_directions_end_alone() {
    let mut guest = Guest::new();
    let mut host = guest.connect(5000, 1024);
    guest.send_data(5000, 1024, b"last words");
    guest.shutdown(5000, 1024, SHUTDOWN_SEND);
    let mut rest = Vec::new();
    host.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"last words");
    host.write_all(b"still here").unwrap();
    assert_eq!(guest.receive().1, b"still here");
    host.shutdown(std::net::Shutdown::Write).unwrap();
    while guest.expect(Op::Shutdown, 5000, 1024).flags & SHUTDOWN_SEND == 0 {}

    let mut host = guest.connect(5001, 1024);
    guest.shutdown(5001, 1024, SHUTDOWN_RECEIVE);
    while guest.receive().0.dst_port != 5001 {}
    assert_eq!(host.write(b"no").unwrap_err().kind(), ErrorKind::BrokenPipe);
    guest.send_data(5001, 1024, b"yes");
    assert_eq!(read(&mut host, 3), b"yes");
}

#[test]
fn guest_that_closes_is_confirmed_when_its_data_has_arrived() {
    let mut guest = Guest::new();
    let mut host = guest.connect(5000, 1024);
    // More than the socket takes at once.
    let window = LARGE_WINDOW_BYTES as usize;
    let data: Vec<u8> = (0..window).map(|i| (i % 253) as u8).collect();
    for part in data.chunks(MAX_DATA_BYTES) {
        guest.send_data(5000, 1024, part);
    }
    guest.shutdown(5000, 1024, SHUTDOWN_BOTH);
    let mut arrived = Vec::new();
    host.read_to_end(&mut arrived).unwrap();
    assert!(arrived == data);
    while guest.receive().0.op != Op::Reset as u16 {}
}

#[test]
fn host_that_closes_is_told_to_the_guest_behind_its_data() {
    let mut guest = Guest::new();
    let mut host = guest.connect(5000, 1024);
    host.write_all(&[7; 10_000]).unwrap();
    drop(host);
    let (mut arrived, mut shutdown) = (0, 0);
    while shutdown != SHUTDOWN_BOTH {
        let (header, data) = guest.receive();
        arrived += data.len();
        shutdown |= header.flags;
        assert!(shutdown & SHUTDOWN_SEND == 0 || arrived == 10_000);
    }
    // The guest does not confirm.
    let start = Instant::now();
    guest.expect(Op::Reset, 5000, 1024);
    assert!(start.elapsed() > ANSWER_TIMEOUT / 2);
    guest.send_data(5000, 1024, b"late");
    guest.expect(Op::Reset, 5000, 1024);
}

#[test]
fn host_sends_no_more_than_the_guest_allows() {
    let mut guest = Guest::new();
    let accepted = guest.listen();
    let credit = Credit {
        buf_alloc: 1000,
        fwd_cnt: 0,
    };
    let packet = |op| Header {
        credit,
        ..Guest::header(op, 5000, 1024)
    };
    guest.send_raw(&packet(Op::Request), &[]);
    guest.expect(Op::Response, 5000, 1024);
    let (_, mut host) = accepted.recv_timeout(WAIT).unwrap();
    host.write_all(&[1; 1500]).unwrap();
    assert_eq!(guest.receive().1.len(), 1000);
    guest.expect(Op::CreditRequest, 5000, 1024);
    // The same again: no credit, no data, no second request.
    guest.send_raw(&packet(Op::CreditRequest), &[]);
    guest.expect(Op::CreditUpdate, 5000, 1024);
    let update = Header {
        credit: Credit {
            buf_alloc: 1000,
            fwd_cnt: 100,
        },
        ..packet(Op::CreditUpdate)
    };
    guest.send_raw(&update, &[]);
    assert_eq!(guest.receive().1.len(), 100);
    guest.expect(Op::CreditRequest, 5000, 1024);
    let update = Header {
        credit: Credit {
            buf_alloc: 1000,
            fwd_cnt: 1100,
        },
        ..packet(Op::CreditUpdate)
    };
    guest.send_raw(&update, &[]);
    assert_eq!(guest.receive().1.len(), 400);
}

#[test]
fn connections_take_turns() {
    let mut guest = Guest::without_receive_buffers();
    let accepted = guest.listen();
    // Two buffers, for two responses.
    for (port, buffer) in [(5000, 0x10_0000), (5001, 0x10_1000)] {
        guest.receive.offer(&[(buffer, 4096)], true);
        guest.send(Op::Request, port, 1024);
        guest.receive.wait_used(&guest.interrupt);
    }
    let mut hosts = [0, 1].map(|_| accepted.recv_timeout(WAIT).unwrap().1);
    for host in &mut hosts {
        host.write_all(&[1; 50_000]).unwrap();
    }
    // Time for the device to see both.
    std::thread::sleep(Duration::from_millis(200));
    guest.offer_receive_buffers();
    let ports: Vec<u32> = (0..10).map(|_| guest.receive().0.dst_port).collect();
    assert_eq!(ports.iter().filter(|&&port| port == 5000).count(), 5, "{ports:?}");
}

#[test]
fn configuration_holds_the_context_id() {
    let (device, _handle) = Vsock::new(0x1234_5678_9abc, Default::default(), Worker::unconfined());
    let mut config = [0xff; 10];
    device.read_config(0, &mut config);
    assert_eq!(config, [0xbc, 0x9a, 0x78, 0x56, 0x34, 0x12, 0, 0, 0, 0]);
    let mut half = [0; 4];
    device.read_config(4, &mut half);
    assert_eq!(half, [0x34, 0x12, 0, 0]);
}

/// The byte at a position of the test stream; differs from its neighbours and from other blocks.
fn byte_at(position: usize) -> u8 {
    (position ^ position >> 8 ^ position >> 16) as u8
}

fn stream_part(from: usize, len: usize) -> Vec<u8> {
    (from..from + len).map(byte_at).collect()
}

#[test]
fn ten_megabytes_each_way_arrive_whole_and_in_order() {
    const TOTAL: usize = 10 << 20;
    const GUEST_BUFFER: u32 = 96 * 1024;
    let mut guest = Guest::new();
    let room = Credit {
        buf_alloc: GUEST_BUFFER,
        fwd_cnt: 0,
    };
    let host = guest.connect_with(5000, 1024, room);
    // `host` itself stays open until the guest has everything, so that no end of the connection comes in between.
    let mut host_reads = host.try_clone().unwrap();
    let mut host_writes = host.try_clone().unwrap();
    let writer = std::thread::spawn(move || {
        let mut random = Random(1);
        let mut written = 0;
        while written < TOTAL {
            let len = (1 + random.below(200_000)).min(TOTAL - written);
            host_writes.write_all(&stream_part(written, len)).unwrap();
            written += len;
        }
    });
    let reader = std::thread::spawn(move || {
        let mut random = Random(2);
        let mut position = 0;
        let mut buffer = vec![0; 300_000];
        while position < TOTAL {
            let room = 1 + random.below(buffer.len());
            let len = host_reads.read(&mut buffer[..room]).unwrap();
            assert!(len > 0, "end of the stream at {position}");
            assert!(buffer[..len] == stream_part(position, len), "at {position}");
            position += len;
        }
    });

    let mut random = Random(3);
    let mut host_credit = Credit {
        buf_alloc: LARGE_WINDOW_BYTES,
        fwd_cnt: 0,
    };
    let (mut sent, mut received, mut consumed) = (0usize, 0usize, 0usize);
    while sent < TOTAL || received < TOTAL {
        let seen = guest.interrupt.count();
        let mut progress = false;
        while let Some((header, data)) = guest.try_receive() {
            progress = true;
            host_credit = header.credit;
            assert!(data == stream_part(received, data.len()), "at {received}");
            received += data.len();
            assert!(received - consumed <= GUEST_BUFFER as usize, "credit exceeded");
            let asked = header.op == Op::CreditRequest as u16;
            assert!(asked || [Op::Data as u16, Op::CreditUpdate as u16].contains(&header.op));
            if asked || random.below(8) == 0 {
                consumed += if asked {
                    received - consumed
                } else {
                    random.below(received - consumed + 1)
                };
                let credit = Credit {
                    buf_alloc: GUEST_BUFFER,
                    fwd_cnt: consumed as u32,
                };
                guest.send_raw(
                    &Header {
                        credit,
                        ..Guest::header(Op::CreditUpdate, 5000, 1024)
                    },
                    &[],
                );
            }
        }
        let free = host_credit.buf_alloc - (sent as u32).wrapping_sub(host_credit.fwd_cnt);
        let len = (1 + random.below(MAX_DATA_BYTES))
            .min(TOTAL - sent)
            .min(free as usize);
        if len > 0 && guest.can_send() {
            progress = true;
            let credit = Credit {
                buf_alloc: GUEST_BUFFER,
                fwd_cnt: consumed as u32,
            };
            let header = Header {
                len: len as u32,
                credit,
                ..Guest::header(Op::Data, 5000, 1024)
            };
            guest.send_raw(&header, &stream_part(sent, len));
            sent += len;
        }
        if !progress {
            guest.interrupt.wait(seen);
        }
    }
    writer.join().unwrap();
    reader.join().unwrap();
    assert_eq!(guest.metrics().device_errors, 0);
    assert_eq!(guest.metrics().vsock_rx_bytes, TOTAL as u64);
    assert_eq!(guest.metrics().vsock_tx_bytes, TOTAL as u64);
}
