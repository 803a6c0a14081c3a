//! Plain MLPs: a file of matrices in the order of the layers, with or without biases.

use std::path::Path;

use crate::Undecided;
use crate::activation::NamedActivation;
use crate::expression::{TensorExpr, WeightMap};
use crate::formats::files::Files;
use crate::mapping::Mapping;
use crate::nodes::linear;
use lipschitz_nn::Error;
use lipschitz_nn::graph::Input;

/// A name with its numbers as numbers, so that layer 10 comes behind layer 9.
fn natural(name: &str) -> Vec<(String, u64)> {
    let mut out = vec![(String::new(), 0u64)];
    for c in name.chars() {
        let last = out.len() - 1;
        match c.to_digit(10) {
            Some(digit) => {
                out[last].1 = out[last].1.saturating_mul(10).saturating_add(u64::from(digit) + 1)
            }
            None => {
                if out[last].1 > 0 {
                    out.push((String::new(), 0));
                }
                let last = out.len() - 1;
                out[last].0.push(c);
            }
        }
    }
    out
}

/// `activation` stands between the matrices; a single one needs none.
pub(crate) fn mlp(path: &Path, files: &Files, activation: Option<&str>) -> Result<Mapping, Error> {
    let wrong = |what: String| Error::file(path, what);
    let matrix = |name: &&str| files.get(name).is_some_and(|info| info.shape.len() == 2);
    let mut names: Vec<&str> = files.names().filter(matrix).collect();
    names.sort_by_key(|name| natural(name));
    let phi = match (activation, names.len()) {
        (_, 0) => return Err(wrong("holds no matrices, so it is no multilayer perceptron".into())),
        (None, 1) => None,
        (None, n) => {
            let what = format!("holds {n} matrices and does not say what is between them");
            return Err(Error::file(path, Undecided::NoActivation(what)));
        }
        (Some(name), _) => Some(
            NamedActivation::named(name)
                .ok_or_else(|| wrong(format!("has no activation called `{name}`")))?,
        ),
    };
    let mut weights = WeightMap::default();
    let mut nodes = Vec::new();
    let mut width: Option<(usize, &str)> = None;
    let mut first = 0;
    for (i, name) in names.iter().enumerate() {
        let &[outputs, inputs] =
            files.get(name).map(|info| info.shape.as_slice()).unwrap_or_default()
        else {
            continue;
        };
        match width {
            None => first = inputs,
            Some((width, before)) if width != inputs => {
                let what = format!(
                    "`{name}` reads {inputs} numbers, and `{before}` in front of it gives {width}"
                );
                return Err(wrong(format!(
                    "{what}; matrices are [outputs, inputs], in the order of their names"
                )));
            }
            Some(_) => {}
        }
        width = Some((outputs, name));
        let ours = format!("layer{i}");
        let bias = name
            .strip_suffix("weight")
            .map(|stem| format!("{stem}bias"))
            .filter(|b| files.get(b).is_some());
        weights.put(format!("{ours}.weight"), TensorExpr::new(*name, &[outputs, inputs]));
        if let Some(bias) = &bias {
            weights.vector(&format!("{ours}.bias"), bias, outputs);
        }
        if i > 0 {
            nodes.extend(phi.iter().flat_map(|phi| phi.nodes()));
        }
        nodes.push(linear(ours, inputs, outputs, bias.is_some()));
    }
    let mapping = Mapping::new(Input::Vector { dim: first }, nodes, weights)?;
    Ok(match activation {
        Some(name) => mapping.note(format!("{name} between the matrices, as was said at import")),
        None => mapping,
    })
}
