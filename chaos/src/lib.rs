//! Breaks Perennial on purpose and checks what is left.
//!
//! [`process`] runs real nodes and kills them, [`oracle`] computes the same jobs by plain loops without any code of the engine,
//! [`simulator`] runs a whole cluster in one thread with seeded faults, [`checker`] reads checkpoints offline and holds them against the oracle. Nothing here is linked into a binary that is shipped.

pub mod checker;
pub mod invariants;
pub mod oracle;
pub mod plan;
pub mod process;
pub mod report;
pub mod scenario;
pub mod seed;
pub mod simulator;
pub mod storage;
