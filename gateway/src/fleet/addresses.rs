//! Where a site is: the addresses that its entry gives as numbers, and those that its names have now. Names are looked up
//! again on an interval, and a little earlier where a connection could not be made; never for a request.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::sleep;

/// How often names are looked up.
const EVERY: Duration = Duration::from_secs(5);
/// How soon after the last time, where somebody asks for it.
const SOON: Duration = Duration::from_millis(500);
/// Addresses of one site that are used.
const MOST: usize = 64;
/// Lookups at the same time, over all sites: each holds a thread until the system's resolver gives up.
static LOOKUPS: Semaphore = Semaphore::const_new(16);

/// What the addresses of a site are, now and later. Names are followed until the last clone is dropped.
#[derive(Clone, Debug)]
pub struct Addresses {
    found: watch::Receiver<Arc<[SocketAddr]>>,
    wanted: Arc<Notify>,
    follows: bool,
}

/// A site's entry, taken apart.
struct Written {
    numbers: Vec<SocketAddr>,
    names: Vec<String>,
}

// === impl Addresses ===

impl Addresses {
    /// The addresses of this list of `host:port`. Begins to follow its names, if there are any.
    pub fn of(site: &str, written: &[String]) -> Addresses {
        Addresses::with(site, written, look_up)
    }

    fn with<F>(site: &str, written: &[String], look_up: impl Fn(String) -> F + Send + Sync + 'static) -> Addresses
    where
        F: Future<Output = std::io::Result<Vec<SocketAddr>>> + Send + 'static,
    {
        let written = Written::of(written);
        let (sender, found) = watch::channel(written.with(&[]));
        let (wanted, follows) = (Arc::new(Notify::new()), !written.names.is_empty());
        if follows {
            tokio::spawn(follow(site.to_owned(), written, sender, wanted.clone(), look_up));
        }
        Addresses { found, wanted, follows }
    }

    /// The addresses as they are now, in an order that depends on nothing else; [`Addresses::changed`] waits for others.
    pub fn now(&mut self) -> Arc<[SocketAddr]> {
        self.found.borrow_and_update().clone()
    }

    /// The one whose turn it is, in turns without end.
    pub fn at(&self, turn: usize) -> Option<SocketAddr> {
        let found = self.found.borrow();
        found.get(turn.checked_rem(found.len())?).copied()
    }

    /// Whether this address is one of them.
    pub fn have(&self, address: &SocketAddr) -> bool {
        self.found.borrow().contains(address)
    }

    /// Waits until they are others than [`Addresses::now`] last gave.
    pub async fn changed(&mut self) {
        if self.found.changed().await.is_err() {
            // Numbers stay what they are.
            std::future::pending().await
        }
    }

    /// Whether they can become others at all.
    pub fn can_change(&self) -> bool {
        self.follows
    }

    /// One of them cannot be reached: perhaps the names have others by now.
    pub fn doubt(&self) {
        self.wanted.notify_one();
    }
}

impl Written {
    fn of(list: &[String]) -> Written {
        let mut written = Written { numbers: Vec::new(), names: Vec::new() };
        for entry in list {
            match entry.parse() {
                Ok(number) => written.numbers.push(number),
                Err(_) => written.names.push(entry.clone()),
            }
        }
        written
    }

    /// The numbers, and what the names have.
    fn with(&self, named: &[Vec<SocketAddr>]) -> Arc<[SocketAddr]> {
        let mut all: Vec<SocketAddr> = self.numbers.iter().chain(named.iter().flatten()).copied().collect();
        all.sort_unstable();
        all.dedup();
        all.truncate(MOST);
        all.into()
    }
}

/// Looks the names up again and again until nobody wants to know.
async fn follow<F>(
    site: String,
    written: Written,
    found: watch::Sender<Arc<[SocketAddr]>>,
    wanted: Arc<Notify>,
    look_up: impl Fn(String) -> F,
) where
    F: Future<Output = std::io::Result<Vec<SocketAddr>>>,
{
    let mut known: Vec<Vec<SocketAddr>> = vec![Vec::new(); written.names.len()];
    let rest = || async {
        sleep(SOON).await;
        tokio::select! { () = sleep(EVERY - SOON) => {}, () = wanted.notified() => {} }
    };
    loop {
        let answers = join_all(written.names.iter().cloned().map(&look_up));
        let answers = tokio::select! { answers = answers => answers, () = found.closed() => return };
        for ((name, known), answer) in written.names.iter().zip(&mut known).zip(answers) {
            match answer {
                Ok(addresses) if !addresses.is_empty() => *known = addresses,
                // What a name had last holds until somebody says otherwise: the resolver's outage is not the site's.
                Ok(_) => tracing::debug!(site, name, "a site's name has no address"),
                Err(error) => tracing::debug!(site, name, %error, "a site's name could not be looked up"),
            }
        }
        let all = written.with(&known);
        found.send_if_modified(|before| {
            let other = *before != all;
            if other {
                tracing::info!(site, addresses = ?all, "the addresses of a site have changed");
                *before = all;
            }
            other
        });
        tokio::select! { () = rest() => {}, () = found.closed() => return }
    }
}

async fn look_up(name: String) -> std::io::Result<Vec<SocketAddr>> {
    let _permit = LOOKUPS.acquire().await;
    Ok(tokio::net::lookup_host(name).await?.collect())
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::time::{Instant, timeout};

    use super::*;

    /// A resolver whose answers the test sets.
    #[derive(Clone, Default)]
    struct Zone {
        answers: Arc<Mutex<Option<Vec<&'static str>>>>,
        asked: Arc<AtomicUsize>,
    }

    impl Zone {
        fn set(&self, answers: Option<&[&'static str]>) {
            *self.answers.lock().unwrap() = answers.map(<[_]>::to_vec);
        }

        fn follow(&self, written: &[&str]) -> Addresses {
            let zone = self.clone();
            let written: Vec<String> = written.iter().map(|&entry| entry.to_owned()).collect();
            Addresses::with("site", &written, move |_| {
                zone.asked.fetch_add(1, Ordering::Relaxed);
                let answers = zone.answers.lock().unwrap().clone();
                std::future::ready(answers.map(|a| all(&a)).ok_or_else(|| std::io::Error::other("no resolver")))
            })
        }
    }

    fn all(addresses: &[&str]) -> Vec<SocketAddr> {
        addresses.iter().map(|address| address.parse().unwrap()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn names_are_followed_and_numbers_stay() {
        let zone = Zone::default();
        zone.set(Some(&["10.0.0.2:80", "10.0.0.1:80", "10.0.0.1:80"]));
        let mut addresses = zone.follow(&["10.0.0.9:80", "site.test:80"]);
        assert_eq!(*addresses.now(), *all(&["10.0.0.9:80"]));
        addresses.changed().await;
        assert_eq!(*addresses.now(), *all(&["10.0.0.1:80", "10.0.0.2:80", "10.0.0.9:80"]));
        let before = Instant::now();
        zone.set(Some(&["10.0.0.3:80"]));
        addresses.changed().await;
        assert_eq!(*addresses.now(), *all(&["10.0.0.3:80", "10.0.0.9:80"]));
        assert!(before.elapsed() <= EVERY + SOON, "{:?}", before.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_name_had_last_outlives_its_resolver() {
        let zone = Zone::default();
        zone.set(Some(&["10.0.0.1:80"]));
        let mut addresses = zone.follow(&["site.test:80"]);
        addresses.changed().await;
        let known = addresses.now();
        for broken in [None, Some(&[][..])] {
            zone.set(broken);
            assert!(timeout(EVERY * 5, addresses.changed()).await.is_err());
            assert!(addresses.have(&known[0]));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn lookups_are_bounded_whoever_asks_for_them_and_end_with_the_last_who_wants_to_know() {
        let zone = Zone::default();
        zone.set(Some(&["10.0.0.1:80"]));
        let addresses = zone.follow(&["site.test:80"]);
        sleep(EVERY * 10 + SOON).await;
        let calm = zone.asked.swap(0, Ordering::Relaxed);
        assert!((9..=12).contains(&calm), "{calm}");
        for _ in 0..1_000 {
            addresses.doubt();
            sleep(EVERY / 1_000).await;
        }
        let doubted = zone.asked.swap(0, Ordering::Relaxed);
        assert!((5..=12).contains(&doubted), "{doubted}");
        drop(addresses);
        sleep(EVERY * 2).await;
        assert!(zone.asked.load(Ordering::Relaxed) <= 1);
    }

    #[tokio::test(start_paused = true)]
    async fn numbers_alone_are_never_looked_up() {
        let zone = Zone::default();
        let mut addresses = zone.follow(&["10.0.0.1:80", "[::1]:80"]);
        assert!(!addresses.can_change() && addresses.now().len() == 2);
        assert!(timeout(EVERY * 5, addresses.changed()).await.is_err());
        assert_eq!(zone.asked.load(Ordering::Relaxed), 0);
    }
}
