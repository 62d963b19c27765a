//! Ours and a floor in turns: what counts is the median over the pairs, because the machine is shared.

use std::time::{Duration, Instant};

use anyhow::Result;
use rustix::time::{ClockId, clock_gettime};

/// What one call cost, microseconds.
#[derive(Clone, Copy)]
struct Cost {
    /// Median of the calls of one turn.
    wall: f64,
    /// Of this whole process, a worker's thread included; mean of the calls of one turn.
    cpu: f64,
}

/// Turns of ours beside turns of a floor.
pub struct Pairs {
    ours: Vec<Cost>,
    floor: Vec<Cost>,
}

impl Pairs {
    /// Runs `rounds` pairs of turns, each of `calls` calls, after a turn each that does not count.
    pub async fn take(
        (rounds, calls): (usize, usize),
        mut ours: impl AsyncFnMut() -> Result<()>,
        mut floor: impl AsyncFnMut() -> Result<()>,
    ) -> Result<Pairs> {
        let mut pairs = Pairs { ours: Vec::new(), floor: Vec::new() };
        turn(calls, &mut ours).await?;
        turn(calls, &mut floor).await?;
        for _ in 0..rounds {
            pairs.floor.push(turn(calls, &mut floor).await?);
            pairs.ours.push(turn(calls, &mut ours).await?);
        }
        Ok(pairs)
    }

    /// One line: both, their ratio and their difference.
    pub fn print(&self, title: &str) {
        let wall = |cost: &Cost| cost.wall;
        let cpu = |cost: &Cost| cost.cpu;
        println!(
            "  {title:52} {:9.1} {:9.1}  x{:<5.2} {:+8.1}   CPU {:9.1} {:9.1}  x{:<5.2} {:+8.1}",
            median(self.floor.iter().map(wall)),
            median(self.ours.iter().map(wall)),
            self.median(|ours, floor| ours.wall / floor.wall),
            self.median(|ours, floor| ours.wall - floor.wall),
            median(self.floor.iter().map(cpu)),
            median(self.ours.iter().map(cpu)),
            self.median(|ours, floor| ours.cpu / floor.cpu),
            self.median(|ours, floor| ours.cpu - floor.cpu),
        );
    }

    fn median(&self, of: impl Fn(&Cost, &Cost) -> f64) -> f64 {
        median(self.ours.iter().zip(&self.floor).map(|(ours, floor)| of(ours, floor)))
    }
}

/// What the columns of [`Pairs::print`] are.
pub fn heading(title: &str) {
    println!("\n{title}, us");
    println!("  {:52} {:>9} {:>9}  {:6} {:>8}   {:>13} {:>9}", "", "floor", "ours", "ratio", "adds", "floor", "ours");
}

async fn turn(calls: usize, call: &mut impl AsyncFnMut() -> Result<()>) -> Result<Cost> {
    let mut times = Vec::with_capacity(calls);
    let before = process_cpu();
    for _ in 0..calls {
        let start = Instant::now();
        call().await?;
        times.push(start.elapsed());
    }
    let cpu = (process_cpu() - before).as_secs_f64() * 1e6 / calls as f64;
    Ok(Cost { wall: median(times.iter().map(|time| time.as_secs_f64() * 1e6)), cpu })
}

/// Processor time of this process so far.
pub fn process_cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.try_into().unwrap_or(0), time.tv_nsec.try_into().unwrap_or(0))
}

/// The middle of the values; not a number when there are none.
pub fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
