//! The tasks that follow what changes: files, what is served here, and what peers say.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use http::{Request, StatusCode};
use tokio::time::{self, MissedTickBehavior, interval, sleep, timeout};

use super::catalog::Catalog;
use super::tls::{Identity, modified};
use super::upstream::{Answer, Outgoing, Peer, SendError, Upstream};
use super::wire::Standing;
use super::{Fleet, laws, probe, wire};
use crate::config::fleet::{FleetFile, parse_digest};

/// Where a peer says what it serves; `?after=N` waits until that is another content than N.
pub const CATALOG: &str = "/windrose/catalog";
/// Where a peer says what it knows of the law at other sites; `?of=A,B` are these.
pub const LAWS: &str = "/windrose/laws";
/// Where a peer says how much it has to do.
pub const LOAD: &str = "/windrose/load";

/// How long a peer waits before it answers that nothing has changed.
pub const POLL: Duration = Duration::from_secs(20);

/// The shortest time between two questions to a peer what it serves: gateways of one site may disagree for a moment.
const PACE: Duration = Duration::from_millis(20);
/// How often this gateway looks whether it serves something else.
const LOOK: Duration = Duration::from_millis(50);
/// How often it looks at its files.
const FILES: Duration = Duration::from_secs(1);
/// How often a peer's load is asked for.
const PROBE: Duration = Duration::from_secs(1);
/// For how long what a peer said last is believed after a question was in vain, and none since was answered.
const BELIEVED: Duration = Duration::from_secs(10);
/// The largest answer that is read.
const MAX_ANSWER: usize = 16 << 20;

/// Follows one peer until it is dropped.
pub(super) struct Follower(tokio::task::JoinHandle<()>);

/// Since when every question to a peer what it serves was in vain; `None` where the last one was answered. How long ago
/// that was says nothing: a peer that has no news keeps a question for [`POLL`].
#[derive(Default)]
struct Silence(Option<time::Instant>);

impl Drop for Follower {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Follower {
    pub fn start(fleet: Weak<Fleet>, site: Arc<str>, upstream: Arc<Upstream>) -> Follower {
        Follower(tokio::spawn(async move {
            let Upstream::Peer(peer) = &*upstream else { return };
            tokio::join!(follow_catalog(&fleet, &site, peer), follow_load(&fleet, &site, peer));
        }))
    }
}

/// Follows the files and what is served here.
pub(super) fn start(fleet: &Arc<Fleet>) {
    let weak = Arc::downgrade(fleet);
    tokio::spawn(async move {
        let mut tick = interval(LOOK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let Some(fleet) = weak.upgrade() else { return };
            fleet.take_snapshot();
            fleet.take_changes();
        }
    });
    tokio::spawn(probe::run(Arc::downgrade(fleet)));
    let weak = Arc::downgrade(fleet);
    let mut seen = modified(&fleet.config.file);
    tokio::spawn(async move {
        loop {
            sleep(FILES).await;
            let Some(fleet) = weak.upgrade() else { return };
            let now = modified(&fleet.config.file);
            if now != seen {
                seen = now;
                match FleetFile::load(&fleet.config.file, &fleet.config.site) {
                    Ok(file) => {
                        tracing::info!(sites = file.sites.len(), "the fleet file has changed");
                        fleet.take_file(file);
                    }
                    Err(error) => tracing::error!(%error, "the fleet file is wrong: the one before stays in force"),
                }
            }
            if fleet.identity().is_stale(&fleet.config) {
                match Identity::load(&fleet.config) {
                    Ok(identity) => {
                        tracing::info!("the certificates have changed");
                        fleet.identity.send_replace(Arc::new(identity));
                    }
                    Err(error) => tracing::error!(%error, "the certificates are wrong: those before stay in use"),
                }
            }
        }
    });
}

impl Silence {
    /// One more question was in vain. Whether what the peer said last is believed no more.
    fn goes_on(&mut self) -> bool {
        self.0.get_or_insert_with(time::Instant::now).elapsed() > BELIEVED
    }
}

/// Always knows what a peer serves: asks, and asks again as soon as that was answered.
async fn follow_catalog(fleet: &Weak<Fleet>, site: &str, peer: &Peer) {
    let mut after = None;
    let mut silence = Silence::default();
    loop {
        let path = match after {
            None => CATALOG.to_owned(),
            Some(generation) => format!("{CATALOG}?after={generation}"),
        };
        let asked = tokio::select! {
            asked = timeout(POLL + Duration::from_secs(5), get(peer, &path)) => asked,
            // It answered from another catalogue than the one that is known: whatever became of the question, it is asked anew.
            () = peer.is_stale(), if after.is_some() => {
                after = None;
                continue;
            }
        };
        let catalog = match asked {
            Ok(Ok(bytes)) => Catalog::read(&bytes),
            Ok(Err(_)) | Err(_) => None,
        };
        let catalog = match catalog {
            Some(leaving) if leaving.leaving => Some(of_others(peer).await.unwrap_or(leaving)),
            catalog => catalog,
        };
        let Some(fleet) = fleet.upgrade() else { return };
        match catalog {
            Some(catalog) => {
                silence = Silence::default();
                after = Some(catalog.generation);
                peer.knows(catalog.generation);
                // What it knows of silent sites binds before it is sent anything.
                if let Some(path) = laws::path(&fleet.unheard(), site)
                    && let Ok(Ok(bytes)) = timeout(PROBE, get(peer, &path)).await
                    && let Ok(relayed) = laws::parse(&bytes)
                {
                    fleet.take_relayed(site, relayed);
                }
                fleet.take_offers(site, Some(catalog));
                drop(fleet);
                sleep(PACE).await;
            }
            None => {
                after = None;
                if silence.goes_on() {
                    fleet.take_offers(site, None);
                }
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// What a gateway of a site serves that does not leave, where one does.
async fn of_others(peer: &Peer) -> Option<Catalog> {
    let ask = async |connection| {
        let request = Request::get(format!("https://windrose{CATALOG}")).body(()).ok()?;
        let (head, body) = Peer::send_over(connection, request, Outgoing::Whole(Arc::default())).await.ok()?;
        let bytes = read(Answer::Peer(body)).await.ok().filter(|_| head.status.is_success())?;
        Catalog::read(&bytes).filter(|catalog| !catalog.leaving)
    };
    let mut asked: FuturesUnordered<_> = peer.connections().into_iter().map(|one| timeout(PROBE, ask(one))).collect();
    while let Some(answer) = asked.next().await {
        if let Ok(Some(catalog)) = answer {
            return Some(catalog);
        }
    }
    None
}

/// Asks a peer for its load, and measures how far it is.
async fn follow_load(fleet: &Weak<Fleet>, site: &str, peer: &Peer) {
    loop {
        let started = Instant::now();
        if let Ok(Ok(bytes)) = timeout(PROBE, get(peer, LOAD)).await {
            let took = started.elapsed();
            let Some(fleet) = fleet.upgrade() else { return };
            fleet.take_round_trip(site, took);
            if let Ok(standing) = serde_json::from_slice(&bytes) {
                take_standing(&fleet, site, &standing);
                peer.speaks_of(standing.generation);
            }
        }
        sleep(PROBE).await;
    }
}

fn take_standing(fleet: &Fleet, site: &str, standing: &Standing) {
    let table = fleet.table();
    for (model, version, digest, load) in &standing.ready {
        let Some(found) = table.find(model, Some(version)) else { continue };
        let place = found.places.get(site).and_then(|place| place.digest);
        // Of another digest than the table has: the catalogue follows.
        if place.is_none() || place != parse_digest(digest) {
            continue;
        }
        let now = found.replicas.now();
        let mut router = found.replicas.lock();
        if let Some(id) = router.find(site) {
            router.report(id, wire::load_from(*load), now);
        }
    }
}

/// Gets something small from a peer.
pub(super) async fn get(peer: &Peer, path: &str) -> Result<Bytes, SendError> {
    let request = Request::get(format!("https://windrose{path}")).body(()).map_err(|_| SendError::Connect)?;
    let (status, bytes) = fetch(peer, request, Outgoing::Whole(Arc::default())).await?;
    if status.is_success() { Ok(bytes) } else { Err(SendError::Refused) }
}

/// Sends a request to a peer and reads its answer whole.
pub(super) async fn fetch(peer: &Peer, request: Request<()>, body: Outgoing) -> Result<(StatusCode, Bytes), SendError> {
    let (head, body) = peer.send(request, body).await?;
    Ok((head.status, read(Answer::Peer(body)).await?))
}

/// The whole of an answer that is not too long.
pub(super) async fn read(mut body: Answer) -> Result<Bytes, SendError> {
    let mut all = Vec::new();
    while let Some(piece) = body.data().await {
        all.extend_from_slice(&piece?);
        if all.len() > MAX_ANSWER {
            return Err(SendError::Reset);
        }
    }
    Ok(all.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_peer_is_believed_from_the_first_question_in_vain_on() {
        let mut silence = Silence::default();
        // However long the last answer took: a quiet peer answers every twenty seconds.
        time::advance(POLL).await;
        assert!(!silence.goes_on(), "the first question in vain");
        time::advance(BELIEVED).await;
        assert!(!silence.goes_on(), "until then it is believed");
        time::advance(Duration::from_millis(1)).await;
        assert!(silence.goes_on());
        // An answer, and it begins anew.
        silence = Silence::default();
        time::advance(2 * BELIEVED).await;
        assert!(!silence.goes_on());
    }
}
