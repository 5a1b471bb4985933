//! Where a node listens and where others find it: two ports behind NAT, a container's port mapping or a proxy.

/// The two configured ports of one listener.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ports {
    /// Where it is found; 0: on the port that was taken.
    pub(super) found: u16,
    /// Where it listens, when that is another; 0 takes a free one.
    pub(super) bound: Option<u16>,
}

impl Ports {
    pub(super) fn to_bind(self) -> u16 {
        self.bound.unwrap_or(self.found)
    }

    /// What others are told, given the address that was bound.
    pub(super) fn advertised(self, host: &str, bound: &str) -> String {
        let port = bound.rsplit(':').next().unwrap_or_default();
        match self.found {
            0 => format!("{host}:{port}"),
            found => format!("{host}:{found}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_are_told_the_port_under_which_they_find_a_node() {
        for (found, bound, to_bind, told) in [
            (6123, None, 6123, "node:6123"),
            (6123, Some(7000), 7000, "node:6123"),
            (6123, Some(0), 0, "node:6123"),
            (0, None, 0, "node:40001"),
            (0, Some(7000), 7000, "node:7000"),
        ] {
            let ports = Ports { found, bound };
            assert_eq!(ports.to_bind(), to_bind, "{ports:?}");
            let taken = match to_bind {
                0 => 40001,
                port => port,
            };
            let address = format!("127.0.0.1:{taken}");
            assert_eq!(ports.advertised("node", &address), told, "{ports:?}");
        }
    }
}
