//! Sessions that were offered and not yet taken: each has a token that opens it once, for a short time. In memory alone, so
//! they end with the daemon.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use berth_runtime::model::task::TaskId;
use subtle::ConstantTimeEq;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Sessions at one time, offered ones too.
pub(crate) const MAX_SESSIONS: usize = 100;
/// Connections for one session that have not shown its token yet.
const MAX_WAITING: usize = 4;
/// For how long a session can be taken.
pub(crate) const OFFER_LIFE: Duration = Duration::from_secs(60);
const TOKEN_BYTES: usize = 48;
const SESSION_PREFIX: &str = "ecs-execute-command-";

/// What a session runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SessionCommand {
    pub(crate) task: TaskId,
    pub(crate) container: String,
    /// Never empty.
    pub(crate) argv: Vec<String>,
}

/// A session that somebody has taken; its place is free once it is dropped.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) command: SessionCommand,
    pub(crate) place: OwnedSemaphorePermit,
}

/// What the caller is given. It has the token, so it is not to be printed.
pub(crate) struct Ticket {
    pub(crate) session: String,
    pub(crate) token: String,
}

struct Offer {
    token: String,
    until: Instant,
    waiting: Arc<Semaphore>,
    taken: Taken,
}

pub(crate) struct Offers {
    offers: Mutex<HashMap<String, Offer>>,
    places: Arc<Semaphore>,
}

impl Default for Offers {
    fn default() -> Offers {
        Offers {
            offers: Mutex::default(),
            places: Arc::new(Semaphore::new(MAX_SESSIONS)),
        }
    }
}

impl Offers {
    /// None where there are as many sessions as there may be.
    pub(crate) fn offer(&self, command: SessionCommand, now: Instant) -> Option<Ticket> {
        let mut offers = self.live(now);
        let place = Arc::clone(&self.places).try_acquire_owned().ok()?;
        let session = format!("{SESSION_PREFIX}{:017x}", rand::random::<u128>() >> 60);
        let token = STANDARD.encode(rand::random::<[u8; TOKEN_BYTES]>());
        let offer = Offer {
            token: token.clone(),
            until: now + OFFER_LIFE,
            waiting: Arc::new(Semaphore::new(MAX_WAITING)),
            taken: Taken { command, place },
        };
        offers.insert(session.clone(), offer);
        Some(Ticket { session, token })
    }

    /// A place in which to wait for the token of this session; none where there is no such session, or too many wait.
    pub(crate) fn wait(&self, session: &str, now: Instant) -> Option<OwnedSemaphorePermit> {
        let offers = self.live(now);
        let offer = offers.get(session)?;
        Arc::clone(&offer.waiting).try_acquire_owned().ok()
    }

    /// The session, to whoever has its token; nobody else gets it after that.
    pub(crate) fn take(&self, session: &str, token: &str, now: Instant) -> Option<Taken> {
        let mut offers = self.live(now);
        let offer = offers.get(session)?;
        if !bool::from(offer.token.as_bytes().ct_eq(token.as_bytes())) {
            return None;
        }
        offers.remove(session).map(|offer| offer.taken)
    }

    /// The offers, without those whose time is over.
    fn live(&self, now: Instant) -> MutexGuard<'_, HashMap<String, Offer>> {
        let mut offers = self.offers.lock().unwrap_or_else(PoisonError::into_inner);
        offers.retain(|_, offer| offer.until > now);
        offers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command() -> SessionCommand {
        SessionCommand {
            task: TaskId::random(),
            container: "app".to_owned(),
            argv: vec!["sh".to_owned()],
        }
    }

    #[test]
    fn a_token_opens_its_own_session_once() {
        let (offers, now) = (Offers::default(), Instant::now());
        let command = command();
        let ticket = offers.offer(command.clone(), now).unwrap();
        let other = offers.offer(self::command(), now).unwrap();
        assert!(ticket.session.starts_with("ecs-execute-command-") && ticket.session != other.session);
        for wrong in [
            "",
            "x",
            &other.token,
            &format!("{}x", ticket.token),
            &ticket.token[1..],
        ] {
            assert!(offers.take(&ticket.session, wrong, now).is_none(), "{wrong}");
        }
        assert!(offers.take("ecs-execute-command-0", &ticket.token, now).is_none());
        assert_eq!(
            offers.take(&ticket.session, &ticket.token, now).unwrap().command,
            command
        );
        assert!(offers.take(&ticket.session, &ticket.token, now).is_none());
        assert!(offers.take(&other.session, &other.token, now).is_some());
    }

    #[test]
    fn a_session_that_nobody_takes_goes() {
        let (offers, now) = (Offers::default(), Instant::now());
        let ticket = offers.offer(command(), now).unwrap();
        let late = now + OFFER_LIFE;
        assert!(
            offers
                .wait(&ticket.session, late - Duration::from_millis(1))
                .is_some()
        );
        assert!(offers.wait(&ticket.session, late).is_none());
        assert!(offers.take(&ticket.session, &ticket.token, late).is_none());
    }

    #[test]
    fn there_are_so_many_sessions_and_no_more() {
        let (offers, now) = (Offers::default(), Instant::now());
        let tickets: Vec<Ticket> = std::iter::from_fn(|| offers.offer(command(), now)).collect();
        assert_eq!(tickets.len(), MAX_SESSIONS);
        // One that is taken still has its place.
        let taken = offers.take(&tickets[0].session, &tickets[0].token, now).unwrap();
        assert!(offers.offer(command(), now).is_none());
        drop(taken);
        assert!(offers.offer(command(), now).is_some());
        assert!(offers.offer(command(), now + OFFER_LIFE).is_some());
    }

    #[test]
    fn few_wait_for_one_session() {
        let (offers, now) = (Offers::default(), Instant::now());
        let ticket = offers.offer(command(), now).unwrap();
        let mut waiting: Vec<_> = std::iter::from_fn(|| offers.wait(&ticket.session, now)).collect();
        assert_eq!(waiting.len(), MAX_WAITING);
        waiting.pop();
        assert!(offers.wait(&ticket.session, now).is_some());
        assert!(offers.wait("ecs-execute-command-0", now).is_none());
    }
}
