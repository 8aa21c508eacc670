//! Encoding compared with a naive reference.

use std::sync::atomic::AtomicBool;

use proptest::prelude::*;
use rustbpe_core::count::PieceCounts;
use rustbpe_core::encode::Encoder;
use rustbpe_core::scanner::{Ours, Rules};
use rustbpe_core::split::Splitter;
use rustbpe_core::train::{Tokens, train};

const TEXT: &str = "it was the best of times, it was the worst of times; aaaaaaaaaaaaaaaaaaaaaaa \
     incomprehensibilities internationalization ............................ \n\n\n\n \t 123456";

fn vocabulary(text: &str, size: usize) -> Tokens {
    let mut counts = PieceCounts::default();
    let splitter = Splitter::new(Ours::PATTERN).unwrap();
    splitter.split(text, |from, to| counts.add_piece(&text.as_bytes()[from..to], 1)).unwrap();
    train(counts, size, |_| true).unwrap()
}

fn encoder(tokens: &[Vec<u8>]) -> Encoder {
    let tokens: Vec<&[u8]> = tokens.iter().map(Vec::as_slice).collect();
    Encoder::new(&tokens, Ours::PATTERN).unwrap()
}

fn encode(encoder: &Encoder, texts: &[&str], bos: Option<u32>, threads: usize) -> Vec<Vec<u32>> {
    let groups = encoder.encode_batch::<u32>(texts, bos, threads, &AtomicBool::new(false)).unwrap();
    let mut result = Vec::new();
    for group in groups {
        let mut tokens = group.tokens.into_iter();
        for length in group.lengths {
            result.push(tokens.by_ref().take(length).collect());
        }
        assert_eq!(tokens.next(), None);
    }
    result
}

/// Merge the adjacent parts with the lowest joint rank, leftmost first, until none are left.
fn naive(tokens: &[Vec<u8>], text: &str) -> Vec<u32> {
    let rank = |bytes: &[u8]| tokens.iter().position(|token| token == bytes);
    let mut result = Vec::new();
    let splitter = Splitter::new(Ours::PATTERN).unwrap();
    let mut pieces = Vec::new();
    splitter.split(text, |start, end| pieces.push(&text.as_bytes()[start..end])).unwrap();
    for piece in pieces {
        if let Some(token) = rank(piece) {
            result.push(token as u32);
            continue;
        }
        let mut parts: Vec<Vec<u8>> = piece.iter().map(|&byte| vec![byte]).collect();
        let joint = |parts: &[Vec<u8>]| {
            let ranks = parts.windows(2).map(|pair| rank(&pair.concat()));
            ranks.enumerate().filter_map(|(at, rank)| Some((rank?, at))).min()
        };
        while let Some((_, at)) = joint(&parts) {
            let right = parts.remove(at + 1);
            parts[at].extend(right);
        }
        result.extend(parts.iter().map(|part| rank(part).unwrap() as u32));
    }
    result
}

#[test]
fn tokens_equal_those_of_a_naive_encoder() {
    for size in [256, 270, 300, 400] {
        let tokens = vocabulary(TEXT, size);
        let encoder = encoder(&tokens);
        // The second of equal texts comes from the cache.
        for text in [TEXT, TEXT, "worst international times aaaaaaa", "\u{1F600} unheard-of", ""] {
            assert_eq!(encode(&encoder, &[text], None, 1)[0], naive(&tokens, text), "{size}");
        }
    }
}

#[test]
fn pieces_near_the_length_limits_equal_those_of_a_naive_encoder() {
    let tokens = vocabulary(&(TEXT.to_owned() + &"a".repeat(100) + &"abcab".repeat(40)), 330);
    let encoder = encoder(&tokens);
    for length in [1, 14, 15, 16, 17, 62, 63, 64, 65, 66, 127, 128, 129, 300] {
        for unit in ["a", "abcab", "tiem"] {
            let text: String = unit.chars().cycle().take(length).collect();
            assert_eq!(encode(&encoder, &[&text], None, 1)[0], naive(&tokens, &text), "{text}");
        }
    }
}

#[test]
fn every_token_encodes_to_itself() {
    let tokens = vocabulary(TEXT, 10_000);
    let encoder = encoder(&tokens);
    for (rank, token) in tokens.iter().enumerate() {
        if let Ok(text) = std::str::from_utf8(token) {
            assert_eq!(encode(&encoder, &[text], None, 1)[0], [rank as u32], "{text:?}");
        }
    }
}

#[test]
fn threads_change_nothing_and_each_text_starts_with_bos() {
    let encoder = encoder(&vocabulary(TEXT, 300));
    let texts: Vec<String> = (0..3_000).map(|i| format!("{} {i}", &TEXT[i % 90..])).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let wanted = encode(&encoder, &texts, Some(999), 1);
    assert_eq!(wanted.len(), texts.len());
    assert!(wanted.iter().all(|tokens| tokens[0] == 999 && !tokens[1..].contains(&999)));
    for threads in [2, 5] {
        assert_eq!(encode(&encoder, &texts, Some(999), threads), wanted);
    }
    assert_eq!(encode(&encoder, &["", ""], Some(999), 2), [[999], [999]]);
    assert!(encode(&encoder, &[], Some(999), 2).is_empty());
}

#[test]
fn invalid_vocabularies_are_errors() {
    let bytes: Vec<Vec<u8>> = (0..=255u8).map(|byte| vec![byte]).collect();
    let error = |extra: &[&[u8]], skip: usize| {
        let tokens = bytes.iter().skip(skip).map(Vec::as_slice).chain(extra.iter().copied());
        Encoder::new(&tokens.collect::<Vec<_>>(), Ours::PATTERN).err().unwrap()
    };
    assert_eq!(error(&[b""], 0), "token 256 is empty");
    assert_eq!(error(&[b"ab", b"ab"], 0), "token 257 repeats an earlier token");
    assert_eq!(
        error(&[b"a token of many bytes", b"a token of many bytes"], 0),
        "token 257 repeats an earlier token"
    );
    assert_eq!(error(&[], 1), "the vocabulary has no token for the byte 0x00");
}

#[test]
fn a_token_of_half_a_million_bytes_works() {
    let tokens = vocabulary(&"a".repeat(1 << 19), 300);
    assert_eq!(tokens.last().unwrap().len(), 1 << 19);
    let encoder = encoder(&tokens);
    let text = "a".repeat((1 << 19) + 3);
    let found = &encode(&encoder, &[&text], None, 1)[0];
    assert_eq!(found.iter().map(|&id| tokens[id as usize].len()).sum::<usize>(), text.len());
    assert_eq!(found.len(), 3); // 2^19, 2, 1
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..Default::default() })]

    #[test]
    fn tokens_of_any_text_equal_those_of_a_naive_encoder(
        text in "([abei tns]{0,40}|\\PC{0,10}|[ \n\t]{0,20}){0,4}",
        size in 256..420usize,
    ) {
        let tokens = vocabulary(TEXT, size);
        prop_assert_eq!(&encode(&encoder(&tokens), &[&text], None, 1)[0], &naive(&tokens, &text));
    }
}
