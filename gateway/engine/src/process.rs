//! Child processes of this program, and the limits that they put on themselves before they touch anything foreign. What
//! prepares a deployment and what runs a graph out of process both start and end this way.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, Signal, setrlimit};
use serde::{Deserialize, Serialize};

use crate::priority;

/// Variables that a child gets where its parent has them: they say where a GPU and its libraries are.
const PASSED: [&str; 3] = ["LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"];

/// What a child runs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Program {
    /// The file.
    pub path: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Variables beside those that every child gets.
    pub environment: Vec<(OsString, OsString)>,
}

impl Program {
    /// This very program, with a subcommand. Not by its path: an upgrade may have replaced that file.
    pub fn this(subcommand: &str) -> Program {
        Program { path: "/proc/self/exe".into(), arguments: vec![subcommand.into()], environment: Vec::new() }
    }

    /// A command with an empty environment, in a process group of its own, that sees no folder of the parent's. Its
    /// standard streams are the caller's to set.
    ///
    /// The child asks the kernel to die with the *thread* that starts it: that thread must live as long as the child.
    pub fn command(&self) -> Command {
        use std::os::unix::process::CommandExt;
        let mut command = Command::new(&self.path);
        command.arg0("windrose").args(&self.arguments).env_clear().process_group(0).current_dir("/");
        // An arena that is committed as a whole would count as used memory.
        command.env("MIMALLOC_ARENA_EAGER_COMMIT", "0");
        let passed = PASSED.iter().map(OsStr::new).filter_map(|name| Some((name, std::env::var_os(name)?)));
        command.envs(passed).envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }
}

/// What a child may use.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Memory of its own, bytes.
    pub memory: u64,
    /// Addresses, bytes, where that can be bounded: a sandbox reserves terabytes that it may never touch, and so does a
    /// GPU's library.
    pub addresses: Option<u64>,
    /// CPU time, where it is not to live longer.
    pub cpu: Option<Duration>,
    /// Open files.
    pub files: u64,
}

/// The first thing that a child does: from here on it dies with the thread that started it and never gains a privilege, and
/// gives way to who reads requests. Files that came open from the parent are closed, but for the standard streams.
///
/// # Errors
/// As the kernel says.
pub fn enter() -> io::Result<()> {
    close_inherited()?;
    priority::lower();
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    Ok(rustix::thread::set_no_new_privs(true)?)
}

/// Limits this process, before it touches anything foreign.
///
/// # Errors
/// As the kernel says.
pub fn limit(limits: &Limits) -> io::Result<()> {
    let both = |value: u64| Rlimit { current: Some(value), maximum: Some(value) };
    setrlimit(Resource::Core, both(0))?;
    setrlimit(Resource::Nofile, both(limits.files))?;
    setrlimit(Resource::Data, both(limits.memory))?;
    if let Some(addresses) = limits.addresses {
        setrlimit(Resource::As, both(addresses))?;
    }
    if let Some(cpu) = limits.cpu {
        let seconds = cpu.as_secs().max(1);
        setrlimit(Resource::Cpu, Rlimit { current: Some(seconds), maximum: Some(seconds + 1) })?;
    }
    Ok(())
}

/// Ends this process without what an ordinary exit does on the way: it takes down the statics of native libraries, and a
/// run of a graph that still goes on, for a caller who is gone, would lose its engine under its feet.
pub fn leave(status: u8) -> ! {
    let _ = io::Write::flush(&mut io::stdout());
    #[expect(unsafe_code, reason = "there is no safe call that ends a process at once")]
    // SAFETY: it returns to nobody, and leaves everything as it is.
    unsafe {
        libc::_exit(status.into())
    }
}

/// Closes what a parent's native library opened without close-on-exec.
fn close_inherited() -> io::Result<()> {
    #[expect(unsafe_code, reason = "there is no safe call for a range of descriptors")]
    // SAFETY: this process has just started and owns no descriptor but the standard streams, 0 to 2.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, 0u32) };
    // A kernel without the call leaves what its parent left: all that this program opens itself closes on exec.
    match (closed, io::Error::last_os_error()) {
        (0, _) => Ok(()),
        (_, error) if error.raw_os_error() == Some(libc::ENOSYS) => Ok(()),
        (_, error) => Err(error),
    }
}

/// How a process ended, in words: `ended by SIGABRT (it aborted)`.
pub fn ended(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match status.signal() {
        Some(signal) => format!("ended by {}", signal_name(signal)),
        None => format!("ended with status {}", status.code().unwrap_or(-1)),
    }
}

/// Whether a process that wrote this to its standard error ran out of memory.
pub fn out_of_memory(stderr: &str) -> bool {
    stderr.contains("memory allocation of") || stderr.contains("unable to allocate")
}

/// The last line that says something, at most 300 characters of it.
pub fn last_line(stderr: &str) -> String {
    let last = stderr.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("").trim();
    last.chars().filter(|c| !c.is_control()).take(300).collect()
}

fn signal_name(signal: i32) -> String {
    const NAMES: [(i32, &str, &str); 7] = [
        (libc::SIGABRT, "SIGABRT", "it aborted"),
        (libc::SIGSEGV, "SIGSEGV", "it touched memory that is not its own"),
        (libc::SIGBUS, "SIGBUS", "it touched memory that is not there"),
        (libc::SIGILL, "SIGILL", "it ran an illegal instruction"),
        (libc::SIGFPE, "SIGFPE", "it failed in arithmetic"),
        (libc::SIGTRAP, "SIGTRAP", "it trapped"),
        (libc::SIGKILL, "SIGKILL", "the system killed it, probably for memory"),
    ];
    match NAMES.iter().find(|(number, ..)| *number == signal) {
        Some((_, name, meaning)) => format!("{name} ({meaning})"),
        None => format!("signal {signal}"),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    #[test]
    fn ends_have_words() {
        assert_eq!(ended(ExitStatus::from_raw(6)), "ended by SIGABRT (it aborted)");
        assert_eq!(ended(ExitStatus::from_raw(3 << 8)), "ended with status 3");
        assert_eq!(ended(ExitStatus::from_raw(1)), "ended by signal 1");
        assert_eq!(last_line("first\nlast \n\n \n"), "last");
        assert!(last_line("").is_empty() && out_of_memory("memory allocation of 8 bytes failed"));
    }

    #[test]
    fn a_child_sees_nothing_of_its_parent() {
        let shell = Program {
            path: "/bin/sh".into(),
            arguments: vec!["-c".into(), "pwd; env".into()],
            environment: vec![("GIVEN".into(), "1".into())],
        };
        let output = shell.command().output().expect("a shell");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.starts_with("/\n") && text.contains("GIVEN=1"), "{text}");
        assert!(!text.contains("CARGO"), "{text}");
    }
}
