//! Attention: products of queries and keys, a mask, a softmax, and the values in its shares, with
//! heads split and put together in any of the ways that exporters write.

use lipschitz_nn::graph::Function;

use super::Refused;
use super::array::{self, Array, Kind};
use super::attributes::Attributes;
use super::expr::{Expr, Phi};
use super::net::{Form, Heads, Mask, Op};
use super::operators::{Here, Reader, Value};
use super::view::{Base, View, product};

/// What is added to a logit whose key is not seen is this or less: in f32 no logit is left of such a
/// sum, and its share is zero.
pub(super) const UNSEEN: f64 = -1e30;

impl Reader<'_> {
    /// The product of two tensors that depend on the input.
    pub(super) fn heads(&mut self, here: Here<'_>, a: &Value, b: &Value) -> Result<Value, Refused> {
        let ((left, node), (right, _)) = (self.data(here, a)?, self.data(here, b)?);
        match self.net.node(node)?.op {
            Op::Softmax => self.mixed(here, left, right),
            _ => self.scores(here, left, right),
        }
    }

    /// A view as all heads, one after another, of tokens of a width; `turned` with the tokens last.
    fn all_heads(
        &self,
        base: Base,
        tokens: usize,
        shape: Heads,
        own: usize,
        turned: bool,
    ) -> Option<View> {
        let (b, d) = (self.net.batch, shape.head_dim);
        let view = View::whole(base, &[b, tokens, own, 1, d]);
        let view = view.expand(&[b, tokens, own, shape.heads / own, d])?;
        let order = if turned { [0, 2, 3, 4, 1] } else { [0, 2, 3, 1, 4] };
        let sizes = if turned { [d, tokens] } else { [tokens, d] };
        view.transpose(&order)?.reshape(&[b * shape.heads, sizes[0], sizes[1]])
    }

    fn scores(&mut self, here: Here<'_>, q: View, k: View) -> Result<Value, Refused> {
        let refused = "multiplies what are no queries and keys, each of heads of one width";
        let (q, k) = (self.part(here, q)?, self.part(here, k)?);
        let (Base::Node(from), Base::Node(to)) = (q.base, k.base) else {
            return here.refuse(refused);
        };
        let (Form::Tokens(tokens, width), Form::Tokens(keys, key_width)) =
            (self.net.form(from)?, self.net.form(to)?)
        else {
            return here.refuse(refused);
        };
        let (shape, other) = (q.shape(), k.shape());
        let Some(&[rows, head_dim]) = shape.last_chunk::<2>() else { return here.refuse(refused) };
        let Some(&[depth, columns]) = other.last_chunk::<2>() else { return here.refuse(refused) };
        let heads = width.checked_div(head_dim).unwrap_or(0);
        let key_value_heads = key_width.checked_div(head_dim).unwrap_or(0);
        let fits = [rows, columns, keys] == [tokens; 3]
            && depth == head_dim
            && key_value_heads > 0
            && heads.is_multiple_of(key_value_heads)
            && shape.len() == other.len()
            && shape[..shape.len() - 2] == other[..other.len() - 2]
            && heads > 0;
        if !fits {
            return here.refuse(refused);
        }
        let all = Heads { heads, key_value_heads, head_dim };
        let count = self.net.batch * heads;
        let queries = self.all_heads(q.base, tokens, all, heads, false);
        let turned = self.all_heads(k.base, tokens, all, key_value_heads, true);
        if queries.is_none()
            || turned.is_none()
            || q.reshape(&[count, tokens, head_dim]) != queries
            || k.reshape(&[count, head_dim, tokens]) != turned
        {
            return here.refuse(refused);
        }
        let form = Form::Scores(heads, tokens, tokens);
        let made = self.net.add(form, Op::Scores(all), vec![from, to], ["", &here.to_string()])?;
        let mut sizes = shape;
        if let Some(last) = sizes.last_mut() {
            *last = tokens;
        }
        match self.net.whole(made)?.reshape(&sizes) {
            Some(view) => Ok(Value::View(view)),
            None => here.refuse(refused),
        }
    }

    fn mixed(&mut self, here: Here<'_>, p: View, v: View) -> Result<Value, Refused> {
        let refused = "multiplies shares with what are no values of heads";
        let v = self.part(here, v)?;
        let (Base::Node(shares), Base::Node(values)) = (p.base, v.base) else {
            return here.refuse(refused);
        };
        let (Form::Scores(heads, tokens, _), Form::Tokens(length, width)) =
            (self.net.form(shares)?, self.net.form(values)?)
        else {
            return here.refuse(refused);
        };
        let whole = self.net.whole(shares)?;
        let Some(&[rows, head_dim]) = v.shape().last_chunk::<2>() else {
            return here.refuse(refused);
        };
        let key_value_heads = width.checked_div(head_dim).unwrap_or(0);
        let fits = [rows, length] == [tokens; 2]
            && key_value_heads > 0
            && heads.is_multiple_of(key_value_heads)
            && p.reshape(&whole.shape()).as_ref() == Some(&whole);
        let all = Heads { heads, key_value_heads, head_dim };
        let count = self.net.batch * heads;
        let wanted =
            fits.then(|| self.all_heads(v.base, tokens, all, key_value_heads, false)).flatten();
        if wanted.is_none() || v.reshape(&[count, tokens, head_dim]) != wanted {
            return here.refuse(refused);
        }
        let form = Form::Tokens(tokens, heads * head_dim);
        let made =
            self.net.add(form, Op::Mixed(all), vec![shares, values], ["", &here.to_string()])?;
        let mut sizes = p.shape();
        if let Some(last) = sizes.last_mut() {
            *last = head_dim;
        }
        let out = View::whole(Base::Node(made), &[self.net.batch, tokens, heads, head_dim]);
        match out.transpose(&[0, 2, 1, 3]).and_then(|view| view.reshape(&sizes)) {
            Some(view) => Ok(Value::View(view)),
            None => here.refuse(refused),
        }
    }

    /// Logits, with numbers added that hide some keys from some queries.
    pub(super) fn masked(
        &mut self,
        here: Here<'_>,
        x: &Value,
        mask: &Array,
    ) -> Result<Value, Refused> {
        let (view, node) = self.data(here, x)?;
        let whole = self.net.whole(node)?;
        let Form::Scores(_, tokens, _) = self.net.form(node)? else {
            return here.refuse("masks what are no logits of attention");
        };
        if self.net.node(node)?.op == Op::Softmax {
            return here.refuse("masks the shares of attention");
        }
        let shape = view.shape();
        if view.reshape(&whole.shape()).as_ref() != Some(&whole)
            || array::broadcast(&shape, &mask.shape).as_ref() != Some(&shape)
        {
            return here.refuse("masks logits in another order");
        }
        // The same for every example and head.
        let inner = mask.shape.len().saturating_sub(2);
        let last = mask.shape.get(inner..).unwrap_or_default();
        let size = product(last);
        let first = mask.data.get(..size).unwrap_or_default();
        if mask.data.chunks(size.max(1)).any(|other| other != first) {
            return here.refuse("masks examples or heads differently");
        }
        let one = Array::new(last.to_vec(), Kind::REAL, first.to_vec());
        let Some(one) = one.and_then(|one| one.expand(&[tokens, tokens])) else {
            return here.refuse("masks too many tokens");
        };
        if let Some(odd) = one.data.iter().find(|x| **x != 0.0 && (x.is_nan() || **x > UNSEEN)) {
            return here
                .refuse(format!("adds {odd} to a logit, which is neither 0 nor hides a key"));
        }
        let seen = |i: usize, j: usize| one.data.get(i * tokens + j).is_some_and(|x| *x == 0.0);
        let row = |i: usize| (0..tokens).filter(|j| seen(i, *j)).count();
        if one.data.iter().all(|x| *x == 0.0) {
            return Ok(x.clone());
        }
        let causal = tokens > 1 && !seen(0, tokens - 1) && row(0) == 1;
        let window = if causal { row(tokens - 1) } else { row(0) };
        let is = |i: usize, j: usize| seen(i, j) == ((!causal || j <= i) && i.abs_diff(j) < window);
        if window == 0 || (0..tokens).any(|i| (0..tokens).any(|j| !is(i, j))) {
            return here.refuse("hides keys that are neither ahead nor far away");
        }
        let window = Some(window).filter(|w| *w < tokens);
        let op = Op::Masked(Mask { causal, window });
        let form = self.net.form(node)?;
        let made = self.net.add(form, op, vec![node], ["", &here.to_string()])?;
        Ok(Value::View(view.of(made)))
    }

    pub(super) fn softmax(&mut self, here: Here<'_>, x: &Value) -> Result<Value, Refused> {
        let (view, node) = self.data(here, x)?;
        let form = self.net.form(node)?;
        if !matches!(form, Form::Scores(..)) {
            return here.refuse(
                "is a softmax outside of attention, which has no node; export the model up to the \
                 logits",
            );
        }
        let whole = self.net.whole(node)?;
        if view.reshape(&whole.shape()).as_ref() != Some(&whole) {
            return here.refuse("is over logits in another order");
        }
        let made = self.net.add(form, Op::Softmax, vec![node], ["", &here.to_string()])?;
        Ok(Value::View(view.of(made)))
    }

    /// The operator that is all of it.
    pub(super) fn attention(
        &mut self,
        here: Here<'_>,
        inputs: &[Option<Value>],
        attributes: &mut Attributes<'_>,
    ) -> Result<Value, Refused> {
        let causal = attributes.flag("is_causal", false)?;
        let heads = attributes.whole("q_num_heads")?;
        let key_value_heads = attributes.whole("kv_num_heads")?;
        let scale = attributes.number("scale")?;
        let cap = attributes.float("softcap", 0.0)?;
        attributes.int("softmax_precision", 1)?;
        attributes.int("qk_matmul_output_mode", 0)?;
        let [Some(q), Some(k), Some(v), rest @ ..] = inputs else {
            return here.refuse("lacks an input");
        };
        if rest.iter().skip(1).any(Option::is_some) || here.node.output.len() > 1 {
            return here.refuse("has a cache of keys and values, which is not read");
        }
        let flat = self.shape(q).len() == 3;
        let split = |value: &Value, count: Option<i64>, order: [usize; 4]| {
            let (mut view, _) = self.data(here, value)?;
            let shape = view.shape();
            if let [batch, tokens, width] = shape[..] {
                let count = count.and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0);
                let Some(count) = count.filter(|n| width.is_multiple_of(*n)) else {
                    return here.refuse("does not say how many heads there are");
                };
                let heads = view.reshape(&[batch, tokens, count, width / count]);
                let Some(heads) = heads.and_then(|view| view.transpose(&[0, 2, 1, 3])) else {
                    return here.refuse("reads heads in another order");
                };
                view = heads;
            }
            match view.transpose(&order) {
                Some(view) => Ok::<View, Refused>(view),
                None => here.refuse("reads heads in another order"),
            }
        };
        let q = split(q, heads, [0, 1, 2, 3])?;
        let (k, v) =
            (split(k, key_value_heads, [0, 1, 3, 2])?, split(v, key_value_heads, [0, 1, 2, 3])?);
        let (heads, own) = (q.shape(), v.shape());
        let keys = own.get(2).copied();
        let (&[_, heads, tokens, head_dim], &[_, own, ..]) = (&heads[..], &own[..]) else {
            return here.refuse("reads heads in another order");
        };
        if own == 0 || !heads.is_multiple_of(own) {
            return here.refuse("has heads that do not fit");
        }
        let each = |view: &View| {
            let [b, own, x, y] = view.shape()[..] else { return None };
            let wide = view.unsqueeze(&[2])?.expand(&[b, own, heads / own, x, y])?;
            wide.reshape(&[b, heads, x, y])
        };
        let (Some(k), Some(v)) = (each(&k), each(&v)) else {
            return here.refuse("has heads that do not fit");
        };
        let mut logits = self.scores(here, q, k)?;
        let scale = scale.unwrap_or((head_dim as f64).sqrt().recip());
        let factor = Value::Array(Array::scalar(Kind::REAL, scale));
        logits = self.binary(here, "Mul", &logits, &factor)?;
        if scale.is_nan() || scale <= 0.0 {
            return here.refuse(format!("has a scale of {scale}, which is not above 0"));
        }
        if cap != 0.0 {
            self.capped_first |= causal || matches!(rest.first(), Some(Some(_)));
            let capped = Expr::linear(0.0, 1.0 / cap).apply(Phi::Known(Function::Tanh));
            let capped = capped.times(&Expr::linear(cap, 0.0));
            logits = self.map(here, &logits, capped)?;
        }
        match rest.first() {
            Some(Some(mask)) => {
                let mask = self.array(here, mask)?;
                let mask = match mask.kind {
                    Kind::Bool => {
                        let hide = |x| if x == 0.0 { f64::NEG_INFINITY } else { 0.0 };
                        mask.map(Kind::REAL, hide)
                    }
                    _ => mask,
                };
                if causal {
                    return here.refuse("has a mask, and is causal as well");
                }
                // A shorter one is filled up with what hides a key, or read as broadcast, by version.
                if mask.shape.last().copied() != keys {
                    return here.refuse("has a mask of another number of keys");
                }
                logits = self.masked(here, &logits, &mask)?;
            }
            _ if causal => {
                let hide = |i: usize| if i % tokens > i / tokens { f64::NEG_INFINITY } else { 0.0 };
                let data = (0..tokens.saturating_mul(tokens).min(array::LARGEST + 1)).map(hide);
                let Some(mask) = Array::new(vec![tokens; 2], Kind::REAL, data.collect()) else {
                    return here.refuse("masks too many tokens");
                };
                logits = self.masked(here, &logits, &mask)?;
            }
            _ => {}
        }
        let shares = self.softmax(here, &logits)?;
        let (p, _) = self.data(here, &shares)?;
        let Value::View(out) = self.mixed(here, p, v)? else {
            return here.refuse("is not known");
        };
        if !flat {
            return Ok(Value::View(out));
        }
        let joined = out.transpose(&[0, 2, 1, 3]).and_then(|view| {
            let [b, t, h, d] = view.shape()[..] else { return None };
            view.reshape(&[b, t, h * d])
        });
        match joined {
            Some(view) => Ok(Value::View(view)),
            None => here.refuse("puts heads together in another order"),
        }
    }
}
