//! Tells when the kernel killed a process of a container for want of memory.

use std::rc::Rc;

use sys::cgroup::{Groups, OomNotice};
use tokio::io::Interest;
use tokio::task::JoinHandle;

/// Calls `killed` with the count of kills so far each time it has grown, until the group is gone or the task is aborted. `None` where the group cannot be
/// watched: the count is then read when the container ends.
pub fn watch(groups: &Groups, killed: Rc<dyn Fn(u64)>) -> Option<JoinHandle<()>> {
    let notice = OomNotice::watch(groups).ok()?;
    let notice = crate::readiness::register_for(notice, Interest::READABLE).ok()?;
    let groups = groups.clone();
    Some(tokio::task::spawn_local(async move {
        let mut seen = 0;
        while let Ok(mut ready) = notice.readable().await {
            while notice.get_ref().take().is_ok() {}
            ready.clear_ready();
            let count = groups.oom_kills();
            if count > seen {
                seen = count;
                killed(count);
            } else if count == 0 && groups.processes().is_err() {
                return;
            }
        }
    }))
}
