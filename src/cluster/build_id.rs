//! The fingerprint of this executable: a job runs only on TaskManagers of the build that submitted it.

use std::sync::OnceLock;

use perennial_actors::model::BuildId;
use sha2::{Digest, Sha256};

/// The linker's build id, or a hash of the executable's bytes where the linker writes none.
#[must_use]
pub fn build_id() -> BuildId {
    static ID: OnceLock<BuildId> = OnceLock::new();
    ID.get_or_init(|| {
        let linked = buildid::build_id().map(hex);
        let hashed = || {
            let path = std::env::current_exe().ok()?;
            let bytes = std::fs::read(path).ok()?;
            Some(hex(&Sha256::digest(&bytes)[..20]))
        };
        BuildId(linked.or_else(hashed).unwrap_or_else(|| "unknown".into()))
    })
    .clone()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    /// Every build is told apart from others, in some way.
    #[test]
    fn this_executable_has_a_fingerprint() {
        let id = super::build_id();
        assert!(id.0.len() >= 16, "{id}");
        assert_eq!(id, super::build_id());
    }
}
