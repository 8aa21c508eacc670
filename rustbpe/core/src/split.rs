//! Cutting text into the pieces that merges never cross.
//!
//! Without it, the vocabulary would fill with tokens such as "dog." and "dog!" that repeat a word
//! with each punctuation mark, and text could not be counted or encoded piece by piece.

use std::sync::atomic::{AtomicBool, Ordering};

use fancy_regex::Regex;

use crate::scanner::{self, Cl100k, Gpt2, Ours, Rules};

/// Splits text by a pattern: built-in patterns have a scanner, the rest use the regex engine.
pub enum Splitter {
    Ours,
    Cl100k,
    Gpt2,
    Regex(Box<Regex>),
}

impl Splitter {
    /// Errors: the pattern is not a valid regular expression.
    pub fn new(pattern: &str) -> Result<Self, String> {
        match pattern {
            Ours::PATTERN => Ok(Self::Ours),
            Cl100k::PATTERN => Ok(Self::Cl100k),
            Gpt2::PATTERN => Ok(Self::Gpt2),
            _ => match Regex::new(pattern) {
                Ok(regex) => Ok(Self::Regex(Box::new(regex))),
                Err(error) => Err(format!("the split pattern is not valid: {error}")),
            },
        }
    }

    /// The first place at or after `from` where a text may be cut without changing any piece.
    ///
    /// None if there is no such place, or if the pattern is not built in.
    pub fn next_cut(&self, text: &[u8], from: usize) -> Option<usize> {
        match self {
            Self::Regex(_) => None,
            _ => scanner::next_cut(text, from),
        }
    }

    /// Call `visit` with start and end of each piece, in order.
    ///
    /// Errors: the regex engine gave up on this text (too much backtracking).
    #[inline]
    pub fn split(&self, text: &str, visit: impl FnMut(usize, usize)) -> Result<(), String> {
        self.split_until(&AtomicBool::new(false), text, visit)
    }

    /// Like `split`; a pattern that is not built in returns an error once `stop` is set.
    #[inline]
    pub fn split_until(
        &self,
        stop: &AtomicBool,
        text: &str,
        mut visit: impl FnMut(usize, usize),
    ) -> Result<(), String> {
        match self {
            Self::Ours => scanner::scan::<Ours>(text, visit),
            Self::Cl100k => scanner::scan::<Cl100k>(text, visit),
            Self::Gpt2 => scanner::scan::<Gpt2>(text, visit),
            Self::Regex(regex) => {
                for found in regex.find_iter(text) {
                    if stop.load(Ordering::Relaxed) {
                        return Err("stopped".into());
                    }
                    let piece = found.map_err(|e| format!("the split pattern failed: {e}"))?;
                    if !piece.range().is_empty() {
                        visit(piece.start(), piece.end());
                    }
                }
            }
        }
        Ok(())
    }
}
