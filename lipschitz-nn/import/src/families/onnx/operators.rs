//! What each operator of a file computes, as nodes and views of them. An operator, an option of one
//! or a shape that is not known here is refused.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::DType;
use lipschitz_nn::graph::{Function, Pooling};

use super::Refused;
use super::array::{self, Array, Kind};
use super::attributes::Attributes;
use super::elementwise::apart;
use super::expr::{Expr, Phi};
use super::net::{Form, Net, Op};
use super::sizes::{Decision, Draws, Test};
use super::view::{Base, View, product};
use crate::expression::TensorExpr;
use crate::formats::files::Files;
use crate::formats::onnx as file;

/// What a name in the file stands for.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    /// Elements of a tensor of the file, or of what a node makes.
    View(View),
    /// Numbers that are known.
    Array(Array),
    /// A number for each token.
    Statistic(Statistic),
    /// Where a value is above a number.
    Above(View, f64),
    /// The larger, or the smaller, of the halves of what a node makes.
    Half(View, bool),
}

impl Value {
    /// How many numbers it keeps in memory.
    pub(super) fn numbers(&self) -> usize {
        match self {
            Self::Array(array) => array.data.len(),
            _ => 0,
        }
    }
}

/// What is taken of the last axis of a tensor.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Statistic {
    /// The tensor.
    pub of: View,
    /// The node that makes it.
    pub node: usize,
    pub what: Measure,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Measure {
    Mean,
    /// The mean of the squares, and what was added.
    Square(f64),
    /// Its root.
    Root(f64),
    /// One over its root.
    Inverse(f64),
    /// The ℓ2 norm, at least this.
    Length(f64),
}

/// The operator at hand.
#[derive(Clone, Copy)]
pub(super) struct Here<'a> {
    pub node: &'a file::Node,
}

impl Here<'_> {
    pub(super) fn name(&self) -> &str {
        let first = self.node.output.first().map_or("", String::as_str);
        if self.node.name.is_empty() { first } else { &self.node.name }
    }

    pub(super) fn refuse<T>(&self, what: impl std::fmt::Display) -> Result<T, Refused> {
        Err(format!("{self} {what}").into())
    }
}

impl std::fmt::Display for Here<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "node `{}` ({})", self.name(), self.node.op_type)
    }
}

/// A tensor of the file.
pub(super) struct Weight {
    pub name: String,
    pub shape: Vec<usize>,
    pub kind: Option<Kind>,
}

/// The reading of a graph.
pub(super) struct Reader<'a> {
    pub files: &'a Files,
    pub weights: Vec<Weight>,
    pub opset: i64,
    pub values: BTreeMap<String, Value>,
    pub net: Net,
    /// Tensors whose numbers were computed with.
    pub taken: BTreeSet<String>,
    /// Names that operators have made.
    pub made: BTreeSet<String>,
    /// How many more numbers may be computed.
    pub budget: usize,
    /// How many numbers the constants have that operators made and that are still there.
    pub kept: usize,
    /// Where each tensor of the file is among them.
    pub numbers: BTreeMap<String, usize>,
    /// How often each name is still read.
    pub left: BTreeMap<String, usize>,
    /// The type that the network computes in.
    pub computes: DType,
    /// What is drawn for all readings of the file.
    pub draws: Draws,
    /// What operators that may decide by sizes have read.
    pub decisions: Vec<Decision>,
    /// How many numbers those hold.
    pub looked_at: usize,
    /// Whether the file puts logits under a soft cap before it masks them.
    pub capped_first: bool,
    /// Whether the file passes large numbers through where the network has a softplus.
    pub passes_large: bool,
}

pub(super) type Out = Result<Value, Refused>;

/// The most numbers that constants have at a time: a few masks of 2048 tokens.
const MAX_CONSTANTS: usize = 1 << 24;

/// The most numbers that operators decide by, in one reading of a file.
const MAX_LOOKED_AT: usize = 1 << 20;

impl<'a> Reader<'a> {
    /// Reads one operator.
    pub(super) fn read(&mut self, node: &file::Node) -> Result<(), Refused> {
        let here = Here { node };
        if !(node.domain.is_empty() || node.domain == "ai.onnx") {
            return here.refuse(format!("is an operator of `{}`, not a standard one", node.domain));
        }
        let input = |name: &String| match self.values.get(name) {
            _ if name.is_empty() => Ok(None),
            Some(value) => Ok(Some(value.clone())),
            None => here.refuse(format!("reads `{name}`, which nothing before it makes")),
        };
        let inputs = node.input.iter().map(input).collect::<Result<Vec<_>, _>>()?;
        let mut attributes = Attributes::new(here)?;
        let outputs = self.operator(here, &inputs, &mut attributes)?;
        attributes.finish()?;
        let mut outputs = outputs.into_iter();
        for name in &node.output {
            let output = outputs.next();
            if name.is_empty() {
                continue;
            }
            let Some(output) = output else {
                // Such as the mask of a dropout: whoever reads it is refused.
                continue;
            };
            if self.made.contains(name) || self.values.contains_key(name) {
                return here.refuse(format!("makes `{name}`, which is there already"));
            }
            self.made.insert(name.clone());
            self.kept += output.numbers();
            self.values.insert(name.clone(), output);
        }
        // What nobody reads any more takes no memory.
        for name in &node.input {
            if let Some(left) = self.left.get_mut(name) {
                *left = left.saturating_sub(1);
                if *left == 0 {
                    let gone = self.values.remove(name).map_or(0, |value| value.numbers());
                    self.kept = self.kept.saturating_sub(gone);
                }
            }
        }
        if self.kept > MAX_CONSTANTS {
            return here.refuse("and those before it keep too many constants");
        }
        if self.looked_at > MAX_LOOKED_AT {
            return here.refuse("and those before it decide by too many numbers");
        }
        Ok(())
    }

    pub(super) fn operator(
        &mut self,
        here: Here<'_>,
        inputs: &[Option<Value>],
        attributes: &mut Attributes<'_>,
    ) -> Result<Vec<Value>, Refused> {
        let at = |i: usize| inputs.get(i).and_then(Option::as_ref);
        let need = |i: usize| match at(i) {
            Some(value) => Ok(value),
            None => here.refuse(format!("lacks its input {i}")),
        };
        let most = |n: usize| match inputs.len() > n {
            true => here.refuse(format!("has {} inputs, of which {n} are known", inputs.len())),
            false => Ok(()),
        };
        let known = |function: Function| Phi::Known(function);
        let name = here.node.op_type.as_str();
        let one = match name {
            "Identity" => need(0)?.clone(),
            "Dropout" => {
                attributes.float("ratio", 0.5)?;
                attributes.int("seed", 0)?;
                attributes.int("is_test", 1)?;
                if let Some(training) = at(2)
                    && self.array(here, training)?.one() != Some(0.0)
                {
                    return here.refuse("is in training mode; export the model after eval()");
                }
                need(0)?.clone()
            }
            "Constant" => self.constant(here, attributes)?,
            "ConstantOfShape" => {
                let shape = self.sizes(here, need(0)?)?;
                let made = here.node.output.first().cloned().unwrap_or_default();
                let fill = match self.numbers.get(&made).copied() {
                    Some(weight) => self.number_of(here, weight)?,
                    None => Array::scalar(Kind::Float(DType::F32), 0.0),
                };
                let fill = Array::scalar(fill.kind, fill.one().unwrap_or(0.0));
                attributes.passed("value");
                self.array_value(here, fill.expand(&shape))?
            }
            "Shape" | "Size" if matches!(need(0)?, Value::Statistic(_)) => {
                return here.refuse("asks for the shape of a mean or a norm");
            }
            "Shape" => {
                let shape = self.shape(need(0)?);
                let rank = shape.len() as i64;
                let from = attributes.int("start", 0)?;
                let to = attributes.int("end", rank)?;
                let (from, to) = (array::bound(from, shape.len()), array::bound(to, shape.len()));
                Value::Array(Array::ints(shape.get(from..to).unwrap_or_default()))
            }
            "Size" => {
                let n = product(&self.shape(need(0)?));
                Value::Array(Array::scalar(Kind::Int, n as f64))
            }
            "Reshape" => {
                let zero = attributes.flag("allowzero", false)?;
                let x = need(0)?.clone();
                let shape = self.new_shape(here, &x, need(1)?, zero)?;
                self.moved(here, &x, |view| view.reshape(&shape))?
            }
            "Flatten" => {
                let x = need(0)?.clone();
                let shape = self.shape(&x);
                let from = attributes.int("axis", 1)?;
                let from = if from < 0 { from + shape.len() as i64 } else { from };
                let from = usize::try_from(from).unwrap_or(usize::MAX);
                let Some((a, b)) = shape.split_at_checked(from) else {
                    return here.refuse("flattens axes that are not there");
                };
                let shape = [product(a), product(b)];
                self.moved(here, &x, |view| view.reshape(&shape))?
            }
            "Transpose" => {
                let x = need(0)?.clone();
                let rank = self.shape(&x).len();
                let order: Vec<usize> = match attributes.ints("perm")? {
                    Some(order) => {
                        order.iter().map(|i| usize::try_from(*i).unwrap_or(usize::MAX)).collect()
                    }
                    None => (0..rank).rev().collect(),
                };
                self.moved(here, &x, |view| view.transpose(&order))?
            }
            "Unsqueeze" | "Squeeze" => {
                let x = need(0)?.clone();
                let axes = match (attributes.ints("axes")?, at(1)) {
                    (Some(axes), None) if self.opset < 13 => Some(axes),
                    (None, Some(axes)) if self.opset >= 13 => Some(self.whole(here, axes)?),
                    (None, None) => None,
                    _ => return here.refuse("says its axes as another version of it does"),
                };
                self.squeeze(here, &x, axes, name == "Unsqueeze")?
            }
            "Expand" => {
                let x = need(0)?.clone();
                let shape = self.sizes(here, need(1)?)?;
                if let Value::Statistic(s) = &x
                    && array::broadcast(&self.shape(&x), &shape) == Some(s.of.shape())
                {
                    return Ok(vec![x]);
                }
                self.moved(here, &x, |view| view.expand(&shape))?
            }
            "Slice" => self.slice(here, inputs, attributes)?,
            "Gather" => {
                let axis = attributes.int("axis", 0)?;
                self.gather(here, need(0)?, need(1)?, axis)?
            }
            "Split" => return self.split(here, inputs, attributes),
            "Concat" => {
                let Some(axis) = attributes.whole("axis")? else {
                    return here.refuse("does not say its axis");
                };
                let all = inputs.iter().flatten().cloned().collect::<Vec<_>>();
                self.concat(here, &all, axis)?
            }
            "Range" => {
                let numbers = (0..3).map(|i| Ok(self.array(here, need(i)?)?.one()));
                let numbers = numbers.collect::<Result<Vec<_>, Refused>>()?;
                let [Some(from), Some(to), Some(step)] = numbers[..] else {
                    return here.refuse("has no numbers as its ends");
                };
                let ends = [from, to].map(|x| Array::scalar(Kind::REAL, x));
                self.decided(here, Test::Side, &ends[1], &ends[0]);
                self.fixed_by(here, &Array::scalar(Kind::REAL, step));
                let count = ((to - from) / step).ceil().max(0.0);
                if !count.is_finite() || count > array::LARGEST as f64 {
                    return here.refuse("has too many numbers");
                }
                let data: Vec<f64> = (0..count as usize).map(|i| from + i as f64 * step).collect();
                let kind = self.array(here, need(0)?)?.kind;
                self.array_value(here, Array::new(vec![data.len()], kind, data))?
            }
            "Cast" => {
                let to = attributes.int("to", 0)? as i32;
                attributes.int("saturate", 1)?;
                self.cast(here, need(0)?, to)?
            }
            "CastLike" => {
                let (x, like) = (need(0)?.clone(), need(1)?.clone());
                // A type is known of the input and of what is computed from it alone.
                match (self.node_of(&x), self.node_of(&like)) {
                    (Some(a), Some(b))
                        if matches!(self.net.form(a)?, Form::Ids(_))
                            == matches!(self.net.form(b)?, Form::Ids(_)) =>
                    {
                        x
                    }
                    (None, Some(b)) if !matches!(self.net.form(b)?, Form::Ids(_)) => {
                        let array = self.array(here, &x)?;
                        Value::Array(array.map(Kind::Float(self.computes), |x| x))
                    }
                    _ => return here.refuse("takes the type of what is not the input"),
                }
            }
            "Where" => self.choose(here, need(0)?, need(1)?, need(2)?)?,
            "IsNaN" => match self.node_of(need(0)?) {
                // Each query sees itself, so no sum of a softmax is empty.
                Some(node) if self.net.node(node)?.op == Op::Softmax => {
                    Value::Array(Array::scalar(Kind::Bool, 0.0))
                }
                _ => {
                    let x = self.array(here, need(0)?)?;
                    Value::Array(x.map(Kind::Bool, |x| f64::from(x.is_nan())))
                }
            },
            "Trilu" => {
                let x = self.array(here, need(0)?)?;
                let k = match at(1) {
                    Some(k) => {
                        let k = self.array(here, k)?;
                        self.fixed_by(here, &k);
                        k.whole().and_then(|k| k.first().copied()).unwrap_or(0)
                    }
                    None => 0,
                };
                let upper = attributes.flag("upper", true)?;
                let [.., rows, columns] = x.shape[..] else {
                    return here.refuse("is of no matrix");
                };
                let keep = |i: usize| {
                    let (row, column) = ((i / columns) % rows, i % columns);
                    let ahead = column as i64 - row as i64;
                    if upper { ahead >= k } else { ahead <= k }
                };
                let data = x.data.iter().enumerate();
                let data = data.map(|(i, v)| if keep(i) { *v } else { 0.0 }).collect();
                self.array_value(here, Array::new(x.shape.clone(), x.kind, data))?
            }
            "CumSum" => {
                let x = self.array(here, need(0)?)?;
                let [along] = self.whole(here, need(1)?)?[..] else {
                    return here.refuse("has no one axis");
                };
                for option in ["exclusive", "reverse"] {
                    if attributes.flag(option, false)? {
                        return here.refuse(format!("has the option {option}, which is not read"));
                    }
                }
                let Some(along) = array::axis(along, x.shape.len()) else {
                    return here.refuse("has an axis that is not there");
                };
                let inner = product(x.shape.get(along + 1..).unwrap_or_default());
                let Some(size) = x.shape.get(along).copied() else {
                    return here.refuse("has an axis that is not there");
                };
                let mut data = x.data.to_vec();
                for i in 0..data.len() {
                    if !(i / inner).is_multiple_of(size) {
                        data[i] += data[i - inner];
                    }
                }
                let sums = Array::new(x.shape.clone(), x.kind, data);
                self.whole_value(here, sums)?
            }
            "Greater" if self.node_of(need(0)?).is_some() => {
                let (view, _) = self.data(here, need(0)?)?;
                Value::Above(view, self.scalar(here, need(1)?)?)
            }
            "GatherElements" => {
                let (x, index) = (self.array(here, need(0)?)?, self.array(here, need(1)?)?);
                self.fixed_by(here, &index);
                let axis = attributes.int("axis", 0)?;
                self.array_value(here, x.pick(&index, axis))?
            }
            "GatherND" => {
                if attributes.int("batch_dims", 0)? != 0 {
                    return here.refuse("takes elements of each example, which is not read");
                }
                let (x, index) = (self.array(here, need(0)?)?, self.array(here, need(1)?)?);
                self.fixed_by(here, &index);
                self.array_value(here, x.look_up(&index))?
            }
            "And" | "Or" | "Xor" | "Equal" | "Greater" | "GreaterOrEqual" | "Less"
            | "LessOrEqual" => {
                let (a, b) = (self.array(here, need(0)?)?, self.array(here, need(1)?)?);
                // Rounding in the type of the file may decide, of large numbers as of fractions.
                let exact =
                    |x: &f64| x.is_infinite() || x.fract() == 0.0 && x.abs() <= 16_777_216.0;
                let infinite = |x: &f64| x.abs() >= -super::attention::UNSEEN;
                if a.data.iter().chain(b.data.iter()).any(|x| !exact(x) && !infinite(x)) {
                    return here.refuse("compares numbers that are not whole");
                }
                let test = match name {
                    "Equal" => Some(Test::Zero),
                    "Greater" | "LessOrEqual" => Some(Test::Above),
                    "Less" | "GreaterOrEqual" => Some(Test::Below),
                    // Of truths, which are decided already.
                    _ => None,
                };
                if let Some(test) = test {
                    self.decided(here, test, &a, &b);
                }
                let f: fn(f64, f64) -> bool = match name {
                    "And" => |a, b| a != 0.0 && b != 0.0,
                    "Or" => |a, b| a != 0.0 || b != 0.0,
                    "Xor" => |a, b| (a != 0.0) != (b != 0.0),
                    "Equal" => |a, b| a == b,
                    "Greater" => |a, b| a > b,
                    "GreaterOrEqual" => |a, b| a >= b,
                    "Less" => |a, b| a < b,
                    _ => |a, b| a <= b,
                };
                self.array_value(here, a.zip(&b, Kind::Bool, |a, b| f64::from(f(a, b))))?
            }
            "Not" => {
                let x = self.array(here, need(0)?)?;
                Value::Array(x.map(Kind::Bool, |x| f64::from(x == 0.0)))
            }
            "Mod" => {
                if attributes.flag("fmod", false)? {
                    return here.refuse("has the sign of its first operand, which is not read");
                }
                let (a, b) = (self.array(here, need(0)?)?, self.array(here, need(1)?)?);
                self.fixed_by(here, &a);
                self.fixed_by(here, &b);
                if b.data.contains(&0.0) || a.kind != Kind::Int {
                    return here.refuse("divides by zero, or is of no whole numbers");
                }
                self.array_value(here, a.zip(&b, Kind::Int, |a, b| a - b * (a / b).floor()))?
            }
            "Add" | "Sub" | "Mul" | "Div" => {
                let (a, b) = (need(0)?.clone(), need(1)?.clone());
                self.binary(here, name, &a, &b)?
            }
            "Sum" => {
                let mut sum = need(0)?.clone();
                for term in inputs.iter().skip(1).flatten() {
                    sum = self.binary(here, "Add", &sum, term)?;
                }
                sum
            }
            "Pow" => self.power(here, need(0)?, need(1)?)?,
            "Max" | "Min" => {
                most(2)?;
                let (a, b) = (need(0)?.clone(), need(1)?.clone());
                if !self.is_known(&a) && !self.is_known(&b) {
                    return Ok(vec![self.half(here, &a, &b, name == "Max")?]);
                }
                let (x, bound) = if self.is_known(&a) { (b, a) } else { (a, b) };
                if self.is_known(&x) {
                    let (a, b) = (self.array(here, &x)?, self.array(here, &bound)?);
                    self.decided(here, Test::Side, &a, &b);
                    let f = if name == "Max" { f64::max } else { f64::min };
                    return Ok(vec![self.array_value(here, a.zip(&b, a.kind, f))?]);
                }
                if self.shape(&bound).len() > self.shape(&x).len() {
                    return here.refuse("has a bound of more axes than its input");
                }
                let bound = self.scalar(here, &bound)?;
                let (low, high) = match name {
                    "Max" => (bound, f64::INFINITY),
                    _ => (f64::NEG_INFINITY, bound),
                };
                self.clipped(here, &x, low, high)?
            }
            "Clip" => {
                let given = ["min", "max"].map(|key| attributes.number(key));
                let [low, high] = given;
                let (mut low, mut high) = (low?, high?);
                if self.opset >= 11 {
                    if low.is_some() || high.is_some() {
                        return here.refuse("says its bounds as another version of it does");
                    }
                    low = at(1).map(|v| self.scalar(here, v)).transpose()?;
                    high = at(2).map(|v| self.scalar(here, v)).transpose()?;
                }
                let (low, high) = (low.unwrap_or(f64::NEG_INFINITY), high.unwrap_or(f64::INFINITY));
                self.clipped(here, need(0)?, low, high)?
            }
            "Sqrt" | "Reciprocal" | "Neg" | "Exp" | "Floor" | "Ceil" => {
                self.unary(here, need(0)?, name)?
            }
            "Abs" => self.function(here, need(0)?, known(Function::Abs))?,
            "Relu" => self.function(here, need(0)?, known(Function::Relu))?,
            "LeakyRelu" => {
                let slope = attributes.float("alpha", 0.01)?;
                self.function(here, need(0)?, known(Function::LeakyRelu { slope }))?
            }
            "PRelu" => {
                let slope = self.array(here, need(1)?)?;
                let Some(first) = slope.data.first().copied() else {
                    return here.refuse("has no slope");
                };
                if slope.data.iter().any(|x| *x != first) {
                    return here.refuse("has another slope for each channel, which is not read");
                }
                self.function(here, need(0)?, known(Function::LeakyRelu { slope: first }))?
            }
            "Elu" => {
                let alpha = attributes.float("alpha", 1.0)?;
                self.function(here, need(0)?, known(Function::Elu { alpha }))?
            }
            "Sigmoid" => self.function(here, need(0)?, known(Function::Sigmoid))?,
            "Tanh" => self.function(here, need(0)?, known(Function::Tanh))?,
            "Softplus" => self.function(here, need(0)?, known(Function::Softplus))?,
            "Mish" => self.function(here, need(0)?, known(Function::Mish))?,
            "HardSwish" => self.function(here, need(0)?, known(Function::HardSwish))?,
            "Erf" => self.function(here, need(0)?, Phi::Erf)?,
            "Swish" => {
                let k = attributes.float("alpha", 1.0)?;
                let gate = Expr::linear(0.0, k).apply(known(Function::Sigmoid));
                let expr = Expr::x().times(&gate);
                self.map(here, need(0)?, expr)?
            }
            "HardSigmoid" => {
                let (a, b) = (attributes.float("alpha", 0.2)?, attributes.float("beta", 0.5)?);
                let expr = Expr::linear(b, a).apply(Phi::Clip(0.0, 1.0));
                self.map(here, need(0)?, Some(expr))?
            }
            "Gelu" => {
                let function = match attributes.text("approximate")?.as_deref() {
                    None | Some("none") => Function::GeluErf,
                    Some("tanh") => Function::GeluTanh,
                    Some(other) => return here.refuse(format!("is of the kind `{other}`")),
                };
                self.function(here, need(0)?, known(function))?
            }
            "Gemm" => self.gemm(here, inputs, attributes)?,
            "MatMul" => {
                let (a, b) = (need(0)?.clone(), need(1)?.clone());
                self.product(here, &a, &b)?
            }
            "Conv" => self.convolution(here, inputs, attributes)?,
            "BatchNormalization" => {
                most(5)?;
                self.batch_norm(here, inputs, attributes)?
            }
            "LayerNormalization" | "RMSNormalization" => {
                self.norm(here, inputs, attributes, name == "LayerNormalization")?
            }
            "MaxPool" | "AveragePool" => {
                self.pool(here, need(0)?, attributes, name == "MaxPool")?
            }
            "GlobalAveragePool" | "GlobalMaxPool" => {
                let pooling = if name == "GlobalMaxPool" { Pooling::Max } else { Pooling::Average };
                self.global_pool(here, need(0)?, pooling, true)?
            }
            "ReduceMean" | "ReduceL2" | "ReduceMax" | "ReduceMin" | "ReduceProd" | "ReduceSum" => {
                self.reduce(here, inputs, attributes)?
            }
            "Softmax" => {
                let rank = self.shape(need(0)?).len() as i64;
                let axis = attributes.int("axis", if self.opset < 13 { 1 } else { -1 })?;
                if array::axis(axis, rank as usize) != array::axis(-1, rank as usize) {
                    return here.refuse("is not over the last axis");
                }
                self.softmax(here, need(0)?)?
            }
            "Attention" => self.attention(here, inputs, attributes)?,
            "Pad" => {
                let pads = match (attributes.ints("pads")?, at(1)) {
                    (Some(pads), None) => pads,
                    (None, Some(pads)) => self.whole(here, pads)?,
                    _ => return here.refuse("does not say what it adds"),
                };
                attributes.text("mode")?;
                attributes.number("value")?;
                if pads.iter().any(|n| *n != 0) {
                    return here.refuse("adds a border; a convolution can have one itself");
                }
                need(0)?.clone()
            }
            _ => return here.refuse("is an operator that is not read"),
        };
        Ok(vec![one])
    }

    // What a value is.

    pub(super) fn shape(&self, value: &Value) -> Vec<usize> {
        match value {
            Value::View(view) | Value::Above(view, _) | Value::Half(view, _) => view.shape(),
            Value::Array(array) => array.shape.clone(),
            Value::Statistic(s) => {
                let mut shape = s.of.shape();
                if let Some(last) = shape.last_mut() {
                    *last = 1;
                }
                shape
            }
        }
    }

    /// Whether its numbers do not depend on the input.
    pub(super) fn is_known(&self, value: &Value) -> bool {
        match value {
            Value::View(view) => matches!(view.base, Base::Weight(_)),
            Value::Array(_) => true,
            Value::Statistic(_) | Value::Above(..) | Value::Half(..) => false,
        }
    }

    pub(super) fn node_of(&self, value: &Value) -> Option<usize> {
        match value {
            Value::View(View { base: Base::Node(node), .. }) => Some(*node),
            _ => None,
        }
    }

    pub(super) fn data(&self, here: Here<'_>, value: &Value) -> Result<(View, usize), Refused> {
        match value {
            Value::View(view) => match view.base {
                Base::Node(node) => Ok((view.clone(), node)),
                Base::Weight(_) => here.refuse("is of weights alone, where an input is wanted"),
            },
            Value::Array(_) => here.refuse("is of constants alone, where an input is wanted"),
            Value::Statistic(_) | Value::Above(..) | Value::Half(..) => {
                here.refuse("is of a mean or a norm in a way that is not known")
            }
        }
    }

    pub(super) fn decide(&mut self, decision: Decision) {
        self.looked_at += decision.looked_at();
        if self.looked_at <= MAX_LOOKED_AT {
            self.decisions.push(decision);
        }
    }

    /// Notes an operator that decides by the difference of two arrays.
    pub(super) fn decided(&mut self, here: Here<'_>, test: Test, a: &Array, b: &Array) {
        if let Some(difference) = a.zip(b, Kind::REAL, |a, b| if a == b { 0.0 } else { a - b }) {
            self.decide(Decision::new(&self.draws, here, test, &difference));
        }
    }

    /// Notes an operator that decides by numbers.
    pub(super) fn fixed_by(&mut self, here: Here<'_>, array: &Array) {
        self.decide(Decision::new(&self.draws, here, Test::Same, array));
    }

    /// Notes an operator that makes whole numbers, of those that are not whole.
    pub(super) fn whole_by(&mut self, here: Here<'_>, array: &Array) {
        self.fixed_by(here, &array.map(Kind::REAL, |x| x - x.trunc()));
    }

    pub(super) fn number_of(&mut self, here: Here<'_>, weight: usize) -> Result<Array, Refused> {
        let Some(Weight { name, shape, kind }) = self.weights.get(weight) else {
            return here.refuse("reads a tensor that is missing");
        };
        let Some(kind) = *kind else {
            return here.refuse(format!("reads `{name}`, whose type is not read"));
        };
        if product(shape) > array::LARGEST {
            return here.refuse(format!("computes with all of `{name}`, which is too large"));
        }
        let data = self.files.read(name)?.flatten_all()?.to_dtype(DType::F64)?.to_vec1::<f64>()?;
        self.taken.insert(name.clone());
        // Any byte but 0 is true.
        let truth = |x: f64| if kind == Kind::Bool { f64::from(x != 0.0) } else { x };
        let array = Array::new(shape.clone(), kind, data.into_iter().map(truth).collect());
        array.ok_or_else(|| format!("{here} reads `{name}`, which is damaged").into())
    }

    /// The numbers of a value.
    pub(super) fn array(&mut self, here: Here<'_>, value: &Value) -> Result<Array, Refused> {
        let whole = |array: Array| match array.data.iter().any(|x| x.is_nan()) {
            true => here.refuse("computes with what is not a number"),
            false => Ok(array),
        };
        match value {
            Value::Array(array) => whole(array.clone()),
            Value::View(view) => match view.base {
                Base::Weight(weight) => {
                    let all = self.number_of(here, weight)?;
                    let array = all.gather(view);
                    let Value::Array(array) = self.array_value(here, array)? else {
                        return here.refuse("has no numbers");
                    };
                    whole(array)
                }
                Base::Node(_) => here.refuse("depends on the input in a way that is not known"),
            },
            Value::Statistic(_) | Value::Above(..) | Value::Half(..) => {
                here.refuse("depends on the input in a way that is not known")
            }
        }
    }

    /// The same tensor of the file as one of another type, which has all of its numbers.
    fn as_kind(&mut self, view: View, kind: Kind) -> View {
        let Base::Weight(number) = view.base else { return view };
        let Some(Weight { name, shape, .. }) = self.weights.get(number) else { return view };
        let (name, shape, kind) = (name.clone(), shape.clone(), Some(kind));
        let there = self.weights.iter().position(|w| w.name == name && w.kind == kind);
        let number = there.unwrap_or(self.weights.len());
        if there.is_none() {
            self.weights.push(Weight { name, shape, kind });
        }
        View { base: Base::Weight(number), ..view }
    }

    /// Takes a computed array whose whole numbers fit any type.
    pub(super) fn whole_value(&mut self, here: Here<'_>, array: Option<Array>) -> Out {
        let least = f64::from(i32::MAX);
        let large = |a: &Array| !a.kind.is_float() && a.data.iter().any(|x| x.abs() > least);
        if array.as_ref().is_some_and(large) {
            return here.refuse("computes whole numbers that may not fit their type");
        }
        self.array_value(here, array)
    }

    /// Takes a computed array, and counts its numbers.
    pub(super) fn array_value(&mut self, here: Here<'_>, array: Option<Array>) -> Out {
        let Some(array) = array else {
            return here.refuse("computes with shapes that do not fit, or are too large");
        };
        let Some(left) = self.budget.checked_sub(array.data.len()) else {
            return here.refuse("and those before it compute with too many constants");
        };
        self.budget = left;
        Ok(Value::Array(array))
    }

    pub(super) fn whole(&mut self, here: Here<'_>, value: &Value) -> Result<Vec<i64>, Refused> {
        match self.array(here, value)?.whole() {
            Some(numbers) => Ok(numbers),
            None => here.refuse("wants whole numbers"),
        }
    }

    pub(super) fn sizes(&mut self, here: Here<'_>, value: &Value) -> Result<Vec<usize>, Refused> {
        let numbers = self.whole(here, value)?;
        let sizes = numbers.iter().map(|n| usize::try_from(*n).ok()).collect::<Option<Vec<_>>>();
        match sizes.filter(|sizes| product(sizes) <= 1 << 40) {
            Some(sizes) => Ok(sizes),
            None => here.refuse(format!("wants the shape {numbers:?}")),
        }
    }

    pub(super) fn scalar(&mut self, here: Here<'_>, value: &Value) -> Result<f64, Refused> {
        match self.array(here, value)?.one() {
            Some(x) => Ok(x),
            None => here.refuse("wants a single number"),
        }
    }

    /// The number that a known value is everywhere, if it is one.
    pub(super) fn uniform(
        &mut self,
        here: Here<'_>,
        value: &Value,
    ) -> Result<Option<f64>, Refused> {
        let count = product(&self.shape(value));
        // Weights are looked at no further: a gain of ones is a gain.
        if count != 1 && !matches!(value, Value::Array(_)) {
            return Ok(None);
        }
        let array = self.array(here, value)?;
        let first = array.data.first().copied();
        Ok(first.filter(|first| array.data.iter().all(|x| x == first)))
    }

    /// A known value as a weight of this shape.
    pub(super) fn weight(
        &mut self,
        here: Here<'_>,
        value: &Value,
        shape: &[usize],
    ) -> Result<TensorExpr, Refused> {
        if product(shape) != product(&self.shape(value)) {
            return here.refuse(format!(
                "has a weight of shape {:?}, wanted {shape:?}",
                self.shape(value)
            ));
        }
        if let Value::View(view) = value
            && let Base::Weight(number) = view.base
            && let Some(weight) = self.weights.get(number)
        {
            let expr = TensorExpr::new(weight.name.clone(), &weight.shape);
            let all = View::whole(view.base, &weight.shape);
            let flat = view.reshape(&[view.count()]);
            if flat == all.reshape(&[all.count()]) && flat.is_some() {
                return Ok(if weight.shape == shape { expr } else { expr.reshape(shape) });
            }
            // A transposed matrix.
            if let [rows, columns] = *shape
                && let Some(turned) =
                    all.reshape(&[columns, rows]).and_then(|v| v.transpose(&[1, 0]))
                && view.reshape(shape).as_ref() == Some(&turned)
            {
                let expr = match weight.shape == [columns, rows] {
                    true => expr,
                    false => expr.reshape(&[columns, rows]),
                };
                return Ok(expr.transpose());
            }
            // A run of rows.
            let flat = flat.filter(|v| v.axes.iter().flatten().all(|s| s.stride == 1));
            let inner = product(weight.shape.get(1..).unwrap_or_default());
            if let (Some(flat), [_, _, ..] | [_]) = (flat, weight.shape.as_slice())
                && inner > 0
                && flat.offset.is_multiple_of(inner)
                && flat.count().is_multiple_of(inner)
            {
                let expr = expr.rows(flat.offset / inner, flat.count() / inner);
                return Ok(expr.reshape(shape));
            }
        }
        let array = self.array(here, value)?;
        Ok(TensorExpr::numbers(array.data.to_vec(), shape))
    }

    pub(super) fn constant(&mut self, here: Here<'_>, attributes: &mut Attributes<'_>) -> Out {
        let made = here.node.output.first().map_or("", String::as_str);
        attributes.passed("value");
        if let Some(number) = self.numbers.get(made).copied() {
            return self.tensor(here, number);
        }
        if let Some(i) = attributes.whole("value_int")? {
            return Ok(Value::Array(Array::scalar(Kind::Int, i as f64)));
        }
        if let Some(x) = attributes.number("value_float")? {
            return Ok(Value::Array(Array::scalar(Kind::Float(DType::F32), x)));
        }
        if let Some(numbers) = attributes.ints("value_ints")? {
            let data: Vec<f64> = numbers.iter().map(|n| *n as f64).collect();
            return self.array_value(here, Array::new(vec![data.len()], Kind::Int, data));
        }
        if let Some(data) = attributes.floats("value_floats")? {
            return self
                .array_value(here, Array::new(vec![data.len()], Kind::Float(DType::F32), data));
        }
        here.refuse("holds no numbers that are read")
    }

    /// A tensor of the file: floats stay there, whole numbers are read.
    pub(super) fn tensor(&mut self, here: Here<'_>, number: usize) -> Out {
        let Some(weight) = self.weights.get(number) else {
            return here.refuse("reads a tensor that is missing");
        };
        let count = product(&weight.shape);
        if weight.kind.is_some_and(Kind::is_float) && count > 0 && !weight.shape.is_empty() {
            return Ok(Value::View(View::whole(Base::Weight(number), &weight.shape)));
        }
        Ok(Value::Array(self.number_of(here, number)?))
    }

    pub(super) fn cast(&mut self, here: Here<'_>, x: &Value, to: i32) -> Out {
        let Some((dtype, _)) = file::number(to) else {
            return here.refuse(format!("wants the type {to}, which is not read"));
        };
        let kind = match dtype {
            dtype if dtype.is_float() => Kind::Float(dtype),
            _ if to == file::BOOL => Kind::Bool,
            _ => Kind::Int,
        };
        if let Some(node) = self.node_of(x) {
            let ids = matches!(self.net.form(node)?, Form::Ids(_));
            // Of fewer bits, numbers would be rounded, and ids cut.
            return match (ids, kind, dtype.size_in_bytes() >= 4) {
                (true, Kind::Int, true) | (false, Kind::Float(_), true) => Ok(x.clone()),
                (_, Kind::Int | Kind::Float(_), false) => {
                    here.refuse("rounds what depends on the input to fewer bits")
                }
                _ => here.refuse("changes the type of what depends on the input"),
            };
        }
        match (x, kind) {
            (Value::Statistic(_), Kind::Float(_)) => return Ok(x.clone()),
            // A type that has all numbers of the other one.
            (Value::View(view), Kind::Float(_)) => {
                let stored = match view.base {
                    Base::Weight(number) => self.weights.get(number).map(|w| w.name.as_str()),
                    Base::Node(_) => None,
                };
                let stored = stored.and_then(|name| self.files.get(name)?.dtype);
                if stored == Some(dtype) {
                    return Ok(x.clone());
                }
                if stored.is_some_and(|s| s.size_in_bytes() < dtype.size_in_bytes()) {
                    return Ok(Value::View(self.as_kind(view.clone(), kind)));
                }
            }
            _ => {}
        }
        let array = self.array(here, x)?;
        if kind == Kind::Int
            && (dtype.size_in_bytes() < 4 || array.data.iter().any(|x| x.abs() > 2e9))
        {
            return here.refuse("makes whole numbers of fewer bits, which may not fit");
        }
        // In floats, rounding could hide what depends on a size.
        if kind.is_float() && !array.kind.is_float() {
            self.fixed_by(here, &array);
        }
        Ok(Value::Array(match kind {
            Kind::Float(_) => array.map(kind, |x| x),
            Kind::Int => {
                apart(here, &array)?;
                self.whole_by(here, &array);
                array.map(kind, f64::trunc)
            }
            Kind::Bool => {
                self.decided(here, Test::Zero, &array, &Array::scalar(Kind::REAL, 0.0));
                array.map(kind, |x| f64::from(x != 0.0))
            }
        }))
    }

    /// A name for the weights of an operator: that of the module, as far as the file says it.
    pub(super) fn label(&self, here: Here<'_>, value: &Value) -> String {
        let weight = match value {
            Value::View(View { base: Base::Weight(n), .. }) => self.weights.get(*n),
            _ => None,
        };
        let path = here.node.name.trim_start_matches('/');
        let module = |text: &str, separator: char| {
            text.rsplit_once(separator).map(|(module, _)| module.to_string())
        };
        let theirs = weight.filter(|w| !w.name.contains("::")).and_then(|w| module(&w.name, '.'));
        let label = theirs.or_else(|| module(path, '/')).unwrap_or_else(|| path.to_string());
        label.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect()
    }
}
