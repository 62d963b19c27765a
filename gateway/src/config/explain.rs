//! Errors in TOML files, shown with the line that they are about and the key that was probably meant.

use serde::de::DeserializeOwned;

/// Reads a TOML file's text. Errors name the file, show line and column, and suggest the nearest known key.
///
/// # Errors
/// The message for the person who wrote the file.
pub fn read_toml<T: DeserializeOwned>(file: &str, text: &str) -> Result<T, String> {
    toml::from_str(text).map_err(|error| explain(file, text, &error))
}

fn explain(file: &str, text: &str, error: &toml::de::Error) -> String {
    let message = error.message();
    let mut shown = String::new();
    match error.span() {
        Some(span) => {
            let (line, column) = position(text, span.start);
            shown.push_str(&format!("{file}:{line}:{column}: {}\n", first_line(message)));
            shown.push_str(&excerpt(text, line, column, span.len()));
        }
        None => shown.push_str(&format!("{file}: {}\n", first_line(message))),
    }
    if let Some(nearest) = suggestion(message) {
        shown.push_str(&format!("did you mean `{nearest}`?\n"));
    }
    shown.trim_end().to_string()
}

fn first_line(message: &str) -> &str {
    message.lines().next().unwrap_or(message)
}

/// Line and column, from 1, of a byte offset.
fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
    (line, column)
}

fn excerpt(text: &str, line: usize, column: usize, length: usize) -> String {
    let content = text.lines().nth(line - 1).unwrap_or("");
    let number = line.to_string();
    let room = content.chars().count().saturating_sub(column - 1).max(1);
    let carets = "^".repeat(length.clamp(1, room));
    let pad = " ".repeat(number.len());
    format!("{pad} |\n{number} | {content}\n{pad} | {}{carets}\n", " ".repeat(column - 1))
}

/// From serde's ``unknown field `memry`, expected one of `memory`, `wall` ``: the expected name nearest to the unknown.
fn suggestion(message: &str) -> Option<&str> {
    let rest = message.split("unknown field `").nth(1).or_else(|| message.split("unknown variant `").nth(1))?;
    let (unknown, expected) = rest.split_once('`')?;
    let names = expected.split('`').skip(1).step_by(2);
    nearest(unknown, names)
}

/// The name nearest to `wrong`, when it is near enough to be what was meant.
pub fn nearest<'a>(wrong: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    names
        .map(|name| (strsim::damerau_levenshtein(wrong, name), name))
        .min()
        .filter(|(distance, name)| *distance <= name.len().max(wrong.len()) / 2)
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::written::Written;

    #[test]
    fn a_misspelt_key_is_shown_and_corrected() {
        let error = read_toml::<Written>("windrose.toml", "[ceiling]\nmemroy = \"1GiB\"\n").unwrap_err();
        assert!(error.starts_with("windrose.toml:2:1: unknown field `memroy`"), "{error}");
        assert!(error.contains("2 | memroy = \"1GiB\"\n  | ^^^^^^"), "{error}");
        assert!(error.ends_with("did you mean `memory`?"), "{error}");
    }

    #[test]
    fn a_wrong_value_is_shown() {
        let error = read_toml::<Written>("f.toml", "[ceiling]\nwall = \"soon\"\n").unwrap_err();
        assert!(error.starts_with("f.toml:2:8: `soon` is no duration"), "{error}");
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_explained_without_a_panic(text in "(?s).{0,200}") {
            let _ = read_toml::<Written>("f.toml", &text);
        }
    }
}
