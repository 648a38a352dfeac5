//! Users and groups out of passwd and group files, as Docker's `--user` and `--group-add` mean them.
//!
//! Invariants: a number is never looked up as a name, so a file cannot give it another meaning; numbers are within 0 to 2³¹-1; lines that
//! cannot be read are passed over.

use std::fmt;

use crate::model::User;

/// The largest user or group number.
const MAX: u32 = i32::MAX as u32;

/// Why there is no such user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UserError {
    /// The name is in no line of passwd.
    NoUser(String),
    /// The name is in no line of group.
    NoGroup(String),
    /// A number out of range.
    Range,
}

impl fmt::Display for UserError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoUser(name) => write!(f, "unable to find user {name}: no matching entries in passwd file"),
            Self::NoGroup(name) => {
                write!(f, "unable to find group {name}: no matching entries in group file")
            }
            Self::Range => write!(f, "uids and gids must be in range 0-{MAX}"),
        }
    }
}

impl std::error::Error for UserError {}

/// A line of passwd.
struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
}

/// A line of group.
struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

fn accounts(passwd: &str) -> impl Iterator<Item = Account<'_>> {
    lines(passwd).filter_map(|line| {
        let mut parts = line.split(':');
        let (name, _, uid, gid) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        Some(Account { name, uid: uid.parse().ok()?, gid: gid.parse().ok()? })
    })
}

fn groups(group: &str) -> impl Iterator<Item = Group<'_>> {
    lines(group).filter_map(|line| {
        let mut parts = line.split(':');
        let (name, _, gid) = (parts.next()?, parts.next()?, parts.next()?);
        Some(Group { name, gid: gid.parse().ok()?, members: parts.next().unwrap_or_default() })
    })
}

fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'))
}

/// A number, if the text is one. A sign counts as one, so that `-1` is refused instead of being looked up.
fn number(text: &str) -> Option<Result<u32, UserError>> {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    Some(text.parse().ok().filter(|id| *id <= MAX).ok_or(UserError::Range))
}

/// The process of `--user wanted --group-add more…`: empty is root. `passwd` and `group` are the files' texts, empty where there are none.
///
/// # Errors
/// A name is unknown, or a number out of range.
pub fn resolve(wanted: &str, more: &[String], passwd: &str, group: &str) -> Result<User, UserError> {
    let (who, which) = wanted.split_once(':').unwrap_or((wanted, ""));
    let (uid, account) = match number(who) {
        Some(uid) => {
            let uid = uid?;
            (uid, accounts(passwd).find(|account| account.uid == uid))
        }
        None => {
            let name = if who.is_empty() { "root" } else { who };
            match accounts(passwd).find(|account| account.name == name) {
                Some(account) if account.uid <= MAX && account.gid <= MAX => (account.uid, Some(account)),
                Some(_) => return Err(UserError::Range),
                None if who.is_empty() => (0, None),
                None => return Err(UserError::NoUser(who.to_owned())),
            }
        }
    };
    let gid = if which.is_empty() {
        account.as_ref().map_or(0, |account| account.gid)
    } else {
        group_number(which, group)?
    };
    // The group itself is listed too: without it a setgid program could drop it and so get around a file's denial to a group.
    let mut additional_gids = vec![gid];
    if which.is_empty()
        && let Some(account) = &account
    {
        additional_gids
            .extend(groups(group).filter(|g| g.members.split(',').any(|m| m == account.name)).map(|g| g.gid));
    }
    for wanted in more {
        additional_gids.push(group_number(wanted, group)?);
    }
    let mut seen = std::collections::HashSet::new();
    additional_gids.retain(|gid| seen.insert(*gid));
    Ok(User { uid, gid, additional_gids })
}

fn group_number(wanted: &str, group: &str) -> Result<u32, UserError> {
    match number(wanted) {
        Some(gid) => gid,
        None => groups(group)
            .find(|g| g.name == wanted)
            .map(|g| g.gid)
            .ok_or_else(|| UserError::NoGroup(wanted.to_owned())),
    }
}

/// The home directory of user `uid`, or `/`.
pub fn home(uid: u32, passwd: &str) -> &str {
    lines(passwd)
        .find_map(|line| {
            let parts: Vec<&str> = line.split(':').collect();
            (parts.get(2)?.parse() == Ok(uid)).then(|| parts.get(5).copied()).flatten()
        })
        .filter(|home| !home.is_empty())
        .unwrap_or("/")
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    const PASSWD: &str = "# comment\nroot:x:0:0:root:/root:/bin/sh\nu1:x:1000:1001::/home/u1:/bin/sh\n1000:x:0:0::/:\nbroken\n";
    const GROUP: &str = "root:x:0:\nwheel:x:10:root,u1\nu1:x:1001:\nextra:x:500:u1\n";

    fn check(user: &str, more: &[&str], expect: Expect) {
        let more: Vec<String> = more.iter().map(|m| (*m).to_owned()).collect();
        let text = match resolve(user, &more, PASSWD, GROUP) {
            Ok(user) => format!("{}:{} {:?}", user.uid, user.gid, user.additional_gids),
            Err(err) => err.to_string(),
        };
        expect.assert_eq(&text);
    }

    #[test]
    fn users() {
        check("", &[], expect!["0:0 [0, 10]"]);
        check("root", &[], expect!["0:0 [0, 10]"]);
        check("u1", &[], expect!["1000:1001 [1001, 10, 500]"]);
        // A number is not looked up as the name "1000".
        check("1000", &[], expect!["1000:1001 [1001, 10, 500]"]);
        check("1000:wheel", &["extra", "77", "10"], expect!["1000:10 [10, 500, 77]"]);
        check("4242", &[], expect!["4242:0 [0]"]);
        check(":extra", &[], expect!["0:500 [500]"]);
        check("nobody", &[], expect!["unable to find user nobody: no matching entries in passwd file"]);
        check("u1:nogroup", &[], expect!["unable to find group nogroup: no matching entries in group file"]);
        check("u1", &["zz"], expect!["unable to find group zz: no matching entries in group file"]);
        for user in ["4294967296", "-1", "2147483648", "1:99999999999"] {
            check(user, &[], expect!["uids and gids must be in range 0-2147483647"]);
        }
        check("0x0", &[], expect!["unable to find user 0x0: no matching entries in passwd file"]);
    }

    #[test]
    fn without_files() {
        assert_eq!(resolve("", &[], "", "").unwrap().additional_gids, [0]);
        assert_eq!(resolve("5", &[], "", "").unwrap().uid, 5);
    }

    #[test]
    fn homes() {
        assert_eq!((home(1000, PASSWD), home(9, PASSWD)), ("/home/u1", "/"));
    }
}
