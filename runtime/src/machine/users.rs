//! Whom machines run as: each as a user and group of its own, from a range that nobody else on the host uses. A machine
//! that breaks out of everything else is still nobody, and cannot signal or trace another.

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::io;
use std::path::Path;
use std::str::FromStr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{USER_FILE, at};
use crate::model::task::TaskId;
use crate::task::host::HostError;

/// User ids from the first to the last, both included; groups have the same numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UserRange {
    first: u32,
    last: u32,
}

impl Default for UserRange {
    /// Above what distributions, users' containers (subuid(5)) and systemd give out.
    fn default() -> Self {
        Self {
            first: 2_000_000_000,
            last: 2_000_065_535,
        }
    }
}

impl fmt::Display for UserRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a range of users is FIRST-LAST, two numbers from 1000 to 4294967293, such as {}",
    UserRange::default()
)]
pub struct BadRange;

impl FromStr for UserRange {
    type Err = BadRange;

    fn from_str(text: &str) -> Result<Self, BadRange> {
        let number = |text: &str| text.parse::<u32>().ok();
        let (first, last) = text.split_once('-').ok_or(BadRange)?;
        match (number(first), number(last)) {
            // Below are users of the host itself, above are numbers that mean "none".
            (Some(first), Some(last)) if 1000 <= first && first <= last && last < u32::MAX - 1 => {
                Ok(Self { first, last })
            }
            _ => Err(BadRange),
        }
    }
}

/// Who has which user. What is taken is also in a file of each machine's folder, for the next daemon.
pub(super) struct Users {
    range: UserRange,
    taken: Mutex<HashMap<TaskId, u32>>,
}

impl Users {
    /// With what the machines in `machines_dir` have taken, whatever the range was then.
    pub(super) fn open(range: UserRange, machines_dir: &Path) -> Result<Self, HostError> {
        let mut taken = HashMap::new();
        let entries = fs::read_dir(machines_dir).map_err(|error| at(machines_dir, "read", &error))?;
        for entry in entries.flatten() {
            let task = entry.file_name().to_str().and_then(TaskId::parse);
            let path = entry.path().join(USER_FILE);
            let user = match fs::read_to_string(&path) {
                Ok(user) => user.trim().parse().ok(),
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                // Its machine may run: nobody else must get its user.
                Err(error) => return Err(at(&path, "read", &error)),
            };
            if let (Some(task), Some(user)) = (task, user) {
                taken.insert(task, user);
            }
        }
        Ok(Self {
            range,
            taken: Mutex::new(taken),
        })
    }

    /// The user of the task's machine: the one that it has, or a free one.
    pub(super) fn take(&self, task: &TaskId) -> Result<u32, HostError> {
        let mut taken = self.taken();
        if let Some(user) = taken.get(task) {
            return Ok(*user);
        }
        let mut in_use: Vec<u32> = taken.values().copied().collect();
        in_use.sort_unstable();
        let user = (self.range.first..=self.range.last)
            .find(|user| in_use.binary_search(user).is_err())
            .ok_or_else(|| {
                HostError(format!(
                    "every user from {} is a machine's; give berth serve more with --machine-users",
                    self.range
                ))
            })?;
        taken.insert(task.clone(), user);
        Ok(user)
    }

    /// The user of a VMM that waits becomes that of the task whose machine it is to be. A task that has one already keeps it:
    /// a process of it may be there still.
    pub(super) fn hand_on(&self, from: &TaskId, to: &TaskId) -> Result<u32, HostError> {
        let mut taken = self.taken();
        if taken.contains_key(to) {
            return Err(HostError("the task has a user already".to_owned()));
        }
        let user = taken.remove(from);
        let user = user.ok_or_else(|| HostError("there is no user to hand on".to_owned()))?;
        taken.insert(to.clone(), user);
        Ok(user)
    }

    /// The task has no machine any more.
    pub(super) fn release(&self, task: &TaskId) {
        self.taken().remove(task);
    }

    fn taken(&self) -> MutexGuard<'_, HashMap<TaskId, u32>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(digit: char) -> TaskId {
        TaskId::parse(&digit.to_string().repeat(32)).unwrap()
    }

    #[test]
    fn a_range_is_two_numbers_in_order() {
        assert_eq!(
            "5000-5001".parse(),
            Ok(UserRange {
                first: 5000,
                last: 5001
            })
        );
        assert_eq!(UserRange::default().to_string().parse(), Ok(UserRange::default()));
        for bad in [
            "",
            "5000",
            "5001-5000",
            "0-10",
            "999-5000",
            "5000-4294967294",
            "a-b",
            "5000--1",
        ] {
            assert_eq!(bad.parse::<UserRange>(), Err(BadRange), "{bad}");
        }
    }

    #[test]
    fn no_two_machines_have_the_same_user_and_the_last_one_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let range: UserRange = "5000-5001".parse().unwrap();
        let users = Users::open(range, dir.path()).unwrap();
        assert_eq!(users.take(&task('a')).unwrap(), 5000);
        assert_eq!(users.take(&task('b')).unwrap(), 5001);
        assert_eq!(users.take(&task('a')).unwrap(), 5000, "the one that it has");
        assert!(users.take(&task('c')).unwrap_err().0.contains("--machine-users"));
        users.release(&task('a'));
        assert_eq!(users.take(&task('c')).unwrap(), 5000);
    }

    #[test]
    fn a_user_that_is_handed_on_is_never_two_machines() {
        let dir = tempfile::tempdir().unwrap();
        let users = Users::open("5000-5001".parse().unwrap(), dir.path()).unwrap();
        assert_eq!(users.take(&task('a')).unwrap(), 5000);
        assert_eq!(users.hand_on(&task('a'), &task('b')).unwrap(), 5000);
        // Whoever gives it up now, gives up nothing.
        users.release(&task('a'));
        assert_eq!(users.take(&task('c')).unwrap(), 5001);
        assert!(users.hand_on(&task('a'), &task('d')).is_err());
        assert!(users.hand_on(&task('c'), &task('b')).is_err());
        assert_eq!(users.take(&task('b')).unwrap(), 5000, "the one that it has");
    }

    #[test]
    fn the_next_daemon_knows_who_has_which() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join(task('a').as_str());
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join(USER_FILE), "5000\n").unwrap();
        let users = Users::open("5000-5009".parse().unwrap(), dir.path()).unwrap();
        assert_eq!(users.take(&task('b')).unwrap(), 5001);
        assert_eq!(users.take(&task('a')).unwrap(), 5000);
    }
}
