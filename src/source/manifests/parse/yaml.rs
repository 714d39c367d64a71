//! YAML: documents of a stream, each read on its own so that one that is broken
//! does not hide those after it.

use serde::de::DeserializeSeed;
use serde_saphyr::{Error, Options};

use super::document::ObjectSeed;

/// One document of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Document<'a> {
    /// From 1.
    pub(super) number: u32,
    /// Line of the file on which `text` starts, from 1.
    pub(super) line: u64,
    /// The document with its markers.
    pub(super) text: &'a str,
}

/// Splits a stream at its document markers. A line that starts with `---` and a
/// blank is a marker wherever it stands: YAML 1.2.2, section 9.1.2, forbids such
/// a line in content. Documents without content are counted and left out.
pub(super) fn documents(text: &str) -> Vec<Document<'_>> {
    let mut documents = Vec::new();
    let mut number = 0;
    let mut start = (0, 1);
    let mut open = Open::Nothing;
    let mut offset = 0;
    let mut push = |number: &mut u32, open: Open, start: (usize, u64), end: usize| {
        if open != Open::Nothing {
            *number += 1;
        }
        if open == Open::Content {
            documents.push(Document {
                number: *number,
                line: start.1,
                text: &text[start.0..end],
            });
        }
    };
    for (line_number, line) in (1..).zip(text.split_inclusive('\n')) {
        let end = offset + line.len();
        if let Some(rest) = marker(line, "---") {
            if open != Open::Nothing {
                push(&mut number, open, start, offset);
                start = (offset, line_number);
            }
            open = if is_blank(rest) {
                Open::Marker
            } else {
                Open::Content
            };
        } else if marker(line, "...").is_some() {
            push(&mut number, open, start, end);
            start = (end, line_number + 1);
            open = Open::Nothing;
        } else if !is_blank(line) && (open != Open::Nothing || !line.starts_with('%')) {
            open = Open::Content;
        }
        offset = end;
    }
    push(&mut number, open, start, offset);
    documents
}

/// Deserializes one document.
pub(super) fn read(text: &str, seed: ObjectSeed<'_>) -> Result<(), Error> {
    serde_saphyr::with_deserializer_from_str_with_options(text, options(), |yaml| {
        seed.deserialize(yaml)
    })
}

/// Nodes that aliases of one document may stand for. Manifests use few; the
/// parser's own limit of a million lets a bomb of a kilobyte cost seconds.
const MAX_REPLAYED_EVENTS: usize = 100_000;

/// The parser's limits are meant for small configuration; a List of a whole
/// cluster is large. Those against alias bombs and deep nesting stay.
pub(super) fn options() -> Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_events: usize::MAX,
            max_nodes: usize::MAX,
            max_total_scalar_bytes: usize::MAX,
            max_total_comment_bytes: usize::MAX,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: MAX_REPLAYED_EVENTS,
        },
        with_snippet: false,
    }
}

/// What has been seen of a document.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Open {
    /// Blank lines, comments and directives at most.
    Nothing,
    /// Its marker.
    Marker,
    /// Content.
    Content,
}

/// The rest of the line, if it starts with that marker.
fn marker<'a>(line: &'a str, marker: &str) -> Option<&'a str> {
    let rest = line.strip_prefix(marker)?;
    (rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n'])).then_some(rest)
}

fn is_blank(line: &str) -> bool {
    let line = line.trim_start();
    line.is_empty() || line.starts_with('#')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(text: &str) -> Vec<(u32, u64, &str)> {
        let all = documents(text);
        all.iter().map(|d| (d.number, d.line, d.text)).collect()
    }

    #[test]
    fn documents_are_split_and_numbered_as_yaml_does() {
        assert_eq!(split(""), []);
        assert_eq!(split("# nothing\n\n"), []);
        assert_eq!(split("a: 1\n"), [(1, 1, "a: 1\n")]);
        assert_eq!(
            split("# head\n---\na: 1\n---\n# empty\n---\nb: 2"),
            [(1, 1, "# head\n---\na: 1\n"), (3, 6, "---\nb: 2")]
        );
        assert_eq!(
            split("---\r\na: 1\r\n--- {b: 2}\r\n"),
            [(1, 1, "---\r\na: 1\r\n"), (2, 3, "--- {b: 2}\r\n")]
        );
        assert_eq!(
            split("%YAML 1.2\n---\na: 1\n...\n%YAML 1.2\n---\nb: 2\n"),
            [
                (1, 1, "%YAML 1.2\n---\na: 1\n...\n"),
                (2, 5, "%YAML 1.2\n---\nb: 2\n")
            ]
        );
    }

    #[test]
    fn dashes_in_content_split_nothing() {
        for text in ["a: |\n  ---\n  b\n", "----\n", "---a\n", " ---\n"] {
            assert_eq!(split(text), [(1, 1, text)]);
        }
    }
}
