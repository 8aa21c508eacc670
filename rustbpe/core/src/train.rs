//! Exact byte-pair training on counted pieces.
//!
//! A merge replaces the most frequent pair of adjacent symbols with a new symbol, a token,
//! everywhere; then the next most frequent pair follows, and so on. Among equally frequent pairs,
//! the one with the smaller ids wins. Merges never cross pieces, so equal pieces always split the
//! same way: each distinct piece is merged once and weighted by its count, which makes training
//! cost depend on the number of distinct pieces and not on the size of the text.
//! The result depends on the counts alone, not on threads or the order of pieces.

use std::cmp::Reverse;
use std::collections::hash_map::Entry;
use std::collections::{BinaryHeap, HashMap};
use std::hash::{BuildHasherDefault, Hasher};
use std::mem;

use crate::count::PieceCounts;
use crate::merge::MAX_TOKENS;

/// The tokens in rank order: the 256 bytes, then one for each merge.
pub type Tokens = Vec<Vec<u8>>;

/// Learn merges until there are `vocab_size` tokens or no pair is left.
///
/// `tick` is called after each merge with the number of tokens so far.
/// Errors: `tick` returned false, `vocab_size` is below 256 or above [`MAX_TOKENS`], or the text is
/// too large (counts above 2^63).
pub fn train(
    counts: PieceCounts,
    vocab_size: usize,
    tick: impl FnMut(usize) -> bool,
) -> Result<Tokens, String> {
    if !(256..=MAX_TOKENS).contains(&vocab_size) {
        return Err(format!("vocab_size must be from 256 to {MAX_TOKENS}, got {vocab_size}"));
    }
    if vocab_size <= 1 << 16 {
        Trainer::<u16>::new(counts)?.run(vocab_size, tick)
    } else {
        Trainer::<u32>::new(counts)?.run(vocab_size, tick)
    }
}

/// A token id as narrow as the vocabulary allows: training is bound by memory traffic.
trait Symbol: Copy + Eq {
    fn new(id: u32) -> Self;
    fn id(self) -> u32;
}

impl Symbol for u16 {
    fn new(id: u32) -> Self {
        id as u16
    }
    fn id(self) -> u32 {
        u32::from(self)
    }
}

impl Symbol for u32 {
    fn new(id: u32) -> Self {
        id
    }
    fn id(self) -> u32 {
        self
    }
}

/// One distinct piece: its symbols and how often it occurs.
struct Word {
    start: u32,
    length: u32,
    count: i64,
}

/// How often a pair occurs, and the words it may be in; some no longer contain it.
///
/// A stale word costs one fruitless scan; removing it from the list would cost more.
#[derive(Default)]
struct Pair {
    count: i64,
    words: Vec<u32>,
}

/// Load an element into the cache before it is used; does nothing except on x86-64.
#[inline(always)]
fn prefetch<T>(values: &[T], index: usize) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch is only a hint; any address is valid.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch(values.as_ptr().wrapping_add(index).cast(), _MM_HINT_T0);
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (values, index);
}

/// The left id is in the upper half, so keys sort like pairs.
fn pair_key(left: u32, right: u32) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

struct Trainer<S> {
    symbols: Vec<S>,
    words: Vec<Word>,
    pairs: HashMap<u64, Pair, BuildHasherDefault<PairHasher>>,
    /// Counts may be stale, but never too low: only pairs with the newest token gain.
    ///
    /// A merge changes the counts of many pairs, most of which never reach the top. So losses are
    /// not entered here at once; `pop` corrects an entry when it reaches the top (a lazy update).
    queue: BinaryHeap<(i64, Reverse<u64>)>,
}

impl<S: Symbol> Trainer<S> {
    fn new(counts: PieceCounts) -> Result<Self, String> {
        let mut symbols = Vec::with_capacity(counts.piece_bytes());
        let mut words = Vec::with_capacity(counts.len());
        let mut total: i64 = 0;
        let mut fits = true;
        counts.drain(|piece, count| {
            if piece.len() < 2 {
                return;
            }
            let here = count.checked_mul(piece.len() as u64).and_then(|n| i64::try_from(n).ok());
            let sum = here.and_then(|n| total.checked_add(n));
            fits &= sum.is_some() && symbols.len() + piece.len() <= u32::MAX as usize;
            total = sum.unwrap_or(total);
            if fits {
                let (start, length) = (symbols.len() as u32, piece.len() as u32);
                words.push(Word { start, length, count: count as i64 });
                symbols.extend(piece.iter().map(|&byte| S::new(u32::from(byte))));
            }
        });
        if !fits {
            return Err("the text is too large: counts above 2^63, or over 2^32 bytes of \
                        distinct pieces; give less text or set a memory limit"
                .into());
        }
        let mut trainer =
            Self { symbols, words, pairs: HashMap::default(), queue: BinaryHeap::new() };
        trainer.count_pairs();
        Ok(trainer)
    }

    /// Count the initial pairs, which are pairs of bytes.
    fn count_pairs(&mut self) {
        // A first pass finds the lengths of the word lists, which take most of the memory.
        let mut sizes = vec![0; 1 << 16];
        let mut last = vec![u32::MAX; 1 << 16];
        self.for_byte_pairs(|pair, _, word| {
            sizes[pair] += usize::from(mem::replace(&mut last[pair], word) != word);
        });
        let list = |size| Pair { count: 0, words: Vec::with_capacity(size) };
        let mut pairs: Vec<Pair> = sizes.into_iter().map(list).collect();
        self.for_byte_pairs(|pair, count, word| {
            let pair = &mut pairs[pair];
            pair.count += count;
            if pair.words.last() != Some(&word) {
                pair.words.push(word);
            }
        });
        for (bytes, pair) in pairs.into_iter().enumerate().filter(|(_, pair)| pair.count > 0) {
            let key = pair_key(bytes as u32 >> 8, bytes as u32 & 0xFF);
            self.queue.push((pair.count, Reverse(key)));
            self.pairs.insert(key, pair);
        }
    }

    /// Visit every pair of adjacent bytes, as one number, with its word's count and index.
    fn for_byte_pairs(&self, mut visit: impl FnMut(usize, i64, u32)) {
        for (index, word) in (0..).zip(&self.words) {
            let start = word.start as usize;
            for pair in self.symbols[start..start + word.length as usize].windows(2) {
                visit((pair[0].id() << 8 | pair[1].id()) as usize, word.count, index);
            }
        }
    }

    fn run(
        mut self,
        vocab_size: usize,
        mut tick: impl FnMut(usize) -> bool,
    ) -> Result<Tokens, String> {
        let mut tokens: Tokens = (0..=255u8).map(|byte| vec![byte]).collect();
        let mut left = Neighbors::new(vocab_size);
        let mut right = Neighbors::new(vocab_size);
        while tokens.len() < vocab_size {
            let Some(key) = self.pop() else { break };
            let (first, second) = ((key >> 32) as u32, key as u32);
            let new = tokens.len() as u32;
            tokens.push([&tokens[first as usize][..], &tokens[second as usize][..]].concat());
            let words = self.pairs.remove(&key).unwrap_or_default().words;
            self.merge_words(&words, (first, second), new, &mut left, &mut right);
            self.apply(key, new, &mut left, &mut right);
            if !tick(tokens.len()) {
                return Err("interrupted".into());
            }
        }
        Ok(tokens)
    }

    /// The most frequent pair, and among equals the smallest.
    fn pop(&mut self) -> Option<u64> {
        while let Some((count, Reverse(key))) = self.queue.pop() {
            match self.pairs.get(&key).map_or(0, |pair| pair.count) {
                // Exact, and no entry below can be larger, as entries are never too low.
                now if now == count => return Some(key),
                now if now > 0 => self.queue.push((now, Reverse(key))), // lower: requeue
                _ => {}
            }
        }
        None
    }

    /// Merge a pair wherever it occurs, from left to right, and record its neighbors.
    ///
    /// Only pairs with a neighbor change, so the new counts follow from the neighbors alone: no
    /// other word or pair is touched.
    fn merge_words(
        &mut self,
        words: &[u32],
        (first, second): (u32, u32),
        new: u32,
        left: &mut Neighbors,
        right: &mut Neighbors,
    ) {
        let (first, second) = (S::new(first), S::new(second));
        for (place, &index) in words.iter().enumerate() {
            // Words are scattered in memory: prefetch the next ones while working on this one.
            if let Some(&ahead) = words.get(place + 16) {
                prefetch(&self.words, ahead as usize);
            }
            if let Some(&ahead) = words.get(place + 8) {
                prefetch(&self.symbols, self.words[ahead as usize].start as usize);
            }
            let word = &mut self.words[index as usize];
            let start = word.start as usize;
            let symbols = &mut self.symbols[start..start + word.length as usize];
            let (mut read, mut write) = (0, 0);
            while read < symbols.len() {
                let symbol = symbols[read];
                if symbol == first && symbols.get(read + 1) == Some(&second) {
                    if write > 0 {
                        left.add(symbols[write - 1].id(), word.count, index);
                    }
                    if let Some(next) = symbols.get(read + 2) {
                        right.add(next.id(), word.count, index);
                    }
                    symbols[write] = S::new(new);
                    read += 2;
                } else {
                    symbols[write] = symbol;
                    read += 1;
                }
                write += 1;
            }
            word.length = write as u32;
        }
    }

    /// Update the pair counts: (x, first) became (x, new), and (second, y) became (new, y).
    ///
    /// Where the pair followed itself, x is `new`: (new, first), just counted from the right, became
    /// (new, new). So gains are applied before losses.
    fn apply(&mut self, merged: u64, new: u32, left: &mut Neighbors, right: &mut Neighbors) {
        let (first, second) = ((merged >> 32) as u32, merged as u32);
        for y in right.touched.clone() {
            self.gain(pair_key(new, y), right.counts[y as usize], right.take_words(y));
        }
        for x in left.touched.clone() {
            self.gain(pair_key(x, new), left.counts[x as usize], left.take_words(x));
        }
        for x in left.touched.drain(..) {
            self.lose(pair_key(x, first), mem::take(&mut left.counts[x as usize]), merged);
        }
        for y in right.touched.drain(..) {
            self.lose(pair_key(second, y), mem::take(&mut right.counts[y as usize]), merged);
        }
    }

    fn gain(&mut self, key: u64, count: i64, words: Vec<u32>) {
        self.queue.push((count, Reverse(key)));
        self.pairs.insert(key, Pair { count, words });
    }

    fn lose(&mut self, key: u64, count: i64, merged: u64) {
        if key == merged {
            return; // already removed
        }
        if let Entry::Occupied(mut pair) = self.pairs.entry(key) {
            pair.get_mut().count -= count;
            if pair.get().count == 0 {
                pair.remove();
            }
        }
    }
}

/// The neighbors on one side of the merged pair: for each symbol, its count and its words.
struct Neighbors {
    counts: Vec<i64>,
    words: Vec<Vec<u32>>,
    touched: Vec<u32>,
}

impl Neighbors {
    fn new(symbols: usize) -> Self {
        Self { counts: vec![0; symbols], words: vec![Vec::new(); symbols], touched: Vec::new() }
    }

    #[inline]
    fn add(&mut self, symbol: u32, count: i64, word: u32) {
        let at = symbol as usize;
        if self.counts[at] == 0 {
            self.touched.push(symbol);
        }
        self.counts[at] += count;
        if self.words[at].last() != Some(&word) {
            self.words[at].push(word);
        }
    }

    fn take_words(&mut self, symbol: u32) -> Vec<u32> {
        mem::take(&mut self.words[symbol as usize])
    }
}

/// One multiplication is enough to distribute pair keys over a table.
#[derive(Default)]
struct PairHasher(u64);

impl Hasher for PairHasher {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(self.0 ^ u64::from(byte));
        }
    }

    fn write_u64(&mut self, value: u64) {
        let product = u128::from(value) * 0x9E37_79B9_7F4A_7C15;
        self.0 = (product as u64) ^ (product >> 64) as u64;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
