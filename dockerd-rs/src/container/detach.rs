//! The keys that let a client go without ending the container: `ctrl-p,ctrl-q` unless it says otherwise.

use crate::error::{Error, Result};

/// A sequence of keys to watch for in what a client types.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DetachKeys {
    keys: Vec<u8>,
    matched: usize,
}

impl Default for DetachKeys {
    fn default() -> Self {
        Self { keys: vec![16, 17], matched: 0 }
    }
}

impl DetachKeys {
    /// Reads `a,ctrl-b`. Empty is the default.
    ///
    /// # Errors
    /// A part is neither one character nor `ctrl-` and one; the error has no text of its own.
    pub fn parse(text: &str) -> Result<Self> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        let keys = text.split(',').map(key).collect::<Option<Vec<u8>>>();
        keys.map(|keys| Self { keys, matched: 0 })
            .ok_or_else(|| Error::invalid(format!("Invalid detach keys ({text}) provided")))
    }

    /// Looks at what the client typed: what of it goes to the process is appended to `out`, and true says the sequence is complete. Keys of a
    /// sequence that is not complete yet are held back.
    pub fn scan(&mut self, typed: &[u8], out: &mut Vec<u8>) -> bool {
        for &byte in typed {
            if self.keys.get(self.matched) == Some(&byte) {
                self.matched += 1;
                if self.matched == self.keys.len() {
                    self.matched = 0;
                    return true;
                }
                continue;
            }
            // What was held back was no sequence after all.
            out.extend_from_slice(&self.keys[..self.matched]);
            self.matched = 0;
            if self.keys.first() == Some(&byte) && self.keys.len() > 1 {
                self.matched = 1;
            } else {
                out.push(byte);
            }
        }
        false
    }
}

fn key(part: &str) -> Option<u8> {
    if let [byte] = part.as_bytes() {
        return Some(*byte);
    }
    match part.strip_prefix("ctrl-")?.as_bytes() {
        [letter @ b'a'..=b'z'] => Some(letter - b'a' + 1),
        [b'@'] => Some(0),
        [b'['] => Some(27),
        [b'\\'] => Some(28),
        [b']'] => Some(29),
        [b'^'] => Some(30),
        [b'_'] => Some(31),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sequences() {
        assert_eq!(DetachKeys::parse("").unwrap(), DetachKeys::default());
        assert_eq!(DetachKeys::parse("a,ctrl-c,ctrl-@").unwrap().keys, [b'a', 3, 0]);
        assert_eq!(
            DetachKeys::parse("bogus-x").unwrap_err().message(),
            "Invalid detach keys (bogus-x) provided"
        );
    }

    #[test]
    fn a_sequence_is_found_also_in_pieces_and_half_ones_go_through() {
        let mut keys = DetachKeys::default();
        let mut out = Vec::new();
        assert!(!keys.scan(b"ls\x10", &mut out));
        assert_eq!(out, b"ls");
        assert!(!keys.scan(b"x\x10\x10", &mut out));
        assert_eq!(out, b"ls\x10x\x10");
        assert!(keys.scan(b"\x11rest", &mut out));
        assert_eq!(out, b"ls\x10x\x10");
    }

    proptest! {
        #[test]
        fn nothing_is_lost_without_a_sequence(typed in prop::collection::vec(15_u8..17, 0..50)) {
            let mut keys = DetachKeys::default();
            let mut out = Vec::new();
            prop_assert!(!keys.scan(&typed, &mut out));
            out.extend_from_slice(&keys.keys[..keys.matched]);
            prop_assert_eq!(out, typed);
        }
    }
}
