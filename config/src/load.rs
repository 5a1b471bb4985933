//! Loads settings: a check that refuses when something is wrong.
//!
//! Invariant: [`Loaded`] exists only where no source holds an error. [`Settings::default`] is what loading nothing gives.

use crate::check::{Row, check, check_with_job};
use crate::error::{ConfigErrors, Notice, Origin};
use crate::settings::{JobSettings, Settings};
use crate::sources::Sources;

/// Settings that are complete and valid, and what there is to say about them.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// To run with.
    pub settings: Settings,
    /// One line each, to be said once at start.
    pub notices: Vec<Notice>,
    /// Every setting and default with its verdict.
    pub table: Vec<Row>,
    sources: Sources,
}

impl Loaded {
    /// The settings of one job that sets some keys for itself: stronger than every other source.
    ///
    /// Defaults that depend on other keys are derived again: a job that turns checkpoints on gets the restart strategy that goes
    /// with them, unless somebody chose one.
    ///
    /// ```
    /// use perennial_config::{RestartStrategy, Settings, Sources};
    /// let loaded = Settings::load(&Sources::default())?;
    /// assert_eq!(loaded.settings.job.restart.strategy, RestartStrategy::None);
    /// let (job, _) = loaded.job(&[("execution.checkpointing.interval", "10s")])?;
    /// assert!(matches!(job.restart.strategy, RestartStrategy::ExponentialDelay { .. }));
    /// assert!(loaded.job(&[("taskmanager.numberOfTaskSlots", "2")]).is_err());
    /// # Ok::<(), perennial_config::ConfigErrors>(())
    /// ```
    pub fn job<K: AsRef<str>, V: AsRef<str>>(
        &self,
        overrides: &[(K, V)],
    ) -> Result<(JobSettings, Vec<Notice>), ConfigErrors> {
        let mut checked = check_with_job(&self.sources, &owned(overrides));
        if checked.errors.0.is_empty() {
            checked
                .notices
                .retain(|notice| notice.origin == Origin::Job);
            Ok((checked.settings.job, checked.notices))
        } else {
            Err(checked.errors)
        }
    }
}

impl Settings {
    /// Loads all sources or says everything that is wrong with them.
    pub fn load(sources: &Sources) -> Result<Loaded, ConfigErrors> {
        let checked = check(sources);
        if !checked.errors.0.is_empty() {
            return Err(checked.errors);
        }
        Ok(Loaded {
            settings: checked.settings,
            notices: checked.notices,
            table: checked.table,
            sources: sources.clone(),
        })
    }

    /// The defaults with some keys set; for tests and for programs without a configuration.
    ///
    /// ```
    /// use perennial_config::Settings;
    /// let settings = Settings::with(&[("parallelism.default", "4")]).unwrap();
    /// assert_eq!(settings.job.parallelism, 4);
    /// ```
    pub fn with<K: AsRef<str>, V: AsRef<str>>(
        overrides: &[(K, V)],
    ) -> Result<Settings, ConfigErrors> {
        let sources = Sources {
            overrides: owned(overrides),
            ..Sources::default()
        };
        Ok(Settings::load(&sources)?.settings)
    }
}

impl Default for Settings {
    /// Equals loading nothing. That nothing loads without an error is held by a test.
    fn default() -> Settings {
        check(&Sources::default()).settings
    }
}

impl Default for JobSettings {
    /// Those of [`Settings::default`].
    fn default() -> JobSettings {
        Settings::default().job
    }
}

fn owned<K: AsRef<str>, V: AsRef<str>>(pairs: &[(K, V)]) -> Vec<(String, String)> {
    pairs
        .iter()
        .map(|(key, value)| (key.as_ref().to_owned(), value.as_ref().to_owned()))
        .collect()
}
