//! Sentence embeddings: texts in, a vector of length 1 for each out. Texts that mean the same are close.
mod tokenizer;
mod vocabulary;

use windrose_guest::{numeric, prelude::*};

/// Numbers in one embedding.
const WIDTH: usize = 384;

struct Embed;

impl Model for Embed {
    fn describe() -> Signature {
        Signature::new().input("text", DataType::Bytes, &[ANY]).output(
            "embedding",
            DataType::Fp32,
            &[ANY, WIDTH as i64],
        )
    }

    fn infer(mut request: Request) -> Result<Response> {
        let texts = request.strings("text")?;
        let texts: Vec<Vec<i64>> = texts.texts()?.into_iter().map(tokenizer::tokenize).collect();
        let embedding = if texts.is_empty() { Vec::new() } else { embed(&texts)? };
        Ok(Response::new().with("embedding", Tensor::new(&[texts.len(), WIDTH], &embedding)?))
    }
}

/// The embeddings of tokenized texts, in one run: shorter ones are padded, and the mask says where.
fn embed(texts: &[Vec<i64>]) -> Result<Vec<f32>> {
    let longest = texts.iter().map(Vec::len).max().unwrap_or(0);
    let (mut ids, mut mask) = (Vec::new(), Vec::new());
    for text in texts {
        ids.extend_from_slice(text);
        mask.resize(mask.len() + text.len(), 1i64);
        ids.resize(ids.len() + longest - text.len(), 0);
        mask.resize(ids.len(), 0);
    }
    let shape = [texts.len(), longest];
    let inputs = [("input_ids", Tensor::new(&shape, &ids)?), ("attention_mask", Tensor::new(&shape, &mask)?)];
    let hidden = Graph::by_name("model")?.compute(inputs)?.tensor("last_hidden_state")?;
    if hidden.shape() != [texts.len(), longest, WIDTH] {
        return Err(Error::internal(format!("the graph answered the shape {:?}", hidden.shape())));
    }
    let hidden = hidden.read::<f32>()?;
    let rows = hidden.chunks_exact(longest * WIDTH).zip(texts);
    Ok(rows.flat_map(|(row, text)| mean(&row[..text.len() * WIDTH])).collect())
}

/// The mean of the tokens' vectors, at length 1.
fn mean(tokens: &[f32]) -> [f32; WIDTH] {
    let mut sum = [0.0f32; WIDTH];
    for token in tokens.chunks_exact(WIDTH) {
        for (sum, value) in sum.iter_mut().zip(token) {
            *sum += value;
        }
    }
    numeric::l2_normalize(&mut sum);
    sum
}

/// What every sandbox starts with.
fn prepare() -> Result<()> {
    vocabulary::vocabulary();
    Ok(())
}

windrose_guest::export!(Embed, init = prepare);
