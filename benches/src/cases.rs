//! What is measured: a graph, and the bytes of one request for it.

use std::path::PathBuf;

/// One kind of request.
pub struct Case {
    /// What the table calls it.
    pub title: &'static str,
    /// The model's name on the gateway.
    pub model: &'static str,
    /// The example whose module it has; `None` for a graph deployed as it is.
    pub module: Option<&'static str>,
    /// The graph's file, from the root of the checkout.
    pub graph: PathBuf,
    /// Shape of its one input, FP32.
    pub shape: &'static [usize],
    /// Name of its one input.
    pub input: &'static str,
    /// How the tensor travels.
    pub encoding: Encoding,
    /// Connections at the same time.
    pub connections: &'static [usize],
}

/// How a tensor travels in a request.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// Numbers in JSON, with four decimals: 200 bytes for the tiny net, 1.1 MB for a picture.
    Json,
    /// The protocol's binary extension, both ways.
    Binary,
}

/// Every case, cheapest first.
pub fn all() -> Vec<Case> {
    let tiny = |title, model, module| Case {
        title,
        model,
        module,
        graph: "models/tiny/model.onnx".into(),
        shape: &[1, 16],
        input: "x",
        encoding: Encoding::Json,
        connections: &[1, 8, 64],
    };
    let mobilenet = |title, model, module, encoding| Case {
        title,
        model,
        module,
        graph: "target/models/mobilenet/model.onnx".into(),
        shape: &[1, 3, 224, 224],
        input: "input",
        encoding,
        connections: &[1, 8, 64],
    };
    let scores = Some("scores");
    vec![
        tiny("Tiny net, JSON, no module", "tiny", None),
        tiny("Tiny net, JSON, module that does work", "tiny-scores", scores),
        mobilenet("MobileNetV2, 600 KB binary, no module", "mobilenet", None, Encoding::Binary),
        mobilenet("MobileNetV2, binary, module that does work", "mobilenet-scores", scores, Encoding::Binary),
        mobilenet("MobileNetV2, 1.1 MB of JSON, no module", "mobilenet", None, Encoding::Json),
    ]
}

impl Case {
    /// The whole HTTP request, head and body.
    pub fn request(&self) -> Vec<u8> {
        let values = self.values();
        let shape = format!("{:?}", self.shape);
        let path = format!("/v2/models/{}/infer", self.model);
        let (header, body) = match self.encoding {
            Encoding::Json => {
                let data: Vec<String> = values.iter().map(|v| format!("{v:.4}")).collect();
                let json = format!(
                    r#"{{"inputs":[{{"name":"{}","shape":{shape},"datatype":"FP32","data":[{}]}}]}}"#,
                    self.input,
                    data.join(",")
                );
                (String::new(), json.into_bytes())
            }
            Encoding::Binary => {
                let json = format!(
                    r#"{{"parameters":{{"binary_data_output":true}},"inputs":[{{"name":"{}","shape":{shape},"datatype":"FP32","parameters":{{"binary_data_size":{}}}}}]}}"#,
                    self.input,
                    values.len() * 4
                );
                let header = format!("inference-header-content-length: {}\r\n", json.len());
                let mut body = json.into_bytes();
                body.extend(values.iter().flat_map(|v| v.to_le_bytes()));
                (header, body)
            }
        };
        let head = format!("POST {path} HTTP/1.1\r\nhost: bench\r\n{header}content-length: {}\r\n\r\n", body.len());
        [head.into_bytes(), body].concat()
    }

    /// Input values with the digits that real data has; the same at every run.
    pub fn values(&self) -> Vec<f32> {
        let count: usize = self.shape.iter().product();
        let mut state = 0x9e37_79b9_u32;
        (0..count)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / (1 << 23) as f32 - 1.0
            })
            .collect()
    }
}
