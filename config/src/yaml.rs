//! Turns YAML into flat `key, value, line` entries: flat keys (`a.b: 1`), nested keys and any mixture.
//!
//! Invariant: no input panics or hangs it, and what is not understood is an error with its line, never skipped.
//! It does not know which keys exist. Scalars stay text: `1`, `"1"` and `01` are what was written.

use saphyr_parser::{Event, Marker, Parser, ScalarStyle};

/// The longest configuration that is read, in bytes.
pub const CONFIG_BYTES_MAX: usize = 1 << 20;

/// The deepest nesting of keys that is read.
pub const CONFIG_DEPTH_MAX: usize = 32;

/// The most keys that one source may set: a mistaken file is refused before each of its lines is looked up.
pub const CONFIG_KEYS_MAX: usize = 1024;

/// One setting as it stands in the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Joined by dots.
    pub(crate) key: String,
    /// Scalar text; list items are joined by `;`, as Flink writes lists.
    pub(crate) value: String,
    /// From 1.
    pub(crate) line: usize,
}

/// A syntax error and its line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct YamlError {
    pub(crate) line: usize,
    pub(crate) message: String,
}

/// What is open around the current event.
enum Frame {
    /// A mapping; `key` is set while its value is awaited.
    Map {
        prefix: String,
        key: Option<(String, usize)>,
    },
    /// A list of scalars, the value of `key`.
    List {
        key: String,
        line: usize,
        items: Vec<String>,
    },
}

/// Reads the text as far as it is YAML. Entries before an error are returned too, so that their own errors are reported with it.
pub(crate) fn read(text: &str) -> (Vec<Entry>, Vec<YamlError>) {
    let mut reader = Reader {
        entries: Vec::new(),
        errors: Vec::new(),
        stack: Vec::new(),
        documents: 0,
    };
    if text.len() > CONFIG_BYTES_MAX {
        reader.fail(
            1,
            format!("longer than {CONFIG_BYTES_MAX} bytes, the most a configuration may have"),
        );
        return (reader.entries, reader.errors);
    }
    // A C0 control character is not YAML; the parser would read some of them as text.
    if let Some(at) = text.find(|c: char| c.is_control() && !matches!(c, '\n' | '\r' | '\t')) {
        let line = text[..at].matches('\n').count() + 1;
        reader.fail(line, "holds a control character".to_owned());
        return (reader.entries, reader.errors);
    }
    for event in Parser::new_from_str(text) {
        match event {
            Ok((event, span)) => {
                let line = span.start.line().max(1);
                if !reader.on_event(event, line) {
                    break;
                }
                if reader.entries.len() + reader.errors.len() > CONFIG_KEYS_MAX {
                    reader.fail(line, format!("more than {CONFIG_KEYS_MAX} keys"));
                    reader.entries.clear();
                    reader.errors.drain(..reader.errors.len() - 1);
                    break;
                }
            }
            Err(error) => {
                let line = line_of(text, error.marker());
                reader.fail(line, format!("not valid YAML: {}", error.info()));
                break;
            }
        }
    }
    (reader.entries, reader.errors)
}

/// An error at the very start of a line was caused by what came before it: a line without a colon is only missed at its end.
fn line_of(text: &str, marker: &Marker) -> usize {
    let line = marker.line().max(1);
    if marker.col() > 0 {
        return line;
    }
    let before = text.lines().take(line - 1).collect::<Vec<_>>();
    before
        .iter()
        .rposition(|line| !line.trim().is_empty())
        .map_or(line, |at| at + 1)
}

struct Reader {
    entries: Vec<Entry>,
    errors: Vec<YamlError>,
    stack: Vec<Frame>,
    documents: usize,
}

impl Reader {
    fn fail(&mut self, line: usize, message: String) {
        self.errors.push(YamlError { line, message });
    }

    /// False: reading on makes no sense.
    fn on_event(&mut self, event: Event<'_>, line: usize) -> bool {
        match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => {}
            Event::DocumentStart(_) => {
                self.documents += 1;
                if self.documents > 1 {
                    self.fail(
                        line,
                        "a second YAML document (\"---\") begins here; a configuration has one"
                            .into(),
                    );
                    return false;
                }
            }
            Event::Alias(_) => {
                self.fail(
                    line,
                    "YAML aliases (*name) are not accepted in a configuration; write the value out"
                        .into(),
                );
                return false;
            }
            Event::Scalar(text, style, _, _) => {
                return self.on_scalar(text.into_owned(), style == ScalarStyle::Plain, line);
            }
            Event::MappingStart(..) => return self.on_mapping(line),
            Event::MappingEnd | Event::SequenceEnd => {
                if let Some(Frame::List { key, line, items }) = self.stack.pop() {
                    let value = items.join(";");
                    self.entries.push(Entry { key, value, line });
                }
            }
            Event::SequenceStart(..) => match self.stack.last_mut() {
                Some(Frame::Map { prefix, key }) if key.is_some() => {
                    let (name, line) = key.take().unwrap_or_default();
                    let key = join(prefix, &name);
                    let items = Vec::new();
                    self.stack.push(Frame::List { key, line, items });
                }
                Some(Frame::Map { .. } | Frame::List { .. }) | None => {
                    self.fail(
                        line,
                        "a list is only accepted as the value of a key, with plain items".into(),
                    );
                    return false;
                }
            },
        }
        true
    }

    fn on_mapping(&mut self, line: usize) -> bool {
        if self.stack.len() >= CONFIG_DEPTH_MAX {
            self.fail(
                line,
                format!("keys are nested deeper than {CONFIG_DEPTH_MAX} levels"),
            );
            return false;
        }
        let prefix = match self.stack.last_mut() {
            None => String::new(),
            Some(Frame::Map { prefix, key }) if key.is_some() => {
                let (name, _) = key.take().unwrap_or_default();
                join(prefix, &name)
            }
            Some(Frame::Map { .. }) => {
                self.fail(line, "a key must be plain text".into());
                return false;
            }
            Some(Frame::List { .. }) => {
                self.fail(line, "list items must be plain values here".into());
                return false;
            }
        };
        self.stack.push(Frame::Map { prefix, key: None });
        true
    }

    fn on_scalar(&mut self, text: String, is_plain: bool, line: usize) -> bool {
        match self.stack.last_mut() {
            // An empty document is a scalar without text.
            None if text.is_empty() || text == "~" => {}
            None => {
                self.fail(line, "expected lines of the form \"key: value\"".into());
                return false;
            }
            Some(Frame::List { items, .. }) => items.push(text),
            Some(Frame::Map { key, .. }) if key.is_none() => {
                if text.trim().is_empty() || text == "<<" {
                    self.fail(line, "a key must have a name".into());
                    return false;
                }
                *key = Some((text.trim().to_owned(), line));
            }
            Some(Frame::Map { prefix, key }) => {
                let (name, line) = key.take().unwrap_or_default();
                let key = join(prefix, &name);
                let is_null = is_plain && matches!(text.as_str(), "" | "~" | "null");
                if is_null {
                    self.fail(
                        line,
                        format!("key {key} has no value; give one or delete the line"),
                    );
                } else {
                    self.entries.push(Entry {
                        key,
                        value: text,
                        line,
                    });
                }
            }
        }
        true
    }
}

fn join(prefix: &str, name: &str) -> String {
    if prefix.is_empty() {
        name.to_owned()
    } else {
        format!("{prefix}.{name}")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn flat(text: &str) -> Vec<(String, String, usize)> {
        let (entries, errors) = read(text);
        assert_eq!(errors, [], "{text}");
        entries
            .into_iter()
            .map(|e| (e.key, e.value, e.line))
            .collect()
    }

    #[test]
    fn flat_nested_and_mixed_keys_give_the_same_entries_with_their_lines() {
        let text =
            "# head\na.b: 1\na:\n  c: \"x: y\"\n  d.e:\n    f: [p, 'q']\n    g:\n      - r\n";
        let expected = [
            ("a.b", "1", 2),
            ("a.c", "x: y", 4),
            ("a.d.e.f", "p;q", 6),
            ("a.d.e.g", "r", 7),
        ];
        assert_eq!(
            flat(text),
            expected.map(|(k, v, l)| (k.to_owned(), v.to_owned(), l))
        );
        assert_eq!(flat(""), []);
        assert_eq!(flat("# nothing\n"), []);
        assert_eq!(flat("---\na: ''\n"), [("a".into(), String::new(), 2)]);
        assert_eq!(flat("a: 1\r\nb: 2\r\n").len(), 2);
    }

    // Each text breaks one rule; the line is part of the promise.
    #[test]
    fn what_is_not_a_configuration_is_an_error_with_its_line() {
        for (text, line, word) in [
            ("a: 1\njust words\n", 2, "YAML"),
            ("words", 1, "key: value"),
            ("a: 1\n---\nb: 2\n", 2, "second"),
            ("a: &x 1\nb: *x\n", 2, "aliases"),
            ("a: 1\nb:\n", 2, "no value"),
            ("a:\n  - b: 1\n", 2, "plain"),
            ("- a\n", 1, "list"),
            ("? [a]\n: b\n", 1, "list"),
            ("? {a: b}\n: b\n", 1, "plain text"),
            ("a: 1\nb: \u{1}\n", 2, "control"),
        ] {
            let (_, errors) = read(text);
            let error = errors.first().expect(text);
            assert_eq!(error.line, line, "{text}: {error:?}");
            assert!(error.message.contains(word), "{text}: {error:?}");
        }
    }

    #[test]
    fn entries_before_a_syntax_error_are_kept_for_their_own_errors() {
        let (entries, errors) = read("a: 1\nb: 2\nc: [\n");
        assert_eq!((entries.len(), errors.len()), (2, 1));
    }

    #[test]
    fn depth_and_length_are_bounded() {
        let deep = "{a: ".repeat(CONFIG_DEPTH_MAX + 1);
        assert!(read(&deep).1[0].message.contains("deeper"));
        let deep = "[".repeat(10_000);
        assert!(!read(&deep).1.is_empty());
        let many: String = (0..=CONFIG_KEYS_MAX)
            .map(|n| format!("a{n}: 1\n"))
            .collect();
        assert!(read(&many).1[0].message.contains("more than"));
        let empty = "a:\n".repeat(CONFIG_KEYS_MAX + 2);
        assert_eq!(read(&empty).1.len(), 1);
        let long = "#".repeat(CONFIG_BYTES_MAX + 1);
        assert!(read(&long).1[0].message.contains("longer"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn no_text_panics_the_reader(text in "(?s).{0,200}") {
            let _ = read(&text);
        }

        #[test]
        fn no_yaml_like_text_panics_the_reader(
            text in "([a-c]|[0-9]|\\n|\\r|\\t| |  |: |:|- |-|---|\\.\\.\\.|\\?|\\? |\\[|\\]|\\{|\\}|,|#| #|&a |\\*a|!|!!|!<|>|\\||'|\"|\\\\|\\\\x|\\\\u|\\\\U|%|%YAML|%TAG|@|`|~|<<|\u{feff}|\u{85}|\u{2028}|é|\u{1f600}){0,60}"
        ) {
            let _ = read(&text);
        }
    }
}
