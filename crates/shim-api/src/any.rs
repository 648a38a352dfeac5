//! `google.protobuf.Any` as containerd writes it: the type URL is the bare message name, without a host.
//!
//! Readers accept a host in front (`type.googleapis.com/`), which other protobuf libraries add.

use prost::{DecodeError, Message, Name};
use prost_types::Any;

/// Why an `Any` is not the message that was asked for.
#[derive(Debug)]
pub enum UnpackError {
    /// It holds another type; both names are given.
    WrongType {
        /// The message that was expected.
        expected: String,
        /// The type URL that was found.
        found: String,
    },
    /// The bytes are not a valid encoding of the type.
    Decode(DecodeError),
}

impl std::fmt::Display for UnpackError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            UnpackError::WrongType { expected, found } => write!(f, "expected {expected}, found {found:?}"),
            UnpackError::Decode(_) => write!(f, "malformed message"),
        }
    }
}

impl std::error::Error for UnpackError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            UnpackError::WrongType { .. } => None,
            UnpackError::Decode(err) => Some(err),
        }
    }
}

/// Packs a message; the type URL is its full name, as containerd's clients compare it.
pub fn pack<M: Message + Name>(message: &M) -> Any {
    Any { type_url: M::full_name(), value: message.encode_to_vec() }
}

/// The message name in a type URL, without whatever precedes the last `/` when a host is there.
///
/// JSON-typed values (`types.containerd.io/opencontainers/runtime-spec/1/Spec`) keep their path: only protobuf's own host
/// and an empty one are cut off.
pub fn type_name(any: &Any) -> &str {
    let url = any.type_url.as_str();
    url.strip_prefix("type.googleapis.com/").or_else(|| url.strip_prefix('/')).unwrap_or(url)
}

/// Whether `any` says that it holds an `M`.
pub fn is<M: Name>(any: &Any) -> bool {
    type_name(any) == M::full_name()
}

/// Reads an `M`, if that is what `any` holds.
///
/// # Errors
/// [`UnpackError::WrongType`] for another type, [`UnpackError::Decode`] for bytes that are none.
pub fn unpack<M: Message + Name + Default>(any: &Any) -> Result<M, UnpackError> {
    if !is::<M>(any) {
        return Err(UnpackError::WrongType { expected: M::full_name(), found: any.type_url.clone() });
    }
    M::decode(any.value.as_slice()).map_err(UnpackError::Decode)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::TaskExit;

    #[test]
    fn a_packed_message_has_a_bare_name_and_reads_back() {
        let exit =
            TaskExit { container_id: "c".into(), id: "e".into(), pid: 7, exit_status: 137, exited_at: None };
        let any = pack(&exit);
        assert_eq!(any.type_url, "containerd.events.TaskExit");
        assert_eq!(unpack::<TaskExit>(&any).unwrap(), exit);
    }

    #[test]
    fn a_host_in_the_type_url_is_accepted_and_another_type_is_not() {
        let mut any = pack(&TaskExit::default());
        any.type_url = "type.googleapis.com/containerd.events.TaskExit".into();
        assert!(unpack::<TaskExit>(&any).is_ok());
        assert!(matches!(unpack::<crate::events::TaskDelete>(&any), Err(UnpackError::WrongType { .. })));
        any.value = vec![0xff; 3];
        assert!(matches!(unpack::<TaskExit>(&any), Err(UnpackError::Decode(_))));
    }

    #[test]
    fn names_are_those_containerd_uses() {
        assert_eq!(crate::runc_options::Options::full_name(), "containerd.runc.v1.Options");
        assert_eq!(crate::runtime_options::Options::full_name(), "runtimeoptions.v1.Options");
        assert_eq!(crate::cgroup1::Metrics::full_name(), "io.containerd.cgroups.v1.Metrics");
        assert_eq!(crate::cgroup2::Metrics::full_name(), "io.containerd.cgroups.v2.Metrics");
        assert_eq!(crate::events::TaskOom::full_name(), "containerd.events.TaskOOM");
        assert_eq!(crate::task::CreateTaskRequest::full_name(), "containerd.task.v3.CreateTaskRequest");
    }
}
