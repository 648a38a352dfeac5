//! containerd's filter language: which records of a list a client wants.
//!
//! ```text
//! filter   := selector (',' selector)*            all must match
//! selector := path (operator value)?              without operator: the field is there
//! path     := field ('.' field)*                  field: letters, digits and '_', or quoted
//! operator := '==' | '!=' | '~='                  equal, not equal, matches the expression
//! value    := quoted | run of visible characters without ','
//! quoted   := "…" with escapes; after '~=' also /…/ and |…|
//! ```
//! A list of filters matches when any of them does. The empty filter matches everything.
//!
//! Invariant: parsing and matching never panic, whatever the text; what a filter matches depends on the record alone.

use std::borrow::Cow;

use containerd_api::error::{Error, Kind};
use regex_lite::Regex;

mod adaptors;
mod parse;

/// A record that filters can look into.
pub trait Fields {
    /// The field at `path`, if it is there.
    fn field(&self, path: &[String]) -> Option<Cow<'_, str>>;
}

/// Alternatives, any of which may match.
#[derive(Debug, Clone, Default)]
pub struct Filters(Vec<Filter>);

/// Selectors, all of which must match.
#[derive(Debug, Clone, Default)]
struct Filter(Vec<Selector>);

#[derive(Debug, Clone)]
struct Selector {
    path: Vec<String>,
    test: Test,
}

#[derive(Debug, Clone)]
enum Test {
    Present,
    Equal(String),
    NotEqual(String),
    Matches(Regex),
    /// An expression that does not compile matches nothing, as in containerd.
    Never,
}

impl Filters {
    /// # Errors
    /// `InvalidArgument`, saying where the text stops making sense.
    pub fn parse(filters: &[String]) -> Result<Self, Error> {
        filters
            .iter()
            .map(|text| {
                parse::filter(text)
                    .map_err(|err| Error::of(Kind::InvalidArgument, format_args!("filters: {err}")))
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// Whether there is nothing to test.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `record` matches any of the filters; without filters, everything does.
    pub fn matches(&self, record: &impl Fields) -> bool {
        self.0.is_empty()
            || self.0.iter().any(|filter| filter.0.iter().all(|selector| selector.matches(record)))
    }
}

impl Selector {
    fn matches(&self, record: &impl Fields) -> bool {
        let value = record.field(&self.path);
        match &self.test {
            Test::Present => value.is_some(),
            Test::Equal(wanted) => value.is_some_and(|value| value == wanted.as_str()),
            Test::NotEqual(unwanted) => value.unwrap_or_default() != unwanted.as_str(),
            Test::Matches(expression) => expression.is_match(&value.unwrap_or_default()),
            Test::Never => false,
        }
    }
}

/// The entry of a label map at the rest of a path: `labels.a.b` is the label `a.b`.
pub fn label<'a, 'm, M>(labels: M, path: &[String]) -> Option<Cow<'a, str>>
where
    M: IntoIterator<Item = (&'m String, &'a String)>,
{
    if path.is_empty() {
        return None;
    }
    let key = path.join(".");
    labels.into_iter().find(|(name, _)| **name == key).map(|(_, value)| Cow::Borrowed(value.as_str()))
}

/// A text field: there when it is not empty.
pub fn text(value: &str) -> Option<Cow<'_, str>> {
    (!value.is_empty()).then_some(Cow::Borrowed(value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    #[derive(Default)]
    struct Row {
        name: &'static str,
        labels: HashMap<String, String>,
    }

    impl Fields for Row {
        fn field(&self, path: &[String]) -> Option<Cow<'_, str>> {
            match path {
                [one] if one == "name" => text(self.name),
                [one, rest @ ..] if one == "labels" => label(&self.labels, rest),
                _ => None,
            }
        }
    }

    fn row() -> Row {
        let labels = [("foo", "true"), ("very-complex-label", "hello world"), ("a.b", "1"), ("empty", "")];
        Row { name: "bar", labels: labels.map(|(k, v)| (k.to_owned(), v.to_owned())).into() }
    }

    #[test]
    fn what_matches() {
        let row = row();
        for (filter, wanted) in [
            ("", true),
            ("name", true),
            ("nothing", false),
            ("name==bar", true),
            ("name == bar", true),
            ("name==baz", false),
            ("name!=baz", true),
            ("nothing!=x", true),
            ("nothing==x", false),
            ("name~=^b.r$", true),
            ("name~=/a/", true),
            ("name~=|^ba|", true),
            ("name~=\"a\"", true),
            ("name~=*", false),
            ("name==bar,labels.foo", true),
            ("name==bar,labels.bar", false),
            ("labels.foo==true", true),
            ("labels.\"very-complex-label\"==\"hello world\"", true),
            ("labels.\"very-complex-label\"!=\"hello world\"", false),
            ("labels.a.b==1", true),
            ("labels.\"a.b\"==1", true),
            ("labels.empty", true),
            ("labels.empty==\"\"", true),
            ("name==\"b\\x61r\"", true),
            ("name==\"b\\u0061r\"", true),
        ] {
            let filters =
                Filters::parse(&[filter.to_owned()]).unwrap_or_else(|err| panic!("{filter}: {err}"));
            assert_eq!(filters.matches(&row), wanted, "{filter}");
        }
    }

    #[test]
    fn any_of_several_filters_is_enough() {
        let filters = Filters::parse(&["name==x".to_owned(), "labels.foo".to_owned()]).unwrap();
        assert!(filters.matches(&row()));
        assert!(!filters.matches(&Row::default()));
    }

    #[test]
    fn what_does_not_parse() {
        for filter in [
            ",",
            "name,",
            "name==",
            "name=x",
            "name=!x",
            "==x",
            ".name",
            "name.",
            "name==a,,b",
            "name==\"x",
            "na-me==x",
            "name==/x/",
            "name==|x|",
            "name==x y",
            "name\u{0}",
            "name ~ x",
            "\"\\q\"==x",
            "name==\"\\xg\"",
        ] {
            let err = Filters::parse(&[filter.to_owned()]).err().unwrap_or_else(|| panic!("{filter} parsed"));
            assert_eq!(err.kind(), Kind::InvalidArgument, "{filter}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,40}") {
            if let Ok(filters) = Filters::parse(&[text]) {
                let _ = filters.matches(&row());
            }
        }

        #[test]
        fn quoting_reaches_every_label(key in "[ -~]{1,12}", value in "\\PC{0,12}") {
            let row = Row { name: "", labels: [(key.clone(), value.clone())].into() };
            let filter = format!("labels.{key:?}=={}", containerd_api::error::quote(&value));
            let filters = Filters::parse(&[filter]).unwrap();
            prop_assert!(filters.matches(&row));
        }
    }
}
