//! Writing to stdout and stderr: byte-exact, and quiet when the reader has gone away (`berth logs … | head`).

use std::io::{self, ErrorKind, Write};

/// Writes `text` to stdout. A closed pipe is no error: whoever read has read enough.
pub(super) fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        outcome => outcome,
    }
}

/// One of the two streams a container's output goes to. Once its reader is gone, what follows is dropped.
pub(super) struct Sink<W> {
    writer: W,
    closed: bool,
}

impl<W: Write> Sink<W> {
    pub(super) fn new(writer: W) -> Sink<W> {
        Sink {
            writer,
            closed: false,
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.attempt(|writer| writer.write_all(bytes))
    }

    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.attempt(W::flush)
    }

    fn attempt(&mut self, action: impl FnOnce(&mut W) -> io::Result<()>) -> io::Result<()> {
        if self.closed {
            return Ok(());
        }
        match action(&mut self.writer) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {
                self.closed = true;
                Ok(())
            }
            outcome => outcome,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Closed;

    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_closed_pipe_swallows_the_rest() {
        let mut sink = Sink::new(Closed);
        assert!(!sink.is_closed());
        sink.write(b"a").unwrap();
        assert!(sink.is_closed());
        sink.write(b"b").unwrap();
    }
}
