//! Fleets and calls for tests.

use std::sync::Arc;

use windrose_route::{
    Call, Digest, Grants, Jurisdiction, MILLISECOND, Nanos, Nature, Price, Random, Replica, Router, Rules, SECOND,
    Serves, Settings, Site, Source,
};

/// What every replica serves unless a test says otherwise.
pub const DIGEST: Digest = [7; 32];

/// A peer with this round trip.
pub fn peer(name: &str, distance: Nanos, jurisdiction: &str) -> Replica {
    let site = Site {
        name: name.into(),
        cloud: name.split('/').next().unwrap_or(name).into(),
        region: name.into(),
        jurisdiction: Jurisdiction::new(jurisdiction).ok(),
        price: Price::default(),
    };
    Replica {
        site: Arc::new(site),
        nature: Nature::Peer,
        serves: Serves::Digest(DIGEST),
        grants: Grants(u64::MAX),
        distance,
        weight: 1,
    }
}

/// A server that is no Windrose.
pub fn foreign(name: &str, distance: Nanos, jurisdiction: &str) -> Replica {
    Replica {
        nature: Nature::Foreign,
        serves: Serves::Unverified,
        grants: Grants::NONE,
        ..peer(name, distance, jurisdiction)
    }
}

/// Four sites: 2, 30, 80 and 180 ms away, the first two in `eu`.
pub fn four() -> Vec<Replica> {
    vec![
        peer("a/1", 2 * MILLISECOND, "eu"),
        peer("b/1", 30 * MILLISECOND, "eu"),
        peer("c/1", 80 * MILLISECOND, "us"),
        peer("d/1", 180 * MILLISECOND, "in"),
    ]
}

pub fn settings() -> Settings {
    Settings { digests: vec![DIGEST], ..Settings::default() }
}

pub fn router(replicas: Vec<Replica>, settings: Settings) -> Router {
    let mut router = Router::new(settings, Random::seeded(1));
    router.update(replicas, 0);
    router
}

/// A call with ten seconds.
pub fn call(now: Nanos) -> Call {
    Call::until(now + 10 * SECOND)
}

/// A call that the manifest binds.
pub fn bound(now: Nanos, allow: &[&str], deny: &[&str]) -> Call {
    let places = |names: &[&str]| names.iter().filter_map(|name| Jurisdiction::new(name).ok()).collect::<Vec<_>>();
    let allow = (!allow.is_empty()).then(|| places(allow));
    Call { rules: Arc::new(Rules::none().and(Source::Manifest, allow, places(deny))), ..call(now) }
}

/// The site's name of a handle.
pub fn name(router: &Router, id: windrose_route::ReplicaId) -> String {
    router.replica(id).map_or_else(String::new, |replica| replica.site.name.to_string())
}
