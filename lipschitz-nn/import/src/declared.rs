//! A model whose graph its author declares, in a JSON file beside the weights.

use std::collections::BTreeMap;
use std::path::Path;

use lipschitz_nn::{Error, Graph, strict, text};
use serde::{Deserialize, Serialize};

use crate::expression::TensorExpr;
use crate::mapping::Mapping;

/// A graph, and the tensors that its weights are, where their names are others.
#[derive(Serialize, Deserialize)]
struct Declared {
    graph: Graph,
    /// From the weight's path in the graph to the name in the file.
    weights: BTreeMap<String, String>,
}

impl Declared {
    /// # Errors
    /// What is wrong with the text, on one line.
    fn parse(text: &str) -> Result<Self, String> {
        let whole: serde_json::Value =
            serde_json::from_str(text).map_err(|e| format!("is not JSON: {e}"))?;
        if whole.get("graph").is_some() {
            return strict::from_str(text).map_err(|e| format!("cannot be read: {e}"));
        }
        let graph = Graph::from_json(text).map_err(|e| e.to_string())?;
        Ok(Self { graph, weights: BTreeMap::new() })
    }
}

/// What the graph in a file says; weights without another name have that of their path.
///
/// # Errors
/// [`Error::File`] if the file holds no graph, or names a weight that the graph does not have.
pub(crate) fn mapping(path: &Path) -> Result<Mapping, Error> {
    let text = text::read(path, "a graph as JSON")?;
    let Declared { graph, mut weights } =
        Declared::parse(&text).map_err(|what| Error::file(path, what))?;
    let expressions = graph
        .parameters()
        .into_iter()
        .map(|p| {
            let theirs = weights.remove(&p.name).unwrap_or_else(|| p.name.clone());
            let tensor = match p.convolution {
                // A kernel with its sides apart, as PyTorch keeps one.
                Some(c) => {
                    let sides = [c.outputs, c.inputs / c.groups, c.kernel, c.kernel];
                    TensorExpr::new(theirs, &sides).reshape(&p.shape)
                }
                None => TensorExpr::new(theirs, &p.shape),
            };
            (p.name, tensor)
        })
        .collect();
    if let Some(name) = weights.keys().next() {
        return Err(Error::file(path, Error::weight(name, "is not in the graph")));
    }
    let file = path.file_name().map(|name| name.to_string_lossy().into_owned());
    let note = format!(
        "the graph as declared in {}; that the model computes it is taken from there",
        file.unwrap_or_default()
    );
    let (aside, exactly) = (Vec::new(), BTreeMap::new());
    Ok(Mapping { graph, weights: expressions, aside, exactly, notes: vec![note] })
}
