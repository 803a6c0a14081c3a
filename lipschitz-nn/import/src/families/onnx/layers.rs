//! Maps, convolutions, pooling, norms and means.

use lipschitz_nn::graph::{Convolution, Pool, Pooling};

use super::Refused;
use super::array::{self, Array, Kind};
use super::attributes::Attributes;
use super::net::{Coefficient, Form, Op};
use super::operators::{Here, Measure, Out, Reader, Statistic, Value};
use super::view::{Base, Step, View, product};
use crate::expression::TensorExpr;

impl Reader<'_> {
    pub(super) fn gemm(
        &mut self,
        here: Here<'_>,
        inputs: &[Option<Value>],
        attributes: &mut Attributes<'_>,
    ) -> Out {
        let (alpha, beta) = (attributes.float("alpha", 1.0)?, attributes.float("beta", 1.0)?);
        let turned_a = attributes.flag("transA", false)?;
        let turned_b = attributes.flag("transB", false)?;
        let (Some(Some(x)), Some(Some(w))) = (inputs.first(), inputs.get(1)) else {
            return here.refuse("lacks an input");
        };
        let (mut x, mut w) = (x.clone(), w.clone());
        if turned_a {
            x = self.moved(here, &x, |view| view.transpose(&[1, 0]))?;
        }
        if turned_b {
            w = self.moved(here, &w, |view| view.transpose(&[1, 0]))?;
        }
        let mut y = self.product(here, &x, &w)?;
        if alpha != 1.0 {
            y = self.binary(here, "Mul", &y, &Value::Array(Array::scalar(Kind::REAL, alpha)))?;
        }
        match inputs.get(2) {
            Some(Some(bias)) => {
                let mut bias = bias.clone();
                if beta != 1.0 {
                    let factor = Value::Array(Array::scalar(Kind::REAL, beta));
                    bias = self.binary(here, "Mul", &bias, &factor)?;
                }
                self.binary(here, "Add", &y, &bias)
            }
            _ => Ok(y),
        }
    }

    pub(super) fn product(&mut self, here: Here<'_>, a: &Value, b: &Value) -> Out {
        match (self.is_known(a), self.is_known(b)) {
            (true, true) => here.refuse("multiplies constants"),
            (true, false) => here.refuse("has a constant on its left"),
            (false, false) => self.heads(here, a, b),
            (false, true) => {
                let shape = self.shape(b);
                let Some([inputs, outputs]) = shape.last_chunk::<2>().copied() else {
                    return here.refuse("has no matrix on its right");
                };
                if shape.len() > self.shape(a).len().max(2) {
                    return here.refuse("has a matrix of more axes than its input");
                }
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

    pub(super) fn linear(
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

    pub(super) fn embedding(
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

    pub(super) fn image(
        &mut self,
        here: Here<'_>,
        value: &Value,
    ) -> Result<(usize, [usize; 3]), Refused> {
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
    pub(super) fn square(
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

    pub(super) fn convolution(
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

    pub(super) fn pool(
        &mut self,
        here: Here<'_>,
        x: &Value,
        attributes: &mut Attributes<'_>,
        max: bool,
    ) -> Out {
        let (node, [c, height, width]) = self.image(here, x)?;
        if attributes.flag("ceil_mode", false)? {
            return here.refuse("rounds its size up, which is not read");
        }
        attributes.int("storage_order", 0)?;
        let counts = attributes.flag("count_include_pad", false)?;
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

    pub(super) fn global_pool(
        &mut self,
        here: Here<'_>,
        x: &Value,
        pooling: Pooling,
        keep: bool,
    ) -> Out {
        let (node, [c, ..]) = self.image(here, x)?;
        let op = Op::GlobalPool(pooling);
        let made = self.net.add(Form::Vector(c), op, vec![node], ["", &here.to_string()])?;
        let view = self.net.whole(made)?;
        Ok(Value::View(if keep { view.unsqueeze(&[2, 3]).unwrap_or(view) } else { view }))
    }

    pub(super) fn batch_norm(
        &mut self,
        here: Here<'_>,
        inputs: &[Option<Value>],
        attributes: &mut Attributes<'_>,
    ) -> Out {
        let eps = attributes.float("epsilon", 1e-5)?;
        attributes.float("momentum", 0.9)?;
        if attributes.flag("training_mode", false)? || attributes.int("spatial", 1)? != 1 {
            return here.refuse("is in training mode; export the model after eval()");
        }
        // Before version 14, more outputs say that it trains.
        if here.node.output.iter().filter(|name| !name.is_empty()).count() > 1 {
            return here.refuse("is in training mode; export the model after eval()");
        }
        let [Some(x), Some(gain), Some(shift), Some(mean), Some(variance)] = inputs else {
            return here.refuse("lacks an input");
        };
        let mut numbers = Vec::new();
        for value in [gain, shift, mean, variance] {
            let array = self.array(here, value)?;
            if array.shape.len() != 1 {
                return here.refuse("has statistics that do not fit");
            }
            numbers.push(array.data);
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

    pub(super) fn norm(
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
            Some(value) if reader.shape(value) != [dim] => {
                here.refuse("has a scale or a shift of other axes than the last")
            }
            Some(value) => {
                Ok::<_, Refused>(Coefficient::Vector(reader.weight(here, value, &[dim])?, dim))
            }
            None => Ok(Coefficient::Number(otherwise)),
        };
        let (gain, shift) = (vector(gain, 1.0, self)?, vector(shift, 0.0, self)?);
        made = self.affine(here, made, gain, shift, &label)?;
        Ok(Value::View(view.of(made)))
    }

    pub(super) fn reduce(
        &mut self,
        here: Here<'_>,
        inputs: &[Option<Value>],
        attributes: &mut Attributes<'_>,
    ) -> Out {
        let keep = attributes.flag("keepdims", true)?;
        let nothing = attributes.flag("noop_with_empty_axes", false)?;
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
            if name == "ReduceMax" || name == "ReduceMin" {
                self.fixed_by(here, &array);
            }
            let Some(all) = array.data.iter().copied().reduce(f) else {
                return here.refuse("is of no numbers");
            };
            let shape = if keep { vec![1; rank] } else { Vec::new() };
            let made = Array::new(shape, array.kind, vec![all]);
            if let Some(made) = &made {
                self.fixed_by(here, made);
            }
            return self.whole_value(here, made);
        }
        let (view, node) = self.data(here, x)?;
        match (name, self.net.form(node)?) {
            ("ReduceMean", Form::Image(..)) if axes == [2, 3] && rank == 4 => {
                self.global_pool(here, x, Pooling::Average, keep)
            }
            ("ReduceL2", Form::Image(..)) if axes == [2, 3] && rank == 4 => {
                self.global_pool(here, x, Pooling::L2, keep)
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
