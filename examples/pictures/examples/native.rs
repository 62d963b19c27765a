//! The helpers compiled for this machine: reads lines `HELPER TIMES`, answers each with the nanoseconds of processor time
//! that one call took. The picture's file is its argument. What `make bench` compares the sandbox with.

use std::io::{BufRead, Write};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("usage: native PICTURE")?;
    let file = std::fs::read(path)?;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let (helper, times) = line.split_once(' ').ok_or("a line is not HELPER TIMES")?;
        let times: usize = times.parse()?;
        let timed = |times| -> Result<u128, Box<dyn std::error::Error>> {
            let start = used()?;
            pictures::work(&file, helper, times).map_err(|error| error.message().to_owned())?;
            Ok((used()? - start).as_nanos())
        };
        // The picture is decoded once in any case: the difference is that of the calls.
        let nothing = timed(0)?;
        let all = timed(times)?;
        println!("{}", all.saturating_sub(nothing) / times.max(1) as u128);
        std::io::stdout().flush()?;
    }
    Ok(())
}

/// Processor time of this process so far.
fn used() -> Result<Duration, std::num::TryFromIntError> {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Ok(Duration::new(time.tv_sec.try_into()?, time.tv_nsec.try_into()?))
}
