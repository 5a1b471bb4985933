//! The one source of randomness: ids, tokens, jitter. Seeded in the simulator, so that one seed gives one trace.

use std::sync::{Arc, Mutex, PoisonError};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Dice that can be shared. Clones draw from the same sequence.
#[derive(Debug, Clone)]
pub struct Entropy(Arc<Mutex<StdRng>>);

impl Entropy {
    /// Seeded by the operating system.
    ///
    /// # Panics
    /// When the operating system has no randomness to give, which Linux excludes after boot.
    #[must_use]
    pub fn system() -> Self {
        let mut seed = [0_u8; 32];
        getrandom::fill(&mut seed).expect("the operating system has randomness after boot");
        Self(Arc::new(Mutex::new(StdRng::from_seed(seed))))
    }

    /// The sequence of a seed.
    #[must_use]
    pub fn seeded(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(StdRng::seed_from_u64(seed))))
    }

    /// 128 random bits.
    #[must_use]
    pub fn u128(&self) -> u128 {
        (u128::from(self.u64()) << 64) | u128::from(self.u64())
    }

    /// 64 random bits.
    #[must_use]
    pub fn u64(&self) -> u64 {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .next_u64()
    }
}
