//! The law where requests are dispatched: from the headers of a client to the attempts that the loop begins, nothing ever
//! goes where a rule forbids it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use http::header::{HeaderMap, HeaderValue};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use windrose_engine::default_tenant;
use windrose_route::{
    Call, Grants, Hedging, Jurisdiction, MILLISECOND, Nature, Policy, Price, Probe, Purpose, Random, Reason, Replica,
    Router, Rules, SECOND, Serves, Settings, Site, Source, Verdict,
};

use super::replicas::{Outcome, Replicas, run};
use crate::fleet::wire::{Forwarded, wishes};

const DIGEST: [u8; 32] = [7; 32];
const PLACES: [&str; 3] = ["eu", "us", "ch"];
const CASES: u32 = 600;

/// Names as a client or an operator may write them.
type Names = Vec<&'static str>;

/// What binds a request.
#[derive(Clone, Debug)]
struct Law {
    /// Of manifest and settings: what is allowed where there is a list, and what is denied.
    written: [(Option<Names>, Names); 2],
    /// Of the client's headers.
    allow: Option<Names>,
    deny: Names,
}

/// What an attempt comes to, and after how many milliseconds.
type Fate = (u8, u64);

/// A fleet, a request and its luck.
#[derive(Clone, Debug)]
struct Case {
    replicas: Vec<Replica>,
    policy: Policy,
    seed: u64,
    law: Law,
    /// Repeatable, replayable, verified only, not to be hedged.
    wishes: [bool; 4],
    hedging: Hedging,
    /// How probes of replicas ended before.
    probes: Vec<(usize, Probe)>,
    fates: Vec<Fate>,
}

/// What happened over all cases, so that a test of nothing shows.
#[derive(Debug, Default)]
struct Seen {
    hedges: u32,
    retries: u32,
    unlawful: u32,
}

fn names(most: usize) -> impl Strategy<Value = Names> {
    prop::collection::vec(prop::sample::select(vec!["eu", "EU", " us", "us", "ch ", "Ch"]), 0..most)
}

fn law() -> impl Strategy<Value = Law> {
    let layer = || (prop::option::weighted(0.3, names(4)), names(2));
    let written = [layer(), layer()];
    (written, prop::option::of(names(4)), names(2)).prop_map(|(written, allow, deny)| Law { written, allow, deny })
}

fn replica() -> impl Strategy<Value = Replica> {
    let place = prop::sample::select(vec!["eu", "us", "ch", ""]);
    let nature = prop::sample::select(vec![Nature::Peer, Nature::Peer, Nature::Local, Nature::Foreign]);
    (place, nature, 0u64..100, 0u32..3, any::<bool>()).prop_map(|(place, nature, far, weight, right)| Replica {
        site: Arc::new(Site {
            name: "".into(),
            cloud: "c".into(),
            region: "r".into(),
            jurisdiction: Jurisdiction::new(place).ok(),
            price: Price::default(),
        }),
        nature,
        serves: match nature {
            Nature::Foreign => Serves::Unverified,
            _ => Serves::Digest(if right { DIGEST } else { [9; 32] }),
        },
        grants: Grants::NONE,
        distance: far * MILLISECOND,
        weight,
    })
}

fn case() -> impl Strategy<Value = Case> {
    let policy = vec![Policy::Fastest, Policy::Cheapest { p99: 50 * MILLISECOND }, Policy::LocalFirst, Policy::Weights];
    let hedging = vec![Hedging::Never, Hedging::Withdrawable, Hedging::Anywhere, Hedging::Anywhere];
    let probe = prop::sample::select(vec![Probe::Right, Probe::Wrong, Probe::Failed]);
    let request = (law(), prop::array::uniform4(prop::bool::weighted(0.7)), prop::sample::select(hedging));
    let luck = (prop::collection::vec((0usize..10, probe), 0..8), prop::collection::vec((0u8..13, 0u64..400), 1..10));
    let fleet = (prop::collection::vec(replica(), 0..10), prop::sample::select(policy), any::<u64>());
    (fleet, request, luck).prop_map(|((mut replicas, policy, seed), (law, wishes, hedging), (probes, fates))| {
        for (at, replica) in replicas.iter_mut().enumerate() {
            replica.site = Arc::new(Site { name: format!("site/{at}").into(), ..(*replica.site).clone() });
        }
        let [repeatable, replayable, unverified, hedged] = wishes;
        let wishes = [repeatable, replayable, !unverified, !hedged];
        Case { replicas, policy, seed, law, wishes, hedging, probes, fates }
    })
}

// === impl Law ===

impl Law {
    /// As a client writes them: several headers of one name, and lists in each.
    fn headers(&self, case: &Case) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let mut say = |name: &'static str, list: &Names| {
            for pair in list.chunks(2) {
                headers.append(name, HeaderValue::from_str(&pair.join(",")).unwrap());
            }
        };
        match &self.allow {
            Some(list) if list.is_empty() => say("windrose-allow", &vec![""]),
            Some(list) => say("windrose-allow", list),
            None => {}
        }
        say("windrose-deny", &self.deny);
        if case.wishes[2] {
            headers.insert("windrose-verified", HeaderValue::from_static("true"));
        }
        if case.wishes[3] {
            headers.insert("windrose-hedge", HeaderValue::from_static("never"));
        }
        headers
    }

    fn rules(&self) -> Rules {
        let read = |list: &Names| list.iter().map(|name| Jurisdiction::new(name).unwrap()).collect::<Vec<_>>();
        let sources = [Source::Fleet, Source::Tenant];
        self.written.iter().zip(sources).fold(Rules::none(), |rules, ((allow, deny), source)| {
            rules.and(source, allow.as_ref().map(read), read(deny))
        })
    }

    /// Whether data may go to a site, found out in another way than the router does.
    fn permits(&self, at: Option<&Jurisdiction>) -> bool {
        let own = (self.allow.clone(), self.deny.clone());
        let layers = || self.written.iter().chain([&own]);
        let set = |list: &Names| list.iter().map(|name| name.trim().to_lowercase()).collect::<BTreeSet<_>>();
        let mut places: BTreeSet<String> = PLACES.iter().map(|name| name.to_string()).collect();
        for (allow, deny) in layers() {
            let allowed = allow.as_ref().map_or_else(|| places.clone(), set);
            places = places.intersection(&allowed).cloned().collect();
            places = places.difference(&set(deny)).cloned().collect();
        }
        match at {
            Some(at) => places.contains(at.as_str()),
            None => layers().all(|(allow, deny)| allow.is_none() && deny.is_empty()),
        }
    }
}

fn outcome(kind: u8) -> Outcome<()> {
    let verdict = match kind {
        0 => return Outcome::ConnectFailed,
        1 => return Outcome::Refused,
        2 => return Outcome::Reset,
        3 => return Outcome::Cut,
        4 => Verdict::Failed,
        5 => Verdict::Overloaded { until: None },
        6 => Verdict::NotHere,
        7 => Verdict::Module,
        9 => Verdict::TooLate,
        11 => Verdict::Unlawful,
        12 => Verdict::Graph,
        _ => Verdict::Answer,
    };
    Outcome::Answer { verdict, whole: (kind != 8).then_some(1), answer: () }
}

/// Sends a case's request through the loop, and checks each attempt.
async fn dispatched(case: Case, seen: &mut Seen) -> Result<(), TestCaseError> {
    let settings = Settings { policy: case.policy, digests: vec![DIGEST], ..Settings::default() };
    let mut router = Router::new(settings, Random::seeded(case.seed));
    router.update(case.replicas.clone(), 0);
    let ids: Vec<_> = router.ids().collect();
    for (at, probe) in &case.probes {
        ids.get(*at).into_iter().for_each(|id| (0..3).for_each(|_| router.probed(*id, *probe, 0)));
    }
    let replicas = Replicas::new(router);
    let wished = wishes(&case.law.headers(&case)).map_err(|error| TestCaseError::fail(error.message))?;
    let rules = Arc::new(case.law.rules().and(Source::Request, wished.allow, wished.deny));
    let [repeatable, replayable, ..] = case.wishes;
    let call = Call {
        rules: rules.clone(),
        repeatable,
        replayable,
        hedging: if wished.unhedged { Hedging::Never } else { case.hedging },
        verified: wished.verified,
        ..Call::until(replicas.now() + 2 * SECOND)
    };
    let mut asked = Vec::new();
    let ended = run(&replicas, call, None, |id, attempt, purpose| {
        asked.push((replicas.lock().replica(id).cloned(), purpose));
        let (kind, after) = case.fates[usize::from(attempt) % case.fates.len()];
        Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(after)).await;
            outcome(kind)
        })
    });
    let unlawful = matches!(ended.await, Err(lost) if matches!(lost.failure.reason, Reason::Law(_)));
    for (replica, purpose) in &asked {
        let site = replica.as_ref().map(|replica| &replica.site);
        let at = site.and_then(|site| site.jurisdiction.as_ref());
        prop_assert!(site.is_some() && case.law.permits(at), "{purpose:?} to {site:?}");
        prop_assert!(travels(&rules).permit(at).is_ok(), "a peer would not have known the law");
        seen.hedges += u32::from(*purpose == Purpose::Hedge);
        seen.retries += u32::from(*purpose == Purpose::Retry);
    }
    prop_assert!(!unlawful || asked.is_empty());
    let mut all = case.replicas.iter();
    let nowhere = all.all(|replica| !case.law.permits(replica.site.jurisdiction.as_ref()));
    prop_assert!(!nowhere || asked.is_empty());
    seen.unlawful += u32::from(unlawful);
    Ok(())
}

/// The rules as a peer reads them.
fn travels(rules: &Arc<Rules>) -> Arc<Rules> {
    let told = Forwarded {
        remaining: Duration::from_secs(1),
        digest: DIGEST,
        rules: rules.clone(),
        attempt: 0,
        tenant: default_tenant(),
        probe: false,
    };
    let mut headers = HeaderMap::new();
    told.stamp(&mut headers);
    let read = Forwarded::take(&mut headers).unwrap();
    assert_eq!(&read.rules, rules);
    read.rules
}

#[test]
fn no_attempt_of_any_kind_goes_where_a_rule_forbids_it() {
    let mut seen = Seen::default();
    let cell = std::cell::RefCell::new(&mut seen);
    let mut runner = TestRunner::new(Config::with_cases(CASES));
    let ran = runner.run(&case(), |case| {
        let clock = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        clock.block_on(dispatched(case, &mut cell.borrow_mut()))
    });
    ran.unwrap_or_else(|error| panic!("{error}"));
    // Random cases: far below what they come to, and enough to show that each was tried.
    assert!(seen.hedges > 0 && seen.retries > 20 && seen.unlawful > 20, "{seen:?}");
}
