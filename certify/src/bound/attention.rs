//! Multi-head attention: the smallest of three bounds, each valid for any number of heads.
//! [`bound`] takes the smallest; the methods of [`Heads`] are the three.
//!
//! *Notation.* Tokens have norm at most R. Q_h, K_h and V_h are the rows of head h of the weights
//! (with the gain of a norm in front), O_h its columns of the output map O, and s is the factor on
//! the logits. δ is the derivative along a change δX, and ‖δX‖ the largest norm of a token of it.
//!
//! *One head.* With probabilities p over tokens j, logits λ_j = s⟨q, k_j⟩ and values v_j,
//!
//! ```text
//! δo = Σ_j p_j δv_j + Cov_p(δλ, v).
//! ```
//!
//! The first term is at most ‖V_h‖ ‖δX‖. For the second, the Cauchy–Schwarz inequality gives
//! `‖Cov_p(δλ, v)‖ ≤ max_j |δλ_j| · max_j ‖v_j − c‖` for any c. With c the constant part of the
//! values, such as a bias, `‖v_j − c‖ ≤ ‖V_h‖ R`. [`Layer::head`] gives Λ_h with
//! `|δλ_j| ≤ s Λ_h ‖δX‖`. So
//!
//! ```text
//! ‖δo‖ ≤ ℓ_h ‖δX‖,    ℓ_h = ‖V_h‖ (1 + R s Λ_h).
//! ```
//!
//! *All heads.* Three bounds hold, numbered as in `docs/mathematics.md`:
//!
//! ```text
//! 1. Σ_h ‖O_h V_h‖ (1 + R s Λ_h)                                              Heads::add_up
//! 2. ‖O‖ √Σ_h ℓ_h²                                                            Heads::orthogonal
//! 3. ‖O‖ [√Σ_h ‖V_h‖² + s R (‖Q‖ max_h k_h ‖V_h‖ + q max_h ‖K_h‖ ‖V_h‖)]      Heads::stacked
//! ```
//!
//! with k_h the size of the largest key of head h, and q that of the largest query of all heads
//! together.
//!
//! *Variants.* A mask removes tokens from the sums. A position bias on the logits, learned or a
//! slope over the distance, does not depend on X. A term that is the same for all j changes no p: a
//! key bias is such a term where the logits are plain products. Rotary positions rotate queries and
//! keys, which keeps their norms. A norm on
//! queries and keys multiplies ‖Q‖, ‖Q_h‖ and ‖K_h‖ by its Lipschitz constant (those of the whole
//! maps, if it is taken over all heads), and bounds q and k_h ([`Layer::projection`]); a shift of
//! that norm adds to their size. A soft cap on the logits has slope at most 1.

use lipschitz_nn::graph::{Attention, NormKind, Span, join};

use super::norms::{Block, Norm, Norms, Part};
use super::reads::{self, Reads};
use super::state::{Layout, State, Step};
use crate::Error;
use crate::upper::{Upper, abs, count, root_down};

/// The rule of an attention node at `path`, for inputs `x`.
pub(super) fn bound(
    a: &Attention,
    path: &str,
    norms: &dyn Norms,
    x: &State,
) -> Result<Step, Error> {
    let layer = Layer::new(a, path, norms, x)?;
    let heads = layer.heads()?;
    let output = norms.matrix(&layer.output())?;
    let query = layer.all_queries(&heads)?;
    let rules = [
        (heads.add_up(), "heads add up"),
        (heads.orthogonal(output), "orthogonal heads"),
        (heads.stacked(output, query), "stacked queries"),
    ];
    let (best, rule) =
        rules.into_iter().fold(rules[0], |best, next| if next.0 < best.0 { next } else { best });
    let (c, radius) = (abs(a.output_scale), layer.radius(&heads, output)?);
    let together = match x.layout {
        Layout::Tokens(Some(tokens)) => Some(c * layer.together(&heads, output, tokens)?),
        _ => None,
    };
    Ok(Step {
        lipschitz: c * best,
        together,
        out: State::new(c * radius, a.dim),
        rule: rule.into(),
        whole: None,
    })
}

/// The constant of heads at fixed offsets: each part of an output is a head's map of one token, so
/// `‖δy_t‖² = Σ_h w_h² ‖V_h δx_{t−o_h}‖² ≤ Σ_h w_h² ‖V_h‖² · ‖δX‖²`; and that is at most
/// `‖w‖² max_h ‖V_h‖²`, which is what a cap on all shares together says.
pub(crate) fn at_offsets(path: &str, heads: usize, norms: &dyn Norms) -> Result<Upper, Error> {
    let (value, shares) = (join(path, "value.weight"), join(path, "shares.weight"));
    let (mut squares, mut largest) = (Upper::ZERO, Upper::ZERO);
    for index in 0..heads {
        let part = Part { index, count: heads };
        let own = norms.matrix(&Block::whole(&value).rows(part))?;
        let through = norms.matrix(&Block::whole(&shares).columns(part))? * own;
        (squares, largest) = (squares + through * through, largest.max(own));
    }
    Ok(squares.sqrt().min(norms.row(&Block::whole(&shares))? * largest))
}

/// Whether the logits are plain products of linear queries and keys.
pub(crate) fn plain(a: &Attention) -> bool {
    a.rotary.is_none() && a.query_key_norm.is_none() && a.logit_cap.is_none()
}

/// Queries or keys as a function of their token.
#[derive(Clone, Copy)]
struct Projection {
    /// Lipschitz constant.
    slope: Upper,
    /// Largest norm.
    size: Upper,
}

/// What the bounds need to know about one query head.
struct Head {
    /// ‖V_h‖
    value: Upper,
    /// ‖O_h V_h‖
    output_value: Upper,
    query: Projection,
    key: Projection,
    /// Constants of the logits over s for a change of the query's token and for one of the key's: any
    /// of these pairs holds.
    logit_slopes: Vec<(Upper, Upper)>,
}

impl Head {
    /// Λ_h, where changes of keys count `root` times.
    fn logit_slope(&self, root: Upper) -> Upper {
        let slopes = self.logit_slopes.iter().map(|(query, key)| *query + root * *key);
        slopes.fold(Upper::INFINITY, Upper::min)
    }
}

/// All heads of a layer.
struct Heads {
    heads: Vec<Head>,
    /// R: bound on the norm of a token of the input.
    radius: Upper,
    /// s: factor on the logits.
    logit_scale: Upper,
}

impl Heads {
    fn sum(&self, f: impl Fn(&Head) -> Upper) -> Upper {
        self.heads.iter().fold(Upper::ZERO, |sum, h| sum + f(h))
    }

    fn max(&self, f: impl Fn(&Head) -> Upper) -> Upper {
        self.heads.iter().fold(Upper::ZERO, |max, h| max.max(f(h)))
    }

    fn root_of_squares(&self, f: impl Fn(&Head) -> Upper) -> Upper {
        self.sum(|h| f(h) * f(h)).sqrt()
    }

    /// `v + v R s Λ_h`, the constant of head h for values that are bounded by v: ℓ_h for ‖V_h‖.
    fn constant(&self, h: &Head, v: Upper) -> Upper {
        self.constant_of(h, v, Upper::ONE)
    }

    /// `v √c + v R s Λ_h`, where tokens are read c times altogether; see [`Layer::together`].
    fn constant_of(&self, h: &Head, v: Upper, root: Upper) -> Upper {
        v * root + v * self.radius * self.logit_scale * h.logit_slope(root)
    }

    /// Bound 1: the output is a sum over heads, and O_h goes inside the sum over tokens.
    fn add_up(&self) -> Upper {
        self.sum(|h| self.constant(h, h.output_value))
    }

    /// Bound 2: the heads' outputs are orthogonal blocks in front of O.
    fn orthogonal(&self, output: Upper) -> Upper {
        output * self.root_of_squares(|h| self.constant(h, h.value))
    }

    /// Bound 3: as bound 2, and `Σ_h ‖q_h‖² = ‖q‖²`, for the change of the query and for its size
    /// alike. `query` is that of all heads together.
    fn stacked(&self, output: Upper, query: Projection) -> Upper {
        let queries = query.slope * self.max(|h| h.key.size * h.value)
            + query.size * self.max(|h| h.key.slope * h.value);
        let logits = self.logit_scale * self.radius * queries;
        output * (self.root_of_squares(|h| h.value) + logits)
    }
}

/// Queries or keys in front of their norm, if they have one.
struct Normed {
    /// The constant of what it is taken over.
    map: Upper,
    /// How many elements that has.
    width: usize,
    /// The largest ℓ2 norm of what a head's own elements can be, less the mean where that is taken.
    size: Upper,
}

/// An attention node, the norms of its weights, and what is known about its input.
struct Layer<'a> {
    a: &'a Attention,
    path: &'a str,
    norms: &'a dyn Norms,
    x: &'a State,
    /// Largest gain of the norm on queries, if there is one.
    query_gain: Option<Upper>,
    /// Largest gain of the norm on keys, if there is one.
    key_gain: Option<Upper>,
}

impl<'a> Layer<'a> {
    fn new(
        a: &'a Attention,
        path: &'a str,
        norms: &'a dyn Norms,
        x: &'a State,
    ) -> Result<Self, Error> {
        let mut layer = Self { a, path, norms, x, query_gain: None, key_gain: None };
        if a.query_key_norm.is_some() {
            layer.query_gain = Some(norms.largest(&layer.weight("query_norm"))?);
            layer.key_gain = Some(norms.largest(&layer.weight("key_norm"))?);
        }
        Ok(layer)
    }

    fn weight(&self, name: &str) -> String {
        join(self.path, &join(name, "weight"))
    }

    /// O.
    fn output(&self) -> Block {
        Block::whole(self.weight("output"))
    }

    /// Rows of Q, K or V, with the gain of the norm in front.
    fn block(&self, name: &str, rows: Part) -> Block {
        Block::whole(self.weight(name)).rows(rows).gain(self.x.gain.clone())
    }

    /// The norm of the constant part of these rows: the bias, and the shift of the norm in front.
    fn offset(&self, name: &str, rows: Part) -> Result<Upper, Error> {
        let bias = self.a.bias.then(|| join(self.path, &join(name, "bias")));
        let block = Block::whole(self.weight(name)).rows(rows);
        self.norms.offset(&block, self.x.shift.as_deref(), bias.as_deref())
    }

    /// The norm of the shift that the norm on queries or keys gives these heads, if it has one.
    fn shift(&self, name: &str, heads: Part) -> Result<Upper, Error> {
        if !self.a.query_key_shift {
            return Ok(Upper::ZERO);
        }
        let name_of = join(self.path, &format!("{name}_norm.bias"));
        if self.a.query_key_span != Span::Head {
            return self.norms.norm(&Norm::Vector(Block::whole(name_of).rows(heads)));
        }
        // The same for each head.
        let all = if name == "query" { self.a.heads } else { self.a.key_value_heads };
        Ok(self.norms.vector(&name_of)? * count(all / heads.count).sqrt())
    }

    fn heads(&self) -> Result<Heads, Error> {
        self.norms.prepare(&self.of_heads())?;
        let heads = (0..self.a.heads).map(|h| self.head(h)).collect::<Result<_, _>>()?;
        Ok(Heads { heads, radius: self.x.radius, logit_scale: abs(self.a.logit_scale) })
    }

    /// The norms that each head asks for.
    fn of_heads(&self) -> Vec<Norm> {
        let Attention { heads, key_value_heads, .. } = *self.a;
        let of = |h: usize| {
            let own = Part { index: h, count: heads };
            let shared = Part { index: self.a.group(h), count: key_value_heads };
            let (query, key) = (self.block("query", own), self.block("key", shared));
            let (value, output) = (self.block("value", shared), self.output().columns(own));
            let both = plain(self.a).then(|| Norm::QueryKey(query.clone(), key.clone()));
            let through = Norm::OutputValue(output.clone(), value.clone());
            let each = [query, key, value].map(Norm::Matrix);
            each.into_iter().chain(both).chain([through, Norm::Matrix(output)])
        };
        (0..heads).flat_map(of).collect()
    }

    /// Head number `h`. Λ_h is `‖δq‖‖k‖ + ‖q‖‖δk‖`, or for plain logits the smaller of that and
    /// `2 ‖Q_hᵀK_h‖ R + ‖b_q‖‖K_h‖`.
    fn head(&self, h: usize) -> Result<Head, Error> {
        let Attention { heads, key_value_heads, .. } = *self.a;
        let own = Part { index: h, count: heads };
        let shared = Part { index: self.a.group(h), count: key_value_heads };
        let query_map = self.norms.matrix(&self.block("query", own))?;
        let key_map = self.norms.matrix(&self.block("key", shared))?;
        let value = self.norms.matrix(&self.block("value", shared))?;
        let query_offset = self.offset("query", own)?;
        // A key bias adds the same to all logits of a query, if they are plain.
        let key_offset = if plain(self.a) { Upper::ZERO } else { self.offset("key", shared)? };
        let normed = self.normed("query", (query_map, query_offset), heads)?;
        let query = self.projection(self.query_gain, self.shift("query", own)?, normed);
        let normed = self.normed("key", (key_map, key_offset), key_value_heads)?;
        let key = self.projection(self.key_gain, self.shift("key", shared)?, normed);

        let mut logit_slopes = vec![(query.slope * key.size, query.size * key.slope)];
        if plain(self.a) {
            // λ_ij = x_iᵀ Q_hᵀ K_h x_j + b_qᵀ K_h x_j, up to what is the same for all j.
            let (q, k) = (self.block("query", own), self.block("key", shared));
            let product = self.norms.norm(&Norm::QueryKey(q, k))?;
            let r = product * self.x.radius;
            logit_slopes.push((r, r + query_offset * key_map));
        }
        let columns = self.output().columns(own);
        let output_value = self
            .norms
            .norm(&Norm::OutputValue(columns.clone(), self.block("value", shared)))?
            .min(self.norms.matrix(&columns)? * value);
        Ok(Head { value, output_value, query, key, logit_slopes })
    }

    /// The constant in the ℓ2 norm of all of so many tokens together, in which δX is a matrix.
    ///
    /// *One head.* `‖P δX V_hᵀ‖ ≤ ‖P‖₂ ‖V_h‖ ‖δX‖` with ‖P‖₂ at most √c, c the largest column sum of
    /// the probabilities ([`reads`]). For the change of P, a covariance under the probabilities p of
    /// query i is at most `√Σ_j p_j |δλ_ij|² · ‖V_h‖ R`, where `|δλ_ij| ≤ s(α ‖δx_i‖ + β ‖δx_j‖)`. By
    /// Minkowski's inequality, the squares of all queries add up to
    ///
    /// ```text
    /// √Σ_ij p_ij |δλ_ij|² ≤ s (α √Σ_ij p_ij ‖δx_i‖² + β √Σ_ij p_ij ‖δx_j‖²) ≤ s (α + β √c) ‖δX‖,
    /// ```
    ///
    /// since rows of P sum up to 1 and columns to at most c. So `ℓ_h = ‖V_h‖ (√c + R s (α + β √c))`,
    /// and heads add up or are orthogonal as for single tokens.
    ///
    /// *Stacked.* The same sums over all heads at once, with the largest c, have Σ_h ‖V_h δx‖² = ‖V δx‖²
    /// in them, and likewise for queries and keys: with k_h and q_h the largest key and query of a head,
    ///
    /// ```text
    /// ‖O‖ [√c ‖V‖ + s R (max_h k_h ‖V_h‖ ‖Q‖ + √c max_h q_h ‖V_h‖ ‖K‖)].
    /// ```
    ///
    /// A map of keys or values that a group of heads shares counts once for each.
    fn together(&self, heads: &Heads, output: Upper, tokens: usize) -> Result<Upper, Error> {
        let roots: Vec<Upper> = (heads.heads.iter().enumerate())
            .map(|(h, head)| Ok(self.read(h, head, tokens)?.sqrt()))
            .collect::<Result<_, Error>>()?;
        let root = roots.iter().copied().fold(Upper::ZERO, Upper::max);
        if !root.is_finite() {
            return Ok(Upper::INFINITY);
        }
        let (mut sum, mut squares) = (Upper::ZERO, Upper::ZERO);
        for (head, root) in heads.heads.iter().zip(roots) {
            sum = sum + heads.constant_of(head, head.output_value, root);
            let own = heads.constant_of(head, head.value, root);
            squares = squares + own * own;
        }
        let repeats = count(self.a.group_size()).sqrt();
        let value = self.norms.matrix(&self.block("value", Part::ALL))? * repeats;
        let query = self.all_queries(heads)?.slope * heads.max(|h| h.key.size * h.value);
        let key = self.all_keys()? * repeats * root * heads.max(|h| h.query.size * h.value);
        let stacked = root * value + heads.logit_scale * heads.radius * (query + key);
        Ok(sum.min(output * squares.sqrt()).min(output * stacked))
    }

    /// The constant of the keys of all heads as one vector.
    fn all_keys(&self) -> Result<Upper, Error> {
        let map = self.norms.matrix(&self.block("key", Part::ALL))?;
        let width = self.a.key_value_heads * self.a.head_dim;
        let normed = Normed { map, width, size: Upper::ZERO };
        Ok(self.projection(self.key_gain, Upper::ZERO, normed).slope)
    }

    /// c: how often head `h` reads one token, at most.
    fn read(&self, h: usize, head: &Head, tokens: usize) -> Result<Upper, Error> {
        let a = self.a;
        let alone = self.norms.norm(&Norm::Reads(Reads::new(a, self.path, h, tokens)))?;
        let logit = abs(a.logit_scale) * head.query.size * head.key.size;
        let logit = a.logit_cap.map_or(logit, |cap| logit.min(abs(cap)));
        Ok(reads::with_contents(alone, logit, tokens))
    }

    /// What a norm on the queries or keys of one of `heads` heads is taken over, from the norms of the
    /// head's own map and offset.
    ///
    /// A norm over all heads makes each depend on the others, so its slope is that of the whole map. An RMS
    /// norm divides a head's own elements alone. A layer norm takes the mean of all heads from them, and
    /// what is left is at most as large as all heads together.
    fn normed(
        &self,
        name: &str,
        (map, offset): (Upper, Upper),
        heads: usize,
    ) -> Result<Normed, Error> {
        let (width, own) = (self.a.head_dim, map * self.x.radius + offset);
        if self.a.query_key_norm.is_none() || self.a.query_key_span != Span::Heads {
            return Ok(Normed { map, width, size: own });
        }
        let map = self.norms.matrix(&self.block(name, Part::ALL))?;
        let size = match self.a.query_key_kind {
            NormKind::Rms => own,
            NormKind::Layer => map * self.x.radius + self.offset(name, Part::ALL)?,
        };
        Ok(Normed { map, width: heads * width, size })
    }

    /// Queries or keys. If there is a norm on them, `gain` is its largest gain and `shift` the norm of its
    /// shift.
    fn projection(&self, gain: Option<Upper>, shift: Upper, normed: Normed) -> Projection {
        let Normed { map, width, size } = normed;
        match (gain, self.a.query_key_norm) {
            (Some(gain), Some(eps)) => {
                let slope = gain.div_up(root_down(eps));
                let root = count(width).sqrt();
                Projection { slope: slope * map, size: (root * gain).min(slope * size) + shift }
            }
            _ => Projection { slope: map, size },
        }
    }

    /// The queries of all heads as one vector.
    fn all_queries(&self, heads: &Heads) -> Result<Projection, Error> {
        let map = self.norms.matrix(&self.block("query", Part::ALL))?;
        let offset = self.offset("query", Part::ALL)?;
        let width = self.a.heads * self.a.head_dim;
        let shift = self.shift("query", Part::ALL)?;
        let normed = Normed { map, width, size: map * self.x.radius + offset };
        let all = self.projection(self.query_gain, shift, normed);
        Ok(Projection { size: all.size.min(heads.root_of_squares(|h| h.query.size)), ..all })
    }

    /// Bound on the norm of a token of the output over `output_scale`: a mean of values, and what
    /// is the same in all values, which the probabilities leave as it is.
    fn radius(&self, heads: &Heads, output: Upper) -> Result<Upper, Error> {
        let values = heads.sum(|h| h.output_value).min(output * heads.root_of_squares(|h| h.value));
        let repeats = count(self.a.group_size()).sqrt();
        let offset = self.offset("value", Part::ALL)?;
        let radius = values * self.x.radius + output * repeats * offset;
        if !self.a.output_bias {
            return Ok(radius);
        }
        Ok(radius + self.norms.vector(&join(self.path, "output.bias"))?)
    }
}
