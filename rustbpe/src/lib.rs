//! The Python module `nanochat._rustbpe`: a thin layer over `rustbpe_core`.
//!
//! Work runs without the GIL; Ctrl-C is looked for between steps; errors become ValueError.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use pyo3::exceptions::{PyTypeError, PyUnicodeEncodeError, PyValueError};
use pyo3::prelude::*;
use pyo3::pybacked::{PyBackedBytes, PyBackedStr};
use pyo3::types::{PyByteArray, PyBytes, PyIterator, PyString};
use rustbpe_core::count::{Documents, count_pieces};
use rustbpe_core::encode::{self, Group};
use rustbpe_core::scanner::{Ours, Rules};
use rustbpe_core::split::Splitter;
use rustbpe_core::train;

/// Documents are handed to counting threads in batches of about this many bytes.
const BATCH_BYTES: usize = 4 << 20;
/// How often a long computation looks for Ctrl-C and reports progress.
const CHECK_EVERY: Duration = Duration::from_millis(100);

/// What may end a computation early.
enum Failure {
    Input(String),
    Python(PyErr),
}

impl From<String> for Failure {
    fn from(message: String) -> Self {
        Self::Input(message)
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
#[pyfunction]
#[pyo3(name = "train", signature = (texts, vocab_size, pattern, *, threads=None, progress=None))]
fn train_bpe<'py>(
    py: Python<'py>,
    texts: &Bound<'py, PyAny>,
    vocab_size: usize,
    pattern: &str,
    threads: Option<usize>,
    progress: Option<Py<PyAny>>,
) -> PyResult<Vec<Bound<'py, PyBytes>>> {
    let splitter = Splitter::new(pattern).map_err(PyValueError::new_err)?;
    let mut iterator = Some(texts.try_iter()?.unbind());
    let threads = threads.unwrap_or_else(default_threads);
    let tokens = py.detach(|| -> Result<_, Failure> {
        let counts = count_pieces(&splitter, threads, || {
            let Some(texts) = &iterator else { return Ok(None) };
            let (documents, more) = Python::attach(|py| next_documents(texts.bind(py)))?;
            if !more {
                iterator = None;
            }
            Ok::<_, Failure>(Some(documents))
        })?;
        let mut interrupted = None;
        let mut checked = Instant::now();
        let tokens = train::train(&counts, vocab_size, |done| {
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

/// The next batch of documents, and whether there may be more after it.
fn next_documents(texts: &Bound<'_, PyIterator>) -> PyResult<(Documents, bool)> {
    let mut texts = texts.clone();
    let mut documents = Documents::default();
    while documents.text.len() < BATCH_BYTES {
        let Some(item) = texts.next() else { return Ok((documents, false)) };
        let item = item?;
        if let Ok(bytes) = item.cast::<PyBytes>() {
            let text = std::str::from_utf8(bytes.as_bytes());
            documents.push(text.map_err(|error| {
                PyValueError::new_err(format!("a document is not UTF-8: {error}"))
            })?);
        } else {
            documents.push(&text_of(&item)?);
        }
    }
    texts.py().check_signals()?;
    Ok((documents, true))
}

/// The characters of a str; surrogate pairs are joined and lone ones replaced, as tiktoken does.
fn text_of(item: &Bound<'_, PyAny>) -> PyResult<PyBackedStr> {
    let Ok(text) = item.cast::<PyString>() else {
        let kind = item.get_type().qualname()?;
        return Err(PyTypeError::new_err(format!("a text must be a str, got {kind}")));
    };
    match text.clone().try_into() {
        Err(error) if PyErr::is_instance_of::<PyUnicodeEncodeError>(&error, item.py()) => {
            let bytes = text.call_method1("encode", ("utf-16", "surrogatepass"))?;
            let repaired = bytes.call_method1("decode", ("utf-16", "replace"))?;
            repaired.cast_into::<PyString>()?.try_into()
        }
        other => other,
    }
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

/// Encodes batches of texts; its tokens are those of tiktoken.
#[pyclass(frozen, module = "nanochat._rustbpe")]
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
        texts: Vec<Bound<'py, PyAny>>,
        bos: Option<u32>,
        width: usize,
        threads: Option<usize>,
    ) -> PyResult<(Bound<'py, PyByteArray>, Bound<'py, PyByteArray>)> {
        let texts = texts.iter().map(text_of).collect::<PyResult<Vec<_>>>()?;
        let threads = threads.unwrap_or_else(default_threads);
        let groups = py.detach(|| self.encode_groups(&texts, bos, threads))?;
        let count: usize = groups.iter().map(|group| group.tokens.len()).sum();
        let largest = groups.iter().flat_map(|group| &group.tokens).max().copied();
        if !matches!(width, 2 | 4) || (width == 2 && largest.is_some_and(|id| id > 0xFFFF)) {
            return Err(PyValueError::new_err(format!("tokens do not fit {width} bytes")));
        }
        let tokens = PyByteArray::new_with(py, count * width, |bytes| {
            py.detach(|| write_tokens(&groups, width, bytes));
            Ok(())
        })?;
        let offsets = PyByteArray::new_with(py, (texts.len() + 1) * 8, |bytes| {
            write_offsets(&groups, bytes);
            Ok(())
        })?;
        Ok((tokens, offsets))
    }
}

impl Encoder {
    /// Encode on other threads while this one looks for Ctrl-C.
    fn encode_groups(
        &self,
        texts: &[PyBackedStr],
        bos: Option<u32>,
        threads: usize,
    ) -> Result<Vec<Group>, Failure> {
        let texts: Vec<&str> = texts.iter().map(|text| &**text).collect();
        let stop = AtomicBool::new(false);
        if texts.iter().map(|text| text.len()).sum::<usize>() < BATCH_BYTES {
            return Ok(self.inner.encode_batch(&texts, bos, threads, &stop)?);
        }
        let (sender, receiver) = channel();
        let (texts, stop) = (&texts, &stop);
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
                        return Err(Failure::Input("the encoding thread failed".into()));
                    }
                }
            }
        })
    }
}

fn write_tokens(groups: &[Group], width: usize, bytes: &mut [u8]) {
    let ids = groups.iter().flat_map(|group| &group.tokens);
    if width == 2 {
        for (place, &id) in bytes.chunks_exact_mut(2).zip(ids) {
            place.copy_from_slice(&(id as u16).to_ne_bytes());
        }
    } else {
        for (place, id) in bytes.chunks_exact_mut(4).zip(ids) {
            place.copy_from_slice(&id.to_ne_bytes());
        }
    }
}

fn write_offsets(groups: &[Group], bytes: &mut [u8]) {
    let mut offset: i64 = 0;
    let lengths = groups.iter().flat_map(|group| &group.lengths);
    for (place, length) in bytes.chunks_exact_mut(8).zip([&0].into_iter().chain(lengths)) {
        offset += *length as i64;
        place.copy_from_slice(&offset.to_ne_bytes());
    }
}

/// The pieces of a text that merges never cross; for tests.
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
    module.add_function(wrap_pyfunction!(train_bpe, module)?)?;
    module.add_function(wrap_pyfunction!(split, module)?)?;
    module.add_class::<Encoder>()
}
