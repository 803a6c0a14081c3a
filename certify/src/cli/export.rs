//! Networks as programs of other libraries.

use std::fmt::Write;
use std::path::PathBuf;

use anyhow::Result;
use candle_core::{DType, Device};
use clap::{Args, ValueEnum};
use lipschitz_certify::outln;
use lipschitz_certify::terminal::{self, Kind};
use lipschitz_nn::{At, Graph, checkpoint};
use serde_json::Value;

/// Write the network for another library: a file of weights and a program that runs them.
///
/// For PyTorch: weights.safetensors, which is also a checkpoint, and network.py, which needs torch
/// alone. As ONNX: model.onnx, of standard operators and weights of f32.
#[derive(Args)]
pub(super) struct ExportCommand {
    /// A run directory, a checkpoint, or a third-party model.
    model: PathBuf,
    /// The library.
    #[arg(long, value_enum)]
    to: To,
    /// The directory to write to.
    directory: PathBuf,
}

#[derive(Clone, Copy, ValueEnum)]
enum To {
    /// A torch.nn.Module.
    Pytorch,
    /// An ONNX file.
    Onnx,
}

impl ExportCommand {
    pub(super) fn run(self) -> Result<()> {
        let (model, meta) = lipschitz_certify::load(&self.model, &Device::Cpu)?;
        let directory = &self.directory;
        if let To::Onnx = self.to {
            let bytes = lipschitz_import::onnx(&model)
                .map_err(|e| lipschitz_nn::Error::file(&self.model, e))?;
            std::fs::create_dir_all(directory).at(directory)?;
            let file = directory.join("model.onnx");
            terminal::ready(&file, Kind::Onnx)?;
            checkpoint::write(&file, &bytes)?;
            let rounded = match model.dtype() {
                DType::F64 => ", rounded from f64 to f32",
                _ => "",
            };
            outln!("{}: {} numbers{rounded}", file.display(), model.parameter_count());
            return Ok(());
        }
        let program = pytorch(model.graph())?;
        std::fs::create_dir_all(directory).at(directory)?;
        let [weights, network] =
            ["weights.safetensors", "network.py"].map(|name| directory.join(name));
        terminal::ready(&weights, Kind::Checkpoint)?;
        terminal::ready(&network, Kind::Program)?;
        checkpoint::save(&weights, &model, &meta)?;
        checkpoint::write(&network, program.as_bytes())?;
        outln!("{}: {} numbers", weights.display(), model.parameter_count());
        outln!("{}: `load` gives the module", network.display());
        Ok(())
    }
}

/// A program that runs any graph, whose tests are in `tests/tests/python.rs`.
const PYTORCH: &str = include_str!("network.py");

/// A program of PyTorch that runs this network with its weights from a checkpoint.
///
/// # Errors
/// None for a graph that was built or read.
pub fn pytorch(graph: &Graph) -> serde_json::Result<String> {
    let mut literal = String::new();
    python(&serde_json::to_value(graph)?, 0, &mut literal);
    let graph = format!("\nGRAPH = {literal}\n");
    Ok(PYTORCH.replacen("\nGRAPH = None\n", &graph, 1))
}

/// Columns of a line of the graph.
const WIDTH: usize = 100;

/// A value as Python writes it, on one line where it fits.
fn python(value: &Value, indent: usize, out: &mut String) {
    let mut line = String::new();
    on_one_line(value, &mut line);
    if indent + line.len() <= WIDTH || !(value.is_array() || value.is_object()) {
        out.push_str(&line);
        return;
    }
    let inner = indent + 4;
    let (open, close) = if value.is_array() { ('[', ']') } else { ('{', '}') };
    out.push(open);
    for (key, value) in entries(value) {
        let _ = write!(out, "\n{:inner$}{key}", "");
        python(value, inner, out);
        out.push(',');
    }
    let _ = write!(out, "\n{:indent$}{close}", "");
}

fn on_one_line(value: &Value, out: &mut String) {
    match value {
        Value::Null => out.push_str("None"),
        Value::Bool(value) => out.push_str(if *value { "True" } else { "False" }),
        Value::Number(number) => out.push_str(&number.to_string()),
        Value::String(text) => out.push_str(&quoted(text)),
        Value::Array(_) | Value::Object(_) => {
            let (open, close) = if value.is_array() { ('[', ']') } else { ('{', '}') };
            out.push(open);
            for (i, (key, value)) in entries(value).into_iter().enumerate() {
                out.push_str(if i == 0 { "" } else { ", " });
                out.push_str(&key);
                on_one_line(value, out);
            }
            out.push(close);
        }
    }
}

/// What a list or a table holds, each with its key; what a node is and its name come first.
fn entries(value: &Value) -> Vec<(String, &Value)> {
    match value {
        Value::Array(values) => values.iter().map(|value| (String::new(), value)).collect(),
        Value::Object(fields) => {
            let mut fields: Vec<_> = fields.iter().collect();
            let rank = |key: &str| match key {
                "format" | "op" | "kind" => 0,
                "input" | "name" => 1,
                "body" | "branches" => 3,
                _ => 2,
            };
            fields.sort_by_key(|(key, _)| rank(key));
            fields.into_iter().map(|(key, value)| (format!("{}: ", quoted(key)), value)).collect()
        }
        _ => Vec::new(),
    }
}

/// A string in ASCII: what it shows is what it holds.
fn quoted(text: &str) -> String {
    let mut out = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            ' '..='~' => out.push(c),
            _ => {
                let _ = write!(out, "\\U{:08x}", u32::from(c));
            }
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_are_written_as_python_reads_them() {
        let long = "x".repeat(130);
        for (value, wanted) in [
            (json!(null), "None".to_string()),
            (json!([true, false, 1, 1.0, 1e-5]), "[True, False, 1, 1.0, 0.00001]".into()),
            (json!({"a": 1, "op": "é\"\n"}), r#"{"op": "\U000000e9\"\U0000000a", "a": 1}"#.into()),
            (json!([long, 2]), format!("[\n    \"{long}\",\n    2,\n]")),
        ] {
            let mut out = String::new();
            python(&value, 0, &mut out);
            assert_eq!(out, wanted);
        }
    }

    #[test]
    fn the_program_has_a_place_for_the_graph() {
        assert_eq!(PYTORCH.matches("\nGRAPH = None\n").count(), 1);
    }
}
