//! Which of this program's threads get a core first where there are not enough of them.

use std::sync::OnceLock;
use std::thread;

/// How much nicer than the rest of the gateway threads are that run graphs, and children. What reads requests gets a core
/// at once then, and so does a worker that was called for a caller within its share: it has nine times the time of theirs
/// while it shares a core. Further down it would get more; but where the gateway shares a scheduling group with strangers,
/// it would be theirs as well.
const NICER: i32 = 10;

/// Lowers the priority of this thread for good, and of those that it starts from now on. A second time changes nothing, and
/// nothing happens where the system does not allow it.
pub(crate) fn lower() {
    static BASE: OnceLock<i32> = OnceLock::new();
    let own = || rustix::process::getpriority_process(Some(rustix::process::getpid())).unwrap_or(0);
    // To the kernel the main thread has the process's number, and no number is the calling thread.
    let base = *BASE.get_or_init(own);
    let _ = rustix::process::setpriority_process(None, (base + NICER).min(19));
}

/// Does something on a thread of lower priority, which a thread pool that it starts inherits.
pub(crate) fn lowered<T: Send>(work: impl FnOnce() -> T + Send) -> thread::Result<T> {
    thread::scope(|scope| {
        let lowered = move || {
            lower();
            work()
        };
        scope.spawn(lowered).join()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nice() -> i32 {
        rustix::process::getpriority_process(None).expect("a priority")
    }

    #[test]
    fn a_thread_is_lowered_once_and_those_that_it_starts_with_it() {
        let before = nice();
        let (once, twice, started) = lowered(|| {
            let once = nice();
            lower();
            (once, nice(), thread::spawn(nice).join().expect("a thread"))
        })
        .expect("a thread");
        assert_eq!((once, twice, started), ((before + NICER).min(19), once, once));
        assert_eq!(nice(), before, "and no other");
    }
}
