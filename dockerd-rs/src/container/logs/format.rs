//! How a record is put on the wire: framed, raw, or as JSON.

use super::query::Query;
use super::record::{Record, Source};

/// The form of the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Each record behind Docker's eight-byte header.
    Multiplexed,
    /// As the process wrote it: for terminals.
    Raw,
    /// `{"Line":…,"Source":…,"Timestamp":…}` and a newline (API 1.54).
    Json,
}

/// Appends `record` to `out`.
pub fn append(record: &Record<'_>, query: &Query, format: Format, out: &mut Vec<u8>) {
    if format == Format::Json {
        append_json(record, query, out);
        return;
    }
    let header = out.len();
    if format == Format::Multiplexed {
        let stream = match record.source {
            Source::Stdout => 1,
            Source::Stderr => 2,
        };
        out.extend_from_slice(&[stream, 0, 0, 0, 0, 0, 0, 0]);
    }
    let begin = out.len();
    if query.timestamps {
        out.extend_from_slice(record.stamp.as_bytes());
        out.push(b' ');
    }
    if query.details {
        append_details(&record.attrs, out);
        out.push(b' ');
    }
    record.text.append_to(out);
    if format == Format::Multiplexed {
        let length = u32::try_from(out.len() - begin).unwrap_or(u32::MAX);
        out[header + 4..header + 8].copy_from_slice(&length.to_be_bytes());
    }
}

fn append_details(attrs: &[(String, String)], out: &mut Vec<u8>) {
    for (at, (name, value)) in attrs.iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        out.extend(form_urlencoded::byte_serialize(name.as_bytes()).flat_map(str::bytes));
        out.push(b'=');
        out.extend(form_urlencoded::byte_serialize(value.as_bytes()).flat_map(str::bytes));
    }
}

fn append_json(record: &Record<'_>, query: &Query, out: &mut Vec<u8>) {
    let mut text = Vec::new();
    record.text.append_to(&mut text);
    let text = String::from_utf8_lossy(&text);
    out.extend_from_slice(b"{\"Line\":");
    // Writing a string to a vector cannot fail.
    let _ = serde_json::to_writer(&mut *out, &text);
    out.extend_from_slice(b",\"Source\":\"");
    out.extend_from_slice(record.source.name().as_bytes());
    out.extend_from_slice(b"\",\"Timestamp\":\"");
    out.extend_from_slice(record.stamp.as_bytes());
    out.push(b'"');
    if query.details && !record.attrs.is_empty() {
        out.extend_from_slice(b",\"Attributes\":");
        let attrs: std::collections::BTreeMap<_, _> = record.attrs.iter().map(|(k, v)| (k, v)).collect();
        let _ = serde_json::to_writer(&mut *out, &attrs);
    }
    out.extend_from_slice(b"}\n");
}

#[cfg(test)]
mod tests {
    use super::super::record::parse_json;
    use super::*;

    #[test]
    fn the_forms_of_the_real_engine() {
        let line = br#"{"log":"out3\n","stream":"stderr","attrs":{"rec":"1","E":"env val"},"time":"2026-11-21T03:07:38.932588103Z"}"#;
        let record = parse_json(line, true).unwrap();
        let shown = |query: Query, format| {
            let mut out = Vec::new();
            append(&record, &query, format, &mut out);
            String::from_utf8(out).unwrap()
        };
        let plain = Query::default();
        assert_eq!(shown(plain.clone(), Format::Multiplexed), "\u{2}\0\0\0\0\0\0\u{5}out3\n");
        let full = Query { timestamps: true, details: true, ..plain.clone() };
        assert_eq!(shown(full, Format::Raw), "2026-11-21T03:07:38.932588103Z E=env+val,rec=1 out3\n");
        assert_eq!(
            shown(plain, Format::Json),
            "{\"Line\":\"out3\\n\",\"Source\":\"stderr\",\"Timestamp\":\"2026-11-21T03:07:38.932588103Z\"}\n"
        );
    }
}
