//! What user functions return when they fail.

use std::error::Error;
use std::fmt;

/// Result of a user function.
pub type FunctionResult<T = ()> = Result<T, FunctionError>;

/// A failure in a user function, source or sink. Any error converts into it with `?` and is then recoverable: the restart
/// strategy decides. [`FunctionError::unrecoverable`] marks one that no retry can help.
pub struct FunctionError {
    source: Box<dyn Error + Send + Sync>,
    is_unrecoverable: bool,
    record: Option<usize>,
}

impl FunctionError {
    /// An error that fails the job at once, without a restart.
    pub fn unrecoverable(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self {
            source: source.into(),
            is_unrecoverable: true,
            record: None,
        }
    }

    /// A recoverable error from a text or another error.
    pub fn new(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self {
            source: source.into(),
            is_unrecoverable: false,
            record: None,
        }
    }

    /// Says at which record of the batch it was given a function failed, counted from 0, so that the failure can name it.
    #[must_use]
    pub fn at_record(mut self, index: usize) -> Self {
        self.record = Some(index);
        self
    }

    /// See [`at_record`](Self::at_record).
    #[must_use]
    pub fn record(&self) -> Option<usize> {
        self.record
    }

    /// Whether a retry is pointless.
    #[must_use]
    pub fn is_unrecoverable(&self) -> bool {
        self.is_unrecoverable
    }

    /// The cause.
    #[must_use]
    pub fn source(&self) -> &(dyn Error + Send + Sync + 'static) {
        &*self.source
    }
}

impl<E: Error + Send + Sync + 'static> From<E> for FunctionError {
    fn from(error: E) -> Self {
        Self::new(error)
    }
}

impl fmt::Display for FunctionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.source)?;
        let mut cause = self.source.source();
        while let Some(next) = cause {
            write!(f, ": {next}")?;
            cause = next.source();
        }
        Ok(())
    }
}

impl fmt::Debug for FunctionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "FunctionError({self}, unrecoverable: {})",
            self.is_unrecoverable
        )
    }
}
