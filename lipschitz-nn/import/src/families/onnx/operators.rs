//! What each operator of a file computes, as nodes and views of them. An operator, an option of one
//! or a shape that is not known here is refused.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::DType;
use lipschitz_nn::graph::{Convolution, Function, Pool, Pooling};

use super::Refused;
use super::array::{self, Array, Kind};
use super::attributes::Attributes;
use super::expr::{Expr, Phi};
use super::net::{Coefficient, Form, Net, Op};
use super::view::{Base, Step, View, product};
use crate::expression::TensorExpr;
use crate::formats::files::Files;
use crate::formats::onnx as file;

/// What a name in the file stands for.
#[derive(Clone, Debug)]
pub(super) enum Value {
    /// Elements of a tensor of the file, or of what a node makes.
    View(View),
    /// Numbers that are known.
    Array(Array),
    /// A number for each token.
    Statistic(Statistic),
}

/// What is taken of the last axis of a tensor.
#[derive(Clone, Debug)]
pub(super) struct Statistic {
    /// The tensor.
    of: View,
    node: usize,
    what: Measure,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Measure {
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
    /// How many more numbers may be computed.
    pub budget: usize,
}

type Out = Result<Value, Refused>;

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
            if self.values.insert(name.clone(), output).is_some() {
                return here.refuse(format!("makes `{name}`, which is there already"));
            }
        }
        Ok(())
    }

    fn operator(
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
                let fill = match self.weights.iter().position(|w| w.name == made) {
                    Some(weight) => self.number_of(here, weight)?,
                    None => Array::scalar(Kind::Float, 0.0),
                };
                let fill = Array::scalar(fill.kind, fill.one().unwrap_or(0.0));
                attributes.passed("value");
                self.array_value(here, fill.expand(&shape))?
            }
            "Shape" => {
                let shape = self.shape(need(0)?);
                let rank = shape.len() as i64;
                let from = attributes.int("start", 0)?;
                let to = attributes.int("end", rank)?;
                let places = array::places(from, to, 1, shape.len()).unwrap_or_default();
                let sizes: Vec<usize> =
                    places.iter().filter_map(|i| shape.get(*i).copied()).collect();
                Value::Array(Array::ints(&sizes))
            }
            "Size" => {
                let n = product(&self.shape(need(0)?));
                Value::Array(Array::scalar(Kind::Int, n as f64))
            }
            "Reshape" => {
                let zero = attributes.int("allowzero", 0)? != 0;
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
            "CastLike" => need(0)?.clone(),
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
                    Some(k) => self.whole(here, k)?.first().copied().unwrap_or(0),
                    None => 0,
                };
                let upper = attributes.int("upper", 1)? != 0;
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
                let along = self.whole(here, need(1)?)?.first().copied().unwrap_or(0);
                for option in ["exclusive", "reverse"] {
                    if attributes.int(option, 0)? != 0 {
                        return here.refuse(format!("has the option {option}, which is not read"));
                    }
                }
                let Some(along) = array::axis(along, x.shape.len()) else {
                    return here.refuse("has an axis that is not there");
                };
                let inner = product(x.shape.get(along + 1..).unwrap_or_default());
                let size = x.shape.get(along).copied().unwrap_or(1);
                let mut data = x.data.to_vec();
                for i in 0..data.len() {
                    if (i / inner) % size > 0 {
                        data[i] += data[i - inner];
                    }
                }
                self.array_value(here, Array::new(x.shape.clone(), x.kind, data))?
            }
            "And" | "Or" | "Xor" | "Equal" | "Greater" | "GreaterOrEqual" | "Less"
            | "LessOrEqual" => {
                let (a, b) = (self.array(here, need(0)?)?, self.array(here, need(1)?)?);
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
                attributes.int("fmod", 0)?;
                let (a, b) = (self.array(here, need(0)?)?, self.array(here, need(1)?)?);
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
                let (x, bound) = if self.is_known(&a) { (b, a) } else { (a, b) };
                if self.is_known(&x) {
                    let (a, b) = (self.array(here, &x)?, self.array(here, &bound)?);
                    let f = if name == "Max" { f64::max } else { f64::min };
                    return Ok(vec![self.array_value(here, a.zip(&b, a.kind, f))?]);
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
            Value::View(view) => view.shape(),
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
    fn is_known(&self, value: &Value) -> bool {
        match value {
            Value::View(view) => matches!(view.base, Base::Weight(_)),
            Value::Array(_) => true,
            Value::Statistic(_) => false,
        }
    }

    fn node_of(&self, value: &Value) -> Option<usize> {
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
            Value::Statistic(_) => here.refuse("is of a mean or a norm in a way that is not known"),
        }
    }

    fn number_of(&mut self, here: Here<'_>, weight: usize) -> Result<Array, Refused> {
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
        let array = Array::new(shape.clone(), kind, data);
        array.ok_or_else(|| format!("{here} reads `{name}`, which is damaged").into())
    }

    /// The numbers of a value.
    pub(super) fn array(&mut self, here: Here<'_>, value: &Value) -> Result<Array, Refused> {
        match value {
            Value::Array(array) => Ok(array.clone()),
            Value::View(view) => match view.base {
                Base::Weight(weight) => {
                    let all = self.number_of(here, weight)?;
                    let array = all.gather(view);
                    let Value::Array(array) = self.array_value(here, array)? else {
                        return here.refuse("has no numbers");
                    };
                    Ok(array)
                }
                Base::Node(_) => here.refuse("depends on the input in a way that is not known"),
            },
            Value::Statistic(_) => here.refuse("depends on the input in a way that is not known"),
        }
    }

    /// Takes a computed array, and counts its numbers.
    fn array_value(&mut self, here: Here<'_>, array: Option<Array>) -> Out {
        let Some(array) = array else {
            return here.refuse("computes with shapes that do not fit, or are too large");
        };
        let Some(left) = self.budget.checked_sub(array.data.len()) else {
            return here.refuse("and those before it compute with too many constants");
        };
        self.budget = left;
        Ok(Value::Array(array))
    }

    fn whole(&mut self, here: Here<'_>, value: &Value) -> Result<Vec<i64>, Refused> {
        match self.array(here, value)?.whole() {
            Some(numbers) => Ok(numbers),
            None => here.refuse("wants whole numbers"),
        }
    }

    fn sizes(&mut self, here: Here<'_>, value: &Value) -> Result<Vec<usize>, Refused> {
        let numbers = self.whole(here, value)?;
        let sizes = numbers.iter().map(|n| usize::try_from(*n).ok()).collect::<Option<Vec<_>>>();
        match sizes.filter(|sizes| product(sizes) <= 1 << 40) {
            Some(sizes) => Ok(sizes),
            None => here.refuse(format!("wants the shape {numbers:?}")),
        }
    }

    fn scalar(&mut self, here: Here<'_>, value: &Value) -> Result<f64, Refused> {
        match self.array(here, value)?.one() {
            Some(x) => Ok(x),
            None => here.refuse("wants a single number"),
        }
    }

    /// The number that a known value is everywhere, if it is one.
    fn uniform(&mut self, here: Here<'_>, value: &Value) -> Result<Option<f64>, Refused> {
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
    fn weight(
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

    // Moves of elements.

    fn moved(
        &mut self,
        here: Here<'_>,
        value: &Value,
        by: impl FnOnce(View) -> Option<View>,
    ) -> Out {
        match value {
            Value::View(view) => match by(view.clone()) {
                Some(view) => Ok(Value::View(view)),
                None if matches!(view.base, Base::Weight(_)) => {
                    here.refuse("moves a weight in a way that is not known")
                }
                None => here.refuse("moves elements in a way that is not known"),
            },
            Value::Array(array) => {
                let moved = array.moved(by);
                self.array_value(here, moved)
            }
            Value::Statistic(_) => here.refuse("moves a mean or a norm, which is not known"),
        }
    }

    fn new_shape(
        &mut self,
        here: Here<'_>,
        x: &Value,
        shape: &Value,
        zero: bool,
    ) -> Result<Vec<usize>, Refused> {
        let old = self.shape(x);
        let wanted = self.whole(here, shape)?;
        let mut new = Vec::new();
        let mut open = None;
        for (i, n) in wanted.iter().enumerate() {
            new.push(match n {
                0 if !zero => match old.get(i) {
                    Some(n) => *n,
                    None => return here.refuse("copies a size that is not there"),
                },
                -1 if open.is_none() => {
                    open = Some(i);
                    1
                }
                n => match usize::try_from(*n) {
                    Ok(n) => n,
                    Err(_) => return here.refuse(format!("wants the shape {wanted:?}")),
                },
            });
        }
        if let Some(open) = open {
            let rest = product(&new);
            if rest == 0 || !product(&old).is_multiple_of(rest) {
                return here.refuse(format!("wants the shape {wanted:?} of {old:?}"));
            }
            new[open] = product(&old) / rest;
        }
        Ok(new)
    }

    fn squeeze(&mut self, here: Here<'_>, x: &Value, axes: Option<Vec<i64>>, more: bool) -> Out {
        let shape = self.shape(x);
        let rank = match (&axes, more) {
            (Some(axes), true) => shape.len() + axes.len(),
            (None, true) => return here.refuse("does not say its axes"),
            _ => shape.len(),
        };
        let mut places: Vec<usize> = match axes {
            Some(axes) => {
                let places: Option<Vec<usize>> =
                    axes.iter().map(|a| array::axis(*a, rank)).collect();
                match places {
                    Some(places) => places,
                    None => return here.refuse("has an axis that is not there"),
                }
            }
            None => (0..rank).filter(|i| shape.get(*i) == Some(&1)).collect(),
        };
        places.sort_unstable();
        match more {
            true => self.moved(here, x, |view| view.unsqueeze(&places)),
            false => self.moved(here, x, |view| view.squeeze(&places)),
        }
    }

    fn slice(
        &mut self,
        here: Here<'_>,
        inputs: &[Option<Value>],
        attributes: &mut Attributes<'_>,
    ) -> Out {
        let Some(Some(mut x)) = inputs.first().cloned() else {
            return here.refuse("lacks its input");
        };
        let rank = self.shape(&x).len();
        let mut numbers = |i: usize, key: &str, reader: &mut Self| match inputs.get(i) {
            Some(Some(value)) => reader.whole(here, value).map(Some),
            _ => attributes.ints(key),
        };
        let from = numbers(1, "starts", self)?;
        let to = numbers(2, "ends", self)?;
        let axes = numbers(3, "axes", self)?;
        let steps = numbers(4, "steps", self)?;
        let (Some(from), Some(to)) = (from, to) else {
            return here.refuse("does not say what it takes");
        };
        let axes = axes.unwrap_or_else(|| (0..from.len() as i64).collect());
        let steps = steps.unwrap_or_else(|| vec![1; from.len()]);
        if [to.len(), axes.len(), steps.len()] != [from.len(); 3] {
            return here.refuse("has lists of different lengths");
        }
        for (((from, to), axis), step) in from.iter().zip(&to).zip(&axes).zip(&steps) {
            let Some(axis) = array::axis(*axis, rank) else {
                return here.refuse("has an axis that is not there");
            };
            let size = self.shape(&x).get(axis).copied().unwrap_or(1);
            let Some(places) = array::places(*from, *to, *step, size) else {
                return here.refuse("has the step 0");
            };
            x = self.select(here, &x, axis, &places)?;
        }
        Ok(x)
    }

    /// These places of an axis, in order.
    fn select(&mut self, here: Here<'_>, x: &Value, axis: usize, places: &[usize]) -> Out {
        let size = self.shape(x).get(axis).copied().unwrap_or(1);
        if places.len() == size && places.iter().enumerate().all(|(i, p)| i == *p) {
            return Ok(x.clone());
        }
        let first = places.first().copied();
        let run = first.filter(|first| places.iter().enumerate().all(|(i, p)| first + i == *p));
        if let (Value::View(view), Some(from)) = (x, run)
            && let Some(view) = view.slice(axis, from, places.len())
        {
            return Ok(Value::View(view));
        }
        if !self.is_known(x) {
            return here.refuse("takes elements in a way that is not known");
        }
        let selected = self.array(here, x)?.select(axis, places);
        self.array_value(here, selected)
    }

    fn split(
        &mut self,
        here: Here<'_>,
        inputs: &[Option<Value>],
        attributes: &mut Attributes<'_>,
    ) -> Result<Vec<Value>, Refused> {
        let Some(Some(x)) = inputs.first().cloned() else {
            return here.refuse("lacks its input");
        };
        let shape = self.shape(&x);
        let Some(axis) = array::axis(attributes.int("axis", 0)?, shape.len()) else {
            return here.refuse("has an axis that is not there");
        };
        let size = shape.get(axis).copied().unwrap_or(1);
        let count = here.node.output.len();
        attributes.int("num_outputs", count as i64)?;
        let counts: Vec<usize> = match (inputs.get(1), attributes.ints("split")?) {
            (Some(Some(counts)), None) => self.sizes(here, counts)?,
            (_, Some(counts)) => {
                counts.iter().map(|n| usize::try_from(*n).unwrap_or(usize::MAX)).collect()
            }
            _ => {
                let each = size.div_ceil(count.max(1));
                (0..count).map(|i| each.min(size.saturating_sub(i * each))).collect()
            }
        };
        if counts.iter().fold(0usize, |n, c| n.saturating_add(*c)) != size || counts.len() != count
        {
            return here.refuse("has parts that do not fit");
        }
        let mut from = 0;
        let mut out = Vec::new();
        for count in counts {
            let places: Vec<usize> = (from..from + count).collect();
            out.push(self.select(here, &x, axis, &places)?);
            from += count;
        }
        Ok(out)
    }

    fn gather(&mut self, here: Here<'_>, x: &Value, index: &Value, axis: i64) -> Out {
        let shape = self.shape(x);
        let Some(axis) = array::axis(axis, shape.len()) else {
            return here.refuse("has an axis that is not there");
        };
        if let (true, Some(node)) = (self.is_known(x), self.node_of(index)) {
            return self.embedding(here, x, index, node, axis);
        }
        let index = self.array(here, index)?;
        let size = shape.get(axis).copied().unwrap_or(1) as i64;
        let numbers = index.whole().unwrap_or_default();
        let places = numbers.iter().map(|i| if *i < 0 { i + size } else { *i });
        let places = places.map(|i| usize::try_from(i).ok().filter(|i| (*i as i64) < size));
        let Some(places) = places.collect::<Option<Vec<usize>>>().filter(|p| !p.is_empty()) else {
            return here.refuse("takes an element that is not there");
        };
        let first = places.first().copied().unwrap_or(0);
        let mut new = shape;
        new.splice(axis..axis + 1, index.shape.iter().copied());
        if let (Value::View(view), true) = (x, places.iter().all(|p| *p == first)) {
            // One row, as often as it is wanted.
            let mut wide = vec![1; index.shape.len()];
            let row = view.slice(axis, first, 1).and_then(|v| {
                let mut sizes = v.shape();
                sizes.splice(axis..axis + 1, wide.drain(..));
                v.reshape(&sizes)?.expand(&new)
            });
            if let Some(row) = row {
                return Ok(Value::View(row));
            }
        }
        let taken = self.select(here, x, axis, &places)?;
        self.moved(here, &taken, |view| view.reshape(&new))
    }

    fn concat(&mut self, here: Here<'_>, parts: &[Value], axis: i64) -> Out {
        let rank = parts.first().map_or(0, |x| self.shape(x).len());
        let Some(axis) = array::axis(axis, rank) else {
            return here.refuse("has an axis that is not there");
        };
        if parts.iter().all(|x| self.is_known(x)) {
            let arrays =
                parts.iter().map(|x| self.array(here, x)).collect::<Result<Vec<_>, _>>()?;
            let kept: Vec<Array> = arrays.iter().filter(|a| !a.data.is_empty()).cloned().collect();
            let joined = Array::concat(if kept.is_empty() { &arrays } else { &kept }, axis);
            return self.array_value(here, joined);
        }
        if let [one] = parts {
            return Ok(one.clone());
        }
        // Learned tokens in front of others.
        let Some((last, tokens)) = parts.split_last() else {
            return here.refuse("has no parts");
        };
        let refused = "puts together what is not learned tokens in front of others";
        if axis != 1 || rank != 3 || !tokens.iter().all(|x| self.is_known(x)) {
            return here.refuse(refused);
        }
        let (view, _) = self.data(here, last)?;
        let view = self.settled(here, view)?;
        let Base::Node(mut node) = view.base else { return here.refuse(refused) };
        if view != self.net.whole(node)? {
            return here.refuse(refused);
        }
        for part in tokens.iter().rev() {
            let shape = self.shape(part);
            let [batch, count, dim] = shape[..] else { return here.refuse(refused) };
            let Form::Tokens(_, width) = self.net.form(node)? else { return here.refuse(refused) };
            if dim != width || ![1, self.net.batch].contains(&batch) {
                return here.refuse(refused);
            }
            for i in (0..count).rev() {
                // The same for every example.
                let mut rows = Vec::new();
                for b in 0..batch {
                    let row = self.select(here, part, 1, &[i])?;
                    let row = self.select(here, &row, 0, &[b])?;
                    rows.push(self.weight(here, &row, &[dim])?);
                }
                let Some(weight) = rows.pop().filter(|w| rows.iter().all(|r| r == w)) else {
                    return here.refuse("has another token for each example");
                };
                let Form::Tokens(length, _) = self.net.form(node)? else {
                    return here.refuse(refused);
                };
                let form = Form::Tokens(length + 1, dim);
                let op = Op::ClassToken { weight, dim };
                let label = self.label(here, part);
                node = self.net.add(form, op, vec![node], [&label, &here.to_string()])?;
            }
        }
        Ok(Value::View(self.net.whole(node)?))
    }

    fn constant(&mut self, here: Here<'_>, attributes: &mut Attributes<'_>) -> Out {
        let made = here.node.output.first().map_or("", String::as_str);
        attributes.passed("value");
        if let Some(number) = self.weights.iter().position(|w| w.name == made) {
            return self.tensor(here, number);
        }
        if let Some(i) = attributes.whole("value_int")? {
            return Ok(Value::Array(Array::scalar(Kind::Int, i as f64)));
        }
        if let Some(x) = attributes.number("value_float")? {
            return Ok(Value::Array(Array::scalar(Kind::Float, x)));
        }
        if let Some(numbers) = attributes.ints("value_ints")? {
            let data: Vec<f64> = numbers.iter().map(|n| *n as f64).collect();
            return self.array_value(here, Array::new(vec![data.len()], Kind::Int, data));
        }
        if let Some(data) = attributes.floats("value_floats")? {
            return self.array_value(here, Array::new(vec![data.len()], Kind::Float, data));
        }
        here.refuse("holds no numbers that are read")
    }

    /// A tensor of the file: floats stay there, whole numbers are read.
    pub(super) fn tensor(&mut self, here: Here<'_>, number: usize) -> Out {
        let Some(weight) = self.weights.get(number) else {
            return here.refuse("reads a tensor that is missing");
        };
        let count = product(&weight.shape);
        if weight.kind == Some(Kind::Float) && count > 0 && !(weight.shape.is_empty()) {
            return Ok(Value::View(View::whole(Base::Weight(number), &weight.shape)));
        }
        Ok(Value::Array(self.number_of(here, number)?))
    }

    fn cast(&mut self, here: Here<'_>, x: &Value, to: i32) -> Out {
        let kind = match file::number(to) {
            Some((dtype, _)) if dtype.is_float() => Kind::Float,
            Some(_) if to == file::BOOL => Kind::Bool,
            Some(_) => Kind::Int,
            None => return here.refuse(format!("wants the type {to}, which is not read")),
        };
        if let Some(node) = self.node_of(x) {
            let ids = matches!(self.net.form(node)?, Form::Ids(_));
            return match (ids, kind) {
                (true, Kind::Int) | (false, Kind::Float) => Ok(x.clone()),
                _ => here.refuse("changes the type of what depends on the input"),
            };
        }
        if let (Value::View(_) | Value::Statistic(_), Kind::Float) = (x, kind) {
            return Ok(x.clone());
        }
        let array = self.array(here, x)?;
        Ok(Value::Array(match kind {
            Kind::Float => array.map(kind, |x| x),
            Kind::Int => array.map(kind, f64::trunc),
            Kind::Bool => array.map(kind, |x| f64::from(x != 0.0)),
        }))
    }

    fn choose(&mut self, here: Here<'_>, which: &Value, yes: &Value, no: &Value) -> Out {
        let which = self.array(here, which)?;
        if self.is_known(yes) && self.is_known(no) {
            let (yes, no) = (self.array(here, yes)?, self.array(here, no)?);
            let Some(shape) = array::broadcast(&yes.shape, &no.shape)
                .and_then(|shape| array::broadcast(&shape, &which.shape))
            else {
                return here.refuse("has shapes that do not fit");
            };
            let all = [which.expand(&shape), yes.expand(&shape), no.expand(&shape)];
            let [Some(which), Some(yes), Some(no)] = all else {
                return here.refuse("has shapes that do not fit");
            };
            let pairs = yes.data.iter().zip(no.data.iter()).zip(which.data.iter());
            let data = pairs.map(|((y, n), w)| if *w != 0.0 { *y } else { *n }).collect();
            return self.array_value(here, Array::new(shape, yes.kind, data));
        }
        let fits = |reader: &Self, chosen: &Value, other: &Value| {
            let shape = reader.shape(chosen);
            array::broadcast(&shape, &which.shape).as_ref() == Some(&shape)
                && array::broadcast(&shape, &reader.shape(other)).as_ref() == Some(&shape)
        };
        for (value, chosen, other) in [(true, yes, no), (false, no, yes)] {
            if which.data.iter().all(|w| (*w != 0.0) == value) && fits(self, chosen, other) {
                return Ok(chosen.clone());
            }
        }
        // A mask, where one of them is lower than any logit.
        for (data, low, hidden) in [(yes, no, false), (no, yes, true)] {
            if self.is_known(low) && !self.is_known(data) {
                let low = self.scalar(here, low)?;
                let mask = which.map(Kind::Float, |w| if (w != 0.0) == hidden { low } else { 0.0 });
                return self.masked(here, data, &mask);
            }
        }
        here.refuse("chooses between values that depend on the input")
    }

    // Elementwise functions.

    /// A function of each element.
    fn function(&mut self, here: Here<'_>, x: &Value, phi: Phi) -> Out {
        if self.is_known(x) {
            let f: fn(f64) -> f64 = match phi {
                Phi::Known(Function::Abs) => f64::abs,
                Phi::Known(Function::Relu) => |x| x.max(0.0),
                Phi::Known(Function::Tanh) => f64::tanh,
                _ => return here.refuse("is of constants alone"),
            };
            let array = self.array(here, x)?;
            return Ok(Value::Array(array.map(array.kind, f)));
        }
        self.map(here, x, Some(Expr::x().apply(phi)))
    }

    pub(super) fn map(&mut self, here: Here<'_>, x: &Value, expr: Option<Expr>) -> Out {
        let (view, node) = self.data(here, x)?;
        let Some(expr) = expr else {
            return here.refuse("is part of a function that is not known");
        };
        if matches!(self.net.form(node)?, Form::Ids(_)) {
            return here.refuse("computes with token ids");
        }
        Ok(Value::View(self.mapped(here, &view, node, expr)?))
    }

    fn mapped(
        &mut self,
        here: Here<'_>,
        view: &View,
        node: usize,
        expr: Expr,
    ) -> Result<View, Refused> {
        let (mut node, mut expr) = (node, expr);
        // Two linear functions are one.
        if expr.as_linear().is_some()
            && let Op::Map(inner) = &self.net.node(node)?.op
            && inner.as_linear().is_some()
            && let (Some(both), Some(source)) = (expr.of(inner), self.net.node(node)?.reads.first())
        {
            (node, expr) = (*source, both);
        }
        if expr == Expr::x() {
            return Ok(view.of(node));
        }
        let form = self.net.form(node)?;
        let made = self.net.add(form, Op::Map(expr), vec![node], ["", &here.to_string()])?;
        Ok(view.of(made))
    }

    fn unary(&mut self, here: Here<'_>, x: &Value, name: &str) -> Out {
        if let Value::Statistic(s) = x {
            let what = match (name, s.what) {
                ("Sqrt", Measure::Square(eps)) => Measure::Root(eps),
                ("Reciprocal", Measure::Root(eps)) => Measure::Inverse(eps),
                _ => return here.refuse("is of a mean or a norm in a way that is not known"),
            };
            return Ok(Value::Statistic(Statistic { what, ..s.clone() }));
        }
        if self.is_known(x) {
            let f: fn(f64) -> f64 = match name {
                "Sqrt" => f64::sqrt,
                "Reciprocal" => f64::recip,
                "Neg" => |x| -x,
                "Exp" => f64::exp,
                "Floor" => f64::floor,
                _ => f64::ceil,
            };
            let array = self.array(here, x)?;
            return Ok(Value::Array(array.map(array.kind, f)));
        }
        match name {
            "Neg" => self.map(here, x, Some(Expr::linear(0.0, -1.0))),
            _ => here.refuse("is not part of a layer that is known"),
        }
    }

    fn clipped(&mut self, here: Here<'_>, x: &Value, low: f64, high: f64) -> Out {
        if let Value::Statistic(s) = x {
            return match s.what {
                Measure::Length(least) if high == f64::INFINITY => {
                    let what = Measure::Length(least.max(low));
                    Ok(Value::Statistic(Statistic { what, ..s.clone() }))
                }
                _ => here.refuse("is of a mean or a norm in a way that is not known"),
            };
        }
        if self.is_known(x) {
            let array = self.array(here, x)?;
            return Ok(Value::Array(array.map(array.kind, |x| x.max(low).min(high))));
        }
        if low.is_nan() || high.is_nan() || low > high {
            return here.refuse(format!("clips to [{low}, {high}]"));
        }
        let phi = match (low, high) {
            (0.0, f64::INFINITY) => Phi::Known(Function::Relu),
            _ => Phi::Clip(low, high),
        };
        self.function(here, x, phi)
    }

    fn power(&mut self, here: Here<'_>, x: &Value, exponent: &Value) -> Out {
        let n = self.scalar(here, exponent)?;
        if let Value::Statistic(s) = x {
            let what = match (n, s.what) {
                (0.5, Measure::Square(eps)) => Measure::Root(eps),
                (-0.5, Measure::Square(eps)) => Measure::Inverse(eps),
                (-1.0, Measure::Root(eps)) => Measure::Inverse(eps),
                _ => return here.refuse("is of a mean or a norm in a way that is not known"),
            };
            return Ok(Value::Statistic(Statistic { what, ..s.clone() }));
        }
        if self.is_known(x) {
            let array = self.array(here, x)?;
            return Ok(Value::Array(array.map(array.kind, |x| x.powf(n))));
        }
        if n.fract() != 0.0 || !(1.0..=8.0).contains(&n) {
            return here.refuse(format!("has the exponent {n}"));
        }
        let power = (1..n as usize).try_fold(Expr::x(), |power, _| power.times(&Expr::x()));
        self.map(here, x, power)
    }

    // Two operands.

    pub(super) fn binary(&mut self, here: Here<'_>, op: &str, a: &Value, b: &Value) -> Out {
        match (self.is_known(a), self.is_known(b)) {
            (true, true) => {
                let (a, b) = (self.array(here, a)?, self.array(here, b)?);
                let whole = a.kind == Kind::Int && b.kind == Kind::Int;
                if whole && op == "Div" && b.data.contains(&0.0) {
                    return here.refuse("divides by zero");
                }
                let f: fn(f64, f64) -> f64 = match op {
                    "Add" => |a, b| a + b,
                    "Sub" => |a, b| a - b,
                    "Mul" => |a, b| a * b,
                    _ if whole => |a, b| (a / b).trunc(),
                    _ => |a, b| a / b,
                };
                let kind = if whole { Kind::Int } else { Kind::Float };
                self.array_value(here, a.zip(&b, kind, f))
            }
            (false, true) => self.with_constant(here, op, a, b),
            (true, false) => match op {
                "Add" | "Mul" => self.with_constant(here, op, b, a),
                "Sub" => {
                    let minus = self.binary(
                        here,
                        "Mul",
                        b,
                        &Value::Array(Array::scalar(Kind::Float, -1.0)),
                    )?;
                    self.with_constant(here, "Add", &minus, a)
                }
                _ => match b {
                    Value::Statistic(s) => match s.what {
                        Measure::Root(eps) if self.uniform(here, a)? == Some(1.0) => {
                            let what = Measure::Inverse(eps);
                            Ok(Value::Statistic(Statistic { what, ..s.clone() }))
                        }
                        _ => here.refuse("divides by a mean or a norm in a way that is not known"),
                    },
                    _ => here.refuse("divides by what depends on the input"),
                },
            },
            (false, false) => self.two(here, op, a, b),
        }
    }

    /// Two values that depend on the input.
    fn two(&mut self, here: Here<'_>, op: &str, a: &Value, b: &Value) -> Out {
        let (x, s, turned) = match (a, b) {
            (Value::View(_), Value::View(_)) => return self.both(here, op, a, b),
            (Value::View(x), Value::Statistic(s)) => (x, s, false),
            (Value::Statistic(s), Value::View(x)) => (x, s, true),
            _ => return here.refuse("is of means or norms in a way that is not known"),
        };
        let x = self.settled(here, x.clone())?;
        let Base::Node(node) = x.base else {
            return here.refuse("is of a mean or a norm in a way that is not known");
        };
        let same = node == s.node && x == s.of;
        let form = self.net.form(node)?;
        let source = self.net.node(node)?.reads.first().copied();
        let normed = |eps: f64, reader: &Self| match (&reader.net.node(node)?.op, source) {
            (Op::Centre, Some(source)) => Ok::<_, Refused>((Op::LayerNorm(eps), source)),
            _ => Ok((Op::RmsNorm(eps), node)),
        };
        let (op, reads) = match (op, s.what, turned) {
            ("Sub", Measure::Mean, false) if same => (Op::Centre, node),
            ("Div", Measure::Root(eps), false) if same => normed(eps, self)?,
            ("Mul", Measure::Inverse(eps), _) if same => normed(eps, self)?,
            ("Div", Measure::Length(eps), false) if same => (Op::Normalise(eps), node),
            _ => return here.refuse("is of a mean or a norm in a way that is not known"),
        };
        let made = self.net.add(form, op, vec![reads], ["", &here.to_string()])?;
        Ok(Value::View(x.of(made)))
    }

    /// What a node is of those that it is an elementwise function of, itself first.
    fn chain(&self, node: usize) -> Result<Vec<(usize, Expr)>, Refused> {
        let mut out = vec![(node, Expr::x())];
        let (mut at, mut expr) = (node, Expr::x());
        while let Op::Map(inner) = &self.net.node(at)?.op {
            let (Some(of), Some(source)) = (expr.of(inner), self.net.node(at)?.reads.first())
            else {
                break;
            };
            (at, expr) = (*source, of);
            out.push((at, expr.clone()));
        }
        Ok(out)
    }

    fn both(&mut self, here: Here<'_>, op: &str, a: &Value, b: &Value) -> Out {
        let ((mut x, mut m), (mut y, mut n)) = (self.data(here, a)?, self.data(here, b)?);
        if x.axes != y.axes || self.net.form(m)? != self.net.form(n)? {
            (x, y) = (self.settled(here, x)?, self.settled(here, y)?);
            if let (Base::Node(a), Base::Node(b)) = (x.base, y.base) {
                (m, n) = (a, b);
            }
        }
        let form = self.net.form(m)?;
        if x.axes != y.axes || x.offset != y.offset || form != self.net.form(n)? {
            return here.refuse("is of values that lie in different order");
        }
        if matches!(form, Form::Ids(_) | Form::Scores(..)) {
            return here.refuse("is of values that are no layer's");
        }
        // Functions of one value.
        let (first, second) = (self.chain(m)?, self.chain(n)?);
        let common = first.iter().find_map(|(node, f)| {
            second.iter().find(|(other, _)| other == node).map(|(_, g)| (*node, f, g))
        });
        if let Some((node, f, g)) = common {
            let expr = match op {
                "Add" => f.add(g),
                "Sub" => g.times(&Expr::linear(-1.0, 0.0)).and_then(|g| f.add(&g)),
                "Mul" => f.times(g),
                _ => None,
            };
            let Some(expr) = expr else {
                return here.refuse("is part of a function that is not known");
            };
            return Ok(Value::View(self.mapped(here, &x, node, expr)?));
        }
        let op = match op {
            "Add" => Op::Add,
            "Sub" => {
                let minus = self.mapped(here, &y, n, Expr::linear(0.0, -1.0))?;
                let Base::Node(minus) = minus.base else { return here.refuse("is not known") };
                n = minus;
                Op::Add
            }
            "Mul" => Op::Product,
            _ => return here.refuse("divides by what depends on the input"),
        };
        let made = self.net.add(form, op, vec![m, n], ["", &here.to_string()])?;
        Ok(Value::View(x.of(made)))
    }

    /// What depends on the input, and constants.
    fn with_constant(&mut self, here: Here<'_>, op: &str, x: &Value, c: &Value) -> Out {
        if let Value::Statistic(s) = x {
            let c = self.scalar(here, c)?;
            let what = match (op, s.what) {
                ("Add", Measure::Square(eps)) => Measure::Square(eps + c),
                _ => return here.refuse("is of a mean or a norm in a way that is not known"),
            };
            return Ok(Value::Statistic(Statistic { what, ..s.clone() }));
        }
        let (view, node) = self.data(here, x)?;
        let shape = view.shape();
        if array::broadcast(&shape, &self.shape(c)).map(|s| product(&s)) != Some(view.count()) {
            let constants = self.shape(c);
            return here
                .refuse(format!("repeats its input, {shape:?}, for constants {constants:?}"));
        }
        if let Some(c) = self.uniform(here, c)? {
            let expr = match op {
                "Add" => Expr::linear(c, 1.0),
                "Sub" => Expr::linear(-c, 1.0),
                "Mul" => Expr::linear(0.0, c),
                _ => Expr::linear(0.0, 1.0 / c),
            };
            let shift = op == "Add" || op == "Sub";
            if !c.is_finite() || (op == "Div" && c == 0.0) {
                return here.refuse(format!("has the constant {c}"));
            }
            // One number added to all logits of a query changes no share of them.
            if shift && matches!(self.net.form(node)?, Form::Scores(..)) {
                return Ok(x.clone());
            }
            return self.map(here, x, Some(expr));
        }
        if matches!(self.net.form(node)?, Form::Scores(..)) {
            if op != "Add" {
                return here.refuse("multiplies logits by numbers that differ");
            }
            let mask = self.array(here, c)?;
            return self.masked(here, x, &mask);
        }
        self.channels(here, op, view, c)
    }

    /// Constants for each channel, element or token.
    fn channels(&mut self, here: Here<'_>, op: &str, view: View, c: &Value) -> Out {
        let view = self.settled(here, view)?;
        let Base::Node(node) = view.base else {
            return here.refuse("is of constants alone");
        };
        let shape = self.shape(c);
        // The axes along which the constants differ.
        let missing = view.axes.len().saturating_sub(shape.len());
        let mut steps: Vec<Step> = Vec::new();
        let mut reduced = c.clone();
        for (i, size) in shape.iter().enumerate() {
            // Repeated by the file itself.
            let repeated = match c {
                Value::View(v) => v.axes.get(i).is_some_and(|a| a.iter().all(|s| s.stride == 0)),
                _ => false,
            };
            if repeated && *size > 1 {
                reduced = self.select(here, &reduced, i, &[0])?;
            } else if *size > 1 {
                steps.extend(view.axes.get(i + missing).into_iter().flatten());
            }
        }
        let along = View { base: view.base, offset: 0, axes: vec![steps] };
        let count = product(&self.shape(&reduced));
        let is = |size: usize, stride: usize| {
            let axis = if size == 1 { Vec::new() } else { vec![Step { size, stride }] };
            along.reshape(&[size]).is_some_and(|v| v.axes == [axis]) && count == size
        };
        let form = self.net.form(node)?;
        let (channels, positions) = match form {
            Form::Tokens(t, d) => (is(d, 1).then_some(d), is(t * d, 1).then_some((t, d))),
            Form::Vector(d) => (is(d, 1).then_some(d), None),
            Form::Image(c, h, w) => {
                let all = is(c * h * w, 1).then_some(c * h * w);
                (if is(c, h * w) { Some(c) } else { all }, None)
            }
            _ => (None, None),
        };
        let label = self.label(here, c);
        if let (Some((rows, dim)), None) = (positions, channels) {
            if op != "Add" {
                return here.refuse("has constants for each token that are not added");
            }
            let table = self.weight(here, &reduced, &[rows, dim])?;
            let (table, from, rows) = self.table(&reduced, table, rows, dim);
            let op = Op::Positions { table, rows, from, dim };
            let made = self.net.add(form, op, vec![node], [&label, &here.to_string()])?;
            return Ok(Value::View(view.of(made)));
        }
        let Some(channels) = channels else {
            return here
                .refuse("has constants that are neither one for each channel nor for each token");
        };
        let numbers = |reader: &mut Self, f: fn(f64) -> f64| {
            let array = reader.array(here, &reduced)?.map(Kind::Float, f);
            Ok::<_, Refused>(TensorExpr::numbers(array.data.to_vec(), &[channels]))
        };
        let (scale, shift) = match op {
            "Add" => (None, Some(self.weight(here, &reduced, &[channels])?)),
            "Mul" => (Some(self.weight(here, &reduced, &[channels])?), None),
            "Sub" => (None, Some(self.weight(here, &reduced, &[channels])?.times(-1.0))),
            _ => (Some(numbers(self, f64::recip)?), None),
        };
        let vector = |expr: Option<TensorExpr>, otherwise: f64| match expr {
            Some(expr) => Coefficient::Vector(expr, channels),
            None => Coefficient::Number(otherwise),
        };
        let (scale, shift) = (vector(scale, 1.0), vector(shift, 0.0));
        let made = self.affine(here, node, scale, shift, &label)?;
        Ok(Value::View(view.of(made)))
    }

    /// The table that rows are a run of, as far as it is known.
    fn table(
        &self,
        value: &Value,
        rows: TensorExpr,
        count: usize,
        dim: usize,
    ) -> (TensorExpr, usize, usize) {
        if let Value::View(view) = value
            && let Base::Weight(number) = view.base
            && let Some(weight) = self.weights.get(number)
            && let [length, width] = weight.shape[..]
            && width == dim
            && view.offset.is_multiple_of(dim)
            && !rows.computes()
        {
            let expr = TensorExpr::new(weight.name.clone(), &weight.shape);
            return (expr, view.offset / dim, length);
        }
        (rows, 0, count)
    }

    /// `scale ∘ x + shift`, in the map before it if there is one.
    pub(super) fn affine(
        &mut self,
        here: Here<'_>,
        node: usize,
        scale: Coefficient,
        shift: Coefficient,
        label: &str,
    ) -> Result<usize, Refused> {
        let before = self.net.node(node)?.clone();
        let fits = |n: usize| {
            [&scale, &shift].iter().all(|c| match c {
                Coefficient::Number(_) => true,
                Coefficient::Vector(_, m) => *m == n,
            })
        };
        let of = here.to_string();
        match &before.op {
            Op::Linear { weight, bias, inputs, outputs } if fits(*outputs) => {
                let bias = shift.onto(bias.clone().map(|b| scale.rows(b)), *outputs);
                let weight = scale.rows(weight.clone());
                let op = Op::Linear { weight, bias, inputs: *inputs, outputs: *outputs };
                self.net.add(before.form, op, before.reads, [&before.name, &of])
            }
            Op::Conv { shape, weight, bias } if fits(shape.outputs) => {
                let bias = shift.onto(bias.clone().map(|b| scale.rows(b)), shape.outputs);
                let op = Op::Conv { shape: *shape, weight: scale.rows(weight.clone()), bias };
                self.net.add(before.form, op, before.reads, [&before.name, &of])
            }
            _ => self.net.add(before.form, Op::Affine { scale, shift }, vec![node], [label, &of]),
        }
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

    // Maps.

    fn gemm(
        &mut self,
        here: Here<'_>,
        inputs: &[Option<Value>],
        attributes: &mut Attributes<'_>,
    ) -> Out {
        let (alpha, beta) = (attributes.float("alpha", 1.0)?, attributes.float("beta", 1.0)?);
        let (turned_a, turned_b) = (attributes.int("transA", 0)?, attributes.int("transB", 0)?);
        let (Some(Some(x)), Some(Some(w))) = (inputs.first(), inputs.get(1)) else {
            return here.refuse("lacks an input");
        };
        let (mut x, mut w) = (x.clone(), w.clone());
        if turned_a != 0 {
            x = self.moved(here, &x, |view| view.transpose(&[1, 0]))?;
        }
        if turned_b != 0 {
            w = self.moved(here, &w, |view| view.transpose(&[1, 0]))?;
        }
        let mut y = self.product(here, &x, &w)?;
        if alpha != 1.0 {
            y = self.binary(here, "Mul", &y, &Value::Array(Array::scalar(Kind::Float, alpha)))?;
        }
        match inputs.get(2) {
            Some(Some(bias)) => {
                let mut bias = bias.clone();
                if beta != 1.0 {
                    let factor = Value::Array(Array::scalar(Kind::Float, beta));
                    bias = self.binary(here, "Mul", &bias, &factor)?;
                }
                self.binary(here, "Add", &y, &bias)
            }
            _ => Ok(y),
        }
    }

    fn product(&mut self, here: Here<'_>, a: &Value, b: &Value) -> Out {
        match (self.is_known(a), self.is_known(b)) {
            (true, true) => here.refuse("multiplies constants"),
            (true, false) => here.refuse("has a constant on its left"),
            (false, false) => self.heads(here, a, b),
            (false, true) => {
                let shape = self.shape(b);
                let Some([inputs, outputs]) = shape.last_chunk::<2>().copied() else {
                    return here.refuse("has no matrix on its right");
                };
                if product(&shape) != inputs * outputs {
                    return here.refuse("has another matrix for each example");
                }
                let turned = self
                    .moved(here, b, |view| view.reshape(&[inputs, outputs])?.transpose(&[1, 0]))?;
                let weight = self.weight(here, &turned, &[outputs, inputs])?;
                let label = self.label(here, b);
                let (view, _) = self.data(here, a)?;
                self.linear(here, view, weight, [inputs, outputs], &label)
            }
        }
    }

    fn linear(
        &mut self,
        here: Here<'_>,
        view: View,
        weight: TensorExpr,
        [inputs, outputs]: [usize; 2],
        label: &str,
    ) -> Out {
        let (view, node, dim) = self.last(here, view)?;
        if dim != inputs {
            return here.refuse(format!("maps {inputs} numbers, and reads {dim}"));
        }
        let form = match self.net.form(node)? {
            Form::Tokens(t, _) => Form::Tokens(t, outputs),
            _ => Form::Vector(outputs),
        };
        let op = Op::Linear { weight, bias: None, inputs, outputs };
        let made = self.net.add(form, op, vec![node], [label, &here.to_string()])?;
        Ok(Value::View(widened(&view, made, dim, outputs)))
    }

    /// A view whose last axis is all channels of a token or a vector, each of which it has once.
    pub(super) fn last(
        &mut self,
        here: Here<'_>,
        view: View,
    ) -> Result<(View, usize, usize), Refused> {
        let view = self.settled(here, view)?;
        let refused = "is not along the channels of a token or a vector";
        let Base::Node(node) = view.base else { return here.refuse(refused) };
        let dim = match self.net.form(node)? {
            Form::Tokens(_, d) | Form::Vector(d) => d,
            _ => return here.refuse(refused),
        };
        let Some((last, others)) = view.axes.split_last() else { return here.refuse(refused) };
        let channels =
            if dim == 1 { last.is_empty() } else { *last == [Step { size: dim, stride: 1 }] };
        let mut steps: Vec<Step> = others.concat();
        steps.sort_by_key(|step| step.stride);
        let mut stride = dim;
        for step in &steps {
            if step.stride != stride {
                return here.refuse(refused);
            }
            stride *= step.size;
        }
        let whole = product(&self.net.shape(self.net.form(node)?));
        if !channels || view.offset != 0 || stride != whole {
            return here.refuse(refused);
        }
        Ok((view, node, dim))
    }

    /// A view of a node that has fewer elements, or others, as one of a node that has these alone:
    /// some channels of a map, one token, an image as a vector or as tokens.
    pub(super) fn settled(&mut self, here: Here<'_>, view: View) -> Result<View, Refused> {
        let view = self.part(here, view)?;
        let Base::Node(node) = view.base else { return Ok(view) };
        let (form, b) = (self.net.form(node)?, self.net.batch);
        let whole = self.net.whole(node)?;
        let shape = view.shape();
        let of = here.to_string();
        let made = match form {
            Form::Tokens(t, d) if view.count() == b * d => {
                let is = |k: usize| {
                    let token = whole.at(1, k);
                    token.is_some() && view.reshape(&[b, d]) == token
                };
                let op = match t {
                    0 => return Ok(view),
                    _ if is(0) => Op::FirstToken,
                    t if is(t - 1) => Op::LastToken,
                    _ => return Ok(view),
                };
                // A single token is there already.
                if t == 1 && shape.len() > 2 {
                    return Ok(view);
                }
                self.net.add(Form::Vector(d), op, vec![node], ["", &of])?
            }
            Form::Image(c, h, w) => {
                let n = h * w;
                let flat = view.reshape(&[b, c * n]);
                let turned = whole.reshape(&[b, c, n]).and_then(|v| v.transpose(&[0, 2, 1]));
                if shape.last() == Some(&(c * n))
                    && flat.is_some()
                    && flat == whole.reshape(&[b, c * n])
                {
                    self.net.add(Form::Vector(c * n), Op::Flatten, vec![node], ["", &of])?
                } else if shape.len() >= 2
                    && shape.last() == Some(&c)
                    && turned.is_some()
                    && view.reshape(&[b, n, c]) == turned
                {
                    self.net.add(Form::Tokens(n, c), Op::Tokens, vec![node], ["", &of])?
                } else {
                    return Ok(view);
                }
            }
            _ => return Ok(view),
        };
        Ok(self.net.whole(made)?.reshape(&shape).unwrap_or(view))
    }

    /// Some channels of a map as a map to these.
    pub(super) fn part(&mut self, here: Here<'_>, view: View) -> Result<View, Refused> {
        let Base::Node(node) = view.base else { return Ok(view) };
        let (Form::Tokens(_, d) | Form::Vector(d)) = self.net.form(node)? else { return Ok(view) };
        let from = view.offset % d;
        let (mut extent, mut count) = (1usize, 1usize);
        for step in view.axes.iter().flatten() {
            if step.stride < d && step.stride > 0 {
                extent += (step.size - 1) * step.stride;
                count *= step.size;
            } else if !step.stride.is_multiple_of(d) {
                return Ok(view);
            }
        }
        if extent != count || extent == d || from + extent > d {
            return Ok(view);
        }
        let Some(part) = self.narrow(here, node, from, extent)? else { return Ok(view) };
        let shrink = |stride: usize| if stride >= d { stride / d * extent } else { stride };
        let step = |s: &Step| Step { stride: shrink(s.stride), ..*s };
        let axes = view.axes.iter().map(|axis| axis.iter().map(step).collect()).collect();
        Ok(View { base: Base::Node(part), offset: (view.offset - from) / d * extent, axes })
    }

    fn narrow(
        &mut self,
        here: Here<'_>,
        node: usize,
        from: usize,
        count: usize,
    ) -> Result<Option<usize>, Refused> {
        let whole = self.net.node(node)?.clone();
        let form = match whole.form {
            Form::Tokens(t, _) => Form::Tokens(t, count),
            _ => Form::Vector(count),
        };
        let of = here.to_string();
        Ok(match whole.op {
            Op::Linear { weight, bias, inputs, .. } => {
                let (weight, bias) =
                    (weight.rows(from, count), bias.map(|bias| bias.rows(from, count)));
                let op = Op::Linear { weight, bias, inputs, outputs: count };
                Some(self.net.add(form, op, whole.reads, [&whole.name, &of])?)
            }
            Op::Map(expr) => {
                let Some(source) = whole.reads.first() else { return Ok(None) };
                match self.narrow(here, *source, from, count)? {
                    Some(source) => {
                        Some(self.net.add(form, Op::Map(expr), vec![source], ["", &of])?)
                    }
                    None => None,
                }
            }
            _ => None,
        })
    }

    fn embedding(
        &mut self,
        here: Here<'_>,
        table: &Value,
        index: &Value,
        node: usize,
        axis: usize,
    ) -> Out {
        let [vocabulary, dim] = self.shape(table)[..] else {
            return here.refuse("looks up in no table");
        };
        let Form::Ids(t) = self.net.form(node)? else {
            return here.refuse("looks up what is not a token id");
        };
        let (view, _) = self.data(here, index)?;
        let whole = self.net.whole(node)?;
        if axis != 0 || view.reshape(&whole.shape()).as_ref() != Some(&whole) {
            return here.refuse("looks up token ids in another order");
        }
        let label = self.label(here, table);
        let table = self.weight(here, table, &[vocabulary, dim])?;
        let op = Op::Embedding { table, vocabulary, dim };
        let made =
            self.net.add(Form::Tokens(t, dim), op, vec![node], [&label, &here.to_string()])?;
        let shape = [&view.shape()[..], &[dim]].concat();
        let Some(view) = self.net.whole(made)?.reshape(&shape) else {
            return here.refuse("looks up token ids in another order");
        };
        Ok(Value::View(view))
    }

    // Images.

    fn image(&mut self, here: Here<'_>, value: &Value) -> Result<(usize, [usize; 3]), Refused> {
        let (view, node) = self.data(here, value)?;
        let Form::Image(c, h, w) = self.net.form(node)? else {
            return here.refuse("is of no image");
        };
        if view != self.net.whole(node)? {
            return here.refuse("reads an image in another order");
        }
        Ok((node, [c, h, w]))
    }

    /// The side of a square, and what is the same down and to the right.
    fn square(
        &self,
        here: Here<'_>,
        attributes: &mut Attributes<'_>,
        kernel: Option<[usize; 2]>,
    ) -> Result<[usize; 3], Refused> {
        let pair = |given: Option<Vec<i64>>, otherwise: [i64; 2], what: &str| {
            let both = given.unwrap_or_else(|| otherwise.to_vec());
            match both[..] {
                [a, b] if a == b => {
                    usize::try_from(a).or_else(|_| here.refuse(format!("has the {what} {both:?}")))
                }
                _ => here.refuse(format!("has the {what} {both:?}, wanted the same both ways")),
            }
        };
        let said = attributes.ints("kernel_shape")?;
        if let (Some(said), Some(kernel)) = (&said, kernel)
            && said[..] != kernel.map(|n| n as i64)
        {
            return here.refuse(format!("has kernels of {kernel:?}, and says {said:?}"));
        }
        let kernel = kernel.map_or([0, 0], |k| k.map(|n| n as i64));
        let kernel = pair(said, kernel, "kernel")?;
        let stride = pair(attributes.ints("strides")?, [1, 1], "stride")?;
        if attributes.ints("dilations")?.is_some_and(|d| d.iter().any(|n| *n != 1)) {
            return here.refuse("is dilated, which is not read");
        }
        let padding = match attributes.ints("pads")? {
            Some(pads) if pads.len() == 4 && pads.iter().all(|p| Some(p) == pads.first()) => {
                pair(Some(pads[..2].to_vec()), [0, 0], "border")?
            }
            Some(pads) => {
                return here.refuse(format!("has the border {pads:?}, wanted the same all round"));
            }
            None => 0,
        };
        match attributes.text("auto_pad")?.as_deref() {
            None | Some("NOTSET") => {}
            Some("VALID") if padding == 0 => {}
            Some(other) => {
                return here.refuse(format!("has the border `{other}`, which is not read"));
            }
        }
        Ok([kernel, stride, padding])
    }

    fn convolution(
        &mut self,
        here: Here<'_>,
        inputs: &[Option<Value>],
        attributes: &mut Attributes<'_>,
    ) -> Out {
        let (Some(Some(x)), Some(Some(w))) = (inputs.first(), inputs.get(1)) else {
            return here.refuse("lacks an input");
        };
        let (node, [channels, height, width]) = self.image(here, x)?;
        let kernel = self.shape(w);
        let [outputs, each, rows, columns] = kernel[..] else {
            return here.refuse("is not of images");
        };
        let groups = usize::try_from(attributes.int("group", 1)?).unwrap_or(0);
        let [kernel, stride, padding] = self.square(here, attributes, Some([rows, columns]))?;
        if each.checked_mul(groups) != Some(channels) || stride == 0 || !self.is_known(w) {
            return here.refuse("has a kernel that does not fit, or is no constant");
        }
        let bias = match inputs.get(2) {
            Some(Some(bias)) => Some(self.weight(here, bias, &[outputs])?),
            _ => None,
        };
        let shape = Convolution {
            inputs: channels,
            outputs,
            kernel,
            stride,
            padding,
            circular: false,
            groups,
            bias: bias.is_some(),
        };
        let (Some(h), Some(v)) = (shape.side(height), shape.side(width)) else {
            return here.refuse("has a kernel that does not fit");
        };
        let label = self.label(here, w);
        let weight = self.weight(here, w, &[outputs, each * kernel * kernel])?;
        let op = Op::Conv { shape, weight, bias };
        let form = Form::Image(outputs, h, v);
        let made = self.net.add(form, op, vec![node], [&label, &here.to_string()])?;
        Ok(Value::View(self.net.whole(made)?))
    }

    fn pool(
        &mut self,
        here: Here<'_>,
        x: &Value,
        attributes: &mut Attributes<'_>,
        max: bool,
    ) -> Out {
        let (node, [c, height, width]) = self.image(here, x)?;
        if attributes.int("ceil_mode", 0)? != 0 {
            return here.refuse("rounds its size up, which is not read");
        }
        attributes.int("storage_order", 0)?;
        let counts = attributes.int("count_include_pad", 0)? != 0;
        let [window, stride, padding] = self.square(here, attributes, None)?;
        if !max && padding > 0 && !counts {
            return here.refuse("does not count the border, which is not read");
        }
        let pooling = if max { Pooling::Max } else { Pooling::Average };
        let pool = Pool { pooling, window, stride, padding };
        let (Some(h), Some(w), true) = (pool.side(height), pool.side(width), stride > 0) else {
            return here.refuse("has a window that does not fit");
        };
        let form = Form::Image(c, h, w);
        let made = self.net.add(form, Op::Pool(pool), vec![node], ["", &here.to_string()])?;
        Ok(Value::View(self.net.whole(made)?))
    }

    fn global_pool(&mut self, here: Here<'_>, x: &Value, pooling: Pooling, keep: bool) -> Out {
        let (node, [c, ..]) = self.image(here, x)?;
        let op = Op::GlobalPool(pooling);
        let made = self.net.add(Form::Vector(c), op, vec![node], ["", &here.to_string()])?;
        let view = self.net.whole(made)?;
        Ok(Value::View(if keep { view.unsqueeze(&[2, 3]).unwrap_or(view) } else { view }))
    }

    fn batch_norm(
        &mut self,
        here: Here<'_>,
        inputs: &[Option<Value>],
        attributes: &mut Attributes<'_>,
    ) -> Out {
        let eps = attributes.float("epsilon", 1e-5)?;
        attributes.float("momentum", 0.9)?;
        if attributes.int("training_mode", 0)? != 0 || attributes.int("spatial", 1)? != 1 {
            return here.refuse("is in training mode; export the model after eval()");
        }
        let [Some(x), Some(gain), Some(shift), Some(mean), Some(variance)] = inputs else {
            return here.refuse("lacks an input");
        };
        let mut numbers = Vec::new();
        for value in [gain, shift, mean, variance] {
            numbers.push(self.array(here, value)?.data);
        }
        let [gain, shift, mean, variance] = &numbers[..] else {
            return here.refuse("lacks an input");
        };
        let n = gain.len();
        if [shift.len(), mean.len(), variance.len()] != [n; 3] {
            return here.refuse("has statistics that do not fit");
        }
        let scale: Vec<f64> =
            gain.iter().zip(variance.iter()).map(|(g, v)| g / (v + eps).sqrt()).collect();
        let offset = shift.iter().zip(mean.iter()).zip(&scale).map(|((b, m), s)| b - m * s);
        let offset: Vec<f64> = offset.collect();
        let (view, _) = self.data(here, x)?;
        let (view, node) = match view.axes.len() {
            4 => {
                let (node, [c, ..]) = self.image(here, x)?;
                if c != n {
                    return here.refuse("has statistics that do not fit");
                }
                (view, node)
            }
            2 => {
                let (view, node, dim) = self.last(here, view)?;
                if dim != n {
                    return here.refuse("has statistics that do not fit");
                }
                (view, node)
            }
            _ => return here.refuse("is neither of images nor of vectors"),
        };
        let vector = |x| Coefficient::Vector(TensorExpr::numbers(x, &[n]), n);
        let label = self.label(here, inputs.get(1).and_then(Option::as_ref).unwrap_or(x));
        let made = self.affine(here, node, vector(scale), vector(offset), &label)?;
        Ok(Value::View(view.of(made)))
    }

    // Norms and means.

    fn norm(
        &mut self,
        here: Here<'_>,
        inputs: &[Option<Value>],
        attributes: &mut Attributes<'_>,
        layer: bool,
    ) -> Out {
        let eps = attributes.float("epsilon", 1e-5)?;
        attributes.int("stash_type", 1)?;
        let axis = attributes.int("axis", -1)?;
        let Some(Some(x)) = inputs.first() else { return here.refuse("lacks its input") };
        let (view, _) = self.data(here, x)?;
        let rank = view.axes.len();
        if array::axis(axis, rank) != array::axis(-1, rank) {
            return here.refuse("is over more than the last axis");
        }
        let (view, node, dim) = self.last(here, view)?;
        let form = self.net.form(node)?;
        let op = if layer { Op::LayerNorm(eps) } else { Op::RmsNorm(eps) };
        let gain = inputs.get(1).and_then(Option::as_ref);
        let shift = inputs.get(2).and_then(Option::as_ref);
        let label = gain.map(|gain| self.label(here, gain)).unwrap_or_default();
        let mut made = self.net.add(form, op, vec![node], [&label, &here.to_string()])?;
        let vector = |value: Option<&Value>, otherwise: f64, reader: &mut Self| match value {
            Some(value) => {
                Ok::<_, Refused>(Coefficient::Vector(reader.weight(here, value, &[dim])?, dim))
            }
            None => Ok(Coefficient::Number(otherwise)),
        };
        let (gain, shift) = (vector(gain, 1.0, self)?, vector(shift, 0.0, self)?);
        made = self.affine(here, made, gain, shift, &label)?;
        Ok(Value::View(view.of(made)))
    }

    fn reduce(
        &mut self,
        here: Here<'_>,
        inputs: &[Option<Value>],
        attributes: &mut Attributes<'_>,
    ) -> Out {
        let keep = attributes.int("keepdims", 1)? != 0;
        let nothing = attributes.int("noop_with_empty_axes", 0)? != 0;
        let Some(Some(x)) = inputs.first() else { return here.refuse("lacks its input") };
        let axes = match (attributes.ints("axes")?, inputs.get(1)) {
            (Some(axes), None) => Some(axes),
            (None, Some(Some(axes))) => Some(self.whole(here, axes)?),
            _ => None,
        };
        let rank = self.shape(x).len();
        let axes: Option<Vec<usize>> = match axes {
            Some(axes) => axes.iter().map(|a| array::axis(*a, rank)).collect(),
            None if nothing => return here.refuse("reduces nothing"),
            None => Some((0..rank).collect()),
        };
        let Some(mut axes) = axes else { return here.refuse("has an axis that is not there") };
        axes.sort_unstable();
        let name = here.node.op_type.as_str();
        if self.is_known(x) {
            let array = self.array(here, x)?;
            let f: fn(f64, f64) -> f64 = match name {
                "ReduceMax" => f64::max,
                "ReduceMin" => f64::min,
                "ReduceProd" => |a, b| a * b,
                "ReduceSum" => |a, b| a + b,
                _ => return here.refuse("is of constants alone"),
            };
            if axes.len() != rank {
                return here.refuse("is over some axes of constants");
            }
            let Some(all) = array.data.iter().copied().reduce(f) else {
                return here.refuse("is of no numbers");
            };
            let shape = if keep { vec![1; rank] } else { Vec::new() };
            return self.array_value(here, Array::new(shape, array.kind, vec![all]));
        }
        let (view, node) = self.data(here, x)?;
        match (name, self.net.form(node)?) {
            ("ReduceMean", Form::Image(..)) if axes == [2, 3] && rank == 4 => {
                self.global_pool(here, x, Pooling::Average, keep)
            }
            ("ReduceMax", Form::Image(..)) if axes == [2, 3] && rank == 4 => {
                self.global_pool(here, x, Pooling::Max, keep)
            }
            ("ReduceMean" | "ReduceL2", _) if axes == [rank.saturating_sub(1)] && keep => {
                let (view, node, _) = self.last(here, view)?;
                if name == "ReduceL2" {
                    let what = Measure::Length(0.0);
                    return Ok(Value::Statistic(Statistic { of: view, node, what }));
                }
                let inner = self.net.node(node)?;
                if let (Op::Map(expr), Some(source)) = (&inner.op, inner.reads.first())
                    && expr.is_square()
                {
                    let (of, node) = (view.of(*source), *source);
                    return Ok(Value::Statistic(Statistic {
                        of,
                        node,
                        what: Measure::Square(0.0),
                    }));
                }
                Ok(Value::Statistic(Statistic { of: view, node, what: Measure::Mean }))
            }
            ("ReduceMean", _) if axes == [1] && rank == 3 => {
                let view = self.settled(here, view)?;
                let Base::Node(node) = view.base else { return here.refuse("is of no tokens") };
                let (Form::Tokens(_, d), true) =
                    (self.net.form(node)?, view == self.net.whole(node)?)
                else {
                    return here.refuse("is over an axis that is not that of tokens");
                };
                let of = here.to_string();
                let made = self.net.add(Form::Vector(d), Op::MeanPool, vec![node], ["", &of])?;
                let view = self.net.whole(made)?;
                Ok(Value::View(if keep { view.unsqueeze(&[1]).unwrap_or(view) } else { view }))
            }
            _ => here.refuse("is over axes that are not known"),
        }
    }
}

/// A view of tokens or vectors of another width.
fn widened(view: &View, node: usize, from: usize, to: usize) -> View {
    let wide = |axis: &Vec<Step>| {
        axis.iter().map(|s| Step { size: s.size, stride: s.stride / from * to }).collect()
    };
    let mut axes: Vec<Vec<Step>> = view.axes.iter().map(wide).collect();
    if let Some(last) = axes.last_mut() {
        *last = if to == 1 { Vec::new() } else { vec![Step { size: to, stride: 1 }] };
    }
    View { base: Base::Node(node), offset: 0, axes }
}

impl Coefficient {
    /// The rows of a matrix, each times its number.
    pub(super) fn rows(&self, matrix: TensorExpr) -> TensorExpr {
        match self {
            Self::Number(1.0) => matrix,
            Self::Number(k) => matrix.times(*k),
            Self::Vector(v, _) => matrix.scale_rows(v.clone()),
        }
    }

    /// Added to a vector of this length, if there is one.
    pub(super) fn onto(&self, vector: Option<TensorExpr>, length: usize) -> Option<TensorExpr> {
        match (vector, self) {
            (vector, Self::Number(0.0)) => vector,
            (Some(vector), Self::Number(k)) => Some(vector.add(*k)),
            (Some(vector), Self::Vector(v, _)) => Some(vector.add_row(v.clone())),
            (None, Self::Number(k)) => Some(TensorExpr::numbers(vec![*k; length], &[length])),
            (None, Self::Vector(v, _)) => Some(v.clone()),
        }
    }
}
