//! Byte strings: texts, files, pictures.

use crate::{Error, Result};

/// Byte strings with their shape, in row-major order: the datatype `BYTES`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Strings {
    pub(crate) shape: Vec<u32>,
    pub(crate) elements: Vec<Vec<u8>>,
}

impl Strings {
    /// Strings of a shape.
    ///
    /// # Errors
    /// When the shape has another number of elements.
    pub fn new(shape: &[usize], elements: Vec<Vec<u8>>) -> Result<Strings> {
        if shape.iter().product::<usize>() != elements.len() {
            return Err(Error::internal(format!("shape {shape:?} does not hold {} strings", elements.len())));
        }
        let shape = shape
            .iter()
            .map(|&size| u32::try_from(size).map_err(|_| Error::internal("a dimension is too large")))
            .collect::<Result<_>>()?;
        Ok(Strings { shape, elements })
    }

    /// A row of texts or byte strings.
    ///
    /// ```
    /// let labels = windrose_guest::Strings::row(["cat", "dog"]);
    /// assert_eq!(labels.shape(), [2]);
    /// assert_eq!(labels.texts()?, ["cat", "dog"]);
    /// # Ok::<(), windrose_guest::Error>(())
    /// ```
    pub fn row<T: Into<Vec<u8>>>(elements: impl IntoIterator<Item = T>) -> Strings {
        let elements: Vec<Vec<u8>> = elements.into_iter().map(Into::into).collect();
        // A wasm32 module cannot hold more than u32::MAX vectors.
        Strings { shape: vec![elements.len() as u32], elements }
    }

    /// The dimensions, outermost first.
    pub fn shape(&self) -> Vec<usize> {
        self.shape.iter().map(|&size| size as usize).collect()
    }

    /// The strings in row-major order.
    pub fn elements(&self) -> &[Vec<u8>] {
        &self.elements
    }

    /// The strings in row-major order, taken.
    pub fn into_elements(self) -> Vec<Vec<u8>> {
        self.elements
    }

    /// The strings as text.
    ///
    /// # Errors
    /// The caller's fault, when one is not UTF-8.
    pub fn texts(&self) -> Result<Vec<&str>> {
        self.elements
            .iter()
            .enumerate()
            .map(|(index, bytes)| {
                std::str::from_utf8(bytes).map_err(|_| Error::invalid_input(format!("string {index} is not UTF-8")))
            })
            .collect()
    }
}
