//! Flags as pflag reads them, because people's fingers and scripts know its habits: `-it`, `-e A=b`, `-eA=b`, `--rm=false`,
//! `--name x` and `--name=x`, `--`, and, for `run` and `exec`, nothing after the first argument is ours.

use std::collections::HashMap;

/// What a flag takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nothing, or `=true`/`=false`.
    Bool,
    /// One value; the last one wins. The text names the type in the help.
    One(&'static str),
    /// A value each time it is given. The text names the type in the help.
    List(&'static str),
}

/// A flag of a command.
#[derive(Clone, Copy, Debug)]
pub struct Flag {
    /// The long name, without dashes.
    pub long: &'static str,
    /// The one-letter name.
    pub short: Option<char>,
    /// What it takes.
    pub kind: Kind,
    /// What the help says of it.
    pub help: &'static str,
}

/// A flag that is on or off.
pub const fn on(short: Option<char>, long: &'static str, help: &'static str) -> Flag {
    Flag { long, short, kind: Kind::Bool, help }
}

/// A flag with one value.
pub const fn one(short: Option<char>, long: &'static str, kind: &'static str, help: &'static str) -> Flag {
    Flag { long, short, kind: Kind::One(kind), help }
}

/// A flag that may be given several times.
pub const fn list(short: Option<char>, long: &'static str, kind: &'static str, help: &'static str) -> Flag {
    Flag { long, short, kind: Kind::List(kind), help }
}

/// What the command line said.
#[derive(Debug, Default)]
pub struct Parsed {
    values: HashMap<&'static str, Vec<String>>,
    /// What is no flag.
    pub args: Vec<String>,
}

impl Parsed {
    /// Whether a boolean flag is on.
    pub fn on(&self, long: &str) -> bool {
        self.last(long).is_some_and(|value| truth(value) == Some(true))
    }

    /// Whether a boolean flag is on, with an answer for when it was not given.
    pub fn on_or(&self, long: &str, default: bool) -> bool {
        self.last(long).map_or(default, |value| truth(value) == Some(true))
    }

    /// The last value of a flag.
    pub fn last(&self, long: &str) -> Option<&str> {
        self.values.get(long).and_then(|values| values.last()).map(String::as_str)
    }

    /// The last value of a flag, or the empty string.
    pub fn text(&self, long: &str) -> &str {
        self.last(long).unwrap_or_default()
    }

    /// All values of a flag, in order.
    pub fn all(&self, long: &str) -> &[String] {
        self.values.get(long).map_or(&[], Vec::as_slice)
    }

    /// Whether a flag was given.
    pub fn has(&self, long: &str) -> bool {
        self.values.contains_key(long)
    }

    /// A whole number.
    ///
    /// # Errors
    /// The text is not one; the message is pflag's.
    pub fn int(&self, long: &str) -> Result<Option<i64>, String> {
        let Some(text) = self.last(long) else { return Ok(None) };
        text.parse().map(Some).map_err(|_| {
            format!(
                "invalid argument {text:?} for \"--{long}\" flag: strconv.ParseInt: parsing {text:?}: invalid syntax"
            )
        })
    }
}

fn truth(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

/// Reads `words`. With `interspersed`, flags may come after arguments; without, the first argument ends the flags.
///
/// # Errors
/// An unknown flag or a bad value, in pflag's words.
pub fn parse(flags: &[Flag], words: &[String], interspersed: bool) -> Result<Parsed, String> {
    let mut parsed = Parsed::default();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        if word == "--" {
            parsed.args.extend(words.cloned());
            break;
        }
        if let Some(long) = word.strip_prefix("--") {
            let (name, value) = match long.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (long, None),
            };
            let flag = flags
                .iter()
                .find(|flag| flag.long == name)
                .ok_or_else(|| format!("unknown flag: --{name}"))?;
            let value = match (flag.kind, value) {
                (Kind::Bool, None) => "true".to_owned(),
                (_, Some(value)) => value,
                (_, None) => {
                    words.next().cloned().ok_or_else(|| format!("flag needs an argument: --{name}"))?
                }
            };
            store(&mut parsed, flag, value)?;
        } else if word.len() > 1 && word.starts_with('-') {
            shorthands(flags, word, &mut words, &mut parsed)?;
        } else {
            parsed.args.push(word.clone());
            if !interspersed {
                parsed.args.extend(words.cloned());
                break;
            }
        }
    }
    Ok(parsed)
}

/// `-it`, `-e A`, `-eA`, `-e=A`: letters until one takes a value.
fn shorthands<'a>(
    flags: &[Flag],
    word: &str,
    words: &mut impl Iterator<Item = &'a String>,
    parsed: &mut Parsed,
) -> Result<(), String> {
    let letters = &word[1..];
    let mut rest = letters;
    while let Some(letter) = rest.chars().next() {
        rest = &rest[letter.len_utf8()..];
        let flag = flags
            .iter()
            .find(|flag| flag.short == Some(letter))
            .ok_or_else(|| format!("unknown shorthand flag: '{letter}' in -{letters}"))?;
        if let Some(value) = rest.strip_prefix('=') {
            return store(parsed, flag, value.to_owned());
        }
        if flag.kind == Kind::Bool {
            store(parsed, flag, "true".to_owned())?;
            continue;
        }
        let value = if rest.is_empty() {
            words
                .next()
                .cloned()
                .ok_or_else(|| format!("flag needs an argument: '{letter}' in -{letters}"))?
        } else {
            rest.to_owned()
        };
        return store(parsed, flag, value);
    }
    Ok(())
}

fn store(parsed: &mut Parsed, flag: &Flag, value: String) -> Result<(), String> {
    if flag.kind == Kind::Bool && truth(&value).is_none() {
        let name = flag
            .short
            .map_or_else(|| format!("--{}", flag.long), |short| format!("-{short}, --{}", flag.long));
        return Err(format!(
            "invalid argument {value:?} for {name:?} flag: strconv.ParseBool: parsing {value:?}: invalid syntax"
        ));
    }
    parsed.values.entry(flag.long).or_default().push(value);
    Ok(())
}

/// The `Options:` part of a help text, in Docker's layout: two columns, the second wrapped at 80.
pub fn help(flags: &[Flag]) -> String {
    let mut rows: Vec<(String, &str)> = flags
        .iter()
        .map(|flag| {
            let short = flag.short.map_or_else(|| "    ".to_owned(), |short| format!("-{short}, "));
            let kind = match flag.kind {
                Kind::Bool => String::new(),
                Kind::One(kind) | Kind::List(kind) => format!(" {kind}"),
            };
            (format!("  {short}--{}{kind}", flag.long), flag.help)
        })
        .collect();
    rows.sort_by(|a, b| {
        a.0.trim_start_matches(|c: char| c != '-').cmp(b.0.trim_start_matches(|c: char| c != '-'))
    });
    rows.sort_by_key(|row| row.0.split("--").nth(1).map(str::to_owned));
    let width = rows.iter().map(|row| row.0.len()).max().unwrap_or(0) + 3;
    let mut out = String::new();
    for (left, text) in rows {
        let mut column = left.len();
        out.push_str(&left);
        let mut first = true;
        let mut length = 0;
        for word in text.split(' ') {
            if !first && length + 1 + word.len() > 80_usize.saturating_sub(width).max(24) {
                out.push('\n');
                column = 0;
                first = true;
                length = 0;
            }
            if first {
                out.extend(std::iter::repeat_n(' ', width - column));
            } else {
                out.push(' ');
                length += 1;
            }
            out.push_str(word);
            length += word.len();
            first = false;
        }
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLAGS: &[Flag] = &[
        on(Some('i'), "interactive", ""),
        on(Some('t'), "tty", ""),
        on(None, "rm", ""),
        list(Some('e'), "env", "list", ""),
        one(None, "name", "string", ""),
    ];

    fn read(line: &str, interspersed: bool) -> Result<Parsed, String> {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        parse(FLAGS, &words, interspersed)
    }

    #[test]
    fn pflags_habits() {
        let parsed = read("-it --rm=false -eA=b -e C=d --name=x img -i sh", false).unwrap();
        assert!(parsed.on("interactive") && parsed.on("tty") && !parsed.on("rm"));
        assert_eq!(parsed.all("env"), ["A=b", "C=d"]);
        assert_eq!(parsed.text("name"), "x");
        assert_eq!(parsed.args, ["img", "-i", "sh"]);
        assert_eq!(read("a --name x b -- -z", true).unwrap().args, ["a", "b", "-z"]);
    }

    #[test]
    fn errors_are_pflags() {
        assert_eq!(read("-iz", true).unwrap_err(), "unknown shorthand flag: 'z' in -iz");
        assert_eq!(read("--bogus", true).unwrap_err(), "unknown flag: --bogus");
        assert_eq!(read("--name", true).unwrap_err(), "flag needs an argument: --name");
        assert_eq!(
            read("--rm=x", true).unwrap_err(),
            "invalid argument \"x\" for \"--rm\" flag: strconv.ParseBool: parsing \"x\": invalid syntax"
        );
    }
}
