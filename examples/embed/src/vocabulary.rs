//! The tokens: a hash table that the initialiser builds once, so that every sandbox starts with it.

use std::sync::OnceLock;

/// Starts a token.
pub const CLS: i64 = 101;
/// Ends a text.
pub const SEP: i64 = 102;
/// Stands for a word that is not in the vocabulary.
pub const UNKNOWN: i64 = 100;
/// What a caller may write for a token with a meaning of its own.
pub const SPECIAL: [(&str, i64); 5] =
    [("[PAD]", 0), ("[UNK]", UNKNOWN), ("[CLS]", CLS), ("[SEP]", SEP), ("[MASK]", 103)];

/// Places in the table, more than twice the tokens.
const SLOTS: usize = 1 << 16;
/// A place without a token.
const EMPTY: u16 = u16::MAX;
/// Where a hash (FNV-1a) starts.
const SEED: u32 = 0x811c_9dc5;

/// Tokens by their hash, with open addressing.
pub struct Vocabulary {
    /// The tokens by id.
    tokens: Vec<&'static str>,
    /// Ids by place.
    places: Vec<u16>,
}

/// The one vocabulary, built when it is first asked for: by the initialiser.
pub fn vocabulary() -> &'static Vocabulary {
    static VOCABULARY: OnceLock<Vocabulary> = OnceLock::new();
    VOCABULARY.get_or_init(|| Vocabulary::new(include_str!("../vocab.txt")))
}

impl Vocabulary {
    /// One token a line; its number is its id.
    fn new(lines: &'static str) -> Vocabulary {
        let tokens: Vec<&str> = lines.lines().collect();
        let mut places = vec![EMPTY; SLOTS];
        for (id, token) in (0..EMPTY).zip(&tokens) {
            let mut place = slot(token.bytes().fold(SEED, mix));
            while places[place] != EMPTY {
                place = (place + 1) % SLOTS;
            }
            places[place] = id;
        }
        Vocabulary { tokens, places }
    }

    /// Appends the longest tokens that a word is made of; the whole word is unknown when a part of it is.
    pub fn split(&self, word: &str, ids: &mut Vec<i64>) {
        let before = ids.len();
        let mut rest = word;
        while !rest.is_empty() {
            let first = ids.len() == before;
            match self.longest(rest, if first { "" } else { "##" }) {
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
    fn longest(&self, text: &str, prefix: &str) -> Option<(i64, usize)> {
        let mut hash = prefix.bytes().fold(SEED, mix);
        let mut found = None;
        for (start, character) in text.char_indices() {
            let end = start + character.len_utf8();
            hash = text.as_bytes()[start..end].iter().copied().fold(hash, mix);
            if let Some(id) = self.find(hash, prefix, &text[..end]) {
                found = Some((id, end));
            }
        }
        found
    }

    /// The id of the token `prefix` + `text`, whose hash is given.
    fn find(&self, hash: u32, prefix: &str, text: &str) -> Option<i64> {
        let mut place = slot(hash);
        loop {
            let id = self.places[place];
            if id == EMPTY {
                return None;
            }
            if self.tokens[usize::from(id)].strip_prefix(prefix) == Some(text) {
                return Some(i64::from(id));
            }
            place = (place + 1) % SLOTS;
        }
    }
}

/// The hash of a string with one byte more.
fn mix(hash: u32, byte: u8) -> u32 {
    (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
}

/// Where a hash belongs.
fn slot(hash: u32) -> usize {
    ((hash >> 16) ^ hash) as usize % SLOTS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_is_found() {
        for (id, line) in include_str!("../vocab.txt").lines().enumerate() {
            let hash = line.bytes().fold(SEED, mix);
            assert_eq!(vocabulary().find(hash, "", line), Some(id as i64), "{line}");
        }
    }

    #[test]
    fn words_become_their_longest_parts() {
        let parts = |word| {
            let mut ids = Vec::new();
            vocabulary().split(word, &mut ids);
            ids
        };
        assert_eq!(parts("hello"), [7592]);
        assert_eq!(parts("embeddings"), [7861, 8270, 4667, 2015]);
        assert_eq!(parts("\u{10348}"), [UNKNOWN]);
    }
}
