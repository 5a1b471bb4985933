//! One seed per test run, printed before anything happens, so that a failure can be repeated.

use perennial_actors::entropy::Entropy;

/// Overrides the seed of every test.
pub const SEED_VARIABLE: &str = "PERENNIAL_TEST_SEED";

/// A seed of its own for whoever names none; short ones are easier to copy.
#[must_use]
pub fn fresh() -> u64 {
    Entropy::system().u64() >> 44
}

/// The dice of one test.
#[derive(Debug, Clone)]
pub struct Seed {
    value: u64,
    dice: Entropy,
}

impl Seed {
    /// Takes the seed from the environment or draws one, and prints the command that repeats the test.
    ///
    /// # Panics
    /// When the variable is set and is no number: a test must not silently run with another seed.
    #[must_use]
    #[expect(
        clippy::print_stderr,
        clippy::disallowed_methods,
        reason = "what a test prints is shown when it fails; a seed belongs to no configuration"
    )]
    pub fn announce(file: &str, test: &str) -> Self {
        let value = match std::env::var(SEED_VARIABLE) {
            Ok(text) => text
                .parse()
                .unwrap_or_else(|e| panic!("{SEED_VARIABLE}={text} is no seed: {e}")),
            // Short ones are easier to copy.
            Err(_) => Entropy::system().u64() >> 32,
        };
        let server = if test.contains("s3") {
            "scripts/s3-server run "
        } else {
            ""
        };
        eprintln!(
            "seed {value}; repeat with: {SEED_VARIABLE}={value} {server}cargo test --test {file} {test}"
        );
        Self {
            value,
            dice: Entropy::seeded(value),
        }
    }

    /// The seed itself.
    #[must_use]
    pub fn value(&self) -> u64 {
        self.value
    }

    /// A number in `0..bound`.
    #[must_use]
    pub fn below(&self, bound: u64) -> u64 {
        self.dice.u64() % bound.max(1)
    }

    /// A number in `from..to`.
    #[must_use]
    pub fn between(&self, from: u64, to: u64) -> u64 {
        from + self.below(to.saturating_sub(from))
    }

    /// One of some things, taken out of them.
    ///
    /// # Panics
    /// When there is none left.
    pub fn take<T>(&self, from: &mut Vec<T>) -> T {
        assert!(!from.is_empty(), "nothing left to choose from");
        let index = usize::try_from(self.below(from.len() as u64)).unwrap_or(0);
        from.remove(index)
    }
}
