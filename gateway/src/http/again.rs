//! A future that wakes itself, as an HTTP/1.1 connection does whenever its own service asks for a piece of the body, is
//! polled again at once. The runtime would queue it behind all others, and wake an idle thread that might take it.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

/// How often in a row; after that it is others' turn.
const ROUNDS: usize = 8;

/// Nobody polls it, and nobody has woken it.
const IDLE: u8 = 0;
/// It is polled now.
const POLLED: u8 = 1;
/// It was woken since its last poll began.
const WOKEN: u8 = 2;

/// A future that is polled again when it wakes itself.
pub(super) struct Again<F> {
    future: F,
    signal: Arc<Signal>,
    /// The signal's own.
    waker: Waker,
}

struct Signal {
    state: AtomicU8,
    /// The task that it runs in.
    task: Mutex<Option<Waker>>,
}

impl<F: Future + Unpin> Again<F> {
    pub fn new(future: F) -> Again<F> {
        let signal = Arc::new(Signal { state: AtomicU8::new(IDLE), task: Mutex::new(None) });
        Again { future, waker: signal.clone().into(), signal }
    }
}

impl<F: Future + Unpin> Future for Again<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = &mut *self;
        this.signal.runs_in(cx.waker());
        for _ in 0..ROUNDS {
            this.signal.state.store(POLLED, Ordering::SeqCst);
            if let Poll::Ready(output) = Pin::new(&mut this.future).poll(&mut Context::from_waker(&this.waker)) {
                return Poll::Ready(output);
            }
            let idle = this.signal.state.compare_exchange(POLLED, IDLE, Ordering::SeqCst, Ordering::SeqCst);
            if idle.is_ok() {
                return Poll::Pending;
            }
        }
        // Woken as it is, nobody else will wake the task.
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl Signal {
    fn runs_in(&self, task: &Waker) {
        let mut slot = self.task.lock().unwrap_or_else(PoisonError::into_inner);
        if !slot.as_ref().is_some_and(|old| old.will_wake(task)) {
            *slot = Some(task.clone());
        }
    }
}

impl Wake for Signal {
    fn wake(self: Arc<Signal>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Signal>) {
        // Where it is polled now, whoever does that looks again; where it was woken before, the task knows.
        if self.state.swap(WOKEN, Ordering::SeqCst) == IDLE {
            let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).clone();
            if let Some(task) = task {
                task.wake();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[derive(Default)]
    struct Task(AtomicUsize);

    impl Wake for Task {
        fn wake(self: Arc<Task>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn who_wakes_itself_is_polled_again_and_the_task_not_woken() {
        let task = Arc::<Task>::default();
        let waker = Waker::from(task.clone());
        let mut left = 5;
        let mut future = Again::new(poll_fn(|cx| {
            left -= 1;
            cx.waker().wake_by_ref();
            if left == 0 { Poll::Ready(()) } else { Poll::Pending }
        }));
        assert!(Pin::new(&mut future).poll(&mut Context::from_waker(&waker)).is_ready());
        assert_eq!(task.0.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn who_never_stops_lets_others_run() {
        let task = Arc::<Task>::default();
        let waker = Waker::from(task.clone());
        let mut polls = 0;
        let mut future = Again::new(poll_fn(|cx| {
            polls += 1;
            cx.waker().wake_by_ref();
            Poll::<()>::Pending
        }));
        for turn in 1..4 {
            assert!(Pin::new(&mut future).poll(&mut Context::from_waker(&waker)).is_pending());
            assert_eq!(task.0.load(Ordering::SeqCst), turn);
        }
        drop(future);
        assert_eq!(polls, 3 * ROUNDS);
    }

    #[test]
    fn whoever_wakes_it_later_wakes_the_task_once() {
        let (first, second) = (Arc::<Task>::default(), Arc::<Task>::default());
        let mut inner = None;
        let mut future = Again::new(poll_fn(|cx| {
            inner = Some(cx.waker().clone());
            Poll::<()>::Pending
        }));
        for task in [&first, &second] {
            assert!(Pin::new(&mut future).poll(&mut Context::from_waker(&Waker::from(task.clone()))).is_pending());
        }
        drop(future);
        let inner = inner.expect("it was polled");
        inner.wake_by_ref();
        inner.wake();
        assert_eq!(
            (first.0.load(Ordering::SeqCst), second.0.load(Ordering::SeqCst)),
            (0, 1),
            "the task that it is in now"
        );
    }

    /// No wake is lost, whenever it comes: the future waits for each of many that another thread sends.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn no_wake_is_lost() {
        let (sender, mut receiver) = tokio::sync::mpsc::channel::<u32>(1);
        let sent = tokio::spawn(async move {
            for number in 0..100_000 {
                sender.send(number).await.expect("it is received");
            }
        });
        let received = Box::pin(async move {
            let mut next = 0;
            while let Some(number) = receiver.recv().await {
                assert_eq!(number, next);
                next += 1;
            }
            next
        });
        assert_eq!(Again::new(received).await, 100_000);
        sent.await.expect("all were sent");
    }
}
