//! systemd's journal: records as fields, in its native protocol.

use super::syslog::moment;
use super::{About, Entry};
use crate::container::logs::record::Source;

/// Option names of the driver's own.
pub const NAMES: [&str; 5] = ["env", "env-regex", "labels", "labels-regex", "tag"];
/// Where the journal listens.
pub const SOCKET: &str = "/run/systemd/journal/socket";

/// Appends the datagram for `entry`.
pub fn encode(entry: &Entry<'_>, about: &About, out: &mut Vec<u8>) {
    let priority = match entry.source {
        Source::Stdout => "6",
        Source::Stderr => "3",
    };
    let mut text = |name: &str, value: &str| field(out, name, value.as_bytes());
    text("PRIORITY", priority);
    text("CONTAINER_ID", &about.short_id);
    text("CONTAINER_ID_FULL", &about.id);
    text("CONTAINER_NAME", &about.name);
    text("CONTAINER_TAG", &about.tag);
    text("IMAGE_NAME", &about.image);
    text("SYSLOG_IDENTIFIER", &about.tag);
    text("SYSLOG_TIMESTAMP", &moment(entry.nanos).to_string());
    text("CONTAINER_LOG_EPOCH", &about.id);
    text("CONTAINER_LOG_ORDINAL", &entry.sequence.to_string());
    if let Some(part) = entry.part {
        text("CONTAINER_PARTIAL_ID", part.id);
        text("CONTAINER_PARTIAL_ORDINAL", &part.ordinal.to_string());
        text("CONTAINER_PARTIAL_LAST", if part.last { "true" } else { "false" });
        if !part.last {
            text("CONTAINER_PARTIAL_MESSAGE", "true");
        }
    }
    for (name, value) in &about.extra {
        let name = field_name(name);
        if !name.is_empty() {
            text(&name, value);
        }
    }
    field(out, "MESSAGE", entry.line);
}

fn field(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.extend_from_slice(name.as_bytes());
    if value.contains(&b'\n') {
        out.push(b'\n');
        out.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        out.push(b'=');
    }
    out.extend_from_slice(value);
    out.push(b'\n');
}

/// The journal takes capital letters, digits and underscores, with no underscore in front.
fn field_name(name: &str) -> String {
    let allowed = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
    name.chars().map(allowed).collect::<String>().trim_start_matches('_').to_owned()
}

#[cfg(test)]
mod tests {
    use super::super::tests::{about, entry};
    use super::*;
    use crate::container::logs::record::Part;

    #[test]
    fn the_fields_of_the_real_engine() {
        let fields = |entry: &Entry<'_>| {
            let mut out = Vec::new();
            encode(entry, &about(), &mut out);
            let mut lines: Vec<String> = String::from_utf8_lossy(&out).lines().map(str::to_owned).collect();
            lines.sort();
            lines
        };
        let id = &about().id;
        let plain = fields(&entry(b"one"));
        let expected = [
            "AB_C_1=q".to_owned(),
            format!("CONTAINER_ID={}", &id[..12]),
            format!("CONTAINER_ID_FULL={id}"),
            format!("CONTAINER_LOG_EPOCH={id}"),
            "CONTAINER_LOG_ORDINAL=7".into(),
            "CONTAINER_NAME=c1".into(),
            format!("CONTAINER_TAG={}", &id[..12]),
            "IMAGE_NAME=busybox".into(),
            "MESSAGE=one".into(),
            "PRIORITY=6".into(),
            format!("SYSLOG_IDENTIFIER={}", &id[..12]),
            "SYSLOG_TIMESTAMP=2026-12-01T16:05:11.674992005Z".into(),
        ];
        assert_eq!(plain, expected);
        let part = |last| Entry {
            source: Source::Stderr,
            part: Some(Part { id: "p1", ordinal: 2, last }),
            ..entry(b"x")
        };
        let more = |entry| {
            let mut fields = fields(&entry);
            fields.retain(|field| field.contains("PARTIAL") || field.contains("PRIORITY"));
            fields
        };
        let common = ["CONTAINER_PARTIAL_ID=p1", "CONTAINER_PARTIAL_ORDINAL=2", "PRIORITY=3"];
        let last = [common[0], "CONTAINER_PARTIAL_LAST=true", common[1], common[2]];
        assert_eq!(more(part(true)), last);
        let middle = [
            common[0],
            "CONTAINER_PARTIAL_LAST=false",
            "CONTAINER_PARTIAL_MESSAGE=true",
            common[1],
            common[2],
        ];
        assert_eq!(more(part(false)), middle);
    }

    #[test]
    fn a_value_with_a_newline_has_its_length_before_it() {
        let mut out = Vec::new();
        field(&mut out, "A", b"x\ny");
        assert_eq!(out, b"A\n\x03\0\0\0\0\0\0\0x\ny\n");
        assert_eq!(field_name("_ab-c.1é"), "AB_C_1_");
    }
}
