//! The scanner against the regex engine.

use fancy_regex::Regex;
use rustbpe_core::scanner::{Cl100k, Gpt2, Ours, Rules, scan};
use rustbpe_core::split::Splitter;

/// All that the pattern treats in a way of its own, and characters that look as if it did.
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

/// A small generator of random numbers (SplitMix64), so that tests repeat.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((bits ^ (bits >> 31)) % limit as u64) as usize
    }
}

fn check_every_code_point<R: Rules>() {
    let regex = Regex::new(R::PATTERN).unwrap();
    let points: Vec<char> = (0..=0x10FFFF).filter_map(char::from_u32).collect();
    for run in points.chunks(64) {
        // After an apostrophe, a digit, itself and a space, and before a letter: each class shows.
        let contexts = run.iter().map(|c| format!("'{c}1{c}{c}a {c}"));
        let text = contexts.collect::<Vec<_>>().concat();
        let (wanted, found) = (by_regex(&regex, &text), by_scanner::<R>(&text));
        assert_eq!(found, wanted, "in U+{:04X}..", run[0] as u32);
    }
}

#[test]
fn every_code_point_is_classed_as_by_the_regex_engine() {
    check_every_code_point::<Ours>();
    check_every_code_point::<Cl100k>();
    check_every_code_point::<Gpt2>();
}

fn check_random_texts<R: Rules>() {
    let regex = Regex::new(R::PATTERN).unwrap();
    let mut random = Random(1);
    for _ in 0..20_000 {
        let length = 1 + random.below(14);
        let mut text = String::new();
        for _ in 0..length {
            let count = if random.below(4) > 0 { 1 } else { 1 + random.below(19) };
            let character = ALPHABET[random.below(ALPHABET.len())];
            text.extend(std::iter::repeat_n(character, count));
        }
        assert_eq!(by_scanner::<R>(&text), by_regex(&regex, &text), "of {text:?}");
    }
}

#[test]
fn random_texts_are_cut_as_by_the_regex_engine() {
    check_random_texts::<Ours>();
    check_random_texts::<Cl100k>();
    check_random_texts::<Gpt2>();
}

fn check_joined<R: Rules>(text: &str) {
    assert_eq!(by_scanner::<R>(text).concat(), text);
}

#[test]
fn pieces_join_to_the_text_whatever_its_length() {
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
fn a_pattern_that_is_not_valid_is_an_error_not_a_panic() {
    let error = Splitter::new("(").err().unwrap();
    assert!(error.starts_with("the split pattern is not valid"), "{error}");
    let greedy = Splitter::new(r"\s+(?!\S)|\s+|\S+").unwrap();
    let spaces = " ".repeat(3_000_000) + "x";
    // Either answer is fine, a crash is not.
    let _ = greedy.split(&spaces, |_, _| {});
}
