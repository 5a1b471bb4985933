//! Rules of the store proxy as these tests write them: texts of the request's head, how it breaks, how often.

use perennial_chaos::proxy::store::{Break, Rule, Which};
use perennial_chaos::proxy::{Roster, StoreProxy};

/// Breaks the next `times` requests whose head contains each of `needles`.
pub(crate) fn rule(proxy: &StoreProxy, needles: &[&str], how: Break, times: u32) {
    let needles = needles.iter().map(|&needle| needle.to_owned()).collect();
    proxy.add(Rule {
        needles,
        times,
        ..Rule::new(Which::All, how)
    });
}

pub(crate) fn before(server: &str) -> StoreProxy {
    StoreProxy::before(server, Roster::default(), 1, None).unwrap()
}
