//! Reading lines: the recogniser's scores per step, made into text (connectionist temporal classification).

use windrose_guest::{Error, Graph, Result, Tensor, numeric};

use crate::picture::Picture;
use crate::planes;

/// The height of a line for the recogniser.
const HEIGHT: usize = 48;
/// The least width of a batch.
const LEAST_WIDTH: usize = 320;
/// Lines whose widths are padded to the same.
const BATCH: usize = 6;
/// Numbers that the recogniser may answer in one call; batches that would need more are split.
const MOST_SCORES: usize = 8 << 20;
/// Pixels of width for one step of the recogniser.
const STEP: usize = 8;
/// The class that stands for no character.
const BLANK: usize = 0;
/// The file with one character per line, an asset of the model.
const FILE: &str = "/dictionary.txt";

/// The characters by class.
pub struct Dictionary {
    text: String,
    /// Where each line of `text` ends.
    ends: Vec<u32>,
}

impl Dictionary {
    /// Reads the model's asset.
    ///
    /// # Errors
    /// When it is not there.
    pub fn load() -> Result<Dictionary> {
        std::fs::read_to_string(FILE).map(Dictionary::new).map_err(Error::wrap(FILE))
    }

    /// The characters of a text, one per line.
    pub fn new(text: String) -> Dictionary {
        let newlines = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(place, _)| place as u32);
        let mut ends: Vec<u32> = newlines.collect();
        if !text.is_empty() && !text.ends_with('\n') {
            ends.push(text.len() as u32);
        }
        Dictionary { text, ends }
    }

    /// How many classes there are: the characters, the blank before them and the space after them.
    fn classes(&self) -> usize {
        self.ends.len() + 2
    }

    /// The text of a class.
    fn character(&self, class: usize) -> &str {
        match class.checked_sub(1) {
            None => "",
            Some(line) if line >= self.ends.len() => " ",
            Some(line) => {
                let start = if line == 0 { 0 } else { self.ends[line - 1] as usize + 1 };
                &self.text[start..self.ends[line] as usize]
            }
        }
    }
}

/// Reads lines: the text of each, and the mean probability of its characters.
///
/// A line's padding changes what is read a little. So lines are padded as the reference does it: in batches of six by
/// ascending ratio of width to height.
pub fn read(crops: &[Picture], dictionary: &Dictionary) -> Result<Vec<(String, f64)>> {
    let mut texts = vec![(String::new(), 0.0); crops.len()];
    if crops.is_empty() {
        return Ok(texts);
    }
    let graph = Graph::by_name("recognise")?;
    let ratio = |index: usize| crops[index].width as f64 / crops[index].height as f64;
    let mut order: Vec<usize> = (0..crops.len()).collect();
    order.sort_by(|&a, &b| ratio(a).total_cmp(&ratio(b)));
    for batch in order.chunks(BATCH) {
        let widest = batch.last().map_or(0.0, |&index| ratio(index));
        let width = (HEIGHT as f64 * widest.max(LEAST_WIDTH as f64 / HEIGHT as f64)) as usize;
        let rows = MOST_SCORES / (width.div_ceil(STEP) * dictionary.classes());
        for part in batch.chunks(rows.max(1)) {
            let lines: Vec<&Picture> = part.iter().map(|&index| &crops[index]).collect();
            for (&index, text) in part.iter().zip(read_batch(&graph, &lines, width, dictionary)?) {
                texts[index] = text;
            }
        }
    }
    Ok(texts)
}

fn read_batch(graph: &Graph, lines: &[&Picture], width: usize, dictionary: &Dictionary) -> Result<Vec<(String, f64)>> {
    let scale = planes::reader_scale();
    let mut values = vec![0.0f32; lines.len() * 3 * HEIGHT * width];
    for (line, planes) in lines.iter().zip(values.chunks_exact_mut(3 * HEIGHT * width)) {
        let ratio = line.width as f64 / line.height as f64;
        let own = ((HEIGHT as f64 * ratio).ceil() as usize).clamp(1, width);
        planes::fill(line, (own, HEIGHT), width, &scale, planes);
    }
    let input = Tensor::new(&[lines.len(), 3, HEIGHT, width], &values)?;
    drop(values);
    let scores = graph.compute([("x", input)])?.only()?;
    let shape = scores.shape();
    if shape.len() != 3 || shape[0] != lines.len() || shape[2] != dictionary.classes() {
        let classes = dictionary.classes();
        return Err(Error::internal(format!("{shape:?} scores for {} lines and {classes} classes", lines.len())));
    }
    let scores = scores.read::<f32>()?;
    Ok(scores.chunks_exact((shape[1] * shape[2]).max(1)).map(|scores| decode(scores, dictionary)).collect())
}

/// The text of one line from its scores, `classes` a step: the best class of each step, where a class that stays counts
/// once and the blank separates.
fn decode(scores: &[f32], dictionary: &Dictionary) -> (String, f64) {
    let mut text = String::new();
    let (mut sum, mut count, mut before) = (0.0, 0u32, BLANK);
    for step in scores.chunks_exact(dictionary.classes()) {
        let best = numeric::argmax(step).unwrap_or(BLANK);
        if best != before && best != BLANK {
            text.push_str(dictionary.character(best));
            sum += rounded(f64::from(step[best]));
            count += 1;
        }
        before = best;
    }
    (text, if count == 0 { 0.0 } else { rounded(sum / f64::from(count)) })
}

/// To five decimals, as the reference does.
fn rounded(value: f64) -> f64 {
    (value * 1e5).round_ties_even() / 1e5
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scores in which each step's best class is the given one.
    fn steps(classes: usize, best: &[(usize, f32)]) -> Vec<f32> {
        let mut scores = vec![0.01; classes * best.len()];
        for (step, &(class, score)) in best.iter().enumerate() {
            scores[step * classes + class] = score;
        }
        scores
    }

    #[test]
    fn classes_are_blank_lines_and_space() {
        for text in ["a\nß\n字", "a\nß\n字\n"] {
            let dictionary = Dictionary::new(text.to_owned());
            assert_eq!(dictionary.classes(), 5);
            let all: Vec<&str> = (0..5).map(|class| dictionary.character(class)).collect();
            assert_eq!(all, ["", "a", "ß", "字", " "]);
        }
        assert_eq!(Dictionary::new(String::new()).classes(), 2);
    }

    #[test]
    fn repeated_classes_count_once_and_blanks_separate() {
        let dictionary = Dictionary::new("l\no".to_owned());
        let best = [(0, 0.9), (1, 0.8), (1, 0.2), (0, 0.9), (1, 0.6), (2, 1.0), (3, 0.4), (2, 0.7), (0, 0.9)];
        let (text, score) = decode(&steps(4, &best), &dictionary);
        assert_eq!(text, "llo o");
        assert!((score - (0.8 + 0.6 + 1.0 + 0.4 + 0.7) / 5.0).abs() < 1e-5);
    }

    #[test]
    fn only_blanks_are_no_text() {
        let dictionary = Dictionary::new("l\no".to_owned());
        assert_eq!(decode(&steps(4, &[(0, 1.0), (0, 0.5)]), &dictionary), (String::new(), 0.0));
        assert_eq!(decode(&[], &dictionary), (String::new(), 0.0));
    }

    #[test]
    fn scores_are_rounded_to_five_decimals() {
        assert_eq!(rounded(0.123_456_7), 0.12346);
        assert_eq!(rounded(1.0), 1.0);
    }
}
