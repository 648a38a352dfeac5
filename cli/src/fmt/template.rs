//! `--format`: Go templates over JSON values, and lists as tables.
//!
//! Objects keep their raw JSON beside their fields, so that `{{json .}}` shows fields in the order in which the engine sent them.

use std::collections::HashMap;

use gtmpl::Value as Go;
use gtmpl::{Context, FuncError};
use serde_json::Value;

use super::table;

/// Under this key an object keeps its own JSON text. No field of the engine's can have this name.
const RAW: &str = "\0raw";

/// The function that every value passes on its way out: it prints lists and maps as Go's `fmt` does.
const SHOW: &str = "goShow";

/// A template, parsed.
pub struct Template(gtmpl::Template);

impl Template {
    /// Parses a template with Docker's functions.
    ///
    /// # Errors
    /// The text for the user.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut template = gtmpl::Template::default();
        for (name, function) in [
            ("json", json as gtmpl::Func),
            ("join", join),
            ("lower", lower),
            ("upper", upper),
            ("title", title),
            ("split", split),
            ("println", println),
            ("truncate", truncate),
            ("pad", pad),
            (SHOW, show),
        ] {
            template.add_func(name, function);
        }
        // What Go's scanner would make of \t and \n on the command line.
        let text = text.replace("\\t", "\t").replace("\\n", "\n");
        template.parse(shown(&text)).map_err(|err| format!("template parsing error: {err}"))?;
        Ok(Self(template))
    }

    /// Fills the template in.
    ///
    /// # Errors
    /// The text for the user.
    pub fn render(&self, value: &Value) -> Result<String, String> {
        let shown =
            self.0.render(&Context::from(convert(value))).map_err(|err| format!("template: {err}"))?;
        Ok(shown)
    }
}

fn convert(value: &Value) -> Go {
    match value {
        Value::Null => Go::NoValue,
        Value::Bool(b) => Go::Bool(*b),
        Value::Number(n) => match (n.as_i64(), n.as_u64(), n.as_f64()) {
            (Some(n), _, _) => Go::from(n),
            (_, Some(n), _) => Go::from(n),
            (_, _, n) => Go::from(n.unwrap_or(f64::NAN)),
        },
        Value::String(s) => Go::String(s.clone()),
        Value::Array(items) => Go::Array(items.iter().map(convert).collect()),
        Value::Object(map) => {
            let mut fields: HashMap<String, Go> =
                map.iter().map(|(key, value)| (key.clone(), convert(value))).collect();
            if fields.contains_key("Propagation") && fields.contains_key("Destination") {
                // A mount's fields are there for a template also where the engine has nothing to say in them.
                for name in ["Name", "Driver", "Source"] {
                    fields.entry(name.into()).or_insert_with(|| Go::String(String::new()));
                }
            }
            fields.insert(RAW.into(), Go::String(value.to_string()));
            Go::Object(fields)
        }
    }
}

fn unconvert(value: &Go) -> Value {
    match value {
        Go::NoValue | Go::Nil | Go::Function(_) => Value::Null,
        Go::Bool(b) => Value::Bool(*b),
        Go::String(s) => Value::String(s.clone()),
        Go::Number(_) => serde_json::from_str(&value.to_string()).unwrap_or(Value::Null),
        Go::Array(items) => Value::Array(items.iter().map(unconvert).collect()),
        Go::Object(map) | Go::Map(map) => match map.get(RAW) {
            Some(Go::String(raw)) => serde_json::from_str(raw).unwrap_or(Value::Null),
            _ => Value::Object(map.iter().map(|(key, value)| (key.clone(), unconvert(value))).collect()),
        },
    }
}

/// Sends the value of each plain action through [`SHOW`]; control actions, comments and assignments stay as they are.
fn shown(template: &str) -> String {
    const CONTROL: &[&str] =
        &["if", "else", "end", "range", "with", "define", "template", "block", "break", "continue"];
    let mut out = String::new();
    let mut rest = template;
    while let Some(start) = rest.find("{{") {
        let Some(end) = rest[start..].find("}}").map(|end| start + end) else { break };
        out.push_str(&rest[..start]);
        let inside = &rest[start + 2..end];
        let (open, inside) = inside.strip_prefix("- ").map_or(("{{", inside), |inside| ("{{- ", inside));
        let (inside, close) = inside.strip_suffix(" -").map_or((inside, "}}"), |inside| (inside, " -}}"));
        let word = inside.split_whitespace().next().unwrap_or_default();
        let plain =
            !word.is_empty() && !CONTROL.contains(&word) && !word.starts_with("/*") && !inside.contains(":=");
        if plain {
            out.push_str(&format!("{open}{SHOW} ({inside}){close}"));
        } else {
            out.push_str(&format!("{open}{inside}{close}"));
        }
        rest = &rest[end + 2..];
    }
    out.push_str(rest);
    out
}

fn show(args: &[Go]) -> Result<Go, FuncError> {
    let value = args.first().ok_or_else(|| FuncError::AtLeastXArgs(SHOW.into(), 1))?;
    Ok(Go::String(go_text(value)))
}

/// Go's `%v`: `[a b]`, `map[k:v]`, `<no value>`.
fn go_text(value: &Go) -> String {
    match value {
        Go::NoValue | Go::Nil => "<no value>".into(),
        Go::String(text) => text.clone(),
        Go::Array(items) => format!("[{}]", items.iter().map(go_text).collect::<Vec<_>>().join(" ")),
        Go::Object(map) | Go::Map(map) => {
            let mut keys: Vec<&String> = map.keys().filter(|key| *key != RAW).collect();
            keys.sort();
            let pairs: Vec<String> =
                keys.iter().map(|key| format!("{key}:{}", go_text(&map[*key]))).collect();
            format!("map[{}]", pairs.join(" "))
        }
        other => other.to_string(),
    }
}

fn text(args: &[Go], at: usize) -> Result<String, FuncError> {
    match args.get(at) {
        Some(Go::String(text)) => Ok(text.clone()),
        Some(other) => Ok(other.to_string()),
        None => Err(FuncError::AtLeastXArgs("function".into(), at + 1)),
    }
}

fn json(args: &[Go]) -> Result<Go, FuncError> {
    let value = args.first().ok_or_else(|| FuncError::AtLeastXArgs("json".into(), 1))?;
    Ok(Go::String(unconvert(value).to_string()))
}

fn join(args: &[Go]) -> Result<Go, FuncError> {
    let Some(Go::Array(items)) = args.first() else { return Ok(Go::String(String::new())) };
    let parts: Vec<String> = items
        .iter()
        .map(|item| if let Go::String(text) = item { text.clone() } else { item.to_string() })
        .collect();
    Ok(Go::String(parts.join(&text(args, 1)?)))
}

fn lower(args: &[Go]) -> Result<Go, FuncError> {
    Ok(Go::String(text(args, 0)?.to_lowercase()))
}

fn upper(args: &[Go]) -> Result<Go, FuncError> {
    Ok(Go::String(text(args, 0)?.to_uppercase()))
}

fn title(args: &[Go]) -> Result<Go, FuncError> {
    let text = text(args, 0)?;
    let mut chars = text.chars();
    Ok(Go::String(chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())))
}

fn split(args: &[Go]) -> Result<Go, FuncError> {
    let (text, separator) = (text(args, 0)?, text(args, 1)?);
    Ok(Go::Array(text.split(separator.as_str()).map(|part| Go::String(part.to_owned())).collect()))
}

fn println(args: &[Go]) -> Result<Go, FuncError> {
    let parts: Vec<String> = (0..args.len()).map(|at| text(args, at)).collect::<Result<_, _>>()?;
    Ok(Go::String(format!("{}\n", parts.join(" "))))
}

fn truncate(args: &[Go]) -> Result<Go, FuncError> {
    let length = text(args, 1)?.parse().unwrap_or(usize::MAX);
    Ok(Go::String(text(args, 0)?.chars().take(length).collect()))
}

fn pad(args: &[Go]) -> Result<Go, FuncError> {
    let (text_, before, after) = (text(args, 0)?, text(args, 1)?, text(args, 2)?);
    let spaces = |count: String| " ".repeat(count.parse().unwrap_or(0));
    Ok(Go::String(if text_.is_empty() {
        text_
    } else {
        format!("{}{text_}{}", spaces(before), spaces(after))
    }))
}

/// A list of objects and how it is shown unless the user says otherwise.
pub struct List {
    /// Field and heading of every column that can be asked for.
    pub columns: &'static [(&'static str, &'static str)],
    /// The fields of the table that is shown by default.
    pub shown: &'static [&'static str],
    /// The rows: objects with all fields.
    pub rows: Vec<Value>,
}

impl List {
    /// Prints the list as `--format` asks (`table`, `table TEMPLATE`, `json`, `TEMPLATE`, or nothing).
    ///
    /// # Errors
    /// The template's fault, for the user.
    pub fn print(&self, format: &str) -> Result<String, String> {
        match format {
            "" | "table" => {
                let fields: Vec<String> =
                    self.shown.iter().map(|field| format!("{{{{.{field}}}}}")).collect();
                self.print(&format!("table {}", fields.join("\t")))
            }
            "json" => Ok(self.rows.iter().map(|row| format!("{row}\n")).collect()),
            _ => match format.strip_prefix("table ") {
                Some(template) => {
                    let headings: serde_json::Map<String, Value> = self
                        .columns
                        .iter()
                        .map(|(field, heading)| ((*field).to_owned(), Value::String((*heading).to_owned())))
                        .collect();
                    // Functions other than headings' own (json, truncate, …) must not change the headings.
                    let plain = headings_only(template);
                    let heading = Template::parse(&plain)?.render(&Value::Object(headings))?;
                    let template = Template::parse(template)?;
                    let mut rows = vec![cells(&heading)];
                    for row in &self.rows {
                        rows.push(cells(&template.render(row)?));
                    }
                    Ok(table::align(&rows))
                }
                None => {
                    let template = Template::parse(format)?;
                    self.rows.iter().map(|row| template.render(row).map(|line| format!("{line}\n"))).collect()
                }
            },
        }
    }
}

fn cells(line: &str) -> Vec<String> {
    line.split('\t').map(str::to_owned).collect()
}

/// `{{json .ID}}` → `{{.ID}}`: in the heading's row only the field counts.
fn headings_only(template: &str) -> String {
    let mut out = String::new();
    let mut rest = template;
    while let Some(start) = rest.find("{{") {
        let Some(end) = rest[start..].find("}}").map(|end| start + end) else { break };
        out.push_str(&rest[..start]);
        let inside = &rest[start + 2..end];
        match inside.split_whitespace().find(|word| word.starts_with('.') && word.len() > 1) {
            Some(field) => out.push_str(&format!("{{{{{field}}}}}")),
            None => out.push_str(&rest[start..end + 2]),
        }
        rest = &rest[end + 2..];
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn templates_fill_in() {
        let value = json!({"State": {"Pid": 7, "Running": true}, "Names": ["a", "b"], "Empty": null});
        let render = |text: &str| Template::parse(text).unwrap().render(&value).unwrap();
        assert_eq!(render("{{.State.Pid}} {{.State.Running}}"), "7 true");
        assert_eq!(render("{{json .State}}"), r#"{"Pid":7,"Running":true}"#);
        assert_eq!(render("{{range .Names}}<{{.}}>{{end}}"), "<a><b>");
        assert_eq!(render("{{join .Names \",\"}}"), "a,b");
        assert_eq!(render("{{index .Names 1}}"), "b");
        assert_eq!(render("{{.Names}} {{.State}} {{.Empty}}"), "[a b] map[Pid:7 Running:true] <no value>");
        assert_eq!(render("{{with .State}}{{.Pid}}{{end}}{{/* nothing */}}"), "7");
        assert_eq!(render("{{if .State.Running}}up{{else}}down{{end}}"), "up");
        let bind = json!({"Mounts": [{"Type": "bind", "Destination": "/x", "Propagation": "rprivate"}]});
        let names = Template::parse("{{range .Mounts}}<{{.Name}}>{{json .}}{{end}}").unwrap();
        assert_eq!(
            names.render(&bind).unwrap(),
            r#"<>{"Type":"bind","Destination":"/x","Propagation":"rprivate"}"#
        );
    }

    #[test]
    fn lists_are_tables() {
        let list = List {
            columns: &[("ID", "CONTAINER ID"), ("Names", "NAMES")],
            shown: &["ID", "Names"],
            rows: vec![json!({"ID": "abc", "Names": "x"})],
        };
        assert_eq!(list.print("").unwrap(), "CONTAINER ID   NAMES\nabc            x\n");
        assert_eq!(list.print("{{.Names}}").unwrap(), "x\n");
        assert_eq!(list.print("table {{json .Names}}").unwrap(), "NAMES\n\"x\"\n");
        assert_eq!(list.print("json").unwrap(), "{\"ID\":\"abc\",\"Names\":\"x\"}\n");
    }
}
