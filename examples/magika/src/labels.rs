//! The kinds of files, from Magika's own tables. `make_labels.py` writes the table.

use windrose_guest::{Error, Result};

/// One label a line, those of the graph first, in its order.
const TABLE: &str = include_str!("labels.tsv");

/// A kind of file.
#[derive(Clone, Copy, Debug)]
pub struct Label {
    pub name: &'static str,
    pub mime_type: &'static str,
    pub description: &'static str,
    is_text: bool,
    /// The lowest score with which the graph is believed.
    threshold: f64,
    /// What is answered in its place.
    answered: &'static str,
}

impl Label {
    /// The label of the graph's class.
    pub fn of_class(class: usize) -> Result<Label> {
        TABLE.lines().nth(class).and_then(parse).ok_or_else(|| Error::internal(format!("no label for class {class}")))
    }

    /// The label of this name.
    pub fn named(name: &str) -> Result<Label> {
        TABLE
            .lines()
            .find(|line| line.split('\t').next() == Some(name))
            .and_then(parse)
            .ok_or_else(|| Error::internal(format!("no label named {name:?}")))
    }

    /// What is answered when the graph is this sure: where it is not sure enough, only whether the file is text.
    pub fn believed(self, score: f32) -> Result<Label> {
        let answered = if self.answered == self.name { self } else { Label::named(self.answered)? };
        if f64::from(score) >= self.threshold {
            return Ok(answered);
        }
        Label::named(if answered.is_text { "txt" } else { "unknown" })
    }
}

fn parse(line: &'static str) -> Option<Label> {
    let mut columns = line.split('\t');
    Some(Label {
        name: columns.next()?,
        is_text: columns.next()? == "1",
        threshold: columns.next()?.parse().ok()?,
        answered: columns.next()?,
        mime_type: columns.next()?,
        description: columns.next()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_a_label() {
        assert!(TABLE.lines().all(|line| parse(line).is_some_and(|label| Label::named(label.answered).is_ok())));
        assert_eq!(Label::of_class(0).unwrap().name, "3gp");
        assert!(Label::of_class(TABLE.lines().count()).is_err());
    }

    #[test]
    fn a_doubtful_answer_says_only_whether_it_is_text() {
        let python = Label::named("python").unwrap();
        assert_eq!(python.believed(0.6).unwrap().name, "python");
        assert_eq!(python.believed(0.4).unwrap().name, "txt");
        assert_eq!(Label::named("zip").unwrap().believed(0.4).unwrap().name, "unknown");
        assert_eq!(Label::named("markdown").unwrap().believed(0.7).unwrap().name, "txt");
        assert_eq!(Label::named("randombytes").unwrap().believed(0.9).unwrap().name, "unknown");
    }
}
