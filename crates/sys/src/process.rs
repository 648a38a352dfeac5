//! Starting programs that outlive us.

#![allow(unsafe_code, reason = "setsid between fork and exec needs a pre_exec hook")]

use std::os::unix::process::CommandExt;
use std::process::Command;

/// Makes the command's process leader of a session of its own, so that neither our terminal nor our end reaches it.
pub fn detach(command: &mut Command) -> &mut Command {
    // SAFETY: setsid is async-signal-safe and touches no memory.
    unsafe {
        command.pre_exec(|| {
            rustix::process::setsid()?;
            Ok(())
        })
    }
}
