//! Processes that run in turn on a machine with room for all of them, so that each is as slow as it is told to be.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::due;

/// How long it takes until every process has had its turn.
const PERIOD: Duration = Duration::from_millis(12);
/// How often it is looked whether a process has stopped, and for how long.
const LOOK: Duration = Duration::from_micros(50);
const STOPPED: Duration = Duration::from_millis(20);

/// Stops every process but the one whose turn it is. All run again when this is dropped.
pub struct Slices {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// A process and the time that it has.
struct Slice {
    process: Pid,
    turn: Duration,
    /// What it ran beyond its turns so far: a process stops when the kernel comes to it, which may be a millisecond after
    /// it was told to.
    beyond: Duration,
}

// === impl Slices ===

impl Slices {
    /// Begins with these processes, each slower than others by a factor. Whose turn it is can use one core whole, if the
    /// machine has another for everything else.
    pub fn begin(processes: &[Pid], slower: &[u64]) -> Slices {
        let over = Arc::new(AtomicBool::new(false));
        let seen = over.clone();
        let of = |(process, turn): (&Pid, Duration)| Slice { process: *process, turn, beyond: Duration::ZERO };
        let mut slices: Vec<Slice> = processes.iter().zip(turns(slower)).map(of).collect();
        let thread = std::thread::spawn(move || {
            due::sharpen();
            slices.iter().for_each(|slice| signal(slice.process, Signal::STOP));
            while !seen.load(Ordering::Relaxed) {
                slices.iter_mut().for_each(Slice::run);
            }
            slices.iter().for_each(|slice| signal(slice.process, Signal::CONT));
        });
        Slices { over, thread: Some(thread) }
    }
}

/// How long each turn lasts, where a process is slower than others by a factor.
fn turns(slower: &[u64]) -> Vec<Duration> {
    let whole: f64 = slower.iter().map(|&factor| 1.0 / factor as f64).sum();
    slower.iter().map(|&factor| PERIOD.div_f64(factor as f64 * whole)).collect()
}

impl Slice {
    /// Lets the process run for its turn, and waits until it has stopped.
    fn run(&mut self) {
        let Some(left) = self.left() else { return };
        let began = Instant::now();
        signal(self.process, Signal::CONT);
        due::sleep_until(began + left);
        signal(self.process, Signal::STOP);
        while is_running(self.process) && began.elapsed() < left + STOPPED {
            std::thread::sleep(LOOK);
        }
        self.beyond = began.elapsed().saturating_sub(left);
    }

    /// What is left of this turn; `None` where the process has run through it before.
    fn left(&mut self) -> Option<Duration> {
        let left = self.turn.checked_sub(self.beyond).filter(|left| !left.is_zero());
        self.beyond = self.beyond.saturating_sub(self.turn);
        left
    }
}

impl Drop for Slices {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It has nothing to panic about; and if it did, the harness continues the processes itself.
            let _ = thread.join();
        }
    }
}

/// Sends a signal to a process; one that has ended is missed by the requests that it does not answer.
fn signal(process: Pid, signal: Signal) {
    let _ = kill_process(process, signal);
}

/// Whether a process has not stopped yet.
fn is_running(process: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.as_raw_nonzero())).unwrap_or_default();
    // Behind the name, which is in parentheses and may hold anything.
    stat.rsplit_once(") ").is_some_and(|(_, fields)| !fields.starts_with('T'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_fill_the_period_and_are_as_unequal_as_they_are_told() {
        assert_eq!(turns(&[1, 1, 1, 1]), [PERIOD / 4; 4]);
        assert_eq!(turns(&[1, 3, 1, 3]), [PERIOD * 3 / 8, PERIOD / 8, PERIOD * 3 / 8, PERIOD / 8]);
    }

    #[test]
    fn what_was_run_too_long_is_taken_from_the_next_turns() {
        let ms = Duration::from_millis;
        let mut slice = Slice { process: Pid::INIT, turn: ms(2), beyond: ms(3) };
        assert_eq!([slice.left(), slice.left(), slice.left()], [None, Some(ms(1)), Some(ms(2))]);
        slice.beyond = ms(2);
        assert_eq!([slice.left(), slice.left()], [None, Some(ms(2))]);
    }

    #[test]
    fn processes_get_their_shares_and_run_again_in_the_end() {
        let begin = |_| std::process::Command::new("sh").args(["-c", "while :; do :; done"]).spawn().unwrap();
        let mut children = [0, 1].map(begin);
        let processes = [0, 1].map(|index| Pid::from_child(&children[index]));
        let nanos = |process: Pid| -> u64 {
            let text = std::fs::read_to_string(format!("/proc/{}/schedstat", process.as_raw_nonzero())).unwrap();
            text.split(' ').next().unwrap().parse().unwrap()
        };
        let before = processes.map(nanos);
        let slices = Slices::begin(&processes, &[1, 3]);
        std::thread::sleep(Duration::from_secs(1));
        drop(slices);
        let used = [0, 1].map(|index| nanos(processes[index]) - before[index]);
        assert!(processes.into_iter().all(is_running));
        for child in &mut children {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        // Three times as much; and as much as there was, on a machine with other things to do.
        assert!(used[1] > 0 && used[0] > used[1] * 3 / 2, "{used:?}");
    }
}
