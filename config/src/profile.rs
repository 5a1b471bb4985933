//! The profiles that are compiled in: `development`, `staging`, `production`.
//!
//! Invariant: each loads without an error. A profile lies under the file, so that each of its values can be overridden.

const PROFILES: &[(&str, &str)] = &[
    ("development", include_str!("../profiles/development.yaml")),
    ("staging", include_str!("../profiles/staging.yaml")),
    ("production", include_str!("../profiles/production.yaml")),
];

/// The names of the profiles.
pub fn profile_names() -> impl Iterator<Item = &'static str> {
    PROFILES.iter().map(|(name, _)| *name)
}

/// The text of a profile, with its comments.
///
/// ```
/// assert!(perennial_config::profile_text("production").unwrap().contains("exponential-delay"));
/// assert!(perennial_config::profile_text("prod").is_none());
/// ```
pub fn profile_text(name: &str) -> Option<&'static str> {
    PROFILES
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, text)| *text)
}
