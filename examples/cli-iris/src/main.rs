//! An ordinary program: measurements in CSV on its standard input, species and probability on its standard output.
//!
//! `--names FILE` gives the names of the classes, one a line; `SEPARATOR` what stands between the columns.
use std::io::Read;
use std::{env, fs, io, process};

use windrose_guest::{Error, Graph, Result, Tensor, numeric};

fn main() {
    if let Err(error) = run() {
        eprintln!("{error}");
        process::exit(1);
    }
}

fn run() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [flag, path] = &arguments[..] else {
        return Err(Error::internal("usage: cli-iris --names FILE"));
    };
    if flag != "--names" {
        return Err(Error::internal(format!("unknown option {flag}")));
    }
    let names = fs::read_to_string(path).map_err(Error::wrap(path))?;
    let names: Vec<&str> = names.lines().collect();
    let separator = env::var("SEPARATOR").unwrap_or_else(|_| ",".to_owned());
    let mut text = String::new();
    io::stdin().read_to_string(&mut text).map_err(|error| Error::invalid_input(error.to_string()))?;
    let rows = measurements(&text, &separator)?;
    if rows.is_empty() {
        return Ok(());
    }
    let features = Tensor::new(&[rows.len() / 4, 4], &rows)?;
    let probabilities = Graph::by_name("model")?.compute([("features", features)])?.tensor("probabilities")?;
    for row in probabilities.read::<f32>()?.chunks_exact(names.len().max(1)) {
        for (class, probability) in numeric::top_k(row, 1) {
            println!("{}{separator}{probability}", names[class]);
        }
    }
    Ok(())
}

/// Four numbers from each line that is not empty.
fn measurements(text: &str, separator: &str) -> Result<Vec<f32>> {
    let mut values = Vec::new();
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let row: Vec<f32> = line.split(separator).map_while(|word| word.trim().parse().ok()).collect();
        if row.len() != 4 || line.split(separator).count() != 4 {
            return Err(Error::invalid_input(format!("line {}: needs four numbers", index + 1)));
        }
        values.extend(row);
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_become_rows() {
        assert_eq!(
            measurements("5.1,3.5,1.4,0.2\n\n6, 3,4.5 ,1.5\n", ",").unwrap(),
            [5.1, 3.5, 1.4, 0.2, 6.0, 3.0, 4.5, 1.5]
        );
        assert!(measurements("1,2,3\n", ",").unwrap_err().is_invalid_input());
        assert!(measurements("1,2,3,4,5\n", ",").unwrap_err().is_invalid_input());
        assert!(measurements("1,2,x,4\n", ",").unwrap_err().is_invalid_input());
    }
}
