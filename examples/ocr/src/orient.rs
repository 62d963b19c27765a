//! Which lines stand on their head.

use windrose_guest::{Error, Graph, Result, Tensor};

use crate::picture::Picture;
use crate::planes;

/// What the classifier takes: shorter lines are padded, longer ones squeezed.
const WIDTH: usize = 192;
const HEIGHT: usize = 48;
/// The classifier must be surer than this for a line to be turned.
const SURE: f32 = 0.9;
/// Lines in one call of the graph.
const ROWS: usize = 16;

/// Turns the lines over that stand on their head.
pub fn turn(crops: &mut [Picture]) -> Result<()> {
    if crops.is_empty() {
        return Ok(());
    }
    let graph = Graph::by_name("orient")?;
    let scale = planes::reader_scale();
    for crops in crops.chunks_mut(ROWS) {
        let mut values = vec![0.0f32; crops.len() * 3 * HEIGHT * WIDTH];
        for (crop, planes) in crops.iter().zip(values.chunks_exact_mut(3 * HEIGHT * WIDTH)) {
            let ratio = crop.width as f64 / crop.height as f64;
            let width = ((HEIGHT as f64 * ratio).ceil() as usize).min(WIDTH);
            planes::fill(crop, (width, HEIGHT), WIDTH, &scale, planes);
        }
        let input = Tensor::new(&[crops.len(), 3, HEIGHT, WIDTH], &values)?;
        let scores = graph.compute([("x", input)])?.only()?.to_vec::<f32>()?;
        if scores.len() != crops.len() * 2 {
            return Err(Error::internal("the orientation classifier has not two classes"));
        }
        for (crop, scores) in crops.iter_mut().zip(scores.chunks_exact(2)) {
            if scores[1] > scores[0] && scores[1] > SURE {
                *crop = crop.turned_over();
            }
        }
    }
    Ok(())
}
