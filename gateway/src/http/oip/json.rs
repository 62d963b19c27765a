//! A cursor over a JSON text that lies in memory: bounded depth, no tree, strings borrowed where they can be.

use std::borrow::Cow;

use super::number::{self, NumberFault};

/// How deep arrays and objects may nest.
const MAX_DEPTH: usize = 64;

/// Where and why a text is not JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Syntax {
    /// Offset in the text, bytes.
    pub at: usize,
    /// What is wrong there.
    pub what: &'static str,
}

impl std::fmt::Display for Syntax {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} at byte {}", self.what, self.at)
    }
}

/// A string as it stands in the text, without its quotes; valid UTF-8.
#[derive(Clone, Copy, Debug)]
pub(super) struct RawString<'a> {
    text: &'a str,
    escaped: bool,
    at: usize,
}

/// A place in a JSON text. Every method skips white space first.
#[derive(Clone, Debug)]
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    pos: usize,
}

// === impl Cursor ===

impl<'a> Cursor<'a> {
    /// The beginning of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Cursor<'a> {
        Cursor { bytes, pos: 0 }
    }

    /// The whole text.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The offset of the next byte.
    pub fn position(&self) -> usize {
        self.pos
    }

    /// Goes to an offset that an earlier call returned.
    pub fn seek(&mut self, pos: usize) {
        self.pos = pos;
    }

    /// The next byte that is not white space; 0 at the end of the text, where no JSON text has one.
    #[inline]
    pub fn peek(&mut self) -> u8 {
        loop {
            match self.bytes.get(self.pos) {
                Some(b' ' | b'\n' | b'\r' | b'\t') => self.pos += 1,
                Some(byte) => return *byte,
                None => return 0,
            }
        }
    }

    /// Steps over the byte that [`Cursor::peek`] showed.
    #[inline]
    pub fn bump(&mut self) {
        self.pos += 1;
    }

    /// An error at this place.
    #[cold]
    pub fn fault(&self, what: &'static str) -> Syntax {
        let what = if self.pos >= self.bytes.len() { "the text ends too early" } else { what };
        Syntax { at: self.pos.min(self.bytes.len()), what }
    }

    /// Steps over `byte`.
    pub fn expect(&mut self, byte: u8, what: &'static str) -> Result<(), Syntax> {
        if self.peek() != byte {
            return Err(self.fault(what));
        }
        self.pos += 1;
        Ok(())
    }

    /// Steps over `byte` if it comes next.
    pub fn accept(&mut self, byte: u8) -> bool {
        let found = self.peek() == byte;
        self.pos += usize::from(found);
        found
    }

    /// Checks that nothing but white space is left.
    pub fn end(&mut self) -> Result<(), Syntax> {
        self.peek();
        if self.pos < self.bytes.len() {
            return Err(Syntax { at: self.pos, what: "there is text after the JSON" });
        }
        Ok(())
    }

    /// Steps over `word` (`true`, `false`, `null`) if it comes next.
    pub fn word(&mut self, word: &str) -> bool {
        self.peek();
        let found = self.bytes[self.pos.min(self.bytes.len())..].starts_with(word.as_bytes());
        if found {
            self.pos += word.len();
        }
        found
    }

    /// A string, unescaped.
    pub fn string(&mut self) -> Result<Cow<'a, str>, Syntax> {
        let raw = self.raw_string()?;
        if !raw.escaped {
            return Ok(Cow::Borrowed(raw.text));
        }
        let mut out = Vec::with_capacity(raw.text.len());
        raw.append_to(&mut out)?;
        String::from_utf8(out).map(Cow::Owned).map_err(|_| Syntax { at: raw.at, what: "a string is not UTF-8" })
    }

    /// A string as it stands.
    pub fn raw_string(&mut self) -> Result<RawString<'a>, Syntax> {
        self.expect(b'"', "expected a string")?;
        let at = self.pos;
        let mut escaped = false;
        loop {
            match memchr::memchr2(b'"', b'\\', &self.bytes[self.pos.min(self.bytes.len())..]) {
                Some(offset) if self.bytes[self.pos + offset] == b'"' => {
                    self.pos += offset + 1;
                    break;
                }
                Some(offset) => {
                    escaped = true;
                    self.pos += offset + 2;
                }
                None => return Err(Syntax { at, what: "a string does not end" }),
            }
        }
        let raw = &self.bytes[at..self.pos - 1];
        if let Some(bad) = raw.iter().position(|b| *b < 0x20) {
            return Err(Syntax { at: at + bad, what: "a control character in a string" });
        }
        let text =
            std::str::from_utf8(raw).map_err(|e| Syntax { at: at + e.valid_up_to(), what: "a string is not UTF-8" })?;
        Ok(RawString { text, escaped, at })
    }

    /// Steps over one value of any kind and returns its text.
    pub fn skip(&mut self) -> Result<&'a [u8], Syntax> {
        self.peek();
        let start = self.pos;
        self.skip_nested(0)?;
        Ok(&self.bytes[start..self.pos])
    }

    fn skip_nested(&mut self, depth: usize) -> Result<(), Syntax> {
        match self.peek() {
            b'[' | b'{' if depth >= MAX_DEPTH => Err(self.fault("arrays and objects nest too deeply")),
            b'{' => self.skip_items(b'}', |cursor| {
                cursor.raw_string()?;
                cursor.expect(b':', "expected ':'")?;
                cursor.skip_nested(depth + 1)
            }),
            b'[' => self.skip_items(b']', |cursor| cursor.skip_nested(depth + 1)),
            b'"' => self.raw_string().map(|_| ()),
            b'-' | b'0'..=b'9' | b'N' | b'I' => {
                self.pos = number::end(self.bytes, self.pos).map_err(|fault| {
                    self.fault(match fault {
                        NumberFault::NotFinite => "a number that is not finite",
                        _ => "a malformed number",
                    })
                })?;
                Ok(())
            }
            _ if self.word("true") || self.word("false") || self.word("null") => Ok(()),
            _ => Err(self.fault("expected a value")),
        }
    }

    fn skip_items(
        &mut self,
        close: u8,
        mut item: impl FnMut(&mut Cursor<'a>) -> Result<(), Syntax>,
    ) -> Result<(), Syntax> {
        self.pos += 1;
        if self.accept(close) {
            return Ok(());
        }
        loop {
            item(self)?;
            if self.accept(close) {
                return Ok(());
            }
            self.expect(b',', "expected ',' or the end of the array or object")?;
        }
    }
}

// === impl RawString ===

impl RawString<'_> {
    /// Appends the string, unescaped. What is appended is UTF-8.
    pub fn append_to(&self, out: &mut Vec<u8>) -> Result<(), Syntax> {
        if !self.escaped {
            out.extend_from_slice(self.text.as_bytes());
            return Ok(());
        }
        let fault = |what| Syntax { at: self.at, what };
        let mut rest = self.text;
        while let Some(backslash) = rest.find('\\') {
            out.extend_from_slice(&rest.as_bytes()[..backslash]);
            rest = &rest[backslash + 1..];
            let plain = match rest.as_bytes().first() {
                Some(b @ (b'"' | b'\\' | b'/')) => *b,
                Some(b'b') => 8,
                Some(b'f') => 12,
                Some(b'n') => b'\n',
                Some(b'r') => b'\r',
                Some(b't') => b'\t',
                Some(b'u') => {
                    let (character, taken) = unicode_escape(&rest[1..]).ok_or_else(|| fault("a bad \\u escape"))?;
                    out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
                    rest = &rest[1 + taken..];
                    continue;
                }
                _ => return Err(fault("a bad escape in a string")),
            };
            out.push(plain);
            rest = &rest[1..];
        }
        out.extend_from_slice(rest.as_bytes());
        Ok(())
    }
}

/// The character of `XXXX` or of the surrogate pair `XXXX\uXXXX`, and how many bytes it took.
fn unicode_escape(text: &str) -> Option<(char, usize)> {
    let hex = |at: usize| {
        let digits = text.as_bytes().get(at..at + 4)?;
        if !digits.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
    };
    let first = hex(0)?;
    if !(0xD800..0xDC00).contains(&first) {
        return Some((char::from_u32(first)?, 4));
    }
    let second = hex(6).filter(|s| (0xDC00..0xE000).contains(s) && text[4..].starts_with("\\u"))?;
    Some((char::from_u32(0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00))?, 10))
}

/// Appends `text` as a JSON string.
pub(super) fn write_string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    let mut rest = text.as_bytes();
    while let Some(at) = rest.iter().position(|b| *b < 0x20 || *b == b'"' || *b == b'\\') {
        out.extend_from_slice(&rest[..at]);
        match rest[at] {
            b @ (b'"' | b'\\') => out.extend_from_slice(&[b'\\', b]),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            control => {
                const HEX: &[u8; 16] = b"0123456789abcdef";
                out.extend_from_slice(b"\\u00");
                out.push(HEX[usize::from(control >> 4)]);
                out.push(HEX[usize::from(control & 15)]);
            }
        }
        rest = &rest[at + 1..];
    }
    out.extend_from_slice(rest);
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_unescape() {
        let cases = [
            (r#""plain""#, "plain"),
            (r#""a\"b\\c\/d\n\t\r\b\f""#, "a\"b\\c/d\n\t\r\u{8}\u{c}"),
            (r#""\u00e9\ud83d\ude00!""#, "é😀!"),
            (r#""\u0000""#, "\0"),
        ];
        for (text, expected) in cases {
            assert_eq!(Cursor::new(text.as_bytes()).string().unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn bad_strings_are_refused() {
        for text in [
            r#""\ud83d""#,
            r#""\ude00\ud83d""#,
            r#""\ud83d\u0041""#,
            r#""\u+123""#,
            r#""\x""#,
            r#""open"#,
            r#""open\"#,
            "\"tab\t\"",
            r#""\u12"#,
            "\"\\ud83dxxde00\"",
        ] {
            assert!(Cursor::new(text.as_bytes()).string().is_err(), "{text}");
        }
        assert!(Cursor::new(b"\"\xff\"").string().is_err());
        // An escape in front of a character of several bytes must not cut it.
        assert!(Cursor::new("\"\\u12é4\"".as_bytes()).string().is_err());
    }

    #[test]
    fn written_strings_read_back() {
        let text = "a\"b\\c\u{1}\n\r\t é 😀 \u{7f}";
        let mut out = Vec::new();
        write_string(&mut out, text);
        assert_eq!(Cursor::new(&out).string().unwrap(), text);
        assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), text);
    }

    #[test]
    fn skipping_checks_the_grammar_and_the_depth() {
        for good in ["1", "-0.5e+3", "[]", "{}", "[1,[2,{\"a\":null}]]", "{\"a\":[true,false]}", "\"x\""] {
            assert_eq!(Cursor::new(good.as_bytes()).skip(), Ok(good.as_bytes()));
        }
        for bad in ["", "[", "[1,]", "{\"a\"}", "{a:1}", "01", "1.", "-", "tru", "[1 2]", "{\"a\":1,}", "]", "NaN"] {
            let mut cursor = Cursor::new(bad.as_bytes());
            assert!(cursor.skip().and_then(|_| cursor.end()).is_err(), "{bad}");
        }
        let deep = |n| "[".repeat(n) + &"]".repeat(n);
        assert!(Cursor::new(deep(MAX_DEPTH).as_bytes()).skip().is_ok());
        assert!(Cursor::new(deep(MAX_DEPTH + 1).as_bytes()).skip().is_err());
        assert!(Cursor::new("[".repeat(1 << 20).as_bytes()).skip().is_err());
    }
}
