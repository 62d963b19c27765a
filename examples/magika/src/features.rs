//! What the graph is shown of a file, as Magika's standard model v3.3 was trained.

/// Bytes from either end.
const END: usize = 1024;
/// Bytes at either end in which whitespace is skipped.
const BLOCK: usize = 4096;
/// Stands where a file has no more bytes.
const PADDING: i32 = 256;
/// With fewer bytes than this the graph is not asked.
const FEWEST: usize = 8;
/// Numbers in one row of the graph's input.
pub const FEATURES: usize = 2 * END;

/// What a look at a file's ends gives.
pub enum Seen {
    /// A label by the rules.
    Label(&'static str),
    /// A row for the graph.
    Features(Box<[i32; FEATURES]>),
}

/// Looks at a file.
pub fn look_at(file: &[u8]) -> Seen {
    if file.is_empty() {
        return Seen::Label("empty");
    }
    let first = &file[..file.len().min(BLOCK)];
    let last = &file[file.len() - first.len()..];
    let start = trim_start(first);
    if file.len() < FEWEST || start.len() < FEWEST {
        return Seen::Label(if std::str::from_utf8(first).is_ok() { "txt" } else { "unknown" });
    }
    let start = &start[..start.len().min(END)];
    let end = trim_end(last);
    let end = &end[end.len() - end.len().min(END)..];
    let mut features = Box::new([PADDING; FEATURES]);
    for (feature, &byte) in features.iter_mut().zip(start) {
        *feature = i32::from(byte);
    }
    for (feature, &byte) in features[FEATURES - end.len()..].iter_mut().zip(end) {
        *feature = i32::from(byte);
    }
    Seen::Features(features)
}

/// What Python's `bytes.strip` takes for whitespace.
fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c)
}

fn trim_start(bytes: &[u8]) -> &[u8] {
    &bytes[bytes.iter().take_while(|&&byte| is_space(byte)).count()..]
}

fn trim_end(bytes: &[u8]) -> &[u8] {
    &bytes[..bytes.len() - bytes.iter().rev().take_while(|&&byte| is_space(byte)).count()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn features(file: &[u8]) -> Box<[i32; FEATURES]> {
        match look_at(file) {
            Seen::Features(features) => features,
            Seen::Label(label) => panic!("{label}"),
        }
    }

    fn label(file: &[u8]) -> &'static str {
        match look_at(file) {
            Seen::Features(_) => "the graph's",
            Seen::Label(label) => label,
        }
    }

    #[test]
    fn rules_judge_what_is_small() {
        assert_eq!(label(b""), "empty");
        assert_eq!(label(b"seven b"), "txt");
        assert_eq!(label(b"\xff\xfe"), "unknown");
        assert_eq!(label(&[b' '; 5000]), "txt");
        assert_eq!(label(b"\n\n\n\n\n\n\n\nshort"), "txt");
        assert_eq!(label(b"eight by"), "the graph's");
    }

    #[test]
    fn both_ends_are_shown_without_the_space_around() {
        let row = features(b"  a whole file \n");
        assert_eq!(row[..12], b"a whole file".map(i32::from));
        assert_eq!(row[12], b' '.into());
        assert_eq!(row[14], PADDING);
        assert_eq!(row[FEATURES - 14..], b"  a whole file".map(i32::from));
        assert_eq!(row[FEATURES - 15], PADDING);
    }

    #[test]
    fn a_long_file_shows_its_first_and_last_kilobyte() {
        let file: Vec<u8> = (0..10_000u32).map(|i| (i % 251) as u8 | 0x80).collect();
        let row = features(&file);
        assert_eq!(row[END - 1], i32::from(file[END - 1]));
        assert_eq!(row[END], i32::from(file[10_000 - END]));
    }
}
