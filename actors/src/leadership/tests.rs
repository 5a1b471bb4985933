//! Leaders and candidates on a store in memory, under a paused clock; then the election's rules as a table.

use std::collections::BTreeMap;
use std::sync::Mutex;

use super::*;
use crate::checkpoint::testing::{Fault, MemoryStore};

const LEASE: Duration = Duration::from_secs(3);
const RENEW: Duration = Duration::from_secs(1);

#[derive(Clone, Default)]
struct Net(Arc<Mutex<BTreeMap<String, ProbeOutcome>>>);

impl Net {
    fn set(&self, address: &str, outcome: ProbeOutcome) {
        self.0.lock().unwrap().insert(address.into(), outcome);
    }

    fn candidate(&self, store: &Arc<MemoryStore>, n: u128, ha: HighAvailability) -> Candidate {
        let address = format!("host{n}:6123");
        self.set(&address, ProbeOutcome::Answered(InstanceId(n)));
        let net = self.clone();
        Candidate {
            store: Arc::clone(store) as Arc<dyn Store>,
            address,
            instance: InstanceId(n),
            high_availability: ha,
            lease_duration: LEASE,
            renew_interval: RENEW,
            probe: Arc::new(move |address| {
                let outcome = net.0.lock().unwrap()[&address];
                async move { outcome }.boxed()
            }),
            entropy: Entropy::seeded(n as u64),
        }
    }
}

fn store() -> Arc<MemoryStore> {
    MemoryStore::new("memory://ha/default")
}

use HighAvailability::{None as Single, Store as Standby};

#[tokio::test(start_paused = true)]
async fn sixteen_candidates_give_one_leader() {
    for seed in 0..10_u64 {
        let (store, net) = (store(), Net::default());
        let mut n = 0;
        store.faults(move |op, _| {
            n += 1 + seed;
            (op == "create" && n % 3 == 0).then_some(match n % 2 {
                0 => Fault::LoseAnswer,
                _ => Fault::LoseRequest,
            })
        });
        let tasks: Vec<_> = (1..=16)
            .map(|i| tokio::spawn(lead(net.candidate(&store, i, Standby))))
            .collect();
        tokio::time::sleep(LEASE * 10).await;
        let leaders = tasks.iter().filter(|t| t.is_finished()).count();
        assert_eq!(leaders, 1, "seed {seed}");
        let info = discover(&*store).await.unwrap().unwrap();
        assert_eq!(info.address, format!("host{}:6123", info.instance.0));
        for task in tasks {
            task.abort();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_standby_waits_while_the_leader_lives_and_takes_over_when_it_dies() {
    let (store, net) = (store(), Net::default());
    let first = lead(net.candidate(&store, 1, Standby)).await.unwrap();
    let second = tokio::spawn(lead(net.candidate(&store, 2, Standby)));
    tokio::time::sleep(LEASE * 20).await;
    assert!(!second.is_finished());
    drop(first);
    net.set("host1:6123", ProbeOutcome::Silent);
    let begin = Instant::now();
    let second = second.await.unwrap().unwrap();
    assert!(
        begin.elapsed() <= LEASE + RENEW * 2,
        "{:?}",
        begin.elapsed()
    );
    assert_eq!(second.info().epoch, LeaderEpoch(2));
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_is_replaced_while_it_lives_learns_it_and_its_epoch_is_fenced() {
    let (store, net) = (store(), Net::default());
    let first = lead(net.candidate(&store, 1, Standby)).await.unwrap();
    let epochs = first.epochs();
    assert_eq!(epochs.current_epoch().await.unwrap(), LeaderEpoch(1));
    // Another process answers at its address: taken for dead at once.
    net.set("host1:6123", ProbeOutcome::Answered(InstanceId(9)));
    let second = lead(net.candidate(&store, 2, Single)).await.unwrap();
    assert_eq!(epochs.current_epoch().await.unwrap(), second.info().epoch);
    assert_eq!(
        first.lost().await,
        LeadershipLost::Superseded {
            epoch: LeaderEpoch(2)
        }
    );
}

#[tokio::test(start_paused = true)]
async fn without_high_availability_a_second_one_is_told_who_leads() {
    let (store, net) = (store(), Net::default());
    let _first = lead(net.candidate(&store, 1, Single)).await.unwrap();
    let error = lead(net.candidate(&store, 2, Single)).await.err().unwrap();
    assert!(error.to_string().contains("host1:6123"), "{error}");
    // Even if the leader's address cannot be reached from here: its counter moves.
    for outcome in [ProbeOutcome::Silent, ProbeOutcome::Refused] {
        net.set("host1:6123", outcome);
        let error = lead(net.candidate(&store, 2, Single)).await.err().unwrap();
        assert!(matches!(error, LeadershipError::Occupied { .. }), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn after_a_release_nobody_waits() {
    let (store, net) = (store(), Net::default());
    let first = lead(net.candidate(&store, 1, Single)).await.unwrap();
    first.release().await.unwrap();
    let begin = Instant::now();
    let second = lead(net.candidate(&store, 2, Single)).await.unwrap();
    assert_eq!(second.info().epoch, LeaderEpoch(2));
    assert!(begin.elapsed() < RENEW);
}

#[tokio::test(start_paused = true)]
async fn a_leader_cut_off_from_the_store_stops_before_the_next_one_starts() {
    for fault in [Fault::Fail, Fault::Slow(Duration::from_secs(1_000_000))] {
        let (store, net) = (store(), Net::default());
        let first = lead(net.candidate(&store, 1, Standby)).await.unwrap();
        tokio::time::sleep(RENEW * 3).await;
        // From now on its store calls fail or hang; those of the candidate, which come on another key, do not.
        store.faults(move |op, key| ((op, key) == ("put", "lease-1")).then_some(fault));
        net.set("host1:6123", ProbeOutcome::Silent);
        let second = tokio::spawn(lead(net.candidate(&store, 2, Standby)));
        assert_eq!(first.lost().await, LeadershipLost::RenewalFailed(LEASE));
        assert!(!second.is_finished(), "{fault:?}");
        second.await.unwrap().unwrap();
    }
}

/// P7, O2: one lost request is no reason to stop leading while there is time for another.
#[tokio::test(start_paused = true)]
async fn a_request_that_hangs_costs_a_part_of_the_lease_only() {
    let (store, net) = (store(), Net::default());
    let first = lead(net.candidate(&store, 1, Standby)).await.unwrap();
    tokio::time::sleep(RENEW * 2).await;
    let mut hangs = true;
    store.faults(move |op, key| {
        let is_it = (op, key) == ("put", "lease-1") && std::mem::take(&mut hangs);
        is_it.then_some(Fault::Slow(Duration::from_secs(1_000_000)))
    });
    let lost = tokio::time::timeout(LEASE * 10, first.lost()).await;
    assert!(lost.is_err(), "{lost:?}");
}

/// O2: a store that takes more than half of the lease for each answer is slow, and the leader leads.
#[tokio::test(start_paused = true)]
async fn a_slow_store_does_not_cost_the_leadership() {
    let (store, net) = (store(), Net::default());
    let first = lead(net.candidate(&store, 1, Standby)).await.unwrap();
    let slow = Duration::from_millis(1800);
    store.faults(move |op, key| ((op, key) == ("put", "lease-1")).then_some(Fault::Slow(slow)));
    let lost = tokio::time::timeout(LEASE * 10, first.lost()).await;
    assert!(lost.is_err(), "{lost:?}");
}

#[tokio::test(start_paused = true)]
async fn the_newest_epoch_is_found_without_a_hint_and_with_a_wrong_one() {
    let (store, net) = (store(), Net::default());
    assert_eq!(discover(&*store).await.unwrap(), None);
    for n in 1..=5 {
        let leadership = lead(net.candidate(&store, n, Single)).await.unwrap();
        leadership.release().await.unwrap();
    }
    for hint in [None, Some(&b"rubbish"[..])] {
        match hint {
            None => store.remove(HINT_KEY),
            Some(bytes) => store.insert(HINT_KEY, bytes),
        }
        let leader = discover(&*store).await.unwrap().unwrap();
        assert_eq!(leader.epoch, LeaderEpoch(5));
    }
    // A damaged object still blocks its epoch.
    store.insert("epoch-5", &b"rubbish"[..]);
    let next = lead(net.candidate(&store, 9, Single)).await.unwrap();
    assert_eq!(next.info().epoch, LeaderEpoch(6));
}

#[tokio::test(start_paused = true)]
async fn a_store_that_does_not_work_is_an_error_and_not_a_hang() {
    let (store, net) = (store(), Net::default());
    store.faults(|_, _| Some(Fault::Fail));
    let error = lead(net.candidate(&store, 1, Standby)).await.err().unwrap();
    assert!(matches!(error, LeadershipError::Store(_)), "{error}");
}

/// Each row: what is seen twice, so many seconds apart, and the second verdict.
#[tokio::test(start_paused = true)]
async fn the_election_rules_hold_row_by_row() {
    let seen = |probe, counter| Sighting {
        epoch: LeaderEpoch(4),
        leader: Some(LeaderInfo {
            epoch: LeaderEpoch(4),
            address: "a".into(),
            instance: InstanceId(1),
        }),
        lease: Some(Lease {
            counter,
            is_released: false,
        }),
        probe,
    };
    let here = ProbeOutcome::Answered(InstanceId(1));
    let other = ProbeOutcome::Answered(InstanceId(7));
    let (silent, refused) = (ProbeOutcome::Silent, ProbeOutcome::Refused);
    let claim = Verdict::Claim(LeaderEpoch(5));
    let t = Instant::now();
    for (ha, probe, counters, seconds, verdict) in [
        (Standby, here, (1, 2), 1, Verdict::Wait),
        (Standby, here, (1, 1), 2, Verdict::Wait),
        (Standby, here, (1, 1), 3, claim),
        (Standby, silent, (1, 1), 2, Verdict::Wait),
        (Standby, silent, (1, 2), 9, Verdict::Wait),
        (Standby, silent, (1, 1), 3, claim),
        (Standby, refused, (1, 1), 1, Verdict::Wait),
        (Standby, refused, (1, 1), 2, claim),
        (Standby, refused, (1, 2), 2, Verdict::Wait),
        (Standby, other, (1, 1), 0, claim),
        (Single, here, (1, 1), 0, Verdict::Refuse),
        (Single, silent, (1, 1), 1, Verdict::Wait),
        (Single, silent, (1, 2), 1, Verdict::Refuse),
        (Single, refused, (1, 2), 1, Verdict::Refuse),
        (Single, refused, (1, 1), 2, claim),
    ] {
        let mut election = Election::new(InstanceId(2), ha, LEASE, RENEW);
        election.observe(t, Some(&seen(probe, counters.0)));
        assert_eq!(
            election.observe(
                t + Duration::from_secs(seconds),
                Some(&seen(probe, counters.1))
            ),
            verdict,
            "{ha:?} {probe:?} {counters:?} after {seconds} s"
        );
    }
    let mut election = Election::new(InstanceId(1), Standby, LEASE, RENEW);
    assert_eq!(
        election.observe(t, Some(&seen(here, 1))),
        claim,
        "our own old epoch"
    );
    assert_eq!(election.observe(t, None), Verdict::Claim(LeaderEpoch(1)));
}
