//! The SDK's helpers for pictures, one at a time and as often as asked, for benches.
use windrose_guest::pixels::{Normalize, Picture};
use windrose_guest::resize::{Filter, resize};
use windrose_guest::{Parameter, numeric, picture, prelude::*};

/// The helpers, by the names that the parameter `helper` takes.
pub const HELPERS: [&str; 6] = ["decode", "smooth", "bilinear", "lanczos", "normalize", "softmax"];
/// Width and height of what nets for pictures take.
const SIDE: usize = 224;

/// Runs a helper `times` times over a picture's file and returns a sum over what it made, so that none is left out.
///
/// # Errors
/// When the file is no picture, or there is no such helper.
pub fn work(file: &[u8], helper: &str, times: usize) -> Result<f64> {
    let decoded = picture::decode(file)?;
    let mut sum = 0.0;
    for _ in 0..times {
        sum += once(file, &decoded, helper)?;
    }
    Ok(sum)
}

fn once(file: &[u8], decoded: &Picture, helper: &str) -> Result<f64> {
    let resized = |filter| resize(decoded, SIDE, SIDE, filter);
    let made = match helper {
        "decode" => picture::decode(file)?,
        "smooth" => resized(Filter::Smooth)?,
        "bilinear" => resized(Filter::Bilinear)?,
        "lanczos" => resized(Filter::Lanczos)?,
        "normalize" => return Ok(sum_of_ends(&Normalize::imagenet().planes(decoded))),
        "softmax" => {
            let mut scores: Vec<f32> = decoded.pixels().iter().map(|&pixel| f32::from(pixel) / 255.0).collect();
            numeric::softmax(&mut scores);
            return Ok(sum_of_ends(&scores));
        }
        other => return Err(Error::invalid_input(format!("helper: {other:?} is not one of {HELPERS:?}"))),
    };
    let pixels = made.pixels();
    Ok(f64::from(pixels[0]) + f64::from(pixels[pixels.len() - 1]))
}

fn sum_of_ends(values: &[f32]) -> f64 {
    f64::from(values.first().copied().unwrap_or(0.0)) + f64::from(values.last().copied().unwrap_or(0.0))
}

struct Pictures;

impl Model for Pictures {
    fn describe() -> Signature {
        Signature::new().input("file", DataType::Bytes, &[1]).output("sum", DataType::Fp64, &[1])
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
        Ok(Response::new().with("sum", Tensor::new(&[1], &[work(file, &helper, times)?])?))
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
            let one = work(FILE, helper, 1).unwrap();
            assert!(one != 0.0, "{helper}");
            assert_eq!(work(FILE, helper, 3).unwrap(), 3.0 * one, "{helper}");
        }
    }

    #[test]
    fn what_is_asked_wrongly_is_the_callers_fault() {
        assert!(work(FILE, "sharpen", 1).unwrap_err().is_invalid_input());
        assert!(work(b"no picture", "smooth", 1).unwrap_err().is_invalid_input());
        let file = || Strings::row([FILE.to_vec()]);
        assert!(Pictures::infer(Request::new().with("file", file())).unwrap_err().is_invalid_input());
    }
}
