//! Reads the URIs that users write for stores. Pure: touches neither disk nor network.

use std::path::PathBuf;

use perennial_actors::checkpoint::StoreError;

/// Where a store lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreUri {
    /// `file:///directory`.
    File(PathBuf),
    /// `s3://bucket/prefix`.
    S3 {
        /// The bucket's name.
        bucket: String,
        /// Without slashes at either end; may be empty.
        prefix: String,
    },
    /// `memory://name/prefix`.
    Memory {
        /// Which of the process's memory stores.
        name: String,
        /// Without slashes at either end; may be empty.
        prefix: String,
    },
}

impl StoreUri {
    /// Reads a URI.
    ///
    /// # Errors
    /// [`StoreError::Invalid`] saying what would be right.
    pub fn parse(uri: &str) -> Result<Self, StoreError> {
        let invalid = |message: String| StoreError::Invalid {
            uri: uri.to_owned(),
            message,
        };
        if uri.chars().any(char::is_control) {
            return Err(invalid("a URI has no control characters".to_owned()));
        }
        let Some((scheme, rest)) = uri.split_once(':') else {
            return Err(invalid(format!(
                "has no scheme: write file:///directory, s3://bucket/prefix or memory://name{}",
                if uri.starts_with('/') {
                    format!(", here file://{uri}")
                } else {
                    String::new()
                }
            )));
        };
        match scheme {
            "file" => parse_file(rest).map_err(invalid),
            "s3" => {
                let (bucket, prefix) =
                    parse_name_and_prefix(rest, "s3://bucket/prefix").map_err(invalid)?;
                if bucket.len() < 3
                    || bucket.len() > 63
                    || !bucket
                        .bytes()
                        .all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
                {
                    return Err(invalid(format!(
                        "{bucket:?} is not a bucket name: 3 to 63 letters, digits, `-`, `.`; the form is s3://bucket/prefix"
                    )));
                }
                Ok(Self::S3 { bucket, prefix })
            }
            "memory" => {
                let (name, prefix) =
                    parse_name_and_prefix(rest, "memory://name").map_err(invalid)?;
                Ok(Self::Memory { name, prefix })
            }
            "s3a" | "s3n" | "s3p" => Err(invalid(format!(
                "scheme {scheme} names a Hadoop or Presto file system: write s3:{rest}"
            ))),
            other => Err(invalid(format!(
                "unknown scheme {other:?}: this build knows file, s3 and memory"
            ))),
        }
    }
}

fn parse_file(rest: &str) -> Result<StoreUri, String> {
    let path = match rest.strip_prefix("//") {
        Some(after) => after.strip_prefix("localhost").unwrap_or(after),
        None => rest,
    };
    if !path.starts_with('/') {
        return Err(
            "a file URI needs an absolute path and no host: write file:///directory".to_owned(),
        );
    }
    if path.split('/').any(|segment| segment == "..") {
        return Err("a file URI has no `..`: write the directory's real path".to_owned());
    }
    let trimmed = path.trim_end_matches('/');
    if trimmed.is_empty() {
        return Err("the root directory is not a store: write file:///directory".to_owned());
    }
    Ok(StoreUri::File(PathBuf::from(trimmed)))
}

fn parse_name_and_prefix(rest: &str, form: &str) -> Result<(String, String), String> {
    let Some(rest) = rest.strip_prefix("//") else {
        return Err(format!("the form is {form}"));
    };
    let (name, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    if name.is_empty() {
        return Err(format!("has no name after `//`: the form is {form}"));
    }
    let prefix = prefix.trim_matches('/');
    if prefix
        .split('/')
        .any(|segment| matches!(segment, "." | ".."))
        || prefix.contains("//")
    {
        return Err("the prefix has an empty, `.` or `..` segment".to_owned());
    }
    Ok((name.to_owned(), prefix.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_schemes_are_read() {
        let file = |path: &str| StoreUri::File(PathBuf::from(path));
        assert_eq!(StoreUri::parse("file:///a/b/").unwrap(), file("/a/b"));
        assert_eq!(StoreUri::parse("file:/a/b").unwrap(), file("/a/b"));
        assert_eq!(StoreUri::parse("file://localhost/a").unwrap(), file("/a"));
        for (uri, prefix) in [
            ("s3://abc", ""),
            ("s3://abc/", ""),
            ("s3://abc/p/q/", "p/q"),
        ] {
            assert_eq!(
                StoreUri::parse(uri).unwrap(),
                StoreUri::S3 {
                    bucket: "abc".to_owned(),
                    prefix: prefix.to_owned()
                }
            );
        }
        assert_eq!(
            StoreUri::parse("memory://m/ha").unwrap(),
            StoreUri::Memory {
                name: "m".to_owned(),
                prefix: "ha".to_owned()
            }
        );
    }

    #[test]
    fn a_wrong_uri_says_what_would_be_right() {
        for (uri, hint) in [
            ("/data/chk", "here file:///data/chk"),
            ("chk", "file:///directory"),
            ("file://host/a", "file:///directory"),
            ("file:a", "file:///directory"),
            ("file:///", "file:///directory"),
            ("file:///a/../b", "`..`"),
            ("s3:bucket", "s3://bucket/prefix"),
            ("s3:///a", "s3://bucket/prefix"),
            ("s3://a!b/c", "s3://bucket/prefix"),
            ("s3://abc/a//b", "segment"),
            ("s3a://abc/a", "write s3://abc/a"),
            ("memory://", "memory://name"),
            ("hdfs://n/a", "file, s3 and memory"),
            ("", "file:///directory"),
        ] {
            let error = StoreUri::parse(uri).unwrap_err();
            assert!(matches!(error, StoreError::Invalid { .. }));
            assert!(error.to_string().contains(hint), "{uri}: {error}");
        }
    }
}
