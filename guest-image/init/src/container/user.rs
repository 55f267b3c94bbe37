//! Who a container's program runs as: `user[:group]` resolved with the image's own, hostile, passwd and group files.

use std::fmt;
use std::iter::once;

/// Identifiers above this are refused, as container engines do.
const MAX_ID: u32 = i32::MAX as u32;
/// One less than `NGROUPS_MAX`: the primary group takes a place.
const MAX_GROUPS: usize = 65_535;

/// What setresuid(2), setresgid(2) and setgroups(2) get, and the home directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// The primary group first.
    pub(crate) groups: Vec<u32>,
    /// Empty entries of passwd and users without one get `/`.
    pub(crate) home: String,
}

/// Which of the two files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Database {
    Passwd,
    Group,
}

impl fmt::Display for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Database::Passwd => "passwd",
            Database::Group => "group",
        })
    }
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum UserError {
    #[error("unable to find user {0}: no matching entries in passwd file")]
    NoUser(String),
    #[error("unable to find group {0}: no matching entries in group file")]
    NoGroup(String),
    #[error("id {0} is not within 0 to {MAX_ID}")]
    IdRange(String),
    #[error("user {user} is in more than {MAX_GROUPS} groups")]
    TooManyGroups { user: String },
}

struct PasswdEntry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

struct GroupEntry<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

/// Resolves `user`, `user:group`, `uid`, `uid:gid` or nothing, which is root.
///
/// A number need not be in the files. Supplementary groups are those that name the user, unless a group is given.
pub(crate) fn resolve(spec: &str, passwd: &str, group: &str) -> Result<Identity, UserError> {
    let (user, wanted_group) = spec.split_once(':').unwrap_or((spec, ""));
    let user = if user.is_empty() { "0" } else { user };
    let number = parse_id(user)?;
    let by_name_or_number = |entry: &PasswdEntry| entry.name == user || Some(entry.uid) == number;
    let entry = passwd.lines().filter_map(passwd_entry).find(by_name_or_number);
    let (uid, default_gid) = match (&entry, number) {
        (Some(entry), _) => (entry.uid, entry.gid),
        (None, Some(uid)) => (uid, 0),
        (None, None) => return Err(UserError::NoUser(user.to_owned())),
    };
    let (gid, others) = if wanted_group.is_empty() {
        let name = entry.as_ref().map(|entry| entry.name);
        (default_gid, supplementary(name, group, user)?)
    } else {
        (find_group(wanted_group, group)?, Vec::new())
    };
    // The primary group is listed too: else a program that changes its group would escape rights that are denied to
    // that group (CVE-2022-36109).
    let groups = once(gid)
        .chain(others.into_iter().filter(|other| *other != gid))
        .collect();
    let home = entry
        .map(|entry| entry.home)
        .filter(|home| !home.is_empty())
        .unwrap_or("/");
    Ok(Identity {
        uid,
        gid,
        groups,
        home: home.to_owned(),
    })
}

fn find_group(wanted: &str, group: &str) -> Result<u32, UserError> {
    let number = parse_id(wanted)?;
    let matches = |entry: &GroupEntry| entry.name == wanted || Some(entry.gid) == number;
    let entry = group.lines().filter_map(group_entry).find(matches);
    entry
        .map(|entry| entry.gid)
        .or(number)
        .ok_or_else(|| UserError::NoGroup(wanted.to_owned()))
}

fn supplementary(name: Option<&str>, group: &str, user: &str) -> Result<Vec<u32>, UserError> {
    let Some(name) = name else { return Ok(Vec::new()) };
    let mut groups = Vec::new();
    for entry in group.lines().filter_map(group_entry) {
        if entry.members.split(',').any(|member| member == name) {
            if groups.len() == MAX_GROUPS {
                return Err(UserError::TooManyGroups {
                    user: user.to_owned(),
                });
            }
            groups.push(entry.gid);
        }
    }
    Ok(groups)
}

/// None of a name; an error of a number out of range, which must not be taken for a name.
fn parse_id(text: &str) -> Result<Option<u32>, UserError> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(None);
    }
    match text.parse::<u32>() {
        Ok(id) if id <= MAX_ID => Ok(Some(id)),
        _ => Err(UserError::IdRange(text.to_owned())),
    }
}

fn entry_id(text: &str) -> Option<u32> {
    text.parse().ok().filter(|id| *id <= MAX_ID)
}

/// `name:password:uid:gid:comment:home:shell`; whatever does not read as that is skipped.
fn passwd_entry(line: &str) -> Option<PasswdEntry<'_>> {
    let mut fields = line.split(':');
    let name = fields.next().filter(|name| !name.is_empty())?;
    let uid = entry_id(fields.nth(1)?)?;
    let gid = entry_id(fields.next()?)?;
    let home = fields.nth(1).unwrap_or("");
    Some(PasswdEntry { name, uid, gid, home })
}

/// `name:password:gid:member,member`
fn group_entry(line: &str) -> Option<GroupEntry<'_>> {
    let mut fields = line.split(':');
    let name = fields.next().filter(|name| !name.is_empty())?;
    let gid = entry_id(fields.nth(1)?)?;
    let members = fields.next().unwrap_or("");
    Some(GroupEntry { name, gid, members })
}

#[cfg(test)]
#[path = "user_tests.rs"]
mod tests;
