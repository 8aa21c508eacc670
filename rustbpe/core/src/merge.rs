//! Merging the bytes of one piece by rank.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};

/// Pieces up to this length are merged by scanning all pairs for each merge; longer ones by a heap.
///
/// The scan is quadratic, but on a few dozen bytes in registers and cache it beats a heap.
pub const SHORT_PIECE: usize = 64;
/// The rank of a pair that does not form a token.
const NONE: u32 = u32::MAX;
/// Bits per token in a slot of the pair table: left, right and joined fit in 64.
const ID_BITS: u32 = 21;
/// Slots of the pair table per 64-bit word of the Bloom filter: 8 filter bits per slot.
const SLOTS_PER_FILTER_WORD: usize = 8;
/// Maximum number of tokens in a vocabulary.
pub const MAX_TOKENS: usize = (1 << ID_BITS) - 1;

/// Maps each pair of tokens whose joined bytes are a token to the rank of that token.
///
/// Lookups here dominate the time of a merge, so the table is small: eight bytes per pair. Pairs of
/// single bytes, which are most of the lookups, have a separate array.
pub struct PairTable {
    bytes: [u32; 256],
    byte_pairs: Vec<u32>,
    filter: Vec<u64>, // a Bloom filter: most pairs that are looked up are not tokens
    slots: Vec<u64>,  // left, right, joined + 1; 0: empty
}

impl PairTable {
    /// tokens: bytes in rank order; distinct, at most [`MAX_TOKENS`], including all single bytes.
    pub fn new(tokens: &[&[u8]]) -> Self {
        let pairs = all_pairs(tokens);
        let size = (pairs.len() * 3 / 2).next_power_of_two().max(64);
        let mut table = Self {
            bytes: [NONE; 256],
            byte_pairs: vec![NONE; 1 << 16],
            filter: vec![0; size / SLOTS_PER_FILTER_WORD],
            slots: vec![0; size],
        };
        for (rank, token) in (0..).zip(tokens) {
            if let [byte] = token {
                table.bytes[*byte as usize] = rank;
            }
        }
        for (left, right, rank) in pairs {
            let key = pair_key(left, right);
            let hash = pair_hash(key);
            let (word, bit) = table.filter_place(hash);
            table.filter[word] |= bit;
            let at = table.find(key, hash);
            table.slots[at] = key | u64::from(rank + 1);
            if let ([left], [right]) = (tokens[left as usize], tokens[right as usize]) {
                table.byte_pairs[byte_pair(*left, *right)] = rank;
            }
        }
        table
    }

    /// The rank of two tokens joined, or [`NONE`], which is above all ranks.
    #[inline]
    fn rank(&self, left: u32, right: u32) -> u32 {
        let key = pair_key(left, right);
        let hash = pair_hash(key);
        let (word, bit) = self.filter_place(hash);
        if self.filter[word] & bit == 0 {
            return NONE;
        }
        let slot = self.slots[self.find(key, hash)];
        (slot as u32 & MAX_TOKENS as u32).wrapping_sub(1)
    }

    #[inline]
    fn filter_place(&self, hash: u64) -> (usize, u64) {
        (hash as usize & (self.filter.len() - 1), 1 << (hash >> 32 & 63))
    }

    /// The slot that holds a pair, or the empty one where it belongs.
    #[inline]
    fn find(&self, key: u64, hash: u64) -> usize {
        let mask = self.slots.len() - 1;
        let mut at = hash as usize & mask;
        while self.slots[at] >> ID_BITS != key >> ID_BITS && self.slots[at] != 0 {
            at = (at + 1) & mask;
        }
        at
    }
}

fn pair_key(left: u32, right: u32) -> u64 {
    u64::from(left) << (2 * ID_BITS) | u64::from(right) << ID_BITS
}

/// A hash of all bits of a pair; its lower bits are the best mixed.
fn pair_hash(key: u64) -> u64 {
    key.wrapping_mul(0x9E37_79B9_7F4A_7C15).swap_bytes()
}

fn byte_pair(left: u8, right: u8) -> usize {
    usize::from(left) << 8 | usize::from(right)
}

/// Every way to cut a token into two tokens: left, right, and the token.
///
/// Prefixes and suffixes are looked up by a rolling hash, which makes this linear in the length of
/// a token; matches are then verified by their bytes.
fn all_pairs(tokens: &[&[u8]]) -> Vec<(u32, u32, u32)> {
    const BASE: u64 = 0x9E37_79B9_7F4A_7C15 | 1;
    let roll = |hash: u64, byte: u8| hash.wrapping_mul(BASE).wrapping_add(u64::from(byte) + 1);
    let hash_of = |token: &[u8]| token.iter().fold(0, |hash, &byte| roll(hash, byte));
    let hashes: HashSet<(u64, usize)> =
        tokens.iter().map(|token| (hash_of(token), token.len())).collect();
    let ranks: HashMap<&[u8], u32> = tokens.iter().copied().zip(0..).collect();
    let mut pairs = Vec::new();
    for (rank, token) in (0..).zip(tokens) {
        let total = hash_of(token);
        let mut prefix = 0;
        // total = prefix * BASE^(length of suffix) + suffix; powers count down from the front.
        let mut power = (1..token.len()).fold(1u64, |power, _| power.wrapping_mul(BASE));
        for cut in 1..token.len() {
            prefix = roll(prefix, token[cut - 1]);
            let suffix = total.wrapping_sub(prefix.wrapping_mul(power));
            power = power.wrapping_mul(inverse(BASE));
            if hashes.contains(&(prefix, cut)) && hashes.contains(&(suffix, token.len() - cut)) {
                let (left, right) = token.split_at(cut);
                if let (Some(&left), Some(&right)) = (ranks.get(left), ranks.get(right)) {
                    pairs.push((left, right, rank));
                }
            }
        }
    }
    pairs
}

/// The inverse of the odd `value` modulo 2^64 (Newton's iteration; 5 steps give 64 bits).
const fn inverse(value: u64) -> u64 {
    let mut result = value;
    let mut step = 0;
    while step < 5 {
        result = result.wrapping_mul(2u64.wrapping_sub(value.wrapping_mul(result)));
        step += 1;
    }
    result
}

/// Append the tokens of a piece of at most `MAX` bytes.
pub fn merge_short<const MAX: usize>(piece: &[u8], pairs: &PairTable, out: &mut Vec<u32>) {
    let mut length = piece.len();
    let mut ids = [NONE; MAX];
    let mut ranks = [NONE; MAX]; // of the pair that starts here
    for (id, &byte) in ids.iter_mut().zip(piece) {
        *id = pairs.bytes[byte as usize];
    }
    for (rank, pair) in ranks.iter_mut().zip(piece.windows(2)) {
        *rank = pairs.byte_pairs[byte_pair(pair[0], pair[1])];
    }
    while length > 1 {
        let mut best = 0;
        for at in 1..length - 1 {
            if ranks[at] < ranks[best] {
                best = at;
            }
        }
        if ranks[best] == NONE {
            break;
        }
        ids[best] = ranks[best];
        ids.copy_within(best + 2..length, best + 1);
        ranks.copy_within(best + 2..length, best + 1);
        length -= 1;
        ranks[best] = match best + 1 < length {
            true => pairs.rank(ids[best], ids[best + 1]),
            false => NONE,
        };
        if best > 0 {
            ranks[best - 1] = pairs.rank(ids[best - 1], ids[best]);
        }
    }
    out.extend_from_slice(&ids[..length]);
}

/// Append the tokens of a piece of any length.
pub fn merge_long(piece: &[u8], pairs: &PairTable, out: &mut Vec<u32>) {
    let length = piece.len();
    // A doubly linked list: each token is stored at its first byte, the rest is NONE. The heap keeps
    // stale entries, which are skipped when popped: n log n instead of n^2.
    let mut ids: Vec<u32> = piece.iter().map(|&byte| pairs.bytes[byte as usize]).collect();
    let mut next: Vec<usize> = (1..=length).collect();
    let mut previous: Vec<usize> = (0..length).map(|at| at.wrapping_sub(1)).collect();
    let rank_at = |ids: &[u32], next: &[usize], at: usize| match next[at] < length {
        true => pairs.rank(ids[at], ids[next[at]]),
        false => NONE,
    };
    let mut queue: BinaryHeap<Reverse<(u32, usize)>> =
        (0..length).map(|at| Reverse((rank_at(&ids, &next, at), at))).collect();
    while let Some(Reverse((rank, at))) = queue.pop() {
        if rank == NONE {
            break;
        }
        if ids[at] == NONE || rank_at(&ids, &next, at) != rank {
            continue; // stale: one of the two has since been merged with another neighbor
        }
        let gone = next[at];
        ids[at] = rank;
        ids[gone] = NONE;
        next[at] = next[gone];
        if next[at] < length {
            previous[next[at]] = at;
        }
        queue.push(Reverse((rank_at(&ids, &next, at), at)));
        if let Some(before) = previous.get(at).copied().filter(|&before| before < length) {
            queue.push(Reverse((rank_at(&ids, &next, before), before)));
        }
    }
    out.extend(ids.into_iter().filter(|&id| id != NONE));
}
