//! Arrays as NumPy's `save` writes them: `.npy`, versions 1 to 3.

/// The first bytes of every such file.
const MAGIC: &[u8] = b"\x93NUMPY";

/// An array as the protocol's binary extension has it.
#[derive(Debug, PartialEq)]
pub struct Array {
    /// `FP32`, `INT64`, `BYTES`, ...
    pub datatype: &'static str,
    /// Its dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Little-endian elements in row-major order; a byte string is its length and its bytes.
    pub data: Vec<u8>,
}

/// What the file says of its content.
struct Header<'a> {
    big_endian: bool,
    /// NumPy's letter: `f`, `i`, `u`, `b`, `S`, `U`, `V`.
    kind: char,
    /// Bytes of one element; characters for `U`.
    size: usize,
    column_major: bool,
    shape: Vec<usize>,
    content: &'a [u8],
}

/// Whether a file is one of NumPy's.
pub fn is_npy(file: &[u8]) -> bool {
    file.starts_with(MAGIC)
}

/// Reads a file.
///
/// # Errors
/// Says what is wrong with it, or what NumPy has and the protocol has not.
pub fn read(file: &[u8]) -> Result<Array, String> {
    let header = header(file)?;
    let width = if header.kind == 'U' { header.size.checked_mul(4) } else { Some(header.size) };
    let count = header.shape.iter().try_fold(1usize, |count, size| count.checked_mul(*size));
    let wanted = width.zip(count).and_then(|(width, count)| width.checked_mul(count));
    let (Some(width), Some(count), Some(wanted)) = (width, count, wanted) else {
        return Err(format!("its shape {:?} holds more than there can be", header.shape));
    };
    if header.content.len() != wanted {
        let (has, shape) = (header.content.len(), &header.shape);
        return Err(format!("it holds {has} bytes, and its shape {shape:?} takes {wanted}"));
    }
    let datatype = datatype(&header)?;
    let mut elements: Vec<&[u8]> = match width {
        0 => vec![&[]; if datatype == "BYTES" { count } else { 0 }],
        width => header.content.chunks_exact(width).collect(),
    };
    if header.column_major {
        elements = row_major(&elements, &header.shape);
    }
    let data = match header.kind {
        'S' => strings(elements.into_iter().map(|e| Ok(e.to_vec())))?,
        'U' => strings(elements.into_iter().map(|e| utf8(e, header.big_endian)))?,
        _ => elements.into_iter().flat_map(|e| little_endian(e, header.big_endian)).collect(),
    };
    Ok(Array { datatype, shape: header.shape, data })
}

fn header(file: &[u8]) -> Result<Header<'_>, String> {
    let cut = || "its header is cut off".to_string();
    let rest = file.strip_prefix(MAGIC).ok_or("it is no .npy file")?;
    let (version, rest) = rest.split_first_chunk::<2>().ok_or_else(cut)?;
    let (length, rest) = match version[0] {
        1 => rest.split_first_chunk::<2>().map(|(n, rest)| (usize::from(u16::from_le_bytes(*n)), rest)),
        2 | 3 => rest.split_first_chunk::<4>().map(|(n, rest)| (u32::from_le_bytes(*n) as usize, rest)),
        other => return Err(format!("version {other} of .npy is not known")),
    }
    .ok_or_else(cut)?;
    let (text, content) = rest.split_at_checked(length).ok_or_else(cut)?;
    let text = String::from_utf8_lossy(text);
    let value = |key: &str| {
        let missing = || format!("its header has no `{key}`");
        let (_, rest) = text.split_once(&format!("'{key}':")).ok_or_else(missing)?;
        Ok::<_, String>(rest.trim_start().to_string())
    };
    let described = value("descr")?;
    let described = described.strip_prefix('\'').and_then(|rest| rest.split_once('\'')).map(|(name, _)| name);
    let described = described.ok_or("it holds records; save each of their fields as an array of its own")?;
    let (order, name) = described.split_at_checked(1).unwrap_or_default();
    let kind = name.chars().next().filter(char::is_ascii).unwrap_or('O');
    let size = name.get(1..).and_then(|size| size.parse().ok()).ok_or_else(|| unknown(described))?;
    Ok(Header {
        big_endian: order == ">",
        kind,
        size,
        column_major: value("fortran_order")?.starts_with("True"),
        shape: shape(&value("shape")?)?,
        content,
    })
}

/// `(2, 3)`, `(2,)` or `()`.
fn shape(text: &str) -> Result<Vec<usize>, String> {
    let wrong = || "its header has no shape".to_string();
    let (dims, _) = text.strip_prefix('(').and_then(|rest| rest.split_once(')')).ok_or_else(wrong)?;
    let dims = dims.split(',').map(str::trim).filter(|dim| !dim.is_empty());
    dims.map(|dim| dim.trim_end_matches('L').parse().map_err(|_| wrong())).collect()
}

fn unknown(described: &str) -> String {
    format!("it holds `{described}`, which has no counterpart in the protocol")
}

/// The protocol's name of the elements' type. NumPy has no bfloat16: what calls itself so is two opaque bytes.
fn datatype(header: &Header<'_>) -> Result<&'static str, String> {
    Ok(match (header.kind, header.size) {
        ('b', 1) => "BOOL",
        ('u', 1) => "UINT8",
        ('u', 2) => "UINT16",
        ('u', 4) => "UINT32",
        ('u', 8) => "UINT64",
        ('i', 1) => "INT8",
        ('i', 2) => "INT16",
        ('i', 4) => "INT32",
        ('i', 8) => "INT64",
        ('f', 2) => "FP16",
        ('V', 2) => "BF16",
        ('f', 4) => "FP32",
        ('f', 8) => "FP64",
        ('S' | 'U', _) => "BYTES",
        (kind, size) => return Err(unknown(&format!("{kind}{size}"))),
    })
}

/// The elements of an array whose first index runs fastest, in the order in which the last one does.
fn row_major<'a>(elements: &[&'a [u8]], shape: &[usize]) -> Vec<&'a [u8]> {
    let place = |mut index: usize| {
        // Digits of the index from the last dimension on, and what each is worth in the other order.
        let digits = shape.iter().rev().map(|size| (index % size, index /= size).0).collect::<Vec<_>>();
        let worth =
            |(place, step): (usize, usize), (digit, size): (&usize, &usize)| (place + digit * step, step * size);
        digits.iter().rev().zip(shape).fold((0, 1), worth).0
    };
    (0..elements.len()).filter_map(|index| elements.get(place(index)).copied()).collect()
}

fn little_endian(element: &[u8], big_endian: bool) -> Vec<u8> {
    let mut element = element.to_vec();
    if big_endian {
        element.reverse();
    }
    element
}

/// NumPy's characters of four bytes as UTF-8.
fn utf8(element: &[u8], big_endian: bool) -> Result<Vec<u8>, String> {
    let character = |c: &[u8]| {
        let code = little_endian(c, big_endian).iter().rev().fold(0u32, |code, byte| code << 8 | u32::from(*byte));
        char::from_u32(code).ok_or_else(|| format!("it holds a character that there is not: {code:#x}"))
    };
    let text: String = element.chunks_exact(4).map(character).collect::<Result<_, _>>()?;
    Ok(text.into_bytes())
}

/// Byte strings behind their lengths; the zeros that NumPy fills them up with are no part of them.
fn strings(elements: impl Iterator<Item = Result<Vec<u8>, String>>) -> Result<Vec<u8>, String> {
    let mut data = Vec::new();
    for element in elements {
        let element = element?;
        let end = element.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        let length = u32::try_from(end).map_err(|_| "it holds a string of more than 4 GiB")?;
        data.extend_from_slice(&length.to_le_bytes());
        data.extend_from_slice(&element[..end]);
    }
    Ok(data)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As NumPy writes it.
    fn file(described: &str, column_major: bool, shape: &str, content: &[u8]) -> Vec<u8> {
        let order = if column_major { "True" } else { "False" };
        let header = format!("{{'descr': '{described}', 'fortran_order': {order}, 'shape': {shape}, }}\n");
        let length = u16::try_from(header.len()).unwrap().to_le_bytes();
        [MAGIC, &[1, 0], &length, header.as_bytes(), content].concat()
    }

    fn floats(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    #[test]
    fn numbers_come_as_they_are() {
        let array = read(&file("<f4", false, "(2, 3)", &floats(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]))).unwrap();
        assert_eq!((array.datatype, &array.shape[..]), ("FP32", &[2, 3][..]));
        assert_eq!(array.data, floats(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]));
        assert_eq!(read(&file("|b1", false, "(2,)", &[1, 0])).unwrap().datatype, "BOOL");
        assert_eq!(read(&file("<V2", false, "()", &[1, 0])).unwrap().shape, [0usize; 0]);
        assert_eq!(read(&file("<i8", false, "(0, 4)", &[])).unwrap().shape, [0, 4]);
    }

    #[test]
    fn other_orders_are_turned() {
        // [[1, 2, 3], [4, 5, 6]] with its columns one after the other.
        let turned = read(&file("<f4", true, "(2, 3)", &floats(&[1.0, 4.0, 2.0, 5.0, 3.0, 6.0]))).unwrap();
        assert_eq!(turned.data, floats(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]));
        let three: Vec<u8> = (0..24).collect();
        let turned = read(&file("|u1", true, "(2, 3, 4)", &three)).unwrap().data;
        // Element (i, j, k) lies at i + 2j + 6k.
        assert_eq!((turned[0], turned[1], turned[4], turned[12], turned[23]), (0, 6, 2, 1, 23));
        let big = read(&file(">i2", false, "(2,)", &[1, 2, 0, 7])).unwrap();
        assert_eq!((big.datatype, &big.data[..]), ("INT16", &[2, 1, 7, 0][..]));
    }

    #[test]
    fn strings_lose_their_filling() {
        let bytes = read(&file("|S3", false, "(2,)", b"a\0\0xyz")).unwrap();
        assert_eq!((bytes.datatype, &bytes.data[..]), ("BYTES", &b"\x01\0\0\0a\x03\0\0\0xyz"[..]));
        let text: Vec<u8> = "ü\0".chars().flat_map(|c| (c as u32).to_be_bytes()).collect();
        assert_eq!(read(&file(">U2", false, "(1,)", &text)).unwrap().data, b"\x02\0\0\0\xc3\xbc");
        assert_eq!(read(&file("<U0", false, "(2,)", b"")).unwrap().data, [0; 8]);
    }

    #[test]
    fn what_cannot_be_read_is_said() {
        for (file, words) in [
            (b"hello".to_vec(), "no .npy"),
            (MAGIC.to_vec(), "cut off"),
            (file("<f4", false, "(3,)", &[0; 8]), "holds 8 bytes, and its shape [3] takes 12"),
            (file("<f4", false, "(99999999999, 99999999999)", &[]), "more than there can be"),
            (file("<c8", false, "(1,)", &[0; 8]), "`c8`"),
            (file("|O", false, "(1,)", &[0; 8]), "`|O`"),
            (file("<f4", false, "3", &[]), "no shape"),
            (file("<f4", false, "(1,)", &[0; 4]).replace_descr(), "records"),
        ] {
            let error = read(&file).unwrap_err();
            assert!(error.contains(words), "{error} is not {words}");
        }
    }

    trait ReplaceDescr {
        fn replace_descr(self) -> Vec<u8>;
    }

    impl ReplaceDescr for Vec<u8> {
        /// A record type in the place of a plain one, of the same length.
        fn replace_descr(self) -> Vec<u8> {
            let at = self.windows(5).position(|w| w == b"'<f4'").unwrap();
            let mut changed = self;
            changed[at..at + 5].copy_from_slice(b"[(a)]");
            changed
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200), shape in "\\(?[0-9, ]{0,12}\\)?", kind in "[<>|][a-zA-Z][0-9]{0,3}", turned: bool) {
            let _ = read(&bytes);
            let _ = read(&[MAGIC, &bytes].concat());
            if let Ok(array) = read(&file(&kind, turned, &shape, &bytes)) {
                prop_assert!(array.datatype == "BYTES" || array.data.len() == bytes.len());
            }
        }
    }
}
