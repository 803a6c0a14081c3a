//! A network as an ONNX file, of standard operators alone: what other programs run, and what this
//! one reads again.
//!
//! The numbers of examples and of tokens stay open. Weights are f32; others are rounded to it.

mod attention;
mod writer;

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use lipschitz_nn::graph::{Convolution, Function, Graph, Input, Node, Op, Pooling, Shape, join};
use lipschitz_nn::{Error, Model};

use writer::{Ints, Writer};

/// The largest file, in bytes: longer ones cannot be read as one message.
const LARGEST: usize = (1 << 31) - (1 << 20);

/// A network as the bytes of an ONNX file, opset 17.
///
/// # Errors
/// [`Error::Input`] if it is larger than 2 GB; [`Error::Candle`] if a weight cannot be read.
pub fn onnx(model: &Model) -> Result<Vec<u8>, Error> {
    let too_large =
        || Error::Input("has more than 2 GB of numbers, which one ONNX file cannot hold".into());
    if model.parameter_count().saturating_mul(4) > LARGEST {
        return Err(too_large());
    }
    let graph = model.graph();
    let held = |x: f64| x == 0.0 || (x as f32).is_normal();
    if let Some((path, x)) = graph.constants().into_iter().find(|(_, x)| !held(*x)) {
        let what = format!("has the number {x:e}, which the file's f32 does not hold");
        return Err(Error::graph(&path, what));
    }
    let (input, open) = match graph.input() {
        Input::Tokens { .. } => ("tokens", vec!["batch".into(), "tokens".into()]),
        Input::Pixels { channels, height, width } => {
            let sizes = [channels, height, width].map(|n| n.to_string());
            ("pixels", [&["batch".to_string()][..], &sizes].concat())
        }
        Input::Vector { dim } => ("vectors", vec!["batch".into(), dim.to_string()]),
    };
    let zeros = match graph.input() {
        Input::Tokens { zero_prefix, .. } => zero_prefix as i64,
        _ => 0,
    };
    let mut export = Export {
        model,
        out: Writer::default(),
        length: None,
        hidden: BTreeMap::new(),
        distance: None,
        documents: None,
        rotations: Vec::new(),
        // Of an image, as many as attention finds: it says so itself.
        most: graph.context().map_or(0, |context| context + zeros as usize),
    };
    if let Input::Tokens { separator: Some(separator), .. } = graph.input() {
        export.documents = Some(export.documents(separator)?);
    }
    let start = match graph.input() {
        Input::Tokens { .. } => Place { shape: Shape::Ids, tokens: None },
        Input::Pixels { channels, height, width } => {
            Place { shape: Shape::Image(channels, height, width), tokens: None }
        }
        Input::Vector { dim } => Place { shape: Shape::Vector(dim), tokens: None },
    };
    let (first, rest) = graph.nodes().split_at(usize::from(zeros > 0).min(graph.nodes().len()));
    let (mut x, mut place) = export.sequence(first, "", input.to_string(), start)?;
    if zeros > 0 {
        let pads = export.out.ints(&[0, zeros, 0, 0, 0, 0]);
        x = export.out.node("Pad", &[&x, &pads], &[]);
    }
    (x, place) = export.sequence(rest, "", x, place)?;
    if zeros > 0 && matches!(place.shape, Shape::Tokens(_)) {
        x = export.out.slice(&x, 1, zeros, i64::MAX);
    }
    let context = graph.context();
    let bytes = export.out.finish((input, &open, context.is_some()), &x, &sizes(graph), context);
    if bytes.len() > LARGEST { Err(too_large()) } else { Ok(bytes) }
}

/// The sizes of the output, as they are written: a number, or a name for what is open.
fn sizes(graph: &Graph) -> Vec<String> {
    let of = |sizes: &[usize]| -> Vec<String> {
        std::iter::once("batch".to_string()).chain(sizes.iter().map(usize::to_string)).collect()
    };
    match graph.output() {
        Shape::Tokens(d) => {
            let tokens = if graph.context().is_some() { "tokens" } else { "places" };
            vec!["batch".into(), tokens.into(), d.to_string()]
        }
        Shape::Vector(d) => of(&[d]),
        Shape::Image(c, h, w) => of(&[c, h, w]),
        Shape::Ids => vec!["batch".into(), "tokens".into()],
    }
}

/// What a value is: its shape, and how many tokens there are where that is fixed.
#[derive(Clone, Copy)]
struct Place {
    shape: Shape,
    tokens: Option<usize>,
}

struct Export<'a> {
    model: &'a Model,
    out: Writer,
    /// The name of the number of tokens, a list of one.
    length: Option<String>,
    /// The names of which keys are hidden, by what hides them: whether they are ahead, and a window.
    hidden: BTreeMap<(bool, Option<usize>), String>,
    /// The place of each key less that of each query.
    distance: Option<String>,
    /// Which keys are in another document than a query.
    documents: Option<String>,
    /// The names of cosines and sines, by frequencies and by how many places there are.
    rotations: Vec<(Vec<f64>, usize, (String, String))>,
    /// The most tokens, or other places, that attention reads.
    most: usize,
}

impl Export<'_> {
    fn sequence(
        &mut self,
        nodes: &[Node],
        prefix: &str,
        mut x: String,
        mut place: Place,
    ) -> Result<(String, Place), Error> {
        for node in nodes {
            (x, place) = self.node(&node.op, &join(prefix, &node.name), x, place)?;
        }
        Ok((x, place))
    }

    /// A weight, as f32, in this shape; of a matrix perhaps the transpose.
    fn weight(
        &mut self,
        path: &str,
        end: &str,
        shape: &[usize],
        turned: bool,
    ) -> Result<String, Error> {
        let name = join(path, end);
        let missing = || Error::weight(&name, "is missing");
        let tensor = self.model.weights().get(&name).ok_or_else(missing)?;
        let own = tensor.to_device(&Device::Cpu)?;
        let tensor = own.to_dtype(DType::F32)?;
        let all = tensor.flatten_all()?.to_vec1::<f32>()?;
        // Numbers of f64 that are all too small would be 0 there.
        let lost = own.dtype() == DType::F64 && {
            let own = own.flatten_all()?.to_vec1::<f64>()?;
            let most = own.iter().fold(0.0_f64, |most, x| most.max(x.abs()));
            most != 0.0 && most < f64::from(f32::MIN_POSITIVE)
        };
        if lost || !all.iter().all(|x| x.is_finite()) {
            return Err(Error::weight(
                &name,
                "has elements that f32, the type of the file, does not hold",
            ));
        }
        let tensor = if turned { tensor.t()?.contiguous()? } else { tensor };
        Ok(self.out.tensor(&name, &tensor.reshape(shape)?)?)
    }

    /// `W x + b`
    fn linear(
        &mut self,
        path: &str,
        x: &str,
        [inputs, outputs]: [usize; 2],
        bias: bool,
        flat: bool,
    ) -> Result<String, Error> {
        if flat {
            let w = self.weight(path, "weight", &[outputs, inputs], false)?;
            let mut reads = vec![x.to_string(), w];
            if bias {
                reads.push(self.weight(path, "bias", &[outputs], false)?);
            }
            let reads: Vec<&str> = reads.iter().map(String::as_str).collect();
            return Ok(self.out.node("Gemm", &reads, &[("transB", Ints::One(1))]));
        }
        let w = self.weight(path, "weight", &[inputs, outputs], true)?;
        let y = self.out.node("MatMul", &[x, &w], &[]);
        Ok(if bias {
            let b = self.weight(path, "bias", &[outputs], false)?;
            self.out.node("Add", &[&y, &b], &[])
        } else {
            y
        })
    }

    fn scaled(&mut self, x: String, factor: f64) -> String {
        if factor == 1.0 {
            return x;
        }
        let factor = self.out.number(factor);
        self.out.node("Mul", &[&x, &factor], &[])
    }

    fn node(
        &mut self,
        op: &Op,
        path: &str,
        x: String,
        place: Place,
    ) -> Result<(String, Place), Error> {
        let Place { shape, tokens } = place;
        let flat = matches!(shape, Shape::Vector(_));
        let of = |shape: Shape| Place { shape, tokens };
        let vector = |dim: usize| Place { shape: Shape::Vector(dim), tokens: None };
        let width = match shape {
            Shape::Tokens(d) | Shape::Vector(d) => d,
            _ => 0,
        };
        let image = |op: &Op| match shape {
            Shape::Image(c, h, w) => {
                Op::image([c, h, w], op).map_or(place, |[c, h, w]| of(Shape::Image(c, h, w)))
            }
            _ => place,
        };
        Ok(match op {
            Op::Sequential { body } => self.sequence(body, path, x, place)?,
            Op::Parallel { branches } => {
                let (mut all, mut out, mut most) = (Vec::new(), place, self.most);
                // A branch may have other numbers of tokens, which the next one has not.
                let known =
                    (self.length.clone(), self.distance.clone(), self.hidden.clone(), self.most);
                for branch in branches {
                    let (y, to) =
                        self.sequence(std::slice::from_ref(branch), path, x.clone(), place)?;
                    all.push(y);
                    (out, most) = (to, most.max(self.most));
                    (self.length, self.distance, self.hidden, self.most) = known.clone();
                }
                if out.tokens != place.tokens || adds_tokens(branches) {
                    (self.length, self.distance, self.most) = (None, None, most);
                    self.hidden.clear();
                }
                let all: Vec<&str> = all.iter().map(String::as_str).collect();
                (self.out.node("Sum", &all, &[]), out)
            }
            Op::Residual { skip, branch, body } => {
                let (y, _) = self.sequence(body, path, x.clone(), place)?;
                let (x, y) = (self.scaled(x, *skip), self.scaled(y, *branch));
                (self.out.node("Add", &[&x, &y], &[]), place)
            }
            Op::Linear { inputs, outputs, bias } => {
                let y = self.linear(path, &x, [*inputs, *outputs], *bias, flat)?;
                let shape = if flat { Shape::Vector(*outputs) } else { Shape::Tokens(*outputs) };
                (y, of(shape))
            }
            Op::Embedding { vocabulary, dim } => {
                let table = self.weight(path, "weight", &[*vocabulary, *dim], false)?;
                (self.out.node("Gather", &[&table, &x], &[]), of(Shape::Tokens(*dim)))
            }
            Op::Positions { length, dim } => {
                let table = self.weight(path, "weight", &[*length, *dim], false)?;
                let rows = match tokens {
                    Some(tokens) => self.out.slice(&table, 0, 0, tokens as i64),
                    None => {
                        let count = self.count(&x);
                        self.out.first(&table, 0, &count)
                    }
                };
                (self.out.node("Add", &[&x, &rows], &[]), place)
            }
            Op::Activation { function, scale } => {
                let y = self.function(*function, x);
                (self.scaled(y, *scale), place)
            }
            Op::Scale { factor } => {
                let factor = self.out.number(*factor);
                (self.out.node("Mul", &[&x, &factor], &[]), place)
            }
            Op::SoftCap { cap } => {
                let y = self.scaled(x, cap.recip());
                let y = self.out.node("Tanh", &[&y], &[]);
                (self.scaled(y, *cap), place)
            }
            Op::Clip { limit } => {
                let (low, high) = (self.out.number(-limit), self.out.number(*limit));
                (self.out.node("Clip", &[&x, &low, &high], &[]), place)
            }
            Op::Attention(a) => {
                if let Some(tokens) = tokens {
                    self.most = tokens;
                }
                (self.attention(a, path, &x)?, place)
            }
            Op::OffsetAttention { inputs, head_dim, offsets } => {
                let y = self.offsets(path, &x, *inputs, *head_dim, offsets)?;
                (y, of(Shape::Tokens(head_dim * offsets.len())))
            }
            Op::Conv(c) => (self.convolution(path, x, c, shape)?, image(op)),
            Op::Shift { offsets, circular } => (self.shift(&x, offsets, *circular, shape), place),
            Op::SpaceToDepth { size } => {
                let Shape::Image(c, h, w) = shape else { return Ok((x, place)) };
                let y = self.squares(&x, [c, h, w], *size, [0, 1, 3, 5, 2, 4]);
                let to = [0, c * size * size, h / size, w / size];
                (self.out.reshape(&y, &to.map(|n| n as i64)), image(op))
            }
            Op::Patches { size } => {
                let Shape::Image(c, h, w) = shape else { return Ok((x, place)) };
                let y = self.squares(&x, [c, h, w], *size, [0, 2, 4, 1, 3, 5]);
                let (count, dim) = (h / size * (w / size), c * size * size);
                let y = self.out.reshape(&y, &[0, count as i64, dim as i64]);
                (y, Place { shape: Shape::Tokens(dim), tokens: Some(count) })
            }
            Op::Pool(pool) => {
                let (n, s, p) = (pool.window as i64, pool.stride as i64, pool.padding as i64);
                let options = [
                    ("kernel_shape", Ints::Many(vec![n, n])),
                    ("strides", Ints::Many(vec![s, s])),
                    ("pads", Ints::Many(vec![p; 4])),
                ];
                let counted = [&options[..], &[("count_include_pad", Ints::One(1))]].concat();
                let y = match pool.pooling {
                    Pooling::Max => self.out.node("MaxPool", &[&x], &options),
                    Pooling::Average => self.out.node("AveragePool", &[&x], &counted),
                    Pooling::L2 => {
                        let y = self.out.node("Mul", &[&x, &x], &[]);
                        let y = self.out.node("AveragePool", &[&y], &counted);
                        let y = self.scaled(y, (n * n) as f64);
                        self.out.node("Sqrt", &[&y], &[])
                    }
                };
                (y, image(op))
            }
            Op::GlobalPool { pooling } => {
                let Shape::Image(c, ..) = shape else { return Ok((x, place)) };
                let y = match pooling {
                    Pooling::Max => self.out.node("GlobalMaxPool", &[&x], &[]),
                    Pooling::Average => self.out.node("GlobalAveragePool", &[&x], &[]),
                    Pooling::L2 => {
                        self.out.node("ReduceL2", &[&x], &[("axes", Ints::Many(vec![2, 3]))])
                    }
                };
                (self.out.node("Flatten", &[&y], &[]), vector(c))
            }
            Op::MaxMin => {
                let axis = if matches!(shape, Shape::Image(..)) { 1 } else { -1 };
                let halves = self.out.split(&x, axis, 2);
                let halves: Vec<&str> = halves.iter().map(String::as_str).collect();
                let high = self.out.node("Max", &halves, &[]);
                let low = self.out.node("Min", &halves, &[]);
                (self.out.node("Concat", &[&high, &low], &[("axis", Ints::One(axis))]), place)
            }
            Op::RmsNorm { dim, eps, gain } => {
                let y = self.rms(&x, *eps);
                (self.gained(path, y, *dim, *gain, false)?, place)
            }
            Op::LayerNorm { dim, eps, bias, gain } => {
                (self.layer(path, &x, *dim, *eps, *gain, *bias)?, place)
            }
            Op::Normalise { eps } => {
                let options = [("axes", Ints::Many(vec![-1]))];
                let length = self.out.node("ReduceL2", &[&x], &options);
                let least = self.out.number(*eps);
                let length = self.out.node("Max", &[&length, &least], &[]);
                (self.out.node("Div", &[&x, &length], &[]), place)
            }
            Op::GatedMlp { dim, hidden, function, bias } => {
                let inner = [*dim, *hidden];
                let gate = self.linear(&join(path, "gate"), &x, inner, *bias, flat)?;
                let up = self.linear(&join(path, "up"), &x, inner, *bias, flat)?;
                let gate = self.function(*function, gate);
                let y = self.out.node("Mul", &[&gate, &up], &[]);
                (self.linear(&join(path, "down"), &y, [*hidden, *dim], *bias, flat)?, place)
            }
            Op::ClassToken { dim } => {
                let token = self.weight(path, "weight", &[1, 1, *dim], false)?;
                // Another number of tokens from here on.
                (self.length, self.distance) = (None, None);
                self.hidden.clear();
                let sizes = self.out.node("Shape", &[&x], &[]);
                let batch = self.out.slice(&sizes, 0, 0, 1);
                let rest = self.out.ints(&[1, *dim as i64]);
                let sizes = self.out.node("Concat", &[&batch, &rest], &[("axis", Ints::One(0))]);
                let token = self.out.node("Expand", &[&token, &sizes], &[]);
                let y = self.out.node("Concat", &[&token, &x], &[("axis", Ints::One(1))]);
                (y, Place { shape, tokens: tokens.map(|n| n + 1) })
            }
            Op::FirstToken | Op::LastToken => {
                let at = self.out.index(if *op == Op::FirstToken { 0 } else { -1 });
                (self.out.node("Gather", &[&x, &at], &[("axis", Ints::One(1))]), vector(width))
            }
            Op::FirstAndMean => {
                let at = self.out.index(0);
                let first = self.out.node("Gather", &[&x, &at], &[("axis", Ints::One(1))]);
                let rest = self.out.slice(&x, 1, 1, i64::MAX);
                let mean = self.mean(&rest);
                let y = self.out.node("Concat", &[&first, &mean], &[("axis", Ints::One(1))]);
                (y, vector(2 * width))
            }
            Op::Flatten => {
                let dim = match shape {
                    Shape::Image(c, h, w) => c * h * w,
                    _ => width,
                };
                (self.out.node("Flatten", &[&x], &[]), vector(dim))
            }
            Op::MeanPool => (self.mean(&x), vector(width)),
        })
    }

    fn mean(&mut self, x: &str) -> String {
        let options = [("axes", Ints::Many(vec![1])), ("keepdims", Ints::One(0))];
        self.out.node("ReduceMean", &[x], &options)
    }

    /// `x / √(mean x² + ε)` over the last axis.
    fn rms(&mut self, x: &str, eps: f64) -> String {
        let y = self.out.node("Mul", &[x, x], &[]);
        let y = self.out.node("ReduceMean", &[&y], &[("axes", Ints::Many(vec![-1]))]);
        let eps = self.out.number(eps);
        let y = self.out.node("Add", &[&y, &eps], &[]);
        let y = self.out.node("Sqrt", &[&y], &[]);
        self.out.node("Div", &[x, &y], &[])
    }

    fn gained(
        &mut self,
        path: &str,
        y: String,
        dim: usize,
        gain: bool,
        shift: bool,
    ) -> Result<String, Error> {
        let mut y = y;
        if gain {
            let weight = self.weight(path, "weight", &[dim], false)?;
            y = self.out.node("Mul", &[&y, &weight], &[]);
        }
        if shift {
            let bias = self.weight(path, "bias", &[dim], false)?;
            y = self.out.node("Add", &[&y, &bias], &[]);
        }
        Ok(y)
    }

    fn layer(
        &mut self,
        path: &str,
        x: &str,
        dim: usize,
        eps: f64,
        gain: bool,
        shift: bool,
    ) -> Result<String, Error> {
        let gain = match gain {
            true => self.weight(path, "weight", &[dim], false)?,
            false => {
                let ones = Tensor::ones(dim, DType::F32, &Device::Cpu)?;
                self.out.tensor(&join(path, "ones"), &ones)?
            }
        };
        let mut reads = vec![x.to_string(), gain];
        if shift {
            reads.push(self.weight(path, "bias", &[dim], false)?);
        }
        let reads: Vec<&str> = reads.iter().map(String::as_str).collect();
        Ok(self.out.node("LayerNormalization", &reads, &[("epsilon", Ints::Float(eps))]))
    }

    /// φ(x)
    fn function(&mut self, function: Function, x: String) -> String {
        let out = &mut self.out;
        let gated = |out: &mut Writer, gate: String| out.node("Mul", &[&x, &gate], &[]);
        match function {
            Function::Identity => x,
            Function::Relu => out.node("Relu", &[&x], &[]),
            Function::Abs => out.node("Abs", &[&x], &[]),
            Function::Tanh => out.node("Tanh", &[&x], &[]),
            Function::Sigmoid => out.node("Sigmoid", &[&x], &[]),
            Function::Softplus => out.node("Softplus", &[&x], &[]),
            Function::HardSwish => out.node("HardSwish", &[&x], &[]),
            Function::HardSigmoid => {
                out.node("HardSigmoid", &[&x], &[("alpha", Ints::Float(1.0 / 6.0))])
            }
            Function::LeakyRelu { slope } => {
                out.node("LeakyRelu", &[&x], &[("alpha", Ints::Float(slope))])
            }
            Function::Elu { alpha } => out.node("Elu", &[&x], &[("alpha", Ints::Float(alpha))]),
            Function::Relu2 => {
                let y = out.node("Relu", &[&x], &[]);
                out.node("Mul", &[&y, &y], &[])
            }
            Function::Silu => {
                let gate = out.node("Sigmoid", &[&x], &[]);
                gated(out, gate)
            }
            Function::QuickGelu => {
                let factor = out.number(1.702);
                let y = out.node("Mul", &[&x, &factor], &[]);
                let gate = out.node("Sigmoid", &[&y], &[]);
                gated(out, gate)
            }
            Function::Mish => {
                let y = out.node("Softplus", &[&x], &[]);
                let gate = out.node("Tanh", &[&y], &[]);
                gated(out, gate)
            }
            Function::GeluErf | Function::GeluTanh => {
                let bent = if function == Function::GeluErf {
                    let factor = out.number(std::f64::consts::FRAC_1_SQRT_2);
                    let y = out.node("Mul", &[&x, &factor], &[]);
                    out.node("Erf", &[&y], &[])
                } else {
                    let square = out.node("Mul", &[&x, &x], &[]);
                    let cube = out.node("Mul", &[&square, &x], &[]);
                    let small = out.number(0.044715);
                    let cube = out.node("Mul", &[&cube, &small], &[]);
                    let y = out.node("Add", &[&x, &cube], &[]);
                    let root = out.number((2.0 / std::f64::consts::PI).sqrt());
                    let y = out.node("Mul", &[&y, &root], &[]);
                    out.node("Tanh", &[&y], &[])
                };
                let one = out.number(1.0);
                let gate = out.node("Add", &[&bent, &one], &[]);
                let y = gated(out, gate);
                let half = out.number(0.5);
                out.node("Mul", &[&y, &half], &[])
            }
        }
    }

    /// An image cut into squares, with its axes in this order.
    fn squares(&mut self, x: &str, [c, h, w]: [usize; 3], size: usize, order: [i64; 6]) -> String {
        let cut = [0, c, h / size, size, w / size, size].map(|n| n as i64);
        let y = self.out.reshape(x, &cut);
        self.out.node("Transpose", &[&y], &[("perm", Ints::Many(order.to_vec()))])
    }

    fn convolution(
        &mut self,
        path: &str,
        mut x: String,
        c: &Convolution,
        shape: Shape,
    ) -> Result<String, Error> {
        let mut padding = c.padding as i64;
        if c.circular
            && padding > 0
            && let Shape::Image(_, h, w) = shape
        {
            for (axis, n) in [(2, h as i64), (3, w as i64)] {
                let places: Vec<i64> = (-padding..n + padding).map(|i| i.rem_euclid(n)).collect();
                let places = self.out.ints(&places);
                x = self.out.node("Gather", &[&x, &places], &[("axis", Ints::One(axis))]);
            }
            padding = 0;
        }
        let kernel = [c.outputs, c.inputs / c.groups.max(1), c.kernel, c.kernel];
        let mut reads = vec![x, self.weight(path, "weight", &kernel, false)?];
        if c.bias {
            reads.push(self.weight(path, "bias", &[c.outputs], false)?);
        }
        let reads: Vec<&str> = reads.iter().map(String::as_str).collect();
        let options = [
            ("kernel_shape", Ints::Many(vec![c.kernel as i64; 2])),
            ("strides", Ints::Many(vec![c.stride as i64; 2])),
            ("pads", Ints::Many(vec![padding; 4])),
            ("group", Ints::One(c.groups as i64)),
        ];
        Ok(self.out.node("Conv", &reads, &options))
    }

    fn shift(&mut self, x: &str, offsets: &[[i32; 2]], circular: bool, shape: Shape) -> String {
        let Shape::Image(_, h, w) = shape else { return x.to_string() };
        let groups = self.out.split(x, 1, offsets.len());
        let mut moved = Vec::new();
        for (mut group, by) in groups.into_iter().zip(offsets) {
            for (axis, n, by) in [(2usize, h as i64, by[0]), (3, w as i64, by[1])] {
                let by = i64::from(by);
                if circular {
                    let places: Vec<i64> = (0..n).map(|i| (i - by).rem_euclid(n)).collect();
                    let places = self.out.ints(&places);
                    let options = [("axis", Ints::One(axis as i64))];
                    group = self.out.node("Gather", &[&group, &places], &options);
                } else if by != 0 {
                    // Zeros on one side, and as many pixels less on the other.
                    let by = by.clamp(-n, n);
                    let mut pads = [0i64; 8];
                    (pads[axis], pads[axis + 4]) = (by.max(0), (-by).max(0));
                    let pads = self.out.ints(&pads);
                    let wide = self.out.node("Pad", &[&group, &pads], &[]);
                    let from = (-by).max(0);
                    group = self.out.slice(&wide, axis as i64, from, from + n);
                }
            }
            moved.push(group);
        }
        let moved: Vec<&str> = moved.iter().map(String::as_str).collect();
        self.out.node("Concat", &moved, &[("axis", Ints::One(1))])
    }
}

/// Whether nodes put a token in front of the others.
fn adds_tokens(nodes: &[Node]) -> bool {
    nodes.iter().any(|node| match &node.op {
        Op::ClassToken { .. } => true,
        op => op.body().is_some_and(adds_tokens),
    })
}
