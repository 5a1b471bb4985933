//! What the harness does to the store by hand: damage at rest, and a rival that leads for a moment.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use perennial_actors::checkpoint::{Created, decode_record, encode_record, record_key};
use perennial_actors::entropy::Entropy;
use perennial_actors::leadership::{Candidate, ProbeOutcome, lead};
use perennial_actors::model::{CheckpointId, InstanceId, Manifest, Record, RecordOutcome};
use perennial_config::HighAvailability;

use super::stores::SimulatedStores;
use super::{HA, JOBS};
use crate::checker::record_number;
use crate::plan::StoreFault;

/// Records of a job that has not ended: its directory, the last number, and the newest complete checkpoint.
fn open_job(stores: &SimulatedStores) -> Option<(String, u64, Option<Manifest>)> {
    let mut jobs = BTreeMap::<String, BTreeMap<u64, Record>>::new();
    for (key, bytes) in stores.look(JOBS) {
        let Some((job, key)) = key.split_once('/') else {
            continue;
        };
        if let Some(number) = record_number(key)
            && let Ok(record) = decode_record(&bytes)
        {
            let records = jobs.entry(job.to_owned()).or_default();
            records.insert(number, record);
        }
    }
    let is_open = |records: &BTreeMap<u64, Record>| {
        records
            .values()
            .all(|r| !matches!(r.outcome, RecordOutcome::Terminal { .. }))
    };
    let (job, records) = jobs.into_iter().find(|(_, records)| is_open(records))?;
    let last = *records.keys().next_back()?;
    let newest = records.into_values().rev().find_map(|r| match r.outcome {
        RecordOutcome::Completed(manifest) => Some(*manifest),
        _ => None,
    });
    Some((format!("{JOBS}/{job}"), last, newest))
}

/// Damages an object of the newest complete checkpoint, or its record: what, within which directory. `None`: there is none.
pub(super) fn damage(
    stores: &SimulatedStores,
    fault: &StoreFault,
    die: u64,
) -> Option<(String, String)> {
    let (directory, _, newest) = open_job(stores)?;
    let newest = newest?;
    let object = usize::try_from(die >> 8).ok()? % newest.objects.len().max(1);
    let key = match newest.objects.get(object) {
        Some(object) if !die.is_multiple_of(4) => object.key.clone(),
        _ => record_key(newest.checkpoint),
    };
    let bytes = stores.look(&directory).get(&key)?.clone();
    let damaged = match fault {
        StoreFault::MissingObject => None,
        StoreFault::TruncatedObject => Some(bytes.slice(..bytes.len() / 2)),
        _ => {
            let mut bytes = bytes.to_vec();
            let at = usize::try_from(die >> 16).ok()? % bytes.len().max(1);
            *bytes.get_mut(at)? ^= 1;
            Some(Bytes::from(bytes))
        }
    };
    stores.tamper(&directory, &key, damaged);
    Some((directory, key))
}

/// A JobManager that nobody sees claims the next epoch and the next record of the job, and is gone.
pub(super) fn claim(stores: &SimulatedStores, dice: &Entropy) -> Option<String> {
    let (directory, last, _) = open_job(stores)?;
    let instance = InstanceId(dice.u128());
    let entropy = Entropy::seeded(dice.u64());
    let token = dice.u128();
    let leadership = stores.act(HA, async |store| {
        let candidate = Candidate {
            store,
            address: "rival:1".to_owned(),
            instance,
            high_availability: HighAvailability::Store,
            lease_duration: Duration::from_secs(3600),
            renew_interval: Duration::from_secs(3600),
            // It cannot reach the leader, and takes that for its end.
            probe: Arc::new(|_| std::future::ready(ProbeOutcome::Refused).boxed()),
            entropy,
        };
        lead(candidate).await.ok()
    })?;
    let epoch = leadership.info().epoch;
    drop(leadership);
    let checkpoint = CheckpointId(last + 1);
    let record = Record {
        checkpoint,
        epoch,
        token,
        outcome: RecordOutcome::Claimed,
    };
    let bytes = Bytes::from(encode_record(&record).ok()?);
    let created = stores.act(&directory, async |store| {
        store.create(&record_key(checkpoint), bytes).await.ok()
    })?;
    Some(match created {
        Created::New => format!("epoch {epoch} and record {checkpoint}"),
        Created::Exists => format!("epoch {epoch}"),
    })
}
