//! The Python module `nanochat.tokenizer._rustbpe`: a thin layer over `rustbpe_core`.
//!
//! Work runs without the GIL and checks for Ctrl-C between steps; errors become ValueError.

mod arrow;
mod text;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::pybacked::{PyBackedBytes, PyBackedStr};
use pyo3::types::{PyByteArray, PyBytes};
use rustbpe_core::count::count_pieces;
use rustbpe_core::encode::{self, Group, Token};
use rustbpe_core::scanner::{Cl100k, Gpt2, Ours, Rules};
use rustbpe_core::split::Splitter;
use rustbpe_core::train;

/// Batches of fewer bytes are encoded without checking for Ctrl-C.
const SHORT_BYTES: usize = 4 << 20;
/// How often a long computation checks for Ctrl-C and reports progress.
const CHECK_EVERY: Duration = Duration::from_millis(100);

use crate::arrow::Column;
use crate::text::{Feeder, text_of};

/// Why a computation ended early.
enum Failure {
    Input(String),
    Python(PyErr),
}

impl From<String> for Failure {
    fn from(message: String) -> Self {
        Self::Input(message)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Python(error.into())
    }
}

impl From<PyErr> for Failure {
    fn from(error: PyErr) -> Self {
        Self::Python(error)
    }
}

impl From<Failure> for PyErr {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Input(message) => PyValueError::new_err(message),
            Failure::Python(error) => error,
        }
    }
}

/// Learn the tokens of a vocabulary, in rank order.
#[expect(clippy::too_many_arguments, reason = "they are keyword arguments in Python")]
#[pyfunction]
#[pyo3(
    name = "train",
    signature = (texts, vocab_size, pattern, *, threads=None, memory=None, counted=None, progress=None)
)]
fn train_bpe<'py>(
    py: Python<'py>,
    texts: &Bound<'py, PyAny>,
    vocab_size: usize,
    pattern: &str,
    threads: Option<usize>,
    memory: Option<usize>,
    counted: Option<Py<PyAny>>,
    progress: Option<Py<PyAny>>,
) -> PyResult<Vec<Bound<'py, PyBytes>>> {
    let splitter = Splitter::new(pattern).map_err(PyValueError::new_err)?;
    let mut feeder = Feeder::new(texts, &splitter)?;
    let threads = threads.unwrap_or_else(default_threads);
    let check = || -> Result<(), Failure> { Ok(Python::attach(|py| py.check_signals())?) };
    let counts = py.detach(|| count_pieces(&splitter, threads, memory, || feeder.next(), check))?;
    if let Some(counted) = counted {
        let loss = counts.loss();
        counted.call1(py, (counts.bytes, counts.len(), loss.bytes, loss.count))?;
    }
    let tokens = py.detach(|| -> Result<_, Failure> {
        let mut interrupted = None;
        let mut checked = Instant::now();
        let tokens = train::train(counts, vocab_size, |done| {
            if checked.elapsed() < CHECK_EVERY {
                return true;
            }
            checked = Instant::now();
            interrupted = Python::attach(|py| report(py, progress.as_ref(), done)).err();
            interrupted.is_none()
        });
        match interrupted {
            Some(error) => Err(error.into()),
            None => Ok(tokens?),
        }
    })?;
    Ok(tokens.iter().map(|token| PyBytes::new(py, token)).collect())
}

fn report(py: Python<'_>, progress: Option<&Py<PyAny>>, done: usize) -> PyResult<()> {
    py.check_signals()?;
    if let Some(progress) = progress {
        progress.call1(py, (done,))?;
    }
    Ok(())
}

fn default_threads() -> usize {
    thread::available_parallelism().map_or(1, |count| count.get())
}

/// Encodes batches of texts; produces the same tokens as tiktoken.
#[pyclass(frozen, module = "nanochat.tokenizer._rustbpe")]
struct Encoder {
    inner: encode::Encoder,
}

#[pymethods]
impl Encoder {
    #[new]
    fn new(py: Python<'_>, tokens: Vec<PyBackedBytes>, pattern: &str) -> PyResult<Self> {
        let inner = py.detach(|| {
            let tokens: Vec<&[u8]> = tokens.iter().map(|token| &**token).collect();
            encode::Encoder::new(&tokens, pattern)
        });
        Ok(Self { inner: inner.map_err(PyValueError::new_err)? })
    }

    /// Tokens of `width` bytes each (2 or 4) and offsets of 8 bytes, both in native byte order.
    #[pyo3(signature = (texts, *, bos=None, width=4, threads=None))]
    fn encode_batch<'py>(
        &self,
        py: Python<'py>,
        texts: &Bound<'py, PyAny>,
        bos: Option<u32>,
        width: usize,
        threads: Option<usize>,
    ) -> PyResult<(Bound<'py, PyByteArray>, Bound<'py, PyByteArray>)> {
        let threads = threads.unwrap_or_else(default_threads);
        let largest = (self.inner.size as u32 - 1).max(bos.unwrap_or(0));
        match width {
            2 if largest <= 0xFFFF => self.encode::<u16>(py, texts, bos, threads),
            4 => self.encode::<u32>(py, texts, bos, threads),
            _ => Err(PyValueError::new_err(format!(
                "token ids up to {largest} do not fit in a width of {width} bytes; use 4"
            ))),
        }
    }
}

impl Encoder {
    fn encode<'py, T: Bytes>(
        &self,
        py: Python<'py>,
        texts: &Bound<'py, PyAny>,
        bos: Option<u32>,
        threads: usize,
    ) -> PyResult<(Bound<'py, PyByteArray>, Bound<'py, PyByteArray>)> {
        let groups = if let Some(column) = Column::from_python(texts)? {
            py.detach(|| {
                let texts = column.texts(0..column.rows()).map_err(Failure::Input)?;
                if texts.len() < column.rows() {
                    return Err(Failure::Input("a column contains nulls; drop them".into()));
                }
                self.encode_groups::<T>(&texts, bos, threads)
            })?
        } else {
            let texts = texts.extract::<Vec<Bound<'_, PyAny>>>()?;
            let texts = texts.iter().map(text_of).collect::<PyResult<Vec<_>>>()?;
            py.detach(|| {
                let texts: Vec<&str> = texts.iter().map(|text: &PyBackedStr| &**text).collect();
                self.encode_groups(&texts, bos, threads)
            })?
        };
        let count: usize = groups.iter().map(|group| group.tokens.len()).sum();
        let tokens = PyByteArray::new_with(py, count * size_of::<T>(), |bytes| {
            py.detach(|| write_tokens(&groups, bytes));
            Ok(())
        })?;
        let texts: usize = groups.iter().map(|group| group.lengths.len()).sum();
        let offsets = PyByteArray::new_with(py, (texts + 1) * 8, |bytes| {
            write_offsets(&groups, bytes);
            Ok(())
        })?;
        Ok((tokens, offsets))
    }

    /// Encode on other threads while this one checks for Ctrl-C.
    fn encode_groups<T: Token>(
        &self,
        texts: &[&str],
        bos: Option<u32>,
        threads: usize,
    ) -> Result<Vec<Group<T>>, Failure> {
        let stop = AtomicBool::new(false);
        if texts.iter().map(|text| text.len()).sum::<usize>() < SHORT_BYTES {
            return Ok(self.inner.encode_batch(texts, bos, threads, &stop)?);
        }
        let (sender, receiver) = channel();
        let stop = &stop;
        thread::scope(|scope| {
            scope.spawn(move || {
                let groups = self.inner.encode_batch(texts, bos, threads, stop);
                sender.send(groups).ok();
            });
            loop {
                match receiver.recv_timeout(CHECK_EVERY) {
                    Ok(groups) => return Ok(groups?),
                    Err(RecvTimeoutError::Timeout) => {
                        if let Err(error) = Python::attach(|py| py.check_signals()) {
                            stop.store(true, Ordering::Relaxed);
                            return Err(error.into());
                        }
                    }
                    Err(RecvTimeoutError::Disconnected) => {
                        return Err(Failure::Input("the encoding thread panicked".into()));
                    }
                }
            }
        })
    }
}

/// Tokens that can be written as bytes in native order.
trait Bytes: Token {
    fn write(self, place: &mut [u8]);
}

impl Bytes for u16 {
    fn write(self, place: &mut [u8]) {
        place.copy_from_slice(&self.to_ne_bytes());
    }
}

impl Bytes for u32 {
    fn write(self, place: &mut [u8]) {
        place.copy_from_slice(&self.to_ne_bytes());
    }
}

fn write_tokens<T: Bytes>(groups: &[Group<T>], mut bytes: &mut [u8]) {
    for group in groups {
        let (part, rest) = bytes.split_at_mut(group.tokens.len() * size_of::<T>());
        for (place, token) in part.chunks_exact_mut(size_of::<T>()).zip(&group.tokens) {
            token.write(place);
        }
        bytes = rest;
    }
}

fn write_offsets<T>(groups: &[Group<T>], bytes: &mut [u8]) {
    let mut offset: i64 = 0;
    let lengths = groups.iter().flat_map(|group| &group.lengths);
    for (place, length) in bytes.chunks_exact_mut(8).zip([&0].into_iter().chain(lengths)) {
        offset += *length as i64;
        place.copy_from_slice(&offset.to_ne_bytes());
    }
}

/// Split a text into the pieces that merges never cross; for tests.
#[pyfunction]
fn split(text: &Bound<'_, PyAny>, pattern: &str) -> PyResult<Vec<String>> {
    let text = text_of(text)?;
    let mut pieces = Vec::new();
    let splitter = Splitter::new(pattern).map_err(PyValueError::new_err)?;
    let split = splitter.split(&text, |start, end| pieces.push(text[start..end].to_owned()));
    split.map_err(PyValueError::new_err)?;
    Ok(pieces)
}

#[pymodule]
fn _rustbpe(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("PATTERN", Ours::PATTERN)?;
    module.add("PATTERNS", (Ours::PATTERN, Cl100k::PATTERN, Gpt2::PATTERN))?;
    module.add_function(wrap_pyfunction!(train_bpe, module)?)?;
    module.add_function(wrap_pyfunction!(split, module)?)?;
    module.add_class::<Encoder>()
}
