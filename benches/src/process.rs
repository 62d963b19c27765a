//! What a process under test costs: CPU time and resident memory, read from the kernel.

use std::time::Duration;

use anyhow::{Context, Result};

/// CPU time, user and system, that a process has used so far, threads that have ended included.
pub fn cpu_time(pid: u32) -> Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).context("the process under test is gone")?;
    // The second field, in parentheses, may hold spaces; utime and stime are the 12th and 13th after it.
    let (_, rest) = stat.rsplit_once(')').context("no process name in stat")?;
    let mut fields = rest.split_whitespace().skip(11);
    let mut ticks = || fields.next().and_then(|f| f.parse::<u64>().ok()).context("no CPU time in stat");
    let total = ticks()? + ticks()?;
    // Linux reports in hundredths of a second to every process, whatever its own tick is.
    Ok(Duration::from_millis(total * 10))
}

/// Resident memory of a process, bytes.
pub fn resident(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kilobytes: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kilobytes * 1024)
}
