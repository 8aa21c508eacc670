//! The scanner compared with the regex engine.

use std::sync::LazyLock;

use fancy_regex::Regex;
use proptest::prelude::*;
use proptest::{collection, sample};
use rustbpe_core::scanner::{Cl100k, Gpt2, Ours, Rules, next_cut, scan};
use rustbpe_core::split::Splitter;

/// Characters that the pattern treats specially, and characters that look like them.
const ALPHABET: &[char] = &[
    ' ',
    ' ',
    '\t',
    '\r',
    '\n',
    '\u{b}',
    '\u{85}',
    '\u{a0}',
    '\u{2028}',
    '\u{3000}',
    '\'',
    '\'',
    's',
    'S',
    'T',
    'd',
    'm',
    'l',
    'L',
    'v',
    'V',
    'e',
    'r',
    '\u{17f}',
    'a',
    'é',
    'ß',
    '日',
    '\u{301}',
    '1',
    '2',
    '٣',
    '½',
    'Ⅷ',
    '.',
    '!',
    '_',
    '\u{1F600}',
    '\u{200D}',
    '\u{0}',
    '\u{10FFFF}',
];

fn by_regex<'a>(regex: &Regex, text: &'a str) -> Vec<&'a str> {
    regex.find_iter(text).map(|piece| piece.unwrap().as_str()).collect()
}

fn by_scanner<R: Rules>(text: &str) -> Vec<&str> {
    let mut pieces = Vec::new();
    scan::<R>(text, |start, end| pieces.push(&text[start..end]));
    pieces
}

/// Texts that combine the pattern's special cases: runs of characters from the alphabet.
fn texts() -> impl Strategy<Value = String> {
    let run = (sample::select(ALPHABET), prop_oneof![3 => 1..2usize, 1 => 2..20usize]);
    collection::vec(run, 0..14)
        .prop_map(|runs| runs.iter().map(|(c, count)| c.to_string().repeat(*count)).collect())
}

fn check_every_code_point<R: Rules>() {
    let regex = Regex::new(R::PATTERN).unwrap();
    let points: Vec<char> = (0..=0x10FFFF).filter_map(char::from_u32).collect();
    for run in points.chunks(64) {
        // After an apostrophe, a digit, itself and a space, and before a letter: reveals each class.
        let contexts = run.iter().map(|c| format!("'{c}1{c}{c}a {c}"));
        let text = contexts.collect::<Vec<_>>().concat();
        let (wanted, found) = (by_regex(&regex, &text), by_scanner::<R>(&text));
        assert_eq!(found, wanted, "in U+{:04X}..", run[0] as u32);
    }
}

#[test]
fn every_code_point_has_the_class_that_the_regex_engine_gives_it() {
    check_every_code_point::<Ours>();
    check_every_code_point::<Cl100k>();
    check_every_code_point::<Gpt2>();
}

static REGEXES: LazyLock<[Regex; 3]> = LazyLock::new(|| {
    [Ours::PATTERN, Cl100k::PATTERN, Gpt2::PATTERN].map(|pattern| Regex::new(pattern).unwrap())
});

fn check_cut<R: Rules>(text: &str, cut: usize) {
    let parts = [by_scanner::<R>(&text[..cut]), by_scanner::<R>(&text[cut..])];
    assert_eq!(parts.concat(), by_scanner::<R>(text));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_000, failure_persistence: None, ..Default::default() })]

    #[test]
    fn texts_are_split_as_by_the_regex_engine(text in texts()) {
        assert_eq!(by_scanner::<Ours>(&text), by_regex(&REGEXES[0], &text));
        assert_eq!(by_scanner::<Cl100k>(&text), by_regex(&REGEXES[1], &text));
        assert_eq!(by_scanner::<Gpt2>(&text), by_regex(&REGEXES[2], &text));
    }

    #[test]
    fn a_cut_changes_no_piece(before in texts(), after in texts(), from in 0..40usize) {
        let text = format!("{before}.\nx{after}");
        let cut = next_cut(text.as_bytes(), from);
        if from <= before.len() + 2 {
            assert!(cut.is_some());
        }
        if let Some(cut) = cut {
            assert!(cut >= from);
            check_cut::<Ours>(&text, cut);
            check_cut::<Cl100k>(&text, cut);
            check_cut::<Gpt2>(&text, cut);
        }
    }
}

fn check_joined<R: Rules>(text: &str) {
    assert_eq!(by_scanner::<R>(text).concat(), text);
}

#[test]
fn pieces_join_to_the_text_at_any_length() {
    for unit in [" ", "\n", "\t ", "a", "1", ".", "日", " \n", "'", "\u{301}"] {
        for count in [1, 2, 3, 15, 16, 17, 100_000] {
            for text in [unit.repeat(count), unit.repeat(count) + "x"] {
                check_joined::<Ours>(&text);
                check_joined::<Cl100k>(&text);
                check_joined::<Gpt2>(&text);
            }
        }
    }
}

#[test]
fn a_million_spaces_before_a_word_are_two_pieces() {
    let text = " ".repeat(1_000_000) + "word";
    assert_eq!(by_scanner::<Ours>(&text), [&text[..999_999], " word"]);
    assert_eq!(by_scanner::<Cl100k>(&text), [&text[..999_999], " word"]);
    assert_eq!(by_scanner::<Gpt2>(&text), [&text[..999_999], " word"]);
}

#[test]
fn other_patterns_go_through_the_regex_engine() {
    let splitter = Splitter::new(r"\p{L}+|\s+").unwrap();
    assert!(matches!(splitter, Splitter::Regex(_)));
    let mut pieces = Vec::new();
    splitter.split("ab 12 c", |start, end| pieces.push((start, end))).unwrap();
    assert_eq!(pieces, [(0, 2), (2, 3), (5, 6), (6, 7)]);
    assert!(matches!(Splitter::new(Ours::PATTERN), Ok(Splitter::Ours)));
}

#[test]
fn an_invalid_pattern_is_an_error_not_a_panic() {
    let error = Splitter::new("(").err().unwrap();
    assert!(error.starts_with("the split pattern is not valid"), "{error}");
    let greedy = Splitter::new(r"\s+(?!\S)|\s+|\S+").unwrap();
    let spaces = " ".repeat(3_000_000) + "x";
    // Either result is fine; a crash is not.
    let _ = greedy.split(&spaces, |_, _| {});
}
