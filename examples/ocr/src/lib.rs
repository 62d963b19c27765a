//! The text in a picture: lines of text, how sure the recogniser is of each, and where they are.
//!
//! The pipeline is that of the Python package `rapidocr` with its defaults, step by step, so that both read the same:
//! [`picture`] decodes, [`detect`] finds the lines, [`crop`] cuts them out and sets them upright, [`orient`] turns those
//! that stand on their head, [`recognise`] reads them. Geometry is in [`contour`], [`quad`] and [`unclip`].

mod contour;
mod crop;
mod detect;
mod orient;
mod picture;
mod planes;
mod quad;
mod recognise;
mod resize;
mod unclip;

use picture::Picture;
use windrose_guest::prelude::*;

/// Lines that the recogniser is less sure of are left out.
const LEAST_SCORE: f64 = 0.5;

/// The exported model.
pub struct Ocr;

/// One line of text.
#[derive(Clone, Debug, PartialEq)]
struct Line {
    text: String,
    /// The mean probability of its characters.
    score: f64,
    /// Corners in pixels of the upright picture: top left, top right, bottom right, bottom left, as the text runs.
    corners: quad::Quad,
}

impl Model for Ocr {
    fn describe() -> Signature {
        Signature::new()
            .input("image", DataType::Bytes, &[ANY])
            .output("text", DataType::Bytes, &[ANY])
            .output("score", DataType::Fp32, &[ANY])
            .output("boxes", DataType::Fp32, &[ANY, 4, 2])
            .output("lines", DataType::Int32, &[ANY])
    }

    fn infer(mut request: Request) -> Result<Response> {
        let images = request.strings("image")?;
        let dictionary = recognise::Dictionary::load()?;
        let mut found = Vec::new();
        let mut counts = Vec::new();
        for (index, file) in images.elements().iter().enumerate() {
            let lines = Picture::decode(file)
                .map_err(Error::invalid_input)
                .and_then(|picture| read(picture, &dictionary))
                .map_err(|error| at(index, error))?;
            counts.push(i32::try_from(lines.len()).unwrap_or(i32::MAX));
            found.extend(lines);
        }
        answer(&request, &found, &counts)
    }
}

/// Says which picture a caller got wrong.
fn at(index: usize, error: Error) -> Error {
    if error.is_invalid_input() { Error::invalid_input(format!("image[{index}]: {}", error.message())) } else { error }
}

/// The lines of all pictures as outputs, those that were asked for.
fn answer(request: &Request, lines: &[Line], counts: &[i32]) -> Result<Response> {
    let mut response = Response::new();
    if request.wants("text") {
        response = response.with("text", Strings::row(lines.iter().map(|line| line.text.as_str())));
    }
    if request.wants("score") {
        let scores: Vec<f32> = lines.iter().map(|line| line.score as f32).collect();
        response = response.with("score", Tensor::new(&[scores.len()], &scores)?);
    }
    if request.wants("boxes") {
        let values: Vec<f32> = lines.iter().flat_map(|line| line.corners.iter().flatten().copied()).collect();
        response = response.with("boxes", Tensor::new(&[lines.len(), 4, 2], &values)?);
    }
    if request.wants("lines") {
        response = response.with("lines", Tensor::new(&[counts.len()], counts)?);
    }
    Ok(response)
}

/// The lines of one picture, from top to bottom.
fn read(picture: Picture, dictionary: &recognise::Dictionary) -> Result<Vec<Line>> {
    let (width, height) = (picture.width as f32, picture.height as f32);
    let (picture, frame) = detect::frame(picture);
    let quads = detect::lines(&picture)?;
    let mut crops: Vec<Picture> = quads.iter().map(|quad| crop::upright(&picture, quad)).collect();
    drop(picture);
    orient::turn(&mut crops)?;
    let texts = recognise::read(&crops, dictionary)?;
    let lines = texts.into_iter().zip(quads).map(|((text, score), quad)| Line {
        text,
        score,
        corners: quad.map(|point| frame.original(point, width, height)),
    });
    Ok(lines.filter(|line| line.score >= LEAST_SCORE && !line.text.trim().is_empty()).collect())
}

windrose_guest::export!(Ocr);

#[cfg(test)]
mod tests {
    use super::*;
    use windrose_guest::testing;

    /// Graphs that find one line, say that it stands on its head, and read `hi` where its bright end came to the right.
    fn graphs(upside_down: f32) {
        testing::graph("detect", |mut inputs| {
            let shape = inputs.tensor("x")?.shape();
            assert_eq!(shape, [1, 3, 736, 800]);
            let mut map = vec![0.0f32; 736 * 800];
            for y in 100..139 {
                map[y * 800 + 200..y * 800 + 399].fill(0.9);
            }
            Ok(Outputs::from([("map", Tensor::new(&[1, 1, 736, 800], &map)?)]))
        });
        testing::graph("orient", move |mut inputs| {
            assert_eq!(inputs.tensor("x")?.shape(), [1, 3, 48, 192]);
            Ok(Outputs::from([("classes", Tensor::new(&[1, 2], &[1.0 - upside_down, upside_down])?)]))
        });
        testing::graph("recognise", |mut inputs| {
            let input = inputs.tensor("x")?;
            assert_eq!(input.shape(), [1, 3, 48, 320]);
            let row = &input.to_vec::<f32>()?[..320];
            // Classes: blank, h, i, space.
            let scores: [f32; 12] = if row[0] < row[100] {
                [0.0, 0.9, 0.1, 0.0, 0.9, 0.1, 0.0, 0.0, 0.2, 0.0, 0.8, 0.0]
            } else {
                [0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
            };
            Ok(Outputs::from([("scores", Tensor::new(&[1, 3, 4], &scores)?)]))
        });
    }

    /// Black, with a bright patch where the line's left end is.
    fn picture() -> Picture {
        let mut picture = Picture::black(800, 736);
        for y in 0..736 {
            picture.pixels[y * 2400..][150 * 3..250 * 3].fill(255);
        }
        picture
    }

    #[test]
    fn a_line_on_its_head_is_turned_and_read() {
        graphs(0.95);
        let dictionary = recognise::Dictionary::new("h\ni".to_owned());
        let lines = read(picture(), &dictionary).unwrap();
        // 199 by 39 pixels, grown by 1.6 * 7761 / 476 = 26.
        let corners = [[174.0, 74.0], [425.0, 74.0], [425.0, 165.0], [174.0, 165.0]];
        assert_eq!(lines, [Line { text: "hi".to_owned(), score: 0.85, corners }]);
    }

    #[test]
    fn an_unsure_classifier_turns_nothing_and_blank_text_is_left_out() {
        graphs(0.85);
        let dictionary = recognise::Dictionary::new("h\ni".to_owned());
        assert!(read(picture(), &dictionary).unwrap().is_empty());
    }

    #[test]
    fn a_long_narrow_picture_is_the_callers_fault() {
        let dictionary = recognise::Dictionary::new(String::new());
        let error = read(Picture::black(40, 1900), &dictionary).map_err(|error| at(3, error)).unwrap_err();
        assert!(error.is_invalid_input() && error.message().starts_with("image[3]: 40 x 1900"), "{error}");
    }

    #[test]
    fn only_what_was_asked_for_is_answered() {
        let line = Line { text: "a".to_owned(), score: 0.5, corners: [[1.0, 2.0]; 4] };
        let mut response = answer(&Request::new(), &[line.clone(), line], &[2, 0]).unwrap();
        assert_eq!(response.tensor("boxes").unwrap().shape(), [2, 4, 2]);
        assert_eq!(response.tensor("lines").unwrap().to_vec::<i32>().unwrap(), [2, 0]);
        assert_eq!(response.strings("text").unwrap().texts().unwrap(), ["a", "a"]);
        assert_eq!(response.tensor("score").unwrap().to_vec::<f32>().unwrap(), [0.5, 0.5]);
    }
}
