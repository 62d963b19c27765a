//! Points in time, kept by threads of their own, since a runtime's timers have a grain of a millisecond.

use std::num::NonZeroU64;
use std::time::Instant;

use tokio::sync::mpsc;

/// The numbers of these points, from 0 on, each when it has come.
pub fn each(times: impl Iterator<Item = Instant> + Send + 'static) -> mpsc::Receiver<u32> {
    let (due, numbers) = mpsc::channel(1024);
    std::thread::spawn(move || {
        sharpen();
        for (number, time) in (0..).zip(times) {
            sleep_until(time);
            if due.blocking_send(number).is_err() {
                return;
            }
        }
    });
    numbers
}

/// Has this thread woken as exactly as the kernel can.
pub fn sharpen() {
    // The default of 50 microseconds would be added to every sleep; where it stays, figures are worse by it.
    let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1_000));
}

/// Blocks this thread.
pub fn sleep_until(time: Instant) {
    std::thread::sleep(time.saturating_duration_since(Instant::now()));
}
