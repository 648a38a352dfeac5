//! Hosts whose iptables fills the kernel's older tables (`iptables-legacy`): the same marks there as in [`super::firewall`].
//!
//! Those tables have neither transactions one could take part in nor notifications, so this goes by the program itself. Nothing is run where no such
//! table is in use, and never for a container's start: only when bridges come or go, and every few seconds by the watcher.

use std::io;
use std::process::{Command, Stdio};

use crate::error::{Error, Result};

/// The families: where the kernel lists the tables in use, and the program.
const FAMILIES: [(&str, &str); 2] = [("ip_tables_names", "iptables"), ("ip6_tables_names", "ip6tables")];

/// Brings the marks of `table` in the older tables of the calling thread's namespace in line with the bridges there are.
///
/// # Errors
/// The program refused; the other family has been tried.
pub fn coexist(table: &str, bridges: &[String]) -> Result<()> {
    let mut done = Ok(());
    for (names, program) in FAMILIES {
        let names = std::fs::read_to_string(format!("/proc/thread-self/net/{names}")).unwrap_or_default();
        if names.lines().any(|name| name == "filter")
            && let Err(err) = coexist_in(program, table, bridges)
        {
            done = Err(err);
        }
    }
    done
}

fn coexist_in(program: &str, table: &str, bridges: &[String]) -> Result<()> {
    let Some(program) = legacy(program)? else { return Ok(()) };
    let rules = run(&program, &["-S".to_owned()])?;
    for change in changes(&rules, table, bridges) {
        run(&program, &change)?;
    }
    Ok(())
}

/// What the variant for the older tables is called here; `None` if there is none.
fn legacy(program: &str) -> Result<Option<String>> {
    let named = format!("{program}-legacy");
    match version(&named) {
        Ok(_) => Ok(Some(named)),
        Err(err) if err.kind() == io::ErrorKind::NotFound => match version(program) {
            Ok(version) => Ok((!version.contains("nf_tables")).then(|| program.to_owned())),
            Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(err) => Err(Error::from(err).context(program.to_owned())),
        },
        Err(err) => Err(Error::from(err).context(named)),
    }
}

fn version(program: &str) -> io::Result<String> {
    let output = Command::new(program).arg("-V").stdin(Stdio::null()).output()?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn run(program: &str, arguments: &[String]) -> Result<String> {
    // Others may hold the tables' lock for a moment.
    let output = Command::new(program).args(["-w", "5"]).args(arguments).stdin(Stdio::null()).output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(Error::system(format!("{program} {}: {said}", arguments.join(" "))));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The rule of `FORWARD` that a mark stands for, after `-I FORWARD` or `-D FORWARD`.
fn rule(mark: &str, what: &str) -> Vec<String> {
    let (matches, target) = match what.split_once(' ') {
        Some(("from", link)) => (vec!["-i", link], "ACCEPT"),
        Some(("to", link)) => (vec!["-o", link], "ACCEPT"),
        _ => (Vec::new(), "DOCKER-USER"),
    };
    let comment = format!("{mark}{what}");
    let rest = ["-m", "comment", "--comment", &comment, "-j", target];
    matches.into_iter().chain(rest).map(str::to_owned).collect()
}

/// What to change in a listing (`-S`), in order: the arguments of each call.
fn changes(listing: &str, table: &str, bridges: &[String]) -> Vec<Vec<String>> {
    const USER: &str = "user rules";
    let mark = format!("{table}: ");
    let drops = listing.lines().any(|line| line == "-P FORWARD DROP");
    let user = listing.lines().any(|line| line.starts_with("-A DOCKER-USER "));
    let quoted = format!("--comment \"{mark}");
    let (mut ours, mut jump_at, mut jumped) = (Vec::new(), None, false);
    for (at, line) in listing.lines().filter(|line| line.starts_with("-A FORWARD ")).enumerate() {
        match line.split_once(&quoted).and_then(|(_, rest)| rest.split_once('"')) {
            Some((USER, _)) => jump_at = Some(at + 1),
            Some((what, _)) => ours.push(what),
            None => jumped |= line.ends_with(" -j DOCKER-USER"),
        }
    }
    let mut wanted: Vec<String> = Vec::new();
    if drops {
        wanted.extend(bridges.iter().flat_map(|link| [format!("from {link}"), format!("to {link}")]));
    }
    let needs_jump = user && !bridges.is_empty() && (!jumped || !wanted.is_empty());
    let call = |verb: &[&str], what: &str| {
        let verb = verb.iter().map(|word| (*word).to_owned());
        verb.chain(rule(&mark, what)).collect::<Vec<String>>()
    };
    let (insert, delete) = (["-I", "FORWARD"], ["-D", "FORWARD"]);
    let mut all: Vec<Vec<String>> = Vec::new();
    match (needs_jump, jump_at) {
        (true, None) => {
            all.push(call(&insert, USER));
            jump_at = Some(1);
        }
        (false, Some(_)) => {
            all.push(call(&delete, USER));
            jump_at = None;
        }
        _ => {}
    }
    // The operator's chain decides before what we let pass.
    let behind = jump_at.map(|at| (at + 1).to_string());
    let place: Vec<&str> = insert.into_iter().chain(behind.as_deref()).collect();
    for what in wanted.iter().filter(|what| !ours.contains(&what.as_str())) {
        all.push(call(&place, what));
    }
    let gone = ours.iter().filter(|what| !wanted.iter().any(|wanted| wanted == *what));
    all.extend(gone.map(|what| call(&delete, what)));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(listing: &str, bridges: &[&str], expected: &[&str]) {
        let bridges: Vec<String> = bridges.iter().map(|link| (*link).to_owned()).collect();
        let calls: Vec<String> =
            changes(listing, "dockerd-rs", &bridges).iter().map(|call| call.join(" ")).collect();
        assert_eq!(calls, expected, "{listing}");
    }

    const FROM: &str = "FORWARD -i br0 -m comment --comment dockerd-rs: from br0 -j ACCEPT";
    const TO: &str = "FORWARD -o br0 -m comment --comment dockerd-rs: to br0 -j ACCEPT";
    const JUMP: &str = "FORWARD -m comment --comment dockerd-rs: user rules -j DOCKER-USER";

    #[test]
    fn a_policy_that_drops_is_passed_and_the_operator_is_asked_first() {
        let [from, to, jump] = [FROM, TO, JUMP].map(|rule| format!("-I {rule}"));
        check("-P FORWARD ACCEPT\n-N DOCKER-USER", &["br0"], &[]);
        check("-P FORWARD DROP", &["br0"], &[&from, &to]);
        let [from, to] = [FROM, TO].map(|rule| format!("-I {}", rule.replace("FORWARD", "FORWARD 2")));
        check("-P FORWARD DROP\n-N DOCKER-USER\n-A DOCKER-USER -j DROP", &["br0"], &[&jump, &from, &to]);
        check("-P FORWARD ACCEPT\n-A DOCKER-USER -j DROP", &["br0"], &[&jump]);
        check("-P FORWARD ACCEPT\n-A FORWARD -j DOCKER-USER\n-A DOCKER-USER -j DROP", &["br0"], &[]);
        check("-P FORWARD ACCEPT\n-A DOCKER-USER -j DROP", &[], &[]);
    }

    #[test]
    fn marks_that_nothing_asks_for_go_and_the_rest_stays() {
        let listed = |policy: &str| {
            format!(
                "-P FORWARD {policy}\n-A FORWARD -m comment --comment \"dockerd-rs: user rules\" -j DOCKER-USER\n\
                 -A FORWARD -o br0 -m comment --comment \"dockerd-rs: to br0\" -j ACCEPT\n\
                 -A FORWARD -i br0 -m comment --comment \"dockerd-rs: from br0\" -j ACCEPT\n\
                 -A FORWARD -i br0 -m comment --comment \"dockerd-rs-1234: from br0\" -j ACCEPT\n-A FORWARD -j other"
            )
        };
        let [from, to, jump] = [FROM, TO, JUMP].map(|rule| format!("-D {rule}"));
        check(&listed("DROP"), &[], &[&jump, &to, &from]);
        check(&listed("ACCEPT"), &["br0"], &[&jump, &to, &from]);
        let user = listed("DROP") + "\n-A DOCKER-USER -s 10.0.0.1/32 -j DROP";
        check(&user, &["br0"], &[]);
        let more = [
            "-I FORWARD 2 -i br1 -m comment --comment dockerd-rs: from br1 -j ACCEPT",
            "-I FORWARD 2 -o br1 -m comment --comment dockerd-rs: to br1 -j ACCEPT",
        ];
        check(&user, &["br0", "br1"], &more);
    }
}
