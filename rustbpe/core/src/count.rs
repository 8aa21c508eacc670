//! How often each piece occurs, counted on several threads into one table.
//!
//! Each thread counts into its own small front table, which fits in its core's cache. Evicted
//! entries go in groups to the shared table, which is divided by hash into parts, each with a lock.
//! Parallel counting stays exact because addition does not depend on order: each occurrence is
//! added once, and a piece's hash always selects the same part. Under a memory budget the rarest
//! pieces are dropped, and `Loss` reports how much was lost.

use std::collections::HashMap;
use std::mem;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, TrySendError, sync_channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use crate::key::{self, KeyTable, MAX_SHORT, pack, unpack};
use crate::split::Splitter;

const PARTS: usize = 64;
const MAX_THREADS: usize = 1024;
/// Pieces that a thread collects per part before it takes the part's lock.
const GROUP: usize = 256;
/// Slots of a thread's front table: half of a core's L2 cache.
const FRONT_SLOTS: usize = 1 << 14;
/// Bytes of distinct long pieces that a thread keeps in its front table.
const FRONT_LONG: usize = 1 << 18;
/// How long the thread that delivers texts sleeps while the queue is full.
const NAP: Duration = Duration::from_micros(300);
/// Memory of an entry in the map of long pieces, without the piece's bytes.
const LONG_ENTRY: usize = 64;

/// Texts that one thread counts in sequence.
pub trait Batch: Send {
    /// Call `visit` with each text; stops at its first error and returns it.
    fn visit(&self, visit: &mut dyn FnMut(&str) -> Result<(), String>) -> Result<(), String>;
}

/// Documents concatenated in one buffer; document i ends at `ends[i]`.
#[derive(Default)]
pub struct Documents {
    pub text: String,
    pub ends: Vec<usize>,
}

impl Documents {
    pub fn push(&mut self, document: &str) {
        self.text.push_str(document);
        self.ends.push(self.text.len());
    }
}

impl Batch for Documents {
    fn visit(&self, visit: &mut dyn FnMut(&str) -> Result<(), String>) -> Result<(), String> {
        let mut start = 0;
        for &end in &self.ends {
            visit(&self.text[start..end])?;
            start = end;
        }
        Ok(())
    }
}

/// What was dropped to stay within a memory budget.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Loss {
    /// No piece's count is too low by more than this.
    pub count: u64,
    /// Bytes of text missing from the counts.
    pub bytes: u64,
}

/// Pieces and how often they occur.
#[derive(Clone)]
pub struct PieceCounts {
    parts: Vec<Part>,
    /// Bytes of text that were counted, including dropped ones.
    pub bytes: u64,
}

impl Default for PieceCounts {
    fn default() -> Self {
        Self { parts: (0..PARTS).map(|_| Part::default()).collect(), bytes: 0 }
    }
}

impl PieceCounts {
    /// Add `count` occurrences of a piece. An empty piece is ignored.
    pub fn add_piece(&mut self, piece: &[u8], count: u64) {
        match piece.len() {
            0 => {}
            length @ ..=MAX_SHORT => {
                let key = pack(piece, 0, length);
                *self.parts[part_of(key)].short.entry(key) += count;
            }
            _ => self.parts[part_of_long(piece)].add_long(piece.into(), count),
        }
    }

    /// Number of distinct pieces.
    pub fn len(&self) -> usize {
        self.parts.iter().map(|part| part.short.len() + part.long.len()).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn loss(&self) -> Loss {
        let count = self.parts.iter().map(|part| part.loss.count).max().unwrap_or(0);
        let bytes = self.parts.iter().map(|part| part.loss.bytes).sum();
        Loss { count, bytes }
    }

    /// Total bytes of the distinct pieces.
    pub fn piece_bytes(&self) -> usize {
        let short = |part: &Part| part.short.iter().map(|(key, _)| unpack(key).1).sum::<usize>();
        self.parts.iter().map(|part| short(part) + part.long_bytes).sum()
    }

    /// Call `visit` with each piece and its count, in no particular order, freeing them on the way.
    pub fn drain(self, mut visit: impl FnMut(&[u8], u64)) {
        for part in self.parts {
            for (key, count) in part.short.iter() {
                let (bytes, length) = unpack(key);
                visit(&bytes[..length], count);
            }
            for (piece, count) in &part.long {
                visit(piece, *count);
            }
        }
    }
}

/// One part of the shared table.
#[derive(Clone, Default)]
struct Part {
    short: KeyTable,
    long: HashMap<Box<[u8]>, u64>,
    long_bytes: usize,
    loss: Loss,
}

impl Part {
    fn add_long(&mut self, piece: Box<[u8]>, count: u64) {
        let length = piece.len();
        let present = self.long.entry(piece).or_insert_with(|| {
            self.long_bytes += length;
            0
        });
        *present += count;
    }

    fn memory(&self) -> usize {
        self.short.memory() + self.long_bytes + self.long.len() * LONG_ENTRY
    }

    /// Drop the rarest pieces until at most half of the budget is in use.
    fn prune(&mut self, budget: usize) {
        let mut threshold = 0;
        while self.memory() > budget / 2 && self.short.len() + self.long.len() > 0 {
            threshold = self.least_count().max(threshold + 1);
            let lost = &mut self.loss.bytes;
            self.short.retain(|key, count| {
                let keep = count > threshold;
                *lost += if keep { 0 } else { count * unpack(key).1 as u64 };
                keep
            });
            let long_bytes = &mut self.long_bytes;
            self.long.retain(|piece, count| {
                let keep = *count > threshold;
                if !keep {
                    *lost += *count * piece.len() as u64;
                    *long_bytes -= piece.len();
                }
                keep
            });
            self.long.shrink_to_fit();
        }
        self.loss.count += threshold;
    }

    fn least_count(&self) -> u64 {
        let short = self.short.iter().map(|(_, count)| count).min();
        let long = self.long.values().min().copied();
        short.into_iter().chain(long).min().unwrap_or(0)
    }
}

fn part_of(key: u128) -> usize {
    (key::hash(key) >> 58) as usize
}

fn part_of_long(piece: &[u8]) -> usize {
    let mix = |hash: u64, &byte: &u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3);
    (piece.iter().fold(1, mix).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 58) as usize
}

/// The shared table while counting.
struct Shared {
    parts: Vec<Mutex<Part>>,
    part_budget: usize,
    stop: AtomicBool,
}

impl Shared {
    fn lock(&self, part: usize) -> MutexGuard<'_, Part> {
        // A poisoned lock is harmless here: a panicking thread makes the whole count fail anyway.
        self.parts[part].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The private tables of one thread.
struct Front<'a> {
    shared: &'a Shared,
    slots: Vec<(u64, u64, u64)>, // the key's halves and the count; count 0: empty
    groups: Vec<Vec<(u128, u64)>>,
    long: HashMap<Box<[u8]>, u64>,
    long_bytes: usize,
    bytes: u64,
}

impl<'a> Front<'a> {
    fn new(shared: &'a Shared) -> Self {
        Self {
            shared,
            slots: vec![(0, 0, 0); FRONT_SLOTS],
            groups: (0..PARTS).map(|_| Vec::with_capacity(GROUP)).collect(),
            long: HashMap::new(),
            long_bytes: 0,
            bytes: 0,
        }
    }

    fn add_document(&mut self, text: &str, splitter: &Splitter) -> Result<(), String> {
        if self.shared.stop.load(Ordering::Relaxed) {
            return Err("stopped".into());
        }
        self.bytes += text.len() as u64;
        let stop = &self.shared.stop;
        splitter.split_until(stop, text, |start, end| match end - start <= MAX_SHORT {
            true => self.add_short(pack(text.as_bytes(), start, end)),
            false => self.add_long(&text.as_bytes()[start..end]),
        })
    }

    #[inline]
    fn add_short(&mut self, key: u128) {
        let (low, high) = (key as u64, (key >> 64) as u64);
        let slot = &mut self.slots[key::hash(key) as usize % FRONT_SLOTS];
        if (slot.0, slot.1) == (low, high) {
            slot.2 += 1;
            return;
        }
        let (low, high, count) = mem::replace(slot, (low, high, 1));
        if count > 0 {
            self.hand_over(u128::from(low) | u128::from(high) << 64, count);
        }
    }

    fn hand_over(&mut self, key: u128, count: u64) {
        let part = part_of(key);
        self.groups[part].push((key, count));
        if self.groups[part].len() == GROUP {
            self.flush_group(part);
        }
    }

    fn flush_group(&mut self, part: usize) {
        let mut shared = self.shared.lock(part);
        for (key, count) in self.groups[part].drain(..) {
            *shared.short.entry(key) += count;
        }
        if shared.memory() > self.shared.part_budget {
            shared.prune(self.shared.part_budget);
        }
    }

    fn add_long(&mut self, piece: &[u8]) {
        if let Some(count) = self.long.get_mut(piece) {
            *count += 1;
        } else {
            self.long.insert(piece.into(), 1);
            self.long_bytes += piece.len() + LONG_ENTRY;
            if self.long_bytes > FRONT_LONG {
                self.flush_long();
            }
        }
    }

    fn flush_long(&mut self) {
        self.long_bytes = 0;
        for (piece, count) in mem::take(&mut self.long) {
            let mut shared = self.shared.lock(part_of_long(&piece));
            shared.add_long(piece, count);
            if shared.memory() > self.shared.part_budget {
                shared.prune(self.shared.part_budget);
            }
        }
    }

    /// Hand over everything that is left; returns the bytes of text counted.
    fn finish(mut self) -> u64 {
        for (low, high, count) in mem::take(&mut self.slots) {
            if count > 0 {
                self.hand_over(u128::from(low) | u128::from(high) << 64, count);
            }
        }
        for part in 0..PARTS {
            self.flush_group(part);
        }
        self.flush_long();
        self.bytes
    }
}

/// Count pieces on `threads` threads while `next` delivers texts on the calling thread.
///
/// `next` returns None at the end. `check` is called repeatedly while the calling thread waits. An
/// error from either stops the counting and is returned.
/// budget: limit for the memory of the counts in bytes; None counts exactly, without a limit.
/// Errors: `next`, `check` or a batch failed, or see [`Splitter::split`].
pub fn count_pieces<B: Batch, E: From<String>>(
    splitter: &Splitter,
    threads: usize,
    budget: Option<usize>,
    mut next: impl FnMut() -> Result<Option<B>, E>,
    check: impl Fn() -> Result<(), E>,
) -> Result<PieceCounts, E> {
    let threads = threads.clamp(1, MAX_THREADS);
    let shared = Shared {
        parts: (0..PARTS).map(|_| Mutex::default()).collect(),
        part_budget: budget.map_or(usize::MAX, |bytes| bytes / PARTS),
        stop: AtomicBool::new(false),
    };
    let (sender, receiver) = sync_channel::<B>(threads);
    let receiver = Mutex::new(receiver);
    let bytes = thread::scope(|scope| {
        let work = || count_received(&receiver, splitter, &shared);
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let working = || !workers.iter().all(|worker| worker.is_finished());
        let wait = || {
            thread::sleep(NAP);
            check()
        };
        let mut feed = || {
            while let Some(mut batch) = next()? {
                while let Err(TrySendError::Full(back)) = sender.try_send(batch) {
                    if !working() {
                        return Ok(());
                    }
                    wait()?;
                    batch = back;
                }
            }
            Ok(())
        };
        let mut fed = feed();
        drop(sender);
        while fed.is_ok() && working() {
            fed = wait();
        }
        shared.stop.store(fed.is_err(), Ordering::Relaxed);
        let mut counted = Ok(0);
        for worker in workers {
            let part = worker.join().unwrap_or_else(|_| Err("a counting thread panicked".into()));
            counted = counted.and_then(|sum| Ok(sum + part?));
        }
        fed?;
        counted.map_err(E::from)
    })?;
    let unlock = |part: Mutex<Part>| part.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok(PieceCounts { parts: shared.parts.into_iter().map(unlock).collect(), bytes })
}

fn count_received<B: Batch>(
    receiver: &Mutex<Receiver<B>>,
    splitter: &Splitter,
    shared: &Shared,
) -> Result<u64, String> {
    let mut front = Front::new(shared);
    let mut result = Ok(());
    loop {
        let received = match receiver.lock() {
            Ok(receiver) => receiver.recv(),
            Err(_) => break,
        };
        let Ok(batch) = received else { break };
        if result.is_ok() {
            // After a failure, keep receiving so that the sender never blocks.
            result = batch.visit(&mut |text| front.add_document(text, splitter));
        }
    }
    result.map(|()| front.finish())
}
