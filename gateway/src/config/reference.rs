//! The reference page of the settings, made from the types.

use super::written::TABLES;

/// The text of `docs/configuration.md`.
pub fn markdown() -> String {
    let mut page = String::from(HEAD);
    for (about, keys) in TABLES {
        let Some(first) = keys.first() else { continue };
        page.push_str(&format!("\n## `[{}]`\n\n{}\n\n", first.table, about.trim()));
        page.push_str("| key | default | environment | meaning |\n| --- | --- | --- | --- |\n");
        for key in keys {
            let default = if key.default.is_empty() { String::new() } else { format!("`{}`", key.default) };
            let about = key.about.trim().replace('|', "\\|");
            page.push_str(&format!("| `{}` | {default} | `{}` | {about} |\n", key.name, key.variable()));
        }
    }
    page
}

const HEAD: &str = "\
# Configuration of `windrose serve`

Settings come from a TOML file (`windrose serve --config FILE`), from the environment and from flags
(`--set table.key=value`, with short forms for the common ones); flags win over the environment, and that over the
file. Sizes are numbers of bytes or text such as `\"64MiB\"`; durations are text such as `\"5s\"`. Lists are TOML lists,
or text with commas between. A variable that begins with `WINDROSE_` and is no setting stops the start. Everything is
checked before a port is bound, and an error names the key.

This page is made from the code (`windrose serve --print-reference`), and a test compares the two.
";
