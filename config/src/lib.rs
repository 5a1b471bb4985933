//! The typed settings of Perennial: `config/` tells (design.md section 1).
//!
//! Invariant: nothing is swallowed. A key either has its effect, or is refused with the word that explains it.

mod settings;

pub use settings::*;
