//! Typed payloads: how messages are named inside a `google.protobuf.Any`.
//!
//! containerd writes the bare type name (`containerd.events.TaskExit`), without the `type.googleapis.com/` that Protocol Buffers suggest.
//! Readers compare what follows the last slash, so both forms are understood.

use prost::{Message, Name};
use prost_types::Any;

/// The type name of a JSON runtime specification.
pub const SPEC: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";
/// The type name of a JSON process specification, as `Exec` carries it.
pub const PROCESS: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";
/// The type name of JSON resource limits on Linux, as `Update` carries them.
pub const LINUX_RESOURCES: &str = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";

/// Wraps `message` under its bare type name.
pub fn pack<M: Message + Name>(message: &M) -> Any {
    Any { type_url: M::full_name(), value: message.encode_to_vec() }
}

/// Whether `any` says it is an `M`, with or without a domain.
pub fn is<M: Name>(any: &Any) -> bool {
    let name = any.type_url.rsplit('/').next().unwrap_or_default();
    name == M::full_name()
}

/// The message inside, or `None` when it is of another type.
///
/// # Errors
/// The payload does not decode as an `M` although its name says so.
pub fn unpack<M: Message + Name + Default>(any: &Any) -> Result<Option<M>, prost::DecodeError> {
    if is::<M>(any) { M::decode(any.value.as_slice()).map(Some) } else { Ok(None) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::TaskExit;

    #[test]
    fn a_payload_is_named_without_a_domain_and_read_with_either() {
        let exit = TaskExit { container_id: "c".into(), exit_status: 7, ..TaskExit::default() };
        let mut any = pack(&exit);
        assert_eq!(any.type_url, "containerd.events.TaskExit");
        assert_eq!(unpack::<TaskExit>(&any).unwrap(), Some(exit.clone()));
        any.type_url = format!("type.googleapis.com/{}", any.type_url);
        assert_eq!(unpack::<TaskExit>(&any).unwrap(), Some(exit));
        assert_eq!(unpack::<crate::event::TaskOom>(&any).unwrap(), None);
    }
}
