//! Moves of elements: slices, gathers, tokens in front of others; and views of a node as all of another
//! one.

use lipschitz_nn::graph::Function;

use super::Refused;
use super::array::{self, Array, Kind};
use super::attributes::Attributes;
use super::expr::{Expr, Phi};
use super::net::{Form, Op};
use super::operators::{Here, Out, Reader, Value};
use super::sizes::{Decision, Test};
use super::view::{Base, Step, View, product};

impl Reader<'_> {
    pub(super) fn moved(
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
            Value::Statistic(_) | Value::Above(..) | Value::Half(..) => {
                here.refuse("moves a mean or a norm, which is not known")
            }
        }
    }

    pub(super) fn new_shape(
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

    pub(super) fn squeeze(
        &mut self,
        here: Here<'_>,
        x: &Value,
        axes: Option<Vec<i64>>,
        more: bool,
    ) -> Out {
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

    pub(super) fn slice(
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
            let Some(size) = self.shape(&x).get(axis).copied() else {
                return here.refuse("has an axis that is not there");
            };
            if self.is_known(&x) {
                // Where it begins, and whether it begins and ends within the axis.
                let size = size as i64;
                self.fixed_by(here, &Array::scalar(Kind::REAL, *from as f64));
                let ends =
                    [from.saturating_add(size), to.saturating_sub(size), to.saturating_add(size)];
                for end in ends {
                    let end = Array::scalar(Kind::REAL, end as f64);
                    self.decided(here, Test::Side, &end, &Array::scalar(Kind::REAL, 0.0));
                }
            }
            if *step == 1 {
                let (from, to) = (array::bound(*from, size), array::bound(*to, size));
                x = self.run(here, &x, axis, from, to.saturating_sub(from))?;
                continue;
            }
            let Some(places) = array::places(*from, *to, *step, size) else {
                return here.refuse("has the step 0, or takes too many elements");
            };
            x = self.select(here, &x, axis, &places)?;
        }
        Ok(x)
    }

    /// So many places of an axis, from this one on.
    fn run(&mut self, here: Here<'_>, x: &Value, axis: usize, from: usize, count: usize) -> Out {
        if from == 0 && self.shape(x).get(axis) == Some(&count) {
            return Ok(x.clone());
        }
        if let Value::View(view) = x
            && let Some(view) = view.slice(axis, from, count)
        {
            return Ok(Value::View(view));
        }
        if count > array::LARGEST {
            return here.refuse("takes elements in a way that is not known");
        }
        let places: Vec<usize> = (from..from.saturating_add(count)).collect();
        self.select(here, x, axis, &places)
    }

    /// These places of an axis, in order.
    pub(super) fn select(
        &mut self,
        here: Here<'_>,
        x: &Value,
        axis: usize,
        places: &[usize],
    ) -> Out {
        let Some(size) = self.shape(x).get(axis).copied() else {
            return here.refuse("has an axis that is not there");
        };
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

    pub(super) fn split(
        &mut self,
        here: Here<'_>,
        inputs: &[Option<Value>],
        attributes: &mut Attributes<'_>,
    ) -> Result<Vec<Value>, Refused> {
        let Some(Some(x)) = inputs.first().cloned() else {
            return here.refuse("lacks its input");
        };
        let shape = self.shape(&x);
        let axis = array::axis(attributes.int("axis", 0)?, shape.len());
        let Some((axis, size)) = axis.and_then(|axis| Some((axis, *shape.get(axis)?))) else {
            return here.refuse("has an axis that is not there");
        };
        let count = here.node.output.len();
        if attributes.int("num_outputs", count as i64)? != count as i64 {
            return here.refuse("has another number of outputs than it says");
        }
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
        if self.is_known(&x) {
            self.fixed_by(here, &Array::ints(&counts));
        }
        if counts.iter().fold(0usize, |n, c| n.saturating_add(*c)) != size || counts.len() != count
        {
            return here.refuse("has parts that do not fit");
        }
        let mut from = 0;
        let mut out = Vec::new();
        for count in counts {
            out.push(self.run(here, &x, axis, from, count)?);
            from += count;
        }
        Ok(out)
    }

    pub(super) fn gather(&mut self, here: Here<'_>, x: &Value, index: &Value, axis: i64) -> Out {
        let shape = self.shape(x);
        let Some(axis) = array::axis(axis, shape.len()) else {
            return here.refuse("has an axis that is not there");
        };
        if let (true, Some(node)) = (self.is_known(x), self.node_of(index)) {
            return self.embedding(here, x, index, node, axis);
        }
        let index = self.array(here, index)?;
        if self.is_known(x) {
            let alike = |a: &Array| a.data.windows(2).all(|pair| pair[0] == pair[1]);
            let any = matches!(x, Value::Array(a) if alike(a));
            self.decide(Decision::index(&self.draws, here, &index, any));
        }
        let Some(size) = shape.get(axis).map(|size| *size as i64) else {
            return here.refuse("has an axis that is not there");
        };
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

    /// The axis of the channels of what a node makes.
    fn channel_axis(&self, node: usize) -> Result<usize, Refused> {
        Ok(match self.net.form(node)? {
            Form::Tokens(..) => 2,
            _ => 1,
        })
    }

    /// The larger, or the smaller, of two values that are the halves of one.
    pub(super) fn half(&mut self, here: Here<'_>, a: &Value, b: &Value, larger: bool) -> Out {
        let ((first, node), (second, _)) = (self.data(here, a)?, self.data(here, b)?);
        let (whole, axis) = (self.net.whole(node)?, self.channel_axis(node)?);
        let Some(size) = whole.shape().get(axis).copied().filter(|size| size.is_multiple_of(2))
        else {
            return here.refuse("is of two values that are not the halves of one");
        };
        if whole.slice(axis, 0, size / 2).as_ref() != Some(&first)
            || whole.slice(axis, size / 2, size / 2).as_ref() != Some(&second)
        {
            return here.refuse("is of two values that are not the halves of one");
        }
        Ok(Value::Half(first, larger))
    }

    pub(super) fn concat(&mut self, here: Here<'_>, parts: &[Value], axis: i64) -> Out {
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
        if let [Value::Half(x, true), Value::Half(y, false)] = parts
            && let Base::Node(node) = x.base
            && x == y
        {
            let whole = self.net.whole(node)?;
            let half = self.channel_axis(node)?;
            if axis != half || whole.slice(axis, 0, whole.shape()[axis] / 2).as_ref() != Some(x) {
                return here.refuse("puts halves together along another axis");
            }
            let form = self.net.form(node)?;
            let made = self.net.add(form, Op::MaxMin, vec![node], ["", &here.to_string()])?;
            return Ok(Value::View(self.net.whole(made)?));
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

    pub(super) fn choose(&mut self, here: Here<'_>, which: &Value, yes: &Value, no: &Value) -> Out {
        if let Value::Above(view, least) = which {
            // ln(1 + eˣ) is x, up to 2·10⁻⁹, where x is above 20: exporters say so.
            if let (Base::Node(x), Value::View(chosen), Some(node)) =
                (view.base, yes, self.node_of(no))
                && *least >= 20.0
                && chosen == view
                && *no == Value::View(view.of(node))
                && self.net.node(node)?.reads == [x]
                && self.net.node(node)?.op
                    == Op::Map(Expr::x().apply(Phi::Known(Function::Softplus)))
            {
                self.passes_large = true;
                return Ok(no.clone());
            }
            return here.refuse("chooses by the size of what depends on the input");
        }
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
                // In place of a logit, as added to one: only what hides the key wholly.
                if low.is_nan() || low > super::attention::UNSEEN {
                    return here.refuse(format!(
                        "puts {low} in place of what depends on the input, which does not hide a key"
                    ));
                }
                let mask = which.map(Kind::REAL, |w| if (w != 0.0) == hidden { low } else { 0.0 });
                return self.masked(here, data, &mask);
            }
        }
        here.refuse("chooses between values that depend on the input")
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
                } else if let [_, count, width] = shape[..]
                    && let Some(side) = (1..=h.min(w)).find(|s| c * s * s == width)
                    && h.is_multiple_of(side)
                    && w.is_multiple_of(side)
                    && whole
                        .reshape(&[b, c, h / side, side, w / side, side])
                        .and_then(|v| v.transpose(&[0, 2, 4, 1, 3, 5])?.reshape(&shape))
                        .as_ref()
                        == Some(&view)
                {
                    let form = Form::Tokens(count, width);
                    self.net.add(form, Op::Patches(side), vec![node], ["", &of])?
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

    pub(super) fn narrow(
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
}
