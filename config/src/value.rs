//! The syntax of values: durations, sizes, percents, flags, CPU shares, ports, words.
//!
//! Invariant: a text either gives one value or a reason that says what would be accepted; nothing is rounded, wrapped or guessed.
//! It does not know any key: bounds between keys are the business of `draft.rs`.

use std::time::Duration;

/// The longest duration that a key may give: a hundred years. A sum of it and any point in time cannot overflow.
pub const MAX_DURATION: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// What "no limit" means where the settings hold a plain `Duration` (`execution.buffer-timeout: -1`).
pub const NEVER: Duration = MAX_DURATION;

const NANOS: &[(&str, u128)] = &[
    ("d", 86_400_000_000_000),
    ("day", 86_400_000_000_000),
    ("days", 86_400_000_000_000),
    ("h", 3_600_000_000_000),
    ("hour", 3_600_000_000_000),
    ("hours", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("min", 60_000_000_000),
    ("minute", 60_000_000_000),
    ("minutes", 60_000_000_000),
    ("s", 1_000_000_000),
    ("sec", 1_000_000_000),
    ("second", 1_000_000_000),
    ("seconds", 1_000_000_000),
    ("", 1_000_000),
    ("ms", 1_000_000),
    ("milli", 1_000_000),
    ("millis", 1_000_000),
    ("millisecond", 1_000_000),
    ("milliseconds", 1_000_000),
    ("µs", 1_000),
    ("us", 1_000),
    ("micro", 1_000),
    ("micros", 1_000),
    ("microsecond", 1_000),
    ("microseconds", 1_000),
    ("ns", 1),
    ("nano", 1),
    ("nanos", 1),
    ("nanosecond", 1),
    ("nanoseconds", 1),
];

// Flink's units are binary whichever way they are written: `m`, `mb` and `Mi` are all 1024 * 1024.
const BYTES: &[(&str, u32)] = &[
    ("", 0),
    ("b", 0),
    ("bytes", 0),
    ("k", 10),
    ("kb", 10),
    ("ki", 10),
    ("kib", 10),
    ("kibibytes", 10),
    ("m", 20),
    ("mb", 20),
    ("mi", 20),
    ("mib", 20),
    ("mebibytes", 20),
    ("g", 30),
    ("gb", 30),
    ("gi", 30),
    ("gib", 30),
    ("gibibytes", 30),
    ("t", 40),
    ("tb", 40),
    ("ti", 40),
    ("tib", 40),
    ("tebibytes", 40),
];

/// Reads `60s`, `10min`, `1h`, `7d`, `100ms`, `PT10S` or bare milliseconds.
///
/// ```
/// # use std::time::Duration;
/// use perennial_config::value::parse_duration;
/// assert_eq!(parse_duration("10 min").unwrap(), Duration::from_secs(600));
/// assert_eq!(parse_duration("5000").unwrap(), Duration::from_secs(5));
/// assert!(parse_duration("1.5h").unwrap_err().contains("whole"));
/// ```
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    if text.starts_with(['P', 'p']) {
        return parse_iso_duration(text);
    }
    let (digits, unit) = split_number(text);
    if digits.is_empty() || unit.starts_with('.') {
        return Err(
            "expected a whole number and a unit, like 60s, 10min, 1h, 7d, 100ms or PT10S".into(),
        );
    }
    let unit = unit.to_lowercase();
    let Some((_, nanos)) = NANOS.iter().find(|(name, _)| *name == unit) else {
        return Err(format!(
            "unknown time unit \"{unit}\"; use d, h, min, s, ms, us or ns"
        ));
    };
    bounded(
        digits
            .parse::<u128>()
            .ok()
            .and_then(|n| n.checked_mul(*nanos)),
    )
}

fn bounded(nanos: Option<u128>) -> Result<Duration, String> {
    let nanos = nanos
        .filter(|n| *n <= MAX_DURATION.as_nanos())
        .ok_or_else(|| "longer than a hundred years; give at most 36500d".to_owned())?;
    let seconds = u64::try_from(nanos / 1_000_000_000).unwrap_or(u64::MAX);
    let rest = u32::try_from(nanos % 1_000_000_000).unwrap_or(0);
    Ok(Duration::new(seconds, rest))
}

/// `P1DT2H3M4.5S` and its parts. No signs, weeks, months or years: their length is not fixed.
fn parse_iso_duration(text: &str) -> Result<Duration, String> {
    let wrong = || {
        format!("\"{text}\" is not an ISO-8601 duration of days and time, like PT10S or P1DT12H")
    };
    let mut rest = &text[1..];
    let mut total: Option<u128> = Some(0);
    // Index into "DHMS": each unit once, in this order.
    let mut next = 0;
    let mut in_time = false;
    let mut parts = 0;
    while !rest.is_empty() {
        if rest.starts_with(['T', 't']) && !in_time && rest.len() > 1 {
            in_time = true;
            next = next.max(1);
            rest = &rest[1..];
            continue;
        }
        let end = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .ok_or_else(wrong)?;
        let (number, tail) = rest.split_at(end);
        let unit = tail.chars().next().ok_or_else(wrong)?.to_ascii_uppercase();
        let index = "DHMS".find(unit).ok_or_else(wrong)?;
        if index < next || (index > 0) != in_time {
            return Err(wrong());
        }
        let nanos = [
            86_400_000_000_000_u128,
            3_600_000_000_000,
            60_000_000_000,
            1_000_000_000,
        ][index];
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty()
            || number.matches('.').count() > 1
            || fraction.len() > 9
            || (unit != 'S' && number.contains('.'))
            || number.ends_with('.')
        {
            return Err(wrong());
        }
        let part = whole
            .parse::<u128>()
            .ok()
            .and_then(|n| n.checked_mul(nanos));
        let fraction = format!("{fraction:0<9}").parse::<u128>().ok();
        total = match (total, part, fraction) {
            (Some(total), Some(part), Some(fraction)) => total
                .checked_add(part)
                .and_then(|sum| sum.checked_add(fraction)),
            _ => None,
        };
        next = index + 1;
        parts += 1;
        rest = &tail[1..];
    }
    if parts == 0 {
        return Err(wrong());
    }
    bounded(total)
}

/// Writes a duration so that [`parse_duration`] reads the same value.
pub fn format_duration(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    for (unit, size) in [
        ("d", 86_400_000_000_000),
        ("h", 3_600_000_000_000),
        ("min", 60_000_000_000),
        ("s", 1_000_000_000),
        ("ms", 1_000_000),
        ("us", 1_000),
    ] {
        if nanos >= size && nanos.is_multiple_of(size) {
            return format!("{}{unit}", nanos / size);
        }
    }
    match nanos {
        0 => "0s".to_owned(),
        n => format!("{n}ns"),
    }
}

/// Reads `512m`, `1g`, `128mb`, `32kb`, `256Mi`, `1048576b` or bare bytes, in Flink's binary units.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let (digits, unit) = split_number(text.trim());
    if digits.is_empty() || unit.starts_with('.') {
        return Err(
            "expected a whole number and a unit, like 512m, 1g, 128mb, 32kb or 256Mi".into(),
        );
    }
    let unit = unit.to_lowercase();
    let Some((_, shift)) = BYTES.iter().find(|(name, _)| *name == unit) else {
        return Err(format!(
            "unknown size unit \"{unit}\"; use b, kb, mb, gb or tb (powers of 1024)"
        ));
    };
    digits
        .parse::<u64>()
        .ok()
        .and_then(|n| n.checked_mul(1 << shift))
        .ok_or_else(|| "more bytes than 64 bits can count".to_owned())
}

/// Writes a size so that [`parse_size`] reads the same value.
pub fn format_size(bytes: u64) -> String {
    for (unit, shift) in [("tb", 40), ("gb", 30), ("mb", 20), ("kb", 10)] {
        let size = 1_u64 << shift;
        if bytes >= size && bytes.is_multiple_of(size) {
            return format!("{}{unit}", bytes / size);
        }
    }
    format!("{bytes}b")
}

/// Reads a flag: `true` or `false`.
pub fn parse_flag(text: &str) -> Result<bool, String> {
    match text.trim().to_ascii_lowercase().as_str() {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err("expected true or false".into()),
    }
}

/// Reads a finite decimal number, without exponent games: `2.0`, `1`, `-0.5`.
pub fn parse_decimal(text: &str) -> Result<f64, String> {
    let text = text.trim();
    let is_plain = !text.is_empty()
        && text
            .bytes()
            .all(|b| b.is_ascii_digit() || b".-+eE".contains(&b));
    match text.parse::<f64>() {
        Ok(number) if is_plain && number.is_finite() => Ok(number),
        _ => Err("expected a number, like 1.5".into()),
    }
}

/// Reads a share from 0 to 1: `0.8` or `80%`.
pub fn parse_share(text: &str) -> Result<f64, String> {
    let wrong = "expected a share from 0 to 1, like 0.8 or 80%";
    let share = match text.trim().strip_suffix('%') {
        Some(percent) => parse_decimal(percent).map_err(|_| wrong)? / 100.0,
        None => parse_decimal(text).map_err(|_| wrong)?,
    };
    if (0.0..=1.0).contains(&share) {
        Ok(share)
    } else {
        Err(wrong.into())
    }
}

/// Reads CPU cores: `1.5` or Kubernetes' `1500m`.
pub fn parse_cpu(text: &str) -> Result<f64, String> {
    let wrong = "expected CPU cores, like 1.0 or 1000m";
    let cores = match text.trim().strip_suffix('m') {
        Some(milli) => parse_decimal(milli).map_err(|_| wrong)? / 1000.0,
        None => parse_decimal(text).map_err(|_| wrong)?,
    };
    if cores > 0.0 {
        Ok(cores)
    } else {
        Err(wrong.into())
    }
}

/// Reads a whole number between two bounds.
pub fn parse_count(text: &str, min: i64, max: i64) -> Result<i64, String> {
    text.trim()
        .parse::<i64>()
        .ok()
        .filter(|n| (min..=max).contains(n))
        .ok_or_else(|| format!("expected a whole number from {min} to {max}"))
}

/// Reads one port or a choice of ports: `9249`, `9249-9260`, `50100,50200-50300`.
pub fn parse_ports(text: &str) -> Result<Vec<(u16, u16)>, String> {
    let port = |text: &str| {
        text.trim()
            .parse::<u16>()
            .map_err(|_| format!("\"{}\" is not a port from 0 to 65535", text.trim()))
    };
    text.split(',')
        .map(|part| {
            let (low, high) = part.split_once('-').unwrap_or((part, part));
            let (low, high) = (port(low)?, port(high)?);
            if low <= high {
                Ok((low, high))
            } else {
                Err(format!("port range {low}-{high} runs backwards"))
            }
        })
        .collect()
}

/// Reads a directory URI. An absolute path means `file://`; `s3a` and `s3p` mean `s3`, as they did in Flink.
pub fn parse_directory(text: &str) -> Result<String, String> {
    let text = text.trim().trim_end_matches('/');
    if text.starts_with('/') {
        return Ok(format!("file://{text}"));
    }
    let expected = "expected a directory, like file:///var/lib/perennial or s3://bucket/path";
    let (scheme, rest) = text.split_once(':').ok_or(expected)?;
    match scheme.to_ascii_lowercase().as_str() {
        "file" => {
            let path = rest.strip_prefix("//").unwrap_or(rest);
            if path.starts_with('/') && path.len() > 1 {
                Ok(format!("file://{path}"))
            } else {
                Err("a file URI needs an absolute path, like file:///var/lib/perennial".into())
            }
        }
        "s3" | "s3a" | "s3p" => {
            let path = rest.strip_prefix("//").ok_or(expected)?;
            if path.is_empty() || path.starts_with('/') {
                Err("an S3 URI needs a bucket, like s3://bucket/path".into())
            } else {
                Ok(format!("s3://{path}"))
            }
        }
        other => Err(format!(
            "storage \"{other}\" does not exist here; use file:// or s3://"
        )),
    }
}

/// Folds case, `-`, `_` and blanks, so that `FIXED_DELAY`, `fixed-delay` and `fixeddelay` are one word.
pub fn fold(word: &str) -> String {
    word.chars()
        .filter(|c| !matches!(c, '-' | '_') && !c.is_whitespace())
        .flat_map(char::to_lowercase)
        .collect()
}

fn split_number(text: &str) -> (&str, &str) {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    (digits, unit.trim())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    // A table: text and milliseconds.
    #[test]
    fn every_duration_form_of_flink_and_the_articles_is_read() {
        for (text, millis) in [
            ("60s", 60_000),
            ("600s", 600_000),
            ("10min", 600_000),
            ("2min", 120_000),
            ("10 m", 600_000),
            ("1h", 3_600_000),
            ("24h", 86_400_000),
            ("7d", 604_800_000),
            ("90 days", 7_776_000_000),
            ("100ms", 100),
            ("5000", 5_000),
            ("PT10S", 10_000),
            ("pt0.25s", 250),
            ("P1DT1H1M1S", 90_061_000),
            ("0", 0),
            ("0s", 0),
        ] {
            assert_eq!(
                parse_duration(text),
                Ok(Duration::from_millis(millis)),
                "{text}"
            );
        }
        for text in [
            "",
            "s",
            "-1",
            "1.5h",
            "10 parsecs",
            "P",
            "PT",
            "P1",
            "P1M",
            "PT1S1H",
            "PTS",
            "P1DT",
            "PT1.S",
            "1e3s",
            "99999999999999999999d",
            "36501d",
            "PT1.1.1S",
            "PP1D",
            "P1H",
        ] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn every_size_form_is_read_in_binary_units() {
        for (text, bytes) in [
            ("512m", 512 << 20),
            ("1g", 1 << 30),
            ("128mb", 128 << 20),
            ("1 GB", 1 << 30),
            ("32kb", 32 << 10),
            ("256Mi", 256 << 20),
            ("2048m", 2048 << 20),
            ("536870912b", 512 << 20),
            ("42", 42),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "m", "1.5g", "-1", "1x", "99999999999t"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn shares_cpus_flags_and_ports_are_read_or_refused() {
        assert_eq!(parse_share("10%"), Ok(0.1));
        assert_eq!(parse_share("0.8"), Ok(0.8));
        assert!(parse_share("1.1").is_err() && parse_share("NaN").is_err());
        assert_eq!(parse_cpu("1000m"), Ok(1.0));
        assert_eq!(parse_cpu("1.0"), Ok(1.0));
        assert!(parse_cpu("0").is_err() && parse_cpu("infm").is_err());
        assert_eq!(parse_flag(" TRUE "), Ok(true));
        assert!(parse_flag("yes").is_err());
        assert_eq!(parse_ports("9249-9260,1"), Ok(vec![(9249, 9260), (1, 1)]));
        assert!(parse_ports("2-1").is_err() && parse_ports("65536").is_err());
        assert_eq!(fold("FIXED_DELAY"), fold("fixed-delay"));
    }

    #[test]
    fn directories_are_normalised_and_foreign_schemes_refused() {
        assert_eq!(parse_directory("/tmp/a/"), Ok("file:///tmp/a".into()));
        assert_eq!(parse_directory("file:/tmp/a"), Ok("file:///tmp/a".into()));
        assert_eq!(parse_directory("s3a://b/c/"), Ok("s3://b/c".into()));
        for text in ["", "tmp", "hdfs://a/b", "s3://", "s3:b", "file://host"] {
            assert!(parse_directory(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_formatted_duration_reads_back_the_same(nanos in 0..MAX_DURATION.as_nanos()) {
            let duration = bounded(Some(nanos)).unwrap();
            prop_assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
        }

        #[test]
        fn round_durations_read_back_the_same(count in 0_u64..1000, unit in 0..6_usize) {
            let unit = [1, 1_000, 60_000, 3_600_000, 86_400_000, 7][unit];
            let duration = Duration::from_millis(count * unit);
            prop_assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
        }

        #[test]
        fn a_formatted_size_reads_back_the_same(bytes: u64, shift in 0..50_u32) {
            for bytes in [bytes, (bytes >> 50) << shift] {
                prop_assert_eq!(parse_size(&format_size(bytes)), Ok(bytes));
            }
        }

        #[test]
        fn no_text_panics_a_value_parser(text in "\\PC{0,24}", iso in "[pP][0-9tTdDhHmMsS.]{0,16}") {
            for text in [text.as_str(), iso.as_str()] {
                let _ = (parse_duration(text), parse_size(text), parse_share(text), parse_cpu(text));
                let _ = (parse_count(text, 0, 9), parse_ports(text), parse_directory(text), fold(text));
            }
        }
    }
}
