//! Every configuration block of the articles loads here: no key of them is unknown, and each has the verdict that stands behind it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use perennial_config::{
    Checked, CheckpointingMode, ConfigError, ConfigFile, Origin, RestartStrategy, Settings,
    Sources, Verdict, check,
};

fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn sources(block: &str) -> Sources {
    let path = directory().join(format!("{block}.yaml"));
    Sources {
        file: Some(ConfigFile::read(&path).expect("a fixture")),
        ..Sources::default()
    }
}

/// The verdicts that the comments of a fixture expect, by line.
fn expected(content: &str) -> BTreeMap<usize, String> {
    content
        .lines()
        .enumerate()
        .filter_map(|(at, line)| {
            let (_, verdict) = line.rsplit_once("  # ")?;
            Some((at + 1, verdict.to_owned()))
        })
        .collect()
}

fn found(checked: &Checked) -> BTreeMap<usize, String> {
    checked
        .table
        .iter()
        .filter_map(|row| match &row.origin {
            Origin::File { line, .. } => Some((*line, row.verdict.to_string())),
            _ => None,
        })
        .collect()
}

// Reads the expectation out of the fixture itself, so that no setting can be without one.
#[test]
fn every_setting_of_every_article_block_has_its_verdict_and_none_is_unknown() {
    let mut settings = 0;
    let mut blocks = 0;
    for entry in std::fs::read_dir(directory()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|ending| ending != "yaml") {
            continue;
        }
        let block = path.file_stem().unwrap().to_str().unwrap();
        let sources = sources(block);
        let checked = check(&sources);
        let expected = expected(&sources.file.as_ref().unwrap().content);
        assert_eq!(found(&checked), expected, "{block}");
        for error in &checked.errors.0 {
            assert!(
                matches!(
                    error,
                    ConfigError::NotYet { .. } | ConfigError::Rejected { .. }
                ),
                "{block}: {error}"
            );
        }
        // Two names of one setting in one block are refused once.
        let refused = checked.table.iter().filter(|row| {
            matches!(row.verdict, Verdict::NotYet | Verdict::Rejected)
                && row.overridden_by.is_none()
        });
        assert_eq!(checked.errors.0.len(), refused.count(), "{block}");
        blocks += 1;
        settings += expected.len();
    }
    assert_eq!((blocks, settings), (39, 332));
}

#[test]
fn the_exponential_block_means_what_the_article_says() {
    let loaded = Settings::load(&sources("auto-restart")).unwrap();
    assert_eq!(
        loaded.settings.job.restart.strategy,
        RestartStrategy::ExponentialDelay {
            initial_backoff: Duration::from_secs(10),
            max_backoff: Duration::from_secs(120),
            multiplier: 2.0,
            reset_threshold: Duration::from_secs(600),
            jitter_factor: 0.1,
            attempts_before_reset: None,
        }
    );
}

#[test]
fn the_fixed_delay_block_of_the_overview_means_what_it_says() {
    let loaded = Settings::load(&sources("overview-restart")).unwrap();
    assert_eq!(
        loaded.settings.job.restart.strategy,
        RestartStrategy::FixedDelay {
            attempts: 3,
            delay: Duration::from_secs(10),
        }
    );
}

#[test]
fn the_job_of_the_talk_loads_and_says_in_one_line_that_it_runs_aligned() {
    let loaded = Settings::load(&sources("talk-job")).unwrap();
    let checkpointing = &loaded.settings.job.checkpointing;
    assert_eq!(checkpointing.interval, Some(Duration::from_secs(10)));
    assert_eq!(checkpointing.min_pause, Duration::from_secs(5));
    assert_eq!(checkpointing.timeout, Duration::from_secs(60));
    assert_eq!(checkpointing.mode, CheckpointingMode::ExactlyOnce);
    assert_eq!(checkpointing.max_concurrent, 1);
    assert_eq!(checkpointing.directory, "file:///tmp/flink-checkpoints");
    assert_eq!(loaded.settings.cluster.task_slots, 3);
    let aligned = loaded.notices.iter().filter(|notice| {
        notice
            .text
            .contains("runs aligned until unaligned barriers exist")
    });
    assert_eq!(aligned.count(), 1);
}

#[test]
fn the_auto_recovery_rule_becomes_a_fixed_delay() {
    let mut sources = sources("automation-rules");
    sources
        .set("automation_rules.auto_recovery.enabled=false")
        .unwrap();
    let table = check(&sources).table;
    let row = |key: &str| table.iter().find(|row| row.key.ends_with(key)).unwrap();
    assert_eq!(
        row("auto_recovery.max_restart_attempts").verdict,
        Verdict::Alias
    );
    assert_eq!(
        row("auto_recovery.enabled").native.as_deref(),
        Some("restart-strategy.type")
    );
}
