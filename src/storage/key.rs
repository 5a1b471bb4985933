//! What a key may look like, the same for every store, so that a job moves from disk to S3 without a surprise.
//!
//! Invariant: an accepted key joined to a root stays inside it, and is never the name of a temporary file.

use perennial_actors::checkpoint::StoreError;

/// The longest key, in bytes; S3's own limit, less room for a prefix.
pub const KEY_BYTES_MAX: usize = 900;
/// The longest segment between two slashes, in bytes: a file name has 255, of which a temporary name needs some.
pub const SEGMENT_BYTES_MAX: usize = 200;
/// Begins the names of files that are still being written.
pub(super) const TEMPORARY_PREFIX: &str = ".tmp-";

/// Accepts relative keys of non-empty segments other than `.` and `..`, without control characters or backslashes.
pub(super) fn check_key(root: &str, key: &str) -> Result<(), StoreError> {
    let complaint = complaint_about(key, key.split('/'));
    complaint.map_or(Ok(()), |what| Err(invalid(root, key, what)))
}

/// As [`check_key`], but the last segment may be partial or empty: `""`, `chk-`, `chk-1/`.
pub(super) fn check_prefix(root: &str, prefix: &str) -> Result<(), StoreError> {
    let complaint = match prefix.rsplit_once('/') {
        None => complaint_about_text(prefix),
        Some((directory, _)) => complaint_about(prefix, directory.split('/')),
    };
    let last = prefix.rsplit('/').next().unwrap_or_default();
    let complaint = complaint.or((last == "..").then_some("it has a `..` segment"));
    complaint.map_or(Ok(()), |what| Err(invalid(root, prefix, what)))
}

fn complaint_about<'a>(
    whole: &str,
    segments: impl Iterator<Item = &'a str>,
) -> Option<&'static str> {
    if whole.starts_with('/') {
        return Some("it is absolute; keys are relative to the store's root");
    }
    for segment in segments {
        let complaint = match segment {
            "" => "it has an empty segment",
            "." | ".." => "it has a `.` or `..` segment",
            long if long.len() > SEGMENT_BYTES_MAX => "a segment is longer than 200 bytes",
            temporary if temporary.starts_with(TEMPORARY_PREFIX) => {
                "names beginning with `.tmp-` belong to unfinished writes"
            }
            _good => continue,
        };
        return Some(complaint);
    }
    complaint_about_text(whole)
}

fn complaint_about_text(text: &str) -> Option<&'static str> {
    if text.len() > KEY_BYTES_MAX {
        return Some("it is longer than 900 bytes");
    }
    // XML listings cannot carry control characters, and a backslash is a separator elsewhere.
    text.chars()
        .any(|c| c.is_control() || c == '\\')
        .then_some("it has a control character or a backslash")
}

fn invalid(root: &str, key: &str, what: &str) -> StoreError {
    StoreError::Invalid {
        uri: format!("{root}/{}", key.escape_debug()),
        message: format!("not a key: {what}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_could_leave_the_root_or_hide_are_refused() {
        let long = "x".repeat(SEGMENT_BYTES_MAX + 1);
        let longer = vec!["abc"; 300].join("/");
        for key in [
            "", "/a", "a//b", "a/", "../a", "a/../b", "a/./b", "a/..", ".tmp-1-a", "a/.tmp-x",
            "a\nb", "a\0", "a\\b", &long, &longer,
        ] {
            let refused = check_key("file:///r", key);
            assert!(
                matches!(refused, Err(StoreError::Invalid { .. })),
                "{key:?}: {refused:?}"
            );
        }
        for key in [
            "a",
            "a/b",
            "chk-1/_metadata",
            "ä ö+%&'\"<>#?=;:@/…",
            "..a",
            ".hidden",
            "a..b/c",
        ] {
            assert!(check_key("file:///r", key).is_ok(), "{key:?}");
        }
    }

    #[test]
    fn prefixes_may_end_anywhere_but_never_climb() {
        for prefix in ["", "a", "a/", "a/b", "chk-1", "a/b/c-"] {
            assert!(check_prefix("file:///r", prefix).is_ok(), "{prefix:?}");
        }
        for prefix in ["/", "/a", "..", "../", "a/../b", "a//b", "a/..", "a\u{7f}"] {
            assert!(check_prefix("file:///r", prefix).is_err(), "{prefix:?}");
        }
    }
}
