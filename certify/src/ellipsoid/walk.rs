//! The rule of each kind of node for ellipsoids.

use std::rc::Rc;

use lipschitz_nn::graph::{Function, Graph, Node, NodeId, Op, Site, Stage, join};

use super::approx::Approx;
use super::attention;
use super::block::{Block, height};
use super::multipliers::Multipliers;
use super::slopes::{pairs, row, rows_by, slopes, uncertain, values, worst};
use super::span::{Span, blend, by, times};
use super::state::{Changes, Elements, Keep, OrStop, Place, State, Stop, start};
use super::tape::{Scalar, Tape, Var};
use super::weights::Weights;
use crate::bound::{Block as WeightBlock, Part, pointwise};
use crate::upper::{Upper, abs, count, root_down};

/// The end of a walk: the outputs as a linear image of a unit ball.
pub(super) struct End {
    pub(super) tape: Tape,
    /// That of changes, or of the values themselves.
    pub(super) factor: Var,
    /// Constants from the input to each node of the outermost level.
    pub(super) trail: Vec<(NodeId, Scalar)>,
    /// Bounds on elements of tensors.
    pub(super) seen: Elements,
    /// Bounds on changes.
    pub(super) changes: Changes,
}

/// One node's surroundings.
pub(super) struct Walker<'a> {
    pub(super) tape: &'a Tape,
    pub(super) weights: &'a Weights<'a>,
    pub(super) state: State,
    /// Bounds on the elements of tensors, where they are wanted.
    pub(super) seen: Option<Elements>,
    /// Bounds on changes, where they are wanted.
    pub(super) changes: Option<Changes>,
}

/// Proves with given multipliers: propagates ellipsoids through a graph whose domain is the ball of
/// radius `domain` per token. What is proven is the constant; or, for `values`, how large the elements of
/// tensors can be.
pub(super) fn walk(
    graph: &Graph,
    weights: &Weights<'_>,
    domain: Upper,
    multipliers: Multipliers,
    keep: Keep,
) -> Result<End, Stop> {
    let values = keep == Keep::Values;
    let tape = Tape::new(multipliers, false);
    let (state, first) = start(graph, domain, values)?;
    let changes = (keep == Keep::Changes).then(Changes::default);
    let seen = values.then(Elements::new);
    let mut walker = Walker { tape: &tape, weights, state, seen, changes };
    let mut trail = Vec::new();
    for (i, node) in graph.nodes().iter().enumerate().skip(first) {
        walker.node(node, "", &NodeId::default().child(i))?;
        walker.unite()?;
        if !values {
            let factor = walker.state.change.matrix(&tape).or_stop()?;
            trail.push((NodeId::default().child(i), tape.norm(&factor)));
        }
    }
    let end = if values { walker.state.value.as_ref().or_stop()? } else { &walker.state.change };
    let factor = end.matrix(&tape).or_stop()?;
    let seen = walker.seen.take().unwrap_or_default();
    let changes = walker.changes.take().unwrap_or_default();
    Ok(End { tape, factor, trail, seen, changes })
}

impl Walker<'_> {
    fn nodes(&mut self, nodes: &[Node], path: &str, id: &NodeId) -> Result<(), Stop> {
        let mut numbered = nodes.iter().enumerate();
        numbered.try_for_each(|(i, node)| self.node(node, path, &id.child(i)))
    }

    /// Both spans.
    fn each(&mut self) -> impl Iterator<Item = &mut Span> {
        std::iter::once(&mut self.state.change).chain(&mut self.state.value)
    }

    /// Both spans, each with its word in the names of steps.
    fn named(&mut self) -> impl Iterator<Item = (&mut Span, &'static str)> {
        self.each().zip(["change", "value"])
    }

    /// One span that contains those of all classes of tokens.
    pub(super) fn unite(&mut self) -> Result<(), Stop> {
        let tape = self.tape;
        for (change, value) in std::mem::take(&mut self.state.others) {
            self.state.change.unite(tape, change).or_stop()?;
            if let Some(into) = &mut self.state.value {
                into.unite(tape, value).or_stop()?;
            }
        }
        Ok(())
    }

    /// Keeps bounds on the elements of a tensor, if they are wanted.
    pub(super) fn keep(
        &mut self,
        id: &NodeId,
        stage: Stage,
        elements: impl FnOnce() -> Vec<Upper>,
    ) {
        if let Some(seen) = &mut self.seen {
            seen.insert(Site { id: id.clone(), stage }, elements());
        }
    }

    /// The same for the current value, that of all classes of tokens.
    fn keep_output(&mut self, id: &NodeId) -> Result<(), Stop> {
        if self.seen.is_none() {
            return Ok(());
        }
        let mut elements: Vec<Upper> = Vec::new();
        for span in self.state.value.iter().chain(self.state.others.iter().map(|(_, value)| value))
        {
            let rows = span.matrix(self.tape).or_stop()?.value.row_norms();
            elements.resize(rows.len(), Upper::ZERO);
            elements.iter_mut().zip(rows).for_each(|(x, row)| *x = x.max(row));
        }
        self.keep(id, Stage::Output, || elements);
        Ok(())
    }

    fn tidy(&mut self) -> Result<(), Stop> {
        let tape = self.tape;
        self.each().try_for_each(|span| {
            let slack = if span.alone() { 1 } else { 2 };
            span.tidy(tape, slack).or_stop()
        })
    }

    pub(super) fn bias(&mut self, at: &Place<'_>, b: &Approx) -> Result<(), Stop> {
        let tape = self.tape;
        match &mut self.state.value {
            Some(value) => value.shift(tape, &at.step("constant"), b).or_stop(),
            None => Ok(()),
        }
    }

    pub(super) fn node(&mut self, node: &Node, prefix: &str, id: &NodeId) -> Result<(), Stop> {
        self.keep_operand(node, id)?;
        self.step(node, prefix, id)?;
        self.keep_change(id)?;
        self.keep_output(id)
    }

    /// Keeps how far each element that an elementwise node reads can change, if that is wanted.
    fn keep_operand(&mut self, node: &Node, id: &NodeId) -> Result<(), Stop> {
        let sorted = matches!(node.op, Op::MaxMin);
        let elementwise =
            matches!(node.op, Op::Activation { .. } | Op::SoftCap { .. } | Op::Clip { .. });
        if self.changes.is_none() || !(sorted || elementwise) {
            return Ok(());
        }
        self.unite()?;
        let tape = self.tape;
        let mut x = self.state.change.matrix(tape).or_stop()?;
        if sorted {
            let half = x.value.rows / 2;
            x = tape.var(pairs(half, 1.0, -1.0).times(&x.value));
        }
        let rows = x.value.row_norms();
        let site = Site { id: id.clone(), stage: Stage::Operand };
        self.changes.iter_mut().for_each(|to| {
            to.elements.insert(site.clone(), rows.clone());
        });
        Ok(())
    }

    /// Keeps how far a token of a node's output can change, of any class, if that is wanted.
    fn keep_change(&mut self, id: &NodeId) -> Result<(), Stop> {
        if self.changes.is_none() {
            return Ok(());
        }
        let tape = self.tape;
        let others = self.state.others.iter().map(|(change, _)| change);
        let mut most = Upper::ZERO;
        for span in std::iter::once(&self.state.change).chain(others) {
            most = most.max(tape.norm(&span.matrix(tape).or_stop()?).value);
        }
        self.changes.iter_mut().for_each(|to| {
            to.norms.insert(id.clone(), most);
        });
        Ok(())
    }

    fn step(&mut self, node: &Node, prefix: &str, id: &NodeId) -> Result<(), Stop> {
        let (tape, path) = (self.tape, node.path(prefix));
        let path = path.as_str();
        let at = &Place { path, id };
        self.unite()?;
        match &node.op {
            Op::Sequential { body } => self.nodes(body, path, id),
            // a F_x + b F_y, for one ζ.
            Op::Residual { skip, branch, body } => {
                self.each().for_each(|span| span.registers.push(span.current().clone()));
                self.nodes(body, path, id)?;
                let mut others = std::mem::take(&mut self.state.others);
                let end = |span: &mut Span| {
                    let (y, x) = (span.pop()?, span.pop()?);
                    span.registers.push(blend(tape, *skip, &x, *branch, &y));
                    Some(())
                };
                let mut all = self.each().chain(others.iter_mut().flat_map(|(a, b)| [a, b]));
                all.try_for_each(end).or_stop()?;
                drop(all);
                self.state.others = others;
                self.unite()?;
                self.tidy()
            }
            Op::Parallel { branches } => {
                // Below the current value: the input, and the sum so far.
                self.each().for_each(|span| {
                    span.registers.push(vec![Block::Zero; span.sizes.len()]);
                });
                for (i, branch) in branches.iter().enumerate() {
                    self.each().for_each(|span| {
                        let x = span.registers[span.registers.len() - 2].clone();
                        span.registers.push(x);
                    });
                    self.node(branch, path, &id.child(i))?;
                    self.unite()?;
                    let added = self.each().try_for_each(|span| {
                        let (y, sum) = (span.pop()?, span.pop()?);
                        span.registers.push(blend(tape, 1.0, &sum, 1.0, &y));
                        Some(())
                    });
                    added.or_stop()?;
                }
                let ended = self.each().try_for_each(|span| {
                    let (sum, _) = (span.pop()?, span.pop()?);
                    span.registers.push(sum);
                    Some(())
                });
                ended.or_stop()?;
                self.tidy()
            }
            Op::Linear { bias, .. } => {
                let w = self.weights.get(&at.weight("weight"))?;
                self.each().for_each(|span| span.map(tape, &w));
                if *bias {
                    let b = self.weights.column(&at.weight("bias"))?;
                    self.bias(at, &b)?;
                }
                if self.state.change.alone() { self.tidy() } else { Ok(()) }
            }
            Op::Embedding { .. }
            | Op::Conv(_)
            | Op::Shift { .. }
            | Op::SpaceToDepth { .. }
            | Op::Pool(_)
            | Op::GlobalPool { .. } => Err(Stop::Nothing),
            // Another vector for each token, each at most the largest row.
            Op::Positions { .. } => {
                let Some(value) = &mut self.state.value else { return Ok(()) };
                let table = self.weights.get(&at.weight("weight"))?;
                let largest = table.row_norms().into_iter().fold(Upper::ZERO, Upper::max);
                let radius = tape.constant_scalar(largest);
                let width = table.columns;
                value.ball_beside(tape, &at.step("value"), radius, width, true).or_stop()?;
                self.tidy()
            }
            Op::Activation { function, scale } => self.activation(*function, *scale, at),
            Op::Scale { factor } => {
                self.each().for_each(|span| {
                    let y = by(tape, *factor, span.current());
                    span.set(y);
                });
                Ok(())
            }
            // Slopes in (0, 1], and the same of x ↦ cap tanh(x/cap)/x.
            Op::SoftCap { cap } => self.bounded(at, abs(*cap)),
            Op::Clip { limit } => self.bounded(at, abs(*limit)),
            Op::Attention(a) => attention::step(self, a, at),
            // Every part of a token is a map of another token.
            Op::OffsetAttention { head_dim, offsets, .. } => {
                let norm = self.at_offsets(offsets.len(), at)?;
                self.restart(at, offsets.len() * head_dim, norm)
            }
            Op::MaxMin => self.max_min(at),
            Op::RmsNorm { eps, gain, .. } => self.norm(at, *eps, *gain, false, false),
            Op::LayerNorm { eps, gain, bias, .. } => self.norm(at, *eps, *gain, *bias, true),
            // The projection onto a ball has a symmetric derivative between 0 and 1.
            Op::Normalise { eps } => {
                let slope = Upper::ONE.div_up(*eps);
                self.shrink(at, slope)?;
                self.at_most(at, Upper::ONE)
            }
            Op::GatedMlp { function, bias, .. } => self.gated(*function, *bias, at),
            Op::Flatten => Ok(()),
            // Of one token, or of their mean, all is true that is of each. Beside what is saved, which may be
            // of another token, it has unknowns of its own.
            Op::MeanPool | Op::FirstToken | Op::LastToken => {
                if self.state.change.alone() {
                    return Ok(());
                }
                self.restart(at, height(self.state.change.current()), Upper::ONE)
            }
            // A token is a part of the image.
            Op::Patches { size } => {
                let width = self.state.channels * size * size;
                self.restart(at, width, Upper::ONE)
            }
            Op::ClassToken { .. } => {
                self.state.context = self.state.context.and_then(|tokens| tokens.checked_add(1));
                let Some(value) = &mut self.state.value else { return Ok(()) };
                let row = self.weights.get(&at.weight("weight"))?;
                let longest = row.row_norms().into_iter().fold(Upper::ZERO, Upper::max);
                let now = tape.norm(&value.matrix(tape).or_stop()?);
                let longest = tape.constant_scalar(longest);
                let radius = if now.value < longest.value { longest } else { now };
                let width = row.columns;
                value.ball_beside(tape, &at.step("token"), radius, width, false).or_stop()
            }
            Op::FirstAndMean => {
                let width = 2 * height(self.state.change.current());
                self.restart(at, width, count(2).sqrt())
            }
        }
    }

    /// `√Σ (|w_h| ‖V_h‖)²` of heads at fixed offsets.
    fn at_offsets(&self, heads: usize, at: &Place<'_>) -> Result<Upper, Stop> {
        let mut squares = Upper::ZERO;
        for index in 0..heads {
            let part = Part { index, count: heads };
            let value = WeightBlock::whole(at.weight("value.weight")).rows(part);
            let share = WeightBlock::whole(at.weight("shares.weight")).columns(part);
            let norm = self.weights.block(&value)?.norm() * self.weights.block(&share)?.norm();
            squares = squares + norm * norm;
        }
        Ok(squares.sqrt())
    }

    /// With `a = u + v` and `b = u − v` for the halves, max and min are `½ (a + |b|)` and `½ (a −
    /// |b|)`. So nothing is uncertain about a, and one slope in [−1, 1] about each element of b.
    fn max_min(&mut self, at: &Place<'_>) -> Result<(), Stop> {
        let tape = self.tape;
        let half = height(self.state.change.current()) / 2;
        for (span, what) in self.named() {
            if height(span.current()) != 2 * half || half == 0 {
                return Err(Stop::Nothing);
            }
            let [sum, difference] = [1.0, -1.0].map(|sign| pairs(half, 1.0, sign));
            let y = span.pop().or_stop()?;
            span.registers.push(times(tape, &sum, &y));
            span.registers.push(times(tape, &difference, &y));
            slopes(tape, span, &at.step(what), 0.0, Upper::ONE, false).or_stop()?;
            let (b, a) = (span.pop().or_stop()?, span.pop().or_stop()?);
            let [sum, difference] = [1.0, -1.0].map(|sign| Rc::new(pairs(half, 0.5, sign).t()));
            let y = blend(tape, 1.0, &times(tape, &sum, &a), 1.0, &times(tape, &difference, &b));
            span.registers.push(y);
            if span.alone() {
                span.tidy(tape, 1).or_stop()?;
            }
        }
        Ok(())
    }

    /// From ellipsoids to balls: the largest norm, times a factor.
    fn restart(&mut self, at: &Place<'_>, width: usize, factor: Upper) -> Result<(), Stop> {
        let tape = self.tape;
        for (span, what) in self.named() {
            let norm = tape.norm(&span.matrix(tape).or_stop()?);
            let radius = tape.multiply(norm, tape.constant_scalar(factor));
            let what = at.step(what);
            span.ball_beside(tape, &what, radius, width, false).or_stop()?;
        }
        Ok(())
    }

    /// Replaces what is known about values by a ball, if that is smaller.
    fn at_most(&mut self, at: &Place<'_>, radius: Upper) -> Result<(), Stop> {
        let tape = self.tape;
        let Some(value) = &mut self.state.value else { return Ok(()) };
        let width = height(value.current());
        let ball = radius.to_f64().max(f64::MIN_POSITIVE).log2() + 0.5 * (width as f64).log2();
        if value.size() > ball {
            let radius = tape.constant_scalar(radius);
            value.ball_beside(tape, &at.step("ball"), radius, width, false).or_stop()?;
        }
        Ok(())
    }

    /// An elementwise function with slopes in [0, 1] that is 0 at 0 and at most `limit`.
    fn bounded(&mut self, at: &Place<'_>, limit: Upper) -> Result<(), Stop> {
        let half = Upper::from_f64(0.5);
        slopes(self.tape, &mut self.state.change, &at.step("change"), 0.5, half, false)
            .or_stop()?;
        if let Some(value) = &mut self.state.value {
            slopes(self.tape, value, &at.step("value"), 0.5, half, false).or_stop()?;
            let width = height(value.current());
            self.at_most(at, limit * count(width).sqrt())?;
        }
        Ok(())
    }

    fn activation(&mut self, function: Function, scale: f64, at: &Place<'_>) -> Result<(), Stop> {
        let tape = self.tape;
        if function == Function::Relu2 {
            return self.relu2(scale, at);
        }
        // What rounding takes from the centre goes to the spread.
        let of = |(centre, spread): (f64, Upper)| {
            let product = centre * scale;
            // Next to 0 the difference underflows, too.
            let far = product.abs() >= 1e-280 || centre == 0.0 || scale == 0.0;
            let exact = far && centre.mul_add(scale, -product) == 0.0;
            let off = abs(product) * Upper::from_f64(f64::EPSILON);
            let off = off + Upper::from_f64(f64::MIN_POSITIVE);
            (product, spread * abs(scale) + if exact { Upper::ZERO } else { off })
        };
        let (centre, spread) = of(pointwise::slopes(function, Upper::INFINITY));
        slopes(tape, &mut self.state.change, &at.step("change"), centre, spread, false)
            .or_stop()?;
        let Some(value) = &mut self.state.value else { return Ok(()) };
        let (pair, zero) = pointwise::secants(function);
        let (centre, spread) = of(pair);
        slopes(tape, value, &at.step("value"), centre, spread, false).or_stop()?;
        if zero != 0.0 {
            let width = height(value.current());
            // φ(0) is rounded.
            let off = count(width).sqrt() * Upper::from_f64(f64::EPSILON);
            let b = Approx::new(width, 1, vec![zero; width], 0, off).blend(scale, None);
            value.shift(tape, &at.step("constant"), &b).or_stop()?;
        }
        Ok(())
    }

    /// The slope of max(u, 0)² is at most twice the largest element.
    fn relu2(&mut self, scale: f64, at: &Place<'_>) -> Result<(), Stop> {
        let tape = self.tape;
        let value = self.state.value.as_mut().or_stop()?;
        let largest = tape.row_norms(&value.matrix(tape).or_stop()?);
        let of = |factor: f64| tape.scale(&largest, tape.constant_scalar(abs(factor)));
        for (span, by, what) in
            [(value, of(scale), "value"), (&mut self.state.change, of(2.0 * scale), "change")]
        {
            let y = rows_by(tape, &by, span.current());
            span.set(y);
            let what = at.step(what);
            slopes(tape, span, &what, 0.0, Upper::ONE, false).or_stop()?;
        }
        Ok(())
    }

    /// A symmetric derivative between 0 and `slope`, which the ratio of norms is as well.
    fn shrink(&mut self, at: &Place<'_>, slope: Upper) -> Result<(), Stop> {
        let tape = self.tape;
        let half = slope.to_f64() / 2.0;
        let spread = Upper::from_f64(half.next_up());
        for (span, what) in self.named() {
            slopes(tape, span, &at.step(what), half, spread, true).or_stop()?;
        }
        Ok(())
    }

    /// The Jacobian of x/√(mean x² + ε) is symmetric, between 0 and 1/√ε; centring comes before.
    fn norm(
        &mut self,
        at: &Place<'_>,
        eps: f64,
        gain: bool,
        bias: bool,
        centre: bool,
    ) -> Result<(), Stop> {
        let tape = self.tape;
        if centre {
            self.each().for_each(|span| {
                span.flatten(tape);
                if let [Block::Dense(x)] = &span.current()[..] {
                    let y = vec![Block::Dense(tape.centred(x))];
                    span.set(y);
                }
            });
        }
        self.shrink(at, Upper::ONE.div_up(root_down(eps)))?;
        let width = height(self.state.change.current());
        self.at_most(at, count(width).sqrt())?;
        if gain {
            let gamma = self.weights.get(&at.weight("weight"))?;
            let gamma = tape.constant((*gamma).clone());
            self.each().for_each(|span| {
                let y = rows_by(tape, &gamma, span.current());
                span.set(y);
            });
        }
        if bias {
            let b = self.weights.column(&at.weight("bias"))?;
            self.bias(at, &b)?;
        }
        Ok(())
    }

    /// `W_d (φ(g) ∘ u)`: `δ(φ(g) ∘ u) = φ'(g) ∘ u ∘ δg + φ(g) ∘ δu`, each factor without δ bounded
    /// by its largest value.
    fn gated(&mut self, function: Function, bias: bool, at: &Place<'_>) -> Result<(), Stop> {
        let tape = self.tape;
        let map = |name: &str| self.weights.get(&at.weight(&join(name, "weight")));
        let (gate, up, down) = (map("gate")?, map("up")?, map("down")?);
        let column = |name: &str| self.weights.column(&at.weight(&join(name, "bias")));
        let value = self.state.value.as_mut().or_stop()?;
        if bias {
            value.need_one(tape, &at.step("constant"), column("gate")?.log_size()).or_stop()?;
        }
        let x = value.current().clone();
        let mut largest = |name: &str, w: &Rc<Approx>| -> Result<Var, Stop> {
            value.set(times(tape, w, &x));
            if bias {
                value.shift(tape, &at.step("constant"), &column(name)?).or_stop()?;
            }
            Ok(tape.row_norms(&value.matrix(tape).or_stop()?))
        };
        let (g, u) = (largest("gate", &gate)?, largest("up", &up)?);
        self.keep(at.id, Stage::Gate, || row(&g));
        self.keep(at.id, Stage::Up, || row(&u));
        let value = self.state.value.as_mut().or_stop()?;
        let opened = values(tape, function, &g);
        // φ(g) ∘ u is u by at most the largest φ(g).
        let y = rows_by(tape, &opened, value.current());
        value.set(y);
        slopes(tape, value, &at.step("value"), 0.0, Upper::ONE, false).or_stop()?;
        value.map(tape, &down);
        let slope = pointwise::slope(function, worst(&g));
        let closed = tape.scale(&u, tape.constant_scalar(slope));
        let y = self.state.change.pop().or_stop()?;
        let parts = [(&closed, times(tape, &gate, &y)), (&opened, times(tape, &up, &y))];
        let parts = parts.map(|(by, y)| rows_by(tape, by, &y));
        let what = at.step("change");
        uncertain(tape, &mut self.state.change, &what, parts, 0.0, Upper::ONE, false).or_stop()?;
        self.state.change.map(tape, &down);
        if bias {
            let b = column("down")?;
            self.bias(at, &b)?;
        }
        Ok(())
    }
}
