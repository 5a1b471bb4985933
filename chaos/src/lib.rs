//! Breaks Perennial on purpose and checks what is left.
//!
//! [`process`] runs real nodes and kills them, [`oracle`] computes the same jobs by plain loops without any code of the engine,
//! [`simulator`] runs a whole cluster in one thread with seeded faults, [`checker`] reads checkpoints offline and holds them against the oracle, [`node`] is a node with fault points, [`workload`] the job that faults are tried on. Nothing here is linked into a binary that is shipped.

pub mod catalogue;
pub mod checker;
pub mod command;
pub mod coverage;
pub mod html;
pub mod job;
pub mod node;
pub mod oracle;
pub mod plan;
pub mod process;
pub mod profile;
pub mod proxy;
pub mod report;
pub mod results;
pub mod scenario;
pub mod seed;
pub mod shrink;
pub mod simulator;
pub mod storage;
pub mod story;
pub mod summary;
pub mod workload;
