//! Plans: the four sites of the proof, its faults, fleets to compare rules on, and random ones.

use std::sync::Arc;

use windrose_route::{
    Digest, Grants, Hedging, Jurisdiction, MILLISECOND, Nanos, Nature, Price, Random, Replica, Rules, SECOND, Serves,
    Settings, Site, Source,
};

use crate::fault::{Fault, Kind};
use crate::site::Model;
use crate::world::{Brain, Plan};

/// What every site serves.
const DIGEST: Digest = [1; 32];

const MS: Nanos = MILLISECOND;

/// When the faults of [`fault`] begin, and when they end.
pub const FAULT: (Nanos, Nanos) = (4 * SECOND, 14 * SECOND);

/// A site: eight engines of 4 ms, a gigabit.
pub fn site(name: &str, round_trip: Nanos, jurisdiction: &str) -> Model {
    let site = Site {
        name: name.into(),
        cloud: name.split('/').next().unwrap_or(name).into(),
        region: name.into(),
        jurisdiction: Jurisdiction::new(jurisdiction).ok(),
        price: Price::default(),
    };
    Model {
        replica: Replica {
            site: Arc::new(site),
            nature: Nature::Peer,
            serves: Serves::Digest(DIGEST),
            grants: Grants::NONE,
            distance: round_trip,
            weight: 1,
        },
        parallel: 8,
        service: 4 * MS,
        sigma: 0.2,
        queue: 256,
        retry_after: Some(SECOND),
        bandwidth: 125e6,
    }
}

/// Settings at their defaults, for what the sites serve.
pub fn settings() -> Settings {
    Settings { digests: vec![DIGEST], ..Settings::default() }
}

/// Sites in four clouds at 2, 30, 80 and 180 ms, two gateways without replicas of their own, 500 requests a second in
/// all, nothing wrong, default settings.
pub fn four(seed: u64) -> Plan {
    Plan {
        seed,
        gateways: 2,
        rate: 250.0,
        surges: Vec::new(),
        until: 18 * SECOND,
        settings: settings(),
        sites: vec![
            site("a/near", 2 * MS, "eu"),
            site("b/next", 30 * MS, "eu"),
            site("c/far", 80 * MS, "us"),
            site("d/farthest", 180 * MS, "in"),
        ],
        faults: Vec::new(),
        patience: 10 * SECOND,
        once: 0.0,
        rules: Vec::new(),
        hedging: Hedging::Withdrawable,
        bytes: 200,
        probes: Some(500 * MS),
        reports: true,
        brain: Brain::Windrose,
        measure: false,
    }
}

/// The thirteen faults of the proof on [`four`], by number from 1: what it is called, and the plan.
pub fn fault(number: usize, seed: u64) -> Option<(&'static str, Plan)> {
    let mut plan = four(seed);
    let near = |kind| vec![on(0, kind)];
    let name = match number {
        1 => (plan.faults = near(Kind::Killed), "killed").1,
        2 => (plan.faults = near(Kind::Silent), "packets dropped").1,
        3 => (plan.faults = near(Kind::Late(500 * MS)), "500 ms late").1,
        4 => (plan.faults = near(Kind::Errors { share: 0.5, fast: true }), "half 500").1,
        5 => (plan.faults = near(Kind::Mute), "never answers").1,
        6 => (plan.faults = near(Kind::Cut(1.0)), "cut answers").1,
        7 => (plan.faults = near(Kind::Killed), "certificate expired").1,
        8 => (plan.faults = near(Kind::Wrong), "wrong answers").1,
        9 => (plan.faults = flapping(), "flapping every second").1,
        10 => (plan.faults = near(Kind::Loss(0.2)), "a fifth of answers lost").1,
        11 => (plan.faults = vec![on(0, Kind::Silent), on(1, Kind::Killed)], "two sites").1,
        12 => (plan.faults = near(Kind::Crowded(2_400.0)), "crowded by others").1,
        13 => (plan.faults = rolling(), "rolling restart").1,
        _ => return None,
    };
    Some((name, plan))
}

/// [`four`] under 2,000 requests a second on a crowded machine: traffic has just begun when every site stands still for
/// half a second, and then the nearest is killed with all that it held.
pub fn young_and_crowded(seed: u64) -> Plan {
    let mut plan = four(seed);
    plan.rate = 1_000.0;
    let killed = SECOND + 500 * MS;
    let stall = |site| Fault { from: SECOND, to: killed, ..on(site, Kind::Late(SECOND)) };
    plan.faults = (0..4).map(stall).collect();
    plan.faults.push(Fault { from: killed, ..on(0, Kind::Killed) });
    plan.until = 4 * SECOND;
    plan
}

fn on(site: usize, kind: Kind) -> Fault {
    Fault { site, gateway: None, from: FAULT.0, to: FAULT.1, kind }
}

fn flapping() -> Vec<Fault> {
    (0..5)
        .map(|n| Fault { from: FAULT.0 + n * 2 * SECOND, to: FAULT.0 + n * 2 * SECOND + SECOND, ..on(0, Kind::Killed) })
        .collect()
}

fn rolling() -> Vec<Fault> {
    let one = |site: usize| {
        let from = FAULT.0 + site as u64 * 2_500 * MS;
        [
            Fault { from, to: from + 300 * MS, ..on(site, Kind::Draining) },
            Fault { from: from + 300 * MS, to: from + 1_500 * MS, ..on(site, Kind::Killed) },
        ]
    };
    (0..4).flat_map(one).collect()
}

/// How unlike each other the replicas of [`fleet`] are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spread {
    /// All alike.
    Even,
    /// Every second one is three times slower.
    Uneven,
    /// Alike, and others' load takes three quarters of some, now here, now there.
    Antagonised,
    /// Alike, at round trips of 2, 30 and 80 ms, a third each.
    Distant,
}

/// The share of a crowded replica's capacity that others ask for.
pub const CROWD: f64 = 0.75;

impl Spread {
    /// The share of all replicas' capacity that is asked for.
    pub fn load(self) -> f64 {
        if self == Spread::Antagonised { 0.6 } else { 0.7 }
    }

    /// By what factor the replica of this index is slower than the first.
    pub fn slower(self, index: usize) -> u64 {
        if self == Spread::Uneven && index % 2 == 1 { 3 } else { 1 }
    }
}

/// When others' load is at one replica, up to a time: for one to three seconds, and again after six to ten.
pub fn crowded(random: &mut Random, until: Nanos) -> Vec<(Nanos, Nanos)> {
    let mut times = Vec::new();
    let mut from = (random.share() * 4e9) as Nanos;
    while from < until {
        let to = from + SECOND + (random.share() * 2e9) as Nanos;
        times.push((from, to));
        from = to + 6 * SECOND + (random.share() * 4e9) as Nanos;
    }
    times
}

/// Twenty replicas and ten gateways that load them to [`Spread::load`], to compare rules on.
pub fn fleet(spread: Spread, brain: Brain, seed: u64) -> Plan {
    const REPLICAS: usize = 20;
    const UNTIL: Nanos = 20 * SECOND;
    let mut random = Random::seeded(seed ^ 0xf1ee7);
    let mut sites = Vec::new();
    for index in 0..REPLICAS {
        let distance = match spread {
            Spread::Distant => [2 * MS, 30 * MS, 80 * MS][index % 3],
            _ => MS,
        };
        let mut model =
            Model { parallel: 4, service: 10 * MS, sigma: 0.5, ..site(&format!("s/{index}"), distance, "eu") };
        model.queue = 100_000;
        model.service *= spread.slower(index);
        sites.push(model);
    }
    let capacity_of = |model: &Model| f64::from(model.parallel) * 1e9 / model.service as f64;
    let capacity: f64 = sites.iter().map(capacity_of).sum();
    let mut faults = Vec::new();
    if spread == Spread::Antagonised {
        for (site, model) in sites.iter().enumerate() {
            let kind = Kind::Crowded(capacity_of(model) * CROWD);
            let times = crowded(&mut random, UNTIL);
            faults.extend(times.into_iter().map(|(from, to)| Fault { site, gateway: None, from, to, kind }));
        }
    }
    Plan {
        gateways: 10,
        rate: capacity * spread.load() / 10.0,
        until: UNTIL,
        sites,
        faults,
        patience: 60 * SECOND,
        hedging: Hedging::Never,
        probes: None,
        brain,
        ..four(seed)
    }
}

/// A thousand sites, a hundred gateways, and this many requests a second in all, for this long.
pub fn thousand(rate: f64, until: Nanos, brain: Brain, seed: u64) -> Plan {
    let mut random = Random::seeded(seed ^ 0x7110);
    let places = ["eu", "us", "in", "br", "jp", "za", "au", "ch"];
    let sites = (0..1_000)
        .map(|index| {
            let distance = 2 * MS + (random.share() * 180e6) as Nanos;
            let service = 5 * MS + (random.share() * 10e6) as Nanos;
            let place = places[random.below(places.len())];
            Model { parallel: 2, service, sigma: 0.4, ..site(&format!("s/{index}"), distance, place) }
        })
        .collect();
    Plan { gateways: 100, rate: rate / 100.0, until, sites, probes: None, brain, measure: true, ..four(seed) }
}

/// A random fleet under random rules with random faults, of which at least one lawful site for each rule is spared.
pub fn random(seed: u64) -> Plan {
    let mut random = Random::seeded(seed ^ 0xabcd);
    let places = ["eu", "us", "in", "ch"];
    let count = 3 + random.below(5);
    let mut sites: Vec<Model> = Vec::new();
    for index in 0..count {
        let place = places[random.below(places.len())];
        let mut model = site(&format!("s/{index}"), MS + (random.share() * 120e6) as Nanos, place);
        model.sigma = 0.1 + random.share() * 0.4;
        if index > 0 && random.share() < 0.2 {
            model.replica.nature = Nature::Foreign;
            model.replica.serves = Serves::Unverified;
        }
        sites.push(model);
    }
    let rules = vec![Arc::new(Rules::none()), rule(&mut random, &sites), rule(&mut random, &sites)];
    let spared: Vec<usize> = rules.iter().filter_map(|rules| lawful_peer(rules, &sites)).collect();
    let mut faults = Vec::new();
    for site in (0..count).filter(|site| !spared.contains(site)) {
        for _ in 0..random.below(3) {
            faults.push(random_fault(&mut random, site));
        }
    }
    Plan {
        rate: 60.0,
        until: 7 * SECOND,
        once: if random.share() < 0.3 { 0.2 } else { 0.0 },
        sites,
        faults,
        rules,
        ..four(seed)
    }
}

/// A rule that permits at least the first site of a random place.
fn rule(random: &mut Random, sites: &[Model]) -> Arc<Rules> {
    let place = |index: usize| sites[index].replica.site.jurisdiction.clone();
    let (one, other) = (place(0), place(random.below(sites.len())));
    let allowed: Vec<Jurisdiction> = one.into_iter().collect();
    let denied = other.filter(|other| !allowed.contains(other)).into_iter().collect();
    let rules = Rules::none();
    Arc::new(if random.share() < 0.5 {
        rules.and(Source::Manifest, Some(allowed), Vec::new())
    } else {
        rules.and(Source::Tenant, None, denied)
    })
}

/// The first site that a rule permits and that can withdraw a job.
pub fn lawful_peer(rules: &Rules, sites: &[Model]) -> Option<usize> {
    sites.iter().position(|model| {
        let replica = &model.replica;
        replica.nature == Nature::Peer && rules.permit(replica.site.jurisdiction.as_ref()).is_ok()
    })
}

fn random_fault(random: &mut Random, site: usize) -> Fault {
    let from = SECOND + (random.share() * 4e9) as Nanos;
    let to = from + 100 * MS + (random.share() * 3e9) as Nanos;
    let kind = match random.below(11) {
        0 => Kind::Killed,
        1 => Kind::Silent,
        2 => Kind::Loss(0.05 + random.share() * 0.4),
        3 => Kind::Late((random.share() * 1e9) as Nanos),
        4 => Kind::Errors { share: 0.1 + random.share() * 0.9, fast: random.share() < 0.5 },
        5 => Kind::Mute,
        6 => Kind::Cut(0.1 + random.share() * 0.9),
        7 => Kind::Wrong,
        8 => Kind::Crowded(1_000.0 + random.share() * 3_000.0),
        9 => Kind::Draining,
        _ => Kind::Slow(2.0 + random.share() * 20.0),
    };
    let network = matches!(kind, Kind::Silent | Kind::Loss(_) | Kind::Late(_));
    let gateway = (network && random.share() < 0.3).then(|| random.below(2));
    Fault { site, gateway, from, to, kind }
}
