//! What passes between the host's connection and a command's streams. One thread, poll(2); it waits for the host to take
//! what the command says, and never for the command to take what the host says.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use berth_protocol::MAX_OUTPUT_BYTES;
use berth_protocol::exec::{FromCommand, STDERR, STDIN, STDOUT, TerminalSize, ToCommand};
use berth_protocol::frame::{Decoder, Frame, FrameError, encode_data, encode_message};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::container::{process, stop_signal};

/// In which the host has to say what it wants.
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// More of its input than this is not taken from the host before the command has taken some.
const INPUT_BYTES: usize = 2 * MAX_OUTPUT_BYTES;
const MAX_REASON_BYTES: usize = 4096;
/// End of input, as a terminal says it (`VEOF`).
const END_OF_INPUT: u8 = 4;

/// The near ends of a command's streams.
pub(super) enum Streams {
    Pipes {
        stdin: OwnedFd,
        stdout: OwnedFd,
        stderr: OwnedFd,
    },
    /// The side of the terminal that is not the command's.
    Terminal(OwnedFd),
}

#[derive(Debug, thiserror::Error)]
pub(super) enum RelayError {
    #[error("the host has gone: {0}")]
    Io(#[from] io::Error),
    #[error("cannot wait: {0}")]
    Poll(#[from] Errno),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("the host did not say what it wants")]
    NoStart,
}

/// The connection to the host.
pub(super) struct Relay {
    // Only read, written and waited for, which is the same for any stream socket.
    connection: UnixStream,
    decoder: Decoder,
    buffer: Vec<u8>,
    frame: Vec<u8>,
}

impl Relay {
    pub(super) fn new(connection: OwnedFd) -> Self {
        Self {
            connection: UnixStream::from(connection),
            decoder: Decoder::new(),
            buffer: vec![0; MAX_OUTPUT_BYTES],
            frame: Vec::new(),
        }
    }

    pub(super) fn first_message(&mut self) -> Result<ToCommand, RelayError> {
        let until = Instant::now() + START_TIMEOUT;
        loop {
            match self.decoder.next::<ToCommand>()? {
                Some(Frame::Message(message)) => return Ok(message),
                Some(_) => return Err(RelayError::NoStart),
                None => {}
            }
            let left = until.saturating_duration_since(Instant::now());
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
            let mut wanted = [PollFd::new(self.connection.as_fd(), PollFlags::POLLIN)];
            match poll(&mut wanted, timeout) {
                Ok(0) => return Err(RelayError::NoStart),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
            if !self.receive()? {
                return Err(RelayError::NoStart);
            }
        }
    }

    /// Until the command has ended or the host has gone; the last word. The command does not outlive this process.
    pub(super) fn run(&mut self, streams: Streams, child: Pid, reason: &OwnedFd) -> FromCommand {
        match self.pass_on(streams, child) {
            Ok(exit_code) => match told(reason) {
                Some(reason) => FromCommand::Failed { reason },
                None => FromCommand::Exited { exit_code },
            },
            Err(error) => FromCommand::Failed {
                reason: error.to_string(),
            },
        }
    }

    /// Says the last word; a host that has gone does not hear it.
    pub(super) fn finish(&mut self, outcome: &FromCommand) {
        self.frame.clear();
        if encode_message(outcome, &mut self.frame).is_ok() {
            let _ = self.connection.write_all(&self.frame);
        }
    }

    fn pass_on(&mut self, streams: Streams, child: Pid) -> Result<i32, RelayError> {
        let process = process::open(child)?;
        let mut streams = Ends::new(streams)?;
        loop {
            // The first of them may have come together with the start.
            while let Some(frame) = self.decoder.next::<ToCommand>()? {
                streams.hear(frame, child);
            }
            streams.write();
            let events = self.wait(&streams, &process)?;
            for stream in [STDOUT, STDERR] {
                self.send_output(&mut streams, stream)?;
            }
            if events.host && !self.receive()? {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            if events.ended {
                // All that it wrote is in the pipes; whoever else holds their ends is not waited for.
                for stream in [STDOUT, STDERR] {
                    while self.send_output(&mut streams, stream)? {}
                }
                return Ok(exit_code(child));
            }
        }
    }

    fn wait(&self, streams: &Ends, process: &OwnedFd) -> Result<Events, RelayError> {
        let none = PollFlags::empty();
        // Of a host that has gone this tells even while nothing is to be read.
        let host = if streams.unwritten.len() < INPUT_BYTES {
            PollFlags::POLLIN
        } else {
            none
        };
        let mut wanted = vec![
            PollFd::new(self.connection.as_fd(), host),
            PollFd::new(process.as_fd(), PollFlags::POLLIN),
        ];
        let waits_to_write = streams.input.as_ref().filter(|_| !streams.unwritten.is_empty());
        let input = waits_to_write.map(|input| (input.as_fd(), PollFlags::POLLOUT));
        let outputs = streams
            .outputs
            .iter()
            .flatten()
            .map(|output| (output.as_fd(), PollFlags::POLLIN));
        wanted.extend(
            input
                .into_iter()
                .chain(outputs)
                .map(|(fd, flags)| PollFd::new(fd, flags)),
        );
        match poll(&mut wanted, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let happened = |index: usize| wanted.get(index).and_then(PollFd::any).unwrap_or(false);
        Ok(Events {
            host: happened(0),
            ended: happened(1),
        })
    }

    /// Reads once; false where the host has gone.
    fn receive(&mut self) -> Result<bool, RelayError> {
        match self.connection.read(&mut self.buffer) {
            Ok(0) => Ok(false),
            Ok(count) => {
                self.decoder.push(&self.buffer[..count]);
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(true),
            Err(error) => Err(error.into()),
        }
    }

    /// Reads one output once, and sends it; false where there was nothing.
    fn send_output(&mut self, streams: &mut Ends, stream: u8) -> Result<bool, RelayError> {
        let slot = &mut streams.outputs[usize::from(stream - STDOUT)];
        let Some(output) = slot else {
            return Ok(false);
        };
        let count = match nix::unistd::read(&*output, &mut self.buffer) {
            Ok(count) => count,
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(false),
            // A terminal that nobody holds any more says it so.
            Err(_) => 0,
        };
        if count == 0 {
            *slot = None;
            return Ok(false);
        }
        self.frame.clear();
        encode_data(stream, &self.buffer[..count], &mut self.frame)?;
        self.connection.write_all(&self.frame)?;
        Ok(true)
    }
}

/// What poll(2) found.
struct Events {
    host: bool,
    ended: bool,
}

/// The near ends, and the input that the command has not taken yet.
struct Ends {
    input: Option<OwnedFd>,
    outputs: [Option<OwnedFd>; 2],
    unwritten: Vec<u8>,
    /// No more input comes.
    input_ends: bool,
    terminal: bool,
}

impl Ends {
    fn new(streams: Streams) -> Result<Self, RelayError> {
        let (input, outputs, terminal) = match streams {
            Streams::Pipes {
                stdin,
                stdout,
                stderr,
            } => (stdin, [Some(stdout), Some(stderr)], false),
            Streams::Terminal(main) => {
                let output = main.try_clone()?;
                (main, [Some(output), None], true)
            }
        };
        for fd in [Some(&input), outputs[0].as_ref(), outputs[1].as_ref()]
            .into_iter()
            .flatten()
        {
            fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        }
        Ok(Self {
            input: Some(input),
            outputs,
            unwritten: Vec::new(),
            input_ends: false,
            terminal,
        })
    }

    fn hear(&mut self, frame: Frame<ToCommand>, child: Pid) {
        match frame {
            Frame::Data(data) if data.stream == STDIN && !self.input_ends => {
                self.unwritten.extend(data.bytes);
            }
            Frame::Message(ToCommand::StdinEnd) if !self.input_ends => {
                self.input_ends = true;
                if self.terminal {
                    self.unwritten.push(END_OF_INPUT);
                }
            }
            Frame::Message(ToCommand::Resize { size }) => {
                if let Some(main) = self.input.as_ref().filter(|_| self.terminal) {
                    resize(main, size);
                }
            }
            Frame::Message(ToCommand::Signal { signal }) => {
                if let Some(signal) = stop_signal::check(signal) {
                    // SAFETY: kill takes two numbers. The child is not reaped yet, so the number is its own.
                    let _ = unsafe { libc::kill(child.as_raw(), signal) };
                }
            }
            // Nothing else is of any use.
            Frame::Message(_) | Frame::Data(_) | Frame::Output(_) => {}
        }
    }

    /// Writes what the command takes now. One that takes no input any more gets none.
    fn write(&mut self) {
        while let Some(input) = self.input.as_ref().filter(|_| !self.unwritten.is_empty()) {
            match nix::unistd::write(input, &self.unwritten) {
                Ok(count) => drop(self.unwritten.drain(..count)),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return,
                Err(_) => {
                    self.unwritten.clear();
                    self.input = None;
                    self.input_ends = true;
                }
            }
        }
        if self.input_ends && !self.terminal {
            self.input = None;
        }
    }
}

/// A terminal that cannot be resized stays as it is.
pub(super) fn resize(terminal: &OwnedFd, size: TerminalSize) {
    let size = libc::winsize {
        ws_row: size.rows,
        ws_col: size.columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: this call reads one `winsize`, which lives.
    let _ = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
}

/// Of a child that has ended.
fn exit_code(child: Pid) -> i32 {
    match waitpid(child, None) {
        Ok(WaitStatus::Exited(_, code)) => code,
        Ok(WaitStatus::Signaled(_, signal, _)) => 128 + signal as i32,
        _ => 255,
    }
}

/// What the child wrote before it ended, if it never became the command.
fn told(reason: &OwnedFd) -> Option<String> {
    let mut buffer = [0; MAX_REASON_BYTES];
    let count = nix::unistd::read(reason, &mut buffer).unwrap_or(0);
    let text = String::from_utf8_lossy(&buffer[..count]).replace(['\n', '\r'], " ");
    (!text.is_empty()).then_some(text)
}
