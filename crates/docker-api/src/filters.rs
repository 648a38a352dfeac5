//! The `filters` parameter: `{"label":{"a=b":true}}`, or the older `{"label":["a=b"]}`.

use std::collections::BTreeMap;

use serde_json::Value;

/// Parsed filters: for each key the values asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filters(BTreeMap<String, Vec<String>>);

/// The text is in neither form.
#[derive(Debug, PartialEq, Eq)]
pub struct InvalidFilter;

impl Filters {
    /// Parses the parameter; empty means no filter.
    ///
    /// # Errors
    /// The text is not a JSON object of objects or arrays.
    pub fn parse(text: &str) -> Result<Self, InvalidFilter> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        let value: Value = serde_json::from_str(text).map_err(|_| InvalidFilter)?;
        let Value::Object(map) = value else {
            return if value.is_null() { Ok(Self::default()) } else { Err(InvalidFilter) };
        };
        let mut filters = BTreeMap::new();
        for (key, values) in map {
            let values = match values {
                Value::Object(set) => set
                    .into_iter()
                    .map(|(value, on)| on.as_bool().map(|on| (value, on)).ok_or(InvalidFilter))
                    .collect::<Result<Vec<_>, _>>()?
                    .into_iter()
                    .filter_map(|(value, on)| on.then_some(value))
                    .collect(),
                Value::Array(list) => list
                    .into_iter()
                    .map(|value| value.as_str().map(str::to_owned).ok_or(InvalidFilter))
                    .collect::<Result<_, _>>()?,
                Value::Null => Vec::new(),
                _ => return Err(InvalidFilter),
            };
            filters.insert(key, values);
        }
        Ok(Self(filters))
    }

    /// The first key that is not in `known`.
    pub fn unknown<'a>(&'a self, known: &[&str]) -> Option<&'a str> {
        self.0.keys().map(String::as_str).find(|key| !known.contains(key))
    }

    /// The values of `key`; empty if it was not given.
    pub fn get(&self, key: &str) -> &[String] {
        self.0.get(key).map_or(&[], Vec::as_slice)
    }

    /// Whether `key` was given with at least one value.
    pub fn has(&self, key: &str) -> bool {
        !self.get(key).is_empty()
    }

    /// Whether nothing was asked for.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `value` is one of the values of `key`, or `key` was not given.
    pub fn exact(&self, key: &str, value: &str) -> bool {
        let wanted = self.get(key);
        wanted.is_empty() || wanted.iter().any(|want| want == value)
    }

    /// Whether all `key` filters of the form `name` or `name=value` hold for `labels`.
    pub fn labels<'a>(&self, key: &str, labels: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.get(key).iter().all(|want| match want.split_once('=') {
            None => labels(want).is_some(),
            Some((name, value)) => labels(name) == Some(value),
        })
    }

    /// A boolean filter. `None` when it was not given, `Err` with the value when it is no boolean or contradicts itself.
    ///
    /// # Errors
    /// The text of the offending values.
    pub fn bool(&self, key: &str) -> Result<Option<bool>, String> {
        let values = self.get(key);
        if values.is_empty() {
            return Ok(None);
        }
        let truth = |value: &String| match value.as_str() {
            "1" | "true" => Some(true),
            "0" | "false" => Some(false),
            _ => None,
        };
        match values.iter().map(truth).collect::<Option<Vec<_>>>() {
            Some(all) if all.windows(2).all(|pair| pair[0] == pair[1]) => Ok(all.first().copied()),
            _ => Err(format!("[{}]", values.join(" "))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read() {
        let new = Filters::parse(r#"{"label":{"a=b":true,"c":false}}"#).unwrap();
        let old = Filters::parse(r#"{"label":["a=b"]}"#).unwrap();
        assert_eq!(new, old);
        assert!(new.labels("label", |name| (name == "a").then_some("b")));
        assert!(!new.labels("label", |_| None));
    }

    #[test]
    fn anything_else_is_refused() {
        for text in ["[]", "x", r#"{"a":1}"#, r#"{"a":[1]}"#, r#"{"a":{"b":1}}"#] {
            assert_eq!(Filters::parse(text), Err(InvalidFilter), "{text}");
        }
    }

    #[test]
    fn booleans() {
        assert_eq!(Filters::parse(r#"{"dangling":["1"]}"#).unwrap().bool("dangling"), Ok(Some(true)));
        assert_eq!(Filters::parse(r#"{"dangling":["x"]}"#).unwrap().bool("dangling"), Err("[x]".into()));
    }
}
