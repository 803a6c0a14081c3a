//! The pass over the graph: the rule of each kind of node, and how constants and radii compose.

use lipschitz_nn::graph::{Function, Graph, Input, Node, NodeId, Op, Pool, Pooling, join};

use super::attention;
use super::norms::{Block, Kernel, Norm, Norms};
use super::pointwise;
use super::rows::NodeBound;
use super::state::{Layout, State, Step};
use crate::Error;
use crate::upper::{Upper, abs, count, root_down};

/// The result of bound propagation.
#[derive(Clone, Debug, PartialEq)]
pub struct Walk {
    /// The network's Lipschitz constant, ℓ2 → ℓ2 per token, on the ball of radius `domain`.
    pub lipschitz: Upper,
    /// ℓ2 radius of the domain, per token (of the whole input for images and vectors; infinite:
    /// all inputs).
    pub domain: Upper,
    /// The constant of a single output, ℓ2 → absolute value.
    pub logit: Upper,
    /// The constant of the difference of two outputs, ℓ2 → absolute value.
    pub margin: Upper,
    /// The linear map that the network ends in, if it does.
    pub head: Option<FinalLinear>,
    /// A bound on the ℓ2 norm of each token of the output.
    pub radius: Upper,
    /// Elements per token of the input.
    pub inputs: usize,
    /// Elements per token of the output.
    pub outputs: usize,
    /// One row per node, in the order of the forward pass.
    pub rows: Vec<NodeBound>,
}

/// The linear map that a network ends in.
#[derive(Clone, Debug, PartialEq)]
pub struct FinalLinear {
    /// Its weight.
    pub block: Block,
    /// The constant of everything else: what comes before it, and the scales after it.
    pub rest: Upper,
}

impl Walk {
    /// The constant from RMS norm to RMS norm: `√(inputs/outputs)` times that in ℓ2.
    pub fn rms(&self) -> Upper {
        self.from_rms(self.lipschitz).div_up(root_down(self.outputs as f64))
    }

    /// A constant from RMS norm, given one from ℓ2 norm: `√inputs` times it.
    pub fn from_rms(&self, constant: Upper) -> Upper {
        constant * count(self.inputs).sqrt()
    }
}

/// The last linear map, and what has followed it: at most one activation, and scales.
struct Passed {
    block: Block,
    norm: Upper,
    /// The constant up to the map's input, and that in the ℓ2 norm of all tokens.
    before: Upper,
    together: Option<Upper>,
    /// What has followed has slopes in `centre ± spread`.
    centre: f64,
    spread: Upper,
    /// Whether an activation has followed.
    active: bool,
}

/// Where a sequence of nodes lies in the graph.
#[derive(Default)]
struct Place {
    /// The path of the node that it is the body of.
    path: String,
    /// That node's id.
    id: NodeId,
    /// The number of its first node.
    first: usize,
}

/// Propagates bounds through `graph` with the norms that `norms` gives. The domain is the ball of
/// ℓ2 radius `radius` per token. Without a radius it is the natural domain: the ball of the largest
/// embedding row for tokens, all inputs for images and vectors.
///
/// # Errors
/// [`Error`] names the node or weight that nothing is known about.
pub fn walk(graph: &Graph, norms: &dyn Norms, radius: Option<Upper>) -> Result<Walk, Error> {
    let mut rows = Vec::new();
    let (nodes, start) = match (graph.input(), graph.nodes().split_first()) {
        (Input::Tokens { .. }, Some((Node { name, op: Op::Embedding { dim, .. } }, rest))) => {
            let natural = norms.row(&Block::whole(join(name, "weight")))?;
            let radius = radius.unwrap_or(natural);
            let (one, kind, rule) =
                (Upper::ONE, "embedding".to_string(), "domain: the embedding vectors".to_string());
            rows.push(NodeBound {
                id: NodeId::default().child(0),
                path: name.clone(),
                kind,
                lipschitz: one,
                cumulative: one,
                radius,
                rule,
            });
            (rest, State::new(radius, *dim))
        }
        (Input::Tokens { .. }, _) => {
            return Err(Error::Unknown("the input: tokens without an embedding".into()));
        }
        (Input::Pixels { channels, height, width }, _) => {
            let radius = radius.unwrap_or(Upper::INFINITY);
            let start = State::new(radius, channels * height * width);
            (graph.nodes(), start.laid_out(Layout::Image([channels, height, width])))
        }
        (Input::Vector { dim }, _) => {
            let start = State::new(radius.unwrap_or(Upper::INFINITY), dim);
            (graph.nodes(), start.laid_out(Layout::Vector))
        }
    };
    let mut walker = Walker { norms, rows };
    let (domain, inputs) = (start.radius, start.width);
    let top = Place { first: graph.nodes().len() - nodes.len(), ..Place::default() };
    let Passage { trail, out, .. } = walker.sequence(nodes, &top, start, Upper::ONE)?;
    let lipschitz = last(&trail);
    let end = graph.head().and_then(|end| end.checked_sub(top.first));
    let (logit, margin, head) = outputs(nodes, end, &trail, norms)?;
    let rows = walker.rows;
    Ok(Walk {
        lipschitz,
        domain,
        logit,
        margin,
        head,
        radius: out.radius,
        inputs,
        outputs: out.width,
        rows,
    })
}

/// The constants of a single output and of the difference of two. Where the network ends in a
/// linear map, node `end`, they are those of a row and of a difference of two rows. In any case they are at
/// most that of all outputs, and √2 times it.
fn outputs(
    nodes: &[Node],
    end: Option<usize>,
    trail: &[Upper],
    norms: &dyn Norms,
) -> Result<(Upper, Upper, Option<FinalLinear>), Error> {
    let lipschitz = last(trail);
    let (logit, margin) = (lipschitz, lipschitz * count(2).sqrt());
    let Some(end) = end else { return Ok((logit, margin, None)) };
    let name = &nodes[end].name;
    let gain = nodes[..end].last().filter(|node| has_gain(node));
    let block =
        Block::whole(join(name, "weight")).gain(gain.map(|node| join(&node.name, "weight")));
    let scale = |c: Upper, node: &Node| {
        if let Op::Scale { factor } = node.op { c * abs(factor) } else { c }
    };
    let before = nodes[end + 1..].iter().fold(last(&trail[..end]), scale);
    let logit = logit.min(before * norms.row(&block)?);
    let margin = margin.min(before * norms.norm(&Norm::RowDifference(block.clone()))?);
    Ok((logit, margin, Some(FinalLinear { block, rest: before })))
}

/// The rule of one node that is not made of others, with no norm's gain in it.
pub(super) fn alone(node: &Node, path: &str, norms: &dyn Norms, x: &State) -> Result<Step, Error> {
    let place = Place { path: path.into(), ..Place::default() };
    Walker { norms, rows: Vec::new() }.node(node, &place, x, Upper::ONE, None)
}

fn last(trail: &[Upper]) -> Upper {
    trail.last().copied().unwrap_or(Upper::ONE)
}

struct Walker<'a> {
    norms: &'a dyn Norms,
    rows: Vec<NodeBound>,
}

/// A sequence of nodes, passed.
struct Passage {
    /// The constant from the start to the output of each node, in the norm of the largest token.
    trail: Vec<Upper>,
    /// That of all, in the ℓ2 norm of all tokens together, where it is known.
    together: Option<Upper>,
    /// What is known about the last output.
    out: State,
}

impl Walker<'_> {
    /// Passes nodes in turn. `from` is the constant from the input to the start.
    ///
    /// Where the start is no sequence of tokens, both norms of it are one, and that of the largest
    /// token is at most that of all: the smaller constant holds for it.
    fn sequence(
        &mut self,
        nodes: &[Node],
        place: &Place,
        start: State,
        from: Upper,
    ) -> Result<Passage, Error> {
        let (mut lipschitz, mut together) = (Upper::ONE, Some(Upper::ONE));
        let (from_whole, mut state) = (start.layout.is_whole(), start);
        let mut trail = Vec::with_capacity(nodes.len());
        let mut passed: Option<Passed> = None;
        for (i, node) in nodes.iter().enumerate() {
            let own = Place {
                path: node.path(&place.path),
                id: place.id.child(place.first + i),
                first: 0,
            };
            let (before, before_together) = (lipschitz, together);
            let linear = matches!(node.op, Op::Linear { .. });
            let block = Block::whole(join(&own.path, "weight")).gain(state.gain.clone());
            let mut step = self.node(node, &own, &state, from * lipschitz, nodes.get(i + 1))?;
            lipschitz = before * step.lipschitz;
            together = before_together.zip(step.together).map(|(a, b)| a * b);
            // With a centre of 0 the split gives the product of the norms.
            if let (true, Some(first)) =
                (linear, passed.as_ref().filter(|first| first.centre != 0.0))
            {
                let both = self.split(first, &block, step.lipschitz)?;
                let split = first.before * both;
                if let (Some(whole), Some(first)) = (together, first.together) {
                    together = Some(whole.min(first * both));
                }
                if split < lipschitz {
                    lipschitz = split;
                    step.rule = format!("‖W‖, slope split with `{}`", first.block);
                }
            }
            if from_whole {
                if let Some(smaller) = together.filter(|all| *all < lipschitz) {
                    lipschitz = smaller;
                    if step.together.is_some_and(|all| all < step.lipschitz) {
                        step.rule.push_str("; of all tokens together 1/√tokens");
                    }
                }
                let most = step.out.layout.of_all(lipschitz);
                together = match (together, most) {
                    (Some(a), Some(b)) => Some(a.min(b)),
                    (a, b) => a.or(b),
                };
            }
            passed = follow(
                passed,
                node,
                state.element(),
                linear.then_some((block, step.lipschitz, before, before_together)),
            );
            trail.push(lipschitz);
            if state.gain.is_some() {
                step.rule.push_str(", with γ");
            }
            state = step.out;
            let (constant, radius) = step.whole.unwrap_or((step.lipschitz, state.radius));
            let reached = if step.whole.is_some() { before * constant } else { lipschitz };
            self.rows.push(NodeBound {
                id: own.id,
                path: own.path,
                kind: node.op.kind().into(),
                lipschitz: constant,
                cumulative: from * reached,
                radius,
                rule: step.rule,
            });
        }
        Ok(Passage { trail, together, out: state })
    }

    /// The constant of `W₂ φ(W₁ x)`: with the slopes of φ in c ± h it is `W₂ (c I + h S) W₁` for
    /// some ‖S‖ ≤ 1, so at most `|c| ‖W₂ W₁‖ + h ‖W₂‖ ‖W₁‖`.
    fn split(&self, first: &Passed, second: &Block, norm: Upper) -> Result<Upper, Error> {
        Ok(abs(first.centre)
            * self.norms.norm(&Norm::Product(second.clone(), first.block.clone()))?
            + first.spread * norm * first.norm)
    }

    /// The rule of a node, `next` the one that follows it.
    fn node(
        &mut self,
        node: &Node,
        place: &Place,
        x: &State,
        from: Upper,
        next: Option<&Node>,
    ) -> Result<Step, Error> {
        let mut step = self.rule(node, place, x, from, next)?;
        if node.op.body().is_none() {
            step.out.layout = x.layout.after(&node.op);
            if !matches!(node.op, Op::Attention(_)) {
                step.together = x.layout.whole(&node.op, step.lipschitz);
            }
        }
        Ok(step)
    }

    /// As [`Walker::node`]; of a node that is not made of others without the layout of its output,
    /// and in the norm of the largest token alone.
    fn rule(
        &mut self,
        node: &Node,
        place: &Place,
        x: &State,
        from: Upper,
        next: Option<&Node>,
    ) -> Result<Step, Error> {
        let path = place.path.as_str();
        let step = |lipschitz, radius, width, rule: &str| {
            Ok(Step {
                lipschitz,
                together: None,
                out: State::new(radius, width),
                rule: rule.to_string(),
                whole: None,
            })
        };
        let block =
            |name: &str| Block::whole(join(path, &join(name, "weight"))).gain(x.gain.clone());
        let offset = |name: &str, bias: Option<String>| {
            let weight = Block::whole(join(path, &join(name, "weight")));
            self.norms.offset(&weight, x.shift.as_deref(), bias.as_deref())
        };
        match &node.op {
            Op::Sequential { body } => {
                let Passage { trail, together, out } =
                    self.sequence(body, place, x.clone(), from)?;
                let (lipschitz, rule) = (last(&trail), "product".into());
                Ok(Step { lipschitz, together, out, rule, whole: None })
            }
            // δ Σ f_i(x) ≤ Σ L_i δx
            Op::Parallel { branches } => {
                let (mut lipschitz, mut radius) = (Upper::ZERO, Upper::ZERO);
                let (mut together, mut width, mut layout) = (Some(Upper::ZERO), x.width, x.layout);
                for (first, branch) in branches.iter().enumerate() {
                    let own = Place { path: path.into(), id: place.id.clone(), first };
                    let branch = std::slice::from_ref(branch);
                    let Passage { trail, together: all, out } =
                        self.sequence(branch, &own, x.clone(), Upper::ONE)?;
                    (lipschitz, radius) = (lipschitz + last(&trail), radius + out.radius);
                    together = together.zip(all).map(|(sum, all)| sum + all);
                    (width, layout) = (out.width, out.layout);
                }
                let out = State::new(radius, width).laid_out(layout);
                Ok(Step { lipschitz, together, out, rule: "Σ L".into(), whole: None })
            }
            // δ(a x + b f(x)) ≤ (|a| + |b| L_f) δx
            Op::Residual { skip, branch, body } => {
                let Passage { trail, together, out } =
                    self.sequence(body, place, x.clone(), Upper::ONE)?;
                let (a, b) = (abs(*skip), abs(*branch));
                let (lipschitz, radius) = (a + b * last(&trail), a * x.radius + b * out.radius);
                let together = together.map(|all| a + b * all);
                let out = State::new(radius, x.width).laid_out(x.layout);
                Ok(Step { lipschitz, together, out, rule: "|a| + |b| L".into(), whole: None })
            }
            Op::Conv(convolution) => {
                let Layout::Image([_, height, width]) = x.layout else {
                    return Err(Error::Unknown(format!("`{path}`: the sides of an image")));
                };
                let (weight, sides) = (join(path, "weight"), [height, width]);
                let convolution = *convolution;
                let kernel = Kernel { weight, convolution, sides };
                let norm = self.norms.norm(&Norm::Convolution(kernel))?;
                let Some([c, h, w]) = Op::image([convolution.inputs, height, width], &node.op)
                else {
                    return Err(Error::Unknown(format!("`{path}`: the sides of its image")));
                };
                // The bias is added at every pixel.
                let offset = offset("", convolution.bias.then(|| join(path, "bias")))?;
                let offset = offset * count(h * w).sqrt();
                step(norm, norm * x.radius + offset, c * h * w, "‖K‖ of the whole image")
            }
            // A permutation, some of whose pixels may be lost.
            Op::Shift { .. } => {
                let out = State { largest: x.largest, ..State::new(x.radius, x.width) };
                let rule = "a permutation".to_string();
                Ok(Step { lipschitz: Upper::ONE, together: None, out, rule, whole: None })
            }
            Op::SpaceToDepth { .. } => {
                let out = State { largest: x.largest, ..State::new(x.radius, x.width) };
                let rule = "an isometry".to_string();
                Ok(Step { lipschitz: Upper::ONE, together: None, out, rule, whole: None })
            }
            // A pixel is in at most ⌈window/stride⌉² windows.
            Op::Pool(pool) => {
                let Layout::Image(image) = x.layout else {
                    return Err(Error::Unknown(format!("`{path}`: the sides of an image")));
                };
                let Some([c, h, w]) = Op::image(image, &node.op) else {
                    return Err(Error::Unknown(format!("`{path}`: the sides of its image")));
                };
                let (constant, rule) = pooling(pool);
                step(constant, constant * x.radius, c * h * w, rule)
            }
            Op::GlobalPool { pooling } => {
                let Layout::Image([c, h, w]) = x.layout else {
                    return Err(Error::Unknown(format!("`{path}`: the sides of an image")));
                };
                let (constant, rule) = match pooling {
                    Pooling::Average => {
                        (Upper::ONE.div_up(root_down((h * w) as f64)), "1 / √pixels")
                    }
                    Pooling::Max => (Upper::ONE, "parts of the image"),
                    Pooling::L2 => (Upper::ONE, "norms of parts of the image"),
                };
                step(constant, constant * x.radius, c, rule)
            }
            Op::Linear { outputs, bias, .. } => {
                let norm = self.norms.matrix(&block(""))?;
                let offset = offset("", bias.then(|| join(path, "bias")))?;
                let mut out = State::new(norm * x.radius + offset, *outputs);
                // |w_i x + b_i|, where the next node wants to know.
                if next.is_some_and(wants_elements) {
                    out.largest = self.norms.row(&block(""))? * x.radius + offset;
                }
                let rule = "‖W‖".into();
                Ok(Step { lipschitz: norm, together: None, out, rule, whole: None })
            }
            Op::Embedding { .. } => {
                Err(Error::Unknown(format!("`{path}`: an embedding that is not the first node")))
            }
            Op::Positions { .. } => {
                let row = self.norms.row(&block(""))?;
                step(Upper::ONE, x.radius + row, x.width, "a translation")
            }
            Op::Activation { function, scale } => {
                let scale = abs(*scale);
                let element = x.element();
                let radius = scale * pointwise::norm(*function, x.radius, element, x.width);
                let rule = if wants_elements(node) {
                    "largest slope on these inputs"
                } else {
                    "largest slope"
                };
                step(scale * pointwise::slope(*function, element), radius, x.width, rule)
            }
            Op::Scale { factor } => {
                let c = abs(*factor);
                let out = State { largest: c * x.largest, ..State::new(c * x.radius, x.width) };
                let rule = "|c|".into();
                Ok(Step { lipschitz: c, together: None, out, rule, whole: None })
            }
            // |c tanh(x/c)| is at most |x| and c, and its slope at most 1.
            Op::SoftCap { cap } => step(
                Upper::ONE,
                x.radius.min(abs(*cap) * count(x.width).sqrt()),
                x.width,
                "largest slope",
            ),
            // A clip moves no two elements apart.
            Op::Clip { limit } => {
                let largest = abs(*limit).min(x.largest);
                let radius = x.radius.min(largest * count(x.width).sqrt());
                let out = State { largest, ..State::new(radius, x.width) };
                let rule = "largest slope".into();
                Ok(Step { lipschitz: Upper::ONE, together: None, out, rule, whole: None })
            }
            Op::Attention(a) => attention::bound(a, path, self.norms, x),
            Op::OffsetAttention { head_dim, offsets, .. } => {
                let c = attention::at_offsets(path, offsets.len(), self.norms)?;
                step(c, c * x.radius, offsets.len() * head_dim, "√Σ (|w_h| ‖V_h‖)²")
            }
            // With a and b the sum and the difference of the halves, over √2, it is (a, |b|).
            Op::MaxMin => {
                let out = State { largest: x.largest, ..State::new(x.radius, x.width) };
                let rule = "a permutation".to_string();
                Ok(Step { lipschitz: Upper::ONE, together: None, out, rule, whole: None })
            }
            // The Jacobian of x/√(mean x² + ε) is at most 1/√ε, and centring is a projection.
            Op::RmsNorm { eps, .. } | Op::LayerNorm { eps, .. } => {
                let slope = Upper::ONE.div_up(root_down(*eps));
                let radius = count(x.width).sqrt().min(slope * x.radius);
                let gain = has_gain(node).then(|| join(path, "weight"));
                let shift =
                    matches!(node.op, Op::LayerNorm { bias: true, .. }).then(|| join(path, "bias"));
                let largest =
                    gain.as_ref().map_or(Ok(Upper::ONE), |gain| self.norms.largest(gain))?;
                let offset =
                    shift.as_ref().map_or(Ok(Upper::ZERO), |shift| self.norms.vector(shift))?;
                let (whole, outer) = (largest * slope, largest * radius + offset);
                let rule = if gain.is_some() { "max |γ| / √ε" } else { "1 / √ε" };
                if next.is_some_and(takes_gain) {
                    let rule = match gain {
                        Some(_) => format!("{rule}; γ goes into the next"),
                        None => rule.into(),
                    };
                    let out = State { gain, shift, ..State::new(radius, x.width) };
                    let whole = Some((whole, outer));
                    return Ok(Step { lipschitz: slope, together: None, out, rule, whole });
                }
                step(whole, outer, x.width, rule)
            }
            // x/max(‖x‖, ε) is the projection onto the ball of radius ε, over ε; a projection onto
            // a convex set moves no two points apart.
            Op::Normalise { eps } => {
                let slope = Upper::ONE.div_up(*eps);
                step(slope, Upper::ONE.min(slope * x.radius), x.width, "1 / ε")
            }
            Op::GatedMlp { function, bias, .. } => {
                let (gate, up) =
                    (self.norms.matrix(&block("gate"))?, self.norms.matrix(&block("up"))?);
                let down = self.norms.matrix(&Block::whole(join(path, "down.weight")))?;
                let bias = |name: &str| bias.then(|| join(path, &join(name, "bias")));
                let (gate_offset, up_offset) =
                    (offset("gate", bias("gate"))?, offset("up", bias("up"))?);
                let down_offset =
                    bias("down").map_or(Ok(Upper::ZERO), |name| self.norms.vector(&name))?;
                let gate_input = self.norms.row(&block("gate"))? * x.radius + gate_offset;
                let largest_gate = pointwise::value(*function, gate_input);
                let largest_up = self.norms.row(&block("up"))? * x.radius + up_offset;
                // δ(φ(g) ∘ u) = δφ(g) ∘ u + φ(g) ∘ δu; each factor without δ is bounded by its
                // largest element.
                let slope = pointwise::slope(*function, gate_input);
                let product = slope * gate * largest_up + up * largest_gate;
                let radius = down * largest_gate * (up * x.radius + up_offset) + down_offset;
                step(down * product, radius, x.width, "product rule on row norms")
            }
            Op::Flatten => step(Upper::ONE, x.radius, x.width, "an isometry"),
            // A token is a part of the image, so its norm and its change are at most the image's.
            // It has `width` elements.
            Op::Patches { size } => {
                let Layout::Image([channels, ..]) = x.layout else {
                    return Err(Error::Unknown(format!("`{path}`: the sides of an image")));
                };
                let width = channels * size * size;
                step(
                    Upper::ONE,
                    x.radius.min(x.largest * count(width).sqrt()),
                    width,
                    "parts of the image",
                )
            }
            Op::MeanPool => step(Upper::ONE, x.radius, x.width, "a mean"),
            // One additional token, the same for all inputs.
            Op::ClassToken { .. } => {
                let token = self.norms.vector(&join(path, "weight"))?;
                step(Upper::ONE, x.radius.max(token), x.width, "one token more")
            }
            Op::FirstToken | Op::LastToken => step(Upper::ONE, x.radius, x.width, "one token"),
            // Two concatenated vectors, each at most the largest token.
            Op::FirstAndMean => {
                let root = count(2).sqrt();
                step(root, root * x.radius, 2 * x.width, "√2: two parts")
            }
        }
    }
}

/// The constant of pooling over windows. Of the windows that a pixel is in, there are m: a mean of n
/// pixels has constant 1/√n, and the largest or the norm of them at most 1; all windows together √m
/// times that.
pub(crate) fn pooling(pool: &Pool) -> (Upper, &'static str) {
    let along = count(pool.window.div_ceil(pool.stride.max(1)));
    match pool.pooling {
        Pooling::Average => (along.div_up(pool.window.max(1) as f64), "⌈window/stride⌉ / window"),
        Pooling::Max | Pooling::L2 => (along, "⌈window/stride⌉"),
    }
}

/// Whether a node takes the gain of a norm in front of it into its weights.
fn takes_gain(node: &Node) -> bool {
    fn begins(branch: &Node) -> bool {
        match &branch.op {
            Op::Sequential { body } => body.first().is_some_and(begins),
            _ => takes_gain(branch),
        }
    }
    match &node.op {
        Op::Linear { .. } | Op::Attention(_) | Op::GatedMlp { .. } => true,
        Op::Parallel { branches } => branches.iter().all(begins),
        _ => false,
    }
}

/// Whether a node's constant depends on the largest element of its input.
fn wants_elements(node: &Node) -> bool {
    matches!(node.op, Op::Activation { function: Function::Relu2, .. })
}

/// Whether a node is a norm with a gain.
fn has_gain(node: &Node) -> bool {
    matches!(node.op, Op::RmsNorm { gain: true, .. } | Op::LayerNorm { gain: true, .. })
}

/// What is known about the last linear map after `node`, whose inputs have elements up to
/// `element`; `linear` if that node is a linear map.
fn follow(
    passed: Option<Passed>,
    node: &Node,
    element: Upper,
    linear: Option<(Block, Upper, Upper, Option<Upper>)>,
) -> Option<Passed> {
    if let Some((block, norm, before, together)) = linear {
        return Some(Passed {
            block,
            norm,
            before,
            together,
            centre: 1.0,
            spread: Upper::ZERO,
            active: false,
        });
    }
    let mut passed = passed?;
    match &node.op {
        // The product of centre and factor is rounded; the spread takes up the difference.
        Op::Scale { factor } => {
            passed.spread = passed.spread * abs(*factor) + rounding(passed.centre, *factor);
            passed.centre *= factor;
        }
        Op::Activation { function, scale } if !passed.active => {
            let (centre, spread) = pointwise::slopes(*function, element);
            let factor = passed.centre * scale;
            // Only scales went before, so their slope is a single number, up to rounding.
            let off = rounding(passed.centre, *scale) + passed.spread * abs(*scale);
            passed.spread = abs(factor) * spread
                + off * pointwise::slope(*function, element)
                + rounding(factor, centre);
            (passed.centre, passed.active) = (factor * centre, true);
        }
        Op::Flatten => {}
        _ => return None,
    }
    Some(passed)
}

/// Not below the rounding error of the product a b.
fn rounding(a: f64, b: f64) -> Upper {
    abs(a * b) * Upper::from_f64(f64::EPSILON) + Upper::from_f64(f64::MIN_POSITIVE)
}
