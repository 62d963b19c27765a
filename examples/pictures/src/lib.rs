//! The SDK's helpers for pictures, one at a time and as often as asked, for benches.
use windrose_guest::pixels::{Normalize, Picture};
use windrose_guest::resize::{Filter, resize};
use windrose_guest::{Parameter, numeric, picture, prelude::*};

/// The helpers, by the names that the parameter `helper` takes.
pub const HELPERS: [&str; 7] = ["decode", "smooth", "bilinear", "area", "lanczos", "normalize", "softmax"];
/// Width and height of what nets for pictures take.
const SIDE: usize = 224;

/// What a helper makes.
pub enum Made {
    Picture(Picture),
    Numbers(Vec<f32>),
}

impl Made {
    /// Of the first and the last of it, so that nothing is left out.
    fn sum_of_ends(&self) -> f64 {
        fn ends<T: Copy + Into<f64>>(all: &[T]) -> f64 {
            [all.first(), all.last()].into_iter().flatten().map(|&end| end.into()).sum()
        }
        match self {
            Made::Picture(picture) => ends(picture.pixels()),
            Made::Numbers(numbers) => ends(numbers),
        }
    }
}

/// Runs a helper `times` times over a picture's file; returns a sum over all that it made, and the last of it.
///
/// # Errors
/// When the file is no picture, or there is no such helper.
pub fn work(file: &[u8], helper: &str, times: usize) -> Result<(f64, Option<Made>)> {
    let decoded = picture::decode(file)?;
    let (mut sum, mut last) = (0.0, None);
    for _ in 0..times {
        drop(last.take());
        let made = once(file, &decoded, helper)?;
        sum += made.sum_of_ends();
        last = Some(made);
    }
    Ok((sum, last))
}

fn once(file: &[u8], decoded: &Picture, helper: &str) -> Result<Made> {
    let resized = |filter| resize(decoded, SIDE, SIDE, filter).map(Made::Picture);
    match helper {
        "decode" => picture::decode(file).map(Made::Picture),
        "smooth" => resized(Filter::Smooth),
        "bilinear" => resized(Filter::Bilinear),
        "area" => resized(Filter::Area),
        "lanczos" => resized(Filter::Lanczos),
        "normalize" => Ok(Made::Numbers(Normalize::imagenet().planes(decoded))),
        "softmax" => {
            let mut scores: Vec<f32> = decoded.pixels().iter().map(|&pixel| f32::from(pixel) / 255.0).collect();
            numeric::softmax(&mut scores);
            Ok(Made::Numbers(scores))
        }
        other => Err(Error::invalid_input(format!("helper: {other:?} is not one of {HELPERS:?}"))),
    }
}

struct Pictures;

impl Model for Pictures {
    fn describe() -> Signature {
        Signature::new()
            .input("file", DataType::Bytes, &[1])
            .output("sum", DataType::Fp64, &[1])
            .output("pixels", DataType::Uint8, &[ANY, ANY, 3])
            .output("numbers", DataType::Fp32, &[ANY])
    }

    fn infer(mut request: Request) -> Result<Response> {
        let Some(Parameter::Text(helper)) = request.parameter("helper").cloned() else {
            return Err(Error::invalid_input("parameters.helper: is not a text"));
        };
        let times = match request.parameter("times") {
            None => 1,
            Some(Parameter::Integer(times @ 0..=10_000)) => *times as usize,
            Some(_) => return Err(Error::invalid_input("parameters.times: is not a number from 0 to 10,000")),
        };
        let files = request.strings("file")?.into_elements();
        let file = files.first().ok_or_else(|| Error::invalid_input("file: is empty"))?;
        let (sum, made) = work(file, &helper, times)?;
        let mut response = Response::new().with("sum", Tensor::new(&[1], &[sum])?);
        if request.wants("pixels") {
            let none = Picture::new(0, 0, Vec::new())?;
            let picture = if let Some(Made::Picture(picture)) = &made { picture } else { &none };
            let shape = [picture.height(), picture.width(), 3];
            response = response.with("pixels", Tensor::new(&shape, picture.pixels())?);
        }
        if request.wants("numbers") {
            let numbers = if let Some(Made::Numbers(numbers)) = &made { &numbers[..] } else { &[] };
            response = response.with("numbers", Tensor::new(&[numbers.len()], numbers)?);
        }
        Ok(response)
    }
}

windrose_guest::export!(Pictures);

#[cfg(test)]
mod tests {
    use super::*;

    /// A picture of colour ramps, larger than what it is resized to.
    const FILE: &[u8] = include_bytes!("../test.jpg");

    #[test]
    fn every_helper_works_as_often_as_asked() {
        for helper in HELPERS {
            let (one, made) = work(FILE, helper, 1).unwrap();
            assert!(one != 0.0 && made.is_some(), "{helper}");
            assert_eq!(work(FILE, helper, 3).unwrap().0, 3.0 * one, "{helper}");
        }
    }

    #[test]
    fn what_is_asked_wrongly_is_the_callers_fault() {
        assert!(work(FILE, "sharpen", 1).is_err_and(|error| error.is_invalid_input()));
        assert!(work(b"no picture", "smooth", 1).is_err_and(|error| error.is_invalid_input()));
        let file = || Strings::row([FILE.to_vec()]);
        assert!(Pictures::infer(Request::new().with("file", file())).unwrap_err().is_invalid_input());
    }
}
