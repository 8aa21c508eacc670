//! Hand-written scanners for the built-in split patterns: one pass, eight ASCII letters at a time.
//!
//! Owns: the patterns below. Does not own: other patterns, which the regex engine runs (`split`).

use std::sync::LazyLock;

use crate::unicode::{LETTERS, NUMBERS, SPACES};

/// How the built-in patterns differ.
pub trait Rules {
    const PATTERN: &str;
    /// Maximum number of `\p{N}` characters in a piece.
    const NUMBERS: usize;
    /// A preceding space joins a number.
    const SPACED_NUMBERS: bool = false;
    /// Contractions in upper and lower case, any character but a newline before letters, newlines
    /// after punctuation, and whitespace up to its last newline.
    const GPT4: bool = true;
    /// Whitespace at the end of the text is one piece, even with newlines.
    const END: bool = true;
}

/// Our own pattern: GPT-4's, but with two digits per piece, which suits small vocabularies.
pub struct Ours;

impl Rules for Ours {
    const PATTERN: &str = concat!(
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}",
        r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
    );
    const NUMBERS: usize = 2;
    const END: bool = false;
}

/// The pattern of GPT-4's vocabulary, as tiktoken writes it.
pub struct Cl100k;

impl Rules for Cl100k {
    const PATTERN: &str = concat!(
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+",
        r"| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
    );
    const NUMBERS: usize = 3;
}

/// The pattern of GPT-2's vocabulary, as tiktoken writes it.
pub struct Gpt2;

impl Rules for Gpt2 {
    const PATTERN: &str = concat!(
        r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$",
        r"|\s+(?!\S)|\s"
    );
    const NUMBERS: usize = usize::MAX;
    const SPACED_NUMBERS: bool = true;
    const GPT4: bool = false;
}

#[derive(Clone, Copy, PartialEq)]
enum Class {
    Other,
    Letter,
    Number,
    Space,   // whitespace except newlines
    Newline, // \r and \n
}
use Class::{Letter, Newline, Number, Other, Space};

/// The class of every code point, in pages of 256; identical pages are stored once.
struct Classes {
    ascii: [Class; 128],
    page_of: Vec<u16>,
    pages: Vec<[Class; 256]>,
}

static CLASSES: LazyLock<Classes> = LazyLock::new(|| {
    let mut all = vec![Other; 0x110000];
    for (ranges, class) in [(&LETTERS[..], Letter), (&NUMBERS[..], Number), (&SPACES[..], Space)] {
        for range in ranges.chunks_exact(2) {
            all[range[0] as usize..=range[1] as usize].fill(class);
        }
    }
    all[b'\r' as usize] = Newline;
    all[b'\n' as usize] = Newline;
    let mut ascii = [Other; 128];
    ascii.copy_from_slice(&all[..128]);
    let (mut page_of, mut pages) = (Vec::new(), Vec::<[Class; 256]>::new());
    for page in all.chunks_exact(256) {
        let known = pages.iter().position(|other| other == page).unwrap_or_else(|| {
            let mut new = [Other; 256];
            new.copy_from_slice(page);
            pages.push(new);
            pages.len() - 1
        });
        page_of.push(known as u16);
    }
    Classes { ascii, page_of, pages }
});

/// Call `visit` with start and end of each piece of a text, in order.
///
/// The pieces cover the text without gaps.
#[inline]
pub fn scan<R: Rules>(text: &str, mut visit: impl FnMut(usize, usize)) {
    let scanner = Scanner { text: text.as_bytes(), classes: &CLASSES };
    let mut start = 0;
    while start < text.len() {
        let end = scanner.piece_end::<R>(start);
        visit(start, end);
        start = end;
    }
}

/// The first place at or after `from` where a text may be cut without changing any piece.
///
/// That is after a newline between a visible ASCII character and an ASCII letter: in every built-in
/// pattern such a newline ends a piece, both at the end of a text and before a letter.
pub fn next_cut(text: &[u8], from: usize) -> Option<usize> {
    let from = from.max(2);
    let found = text.get(from - 2..)?.windows(3).position(|around| {
        around[1] == b'\n' && around[0].is_ascii_graphic() && around[2].is_ascii_alphabetic()
    });
    found.map(|place| place + from)
}

struct Scanner<'a> {
    text: &'a [u8],
    classes: &'static Classes,
}

impl Scanner<'_> {
    /// The end of the piece that starts at `start`, which is a character's first byte.
    ///
    /// The comments show which alternative of the pattern applies.
    #[inline(always)]
    fn piece_end<R: Rules>(&self, start: usize) -> usize {
        let (class, length) = self.class(start);
        let second = start + length;
        match class {
            Letter => self.letters_end(second),                 // ...\p{L}+
            Number => self.numbers_end(second, R::NUMBERS - 1), // \p{N}{1,n}
            Newline if R::GPT4 => self.whitespace_end::<R>(start),
            Space | Newline => {
                let plain = self.text[start] == b' ';
                match self.class_or_end(second).0 {
                    Letter if R::GPT4 || plain => self.letters_end(second), // ...?\p{L}+
                    Number if R::SPACED_NUMBERS && plain => {
                        self.numbers_end(second, R::NUMBERS) //  ?\p{N}+
                    }
                    Other if plain && second < self.text.len() => {
                        self.other_end::<R>(second) //  ?[^\s\p{L}\p{N}]++[\r\n]*
                    }
                    _ => self.whitespace_end::<R>(start),
                }
            }
            Other => {
                if let Some(end) = self.contraction_end::<R>(start) {
                    return end; // '(?i:[sdmt]|ll|ve|re)
                }
                match self.class_or_end(second).0 {
                    Letter if R::GPT4 => self.letters_end(second), // [^\r\n\p{L}\p{N}]?+\p{L}+
                    _ => self.other_end::<R>(second),              //  ?[^\s\p{L}\p{N}]++[\r\n]*
                }
            }
        }
    }

    /// The class of the character at `at`, and its length in bytes.
    #[inline(always)]
    fn class(&self, at: usize) -> (Class, usize) {
        let first = self.text[at];
        if first < 0x80 {
            return (self.classes.ascii[first as usize], 1);
        }
        let (point, length) = self.decode(at);
        let page = self.classes.page_of[point >> 8];
        (self.classes.pages[page as usize][point & 0xFF], length)
    }

    /// Like `class`; the end of the text counts as (Other, 0).
    #[inline(always)]
    fn class_or_end(&self, at: usize) -> (Class, usize) {
        if at < self.text.len() { self.class(at) } else { (Other, 0) }
    }

    /// The code point at `at` and its length in bytes; the text is valid UTF-8.
    #[inline]
    fn decode(&self, at: usize) -> (usize, usize) {
        let first = self.text[at] as usize;
        let next = |offset: usize| (self.text[at + offset] & 0x3F) as usize;
        if first < 0xE0 {
            (((first & 0x1F) << 6) | next(1), 2)
        } else if first < 0xF0 {
            (((first & 0x0F) << 12) | (next(1) << 6) | next(2), 3)
        } else {
            let high = ((first & 0x07) << 18) | (next(1) << 12);
            (high | (next(2) << 6) | next(3), 4)
        }
    }

    #[inline(always)]
    fn letters_end(&self, mut at: usize) -> usize {
        loop {
            if let Some(&eight) = self.text[at..].first_chunk::<8>() {
                let count = ascii_letters(u64::from_le_bytes(eight));
                at += count;
                if count == 8 {
                    continue;
                }
                if self.text[at] < 0x80 {
                    return at;
                }
            }
            match self.class_or_end(at) {
                (Letter, length) => at += length,
                _ => return at,
            }
        }
    }

    /// The end of at most `max` numbers (`\p{N}`) starting at `at`.
    #[inline(always)]
    fn numbers_end(&self, mut at: usize, max: usize) -> usize {
        let mut count = 0;
        while count < max {
            match self.class_or_end(at) {
                (Number, length) => at += length,
                _ => break,
            }
            count += 1;
        }
        at
    }

    /// The end of `[^\s\p{L}\p{N}]*[\r\n]*` at `at`; newlines only with GPT-4's rules.
    #[inline(always)]
    fn other_end<R: Rules>(&self, mut at: usize) -> usize {
        while at < self.text.len() {
            match self.class(at) {
                (Other, length) => at += length,
                _ => break,
            }
        }
        while R::GPT4 && at < self.text.len() && matches!(self.text[at], b'\r' | b'\n') {
            at += 1;
        }
        at
    }

    /// The end of `\s++$|\s*[\r\n]|\s+(?!\S)|\s+` at `start`.
    fn whitespace_end<R: Rules>(&self, start: usize) -> usize {
        let (mut end, mut last, mut newline_end) = (start, start, None);
        while end < self.text.len() {
            let (class, length) = self.class(end);
            if class != Space && class != Newline {
                break;
            }
            last = end;
            end += length;
            if class == Newline {
                newline_end = Some(end);
            }
        }
        if R::END && end == self.text.len() {
            return end; // \s++$
        }
        if let (true, Some(end)) = (R::GPT4, newline_end) {
            return end; // \s*[\r\n]: the longest
        }
        if end == self.text.len() || last == start {
            return end; // nothing follows, or \s+ of one character
        }
        last // \s+(?!\S): the last one joins the next piece
    }

    /// The end of `'(?i:[sdmt]|ll|ve|re)` at `start`, if it matches; lowercase only for GPT-2.
    #[inline(always)]
    fn contraction_end<R: Rules>(&self, start: usize) -> Option<usize> {
        if self.text[start] != b'\'' {
            return None;
        }
        let folded = |byte: u8| if R::GPT4 { byte.to_ascii_lowercase() } else { byte };
        let first = folded(*self.text.get(start + 1)?);
        if matches!(first, b's' | b'd' | b'm' | b't') {
            return Some(start + 2);
        }
        match (first, folded(*self.text.get(start + 2)?)) {
            (b'l', b'l') | (b'v', b'e') | (b'r', b'e') => Some(start + 3),
            (0xC5, 0xBF) if R::GPT4 => Some(start + 3), // U+017F, the long s, folds to s
            _ => None,
        }
    }
}

/// How many of the eight bytes are ASCII letters, up to the first that is not, from the lowest.
#[inline(always)]
fn ascii_letters(bytes: u64) -> usize {
    const EACH: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = 0x80 * EACH;
    let small = (bytes | (0x20 * EACH)) & !HIGH;
    let from_a = small + (0x80 - b'a' as u64) * EACH;
    let beyond_z = small + (0x80 - b'z' as u64 - 1) * EACH;
    let letters = from_a & !beyond_z & !bytes & HIGH;
    ((letters ^ HIGH).trailing_zeros() / 8) as usize
}
