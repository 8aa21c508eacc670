//! Converts Python texts to Rust and groups them into batches for the counting threads.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pyo3::exceptions::{PyOSError, PyTypeError, PyUnicodeEncodeError, PyValueError};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedStr;
use pyo3::types::{PyBytes, PyIterator, PyString};
use rustbpe_core::count::{Batch, Documents};
use rustbpe_core::split::Splitter;

use crate::Failure;
use crate::arrow::Column;

/// Documents go to counting threads in batches of about this many bytes.
pub const BATCH_BYTES: usize = 1 << 20;
/// Maximum number of documents in a batch.
const BATCH_TEXTS: usize = 1 << 16;

/// The characters of a str; surrogate pairs are joined and lone ones replaced, as in tiktoken.
pub fn text_of(item: &Bound<'_, PyAny>) -> PyResult<PyBackedStr> {
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

/// A batch of texts for one counting thread.
pub enum Texts {
    Documents(Documents),
    Rows(Arc<Column>, Range<usize>),
}

impl Batch for Texts {
    fn visit(&self, visit: &mut dyn FnMut(&str) -> Result<(), String>) -> Result<(), String> {
        match self {
            Self::Documents(documents) => documents.visit(visit),
            Self::Rows(column, rows) => column.texts(rows.clone())?.into_iter().try_for_each(visit),
        }
    }
}

/// Reads a Python iterator of str, bytes, paths of text files and Arrow columns.
///
/// Long documents and files are cut at places that change no piece, to keep batches small. Rows of
/// a column are never cut, nor is anything if the pattern is not built in.
pub struct Feeder<'a> {
    items: Option<Py<PyIterator>>,
    splitter: &'a Splitter,
    ready: VecDeque<Texts>,
    file: Option<(PathBuf, File, Vec<u8>)>, // the last: bytes read but not yet handed out
}

impl<'a> Feeder<'a> {
    pub fn new(texts: &Bound<'_, PyAny>, splitter: &'a Splitter) -> PyResult<Self> {
        if texts.is_instance_of::<PyString>() || texts.is_instance_of::<PyBytes>() {
            return Err(PyTypeError::new_err(
                "texts must be a list or iterator of texts, got a single text",
            ));
        }
        let items = Some(texts.try_iter()?.unbind());
        Ok(Self { items, splitter, ready: VecDeque::new(), file: None })
    }

    /// The next batch; None at the end.
    pub fn next(&mut self) -> Result<Option<Texts>, Failure> {
        loop {
            if let Some(batch) = self.ready.pop_front() {
                return Ok(Some(batch));
            }
            if self.file.is_some() {
                Python::attach(|py| py.check_signals())?;
                self.read_file()?;
            } else if self.items.is_some() {
                Python::attach(|py| self.read_items(py))?;
            } else {
                return Ok(None);
            }
        }
    }

    /// Take items until a batch of documents is full, or until a file or column follows.
    fn read_items(&mut self, py: Python<'_>) -> PyResult<()> {
        py.check_signals()?;
        let Some(mut items) = self.items.as_ref().map(|items| items.clone_ref(py).into_bound(py))
        else {
            return Ok(());
        };
        let mut documents = Documents::default();
        while documents.text.len() < BATCH_BYTES && documents.ends.len() < BATCH_TEXTS {
            let Some(item) = items.next() else {
                self.items = None;
                break;
            };
            let item = item?;
            if let Ok(bytes) = item.cast::<PyBytes>() {
                let text = std::str::from_utf8(bytes.as_bytes());
                let text = text.map_err(|error| {
                    PyValueError::new_err(format!("a document is not UTF-8: {error}"))
                })?;
                self.push(text, &mut documents);
            } else if item.is_instance_of::<PyString>() {
                self.push(&text_of(&item)?, &mut documents);
            } else if let Some(column) = Column::from_python(&item)? {
                self.push_column(column);
                break;
            } else if let Some(chunks) = item.getattr_opt("chunks")? {
                for chunk in chunks.try_iter()? {
                    if let Some(column) = Column::from_python(&chunk?)? {
                        self.push_column(column);
                    }
                }
                break;
            } else if let Ok(path) = item.extract::<PathBuf>() {
                let file = File::open(&path).map_err(|error| named(error, &path))?;
                self.file = Some((path, file, Vec::new()));
                break;
            } else {
                let kind = item.get_type().qualname()?;
                return Err(PyTypeError::new_err(format!(
                    "a text must be a str, bytes, a path or an Arrow array of strings, got {kind}"
                )));
            }
        }
        if !documents.ends.is_empty() {
            self.ready.push_front(Texts::Documents(documents));
        }
        Ok(())
    }

    fn push_column(&mut self, column: Column) {
        let column = Arc::new(column);
        let runs = column.runs(BATCH_BYTES);
        self.ready.extend(runs.into_iter().map(|rows| Texts::Rows(column.clone(), rows)));
    }

    /// Add a document; a long one is first cut into separate batches, except for its end.
    fn push(&mut self, mut text: &str, documents: &mut Documents) {
        while text.len() > 2 * BATCH_BYTES {
            let Some(cut) = self.splitter.next_cut(text.as_bytes(), BATCH_BYTES) else { break };
            let mut part = Documents::default();
            part.push(&text[..cut]);
            self.ready.push_back(Texts::Documents(part));
            text = &text[cut..];
        }
        documents.push(text);
    }

    /// Continue reading the open file up to the next place where it may be cut.
    fn read_file(&mut self) -> Result<(), Failure> {
        let Some((path, mut file, mut rest)) = self.file.take() else { return Ok(()) };
        let searched = rest.len();
        let wanted = (BATCH_BYTES as u64).max(searched as u64); // doubles the read size on long lines
        let read = file.by_ref().take(wanted).read_to_end(&mut rest);
        let read = read.map_err(|error| named(error, &path))?;
        let end = match read {
            0 => Some(rest.len()),
            _ => self.splitter.next_cut(&rest, searched.max(BATCH_BYTES / 2)),
        };
        if let Some(end) = end {
            let text = std::str::from_utf8(&rest[..end]).map_err(|error| {
                Failure::Input(format!("{} is not UTF-8: {error}", path.display()))
            })?;
            let mut documents = Documents::default();
            documents.push(text);
            self.ready.push_back(Texts::Documents(documents));
            rest.drain(..end);
        }
        if read > 0 {
            self.file = Some((path, file, rest));
        }
        Ok(())
    }
}

/// A system error as Python's OSError, with the file's name.
fn named(error: std::io::Error, path: &Path) -> PyErr {
    let reason = error.to_string();
    PyOSError::new_err((error.raw_os_error(), reason, path.display().to_string()))
}
