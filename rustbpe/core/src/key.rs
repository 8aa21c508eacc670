//! Pieces of up to 15 bytes packed into one integer, and a hash table with such keys.
//!
//! Nearly all pieces are this short. As an integer, a piece is compared and hashed in a few
//! instructions and stored without an allocation or a pointer.

/// Longest piece that fits in a key; the key's last byte is the length.
pub const MAX_SHORT: usize = 15;

/// Pack the bytes `start..end` of `text` and their length into one integer, never 0.
///
/// Needs 1 to [`MAX_SHORT`] bytes.
#[inline]
pub fn pack(text: &[u8], start: usize, end: usize) -> u128 {
    let length = end - start;
    debug_assert!((1..=MAX_SHORT).contains(&length));
    let bits = match text.get(start..start + 16) {
        Some(window) => {
            let mut bytes = [0; 16];
            bytes.copy_from_slice(window);
            u128::from_le_bytes(bytes) & ((1u128 << (8 * length)) - 1)
        }
        None => {
            let mut bytes = [0; 16];
            bytes[..length].copy_from_slice(&text[start..end]);
            u128::from_le_bytes(bytes)
        }
    };
    bits | (length as u128) << 120
}

/// The packed bytes and their length.
pub fn unpack(key: u128) -> ([u8; 16], usize) {
    let bytes = key.to_le_bytes();
    (bytes, bytes[MAX_SHORT] as usize)
}

/// A hash of all bits of the key; its upper bits are the best mixed.
#[inline]
pub fn hash(key: u128) -> u64 {
    let low = (key as u64) ^ 0x9E37_79B9_7F4A_7C15;
    let high = ((key >> 64) as u64) ^ 0xD6E8_FEB8_6659_FD93;
    let product = u128::from(low) * u128::from(high);
    (product as u64) ^ (product >> 64) as u64
}

/// Slots of an empty table.
const MIN_SLOTS: usize = 1 << 6;

/// A hash table from keys to `u64`, with open addressing.
#[derive(Clone)]
pub struct KeyTable {
    slots: Vec<[u64; 3]>, // the key's halves and the value; no key has an upper half of 0
    used: usize,
}

impl Default for KeyTable {
    fn default() -> Self {
        Self { slots: vec![[0; 3]; MIN_SLOTS], used: 0 }
    }
}

impl KeyTable {
    /// A mutable reference to the value of a key; inserts 0 if the key is new.
    #[inline]
    pub fn entry(&mut self, key: u128) -> &mut u64 {
        if self.used * 4 >= self.slots.len() * 3 {
            self.resize(self.slots.len() * 2);
        }
        let at = self.find(key);
        if self.slots[at][1] == 0 {
            self.slots[at] = [key as u64, (key >> 64) as u64, 0];
            self.used += 1;
        }
        &mut self.slots[at][2]
    }

    pub fn get(&self, key: u128) -> Option<u64> {
        let slot = self.slots[self.find(key)];
        (slot[1] != 0).then_some(slot[2])
    }

    /// All keys with their values, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (u128, u64)> {
        let used = self.slots.iter().filter(|slot| slot[1] != 0);
        used.map(|slot| (u128::from(slot[0]) | u128::from(slot[1]) << 64, slot[2]))
    }

    pub fn len(&self) -> usize {
        self.used
    }

    /// The slot that holds the key, or the empty one where it belongs.
    #[inline]
    fn find(&self, key: u128) -> usize {
        let (low, high) = (key as u64, (key >> 64) as u64);
        let mask = self.slots.len() - 1;
        let mut at = (hash(key) >> 20) as usize & mask;
        while self.slots[at][1] != 0 && (self.slots[at][0], self.slots[at][1]) != (low, high) {
            at = (at + 1) & mask;
        }
        at
    }

    /// Size of the table in bytes.
    pub fn memory(&self) -> usize {
        self.slots.len() * size_of::<[u64; 3]>()
    }

    /// Remove the entries for which `keep` returns false, then shrink the table.
    pub fn retain(&mut self, mut keep: impl FnMut(u128, u64) -> bool) {
        self.used = 0;
        for slot in &mut self.slots {
            if slot[1] != 0 && keep(u128::from(slot[0]) | u128::from(slot[1]) << 64, slot[2]) {
                self.used += 1;
            } else {
                *slot = [0; 3];
            }
        }
        self.resize((self.used * 2).next_power_of_two().max(MIN_SLOTS));
    }

    fn resize(&mut self, slots: usize) {
        let old = std::mem::replace(&mut self.slots, vec![[0; 3]; slots]);
        for slot in old.into_iter().filter(|slot| slot[1] != 0) {
            let at = self.find(u128::from(slot[0]) | u128::from(slot[1]) << 64);
            self.slots[at] = slot;
        }
    }
}
