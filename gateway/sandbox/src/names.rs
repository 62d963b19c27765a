//! Looking names up. The system's resolver occupies a thread until it has answered, which takes as long as the slowest
//! server of names, whether a guest still waits or not: so there are few such threads, and fewer for one program.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;

use tokio::sync::Semaphore;

/// Names that are looked up at a time: of all guests, and of one program's.
const GUESTS: usize = 64;
const PROGRAM: usize = 16;

/// The look-ups of one program. Further ones wait.
#[derive(Debug)]
pub(crate) struct Names {
    program: Arc<Semaphore>,
    guests: Arc<Semaphore>,
}

impl Names {
    /// For a program of a process whose guests share these.
    pub(crate) fn of_program(guests: &Arc<Semaphore>) -> Names {
        Names { program: Arc::new(Semaphore::new(PROGRAM)), guests: guests.clone() }
    }

    /// For all guests of a process.
    pub(crate) fn of_process() -> Arc<Semaphore> {
        Arc::new(Semaphore::new(GUESTS))
    }

    /// The addresses of `name`.
    pub(crate) async fn look_up(&self, name: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        let name = name.to_owned();
        self.run(move || Ok((name.as_str(), port).to_socket_addrs()?.collect())).await
    }

    async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
        // First the program's own, so that its crowd does not stand in the way of others.
        let program = self.program.clone().acquire_owned().await.map_err(io::Error::other)?;
        let guests = self.guests.clone().acquire_owned().await.map_err(io::Error::other)?;
        let working = tokio::task::spawn_blocking(move || {
            let done = work();
            drop((program, guests));
            done
        });
        working.await.map_err(io::Error::other)?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Condvar, Mutex};
    use std::time::Duration;

    /// What a resolver that does not answer keeps waiting.
    #[derive(Default)]
    struct Silence {
        waiting: AtomicUsize,
        is_over: Mutex<bool>,
        ends: Condvar,
    }

    impl Silence {
        fn wait(&self) -> io::Result<()> {
            self.waiting.fetch_add(1, Ordering::SeqCst);
            let mut is_over = self.is_over.lock().unwrap();
            while !*is_over {
                is_over = self.ends.wait(is_over).unwrap();
            }
            Ok(())
        }

        fn end(&self) {
            *self.is_over.lock().unwrap() = true;
            self.ends.notify_all();
        }

        async fn reaches(&self, count: usize) {
            while self.waiting.load(Ordering::SeqCst) < count {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            // Were there no bound, more would have come by now.
            tokio::time::sleep(Duration::from_millis(50)).await;
            assert_eq!(self.waiting.load(Ordering::SeqCst), count);
        }
    }

    #[tokio::test]
    async fn one_program_holds_few_threads_and_what_it_gave_up_counts() {
        let guests = Names::of_process();
        let (greedy, other) = (Arc::new(Names::of_program(&guests)), Names::of_program(&guests));
        let silence = Arc::new(Silence::default());
        let asking: Vec<_> = (0..200)
            .map(|_| {
                let (greedy, silence) = (greedy.clone(), silence.clone());
                tokio::spawn(async move { greedy.run(move || silence.wait()).await })
            })
            .collect();
        silence.reaches(PROGRAM).await;
        // Guests that do not wait any longer free nothing: the resolver is still at it.
        asking.iter().for_each(|asking| asking.abort());
        let again = tokio::spawn({
            let (greedy, silence) = (greedy.clone(), silence.clone());
            async move { greedy.run(move || silence.wait()).await }
        });
        silence.reaches(PROGRAM).await;
        assert!(!other.look_up("localhost", 80).await.unwrap().is_empty());
        silence.end();
        again.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn all_programs_together_hold_few_threads() {
        let guests = Names::of_process();
        let silence = Arc::new(Silence::default());
        for _ in 0..2 * GUESTS / PROGRAM {
            let names = Arc::new(Names::of_program(&guests));
            for _ in 0..PROGRAM {
                let (names, silence) = (names.clone(), silence.clone());
                tokio::spawn(async move { names.run(move || silence.wait()).await });
            }
        }
        silence.reaches(GUESTS).await;
        silence.end();
    }
}
