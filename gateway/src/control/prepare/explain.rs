//! How a child ended, in words for the person who deploys.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use rustix::process::Signal;

use crate::config::Budget;
use crate::config::units::show_size;

/// Why there was no answer from a child that ended with `status` in `stage`, having written `stderr` last.
pub fn ended(stage: Option<&str>, status: ExitStatus, stderr: &str, budget: &Budget) -> String {
    let when = during(stage);
    if stderr.contains("memory allocation of") || stderr.contains("unable to allocate") {
        return format!("{when}: wants more memory than the {} of a preparation", show_size(budget.memory));
    }
    let last = stderr.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("").trim();
    let last: String = last.chars().take(300).collect();
    let said = if last.is_empty() { String::new() } else { format!("; it said: {last}") };
    match status.signal() {
        Some(signal) if signal == Signal::XCPU.as_raw() => out_of_cpu(stage, budget),
        Some(signal) => format!("{when}: the process was ended by {}{said}", signal_name(signal)),
        None => format!("{when}: the process ended with status {}{said}", status.code().unwrap_or(-1)),
    }
}

/// The child used up its CPU time.
pub fn out_of_cpu(stage: Option<&str>, budget: &Budget) -> String {
    format!("{}: took more than the {:?} of CPU time of a preparation", during(stage), budget.cpu)
}

/// The child did not end in time.
pub fn too_long(stage: Option<&str>, budget: &Budget) -> String {
    format!("{}: took longer than the {:?} of a preparation", during(stage), budget.wall)
}

fn during(stage: Option<&str>) -> String {
    match stage {
        Some("compile") => "compiling the module".into(),
        Some("describe") => "asking the module for its signature".into(),
        Some("test") => "self-test".into(),
        Some(stage) => match stage.strip_prefix("graph ") {
            Some(name) => format!("loading graph `{name}`"),
            None => format!("stage {stage}"),
        },
        None => "starting the preparation".into(),
    }
}

fn signal_name(signal: i32) -> String {
    const NAMES: [(i32, &str, &str); 7] = [
        (6, "SIGABRT", "it aborted"),
        (11, "SIGSEGV", "it touched memory that is not its own"),
        (7, "SIGBUS", "it touched memory that is not there"),
        (4, "SIGILL", "it ran an illegal instruction"),
        (8, "SIGFPE", "it failed in arithmetic"),
        (5, "SIGTRAP", "it trapped"),
        (9, "SIGKILL", "the system killed it, probably for memory"),
    ];
    match NAMES.iter().find(|(number, ..)| *number == signal) {
        Some((_, name, meaning)) => format!("{name} ({meaning})"),
        None => format!("signal {signal}"),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const BUDGET: Budget = Budget { memory: 1 << 30, cpu: Duration::from_secs(2), wall: Duration::from_secs(3) };

    #[test]
    fn each_end_has_its_words() {
        let raw = |signal| ExitStatus::from_raw(signal);
        let abort = ended(Some("graph model"), raw(6), "Assertion failed\n", &BUDGET);
        assert_eq!(
            abort,
            "loading graph `model`: the process was ended by SIGABRT (it aborted); it said: Assertion failed"
        );
        let memory = ended(Some("test"), raw(6), "memory allocation of 99 bytes failed\n", &BUDGET);
        assert_eq!(memory, "self-test: wants more memory than the 1 GiB of a preparation");
        assert!(ended(Some("compile"), raw(24), "", &BUDGET).contains("2s of CPU time"));
        assert!(too_long(None, &BUDGET).contains("3s"));
    }
}
