//! Which events a client of `GET /events` wants.
//!
//! Values of one key are alternatives, keys are all required. Keys the engine does not know are ignored, as Docker does.

use docker_api::filters::Filters;
use oci::Reference;

use super::{Event, Subject};

/// Keys whose values are ids, names, or the beginning of one. As in Docker the key does not say of what: `container=web` finds a network
/// `web-net` too, and clients add `type` where that matters.
const OBJECTS: [&str; 9] =
    ["daemon", "container", "plugin", "volume", "network", "node", "service", "secret", "config"];

/// The `filters` parameter, applied to events.
#[derive(Clone, Debug, Default)]
pub struct EventFilter(Filters);

impl EventFilter {
    /// Takes the parameter as parsed.
    pub fn new(filters: Filters) -> Self {
        Self(filters)
    }

    /// Whether `event` is wanted.
    pub fn matches(&self, event: &Event) -> bool {
        let attribute = |name: &str| event.attributes.get(name).map(String::as_str);
        self.action(event)
            && self.0.exact("type", event.subject.as_str())
            && self.0.exact("scope", "local")
            && self.0.labels("label", attribute)
            && OBJECTS.iter().all(|key| self.object(key, event))
            && self.image(event)
    }

    /// `health_status`, `exec_create` and `exec_start` carry their details in the action (`exec_create: sh`).
    fn action(&self, event: &Event) -> bool {
        let wanted = self.0.get("event");
        wanted.is_empty()
            || wanted.iter().any(|want| {
                event.action == *want
                    || event.action.strip_prefix(want.as_str()).is_some_and(|rest| rest.starts_with(':'))
            })
    }

    /// By the beginning of an id or a name.
    fn object(&self, key: &str, event: &Event) -> bool {
        let wanted = self.0.get(key);
        let name = event.attributes.get("name").map_or("", String::as_str);
        wanted.is_empty()
            || wanted.iter().any(|want| {
                let want = want.strip_prefix('/').unwrap_or(want);
                event.id.starts_with(want) || name.starts_with(want)
            })
    }

    /// Events of an image, and of containers made from it; with or without tag.
    fn image(&self, event: &Event) -> bool {
        let wanted = self.0.get("image");
        if wanted.is_empty() {
            return true;
        }
        let name = match event.subject {
            Subject::Image => event.attributes.get("name"),
            Subject::Container => event.attributes.get("image"),
            _ => return false,
        };
        let candidates = [Some(&event.id), name].into_iter().flatten();
        candidates
            .into_iter()
            .any(|candidate| wanted.iter().any(|want| want == candidate || *want == without_tag(candidate)))
    }
}

fn without_tag(image: &str) -> String {
    Reference::parse(image).map_or_else(|_| image.to_owned(), |reference| reference.familiar_name())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(subject: Subject, action: &str, id: &str, attributes: &[(&str, &str)]) -> Event {
        Event {
            sequence: 1,
            subject,
            action: action.into(),
            id: id.into(),
            attributes: attributes.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect(),
            time_nano: 1,
            happened_nano: None,
        }
    }

    #[test]
    fn filters_choose() {
        let start = event(
            Subject::Container,
            "start",
            "abcdef",
            &[("image", "rec/bb:1"), ("name", "web"), ("tier", "front")],
        );
        let exec = event(Subject::Container, "exec_create: sh -c x", "abcdef", &[("name", "web")]);
        let pull = event(Subject::Image, "pull", "rec/bb:1", &[("name", "rec/bb")]);
        let rows = [
            (r#"{}"#, [true, true, true]),
            (r#"{"type":["container"]}"#, [true, true, false]),
            (r#"{"event":["exec_create"]}"#, [false, true, false]),
            (r#"{"event":["exec"]}"#, [false, false, false]),
            (r#"{"event":["start","pull"]}"#, [true, false, true]),
            (r#"{"container":["web"]}"#, [true, true, false]),
            (r#"{"container":["abc"]}"#, [true, true, false]),
            (r#"{"container":["/web"]}"#, [true, true, false]),
            (r#"{"container":["we"]}"#, [true, true, false]),
            (r#"{"container":["rec"]}"#, [false, false, true]),
            (r#"{"image":["rec/bb"]}"#, [true, false, true]),
            (r#"{"image":["rec/bb:1"]}"#, [true, false, true]),
            (r#"{"label":["tier"]}"#, [true, false, false]),
            (r#"{"label":["tier=back"]}"#, [false, false, false]),
            (r#"{"scope":["local"],"bogus":["x"]}"#, [true, true, true]),
            (r#"{"scope":["swarm"]}"#, [false, false, false]),
            (r#"{"daemon":["x"]}"#, [false, false, false]),
        ];
        for (text, want) in rows {
            let filter = EventFilter::new(Filters::parse(text).unwrap());
            assert_eq!([&start, &exec, &pull].map(|event| filter.matches(event)), want, "{text}");
        }
    }
}
