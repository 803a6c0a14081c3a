//! A network as the `[model]` section of a file.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::convnet::{Convnet, ConvolutionStage, PixelAttention};
use super::gpt::{Activation, BlockConfig, Gpt, Positions};
use super::isometric::{Isometric, Stage};
use super::mlp::Mlp;
use super::vit::Vit;
use crate::graph::Input;
use crate::{Error, Graph, text};

/// The network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "preset", rename_all = "snake_case", deny_unknown_fields)]
pub enum ModelConfig {
    /// The constrained transformer.
    Gpt {
        /// Width of the residual stream.
        dim: usize,
        /// Blocks.
        layers: usize,
        /// Attention heads.
        heads: usize,
        /// Longest sequence, in tokens.
        context: usize,
        /// What attention logits are divided by.
        #[serde(default)]
        logit_scale: LogitScale,
        /// Factor on the attention output.
        #[serde(default = "third")]
        output_scale: f64,
        /// Factor on the network's logits.
        #[serde(default = "one")]
        final_scale: f64,
        /// The token that begins a new document: attention stays within a document. Without it each
        /// sequence is one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        separator: Option<u32>,
        /// How many zero vectors stand in front of every sequence, so that its first tokens have
        /// others in sight: what heads read is then known for every token.
        #[serde(default, skip_serializing_if = "is_zero")]
        zero_prefix: usize,
        /// How attention knows positions.
        #[serde(default)]
        positions: Positions,
        /// The activation of the MLPs.
        #[serde(default)]
        activation: Activation,
        /// α, the weight of each block in `(1−α)x + α·block(x)`; 1/(2·layers) if not given.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        alpha: Option<f64>,
    },
    /// A language model that keeps norms: heads at fixed offsets, orthogonal layers, MaxMin.
    Isometric {
        /// Width of the embedding.
        dim: usize,
        /// Longest sequence, in tokens.
        context: usize,
        /// Heads and layers, first to last.
        stages: Vec<Stage>,
        /// Factor on the network's logits; 1, or the target constant where the certificate is what
        /// meets it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        final_scale: Option<f64>,
    },
    /// The constrained vision transformer, for images of the data's size.
    Vit {
        /// Width of the residual stream.
        dim: usize,
        /// Blocks.
        layers: usize,
        /// Attention heads.
        heads: usize,
        /// Side of a patch, in pixels.
        patch: usize,
        /// What attention logits are divided by.
        #[serde(default)]
        logit_scale: LogitScale,
        /// Factor on the attention output.
        #[serde(default = "third")]
        output_scale: f64,
        /// Factor on the network's logits.
        #[serde(default = "one")]
        final_scale: f64,
    },
    /// A convolutional network with MaxMin, for images of the data's size.
    Convnet {
        /// First to last; each divides the sides of the image by its `patch`.
        stages: Vec<ConvolutionStage>,
        /// Attention between the pixels of the last stage.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        attention: Option<PixelAttention>,
        /// Factor on the network's logits; 1, or the target constant where the certificate is what
        /// meets it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        final_scale: Option<f64>,
    },
    /// A multilayer perceptron with ReLU, for images or vectors of the data's size.
    Mlp {
        /// Widths of the hidden layers.
        hidden: Vec<usize>,
        /// Factor on the network's logits.
        #[serde(default = "one")]
        final_scale: f64,
    },
    /// An architecture graph of your own, as `certify graph MODEL -o FILE.json` writes one.
    Graph {
        /// The file.
        path: PathBuf,
    },
}

fn third() -> f64 {
    1.0 / 3.0
}

fn is_zero(n: &usize) -> bool {
    *n == 0
}

fn one() -> f64 {
    1.0
}

/// What attention logits `q·k` are divided by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LogitScale {
    /// The width of each head, as in Newhouse et al. (2025).
    #[default]
    HeadDim,
    /// Its square root, as in most transformers.
    SqrtHeadDim,
    /// The width of the residual stream.
    Dim,
}

impl LogitScale {
    /// The factor on the logits.
    fn factor(self, dim: usize, heads: usize) -> f64 {
        let head_dim = dim as f64 / heads.max(1) as f64;
        match self {
            Self::HeadDim => head_dim.recip(),
            Self::SqrtHeadDim => head_dim.sqrt().recip(),
            Self::Dim => (dim as f64).recip(),
        }
    }
}

/// The factor on a network's logits. It is a part of the function, not a bound: without one they are
/// the head's own, and the graph says 1. Whatever it is, the certificate reads it from the graph.
fn logit_factor(final_scale: Option<f64>) -> f64 {
    final_scale.unwrap_or(1.0)
}

impl ModelConfig {
    /// The graph for this vocabulary (or number of classes). Networks of images read 3 × 32 × 32.
    ///
    /// # Errors
    /// [`Error::Graph`] for a size that does not fit, [`Error::File`] for a graph file that cannot
    /// be read.
    pub fn graph(&self, outputs: usize) -> Result<Graph, Error> {
        self.graph_of(outputs, Input::Pixels { channels: 3, height: 32, width: 32 })
    }

    /// The graph for this number of outputs and data like this; a language model says its own
    /// context, and a graph file its own input.
    ///
    /// # Errors
    /// As [`ModelConfig::graph`].
    pub fn graph_of(&self, outputs: usize, input: Input) -> Result<Graph, Error> {
        match self {
            ModelConfig::Gpt {
                dim,
                layers,
                heads,
                context,
                logit_scale,
                output_scale,
                final_scale,
                separator,
                zero_prefix,
                positions,
                activation,
                alpha,
            } => {
                let block = BlockConfig {
                    logit_scale: logit_scale.factor(*dim, *heads),
                    output_scale: *output_scale,
                    positions: Some(*positions),
                    activation: *activation,
                    alpha: *alpha,
                    ..BlockConfig::new(*dim, *heads)
                };
                let gpt = Gpt::new(outputs, *context, *layers, block);
                let (final_scale, separator) = (*final_scale, *separator);
                Gpt { final_scale, separator, zero_prefix: *zero_prefix, ..gpt }.graph()
            }
            ModelConfig::Isometric { dim, context, stages, final_scale } => {
                let (dim, context, stages) = (*dim, *context, stages.clone());
                let final_scale = logit_factor(*final_scale);
                Isometric { vocabulary: outputs, context, dim, stages, final_scale }.graph()
            }
            ModelConfig::Vit {
                dim,
                layers,
                heads,
                patch,
                logit_scale,
                output_scale,
                final_scale,
            } => {
                let (dim, heads, output_scale) = (*dim, *heads, *output_scale);
                let logit_scale = logit_scale.factor(dim, heads);
                let block = BlockConfig {
                    logit_scale,
                    output_scale,
                    causal: false,
                    positions: None,
                    ..BlockConfig::new(dim, heads)
                };
                let (patch, layers, final_scale) = (*patch, *layers, *final_scale);
                let Input::Pixels { channels, height, width } = input else {
                    let what = "is no image; a vision transformer reads images";
                    return Err(Error::graph("input", what));
                };
                let image = [channels, height, width];
                Vit { image, patch, outputs, block, layers, final_scale }.graph()
            }
            ModelConfig::Convnet { stages, attention, final_scale } => {
                let (stages, attention) = (stages.clone(), *attention);
                let final_scale = logit_factor(*final_scale);
                let Input::Pixels { channels, height, width } = input else {
                    let what = "is no image; a convolutional network reads images";
                    return Err(Error::graph("input", what));
                };
                let image = [channels, height, width];
                Convnet { image, stages, attention, outputs, final_scale }.graph()
            }
            ModelConfig::Mlp { hidden, final_scale } => {
                Mlp { input, hidden: hidden.clone(), outputs, final_scale: *final_scale }.graph()
            }
            ModelConfig::Graph { path } => {
                let text = text::read(path, "a graph as JSON")?;
                Graph::from_json(&text).map_err(|e| Error::file(path, e))
            }
        }
    }
}
