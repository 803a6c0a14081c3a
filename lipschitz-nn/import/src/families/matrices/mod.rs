//! A file of matrices without a config, taken as a multilayer perceptron: which tensors are layers,
//! in which order, and what is between them.
//!
//! What the file does not say is asked of the caller, and recorded. A tensor of anything else, such
//! as a convolution, is refused by what it is: what is left without it is another network.

mod kinds;
mod order;

use std::path::Path;

use crate::activation::NamedActivation;
use crate::expression::{TensorExpr, WeightMap};
use crate::formats::files::Files;
use crate::mapping::Mapping;
use crate::nodes::linear;
use crate::{ImportOptions, Undecided};
use lipschitz_nn::Error;
use lipschitz_nn::graph::{Input, Node};

/// A layer: a matrix, `[outputs, inputs]`, and its bias if there is one.
struct Layer {
    /// Its name, `0.weight`; that of a reparametrised matrix is the one that it would have.
    name: String,
    /// The tensor whose place in the file is the layer's.
    place: String,
    matrix: TensorExpr,
    outputs: usize,
    inputs: usize,
}

impl Layer {
    /// The name of its bias, should it have one.
    fn bias(&self) -> Option<String> {
        self.name.strip_suffix("weight").map(|stem| format!("{stem}bias"))
    }
}

/// The layers of a file, in the order of their names.
fn layers(files: &Files) -> Vec<Layer> {
    let layer = |place: &str| {
        let &[outputs, inputs] = files.get(place)?.shape.as_slice() else { return None };
        if kinds::is_gain(files, place) {
            return None;
        }
        let matrix = TensorExpr::new(place, &[outputs, inputs]);
        let (name, matrix) = match kinds::weight_norm(files, place) {
            // w = g · v / ‖v‖, row by row.
            Some((name, gain)) => {
                (name, matrix.unit_rows().scale_rows(TensorExpr::new(gain, &[outputs, 1])))
            }
            None => (place.to_string(), matrix),
        };
        Some(Layer { name, place: place.to_string(), matrix, outputs, inputs })
    };
    files.names().filter_map(layer).collect()
}

/// The elementwise functions between the layers, and behind the last one, and in words.
fn activations<'a>(
    path: &Path,
    layers: usize,
    names: &'a [String],
) -> Result<(Vec<&'a str>, Option<String>), Error> {
    let wrong = |what: String| Error::file(path, what);
    let gaps = layers - 1;
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let said = "as was said at import";
    match (names.as_slice(), gaps) {
        ([], 0) => Ok((names, None)),
        ([], _) => {
            let what = format!("holds {layers} matrices and does not say what is between them");
            Err(Error::file(path, Undecided::NoActivation(what)))
        }
        ([_], 0) => {
            Err(wrong("holds one matrix, so there is nothing for a function to be between".into()))
        }
        (&[one], _) => Ok((vec![one; gaps], Some(format!("{one} between the layers, {said}")))),
        (several, _) if several.len() == gaps => {
            let note = format!("between the layers, in turn, {}, {said}", several.join(", "));
            Ok((names, Some(note)))
        }
        ([between @ .., last], _) if between.len() == gaps => {
            let between = between.join(", ");
            let note = format!("between the layers, in turn, {between}, then {last}, {said}");
            Ok((names, Some(note)))
        }
        (several, _) => Err(wrong(format!(
            "holds {layers} matrices, and {} functions are given: give one for all, {gaps} for what \
             is between the matrices, or {layers} to have one behind the last too",
            several.len()
        ))),
    }
}

fn nodes_of(path: &Path, name: &str) -> Result<Vec<Node>, Error> {
    if matches!(name, "identity" | "linear") {
        return Ok(Vec::new());
    }
    match NamedActivation::in_pytorch(name) {
        Some(phi) => Ok(phi.nodes()),
        None => Err(Error::file(path, format!("no activation is called `{name}`"))),
    }
}

/// The multilayer perceptron that a file of matrices is.
///
/// # Errors
/// [`Error::File`] names the tensor that is no layer, or holds what is [`Undecided`].
pub(crate) fn matrices(
    path: &Path,
    files: &Files,
    options: &ImportOptions,
) -> Result<Mapping, Error> {
    let undecided = |what: Undecided| Error::file(path, what);
    if let Some(what) = kinds::foreign(files) {
        return Err(undecided(Undecided::NoGraph(format!("is no multilayer perceptron: {what}"))));
    }
    let mut layers = layers(files);
    if layers.is_empty() {
        return Err(Error::file(path, "holds no matrices, so it is no multilayer perceptron"));
    }
    let names: Vec<order::Name> =
        layers.iter().map(|l| order::Name { layer: &l.name, place: &l.place }).collect();
    let file = files.ordered();
    let order =
        order::order(&names, file.as_deref(), options.order.as_deref()).map_err(undecided)?;
    let note = order.note(&names);
    let mut found: Vec<Option<Layer>> = layers.drain(..).map(Some).collect();
    let layers: Vec<Layer> =
        order.places.iter().filter_map(|i| found.get_mut(*i)?.take()).collect();
    let misfit = layers.iter().zip(layers.iter().skip(1)).find(|(a, b)| a.outputs != b.inputs);
    if let Some((a, b)) = misfit {
        return Err(undecided(Undecided::NoChain(format!(
            "`{}` reads {} numbers, and `{}` in front of it gives {}; matrices are [outputs, inputs]",
            b.name, b.inputs, a.name, a.outputs
        ))));
    }
    let (functions, between) = activations(path, layers.len(), &options.activation)?;
    let mut weights = WeightMap::default();
    let mut nodes = Vec::new();
    let mut functions = functions.into_iter();
    let width = layers.first().map_or(0, |l| l.inputs);
    for (i, layer) in layers.into_iter().enumerate() {
        let ours = format!("layer{i}");
        let bias = layer.bias().filter(|name| files.get(name).is_some());
        if let Some(bias) = &bias {
            weights.vector(&format!("{ours}.bias"), bias, layer.outputs);
        }
        weights.put(format!("{ours}.weight"), layer.matrix);
        nodes.push(linear(ours, layer.inputs, layer.outputs, bias.is_some()));
        if let Some(name) = functions.next() {
            nodes.extend(nodes_of(path, name)?);
        }
    }
    let mut mapping = Mapping::new(Input::Vector { dim: width }, nodes, weights)?;
    mapping.notes.extend(between.into_iter().chain(note));
    mapping.notes.extend(kinds::weight_norms(files));
    Ok(mapping)
}
