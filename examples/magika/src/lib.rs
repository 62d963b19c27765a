//! What kind of file is this? Its bytes in, a label with a score, a MIME type and a description out.
//!
//! The same answers as the Python package `magika` gives in its default mode: a small or empty file is judged by rules, any
//! other by the graph, which sees the first and the last kilobyte.
mod features;
mod labels;

use windrose_guest::{numeric, prelude::*};

use crate::features::{FEATURES, Seen};
use crate::labels::Label;

struct Magika;

impl Model for Magika {
    fn describe() -> Signature {
        Signature::new()
            .input("file", DataType::Bytes, &[ANY])
            .output("label", DataType::Bytes, &[ANY])
            .output("score", DataType::Fp32, &[ANY])
            .output("mime_type", DataType::Bytes, &[ANY])
            .output("description", DataType::Bytes, &[ANY])
    }

    fn infer(mut request: Request) -> Result<Response> {
        let files = request.strings("file")?;
        let seen: Vec<Seen> = files.elements().iter().map(|file| features::look_at(file)).collect();
        let mut scores = compute(&seen)?.into_iter();
        let mut answers = Vec::with_capacity(seen.len());
        for seen in &seen {
            answers.push(match seen {
                Seen::Label(name) => (Label::named(name)?, 1.0),
                Seen::Features(_) => scores.next().ok_or_else(|| Error::internal("the graph answered too few rows"))?,
            });
        }
        let column = |text: fn(&Label) -> &'static str| Strings::row(answers.iter().map(|(label, _)| text(label)));
        let scores: Vec<f32> = answers.iter().map(|(_, score)| *score).collect();
        Ok(Response::new()
            .with("label", column(|label| label.name))
            .with("score", Tensor::new(&[scores.len()], &scores)?)
            .with("mime_type", column(|label| label.mime_type))
            .with("description", column(|label| label.description)))
    }
}

/// The labels and scores of the files that the graph must see, in their order, from one run.
fn compute(seen: &[Seen]) -> Result<Vec<(Label, f32)>> {
    let mut rows: Vec<i32> = Vec::new();
    for seen in seen {
        if let Seen::Features(features) = seen {
            rows.extend_from_slice(features.as_slice());
        }
    }
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    let bytes = Tensor::new(&[rows.len() / FEATURES, FEATURES], &rows)?;
    let scores = Graph::by_name("model")?.compute([("bytes", bytes)])?.tensor("target_label")?;
    let width = scores.shape().last().copied().unwrap_or(0).max(1);
    scores
        .read::<f32>()?
        .chunks_exact(width)
        .map(|row| {
            let best = numeric::argmax(row).ok_or_else(|| Error::internal("the graph's scores are not numbers"))?;
            Ok((Label::of_class(best)?.believed(row[best])?, row[best]))
        })
        .collect()
}

windrose_guest::export!(Magika);
