//! Training compared with a naive reference, and what must not change its result.

use std::collections::HashMap;

use proptest::prelude::*;
use rustbpe_core::count::{Documents, Loss, PieceCounts, count_pieces};
use rustbpe_core::scanner::{Ours, Rules};
use rustbpe_core::split::Splitter;
use rustbpe_core::train::{Tokens, train};

const TEXT: &str = "the cat sat on the mat, the rat sat on the cat's hat; aaaa aaaaaaa aaa aa \
     bananas and ananas: 1000 100000 10 20 30 2024\n\n\n  the theme of the thesis is them there \
     abab ababab babababa mississippi Mississippi misses éé ééé 日本日本日本 日本";

fn counts_of(documents: &[&str], threads: usize) -> PieceCounts {
    count(documents, threads, None)
}

fn count(documents: &[&str], threads: usize, budget: Option<usize>) -> PieceCounts {
    let splitter = Splitter::new(Ours::PATTERN).unwrap();
    let mut parts = documents.chunks(1 + documents.len() / 16);
    let next = || {
        Ok::<_, String>(parts.next().map(|part| {
            let mut batch = Documents::default();
            part.iter().for_each(|text| batch.push(text));
            batch
        }))
    };
    count_pieces(&splitter, threads, budget, next, || Ok(())).unwrap()
}

/// Byte-pair training as one would explain it: count all pairs again for each merge.
fn naive(counts: PieceCounts, vocab_size: usize) -> Tokens {
    let mut words: Vec<(Vec<u32>, u64)> = Vec::new();
    counts.drain(|piece, count| {
        words.push((piece.iter().map(|&byte| u32::from(byte)).collect(), count));
    });
    let mut tokens: Tokens = (0..=255u8).map(|byte| vec![byte]).collect();
    while tokens.len() < vocab_size {
        let mut pairs: HashMap<(u32, u32), u64> = HashMap::new();
        for (word, count) in &words {
            for pair in word.windows(2) {
                *pairs.entry((pair[0], pair[1])).or_default() += count;
            }
        }
        let best = pairs.iter().min_by_key(|(pair, count)| (u64::MAX - **count, **pair));
        let Some((&(left, right), _)) = best else { break };
        let new = tokens.len() as u32;
        tokens.push([&tokens[left as usize][..], &tokens[right as usize][..]].concat());
        for (word, _) in &mut words {
            let mut merged = Vec::new();
            for &symbol in word.iter() {
                if symbol == right && merged.last() == Some(&left) {
                    merged.pop();
                    merged.push(new);
                } else {
                    merged.push(symbol);
                }
            }
            *word = merged;
        }
    }
    tokens
}

#[test]
fn merges_equal_those_of_a_naive_trainer() {
    let counts = counts_of(&[TEXT], 1);
    for vocab_size in [256, 257, 300, 10_000] {
        let wanted = naive(counts.clone(), vocab_size);
        assert_eq!(train(counts.clone(), vocab_size, |_| true).unwrap(), wanted);
    }
}

#[test]
fn merges_of_runs_equal_those_of_a_naive_trainer() {
    for unit in ["a", "ab", "aab", "abcab", "aabb"] {
        let words: Vec<String> = (1..24).map(|count| unit.repeat(count)).collect();
        let counts = counts_of(&[&words.join(" ")], 1);
        let wanted = naive(counts.clone(), 2_000);
        assert_eq!(train(counts.clone(), 2_000, |_| true).unwrap(), wanted, "{unit}");
    }
}

#[test]
fn wide_and_narrow_symbols_give_the_same_merges() {
    let counts = counts_of(&[TEXT], 1);
    let narrow = train(counts.clone(), 1 << 16, |_| true).unwrap();
    assert_eq!(train(counts.clone(), (1 << 16) + 1, |_| true).unwrap(), narrow);
}

#[test]
fn threads_and_the_order_of_documents_change_nothing() {
    let mut documents: Vec<&str> = TEXT.split_inclusive(' ').collect();
    let wanted = train(counts_of(&documents, 1), 400, |_| true).unwrap();
    for threads in [1, 2, 7] {
        documents.rotate_left(11);
        documents.reverse();
        assert_eq!(train(counts_of(&documents, threads), 400, |_| true).unwrap(), wanted);
    }
}

#[test]
fn a_piece_may_occur_more_than_2_to_the_32_times() {
    let mut counts = PieceCounts::default();
    counts.add_piece(b"ab", 1 << 33);
    counts.add_piece(b"cd", (1 << 33) + 1);
    counts.add_piece(b"ef", 1 << 31);
    let tokens = train(counts.clone(), 259, |_| true).unwrap();
    assert_eq!(tokens[256..], [b"cd".to_vec(), b"ab".to_vec(), b"ef".to_vec()]);
}

#[test]
fn counts_that_overflow_are_an_error() {
    let mut counts = PieceCounts::default();
    counts.add_piece(b"ab", u64::MAX);
    let error = train(counts.clone(), 300, |_| true).unwrap_err();
    assert!(error.starts_with("the text is too large"), "{error}");
}

#[test]
fn invalid_sizes_are_errors_and_no_text_gives_the_bytes() {
    let counts = PieceCounts::default();
    let error = train(counts.clone(), 255, |_| true).unwrap_err();
    assert_eq!(error, "vocab_size must be from 256 to 2097151, got 255");
    assert_eq!(train(counts.clone(), 300, |_| true).unwrap().len(), 256);
}

#[test]
fn training_stops_when_told_to() {
    let counts = counts_of(&[TEXT], 1);
    assert_eq!(train(counts.clone(), 300, |done| done < 260).unwrap_err(), "interrupted");
}

#[test]
fn a_failing_source_stops_the_count() {
    let splitter = Splitter::new(Ours::PATTERN).unwrap();
    let result = count_pieces(
        &splitter,
        2,
        None,
        || Err::<Option<Documents>, _>("no more".to_string()),
        || Ok(()),
    );
    assert_eq!(result.err().unwrap(), "no more");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..Default::default() })]

    #[test]
    fn merges_of_any_text_equal_those_of_a_naive_trainer(
        texts in prop::collection::vec("[abc é1]{0,30}|\\PC{0,12}", 0..6),
        vocab_size in 256..320usize,
    ) {
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let counts = counts_of(&texts, 2);
        let wanted = naive(counts.clone(), vocab_size);
        prop_assert_eq!(train(counts, vocab_size, |_| true).unwrap(), wanted);
    }
}

/// Distinct words of nine letters, and two that repeat.
fn many_words() -> Vec<String> {
    (0..200_000u64)
        .map(|number| {
            let mixed = number.wrapping_mul(0x9E37_79B9_7F4A_7C15);
            let word: String =
                (0..9).map(|i| (b'a' + (mixed >> (5 * i + 8)) as u8 % 26) as char).collect();
            format!("{word} often again")
        })
        .collect()
}

#[test]
fn a_memory_budget_bounds_the_loss() {
    let words = many_words();
    let texts: Vec<&str> = words.iter().map(String::as_str).collect();
    let exact = counts_of(&texts, 1);
    assert_eq!(exact.loss(), Loss::default());
    let pruned = count(&texts, 2, Some(1 << 20));
    let loss = pruned.loss();
    assert_eq!(pruned.bytes, exact.bytes);
    assert!(loss.count > 0 && loss.bytes > 0 && pruned.len() < exact.len() / 2);
    let mut kept = HashMap::new();
    let mut kept_bytes = 0;
    pruned.drain(|piece, count| {
        kept.insert(piece.to_vec(), count);
        kept_bytes += piece.len() as u64 * count;
    });
    assert_eq!(kept_bytes + loss.bytes, exact.bytes);
    exact.drain(|piece, count| {
        let found = kept.get(piece).copied().unwrap_or(0);
        assert!(found <= count && count - found <= loss.count, "{piece:?}");
    });
}
