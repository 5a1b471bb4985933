//! Which requests are broken, and how. Decides only.

use std::collections::BTreeMap;
use std::time::Duration;

use hyper::Method;
use perennial_actors::entropy::Entropy;

/// How a request is broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Break {
    /// The connection is closed before the server sees anything.
    CutRequest,
    /// The server does it; the answer is thrown away and the connection closed.
    CutAnswer,
    /// The same, but a refusal is passed on.
    LoseSuccess,
    /// Nothing is forwarded, nothing answered, the connection stays open until the rule ends.
    Silence,
    /// The answer's body stops after so many bytes, and the connection stays open until the rule ends.
    StopBodyAfter(usize),
    /// The connection is closed after so many bytes of the answer's body.
    CutBodyAfter(usize),
    /// The connection is closed in the middle of the answer's body, if it has one.
    CutBody,
    /// The server does not see it; this status is answered, with the error that S3 has for it.
    Answer(u16),
    /// Bodies of both ways crawl, at so many bytes a second.
    Crawl(u64),
    /// The connection is closed; the server sees the request so much later.
    Late(Duration),
    /// A listing is answered as the last time before.
    Stale,
    /// Somebody else creates a record of this name first.
    Rival,
}

/// Which requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// Each.
    All,
    /// Plain writes.
    Put,
    /// Conditional creates.
    Create,
    /// Conditional creates of checkpoint records.
    CreateRecord,
    /// Completions of multipart uploads.
    CompleteMultipart,
    /// Reads of objects.
    Get,
    /// Listings.
    List,
    /// Deletes.
    Delete,
}

/// Breaks requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Of this node; `None`: of everybody.
    pub node: Option<String>,
    /// Of this kind.
    pub which: Which,
    /// With these texts in the head, all of them: method, target, header lines.
    pub needles: Vec<String>,
    /// This share of them.
    pub percent: u32,
    /// So many.
    pub times: u32,
    /// How.
    pub how: Break,
}

impl Rule {
    /// Breaks each request of a kind, of everybody, until it is removed.
    #[must_use]
    pub fn new(which: Which, how: Break) -> Self {
        Self {
            node: None,
            which,
            needles: Vec::new(),
            percent: 100,
            times: u32::MAX,
            how,
        }
    }
}

/// Names a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RuleId(u64);

/// A request, as far as rules look at it.
pub(super) struct Asked<'a> {
    pub(super) node: Option<&'a str>,
    pub(super) method: &'a Method,
    /// Path and query.
    pub(super) target: &'a str,
    /// First line and headers.
    pub(super) head: &'a str,
    pub(super) is_conditional: bool,
}

impl Asked<'_> {
    pub(super) fn is(&self, which: Which) -> bool {
        let query = self.target.split_once('?').map_or("", |(_, q)| q);
        let is_plain = !query.contains("uploadId=") && !query.contains("uploads");
        let is_list = query.contains("list-type=") || query.contains("uploads");
        match which {
            Which::All => true,
            Which::Put => *self.method == Method::PUT && !self.is_conditional,
            Which::Create => *self.method == Method::PUT && self.is_conditional,
            Which::CreateRecord => {
                let path = self.target.split('?').next().unwrap_or_default();
                self.is(Which::Create) && path.ends_with("/_metadata")
            }
            Which::CompleteMultipart => *self.method == Method::POST && query.contains("uploadId="),
            Which::Get => *self.method == Method::GET && is_plain && !is_list,
            Which::List => *self.method == Method::GET && is_list,
            Which::Delete => {
                *self.method == Method::DELETE
                    || (*self.method == Method::POST && query.starts_with("delete"))
            }
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Rules {
    last: u64,
    active: BTreeMap<RuleId, (Rule, u64)>,
}

impl Rules {
    pub(super) fn add(&mut self, rule: Rule) -> RuleId {
        self.last += 1;
        let id = RuleId(self.last);
        self.active.insert(id, (rule, 0));
        id
    }

    pub(super) fn remove(&mut self, id: RuleId) -> u64 {
        self.active.remove(&id).map_or(0, |(_, hits)| hits)
    }

    pub(super) fn hits(&self, id: RuleId) -> u64 {
        self.active.get(&id).map_or(0, |(_, hits)| *hits)
    }

    pub(super) fn has(&self, id: RuleId) -> bool {
        self.active.contains_key(&id)
    }

    /// The oldest rule that applies; one of its times is used up.
    pub(super) fn take(&mut self, asked: &Asked<'_>, dice: &Entropy) -> Option<(RuleId, Break)> {
        for (id, (rule, hits)) in &mut self.active {
            let applies = *hits < u64::from(rule.times)
                && rule.node.as_deref().is_none_or(|n| asked.node == Some(n))
                && asked.is(rule.which)
                && rule.needles.iter().all(|n| asked.head.contains(n.as_str()))
                // Drawn last: only for requests that it is about.
                && (rule.percent >= 100 || dice.u64() % 100 < u64::from(rule.percent));
            if applies {
                *hits += 1;
                return Some((*id, rule.how.clone()));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(method: Method, target: &str, is_conditional: bool) -> Vec<Which> {
        let asked = Asked {
            node: None,
            method: &method,
            target,
            head: "",
            is_conditional,
        };
        let all = [
            Which::Put,
            Which::Create,
            Which::CreateRecord,
            Which::CompleteMultipart,
            Which::Get,
            Which::List,
            Which::Delete,
        ];
        all.into_iter().filter(|w| asked.is(*w)).collect()
    }

    #[test]
    fn a_request_is_of_its_kind() {
        use Which::{CompleteMultipart, Create, CreateRecord, Delete, Get, List, Put};
        for (method, target, is_conditional, expected) in [
            (Method::PUT, "/b/shared/e1-c1-a1-00000000", false, vec![Put]),
            (
                Method::PUT,
                "/b/k?partNumber=1&uploadId=x",
                false,
                vec![Put],
            ),
            (Method::PUT, "/b/epoch-1?x-id=PutObject", true, vec![Create]),
            (
                Method::PUT,
                "/b/chk-1/_metadata?x-id=PutObject",
                true,
                vec![Create, CreateRecord],
            ),
            (
                Method::POST,
                "/b/k?uploadId=x",
                false,
                vec![CompleteMultipart],
            ),
            (Method::POST, "/b/k?uploads", false, vec![]),
            (Method::GET, "/b/k?x-id=GetObject", false, vec![Get]),
            (Method::GET, "/b/?list-type=2&prefix=k", false, vec![List]),
            (Method::GET, "/b/?uploads&prefix=k", false, vec![List]),
            (Method::DELETE, "/b/k", false, vec![Delete]),
        ] {
            assert_eq!(
                kinds(method.clone(), target, is_conditional),
                expected,
                "{method} {target}"
            );
        }
    }

    #[test]
    fn a_rule_applies_to_its_node_so_often_and_no_more() {
        let dice = Entropy::seeded(1);
        let mut rules = Rules::default();
        let id = rules.add(Rule {
            node: Some("a".to_owned()),
            times: 2,
            ..Rule::new(Which::Get, Break::CutRequest)
        });
        let asked = |node| Asked {
            node,
            method: &Method::GET,
            target: "/b/k",
            head: "GET /b/k",
            is_conditional: false,
        };
        assert_eq!(rules.take(&asked(Some("b")), &dice), None);
        assert_eq!(rules.take(&asked(None), &dice), None);
        for _ in 0..2 {
            assert!(rules.take(&asked(Some("a")), &dice).is_some());
        }
        assert_eq!(rules.take(&asked(Some("a")), &dice), None);
        assert_eq!(rules.remove(id), 2);
    }
}
