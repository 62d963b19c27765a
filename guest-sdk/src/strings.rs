//! Byte strings: texts, files, pictures.

use crate::{Error, Result};

/// Byte strings with their shape, in row-major order: the datatype `BYTES`.
#[derive(Clone, Debug, PartialEq, Eq)]
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
        if count(shape.iter().copied()) != Some(elements.len()) {
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

    /// The data of a tensor of them, as the host lays it out: each is its length, a little-endian `u32`, and its bytes.
    pub(crate) fn pack(&self) -> Result<Vec<u8>> {
        let size = self.elements.iter().map(|element| element.len() + PREFIX).sum();
        let mut data = Vec::with_capacity(size);
        for (index, element) in self.elements.iter().enumerate() {
            let length = u32::try_from(element.len())
                .map_err(|_| Error::internal(format!("byte string {index} is over 4 GiB")))?;
            data.extend_from_slice(&length.to_le_bytes());
            data.extend_from_slice(element);
        }
        Ok(data)
    }

    /// What [`Strings::pack`] made, in a tensor of this shape.
    pub(crate) fn unpack(shape: Vec<u32>, data: &[u8]) -> Result<Strings> {
        let wanted = count(shape.iter().map(|&size| size as usize));
        // So many would not fit, whatever they were: no memory is asked for them.
        let wanted = wanted.filter(|&wanted| wanted <= data.len() / PREFIX).ok_or_else(|| {
            Error::internal(format!("{} bytes do not hold byte strings of shape {shape:?}", data.len()))
        })?;
        let (mut rest, mut elements) = (data, Vec::with_capacity(wanted));
        for index in 0..wanted {
            let (element, behind) =
                first(rest).ok_or_else(|| Error::internal(format!("byte string {index} of {wanted} is truncated")))?;
            elements.push(element.to_vec());
            rest = behind;
        }
        if !rest.is_empty() {
            return Err(Error::internal(format!("{} bytes are left behind {wanted} byte strings", rest.len())));
        }
        Ok(Strings { shape, elements })
    }
}

impl Default for Strings {
    /// No strings: a row of none, since no dimensions at all would hold one.
    fn default() -> Strings {
        Strings { shape: vec![0], elements: Vec::new() }
    }
}

/// Bytes of the length before each string of a tensor.
const PREFIX: usize = size_of::<u32>();

/// The first string of a tensor's data, and what follows it.
fn first(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = data.split_first_chunk::<PREFIX>()?;
    rest.split_at_checked(u32::from_le_bytes(*length) as usize)
}

/// How many elements a shape has; none where memory could not hold them.
pub(crate) fn count(mut shape: impl Iterator<Item = usize>) -> Option<usize> {
    shape.try_fold(1usize, |count, size| count.checked_mul(size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_survive_a_tensors_layout() {
        let cases = [
            Strings::row(["north", ""]),
            Strings::row([vec![0xffu8, 0], vec![]]),
            Strings::row(Vec::<Vec<u8>>::new()),
            Strings::new(&[], vec![b"one".to_vec()]).unwrap(),
            Strings::new(&[2, 1], vec![b"a".to_vec(), b"b".to_vec()]).unwrap(),
            Strings::new(&[0, 3], vec![]).unwrap(),
            Strings::default(),
        ];
        for strings in cases {
            assert_eq!(Strings::unpack(strings.shape.clone(), &strings.pack().unwrap()), Ok(strings));
        }
        assert_eq!(Strings::row(["ab", ""]).pack().unwrap(), b"\x02\0\0\0ab\0\0\0\0");
    }

    #[test]
    fn a_layout_that_does_not_add_up_is_the_modules_fault() {
        let cases: [(&[u32], &[u8], &str); 7] = [
            (&[1], b"", "do not hold"),
            (&[1], b"\x01\0\0", "do not hold"),
            (&[1], b"\x02\0\0\0a", "0 of 1 is truncated"),
            (&[2], b"\x04\0\0\0abcd", "1 of 2 is truncated"),
            (&[1], b"\x01\0\0\0ab", "1 bytes are left"),
            (&[0], b"\0\0\0\0", "4 bytes are left"),
            (&[u32::MAX, u32::MAX, u32::MAX], b"\0\0\0\0", "do not hold"),
        ];
        for (shape, data, said) in cases {
            let error = Strings::unpack(shape.to_vec(), data).unwrap_err();
            assert!(!error.is_invalid_input() && error.message().contains(said), "{shape:?}: {error}");
        }
    }
}
