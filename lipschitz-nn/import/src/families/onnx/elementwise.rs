//! Functions of each element, of one value or of two, and constants for each channel or token.

use lipschitz_nn::graph::Function;

use super::Refused;
use super::array::{self, Array, Kind};
use super::expr::{Expr, Phi};
use super::net::{Coefficient, Form, Op};
use super::operators::{Here, Measure, Out, Reader, Statistic, Value};
use super::sizes::Test;
use super::view::{Base, Step, View, product};
use crate::expression::TensorExpr;

impl Reader<'_> {
    /// A function of each element.
    pub(super) fn function(&mut self, here: Here<'_>, x: &Value, phi: Phi) -> Out {
        if self.is_known(x) {
            let f: fn(f64) -> f64 = match phi {
                Phi::Known(Function::Abs) => f64::abs,
                Phi::Known(Function::Relu) => |x| x.max(0.0),
                Phi::Known(Function::Tanh) => f64::tanh,
                _ => return here.refuse("is of constants alone"),
            };
            let array = self.array(here, x)?;
            self.decided(here, Test::Side, &array, &Array::scalar(Kind::REAL, 0.0));
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

    pub(super) fn mapped(
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

    pub(super) fn unary(&mut self, here: Here<'_>, x: &Value, name: &str) -> Out {
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
            if name == "Floor" || name == "Ceil" {
                apart(here, &array)?;
                self.whole_by(here, &array);
            }
            return Ok(Value::Array(array.map(array.kind, f)));
        }
        match name {
            "Neg" => self.map(here, x, Some(Expr::linear(0.0, -1.0))),
            _ => here.refuse("is not part of a layer that is known"),
        }
    }

    pub(super) fn clipped(&mut self, here: Here<'_>, x: &Value, low: f64, high: f64) -> Out {
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
            self.fixed_by(here, &array);
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

    pub(super) fn power(&mut self, here: Here<'_>, x: &Value, exponent: &Value) -> Out {
        let n = self.scalar(here, exponent)?;
        if self.shape(exponent).len() > self.shape(x).len() {
            return here.refuse("has an exponent of more axes than its input");
        }
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
            let power = array.map(array.kind, |x| x.powf(n));
            if !power.kind.is_float() && power.data.iter().any(|x| x.fract() != 0.0) {
                return here.refuse("makes whole numbers of others");
            }
            return self.whole_value(here, Some(power));
        }
        if n.fract() != 0.0 || !(1.0..=8.0).contains(&n) {
            return here.refuse(format!("has the exponent {n}"));
        }
        let power = (1..n as usize).try_fold(Expr::x(), |power, _| power.times(&Expr::x()));
        self.map(here, x, power)
    }

    pub(super) fn binary(&mut self, here: Here<'_>, op: &str, a: &Value, b: &Value) -> Out {
        match (self.is_known(a), self.is_known(b)) {
            (true, true) => {
                let (a, b) = (self.array(here, a)?, self.array(here, b)?);
                let whole = a.kind == Kind::Int && b.kind == Kind::Int;
                if whole && op == "Div" && b.data.contains(&0.0) {
                    return here.refuse("divides by zero");
                }
                if whole
                    && op == "Div"
                    && let Some(quotient) = a.zip(&b, Kind::REAL, |a, b| a / b)
                {
                    self.whole_by(here, &quotient);
                }
                let f: fn(f64, f64) -> f64 = match op {
                    "Add" => |a, b| a + b,
                    "Sub" => |a, b| a - b,
                    "Mul" => |a, b| a * b,
                    _ if whole => |a, b| (a / b).trunc(),
                    _ => |a, b| a / b,
                };
                let kind = a.kind.with(b.kind);
                let made = a.zip(&b, kind, f);
                // Beyond 2⁵³ some are not what they are in the file.
                let exact = 9_007_199_254_740_992.0;
                if whole && a.data.iter().chain(b.data.iter()).any(|x| x.abs() >= exact) {
                    return here.refuse("computes with whole numbers that are too large");
                }
                self.whole_value(here, made)
            }
            (false, true) => self.with_constant(here, op, a, b),
            (true, false) => match op {
                "Add" | "Mul" => self.with_constant(here, op, b, a),
                "Sub" => {
                    let minus = self.binary(
                        here,
                        "Mul",
                        b,
                        &Value::Array(Array::scalar(Kind::REAL, -1.0)),
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
    pub(super) fn two(&mut self, here: Here<'_>, op: &str, a: &Value, b: &Value) -> Out {
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
    pub(super) fn chain(&self, node: usize) -> Result<Vec<(usize, Expr)>, Refused> {
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

    pub(super) fn both(&mut self, here: Here<'_>, op: &str, a: &Value, b: &Value) -> Out {
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
    pub(super) fn with_constant(&mut self, here: Here<'_>, op: &str, x: &Value, c: &Value) -> Out {
        if self.shape(c).len() > self.shape(x).len() {
            return here.refuse("has constants of more axes than its input");
        }
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
        // No more axes either: later operators count them.
        if array::broadcast(&shape, &self.shape(c)).as_ref() != Some(&shape) {
            let constants = self.shape(c);
            return here
                .refuse(format!("repeats its input, {shape:?}, for constants {constants:?}"));
        }
        if let Some(c) = self.uniform(here, c)? {
            let expr = match op {
                "Add" => Expr::linear(c, 1.0),
                "Sub" => Expr::linear(-c, 1.0),
                "Mul" => Expr::linear(0.0, c),
                _ => Expr::linear(0.0, inverse(c)),
            };
            let shift = op == "Add" || op == "Sub";
            if !c.is_finite() || (op == "Div" && c == 0.0) {
                return here.refuse(format!("has the constant {c}"));
            }
            if shift && c != 0.0 && matches!(self.net.form(node)?, Form::Scores(..)) {
                return here.refuse(format!("adds {c} to all logits"));
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
    pub(super) fn channels(&mut self, here: Here<'_>, op: &str, view: View, c: &Value) -> Out {
        let axes = view.axes.len();
        let view = self.settled(here, view)?;
        let Base::Node(node) = view.base else {
            return here.refuse("is of constants alone");
        };
        let shape = self.shape(c);
        if view.axes.len() != axes || shape.len() > axes {
            return here.refuse("has constants of other axes than its input");
        }
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
            let array = reader.array(here, &reduced)?.map(Kind::REAL, f);
            Ok::<_, Refused>(TensorExpr::numbers(array.data.to_vec(), &[channels]))
        };
        let (scale, shift) = match op {
            "Add" => (None, Some(self.weight(here, &reduced, &[channels])?)),
            "Mul" => (Some(self.weight(here, &reduced, &[channels])?), None),
            "Sub" => (None, Some(self.weight(here, &reduced, &[channels])?.times(-1.0))),
            _ => (Some(numbers(self, inverse)?), None),
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
    pub(super) fn table(
        &self,
        value: &Value,
        rows: TensorExpr,
        count: usize,
        dim: usize,
    ) -> (TensorExpr, usize, usize) {
        if let Value::View(view) = value
            && let Base::Weight(number) = view.base
            && let Some(weight) = self.weights.get(number)
            && let [length, width] | [1, length, width] = weight.shape[..]
            && width == dim
            && view.offset.is_multiple_of(dim)
            && !rows.computes()
            && view.reshape(&[count, dim])
                == Some(View { offset: view.offset, ..View::whole(view.base, &[count, dim]) })
        {
            let expr = TensorExpr::new(weight.name.clone(), &weight.shape);
            let flat = weight.shape.len() == 2;
            let expr = if flat { expr } else { expr.reshape(&[length, width]) };
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
        /// The most steps of a weight that a map takes a factor into: each takes a copy of them all.
        const MAX_STEPS: usize = 64;
        let before = self.net.node(node)?;
        let long = match &before.op {
            Op::Linear { weight, .. } | Op::Conv { weight, .. } => weight.steps() > MAX_STEPS,
            _ => true,
        };
        let of = here.to_string();
        if long {
            let form = before.form;
            return self.net.add(form, Op::Affine { scale, shift }, vec![node], [label, &of]);
        }
        let before = before.clone();
        let fits = |n: usize| {
            [&scale, &shift].iter().all(|c| match c {
                Coefficient::Number(_) => true,
                Coefficient::Vector(_, m) => *m == n,
            })
        };
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
}

/// Whether no element is so near to a whole number that rounding may have brought it to another side.
pub(super) fn apart(here: Here<'_>, array: &Array) -> Result<(), Refused> {
    let off = |x: f64| (x - x.round()).abs();
    match array.data.iter().find(|x| off(**x) > 0.0 && off(**x) < 1e-3 * x.abs().max(1.0)) {
        Some(x) => here.refuse(format!("makes a whole number of {x}, which rounding may decide")),
        None => Ok(()),
    }
}

/// 1/c, with the rounding away from 0: a factor that is never less than the quotient's.
fn inverse(c: f64) -> f64 {
    let q = 1.0 / c;
    // Exact but for one rounding, which keeps the sign.
    let short = q.mul_add(c, -1.0) < 0.0;
    match (short, q > 0.0) {
        (false, _) => q,
        (true, true) => q.next_up(),
        (true, false) => q.next_down(),
    }
}
