//! The tokens: a hash table that the build script laid out.

include!("hash.rs");

/// Token ids by place, u16.
static PLACES: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/slots.bin"));
/// Where each token starts in `TOKENS`, u32, and one more.
static OFFSETS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/offsets.bin"));
/// The tokens one behind the other.
static TOKENS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/tokens.bin"));

/// Starts a token.
pub const CLS: i64 = 101;
/// Ends a text.
pub const SEP: i64 = 102;
/// Stands for a word that is not in the vocabulary.
pub const UNKNOWN: i64 = 100;
/// What a caller may write for a token with a meaning of its own.
pub const SPECIAL: [(&str, i64); 5] =
    [("[PAD]", 0), ("[UNK]", UNKNOWN), ("[CLS]", CLS), ("[SEP]", SEP), ("[MASK]", 103)];

/// Appends the longest tokens that a word is made of; the whole word is unknown when a part of it is.
pub fn split(word: &str, ids: &mut Vec<i64>) {
    let before = ids.len();
    let mut rest = word;
    while !rest.is_empty() {
        let first = ids.len() == before;
        match longest(rest, if first { "" } else { "##" }) {
            Some((id, length)) => {
                ids.push(id);
                rest = &rest[length..];
            }
            None => {
                ids.truncate(before);
                ids.push(UNKNOWN);
                return;
            }
        }
    }
}

/// The longest token that `text` starts with, behind a prefix: its id, and how many bytes of the text it takes.
fn longest(text: &str, prefix: &str) -> Option<(i64, usize)> {
    let mut hash = prefix.bytes().fold(SEED, mix);
    let mut found = None;
    for (start, character) in text.char_indices() {
        let end = start + character.len_utf8();
        hash = text.as_bytes()[start..end].iter().copied().fold(hash, mix);
        if let Some(id) = find(hash, prefix.as_bytes(), &text.as_bytes()[..end]) {
            found = Some((id, end));
        }
    }
    found
}

/// The id of the token `prefix` + `text`, whose hash is given.
fn find(hash: u32, prefix: &[u8], text: &[u8]) -> Option<i64> {
    let mut place = slot(hash);
    loop {
        let id = u16::from_le_bytes([PLACES[2 * place], PLACES[2 * place + 1]]);
        if id == EMPTY {
            return None;
        }
        if token(id).strip_prefix(prefix) == Some(text) {
            return Some(i64::from(id));
        }
        place = (place + 1) % SLOTS;
    }
}

fn token(id: u16) -> &'static [u8] {
    let offset = |index: usize| {
        let bytes = &OFFSETS[4 * index..4 * index + 4];
        u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize
    };
    &TOKENS[offset(id.into())..offset(usize::from(id) + 1)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_is_found() {
        for (id, line) in include_str!("../vocab.txt").lines().enumerate() {
            let hash = line.bytes().fold(SEED, mix);
            assert_eq!(find(hash, b"", line.as_bytes()), Some(id as i64), "{line}");
        }
    }

    #[test]
    fn words_become_their_longest_parts() {
        let parts = |word| {
            let mut ids = Vec::new();
            split(word, &mut ids);
            ids
        };
        assert_eq!(parts("hello"), [7592]);
        assert_eq!(parts("embeddings"), [7861, 8270, 4667, 2015]);
        assert_eq!(parts("\u{10348}"), [UNKNOWN]);
    }
}
