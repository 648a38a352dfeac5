//! What a daemon keeps of memory it does not need now: freed heap, and code that only its start ran.
//!
//! Invariant: only pages that the kernel can read again from the program's file are let go of; whoever needs one gets it back unasked.

use std::ffi::c_void;
use std::io;
use std::time::Duration;

/// How much processor time a look may find used since the one before it for the daemon to be called idle.
const IDLE: Duration = Duration::from_millis(20);
/// How much must have been used since memory was last given back for it to be worth the while (to page it in
/// again takes less than one). What only the start needed is always worth it.
const WORTH: Duration = Duration::from_millis(25);

/// How long to wait between two looks.
const PAUSE: Duration = Duration::from_secs(2);
/// The same until the start is over.
const PAUSE_AT_START: Duration = Duration::from_millis(250);

/// Limits the number of heaps that threads spread over. Fewer heaps give freed memory back sooner and contend more; daemons that are idle most
/// of the time want few. A C library without such heaps ignores it.
pub fn limit_arenas(count: i32) {
    #[cfg(target_env = "gnu")]
    {
        #[allow(unsafe_code, reason = "mallopt(3) is not in rustix")]
        // SAFETY: mallopt takes two numbers and touches the allocator's own settings only.
        unsafe {
            libc::mallopt(libc::M_ARENA_MAX, count);
        }
    }
    #[cfg(not(target_env = "gnu"))]
    let _ = count;
}

/// Gives freed memory back to the kernel now; for after work that needed a lot.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    {
        #[allow(unsafe_code, reason = "malloc_trim(3) is not in rustix")]
        // SAFETY: malloc_trim takes a number and gives back pages nobody uses.
        unsafe {
            libc::malloc_trim(0);
        }
    }
}

/// Lets the pages of the program's file that were not written to go; gives how many bytes they span. Those that are still needed come back from the
/// page cache one by one.
///
/// # Errors
/// The table of mappings cannot be read.
pub fn release_code() -> io::Result<usize> {
    let program = std::fs::read_link("/proc/self/exe")?;
    let table = std::fs::read_to_string("/proc/self/smaps")?;
    let mut released = 0;
    for (start, length) in clean_mappings(&table, &program.to_string_lossy()) {
        #[allow(unsafe_code, reason = "madvise(2) of mappings we have no reference to")]
        // SAFETY: the range is a private mapping of a file that has no page of its own (`Anonymous: 0`) and that this program does not make
        // writable, so what is read there afterwards is what was there before.
        let done = unsafe { libc::madvise(start as *mut c_void, length, libc::MADV_DONTNEED) };
        if done == 0 {
            released += length;
        }
    }
    Ok(released)
}

/// Address and length of each mapping of `program` that is not writable and has no page that differs from the file.
fn clean_mappings(table: &str, program: &str) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut current = None;
    for line in table.lines() {
        let mut words = line.split_ascii_whitespace();
        let Some(first) = words.next() else { continue };
        if first == "Anonymous:" {
            if words.next() == Some("0") {
                found.extend(current);
            }
            current = None;
        } else if let Some((start, end)) = first.split_once('-') {
            let number = |text| usize::from_str_radix(text, 16).ok();
            let ours =
                words.next().is_some_and(|access| access.starts_with('r') && access[1..].starts_with('-'))
                    && words.nth(3) == Some(program);
            current = match (number(start), number(end)) {
                (Some(start), Some(end)) if ours && end > start => Some((start, end - start)),
                _ => None,
            };
        }
    }
    found
}

/// Gives memory back when a daemon that has worked comes to rest. [`Rest::look`] is called again and again, with [`Rest::pause`] between.
#[derive(Debug, Default)]
pub struct Rest {
    seen: Duration,
    released: Option<Duration>,
}

impl Rest {
    /// When to look next: often until what only the start needed was given back.
    pub fn pause(&self) -> Duration {
        if self.released.is_some() { PAUSE } else { PAUSE_AT_START }
    }

    /// Looks at the processor time used; gives memory back if there was work and there is none now. Whether it did.
    pub fn look(&mut self) -> bool {
        let used = processor_time();
        let rests = self.rests(used);
        if rests {
            trim();
            // Without it the pages stay: no harm.
            let _ = release_code();
        }
        rests
    }

    fn rests(&mut self, used: Duration) -> bool {
        let idle = used.saturating_sub(self.seen) < IDLE;
        self.seen = used;
        let rests = idle && self.released.is_none_or(|before| used.saturating_sub(before) >= WORTH);
        if rests {
            self.released = Some(used);
        }
        rests
    }
}

/// Processor time of all threads of this process.
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_given_back_and_still_there() {
        assert!(release_code().unwrap() > 0);
        // Whatever ran here before runs again.
        assert!(release_code().unwrap() > 0);
        trim();
    }

    #[test]
    fn written_and_foreign_mappings_are_left_alone() {
        let mapping = |range: &str, access: &str, path: &str, anonymous: u32| {
            format!(
                "{range} {access} 00000000 fe:00 1 {path}\nRss: 8 kB\nAnonymous: {anonymous} kB\nVmFlags: rd\n"
            )
        };
        let table = [
            mapping("1000-3000", "r--p", "/bin/d", 0),
            mapping("3000-8000", "r-xp", "/bin/d", 0),
            mapping("8000-9000", "r--p", "/bin/d", 4),
            mapping("9000-a000", "rw-p", "/bin/d", 0),
            mapping("a000-b000", "r-xp", "/lib/libc.so", 0),
            "b000-c000 rw-p 00000000 00:00 0\nAnonymous: 0 kB\n".to_owned(),
        ];
        assert_eq!(clean_mappings(&table.concat(), "/bin/d"), [(0x1000, 0x2000), (0x3000, 0x5000)]);
    }

    #[test]
    fn memory_is_given_back_after_the_start_and_once_after_work() {
        let mut rest = Rest::default();
        assert_eq!(rest.pause(), PAUSE_AT_START);
        let at = Duration::from_millis;
        let looks: Vec<bool> = [30, 35, 40, 150, 155, 160, 172, 175].map(|used| rest.rests(at(used))).into();
        assert_eq!(rest.pause(), PAUSE);
        assert_eq!(looks, [false, true, false, false, true, false, false, false]);
    }
}
