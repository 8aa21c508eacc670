//! Encoding with a finished vocabulary: the same tokens as tiktoken, faster.
//!
//! A piece that is a token becomes that token. Otherwise its bytes are merged: always the adjacent
//! pair whose joined bytes have the lowest rank, the leftmost among equals. Ranks are the order in
//! which training made the merges, so this replays them. `PairTable` holds every such pair.
//!
//! Text repeats its pieces (words), so each thread caches the tokens of pieces it has seen; most
//! pieces never need merging. Texts are independent, so threads take groups of them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::{mem, thread};

use crate::key::{self, KeyTable, MAX_SHORT};
use crate::merge::{self, PairTable, SHORT_PIECE};
use crate::split::Splitter;

/// Texts are handed to threads in groups of about this many bytes.
const GROUP_BYTES: usize = 256 << 10;
/// Below this, starting threads costs more than it saves.
const PARALLEL_BYTES: usize = 64 << 10;
/// Slots of a thread's cache: 2 MiB, the size of a core's L2 cache.
const CACHE_SLOTS: usize = 1 << 16;
/// Maximum number of pieces longer than a key that a thread caches.
const CACHE_LONG: usize = 1 << 14;
/// Tokens that fit in a slot.
const INLINE: usize = 4;
/// Marks unused entries of a slot; no vocabulary has this many tokens.
const NONE: u32 = u32::MAX;

/// A vocabulary prepared for encoding; shared by threads.
pub struct Encoder {
    /// Number of tokens.
    pub size: usize,
    splitter: Splitter,
    short: KeyTable,
    long: HashMap<Box<[u8]>, u32>,
    pairs: PairTable,
    caches: Mutex<Vec<Cache>>,
}

/// The integer type of a token: `u16` if the vocabulary allows it, else `u32`.
pub trait Token: Copy + Send + Sync {
    fn from_id(id: u32) -> Self;
}

impl Token for u16 {
    fn from_id(id: u32) -> Self {
        id as u16
    }
}

impl Token for u32 {
    fn from_id(id: u32) -> Self {
        id
    }
}

/// The tokens of consecutive texts, and the number of tokens of each text.
pub struct Group<T> {
    pub tokens: Vec<T>,
    pub lengths: Vec<usize>,
}

impl Encoder {
    /// tokens: bytes in rank order.
    ///
    /// Errors: an empty or repeated token, a missing single byte, an invalid pattern.
    pub fn new(tokens: &[&[u8]], pattern: &str) -> Result<Self, String> {
        let mut short = KeyTable::default();
        let mut long = HashMap::new();
        let mut bytes = [false; 256];
        if tokens.len() > merge::MAX_TOKENS {
            return Err(format!(
                "the vocabulary has {} tokens; the maximum is {}",
                tokens.len(),
                merge::MAX_TOKENS
            ));
        }
        for (rank, &token) in tokens.iter().enumerate() {
            let rank = rank as u32;
            let repeated = match token.len() {
                0 => return Err(format!("token {rank} is empty")),
                length @ ..=MAX_SHORT => {
                    let value = short.entry(key::pack(token, 0, length));
                    // Values are ranks + 1, as 0 means a new key.
                    mem::replace(value, u64::from(rank) + 1) != 0
                }
                _ => long.insert(token.into(), rank).is_some(),
            };
            if repeated {
                return Err(format!("token {rank} repeats an earlier token"));
            }
            if let [byte] = token {
                bytes[*byte as usize] = true;
            }
        }
        if let Some(byte) = bytes.iter().position(|&present| !present) {
            return Err(format!("the vocabulary has no token for the byte 0x{byte:02x}"));
        }
        let splitter = Splitter::new(pattern)?;
        let size = tokens.len();
        Ok(Self {
            size,
            splitter,
            short,
            long,
            pairs: PairTable::new(tokens),
            caches: Mutex::default(),
        })
    }

    /// Encode texts on `threads` threads; each text starts with `bos` if it is given.
    ///
    /// Setting `stop` ends the work early; the result is then incomplete. Every token and `bos` must
    /// fit in `T`.
    /// Errors: see [`Splitter::split`].
    pub fn encode_batch<T: Token>(
        &self,
        texts: &[&str],
        bos: Option<u32>,
        threads: usize,
        stop: &AtomicBool,
    ) -> Result<Vec<Group<T>>, String> {
        let groups = group(texts);
        let total: usize = texts.iter().map(|text| text.len()).sum();
        let threads = if total < PARALLEL_BYTES { 1 } else { threads.clamp(1, groups.len()) };
        let next = AtomicUsize::new(0);
        let work = || {
            let mut done = Vec::new();
            let mut cache = self.caches().pop().unwrap_or_default();
            while !stop.load(Ordering::Relaxed) {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(texts) = groups.get(index) else { break };
                done.push((index, self.encode_group(texts, bos, &mut cache)?));
            }
            self.caches().push(cache);
            Ok(done)
        };
        let mut done: Vec<(usize, Group<T>)> = Vec::new();
        if threads == 1 {
            done = work()?;
        } else {
            let parts: Vec<Result<_, String>> = thread::scope(|scope| {
                let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
                let join = |worker: thread::ScopedJoinHandle<'_, _>| {
                    worker.join().unwrap_or_else(|_| Err("an encoding thread panicked".into()))
                };
                workers.into_iter().map(join).collect()
            });
            for part in parts {
                done.extend(part?);
            }
        }
        done.sort_unstable_by_key(|(index, _)| *index);
        Ok(done.into_iter().map(|(_, group)| group).collect())
    }

    /// Caches from earlier batches; a thread that panicked never returned its cache.
    fn caches(&self) -> MutexGuard<'_, Vec<Cache>> {
        self.caches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn encode_group<T: Token>(
        &self,
        texts: &[&str],
        bos: Option<u32>,
        cache: &mut Cache,
    ) -> Result<Group<T>, String> {
        // Prose has four to five bytes per token.
        let room = texts.iter().map(|text| text.len() / 4 + 2).sum();
        let tokens = Vec::with_capacity(room);
        let mut writer = Writer { encoder: self, cache, merged: vec![], tokens };
        let mut lengths = Vec::with_capacity(texts.len());
        for text in texts {
            let before = writer.tokens.len();
            writer.tokens.extend(bos.map(T::from_id));
            self.splitter.split(text, |start, end| writer.add(text.as_bytes(), start, end))?;
            lengths.push(writer.tokens.len() - before);
        }
        Ok(Group { tokens: writer.tokens, lengths })
    }

    /// Append the tokens of a piece that is not a token itself.
    fn merge(&self, piece: &[u8], out: &mut Vec<u32>) {
        if piece.len() <= MAX_SHORT {
            merge::merge_short::<MAX_SHORT>(piece, &self.pairs, out);
        } else if piece.len() <= SHORT_PIECE {
            merge::merge_short::<SHORT_PIECE>(piece, &self.pairs, out);
        } else {
            merge::merge_long(piece, &self.pairs, out);
        }
    }
}

/// Writes the tokens of pieces.
struct Writer<'a, T> {
    encoder: &'a Encoder,
    cache: &'a mut Cache,
    merged: Vec<u32>,
    tokens: Vec<T>,
}

impl<T: Token> Writer<'_, T> {
    #[inline]
    fn add(&mut self, text: &[u8], start: usize, end: usize) {
        if end - start > MAX_SHORT {
            self.add_long(&text[start..end]);
            return;
        }
        let key = key::pack(text, start, end);
        let slot = self.cache.slot(key);
        if slot.key == key {
            let [first, rest @ ..] = &slot.tokens;
            self.tokens.push(T::from_id(*first));
            let rest = rest.iter().take_while(|&&id| id != NONE);
            self.tokens.extend(rest.map(|&id| T::from_id(id)));
        } else {
            self.add_new(key);
        }
    }

    #[inline(never)]
    fn add_new(&mut self, key: u128) {
        self.merged.clear();
        match self.encoder.short.get(key) {
            Some(rank) => self.merged.push(rank as u32 - 1),
            None => {
                let (bytes, length) = key::unpack(key);
                self.encoder.merge(&bytes[..length], &mut self.merged);
            }
        }
        if self.merged.len() <= INLINE {
            let slot = self.cache.slot(key);
            *slot = Slot { key, tokens: [NONE; INLINE] };
            slot.tokens[..self.merged.len()].copy_from_slice(&self.merged);
        }
        write(&self.merged, &mut self.tokens);
    }

    fn add_long(&mut self, piece: &[u8]) {
        if let Some(&rank) = self.encoder.long.get(piece) {
            self.tokens.push(T::from_id(rank));
            return;
        }
        if let Some(ids) = self.cache.long.get(piece) {
            write(ids, &mut self.tokens);
            return;
        }
        self.merged.clear();
        self.encoder.merge(piece, &mut self.merged);
        write(&self.merged, &mut self.tokens);
        if piece.len() <= SHORT_PIECE {
            if self.cache.long.len() == CACHE_LONG {
                self.cache.long.clear();
            }
            self.cache.long.insert(piece.into(), self.merged.as_slice().into());
        }
    }
}

#[inline]
fn write<T: Token>(ids: &[u32], tokens: &mut Vec<T>) {
    tokens.extend(ids.iter().map(|&id| T::from_id(id)));
}

/// Divide texts into consecutive groups of about [`GROUP_BYTES`].
fn group<'a, 'b>(texts: &'b [&'a str]) -> Vec<&'b [&'a str]> {
    let mut groups = Vec::new();
    let (mut first, mut size) = (0, 0);
    for (index, text) in texts.iter().enumerate() {
        size += text.len();
        if size >= GROUP_BYTES {
            groups.push(&texts[first..=index]);
            (first, size) = (index + 1, 0);
        }
    }
    if first < texts.len() {
        groups.push(&texts[first..]);
    }
    groups
}

/// Tokens of pieces seen before; a new piece overwrites the one in its slot.
struct Cache {
    slots: Vec<Slot>,
    long: HashMap<Box<[u8]>, Box<[u32]>>,
}

#[derive(Clone)]
struct Slot {
    key: u128, // 0: empty
    tokens: [u32; INLINE],
}

impl Default for Cache {
    fn default() -> Self {
        let empty = Slot { key: 0, tokens: [NONE; INLINE] };
        Self { slots: vec![empty; CACHE_SLOTS], long: HashMap::new() }
    }
}

impl Cache {
    #[inline]
    fn slot(&mut self, key: u128) -> &mut Slot {
        &mut self.slots[(key::hash(key) >> 20) as usize % CACHE_SLOTS]
    }
}
