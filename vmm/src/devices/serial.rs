//! The serial port: a 16550A that only speaks. What the guest writes goes to a descriptor, a line at a time, and is
//! dropped when that would make the guest wait, or is beyond its limits. Nothing can be typed into it.

use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};
use vm_superio::serial::{NoEvents, SerialState as Registers};
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

use crate::bus::BusDevice;
use crate::config::LimitsConfig;
use crate::limits::RateLimiter;
use crate::metrics::{Counters, count};

/// Longest line in bytes that is kept together. Not more than `PIPE_BUF`: a pipe that polls writable takes so many.
const MAX_LINE_BYTES: usize = 512;

/// The serial port.
pub struct SerialPort {
    uart: Mutex<Serial<Line, NoEvents, LineWriter>>,
}

impl SerialPort {
    /// `interrupt` is the event behind the port's interrupt line. `state` is that of the port that this one continues.
    pub fn new(
        out: OwnedFd,
        limits: Option<LimitsConfig>,
        counters: Arc<Counters>,
        interrupt: EventFd,
        state: Option<&SerialState>,
    ) -> io::Result<Self> {
        let writer = LineWriter {
            out,
            limiter: RateLimiter::new(limits, Instant::now()),
            counters,
            line: Vec::with_capacity(MAX_LINE_BYTES),
        };
        let registers = state.map_or_else(Registers::default, SerialState::registers);
        let uart = Serial::from_state(&registers, Line(interrupt), NoEvents, writer)
            .map_err(|error| io::Error::other(format!("{error:?}")))?;
        Ok(Self {
            uart: Mutex::new(uart),
        })
    }

    /// What the guest has set.
    pub fn state(&self) -> SerialState {
        SerialState::of(&self.lock().state())
    }

    /// Other limits from now on.
    pub fn set_limits(&self, limits: Option<LimitsConfig>) {
        self.lock().writer_mut().limiter.change(limits, Instant::now());
    }

    /// Writes out what has not been ended by a newline.
    pub fn finish(&self) {
        self.lock().writer_mut().write_line();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Serial<Line, NoEvents, LineWriter>> {
        self.uart.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BusDevice for SerialPort {
    /// The registers have one byte each; the rest of a wider access reads as all ones.
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let (Ok(offset), [first, ..]) = (u8::try_from(offset), data) {
            *first = self.lock().read(offset);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let (Ok(offset), Some(value)) = (u8::try_from(offset), data.first()) {
            // The only errors are those of the interrupt event and of the writer, and both drop what they cannot do.
            let _ = self.lock().write(offset, *value);
        }
    }
}

/// The registers, in the order of [`Registers`]. Nothing is typed into the port, so nothing waits to be read from it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SerialState([u8; 9]);

impl SerialState {
    fn of(registers: &Registers) -> Self {
        Self([
            registers.baud_divisor_low,
            registers.baud_divisor_high,
            registers.interrupt_enable,
            registers.interrupt_identification,
            registers.line_control,
            registers.line_status,
            registers.modem_control,
            registers.modem_status,
            registers.scratch,
        ])
    }

    fn registers(&self) -> Registers {
        let [
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
        ] = self.0;
        Registers {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            in_buffer: Vec::new(),
        }
    }
}

struct Line(EventFd);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

struct LineWriter {
    out: OwnedFd,
    limiter: RateLimiter,
    counters: Arc<Counters>,
    line: Vec<u8>,
}

impl LineWriter {
    fn write_line(&mut self) {
        let now = Instant::now();
        let bytes = self.line.len() as u64;
        if self.limiter.wait(bytes, now).is_zero() {
            let written = self.write_if_ready();
            self.limiter.charge(1, written as u64, now);
        } else {
            count(&self.counters.serial_throttled_bytes, bytes);
        }
        self.line.clear();
    }

    /// Returns how many bytes went out.
    fn write_if_ready(&self) -> usize {
        let mut fds = [PollFd::new(self.out.as_fd(), PollFlags::POLLOUT)];
        let ready = poll(&mut fds, PollTimeout::ZERO) == Ok(1)
            && fds[0]
                .revents()
                .is_some_and(|events| events.contains(PollFlags::POLLOUT));
        // Whatever fails here, the guest is not to notice.
        let written = ready.then(|| nix::unistd::write(&self.out, &self.line));
        written.and_then(Result::ok).unwrap_or(0)
    }
}

impl Write for LineWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for byte in bytes {
            self.line.push(*byte);
            if *byte == b'\n' || self.line.len() >= MAX_LINE_BYTES {
                self.write_line();
            }
        }
        Ok(bytes.len())
    }

    /// The port flushes after every byte, which is not meant so.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn port() -> (SerialPort, std::fs::File) {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let interrupt = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        (
            SerialPort::new(writer, None, Arc::default(), interrupt, None).unwrap(),
            reader.into(),
        )
    }

    #[test]
    fn a_line_is_written_when_it_ends() {
        let (port, mut reader) = port();
        for byte in b"hello\nrest" {
            port.write(0, &[*byte]);
        }
        let mut line = [0; 6];
        reader.read_exact(&mut line).unwrap();
        assert_eq!(&line, b"hello\n");
        port.finish();
        drop(port);
        let mut rest = String::new();
        reader.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "rest");
    }

    #[test]
    fn a_port_goes_on_where_another_left() {
        let (port, _reader) = port();
        // The divisor, no interrupts, the scratch register.
        for (offset, value) in [(3, 0x83), (0, 0x0c), (1, 0), (3, 3), (7, 0x5a)] {
            port.write(offset, &[value]);
        }
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let interrupt = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let other = SerialPort::new(writer, None, Arc::default(), interrupt, Some(&port.state())).unwrap();
        assert_eq!(other.state(), port.state());
        let mut scratch = [0];
        other.read(7, &mut scratch);
        assert_eq!(scratch, [0x5a]);
        drop(reader);
    }

    #[test]
    fn a_full_pipe_drops_output_and_never_blocks() {
        let (port, reader) = port();
        for _ in 0..20_000 {
            for byte in b"0123456789abcdef\n" {
                port.write(0, &[*byte]);
            }
        }
        drop(reader);
        port.write(0, b"\n");
    }

    #[test]
    fn lines_beyond_the_limits_are_dropped_and_counted() {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let interrupt = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let counters = Arc::new(Counters::default());
        // Two lines of 100 bytes, and the next after 100 seconds.
        let limits = Some(LimitsConfig::bytes(1, 200));
        let port = SerialPort::new(writer, limits, counters.clone(), interrupt, None).unwrap();
        let say = |letter: u8| {
            for _ in 0..99 {
                port.write(0, &[letter]);
            }
            port.write(0, b"\n");
        };
        for letter in b"abcde" {
            say(*letter);
        }
        assert_eq!(counters.snapshot().serial_throttled_bytes, 300);
        port.set_limits(None);
        say(b'f');
        port.set_limits(Some(LimitsConfig::ops(1, 1)));
        say(b'g');
        drop(port);
        let mut said = String::new();
        std::fs::File::from(reader).read_to_string(&mut said).unwrap();
        let first: String = said.lines().filter_map(|line| line.chars().next()).collect();
        assert_eq!(first, "abfg");
        assert_eq!(said.len(), 400);
    }

    #[test]
    fn what_cannot_be_written_is_not_charged() {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let interrupt = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let full: usize = std::iter::from_fn(|| {
            let mut fds = [PollFd::new(writer.as_fd(), PollFlags::POLLOUT)];
            (poll(&mut fds, PollTimeout::ZERO) == Ok(1))
                .then(|| nix::unistd::write(&writer, &[0; 4096]).unwrap())
        })
        .sum();
        let limits = Some(LimitsConfig::bytes(1, 4));
        let port = SerialPort::new(writer, limits, Arc::default(), interrupt, None).unwrap();
        for byte in b"abc\nabc\n" {
            port.write(0, &[*byte]);
        }
        let mut reader = std::fs::File::from(reader);
        reader.read_exact(&mut vec![0; full]).unwrap();
        for byte in b"xyz\n" {
            port.write(0, &[*byte]);
        }
        drop(port);
        let mut said = String::new();
        reader.read_to_string(&mut said).unwrap();
        assert_eq!(said, "xyz\n");
    }

    #[test]
    fn the_line_is_always_ready_and_wide_accesses_are_harmless() {
        let (port, _reader) = port();
        let mut status = [0; 4];
        port.read(5, &mut status);
        assert_eq!(status[0] & 0x60, 0x60);
        assert_eq!(status[1..], [0xff; 3]);
        port.write(7, &[1, 2, 3, 4]);
        port.read(1 << 40, &mut status);
        assert_eq!(status, [0xff; 4]);
    }
}
