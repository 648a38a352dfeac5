//! nf_tables: batches of changes to one table, applied together.
//!
//! A [`Batch`] collects changes in order; [`crate::Socket::transaction`] applies them all or none. Sets and maps carry the data that changes often
//! (ports, interfaces), so that a change is one element and a packet's way is one lookup, however many there are.

mod expr;
mod set;

pub use expr::{Expr, Field, Rule, Verdict};
pub use set::{Data, Element, Key, Kind, Set};

use crate::sock::{APPEND, CREATE, DUMP, REQUEST};
use crate::writer::{Body, Messages, Received, attrs};
use crate::{Result, Socket};

const SUBSYS: u16 = 10 << 8;
const NEWTABLE: u16 = SUBSYS;
const DELTABLE: u16 = SUBSYS | 2;
const GETTABLE: u16 = SUBSYS | 1;
const NEWCHAIN: u16 = SUBSYS | 3;
const GETCHAIN: u16 = SUBSYS | 4;
const DELCHAIN: u16 = SUBSYS | 5;
const NEWRULE: u16 = SUBSYS | 6;
const GETRULE: u16 = SUBSYS | 7;
const DELRULE: u16 = SUBSYS | 8;
const NEWSET: u16 = SUBSYS | 9;
const DELSET: u16 = SUBSYS | 11;
const NEWSETELEM: u16 = SUBSYS | 12;
const DELSETELEM: u16 = SUBSYS | 14;
/// The multicast group that tells of changes to rule sets.
pub const NOTIFICATIONS: u32 = 7;
/// Bytes of elements per message: a list's length field ends at 64 KiB.
const ELEMENT_BYTES: usize = 32 * 1024;

/// Which packets a table sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Family {
    /// IPv4 and IPv6.
    Inet = 1,
    /// IPv4.
    Ip = 2,
    /// IPv6.
    Ip6 = 10,
}

/// Where a base chain is hooked in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Hook {
    /// On arrival.
    Prerouting = 0,
    /// For this host.
    Input = 1,
    /// Through this host.
    Forward = 2,
    /// From this host.
    Output = 3,
    /// On departure.
    Postrouting = 4,
}

impl Hook {
    fn of(number: u32) -> Option<Self> {
        [Self::Prerouting, Self::Input, Self::Forward, Self::Output, Self::Postrouting]
            .into_iter()
            .find(|hook| *hook as u32 == number)
    }
}

/// Changes to one table.
#[derive(Debug)]
pub struct Batch {
    out: Messages,
    family: Family,
    table: String,
    next_id: u32,
}

impl Batch {
    /// No changes yet.
    pub fn new(family: Family, table: &str) -> Self {
        Self { out: Messages::new(), family, table: table.to_owned(), next_id: 1 }
    }

    /// The changes, for [`crate::Socket::transaction`].
    pub fn into_messages(self) -> Messages {
        self.out
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.out.is_empty()
    }

    fn add(&mut self, kind: u16, flags: u16, what: String, body: impl FnOnce(&mut Body<'_>)) {
        let family = self.family as u8;
        let table = &self.table;
        self.out.add(kind, REQUEST | flags, what, |message| {
            // Every nf_tables message names its table in attribute 1.
            message.raw(&[family, 0, 0, 0]).str(1, table);
            body(message);
        });
    }

    /// The table, if it is not there.
    pub fn add_table(&mut self) {
        self.add(NEWTABLE, CREATE, format!("add table {}", self.table), |_| {});
    }

    /// The table and all in it.
    pub fn delete_table(&mut self) {
        self.add(DELTABLE, 0, format!("delete table {}", self.table), |_| {});
    }

    /// A chain the kernel enters at `hook`; packets no rule decides on are accepted.
    pub fn add_base_chain(&mut self, name: &str, kind: &str, hook: Hook, priority: i32) {
        self.base_chain(name, kind, hook, priority, None);
    }

    /// The same with a comment. Kernels before 5.10 forget it.
    pub fn add_marked_base_chain(
        &mut self,
        name: &str,
        kind: &str,
        hook: Hook,
        priority: i32,
        comment: &str,
    ) {
        self.base_chain(name, kind, hook, priority, Some(comment));
    }

    fn base_chain(&mut self, name: &str, kind: &str, hook: Hook, priority: i32, comment: Option<&str>) {
        const CHAIN_NAME: u16 = 3;
        const CHAIN_HOOK: u16 = 4;
        const CHAIN_POLICY: u16 = 5;
        const CHAIN_TYPE: u16 = 7;
        const CHAIN_USERDATA: u16 = 12;
        self.add(NEWCHAIN, CREATE, format!("add chain {name}"), |message| {
            message.str(CHAIN_NAME, name).nest(CHAIN_HOOK, |at| {
                at.be32(1, hook as u32).be32(2, priority as u32);
            });
            message.be32(CHAIN_POLICY, 1).str(CHAIN_TYPE, kind);
            if let Some(comment) = comment {
                message.attr(CHAIN_USERDATA, &expr::user_data(comment));
            }
        });
    }

    /// A chain that is jumped to.
    pub fn add_chain(&mut self, name: &str) {
        self.add(NEWCHAIN, CREATE, format!("add chain {name}"), |message| {
            message.str(3, name);
        });
    }

    /// Removes a chain; it must be empty and no rule may jump to it.
    pub fn delete_chain(&mut self, name: &str) {
        self.add(DELCHAIN, 0, format!("delete chain {name}"), |message| {
            message.str(3, name);
        });
    }

    /// Removes all rules of a chain.
    pub fn flush_chain(&mut self, name: &str) {
        self.add(DELRULE, 0, format!("flush chain {name}"), |message| {
            message.str(2, name);
        });
    }

    /// A rule at the end of a chain.
    pub fn append(&mut self, chain: &str, rule: &Rule) {
        self.rule(chain, rule, CREATE | APPEND);
    }

    /// A rule at the start of a chain.
    pub fn insert(&mut self, chain: &str, rule: &Rule) {
        self.rule(chain, rule, CREATE);
    }

    fn rule(&mut self, chain: &str, rule: &Rule, flags: u16) {
        self.add(NEWRULE, flags, format!("add rule to {chain}"), |message| {
            message.str(2, chain);
            rule.encode(message);
        });
    }

    /// Removes the rule with this handle.
    pub fn delete_rule(&mut self, chain: &str, handle: u64) {
        self.add(DELRULE, 0, format!("delete rule from {chain}"), |message| {
            message.str(2, chain).be64(3, handle);
        });
    }

    /// A set or map.
    pub fn add_set(&mut self, set: &Set) {
        let id = self.next_id;
        self.next_id += 1;
        self.add(NEWSET, CREATE, format!("add set {}", set.name), |message| set.encode(message, id));
    }

    /// Removes a set no rule uses.
    pub fn delete_set(&mut self, name: &str) {
        self.add(DELSET, 0, format!("delete set {name}"), |message| {
            message.str(2, name);
        });
    }

    /// Puts elements into a set. One that is there already, with the same data, is content.
    pub fn add_elements(&mut self, set: &str, elements: &[Element]) {
        self.elements(NEWSETELEM, CREATE, "add to", set, elements);
    }

    /// Takes elements out of a set. One that is missing fails the transaction.
    pub fn delete_elements(&mut self, set: &str, elements: &[Element]) {
        self.elements(DELSETELEM, 0, "delete from", set, elements);
    }

    fn elements(&mut self, kind: u16, flags: u16, verb: &str, set: &str, elements: &[Element]) {
        let mut rest = elements;
        while !rest.is_empty() {
            let mut taken = 0;
            self.add(kind, flags, format!("{verb} {set}"), |message| {
                message.str(2, set);
                let start = message.written();
                message.nest(3, |list| {
                    for element in rest {
                        if list.written() - start > ELEMENT_BYTES {
                            break;
                        }
                        element.encode(list);
                        taken += 1;
                    }
                });
            });
            rest = &rest[taken..];
        }
    }
}

/// A rule as the kernel lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its number.
    pub handle: u64,
    /// Its comment.
    pub comment: String,
    /// The chain its verdict jumps to, if it has one.
    pub jump: Option<String>,
}

/// A chain as the kernel lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Its name.
    pub name: String,
    /// Its policy, if it is a base chain.
    pub policy: Option<Policy>,
    /// Where it hangs, if it is a base chain.
    pub hook: Option<Hook>,
    /// Its comment.
    pub comment: String,
}

/// What happens to a packet no rule of a base chain decided on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// It goes on.
    Accept,
    /// It is thrown away.
    Drop,
}

/// The tables of a family, by name.
pub fn tables(socket: &mut Socket, family: Family) -> Result<Vec<String>> {
    let mut found = Vec::new();
    dump(
        socket,
        GETTABLE,
        family,
        |_| {},
        |message| {
            found.extend(body(message).find(|attr| attr.kind == 1).map(|attr| attr.string()));
        },
    )?;
    Ok(found)
}

/// The chains of a table.
pub fn chains(socket: &mut Socket, family: Family, table: &str) -> Result<Vec<Chain>> {
    let mut found = Vec::new();
    dump(
        socket,
        GETCHAIN,
        family,
        |_| {},
        |message| {
            let of = |kind| body(message).find(|attr| attr.kind == kind);
            if of(1).is_some_and(|attr| attr.string() == table)
                && let Some(name) = of(3)
            {
                let policy = of(5).map(|attr| if attr.be32() == 0 { Policy::Drop } else { Policy::Accept });
                let hook = of(4).and_then(|attr| attr.nested().find(|part| part.kind == 1));
                found.push(Chain {
                    name: name.string(),
                    policy,
                    hook: hook.and_then(|hook| Hook::of(hook.be32())),
                    comment: of(12).map(|attr| expr::comment(attr.value)).unwrap_or_default(),
                });
            }
        },
    )?;
    Ok(found)
}

/// The rules of a chain, or of a whole table.
pub fn rules(socket: &mut Socket, family: Family, table: &str, chain: Option<&str>) -> Result<Vec<Listed>> {
    let mut found = Vec::new();
    let ask = |message: &mut Body<'_>| {
        message.str(1, table);
        if let Some(chain) = chain {
            message.str(2, chain);
        }
    };
    let result = dump(socket, GETRULE, family, ask, |message| {
        let of = |kind| body(message).find(|attr| attr.kind == kind);
        let same = |kind, name: &str| of(kind).is_some_and(|attr| attr.string() == name);
        if !same(1, table) || chain.is_some_and(|chain| !same(2, chain)) {
            return;
        }
        let handle = of(3).and_then(|attr| attr.value.try_into().ok()).map_or(0, u64::from_be_bytes);
        let comment = of(7).map(|attr| expr::comment(attr.value)).unwrap_or_default();
        let jump = of(4).and_then(|attr| attr.nested().find_map(|expr| expr::jump(expr.nested())));
        found.push(Listed { handle, comment, jump });
    });
    match result {
        Err(err) if err.missing() => Ok(Vec::new()),
        other => other.map(|()| found),
    }
}

fn dump(
    socket: &mut Socket,
    kind: u16,
    family: Family,
    ask: impl FnOnce(&mut Body<'_>),
    each: impl FnMut(Received<'_>),
) -> Result<()> {
    let mut out = Messages::new();
    out.add(kind, REQUEST | DUMP, "list nf_tables", |message| {
        message.raw(&[family as u8, 0, 0, 0]);
        ask(message);
    });
    socket.dump(out, each)
}

fn body(message: Received<'_>) -> crate::writer::Attrs<'_> {
    attrs(message.payload.get(4..).unwrap_or_default())
}

/// What a notification says: something of a table was added or removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed {
    /// The address family of the table.
    pub family: u8,
    /// The table.
    pub table: String,
    /// Whether something was taken away.
    pub removed: bool,
}

/// Reads a notification; `None` for what names no table.
pub fn changed(message: Received<'_>) -> Option<Changed> {
    let table = body(message).find(|attr| attr.kind == 1)?.string();
    let family = *message.payload.first()?;
    let removed = matches!(message.kind, DELTABLE | DELCHAIN | DELRULE | DELSET | DELSETELEM);
    (message.kind & 0xff00 == SUBSYS).then_some(Changed { family, table, removed })
}
