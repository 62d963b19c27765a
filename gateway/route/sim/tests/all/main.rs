//! What must hold over thousands of seeds. Each test says its seed when it fails; none of them was chosen.

mod calm;
mod faults;
mod overload;
mod seeds;

use std::sync::atomic::{AtomicU64, Ordering};

/// Calls `check` for every seed of a range, on every core.
fn each(seeds: std::ops::Range<u64>, check: impl Fn(u64) + Sync) {
    let next = AtomicU64::new(seeds.start);
    let cores = std::thread::available_parallelism().map_or(2, |cores| cores.get());
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        break;
                    }
                    check(seed);
                }
            });
        }
    });
}
