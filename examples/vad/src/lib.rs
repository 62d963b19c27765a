//! Is this speech? Sound at 16 kHz in, the probability of speech for each window of 32 ms out.
//!
//! The net has a memory. The caller carries it: what one answer returns as `state` and `context` goes into the next request,
//! and zeros go into the first. So any site can answer any part of a stream.
use windrose_guest::prelude::*;

/// Samples in one window.
const WINDOW: usize = 512;
/// Samples of the window before, which the graph sees in front of each.
const CONTEXT: usize = 64;
/// Samples a second.
const RATE: i64 = 16_000;

struct Vad;

impl Model for Vad {
    fn describe() -> Signature {
        Signature::new()
            .input("audio", DataType::Fp32, &[ANY, ANY])
            .input("context", DataType::Fp32, &[ANY, CONTEXT as i64])
            .input("state", DataType::Fp32, &[2, ANY, 128])
            .output("speech", DataType::Fp32, &[ANY, ANY])
            .output("context", DataType::Fp32, &[ANY, CONTEXT as i64])
            .output("state", DataType::Fp32, &[2, ANY, 128])
    }

    fn infer(mut request: Request) -> Result<Response> {
        let (audio, context) = (request.tensor("audio")?, request.tensor("context")?);
        let mut state = request.tensor("state")?;
        let (streams, windows) = shape(&audio, &context, &state)?;
        let samples = with_context(&context.read::<f32>()?, &audio.read::<f32>()?, streams);
        let graph = Graph::by_name("model")?;
        let rate = || Tensor::new(&[], &[RATE]);
        let mut speech = vec![0.0f32; streams * windows];
        for window in 0..windows {
            let input = window_of(&samples, streams, window);
            let input = Tensor::new(&[streams, CONTEXT + WINDOW], &input)?;
            let mut answer = graph.compute([("input", input), ("state", state), ("sr", rate()?)])?;
            for (stream, &probability) in answer.tensor("output")?.read::<f32>()?.iter().enumerate() {
                speech[stream * windows + window] = probability;
            }
            state = answer.tensor("stateN")?;
        }
        let length = samples.len() / streams;
        let rest: Vec<f32> = samples.chunks_exact(length).flat_map(|row| &row[length - CONTEXT..]).copied().collect();
        Ok(Response::new()
            .with("speech", Tensor::new(&[streams, windows], &speech)?)
            .with("context", Tensor::new(&[streams, CONTEXT], &rest)?)
            .with("state", state))
    }
}

/// How many streams and windows there are.
fn shape(audio: &Tensor, context: &Tensor, state: &Tensor) -> Result<(usize, usize)> {
    let [streams, samples] = audio.shape()[..] else {
        return Err(Error::invalid_input("audio: needs two dimensions, streams and samples"));
    };
    if streams == 0 || samples == 0 || samples % WINDOW != 0 {
        return Err(Error::invalid_input(format!(
            "audio: {streams} streams of {samples} samples; needs one or more, in whole windows of {WINDOW} samples"
        )));
    }
    if context.shape() != [streams, CONTEXT] || state.shape() != [2, streams, 128] {
        return Err(Error::invalid_input(format!(
            "context and state: {streams} streams need the shapes [{streams}, {CONTEXT}] and [2, {streams}, 128]"
        )));
    }
    Ok((streams, samples / WINDOW))
}

/// The samples of each stream behind its context.
fn with_context(context: &[f32], audio: &[f32], streams: usize) -> Vec<f32> {
    let rows = context.chunks_exact(CONTEXT).zip(audio.chunks_exact(audio.len() / streams));
    rows.flat_map(|(context, audio)| [context, audio].concat()).collect()
}

/// One window of every stream, each behind its context.
fn window_of(samples: &[f32], streams: usize, window: usize) -> Vec<f32> {
    let rows = samples.chunks_exact(samples.len() / streams);
    rows.flat_map(|row| &row[window * WINDOW..][..CONTEXT + WINDOW]).copied().collect()
}

windrose_guest::export!(Vad);

#[cfg(test)]
mod tests {
    use super::*;
    use windrose_guest::testing;

    /// A graph whose probability is the first sample of its context, and whose state counts its runs.
    fn counting(mut inputs: Outputs) -> Result<Outputs> {
        let input = inputs.tensor("input")?;
        let state: Vec<f32> = inputs.tensor("state")?.read::<f32>()?.iter().map(|value| value + 1.0).collect();
        let (streams, values) = (input.shape()[0], input.to_vec::<f32>()?);
        let first: Vec<f32> = values.chunks_exact(CONTEXT + WINDOW).map(|row| row[0]).collect();
        let output = Tensor::new(&[streams, 1], &first)?;
        Ok(Outputs::from([("output", output), ("stateN", Tensor::new(&[2, streams, 128], &state)?)]))
    }

    #[test]
    fn windows_follow_one_another_in_each_stream() {
        testing::graph("model", counting);
        let audio: Vec<f32> = (0..2 * 1024).map(|i| i as f32).collect();
        let request = Request::new()
            .with("audio", Tensor::new(&[2, 1024], &audio).unwrap())
            .with("context", Tensor::new(&[2, CONTEXT], &[-1.0f32; 2 * CONTEXT]).unwrap())
            .with("state", Tensor::new(&[2, 2, 128], &[0.0f32; 512]).unwrap());
        let mut answer = Vad::infer(request).unwrap();
        let speech = answer.tensor("speech").unwrap();
        assert_eq!(speech.shape(), [2, 2]);
        assert_eq!(speech.to_vec::<f32>().unwrap(), [-1.0, 448.0, -1.0, 1024.0 + 448.0]);
        let context = answer.tensor("context").unwrap().to_vec::<f32>().unwrap();
        assert_eq!((context[0], context[CONTEXT]), (960.0, 1984.0));
        assert_eq!(answer.tensor("state").unwrap().to_vec::<f32>().unwrap(), [2.0; 512]);
    }

    #[test]
    fn half_a_window_is_refused() {
        let request = Request::new()
            .with("audio", Tensor::new(&[1, 100], &[0.0f32; 100]).unwrap())
            .with("context", Tensor::new(&[1, CONTEXT], &[0.0f32; CONTEXT]).unwrap())
            .with("state", Tensor::new(&[2, 1, 128], &[0.0f32; 256]).unwrap());
        assert!(Vad::infer(request).unwrap_err().is_invalid_input());
    }
}
