//! How a child ended, in words for the person who deploys.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use rustix::process::Signal;
use windrose_engine::process;

use crate::config::Budget;
use crate::config::units::show_size;

/// Why there was no answer from a child that ended with `status` in `stage`, having written `stderr` last. Its own words may
/// name files of this machine, and are for the log.
pub fn ended(stage: Option<&str>, status: ExitStatus, stderr: &str, budget: &Budget) -> String {
    let when = during(stage);
    if process::out_of_memory(stderr) {
        return format!("{when}: wants more memory than the {} of a preparation", show_size(budget.memory));
    }
    if status.signal() == Some(Signal::XCPU.as_raw()) {
        return out_of_cpu(stage, budget);
    }
    let (last, verb) = (process::last_line(stderr), if status.signal().is_some() { "was " } else { "" });
    let how = format!("{when}: the process {verb}{}", process::ended(status));
    if last.is_empty() {
        return how;
    }
    tracing::warn!(stage, said = stderr, "{how}");
    format!("{how}; the gateway's log has its last words")
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
        Some("initialise") => "initialising the module".into(),
        Some("compile") => "compiling the module".into(),
        Some("describe") => "asking the module for its signature".into(),
        Some("test") => "self-test".into(),
        Some(super::BATCHING) => "trying several rows at once".into(),
        Some(stage) => match stage.strip_prefix("graph ") {
            Some(name) => format!("loading graph `{name}`"),
            None => format!("stage {stage}"),
        },
        None => "starting the preparation".into(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const BUDGET: Budget = Budget {
        memory: 1 << 30,
        cpu: Duration::from_secs(2),
        wall: Duration::from_secs(3),
        trial: Duration::from_secs(1),
    };

    #[test]
    fn each_end_has_its_words() {
        let raw = |signal| ExitStatus::from_raw(signal);
        let abort = ended(Some("graph model"), raw(6), "Assertion failed: /srv/secret\n", &BUDGET);
        let when = "loading graph `model`: the process was ended by SIGABRT (it aborted)";
        assert_eq!(abort, format!("{when}; the gateway's log has its last words"));
        assert_eq!(ended(Some("graph model"), raw(6), "\n", &BUDGET), when);
        let memory = ended(Some("test"), raw(6), "memory allocation of 99 bytes failed\n", &BUDGET);
        assert_eq!(memory, "self-test: wants more memory than the 1 GiB of a preparation");
        assert!(ended(Some("compile"), raw(24), "", &BUDGET).contains("2s of CPU time"));
        assert!(too_long(None, &BUDGET).contains("3s"));
    }
}
