//! A convolutional network for images: halving convolutions, convolutions of one size with MaxMin,
//! and a linear head.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::graph::{Attention, Convolution, Graph, Input, Node, Op, PositionBias};

/// The most stages, and layers of a stage.
const MAX_DEPTH: usize = 1024;

/// What a network makes of an image at one size.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ConvolutionStage {
    /// Channels; even.
    pub channels: usize,
    /// Side of the squares of pixels that the convolution in front reads, each on its own: what the
    /// sides are divided by. Where squares do not cover the image, zeros around it are read as well.
    #[serde(default = "two")]
    pub patch: usize,
    /// Layers behind that convolution.
    pub layers: usize,
    /// Side of the kernels of these layers, which is odd. With 1, groups of channels are shifted by a
    /// pixel before each, so that pixels see each other all the same: where the kernels are
    /// orthogonal, the whole is.
    #[serde(default = "three")]
    pub kernel: usize,
}

/// Softmax attention between the pixels of the last stage, whose mean is added to all of them through a
/// linear map W: `(1 − share) x + share · W mean(attention(x))`. A mean of pixels has constant 1 from RMS
/// norm to RMS norm, as W has, so that both parts keep norms alike.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PixelAttention {
    /// Heads; divides the channels of the last stage.
    pub heads: usize,
    /// What the second part is of the sum, from 0 to 1.
    pub share: f64,
    /// The ℓ2 norm of the channels of a pixel from which on attention reads them cut to it. Its constant
    /// grows with the size of what it reads, so that there has to be one.
    pub reach: f64,
    /// The most that contents add to a logit, where queries and keys have norm 1: a learned position
    /// bias does the rest. With 0 positions alone decide.
    pub contents: f64,
}

impl PixelAttention {
    /// The node, for so many channels and pixels.
    fn node(self, dim: usize, tokens: usize) -> Result<Node, Error> {
        let Self { heads, share, reach, contents } = self;
        let wrong = |what: String| Err(Error::graph("", format!("has attention.{what}")));
        if heads == 0 || !dim.is_multiple_of(heads) {
            return wrong(format!("heads = {heads}, which do not divide {dim} channels"));
        }
        if !(0.0..=1.0).contains(&share) {
            return wrong(format!("share = {share}, which is not from 0 to 1"));
        }
        if !(1e-6..=1e6).contains(&reach) {
            return wrong(format!("reach = {reach}, which is not from 1e-6 to 1e6"));
        }
        if !(0.0..=100.0).contains(&contents) {
            return wrong(format!("contents = {contents}, which is not from 0 to 100"));
        }
        // A number for each distance: near ones are half of a side's, and there are two sides.
        let buckets = tokens.checked_mul(4).filter(|n| *n <= MAX_BUCKETS);
        let Some(buckets) = buckets else {
            return wrong(format!("{tokens} pixels to read, too many"));
        };
        let attention = Attention {
            causal: false,
            logit_scale: contents / (reach * reach),
            position_bias: Some(PositionBias { buckets, max_distance: 2 * tokens }),
            ..Attention::new(dim, heads, dim / heads)
        };
        let all = dim.checked_mul(tokens);
        let Some(all) = all else { return wrong(format!("{tokens} pixels to read, too many")) };
        let kept =
            vec![Node::new("", Op::Flatten), Node::new("", Op::Scale { factor: 1.0 - share })];
        let read = vec![
            Node::new("", Op::Patches { size: 1 }),
            Node::new("", Op::Normalise { eps: reach }),
            Node::new("", Op::Scale { factor: reach }),
            Node::new("attention", Op::Attention(attention)),
            Node::new("", Op::MeanPool),
            Node::new("spread", Op::Linear { inputs: dim, outputs: all, bias: false }),
            Node::new("", Op::Scale { factor: share }),
        ];
        let branches = [kept, read].map(|body| Node::new("", Op::Sequential { body })).into();
        Ok(Node::new("", Op::Parallel { branches }))
    }
}

/// The most numbers of a position bias.
const MAX_BUCKETS: usize = 1 << 16;

fn two() -> usize {
    2
}

fn three() -> usize {
    3
}

/// Stages, each of which begins with a convolution on squares of pixels that do not overlap, all
/// followed by MaxMin; then attention between pixels, if there is any, and all of them with a
/// linear head. Every part but attention keeps the norm of what passes
/// or makes it smaller where its kernel does.
#[derive(Clone, Debug, PartialEq)]
pub struct Convnet {
    /// Colour channels, height and width of an image; each stage divides the sides by its patch.
    pub image: [usize; 3],
    /// First to last.
    pub stages: Vec<ConvolutionStage>,
    /// What follows them, if anything does.
    pub attention: Option<PixelAttention>,
    /// Number of classes.
    pub outputs: usize,
    /// Factor on the network's logits.
    pub final_scale: f64,
}

impl Convnet {
    /// The graph.
    ///
    /// # Errors
    /// [`Error::Graph`] if a size is zero, too large, odd or even where it may not be.
    pub fn graph(&self) -> Result<Graph, Error> {
        let [channels, height, width] = self.image;
        let deep = |stage: &ConvolutionStage| stage.layers > MAX_DEPTH;
        if self.stages.len() > MAX_DEPTH || self.stages.iter().any(deep) {
            return Err(Error::graph("", format!("has more than {MAX_DEPTH} stages or layers")));
        }
        let mut made = [channels, height, width];
        let mut stages = Vec::new();
        for (i, stage) in self.stages.iter().enumerate() {
            let &ConvolutionStage { channels, patch, layers, kernel } = stage;
            if kernel % 2 == 0 {
                return Err(Error::graph(
                    "",
                    format!("has a kernel of {kernel}, which is not odd"),
                ));
            }
            let (down, [height, width]) = squares(made[0], [made[1], made[2]], channels, patch)?;
            let mut body = vec![Node::new("down", Op::Conv(down)), Node::new("", Op::MaxMin)];
            for layer in 0..layers {
                if kernel == 1 {
                    body.push(Node::new("", shift(channels)));
                }
                let same = Op::Conv(Convolution::same(channels, channels, kernel));
                body.push(Node::new(format!("layer{layer}"), same));
                body.push(Node::new("", Op::MaxMin));
            }
            stages.push(Node::new(i.to_string(), Op::Sequential { body }));
            made = [channels, height, width];
        }
        let mut nodes = vec![Node::new("stages", Op::Sequential { body: stages })];
        nodes.push(match self.attention {
            Some(attention) => attention.node(made[0], made[1].saturating_mul(made[2]))?,
            None => Node::new("", Op::Flatten),
        });
        let inputs = made.iter().fold(1_usize, |n, x| n.saturating_mul(*x));
        nodes.push(Node::new("head", Op::Linear { inputs, outputs: self.outputs, bias: true }));
        if self.final_scale != 1.0 {
            nodes.push(Node::new("", Op::Scale { factor: self.final_scale }));
        }
        Graph::new(Input::Pixels { channels, height, width }, nodes)
    }
}

/// A convolution on squares of `patch` × `patch` pixels side by side, and the sides that it makes. Where
/// squares do not cover the image, zeros around it are read as well, so that no pixel is left out.
fn squares(
    inputs: usize,
    sides: [usize; 2],
    outputs: usize,
    patch: usize,
) -> Result<(Convolution, [usize; 2]), Error> {
    let largest = sides[0].max(sides[1]);
    if patch == 0 || patch > largest {
        let said = format!("has a patch of {patch} for {} × {} pixels", sides[0], sides[1]);
        return Err(Error::graph("", said));
    }
    let made = |padding: usize| sides.map(|side| (side + 2 * padding) / patch);
    let covers = |padding: &usize| {
        sides.iter().zip(made(*padding)).all(|(side, n)| n * patch >= side + padding)
    };
    // Of patch - 1 and more nothing is left out: less than a square is, which lies in the zeros.
    let padding = (0..patch).find(covers).unwrap_or(patch - 1);
    let same = Convolution::same(inputs, outputs, 1);
    Ok((Convolution { kernel: patch, stride: patch, padding, ..same }, made(padding)))
}

/// Half of the channels stay where they are, and an eighth goes in each of four directions, round
/// the image; of few channels that eight groups do not divide, one half goes down.
fn shift(channels: usize) -> Op {
    let stay = [0, 0];
    let offsets = if channels.is_multiple_of(8) {
        vec![stay, [0, 1], stay, [1, 0], stay, [0, -1], stay, [-1, 0]]
    } else {
        vec![stay, [1, 0]]
    };
    Op::Shift { offsets, circular: true }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(image: [usize; 3], stages: Vec<ConvolutionStage>) -> Result<Graph, Error> {
        Convnet { image, stages, attention: None, outputs: 10, final_scale: 2.0 }.graph()
    }

    #[test]
    fn attention_that_does_not_fit_is_refused() {
        let stage = ConvolutionStage { channels: 16, patch: 2, layers: 0, kernel: 1 };
        let of = |attention| {
            let (image, stages) = ([3, 8, 8], vec![stage.clone()]);
            let attention = Some(attention);
            Convnet { image, stages, attention, outputs: 10, final_scale: 1.0 }.graph()
        };
        let right = PixelAttention { heads: 2, share: 0.5, reach: 4.0, contents: 0.2 };
        of(right).unwrap();
        for wrong in [
            PixelAttention { heads: 3, ..right },
            PixelAttention { heads: 0, ..right },
            PixelAttention { share: 1.1, ..right },
            PixelAttention { share: f64::NAN, ..right },
            PixelAttention { reach: 0.0, ..right },
            PixelAttention { contents: -0.1, ..right },
        ] {
            let said = of(wrong).unwrap_err().to_string();
            assert!(said.contains("attention."), "{said}");
        }
    }

    /// Every pixel is in exactly one square, whatever the sides and the patch.
    #[test]
    fn squares_cover_the_image() {
        for patch in 1..=7 {
            for (height, width) in (patch..20).flat_map(|h| (1..20).map(move |w| (h, w))) {
                let (down, sides) = squares(1, [height, width], 1, patch).unwrap();
                let padding = down.padding;
                for (side, n) in [height, width].into_iter().zip(sides) {
                    assert!(padding < patch && n * patch >= side + padding, "{side} by {patch}");
                    assert!(n <= side.div_ceil(patch) + 1);
                }
                if height.is_multiple_of(patch) && width.is_multiple_of(patch) {
                    assert_eq!((padding, sides), (0, [height / patch, width / patch]));
                }
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let stage = ConvolutionStage { channels: 16, patch: 2, layers: 2, kernel: 3 };
        let graph = of([3, 32, 32], vec![stage.clone(); 3]).unwrap();
        assert_eq!(graph.outputs(), 10);
        let head = graph.parameters().into_iter().find(|p| p.name == "head.weight").unwrap();
        assert_eq!(head.shape, [10, 16 * 16]);
        let shifted = ConvolutionStage { kernel: 1, ..stage.clone() };
        assert!(of([3, 32, 32], vec![shifted]).is_ok());
        for (image, stage) in [
            ([3, 32, 32], ConvolutionStage { channels: 15, ..stage.clone() }),
            ([3, 32, 32], ConvolutionStage { channels: 0, ..stage.clone() }),
            ([3, 32, 32], ConvolutionStage { channels: usize::MAX - 1, ..stage.clone() }),
            ([3, 32, 32], ConvolutionStage { kernel: 2, ..stage.clone() }),
            ([3, 32, 32], ConvolutionStage { layers: 1 << 40, ..stage.clone() }),
            ([3, 32, 32], ConvolutionStage { patch: 0, ..stage.clone() }),
            ([3, 32, 32], ConvolutionStage { patch: 33, ..stage.clone() }),
            ([3, 32, 32], ConvolutionStage { patch: usize::MAX, ..stage.clone() }),
            ([3, 1, 1], stage),
        ] {
            assert!(of(image, vec![stage.clone()]).is_err(), "{image:?} {stage:?}");
        }
    }
}
