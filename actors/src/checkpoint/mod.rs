//! Checkpoints: what is decided about them. I/O happens behind [`Store`].

mod store;

pub use store::{Created, ObjectMeta, Store, StoreError, StoreFactory, StoreResult};
