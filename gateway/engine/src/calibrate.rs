//! Whether a graph's jobs may run together, and how many rows pay: both are found out by running it.
//!
//! A symbolic first axis proves nothing: a state may batch on another axis, and dynamic quantisation takes one scale
//! for all rows. So rows that differ are run alone and together, and must give the same.

mod rows;

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use self::rows::{Row, difference};
use crate::{BatchPolicy, EngineError, Fault, Graph, Job, Tensor};

/// How a graph's jobs are to run together, as a manifest says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "`auto`, `off`, or a table of max_size and max_delay_us")]
pub enum Batching {
    /// As many rows as pay by the curve that was measured, and no delay.
    #[default]
    #[serde(with = "auto")]
    Auto,
    /// Each job alone.
    #[serde(with = "off")]
    Off,
    /// As given, where the graph's rows do not change each other.
    Fixed(FixedBatching),
}

/// A policy that a person has chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FixedBatching {
    /// Most rows of one run.
    pub max_size: usize,
    /// How long the oldest job may wait for others, microseconds.
    #[serde(default)]
    pub max_delay_us: u64,
}

/// A word in place of a variant.
macro_rules! word {
    ($module:ident) => {
        mod $module {
            use serde::de::Error;
            use serde::{Deserialize, Deserializer, Serializer};

            pub fn serialize<S: Serializer>(serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(stringify!($module))
            }

            pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<(), D::Error> {
                match String::deserialize(deserializer)?.as_str() {
                    stringify!($module) => Ok(()),
                    _ => Err(D::Error::custom("another word")),
                }
            }
        }
    };
}

word!(auto);
word!(off);

/// What running a graph with several rows has shown.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// Why each job runs alone; `None` where rows that ran together gave what each gave alone.
    pub refused: Option<String>,
    /// Why rows of different lengths do not run together although the options say how they could; `None` where rows that
    /// were filled up gave what each gave alone, and where nothing was asked for.
    #[serde(default)]
    pub padding_refused: Option<String>,
    /// Whether time ran out before all of this was known, so that another trial may find more.
    #[serde(default)]
    pub cut_short: bool,
    /// Engine time by rows of a run, as far as was measured.
    pub curve: Vec<CurvePoint>,
    /// The engine that ran them; empty where nothing ran.
    #[serde(default)]
    pub engine: String,
}

/// One size of a run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct CurvePoint {
    /// Rows of the run.
    pub rows: usize,
    /// Engine time of the whole run, microseconds: the shortest of several.
    pub micros: f64,
}

/// The sizes that are measured.
const SIZES: [usize; 6] = [1, 2, 4, 8, 16, 32];
/// Rows that are compared where there is time, and where there is little.
const COMPARED: usize = 6;
const COMPARED_AT_LEAST: usize = 2;
/// How long one size is measured on average, where its runs are short.
const EACH: Duration = Duration::from_millis(4);
/// Runs of each size that are measured at least, where there is time.
const ROUNDS: u32 = 3;
/// Most runs of one size in its turn, until it is no faster by this.
const WARMING: u32 = 8;
const FASTER: f64 = 0.98;
/// A batch of twice the rows pays if it takes less than this part of the time for a row. Everybody in it waits for all of
/// it, and so does who comes meanwhile: a few per cent are not worth that.
const PAYS: f64 = 0.9;
/// Why nothing was tried.
const NOTHING_TO_TRY: &str =
    "it declares inputs of which no small rows that differ could be made: a golden test of several rows would help";
/// Most bytes of one input that is made up for a run.
const MOST_BYTES: usize = 64 << 20;

impl Calibration {
    /// A graph whose jobs run alone, and why.
    pub fn refused(why: impl Into<String>) -> Calibration {
        Calibration { refused: Some(why.into()), ..Calibration::default() }
    }

    /// Whether this says something of a graph that `engine` runs: rows that one engine keeps apart another may not.
    pub fn is_of(&self, engine: &str) -> bool {
        self.engine.is_empty() || self.engine == engine
    }

    /// The policy that follows. What a person fixed wins over the curve, and never over the proof.
    pub fn policy(&self, wanted: Batching) -> BatchPolicy {
        match wanted {
            _ if self.refused.is_some() => BatchPolicy::OFF,
            Batching::Off => BatchPolicy::OFF,
            Batching::Fixed(FixedBatching { max_size, max_delay_us }) => {
                BatchPolicy { max_rows: max_size.max(1), delay: Duration::from_micros(max_delay_us) }
            }
            Batching::Auto => BatchPolicy { max_rows: self.best(), delay: Duration::ZERO },
        }
    }

    /// The most rows that pay.
    fn best(&self) -> usize {
        let (mut rows, mut each) = (1usize, f64::INFINITY);
        for point in &self.curve {
            let own = point.micros / point.rows.max(1) as f64;
            let doublings = (point.rows.max(1) as f64 / rows as f64).log2();
            if own < each * PAYS.powf(doublings) {
                (rows, each) = (point.rows, own);
            }
        }
        rows
    }
}

/// Runs a graph with one row and with several, for about `budget`: first to see whether rows change each other, then to
/// see how long each size takes. The graph must have no other callers, and run each job alone. The inputs are those of
/// the first job that it answered, where it keeps that ([`crate::Engines::load_to_try`]), changed at random; else they
/// are made up.
pub async fn calibrate(graph: &Graph, budget: Duration) -> Calibration {
    if let Err(why) = graph.declared_axis() {
        return Calibration::refused(why);
    }
    let trial = Trial { graph, end: Instant::now() + budget, budget };
    match trial.whole().await {
        Ok(found) => found,
        Err(Refusal { why, out_of_time }) => Calibration { cut_short: out_of_time, ..Calibration::refused(why) },
    }
}

/// How many rows can be compared within `budget` where one takes so long alone: each of them alone, all of them
/// together twice, and some measurements. `None` where there is no time for the fewest, each alone and then together.
fn comparable(took: Duration, budget: Duration) -> Option<usize> {
    if took * (2 * COMPARED_AT_LEAST as u32) > budget {
        return None;
    }
    let fit = budget.as_secs_f64() / (took.as_secs_f64() * 4.0);
    Some((fit as usize).clamp(COMPARED_AT_LEAST, COMPARED))
}

/// The first of these and so many others, those that differ from it before those that do not.
fn fewer(mut rows: Vec<Row>, most: usize) -> Vec<Row> {
    if let Some((first, others)) = rows.split_first_mut().filter(|(_, others)| others.len() >= most) {
        others.sort_by_key(|row| *row == *first);
    }
    rows.truncate(most);
    rows
}

/// A graph that is being tried.
struct Trial<'a> {
    graph: &'a Graph,
    end: Instant,
    budget: Duration,
}

/// Rows that differ, and what each gives alone.
type Alone = (Vec<Row>, Vec<Vec<Tensor>>);

/// What a trial did not get past.
struct Refusal {
    why: String,
    /// Whether that was for want of time.
    out_of_time: bool,
}

impl Refusal {
    fn of(why: impl Into<String>) -> Refusal {
        Refusal { why: why.into(), out_of_time: false }
    }

    /// Runs that failed.
    fn failed(what: &str, error: &EngineError) -> Refusal {
        Refusal { why: format!("{what} failed: {error}"), out_of_time: error.fault() == Fault::Deadline }
    }
}

impl Trial<'_> {
    async fn whole(&self) -> Result<Calibration, Refusal> {
        let (rows, alone) = self.rows().await?;
        self.compare(&rows, &alone).await?;
        let padding = self.compare_padded(&rows).await.err();
        let curve = self.measure(&rows).await;
        // A curve of one point says nothing of what pays.
        let two: Vec<&Row> = rows.iter().take(2).collect();
        let unmeasured = curve.len() < two.len() && rows::bytes(&two) <= MOST_BYTES;
        let cut_short = unmeasured || padding.as_ref().is_some_and(|refusal| refusal.out_of_time);
        let (padding_refused, engine) = (padding.map(|refusal| refusal.why), self.graph.info().engine.clone());
        Ok(Calibration { refused: None, padding_refused, cut_short, curve, engine })
    }

    async fn run(&self, inputs: Vec<Tensor>) -> Result<Vec<Tensor>, EngineError> {
        let names = self.graph.spec().inputs.iter().map(|input| input.name.clone());
        // A run that has begun ends when it ends: this bounds how long it is waited for.
        let deadline = Some(self.end + self.budget);
        let job = Job { inputs: names.zip(inputs).collect(), deadline, ..Job::default() };
        Ok(self.graph.compute(job).await?.into_iter().map(|(_, tensor)| tensor).collect())
    }

    async fn run_rows(&self, rows: &[&Row]) -> Result<Vec<Tensor>, EngineError> {
        let stacked = rows::stacked(rows).ok_or_else(|| EngineError::Failed("rows of different shapes".into()))?;
        self.run(stacked).await
    }

    /// Different rows that the graph takes, and what each gives alone.
    async fn rows(&self) -> Result<Alone, Refusal> {
        let mut failure = Refusal::of(NOTHING_TO_TRY);
        for candidate in rows::candidates(self.graph.spec(), self.graph.sample()) {
            match self.alone(candidate).await? {
                Ok(found) => return Ok(found),
                Err(error) => {
                    let why = format!("no inputs were found that it takes ({error}): a golden test would help");
                    failure = Refusal::of(why);
                }
            }
            if Instant::now() > self.end {
                failure.out_of_time = true;
                break;
            }
        }
        Err(failure)
    }

    /// What each row gives alone, where the graph takes them all, of as many as there is time for; a refusal where that
    /// is too slow.
    async fn alone(&self, rows: Vec<Row>) -> Result<Result<Alone, EngineError>, Refusal> {
        let begin = Instant::now();
        let Some(first) = rows.first() else { return Err(Refusal::of(NOTHING_TO_TRY)) };
        let mut alone = match self.run_rows(&[first]).await {
            Ok(outputs) => vec![outputs],
            Err(error) => return Ok(Err(error)),
        };
        let took = begin.elapsed();
        let most = comparable(took, self.budget).ok_or_else(|| {
            let (ms, budget) = (took.as_millis(), self.budget.as_millis());
            let why = format!("a run of one row took {ms} ms: too long to be tried within {budget} ms");
            Refusal { why, out_of_time: true }
        })?;
        let rows = fewer(rows, most);
        for row in rows.iter().skip(1) {
            match self.run_rows(&[row]).await {
                Ok(outputs) => alone.push(outputs),
                Err(error) => return Ok(Err(error)),
            }
        }
        Ok(Ok((rows, alone)))
    }

    /// Whether each row gives alone what it gives among others.
    async fn compare(&self, rows: &[Row], alone: &[Vec<Tensor>]) -> Result<(), Refusal> {
        // Each other one: it stands elsewhere and beside others. Of two rows that would be one, which is no company.
        let step = if rows.len() > 2 { 2 } else { 1 };
        let orders: [Vec<usize>; 2] = [(0..rows.len()).collect(), (0..rows.len()).rev().step_by(step).collect()];
        for order in orders {
            let together: Vec<&Row> = order.iter().map(|at| &rows[*at]).collect();
            let outputs = self.run_rows(&together).await;
            let outputs = outputs.map_err(|error| Refusal::failed("rows together", &error))?;
            let expected: Vec<&[Tensor]> = order.iter().map(|at| &alone[*at][..]).collect();
            self.same(&outputs, &expected, |_, _, piece| Some(piece))
                .map_err(|off| Refusal::of(format!("rows change each other: {off}")))?;
        }
        Ok(())
    }

    /// Whether a row that is filled up beside longer ones gives what it gives at its own length.
    async fn compare_padded(&self, rows: &[Row]) -> Result<(), Refusal> {
        let Some(pads) = self.graph.pads() else { return Ok(()) };
        let too_short = || Refusal::of("the rows that were tried have no length to cut: a golden test would help");
        let mut cut = Vec::with_capacity(rows.len());
        for (at, row) in rows.iter().enumerate() {
            let whole = pads.length(row).filter(|length| *length > 1).ok_or_else(too_short)?;
            let length = [whole, whole - 1, whole.div_ceil(2), whole, 1, whole.div_ceil(3)][at % COMPARED];
            cut.push(pads.shortened(row, length).ok_or_else(too_short)?);
        }
        let failed = |what: &'static str| move |error: EngineError| Refusal::failed(what, &error);
        let mut alone = Vec::with_capacity(cut.len());
        for row in &cut {
            alone.push(self.run(row.clone()).await.map_err(failed("a row of another length"))?);
        }
        let filled: Option<Vec<Tensor>> = (0..self.graph.spec().inputs.len())
            .map(|input| pads.stack(input, &cut.iter().filter_map(|row| row.get(input)).collect::<Vec<_>>()))
            .collect();
        let filled = filled.ok_or_else(|| Refusal::of("the inputs cannot be filled up to one length"))?;
        let outputs = self.run(filled).await.map_err(failed("rows that were filled up"))?;
        let expected: Vec<&[Tensor]> = alone.iter().map(Vec::as_slice).collect();
        self.same(&outputs, &expected, |row, output, piece| pads.cut(output, piece, cut.get(row)?))
            .map_err(|off| Refusal::of(format!("filling rows up changes them: {off}")))
    }

    /// Whether one run's outputs are, row by row, those that were expected; each piece is what `own` makes of its rows.
    fn same(
        &self,
        outputs: &[Tensor],
        expected: &[&[Tensor]],
        own: impl Fn(usize, usize, Tensor) -> Option<Tensor>,
    ) -> Result<(), String> {
        let precise = self.graph.info().provider == "CPU";
        for (at, output) in outputs.iter().enumerate() {
            let name = self.graph.spec().outputs.get(at).map_or("", |output| &output.name);
            let misfit = || {
                let (rows, shape) = (expected.len(), output.shape());
                format!("output '{name}' is of shape {shape:?} for {rows} rows")
            };
            let pieces = output.split(expected.iter().map(|_| 1)).ok_or_else(misfit)?;
            for (row, (piece, expected)) in pieces.into_iter().zip(expected).enumerate() {
                let piece = own(row, at, piece).ok_or_else(misfit)?;
                if let Some(off) = expected.get(at).and_then(|expected| difference(&piece, expected, precise)) {
                    return Err(format!("output '{name}' differs {off}"));
                }
            }
        }
        Ok(())
    }

    /// Engine time by rows. The sizes take turns, so that what else the machine does meets all of them.
    async fn measure(&self, rows: &[Row]) -> Vec<CurvePoint> {
        let mut curve: Vec<CurvePoint> = Vec::new();
        let together = |size: usize| rows.iter().cycle().take(size).collect::<Vec<&Row>>();
        // The first run of a size makes room for it.
        for size in SIZES {
            let together = together(size);
            let expected = curve.last().map_or(Duration::ZERO, |last| Duration::from_secs_f64(last.micros * 4e-6));
            if Instant::now() + expected > self.end || rows::bytes(&together) > MOST_BYTES {
                break;
            }
            match self.measure_one(&together).await {
                Some(micros) => curve.push(CurvePoint { rows: size, micros }),
                None => break,
            }
        }
        let begin = Instant::now();
        let mut round = 0;
        while round < ROUNDS || begin.elapsed() < EACH * curve.len() as u32 {
            for point in &mut curve {
                if Instant::now() + Duration::from_secs_f64(point.micros * 2e-6) > self.end {
                    return curve;
                }
                match self.measure_one(&together(point.rows)).await {
                    Some(micros) if round > 0 => point.micros = point.micros.min(micros),
                    Some(micros) => point.micros = micros,
                    None => return curve,
                }
            }
            round += 1;
        }
        curve
    }

    /// Runs until it becomes no faster: the first ones find the caches as runs of another size have left them, which one row
    /// would pay for alone, and under load runs follow their like.
    async fn measure_one(&self, rows: &[&Row]) -> Option<f64> {
        let mut best = f64::INFINITY;
        for _ in 0..WARMING {
            let before = self.graph.counts().compute_ns;
            self.run_rows(rows).await.ok()?;
            let micros = (self.graph.counts().compute_ns - before) as f64 / 1e3;
            if micros > best * FASTER {
                return Some(best.min(micros));
            }
            best = micros;
        }
        Some(best)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(points: &[(usize, f64)]) -> Calibration {
        let curve = points.iter().map(|&(rows, micros)| CurvePoint { rows, micros }).collect();
        Calibration { curve, ..Calibration::default() }
    }

    #[test]
    fn what_one_engine_showed_is_not_said_of_another() {
        let of_rten = Calibration { engine: "rten".into(), ..curve(&[(1, 10.0)]) };
        assert!(of_rten.is_of("rten") && !of_rten.is_of("onnxruntime"));
        assert!(Calibration::refused("its rows change each other").is_of("onnxruntime"));
    }

    #[test]
    fn fewer_rows_are_compared_where_there_is_little_time() {
        let budget = Duration::from_secs(2);
        for (ms, rows) in [(0, Some(6)), (83, Some(6)), (100, Some(5)), (240, Some(2)), (500, Some(2)), (501, None)] {
            assert_eq!(comparable(Duration::from_millis(ms), budget), rows, "{ms} ms a row");
        }
    }

    #[test]
    fn of_fewer_rows_some_differ() {
        let row = |value: i64| vec![Tensor::from_vec([1], vec![value]).expect("a row")];
        let rows: Vec<Row> = [7, 7, 7, 1, 7, 2].map(row).into();
        assert_eq!(fewer(rows.clone(), 6), rows);
        assert_eq!(fewer(rows.clone(), 2), [7, 1].map(row));
        assert_eq!(fewer(rows, 4), [7, 1, 2, 7].map(row));
    }

    #[test]
    fn no_larger_batch_than_pays() {
        for (points, best) in [
            (&[][..], 1),
            (&[(1, 10.0)], 1),
            (&[(1, 10.0), (2, 20.0), (4, 40.0)], 1),
            (&[(1, 10.0), (2, 19.0), (4, 37.0)], 1),
            (&[(1, 10.0), (2, 11.0), (4, 12.0), (8, 24.0), (16, 50.0)], 4),
            (&[(1, 10.0), (2, 19.5), (4, 38.9), (8, 50.0)], 8),
            (&[(1, 10.0), (2, 18.6), (4, 35.6), (8, 70.0)], 1),
            (&[(1, 10.0), (2, 30.0), (4, 22.0)], 4),
        ] {
            assert_eq!(curve(points).best(), best, "{points:?}");
        }
    }

    #[test]
    fn what_is_fixed_wins_over_the_curve_and_not_over_the_proof() {
        let fixed = Batching::Fixed(FixedBatching { max_size: 8, max_delay_us: 500 });
        let measured = curve(&[(1, 10.0), (2, 11.0)]);
        assert_eq!(measured.policy(Batching::Auto), BatchPolicy { max_rows: 2, delay: Duration::ZERO });
        assert_eq!(measured.policy(Batching::Off), BatchPolicy::OFF);
        assert_eq!(measured.policy(fixed), BatchPolicy { max_rows: 8, delay: Duration::from_micros(500) });
        assert_eq!(Calibration::refused("it mixes rows").policy(fixed), BatchPolicy::OFF);
    }

    #[test]
    fn settings_are_words_or_a_table() {
        let read = |json: &str| serde_json::from_str::<Batching>(json);
        let fixed = Batching::Fixed(FixedBatching { max_size: 8, max_delay_us: 0 });
        for (json, expected) in [("\"auto\"", Batching::Auto), ("\"off\"", Batching::Off), ("{\"max_size\":8}", fixed)]
        {
            assert_eq!(read(json).expect(json), expected);
            let written = serde_json::to_string(&expected).expect("JSON");
            assert_eq!(read(&written).expect(json), expected, "{written}");
        }
        for bad in ["\"on\"", "{}", "{\"max_size\":8,\"max\":1}", "7"] {
            let error = read(bad).expect_err(bad).to_string();
            assert!(error.contains("`auto`, `off`, or a table"), "{error}");
        }
    }
}
