use std::collections::HashMap;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Instant;

use super::*;

const MS: Duration = Duration::from_millis(1);

fn account(turnstile: &Turnstile, name: &str) -> Arc<Account> {
    turnstile.account(&"tenant".into(), &name.into())
}

impl Gate {
    /// Ends a run of one row.
    fn ran(&mut self, account: &Account, time: Duration, weight: u32) {
        self.charge(account, time, (1, 1), weight);
        self.leave();
    }
}

/// A thread that passes and says its name, as often as it is asked to leave again.
fn runner(
    mut gate: Gate,
    account: Arc<Account>,
    name: &'static str,
    passed: Sender<&'static str>,
    runs: usize,
) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        for _ in 0..runs {
            gate.pass(&account, false);
            let _ = passed.send(name);
            gate.charge(&account, MS, (1, 1), 1);
        }
    })
}

fn waiters(turnstile: &Turnstile, wanted: usize) {
    while turnstile.waiters.load(SeqCst) != wanted {
        thread::yield_now();
    }
}

#[test]
fn as_many_runs_as_cores() {
    let turnstile = Turnstile::new(2);
    let mut gates: Vec<Gate> = (0..3).map(|_| Gate::new(&turnstile, 1)).collect();
    assert!(gates[0].try_pass() && gates[1].try_pass() && !gates[2].try_pass());
    assert!(turnstile.is_used());
    gates[0].leave();
    assert!(turnstile.is_used() && gates[2].try_pass());
    drop(gates);
    assert!(!turnstile.is_used());
    assert_eq!(turnstile.free.load(SeqCst), 2);
}

#[test]
fn a_caller_has_one_account_as_long_as_anybody_holds_it() {
    let turnstile = Turnstile::new(1);
    let first = account(&turnstile, "a");
    assert!(Arc::ptr_eq(&first, &account(&turnstile, "a")) && !Arc::ptr_eq(&first, &account(&turnstile, "b")));
    for at in 0..10_000 {
        account(&turnstile, &at.to_string());
    }
    assert!(turnstile.accounts.lock().unwrap().len() <= accounts::KEPT, "those of who is gone go");
    assert!(Arc::ptr_eq(&first, &account(&turnstile, "a")));
}

#[test]
fn who_has_used_the_least_for_its_weight_goes_first() {
    let turnstile = Turnstile::new(1);
    let [holding, heavy, light] = ["holding", "heavy", "light"].map(|name| account(&turnstile, name));
    let mut first = Gate::new(&turnstile, 1);
    for (account, weight) in [(&heavy, 4), (&light, 1)] {
        let mut gate = Gate::new(&turnstile, 1);
        gate.pass(account, false);
        gate.ran(account, 8 * MS, weight);
    }
    assert_eq!([&heavy, &light].map(|account| account.used.load(Relaxed)), [2_000_000, 8_000_000]);
    first.pass(&holding, false);
    let (passed, order) = channel();
    let late = runner(Gate::new(&turnstile, 1), light, "light", passed.clone(), 1);
    waiters(&turnstile, 1);
    let early = runner(Gate::new(&turnstile, 1), heavy, "heavy", passed, 1);
    waiters(&turnstile, 2);
    first.leave();
    let order: Vec<&str> = order.iter().collect();
    assert_eq!(order, ["heavy", "light"]);
    late.join().and(early.join()).expect("both");
}

/// Callers that always have something to run, each with a session for every core: tenant, model, weight and quarters of
/// a millisecond that a run takes. Returns what each has used, by tenant and model.
fn flooded(callers: &[(&'static str, &'static str, u32, u32)]) -> HashMap<(&'static str, &'static str), f64> {
    let turnstile = Turnstile::new(2);
    let all = 2 * callers.len();
    let (begun, runs) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let sessions = callers.iter().flat_map(|caller| [*caller; 2]).map(|(tenant, name, weight, quarters)| {
        let (turnstile, begun, runs) = (turnstile.clone(), begun.clone(), runs.clone());
        let account = turnstile.account(&tenant.into(), &name.into());
        thread::spawn(move || {
            let (mut gate, mut used) = (Gate::new(&turnstile, 1), 0);
            begun.fetch_add(1, SeqCst);
            while begun.load(SeqCst) < all {
                thread::yield_now();
            }
            while runs.fetch_add(1, SeqCst) < 2_000 {
                gate.pass(&account, false);
                // The others come to wait meanwhile.
                thread::sleep(Duration::from_micros(100));
                gate.charge(&account, MS * quarters / 4, (1, 1), weight);
                used += quarters;
            }
            ((tenant, name), used)
        })
    });
    let mut total = HashMap::new();
    for thread in sessions.collect::<Vec<_>>() {
        let (caller, used) = thread.join().expect("a session");
        *total.entry(caller).or_insert(0.0) += f64::from(used);
    }
    total
}

#[test]
fn shares_are_as_the_weights() {
    let used = flooded(&[("t", "heavy", 3, 4), ("t", "light", 1, 4), ("t", "slow", 1, 16)]);
    assert!((2.7..3.3).contains(&(used[&("t", "heavy")] / used[&("t", "light")])), "{used:?}");
    assert!((0.9..1.1).contains(&(used[&("t", "slow")] / used[&("t", "light")])), "{used:?}");
}

#[test]
fn a_tenant_of_many_models_has_one_share() {
    let used = flooded(&[("many", "a", 2, 4), ("many", "b", 1, 8), ("many", "c", 1, 2), ("one", "a", 1, 4)]);
    let many: f64 = ["a", "b", "c"].iter().map(|name| used[&("many", *name)]).sum();
    assert!((0.9..1.1).contains(&(many / used[&("one", "a")])), "{used:?}");
    assert!((1.7..2.3).contains(&(used[&("many", "a")] / used[&("many", "b")])), "{used:?}");
}

#[test]
fn a_tenants_idle_model_is_ahead_with_its_tenant_while_others_want_the_cores() {
    let turnstile = Turnstile::new(1);
    let [loud, calm, other] = [("many", "loud"), ("many", "calm"), ("other", "loud")]
        .map(|(tenant, name)| turnstile.account(&tenant.into(), &name.into()));
    let mut gate = Gate::new(&turnstile, 1);
    let mut run = |account: &Arc<Account>, times: u32| {
        gate.pass(account, false);
        gate.ran(account, times * MS, 1);
    };
    run(&loud, 90);
    assert!(turnstile.returns(&calm), "its tenant has the cores alone");
    run(&other, 1);
    assert!(!turnstile.is_behind(&calm) && turnstile.contest.is_on());
    run(&other, 200);
    run(&other, 1);
    assert!(turnstile.is_behind(&calm), "the other has had more");
    run(&loud, 200);
    assert!(!turnstile.is_behind(&calm));
    while turnstile.contest.is_on() {
        thread::sleep(MS);
    }
    assert!(turnstile.is_behind(&calm), "nobody else has wanted any of late");
}

#[test]
fn who_was_idle_does_not_wait_for_a_run_to_end() {
    let turnstile = Turnstile::new(1);
    let [flood, calm, third] = ["flood", "calm", "third"].map(|name| account(&turnstile, name));
    let mut flooding = Gate::new(&turnstile, 1);
    assert!(turnstile.returns(&flood));
    for _ in 0..10 {
        flooding.pass(&flood, false);
        flooding.ran(&flood, MS, 1);
    }
    flooding.pass(&flood, false);
    assert!(!turnstile.is_behind(&flood) && turnstile.returns(&calm) && turnstile.is_behind(&calm));
    assert!(turnstile.is_full());
    let mut gate = Gate::new(&turnstile, 1);
    gate.pass(&calm, true);
    assert_eq!(turnstile.free.load(SeqCst), -1, "beside the other");
    let (passed, order): (_, Receiver<&str>) = channel();
    let waits = thread::spawn({
        let mut further = Gate::new(&turnstile, 1);
        move || {
            further.pass(&third, true);
            let _ = passed.send("no more than twice the cores");
        }
    });
    waiters(&turnstile, 1);
    assert!(order.try_recv().is_err());
    flooding.ran(&flood, MS, 1);
    gate.ran(&calm, 12 * MS, 1);
    assert!(!turnstile.is_behind(&calm), "it has had its turn");
    waits.join().expect("it had its turn");
    assert_eq!((order.iter().count(), turnstile.free.load(SeqCst)), (1, 1));
}

#[test]
fn who_asks_now_and_then_is_within_its_share_between_two_long_runs_of_others() {
    let turnstile = Turnstile::new(2);
    let [flood, calm] = ["flood", "calm"].map(|name| account(&turnstile, name));
    let mut gates = [(); 2].map(|()| Gate::new(&turnstile, 1));
    let mut run = |at: usize, account: &Arc<Account>, time: Duration| {
        gates[at].pass(account, false);
        gates[at].ran(account, time, 1);
    };
    (0..10).for_each(|at| run(at % 2, &flood, 40 * MS));
    // A fifth of the machine: 8 ms of each 20, in which each core does half of a run of the flood.
    for turn in 0..50 {
        // Who comes anew has not had less than others yet.
        assert!(turnstile.returns(&calm) || turn < 4, "turn {turn}");
        run(0, &calm, 8 * MS);
        if turn % 2 == 1 {
            run(1, &flood, 32 * MS);
            run(0, &flood, 32 * MS);
        }
        assert!(!turnstile.is_behind(&flood));
    }
    // And no longer when it wants more than that.
    let within = (0..50)
        .take_while(|_| {
            turnstile.returns(&calm) && {
                run(0, &calm, 8 * MS);
                true
            }
        })
        .count();
    assert!((5..20).contains(&within), "{within}");
}

#[test]
fn nobody_is_charged_for_the_time_that_others_had_its_core() {
    let turnstile = Turnstile::new(1);
    let [flood, calm] = ["flood", "calm"].map(|name| account(&turnstile, name));
    let [mut flooding, mut gate] = [(); 2].map(|()| Gate::new(&turnstile, 1));
    flooding.pass(&flood, false);
    gate.pass(&calm, true);
    let begin = Instant::now();
    while begin.elapsed() < 20 * MS {
        thread::yield_now();
    }
    let time = begin.elapsed();
    assert_eq!(gate.used(time), time);
    let used = flooding.used(time);
    assert!(used < time.mul_f64(0.2), "{used:?} of {time:?}");
    gate.leave();
    flooding.leave();
    flooding.pass(&flood, false);
    assert_eq!(flooding.used(time), time, "alone again");
}

#[test]
fn a_tenant_of_one_model_is_measured_against_the_others() {
    let turnstile = Turnstile::new(1);
    let [loud, quiet] = ["loud", "quiet"].map(|name| turnstile.account(&name.into(), &"model".into()));
    let mut gate = Gate::new(&turnstile, 1);
    let mut run = |account: &Arc<Account>, times: u32| {
        turnstile.returns(account);
        gate.pass(account, false);
        gate.ran(account, times * MS, 1);
    };
    run(&loud, 5);
    assert!(!turnstile.is_behind(&loud), "it has the cores alone");
    for _ in 0..3 {
        run(&quiet, 30);
        assert!(!turnstile.is_behind(&quiet));
        (0..3).for_each(|_| run(&loud, 15));
        assert!(turnstile.is_behind(&quiet) && !turnstile.is_behind(&loud));
    }
}

#[test]
fn no_permit_is_lost_and_nobody_is_forgotten() {
    let turnstile = Turnstile::new(2);
    let (passed, order) = channel();
    let accounts = ["a", "b", "c"].map(|name| account(&turnstile, name));
    let threads: Vec<_> = (0..8)
        .map(|at| {
            let gate = Gate::new(&turnstile, 1 + at % 3);
            runner(gate, accounts[at % 3].clone(), "passed", passed.clone(), 2_000)
        })
        .collect();
    drop(passed);
    assert_eq!(order.iter().count(), 16_000);
    threads.into_iter().for_each(|thread| thread.join().expect("a runner"));
    assert_eq!((turnstile.free.load(SeqCst), turnstile.waiters.load(SeqCst)), (2, 0));
}
