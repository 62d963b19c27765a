//! Texts to token ids, as the uncased BERT tokenizer of the model's `tokenizer.json` does it.

use unicode_categories::UnicodeCategories;
use unicode_normalization::UnicodeNormalization;

use crate::vocabulary::{CLS, SEP, SPECIAL, UNKNOWN, vocabulary};

/// The most tokens of one text, its start and end included: what the model was trained with.
pub const MOST_TOKENS: usize = 256;
/// A longer word is unknown.
const LONGEST_WORD: usize = 100;

/// The ids of a text, between its start and its end; what is beyond [`MOST_TOKENS`] is cut off.
pub fn tokenize(text: &str) -> Vec<i64> {
    let mut ids = vec![CLS];
    let mut rest = text;
    while !rest.is_empty() && ids.len() < MOST_TOKENS {
        let special = SPECIAL.iter().filter_map(|&(name, id)| rest.find(name).map(|at| (at, name.len(), id))).min();
        let (end, length, id) = special.map_or((rest.len(), 0, None), |(at, length, id)| (at, length, Some(id)));
        words(&rest[..end], &mut ids);
        ids.extend(id);
        rest = &rest[end + length..];
    }
    ids.truncate(MOST_TOKENS - 1);
    ids.push(SEP);
    ids
}

/// Appends the tokens of a text without special tokens.
fn words(text: &str, ids: &mut Vec<i64>) {
    let mut word = String::new();
    for character in normalized(text) {
        if ids.len() >= MOST_TOKENS {
            return;
        }
        if character.is_whitespace() {
            flush(&mut word, ids);
        } else if is_punctuation(character) {
            flush(&mut word, ids);
            word.push(character);
            flush(&mut word, ids);
        } else {
            word.push(character);
        }
    }
    flush(&mut word, ids);
}

/// Appends the tokens of a word, and empties it.
fn flush(word: &mut String, ids: &mut Vec<i64>) {
    if word.chars().count() > LONGEST_WORD {
        ids.push(UNKNOWN);
    } else {
        vocabulary().split(word, ids);
    }
    word.clear();
}

/// Without control characters and accents, in lower case, with space around each Chinese character.
fn normalized(text: &str) -> impl Iterator<Item = char> {
    text.chars()
        .filter(|&character| character != '\0' && character != '\u{fffd}' && !is_control(character))
        .flat_map(|character| {
            let spaced = is_chinese(character);
            [spaced.then_some(' '), Some(character), spaced.then_some(' ')].into_iter().flatten()
        })
        .nfd()
        .filter(|character| !character.is_mark_nonspacing())
        .flat_map(char::to_lowercase)
}

fn is_control(character: char) -> bool {
    !matches!(character, '\t' | '\n' | '\r') && character.is_other()
}

fn is_punctuation(character: char) -> bool {
    character.is_ascii_punctuation() || character.is_punctuation()
}

/// The ideographs, by the blocks that BERT's own tokenizer lists.
fn is_chinese(character: char) -> bool {
    matches!(u32::from(character),
        0x4e00..=0x9fff
        | 0x3400..=0x4dbf
        | 0x20000..=0x2a6df
        | 0x2a700..=0x2b73f
        | 0x2b740..=0x2b81f
        | 0x2b920..=0x2ceaf
        | 0xf900..=0xfaff
        | 0x2f800..=0x2fa1f)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_become_what_the_reference_makes_of_them() {
        let golden = include_str!("../golden-tokens.tsv");
        assert!(golden.lines().count() >= 30);
        for line in golden.lines() {
            let (text, ids) = line.split_once('\t').expect("a text and its ids");
            let text = text.replace("\\n", "\n").replace("\\t", "\t");
            let ids: Vec<i64> = ids.split(' ').map(|id| id.parse().expect("a number")).collect();
            assert_eq!(tokenize(&text), ids, "{text:?}");
        }
    }

    #[test]
    fn a_long_text_is_cut_off() {
        let ids = tokenize(&"word ".repeat(1000));
        assert_eq!((ids.len(), ids[0], ids[MOST_TOKENS - 1]), (MOST_TOKENS, CLS, SEP));
    }
}
