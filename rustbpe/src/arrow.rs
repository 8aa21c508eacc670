//! String columns owned by another library, read in place through the Arrow C data interface.
//!
//! Source: <https://arrow.apache.org/docs/format/CDataInterface.html> and its PyCapsule protocol.

use std::ffi::{CStr, c_char, c_void};
use std::ops::Range;
use std::slice;

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyCapsule, PyTuple};

#[repr(C)]
struct Schema {
    format: *const c_char,
    name: *const c_char,
    metadata: *const c_char,
    flags: i64,
    n_children: i64,
    children: *mut *mut Schema,
    dictionary: *mut Schema,
    release: Option<unsafe extern "C" fn(*mut Schema)>,
    private_data: *mut c_void,
}

#[repr(C)]
struct Array {
    length: i64,
    null_count: i64,
    offset: i64,
    n_buffers: i64,
    n_children: i64,
    buffers: *mut *const c_void,
    children: *mut *mut Array,
    dictionary: *mut Array,
    release: Option<unsafe extern "C" fn(*mut Array)>,
    private_data: *mut c_void,
}

/// A column of strings; its memory is released when this is dropped.
pub struct Column {
    array: Array,
    wide: bool, // 64-bit offsets
}

// SAFETY: the memory is immutable, and the interface allows any thread to release it.
unsafe impl Send for Column {}
unsafe impl Sync for Column {}

impl Drop for Column {
    fn drop(&mut self) {
        if let Some(release) = self.array.release {
            // SAFETY: the array was moved here and has not been released yet.
            unsafe { release(&mut self.array) };
        }
    }
}

impl Column {
    /// A column from an object with `__arrow_c_array__`; None for any other object.
    ///
    /// Errors: TypeError if the array does not hold strings.
    pub fn from_python(object: &Bound<'_, PyAny>) -> PyResult<Option<Self>> {
        let Some(export) = object.getattr_opt("__arrow_c_array__")? else { return Ok(None) };
        let pair = export.call0()?.cast_into::<PyTuple>()?;
        let (schema, array) = (pair.get_item(0)?, pair.get_item(1)?);
        let schema = schema.cast::<PyCapsule>()?.pointer_checked(Some(c"arrow_schema"))?;
        let array = array.cast::<PyCapsule>()?.pointer_checked(Some(c"arrow_array"))?;
        // SAFETY: capsules with these names point to these structs, whose strings end with 0.
        let format = unsafe { CStr::from_ptr(schema.cast::<Schema>().as_ref().format) };
        let wide = match format.to_bytes() {
            b"u" | b"z" => false,
            b"U" | b"Z" => true,
            other => {
                return Err(PyTypeError::new_err(format!(
                    "an Arrow column must hold strings, got format {:?}; cast it to string",
                    String::from_utf8_lossy(other)
                )));
            }
        };
        // SAFETY: as above. Clearing `release` marks the source array as released.
        let array = unsafe {
            let source = array.cast::<Array>().as_mut();
            let moved = std::ptr::read(source);
            source.release = None;
            moved
        };
        let column = Self { array, wide };
        if column.array.release.is_none() || column.array.n_buffers != 3 {
            return Err(PyValueError::new_err(
                "an Arrow column is damaged or was already consumed",
            ));
        }
        Ok(Some(column))
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.array.length as usize
    }

    /// Ranges of consecutive rows of about `size` bytes each.
    pub fn runs(&self, size: usize) -> Vec<Range<usize>> {
        let mut runs = Vec::new();
        let (mut first, mut bytes) = (0, 0);
        for row in 0..self.rows() {
            bytes += self.bytes(row).len();
            if bytes >= size || row + 1 == self.rows() {
                runs.push(first..row + 1);
                (first, bytes) = (row + 1, 0);
            }
        }
        runs
    }

    /// The strings of a range of rows in order, without nulls.
    ///
    /// Errors: a string that is not UTF-8.
    pub fn texts(&self, rows: Range<usize>) -> Result<Vec<&str>, String> {
        rows.filter(|&row| !self.is_null(row))
            .map(|row| {
                std::str::from_utf8(self.bytes(row)).map_err(|error| {
                    format!("a document is not UTF-8: row {row} of a column: {error}")
                })
            })
            .collect()
    }

    fn buffer(&self, index: usize) -> *const c_void {
        // SAFETY: a string column has three buffers (checked in `from_python`).
        unsafe { *self.array.buffers.add(index) }
    }

    fn is_null(&self, row: usize) -> bool {
        let bits = self.buffer(0).cast::<u8>();
        let at = self.array.offset as usize + row;
        // SAFETY: the bitmap, if present, has one bit per row.
        !bits.is_null() && unsafe { *bits.add(at / 8) } >> (at % 8) & 1 == 0
    }

    fn bytes(&self, row: usize) -> &[u8] {
        let at = self.array.offset as usize + row;
        let offsets = self.buffer(1);
        // SAFETY: there is one more offset than rows, and all of them are within the data.
        unsafe {
            let (start, end) = match self.wide {
                true => (*offsets.cast::<i64>().add(at), *offsets.cast::<i64>().add(at + 1)),
                false => {
                    let narrow = offsets.cast::<i32>();
                    (i64::from(*narrow.add(at)), i64::from(*narrow.add(at + 1)))
                }
            };
            if start >= end {
                return &[]; // a column of empty strings may have no data buffer
            }
            let data = self.buffer(2).cast::<u8>();
            slice::from_raw_parts(data.add(start as usize), (end - start) as usize)
        }
    }
}
