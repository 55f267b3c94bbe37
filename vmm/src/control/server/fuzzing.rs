//! The server in single steps on the caller's thread.

use super::*;

impl ControlServer {
    /// Serves the other end of a connected, non-blocking seqpacket socket, as if it had come by the listener.
    pub fn adopt(&mut self, socket: OwnedFd) {
        self.add_client(socket);
    }

    /// Deals with what has happened, without waiting.
    pub fn turn(&mut self, machine: &dyn Controlled) -> io::Result<()> {
        let mut events = [EpollEvent::default(); MAX_CLIENTS];
        let count = self.epoll.wait(0, &mut events)?;
        for event in &events[..count] {
            match event.data() {
                ENDING | LISTENER => {}
                ANSWERED => self.answer_waiting(machine),
                client => self.on_client(client, event.event_set(), machine),
            }
        }
        Ok(())
    }
}
