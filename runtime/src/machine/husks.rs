//! How many husks wait, of which templates, and when they are made: a few of each template, most for those used last, in
//! moments when nothing is started.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::host_error;
use super::husk::Husk;
use super::starter::Starter;
use super::templates::{Shape, Template, Templates};

/// Most husks of all templates together.
pub const MOST_HUSKS: usize = 8;
/// So long after the last start of a machine none is made: a start needs the processors more.
const QUIET: Duration = Duration::from_millis(500);

/// The keeper of the husks, which are with their templates.
pub(super) struct Husks {
    /// Of each template.
    each: usize,
    last_start: Mutex<Instant>,
    /// Whether no more are made. Held while one is.
    closed: tokio::sync::Mutex<bool>,
}

/// What is to be done about the husks of a template.
#[derive(Debug, PartialEq, Eq)]
struct Share {
    over: usize,
    missing: usize,
}

/// For each template, the one used last first, from how many husks of it wait.
fn shares(waiting: &[usize], each: usize) -> Vec<Share> {
    let mut left = MOST_HUSKS;
    let share = |waiting: &usize| {
        let share = each.min(left);
        left -= share;
        Share {
            over: waiting.saturating_sub(share),
            missing: share.saturating_sub(*waiting),
        }
    };
    waiting.iter().map(share).collect()
}

impl Husks {
    pub fn new(each: usize) -> Self {
        Self {
            each,
            last_start: Mutex::new(Instant::now()),
            closed: tokio::sync::Mutex::new(false),
        }
    }

    /// A machine is being started.
    pub fn note_start(&self) {
        *self.last_start.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Keeps the husks of these templates for as long as the daemon runs.
    pub async fn keep(self: Arc<Self>, templates: Arc<Templates>, starter: Starter) {
        if self.each == 0 {
            return;
        }
        loop {
            templates.changed.notified().await;
            // What fails is tried again after the next start.
            while self.make_one(&templates, &starter).await {}
        }
    }

    /// Ends all husks. No more are made.
    pub async fn close(&self, templates: &Templates) {
        *self.closed.lock().await = true;
        let ready = templates.by_use().into_iter();
        let ended = ready.flat_map(|(_, template)| std::mem::take(&mut *template.husks()));
        end(ended.collect()).await;
    }

    /// Makes a husk where one is missing, when it is quiet, and ends those that are too many. Whether there may be more to do.
    async fn make_one(&self, templates: &Templates, starter: &Starter) -> bool {
        self.quiet().await;
        let closed = self.closed.lock().await;
        if *closed {
            return false;
        }
        let (over, missing) = self.look(templates);
        end(over).await;
        let Some((shape, template)) = missing else {
            return false;
        };
        let (starter, of) = (starter.clone(), Arc::clone(&template));
        let made = tokio::task::spawn_blocking(move || Husk::start(&starter, &shape, of.files(false)?)).await;
        match made.map_err(host_error).flatten() {
            Ok(husk) => {
                template.husks().push(husk);
                tracing::debug!(template = shape.name(), "a husk waits");
                true
            }
            Err(error) => {
                tracing::warn!(template = shape.name(), %error, "a husk was not made");
                false
            }
        }
    }

    /// Those that are too many or have ended, and a template that has too few.
    fn look(&self, templates: &Templates) -> (Vec<Husk>, Option<(Shape, Arc<Template>)>) {
        let ready = templates.by_use();
        let mut over = Vec::new();
        for (_, template) in &ready {
            over.extend(template.husks().extract_if(.., |husk| !husk.is_alive()));
        }
        let waiting: Vec<_> = ready.iter().map(|(_, template)| template.husks().len()).collect();
        let mut missing = None;
        for ((shape, template), share) in ready.into_iter().zip(shares(&waiting, self.each)) {
            let mut husks = template.husks();
            let kept = husks.len().saturating_sub(share.over);
            over.extend(husks.drain(kept..));
            drop(husks);
            if share.missing > 0 && missing.is_none() {
                missing = Some((shape, template));
            }
        }
        (over, missing)
    }

    async fn quiet(&self) {
        loop {
            let last = *self.last_start.lock().unwrap_or_else(PoisonError::into_inner);
            match QUIET.checked_sub(last.elapsed()) {
                Some(left) if !left.is_zero() => tokio::time::sleep(left).await,
                _ => return,
            }
        }
    }
}

async fn end(husks: Vec<Husk>) {
    if !husks.is_empty() {
        // A thread that cannot be had takes the husks with it.
        drop(tokio::task::spawn_blocking(move || drop(husks)).await);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(over: usize, missing: usize) -> Share {
        Share { over, missing }
    }

    #[test]
    fn each_template_has_its_husks_and_those_used_last_have_them_first() {
        assert_eq!(shares(&[], 2), []);
        assert_eq!(shares(&[0, 1, 2], 2), [share(0, 2), share(0, 1), share(0, 0)]);
        // Four templates have two each, and the one used least recently gives up its own.
        assert_eq!(
            shares(&[0, 2, 2, 2, 2], 2),
            [share(0, 2), share(0, 0), share(0, 0), share(0, 0), share(2, 0)]
        );
        assert_eq!(shares(&[0, 0], 5), [share(0, 5), share(0, 3)]);
        assert_eq!(shares(&[0, 0], 20), [share(0, 8), share(0, 0)]);
    }

    #[test]
    fn however_many_templates_there_are_no_more_husks_wait_than_may() {
        for each in 0..=MOST_HUSKS {
            for templates in 0..12 {
                let waiting = vec![2; templates];
                let shares = shares(&waiting, each);
                let kept: usize = shares.iter().map(|share| 2 - share.over + share.missing).sum();
                assert_eq!(kept, MOST_HUSKS.min(each * templates));
            }
        }
    }

    #[tokio::test]
    async fn it_is_quiet_some_time_after_the_last_start() {
        let husks = Husks::new(1);
        let started = Instant::now();
        husks.note_start();
        husks.quiet().await;
        assert!(started.elapsed() >= QUIET);
    }
}
