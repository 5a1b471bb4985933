//! Merges the logs of a cluster's nodes by time.

use std::path::Path;

/// The last lines of all logs of a directory, in the order of their timestamps. Lines without one stay with the line before.
pub(super) fn merged(directory: &Path, lines_max: usize) -> String {
    let mut lines: Vec<(String, String)> = Vec::new();
    let Ok(entries) = std::fs::read_dir(directory) else {
        return "no logs".to_owned();
    };
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        let name = path.file_stem().and_then(|n| n.to_str()).unwrap_or("?");
        let Ok(bytes) = std::fs::read(&path) else {
            continue;
        };
        let mut time = String::new();
        for line in String::from_utf8_lossy(&bytes).lines() {
            let first = line.split_whitespace().next().unwrap_or_default();
            // 2026-01-02T03:04:05.678901Z sorts as text.
            if first.len() >= 20 && first.as_bytes()[10] == b'T' && first.ends_with('Z') {
                time = first.to_owned();
            }
            lines.push((time.clone(), format!("[{name}] {line}")));
        }
    }
    // Stable: lines of one time stay in their order.
    lines.sort_by(|a, b| a.0.cmp(&b.0));
    let skipped = lines.len().saturating_sub(lines_max);
    let mut text = format!("logs of all nodes ({skipped} earlier lines left out):\n");
    for (_, line) in lines.into_iter().skip(skipped) {
        text.push_str(&line);
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two logs interleave by time; a backtrace stays with its line.
    #[test]
    fn logs_are_merged_by_time() {
        let directory = tempfile::tempdir().unwrap();
        let write =
            |name: &str, text: &str| std::fs::write(directory.path().join(name), text).unwrap();
        write(
            "a.log",
            "2026-01-01T00:00:01.000000Z one\n2026-01-01T00:00:03.000000Z three\n  backtrace\n",
        );
        write(
            "b.log",
            "2026-01-01T00:00:02.000000Z two\n2026-01-01T00:00:04.000000Z four\n",
        );
        let text = merged(directory.path(), 4);
        let words: Vec<&str> = text
            .lines()
            .skip(1)
            .map(|l| l.split(' ').next_back().unwrap())
            .collect();
        assert_eq!(words, ["two", "three", "backtrace", "four"]);
        assert!(text.contains("1 earlier"));
    }
}
