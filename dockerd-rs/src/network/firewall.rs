//! The engine's rules in the kernel: applied in transactions, put back when somebody else removes them.
//!
//! Invariant: the table is ours alone and every change to it comes from here; of other tables only two kinds of rules are touched, both marked with
//! our name: the ones that let our bridges pass a `FORWARD` chain that drops by default (a verdict of ours does not override another chain's), and
//! the jump to a `DOCKER-USER` with rules that nobody jumps to. Where iptables has made no `FORWARD` yet, it is made as iptables would.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use nl::Socket;
use nl::nft::{self, Batch, Family, Hook, Policy, Rule, Verdict};

use super::rules::{self, Bridge, Pass, Port, View};
use super::xtables;
use crate::error::{Error, Result};

/// The engine's own table and its marks in others'.
pub struct Firewall {
    table: String,
    /// Without rules (`--iptables=false`) it only takes note.
    on: bool,
    inner: Mutex<Inner>,
    /// One look at the older tables at a time.
    older: Mutex<()>,
}

/// A chain of somebody else's.
#[derive(Clone, Debug)]
pub struct Other {
    /// Its table's family.
    pub family: Family,
    /// Its table.
    pub table: String,
    /// The chain.
    pub chain: nft::Chain,
    /// How many rules it has.
    pub rules: usize,
    /// Whether we have put a mark of ours into it.
    pub passed: bool,
}

struct Inner {
    socket: Socket,
    /// What is in the kernel, to put it back.
    view: View,
    /// Whether the engine took its rules away: then nothing is put back any more.
    left: bool,
}

fn failed(err: &nl::Error) -> Error {
    Error::system(format!("set firewall rules: {err}"))
}

impl Firewall {
    /// Opens the way to the kernel in the calling thread's network namespace and makes the table from `view`.
    pub fn open(table: &str, view: View, on: bool) -> Result<Arc<Self>> {
        let mut socket = Socket::netfilter().map_err(|err| failed(&err))?;
        if !on {
            return Ok(Arc::new(Self {
                table: table.to_owned(),
                on,
                inner: Mutex::new(Inner { socket, view, left: false }),
                older: Mutex::default(),
            }));
        }
        socket.transaction(rules::table(table, &view).into_messages()).map_err(|err| failed(&err))?;
        let firewall = Arc::new(Self {
            table: table.to_owned(),
            on,
            inner: Mutex::new(Inner { socket, view, left: false }),
            older: Mutex::default(),
        });
        firewall.coexist(&mut firewall.lock());
        firewall.coexist_in_older_tables();
        Self::watch(&firewall)?;
        Ok(firewall)
    }

    /// The chains of the host that a packet on its way to a container passes, and which are none of ours.
    pub fn others(&self) -> Vec<Other> {
        let inner = &mut *self.lock();
        let mut found = Vec::new();
        for family in [Family::Ip, Family::Ip6, Family::Inet] {
            let tables = nft::tables(&mut inner.socket, family).unwrap_or_default();
            for table in tables.into_iter().filter(|table| *table != self.table) {
                for chain in nft::chains(&mut inner.socket, family, &table).unwrap_or_default() {
                    let rules =
                        nft::rules(&mut inner.socket, family, &table, Some(&chain.name)).unwrap_or_default();
                    let ours = format!("{}: ", self.table);
                    let passed = rules.iter().any(|rule| rule.comment.starts_with(&ours));
                    found.push(Other { family, table: table.clone(), rules: rules.len(), passed, chain });
                }
            }
        }
        found
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // The view is only changed after a transaction succeeded, so a panic in between leaves it true.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, make: impl Fn(&mut Batch), note: impl FnOnce(&mut View)) -> Result<()> {
        let inner = &mut *self.lock();
        if !self.on {
            note(&mut inner.view);
            return Ok(());
        }
        let mut batch = Batch::new(Family::Inet, &self.table);
        make(&mut batch);
        match inner.socket.transaction(batch.into_messages()) {
            Ok(()) => {
                note(&mut inner.view);
                Ok(())
            }
            // The table is not as we left it: somebody flushed it a moment ago. All of it is made anew, with the change.
            Err(err) if err.missing() => {
                note(&mut inner.view);
                self.replace(inner)
            }
            Err(err) => Err(failed(&err)),
        }
    }

    fn replace(&self, inner: &mut Inner) -> Result<()> {
        let batch = rules::table(&self.table, &inner.view);
        inner.socket.transaction(batch.into_messages()).map_err(|err| failed(&err))
    }

    /// Rules for one more bridge. One that is there is content.
    pub fn add_bridge(&self, bridge: &Bridge) -> Result<()> {
        if self.lock().view.bridges.iter().any(|other| other.link == bridge.link) {
            return Ok(());
        }
        self.change(|batch| rules::add_bridge(batch, bridge), |view| view.bridges.push(bridge.clone()))?;
        self.coexist(&mut self.lock());
        self.coexist_in_older_tables();
        Ok(())
    }

    /// Takes a bridge's rules away.
    pub fn remove_bridge(&self, link: &str) -> Result<()> {
        let Some(bridge) = self.lock().view.bridges.iter().find(|bridge| bridge.link == link).cloned() else {
            return Ok(());
        };
        self.change(
            |batch| rules::remove_bridge(batch, &bridge),
            |view| view.bridges.retain(|other| other.link != link),
        )?;
        self.coexist(&mut self.lock());
        self.coexist_in_older_tables();
        Ok(())
    }

    /// Opens published ports and links' exceptions. What is open is content.
    pub fn add(&self, ports: &[Port], passes: &[Pass]) -> Result<()> {
        if ports.is_empty() && passes.is_empty() {
            return Ok(());
        }
        self.change(
            |batch| {
                rules::ports(batch, ports, true);
                rules::passes(batch, passes, true);
            },
            |view| {
                for port in
                    ports.iter().filter(|port| !view.ports.contains(port)).cloned().collect::<Vec<_>>()
                {
                    view.ports.push(port);
                }
                for pass in
                    passes.iter().filter(|pass| !view.passes.contains(pass)).cloned().collect::<Vec<_>>()
                {
                    view.passes.push(pass);
                }
            },
        )
    }

    /// Closes ports and exceptions. What is not open is content.
    pub fn remove(&self, ports: &[Port], passes: &[Pass]) -> Result<()> {
        let (mut open, mut passing) = (Vec::new(), Vec::new());
        {
            let view = &self.lock().view;
            open.extend(ports.iter().filter(|port| view.ports.contains(port)).cloned());
            passing.extend(passes.iter().filter(|pass| view.passes.contains(pass)).cloned());
        }
        if open.is_empty() && passing.is_empty() {
            return Ok(());
        }
        self.change(
            |batch| {
                rules::ports(batch, &open, false);
                rules::passes(batch, &passing, false);
            },
            |view| {
                view.ports.retain(|port| !open.contains(port));
                view.passes.retain(|pass| !passing.contains(pass));
            },
        )
    }

    /// Removes the table and our marks: when the engine leaves and nothing runs.
    pub fn remove_all(&self) -> Result<()> {
        self.remove_table()?;
        self.coexist_in_older_tables();
        Ok(())
    }

    fn remove_table(&self) -> Result<()> {
        let inner = &mut *self.lock();
        inner.view = View { host_firewall: inner.view.host_firewall, ..View::default() };
        inner.left = true;
        if !self.on {
            return Ok(());
        }
        self.coexist(inner);
        let mut batch = Batch::new(Family::Inet, &self.table);
        batch.add_table();
        batch.delete_table();
        inner.socket.transaction(batch.into_messages()).map_err(|err| failed(&err))
    }

    /// Brings our marks in other tables in line with the bridges there are. A host where that fails keeps its own rules; it is logged.
    fn coexist(&self, inner: &mut Inner) {
        if !self.on {
            return;
        }
        for family in [Family::Ip, Family::Ip6] {
            if let Err(err) = self.coexist_in(inner, family) {
                tracing::warn!(error = %err, ?family, "cannot let bridges pass the host's forward chain");
            }
        }
    }

    /// The same for a host whose iptables fills the kernel's older tables.
    fn coexist_in_older_tables(&self) {
        if !self.on {
            return;
        }
        let _one = self.older.lock().unwrap_or_else(PoisonError::into_inner);
        let bridges: Vec<String> =
            self.lock().view.bridges.iter().map(|bridge| bridge.link.clone()).collect();
        if let Err(err) = xtables::coexist(&self.table, &bridges) {
            tracing::warn!(error = %err, "cannot let bridges pass the host's older tables");
        }
    }

    fn coexist_in(&self, inner: &mut Inner, family: Family) -> nl::Result<()> {
        let Inner { socket, view, .. } = inner;
        let chains = nft::chains(socket, family, "filter")?;
        let forward = chains.iter().find(|chain| chain.name == "FORWARD");
        let user = chains.iter().any(|chain| chain.name == "DOCKER-USER");
        if forward.is_none() && !user {
            return Ok(());
        }
        // An empty chain decides nothing, and one that nobody jumps to can be removed: `iptables -F; iptables -X` must work.
        let user = user && !nft::rules(socket, family, "filter", Some("DOCKER-USER"))?.is_empty();
        let rules = nft::rules(socket, family, "filter", Some("FORWARD"))?;
        let batch = marks(&self.table, &view.bridges, family, forward, &rules, user);
        match socket.transaction(batch.into_messages()) {
            // Somebody was faster; the change they made brings us here again.
            Err(err) if err.missing() => Ok(()),
            other => other,
        }
    }

    /// Starts the thread that hears of others' changes. It ends when the firewall is dropped, at the latest ten seconds after.
    fn watch(self: &Arc<Self>) -> Result<()> {
        let mut socket = Socket::netfilter().map_err(|err| failed(&err))?;
        socket.subscribe(nft::NOTIFICATIONS).map_err(|err| failed(&err))?;
        let firewall = Arc::downgrade(self);
        let ours = self.lock().socket.port();
        let table = self.table.clone();
        std::thread::Builder::new()
            .name("nft-watch".into())
            .stack_size(128 << 10)
            .spawn(move || watch_loop(&mut socket, &firewall, &table, ours))?;
        Ok(())
    }

    fn repair(&self, whole: bool) {
        let inner = &mut *self.lock();
        if inner.left {
            return;
        }
        if whole {
            tracing::info!(table = self.table, "rules were removed by another program, putting them back");
            if let Err(err) = self.replace(inner) {
                tracing::error!(error = %err, "cannot put the rules back");
            }
        }
        self.coexist(inner);
    }
}

/// What to change in a family's `FORWARD` so that our marks in it are those that the bridges and a `DOCKER-USER` with rules (`user`) ask for.
fn marks(
    table: &str,
    bridges: &[Bridge],
    family: Family,
    forward: Option<&nft::Chain>,
    rules: &[nft::Listed],
    user: bool,
) -> Batch {
    let mark = format!("{table}: ");
    let user_rules = format!("{mark}user rules");
    let jump = || Rule::new().counter().verdict(Verdict::Jump("DOCKER-USER".into())).comment(&user_rules);
    let jumped =
        rules.iter().any(|rule| rule.jump.as_deref() == Some("DOCKER-USER") && rule.comment != user_rules);
    let mut batch = Batch::new(family, "filter");
    let Some(forward) = forward else {
        if user && !bridges.is_empty() {
            batch.add_marked_base_chain("FORWARD", "filter", Hook::Forward, 0, table);
            batch.insert("FORWARD", &jump());
        }
        return batch;
    };
    let mut wanted: Vec<(String, Rule)> = Vec::new();
    if forward.policy == Some(Policy::Drop) {
        for bridge in bridges {
            let link = bridge.link.as_str();
            let pass = |rule: Rule| rule.counter().verdict(Verdict::Accept);
            wanted.push((format!("{mark}from {link}"), pass(Rule::new().input(link, true))));
            wanted.push((format!("{mark}to {link}"), pass(Rule::new().output(link, true))));
        }
    }
    // Somebody's jump may come after what we let pass; then there is one of ours before it, too.
    let needs_jump = user && !bridges.is_empty() && (!jumped || !wanted.is_empty());
    let ours = rules.iter().find(|rule| rule.comment == user_rules);
    for rule in rules.iter().filter(|rule| rule.comment.starts_with(&mark) && rule.comment != user_rules) {
        if !wanted.iter().any(|(comment, _)| *comment == rule.comment) {
            batch.delete_rule("FORWARD", rule.handle);
        }
    }
    for (comment, rule) in &wanted {
        if !rules.iter().any(|rule| rule.comment == *comment) {
            batch.insert("FORWARD", &rule.clone().comment(comment));
        }
    }
    // Inserted last, so that it comes first: the operator's chain decides before we let anything pass.
    match (needs_jump, ours) {
        (true, None) => batch.insert("FORWARD", &jump()),
        (true, Some(rule)) if !batch.is_empty() => {
            batch.delete_rule("FORWARD", rule.handle);
            batch.insert("FORWARD", &jump());
        }
        (false, Some(rule)) => batch.delete_rule("FORWARD", rule.handle),
        _ => {}
    }
    let made_by_us = forward.comment == table && forward.policy == Some(Policy::Accept);
    if made_by_us && !needs_jump && rules.iter().all(|rule| rule.comment.starts_with(&mark)) {
        batch.delete_chain("FORWARD");
    }
    batch
}

fn watch_loop(socket: &mut Socket, firewall: &Weak<Firewall>, table: &str, ours: u32) {
    while firewall.strong_count() > 0 {
        let (mut whole, mut others) = (false, false);
        let received = socket.notification(|message| {
            if message.port == ours {
                return;
            }
            if let Some(changed) = nft::changed(message) {
                whole |= changed.removed && changed.table == table;
                others |= changed.table == "filter";
            }
        });
        match received {
            Ok(()) => {}
            Err(err) => match err.errno() {
                Some(libc::EINTR) => continue,
                // Nothing to hear for a while: what gives no notice is looked at.
                Some(libc::EAGAIN) => {
                    if let Some(firewall) = firewall.upgrade() {
                        firewall.coexist_in_older_tables();
                    }
                    continue;
                }
                // Notifications were lost: what they said is unknown.
                Some(libc::ENOBUFS) => whole = true,
                _ => return tracing::error!(error = %err, "no longer hears of rule changes"),
            },
        }
        if (whole || others)
            && let Some(firewall) = firewall.upgrade()
        {
            firewall.repair(whole);
        }
    }
}
