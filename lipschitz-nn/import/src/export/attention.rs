//! Attention in standard operators, for any number of tokens.

use candle_core::{DType, Device, Tensor};
use lipschitz_nn::Error;
use lipschitz_nn::graph::{Attention, NormKind, Pairing, Rotary, Span, join};

use super::Export;
use super::writer::Ints;

/// What a hidden key's logit is: the lowest number.
const LOWEST: f64 = f32::MIN as f64;

impl Export<'_> {
    /// The number of tokens, a list of one.
    pub(super) fn count(&mut self, x: &str) -> String {
        if let Some(length) = &self.length {
            return length.clone();
        }
        let shape = self.out.node("Shape", &[x], &[]);
        let length = self.out.slice(&shape, 0, 1, 2);
        self.length = Some(length.clone());
        length
    }

    /// Which keys are in another document than a query: `[batch, 1, tokens, tokens]`.
    pub(super) fn documents(&mut self, separator: u32) -> Result<String, Error> {
        let out = &mut self.out;
        let separator = out.index(i64::from(separator));
        let begins = out.node("Equal", &["tokens", &separator], &[]);
        let begins = out.node("Cast", &[&begins], &[("to", Ints::One(7))]);
        let axis = out.index(1);
        let document = out.node("CumSum", &[&begins, &axis], &[]);
        let (rows, columns) = (out.ints(&[1, 3]), out.ints(&[1, 2]));
        let of_query = out.node("Unsqueeze", &[&document, &rows], &[]);
        let of_key = out.node("Unsqueeze", &[&document, &columns], &[]);
        let same = out.node("Equal", &[&of_query, &of_key], &[]);
        Ok(out.node("Not", &[&same], &[]))
    }

    /// The place of each key less that of each query, `[tokens, tokens]`.
    fn distance(&mut self, x: &str) -> String {
        if let Some(distance) = &self.distance {
            return distance.clone();
        }
        let length = self.count(x);
        let out = &mut self.out;
        let axis = out.ints(&[0]);
        let end = out.node("Squeeze", &[&length, &axis], &[]);
        let (zero, one) = (out.index(0), out.index(1));
        let places = out.node("Range", &[&zero, &end, &one], &[]);
        let (first, last) = (out.ints(&[0]), out.ints(&[1]));
        let keys = out.node("Unsqueeze", &[&places, &first], &[]);
        let queries = out.node("Unsqueeze", &[&places, &last], &[]);
        let distance = out.node("Sub", &[&keys, &queries], &[]);
        self.distance = Some(distance.clone());
        distance
    }

    /// Which keys no query sees, if there are some.
    fn hidden(&mut self, a: &Attention, x: &str) -> Option<String> {
        let kind = (a.causal, a.window);
        let places = match self.hidden.get(&kind) {
            Some(name) => Some(name.clone()),
            None if kind == (false, None) => None,
            None => {
                let distance = self.distance(x);
                let ahead = a.causal.then(|| {
                    let zero = self.out.index(0);
                    self.out.node("Greater", &[&distance, &zero], &[])
                });
                let far = a.window.map(|window| {
                    let size = self.out.node("Abs", &[&distance], &[]);
                    let window = self.out.index(window as i64);
                    self.out.node("GreaterOrEqual", &[&size, &window], &[])
                });
                let both = match (ahead, far) {
                    (Some(a), Some(b)) => Some(self.out.node("Or", &[&a, &b], &[])),
                    (a, b) => a.or(b),
                };
                if let Some(name) = &both {
                    self.hidden.insert(kind, name.clone());
                }
                both
            }
        };
        match (places, self.documents.clone()) {
            (Some(a), Some(b)) => Some(self.out.node("Or", &[&a, &b], &[])),
            (a, b) => a.or(b),
        }
    }

    /// Queries, keys or values, `[batch, heads, tokens, head_dim]`.
    fn project(
        &mut self,
        a: &Attention,
        path: &str,
        x: &str,
        name: &str,
        heads: usize,
    ) -> Result<String, Error> {
        let width = heads * a.head_dim;
        let mut y = self.linear(&join(path, name), x, [a.dim, width], a.bias, false)?;
        let split = [0, 0, heads as i64, a.head_dim as i64];
        if let Some(eps) = a.query_key_norm.filter(|_| name != "value") {
            let whole = a.query_key_span == Span::Heads;
            if !whole {
                y = self.out.reshape(&y, &split);
            }
            if a.query_key_kind == NormKind::Layer {
                let options = [("axes", Ints::Many(vec![-1]))];
                let mean = self.out.node("ReduceMean", &[&y], &options);
                y = self.out.node("Sub", &[&y, &mean], &[]);
            }
            y = self.rms(&y, eps);
            let shape = match a.query_key_span {
                Span::Head => vec![a.head_dim],
                Span::EachHead => vec![heads, a.head_dim],
                Span::Heads => vec![width],
            };
            let path = join(path, &format!("{name}_norm"));
            let gain = self.weight(&path, "weight", &shape, false)?;
            y = self.out.node("Mul", &[&y, &gain], &[]);
            if a.query_key_shift {
                let shift = self.weight(&path, "bias", &shape, false)?;
                y = self.out.node("Add", &[&y, &shift], &[]);
            }
        }
        y = self.out.reshape(&y, &split);
        y = self.out.transpose(&y, &[0, 2, 1, 3]);
        if let Some(rotary) = a.rotary.as_ref().filter(|_| name != "value") {
            y = self.rotated(rotary, a.head_dim, x, y)?;
        }
        if heads < a.heads {
            // Each head as often as it is shared.
            let axis = self.out.ints(&[2]);
            y = self.out.node("Unsqueeze", &[&y, &axis], &[]);
            let sizes = self.out.ints(&[1, 1, (a.heads / heads) as i64, 1, 1]);
            y = self.out.node("Expand", &[&y, &sizes], &[]);
            y = self.out.reshape(&y, &[0, a.heads as i64, -1, a.head_dim as i64]);
        }
        Ok(y)
    }

    /// Cosines and sines of every position, `[positions, frequencies]`, once for all that turn alike.
    fn rotations(&mut self, frequencies: &[f64]) -> Result<(String, String), Error> {
        let rows = self.most;
        let known = self.rotations.iter().find(|(of, n, _)| of == frequencies && *n == rows);
        if let Some((_, _, names)) = known {
            return Ok(names.clone());
        }
        let mut table = |name: &str, f: fn(f64) -> f64| -> Result<String, Error> {
            let angles = (0..rows).flat_map(|t| frequencies.iter().map(move |w| t as f64 * w));
            let numbers: Vec<f32> = angles.map(|angle| f(angle) as f32).collect();
            let tensor = Tensor::from_vec(numbers, (rows, frequencies.len()), &Device::Cpu)?;
            Ok(self.out.tensor(name, &tensor)?)
        };
        let names = (table("rotary.cos", f64::cos)?, table("rotary.sin", f64::sin)?);
        self.rotations.push((frequencies.to_vec(), rows, names.clone()));
        Ok(names)
    }

    /// Pairs of coordinates turned by angles that grow with the position.
    fn rotated(
        &mut self,
        rotary: &Rotary,
        head_dim: usize,
        x: &str,
        y: String,
    ) -> Result<String, Error> {
        let frequencies = rotary.per_token(head_dim);
        let half = frequencies.len();
        let (cos, sin) = self.rotations(&frequencies)?;
        self.distance(x);
        let length = self.count(x);
        let (cos, sin) = (self.out.first(&cos, 0, &length), self.out.first(&sin, 0, &length));
        let n = half as i64;
        let turned = self.out.slice(&y, 3, 0, 2 * n);
        let (a, b) = match rotary.pairing {
            Pairing::Half => {
                (self.out.slice(&turned, 3, 0, n), self.out.slice(&turned, 3, n, 2 * n))
            }
            Pairing::Interleaved => {
                let places = |odd: i64| -> Vec<i64> { (0..n).map(|i| 2 * i + odd).collect() };
                let [even, odd] = [0, 1].map(|k| self.out.ints(&places(k)));
                let options = [("axis", Ints::One(3))];
                (
                    self.out.node("Gather", &[&turned, &even], &options),
                    self.out.node("Gather", &[&turned, &odd], &options),
                )
            }
        };
        let out = &mut self.out;
        let mut product = |x: &str, by: &str| out.node("Mul", &[x, by], &[]);
        let (ac, bs) = (product(&a, &cos), product(&b, &sin));
        let (a_s, bc) = (product(&a, &sin), product(&b, &cos));
        let first = out.node("Sub", &[&ac, &bs], &[]);
        let second = out.node("Add", &[&a_s, &bc], &[]);
        let mut turned = match rotary.pairing {
            Pairing::Half => out.node("Concat", &[&first, &second], &[("axis", Ints::One(3))]),
            Pairing::Interleaved => {
                let axis = out.ints(&[4]);
                let first = out.node("Unsqueeze", &[&first, &axis], &[]);
                let second = out.node("Unsqueeze", &[&second, &axis], &[]);
                let pairs = out.node("Concat", &[&first, &second], &[("axis", Ints::One(4))]);
                out.reshape(&pairs, &[0, 0, 0, 2 * n])
            }
        };
        if 2 * half < head_dim {
            let rest = out.slice(&y, 3, 2 * n, i64::MAX);
            turned = out.node("Concat", &[&turned, &rest], &[("axis", Ints::One(3))]);
        }
        Ok(turned)
    }

    /// The numbers that are added to logits by the distance of query and key.
    fn biases(
        &mut self,
        a: &Attention,
        path: &str,
        x: &str,
        mut logits: String,
    ) -> Result<String, Error> {
        if let Some(bias) = a.position_bias {
            let distance = self.distance(x);
            let most = self.most as i64;
            let buckets: Vec<i64> =
                (-most..=most).map(|offset| bias.bucket(a.causal, offset) as i64).collect();
            let buckets = self.out.ints(&buckets);
            let table =
                self.weight(path, "position_bias.weight", &[bias.buckets, a.heads], false)?;
            let shift = self.out.index(most);
            let at = self.out.node("Add", &[&distance, &shift], &[]);
            let bucket = self.out.node("Gather", &[&buckets, &at], &[]);
            let numbers = self.out.node("Gather", &[&table, &bucket], &[]);
            let numbers = self.out.transpose(&numbers, &[2, 0, 1]);
            logits = self.out.node("Add", &[&logits, &numbers], &[]);
        }
        if let Some(alibi) = &a.alibi {
            let distance = self.distance(x);
            let size = self.out.node("Abs", &[&distance], &[]);
            let size = self.out.node("Cast", &[&size], &[("to", Ints::One(1))]);
            let slopes =
                Tensor::new(alibi.slopes.as_slice(), &Device::Cpu)?.to_dtype(DType::F32)?;
            let slopes = slopes.reshape((alibi.slopes.len(), 1, 1))?;
            let slopes = self.out.tensor("slopes", &slopes)?;
            let less = self.out.node("Mul", &[&size, &slopes], &[]);
            logits = self.out.node("Sub", &[&logits, &less], &[]);
        }
        Ok(logits)
    }

    pub(super) fn attention(
        &mut self,
        a: &Attention,
        path: &str,
        x: &str,
    ) -> Result<String, Error> {
        let q = self.project(a, path, x, "query", a.heads)?;
        let k = self.project(a, path, x, "key", a.key_value_heads)?;
        let v = self.project(a, path, x, "value", a.key_value_heads)?;
        let k = self.out.transpose(&k, &[0, 1, 3, 2]);
        let logits = self.out.node("MatMul", &[&q, &k], &[]);
        let mut logits = self.scaled(logits, a.logit_scale);
        if let Some(cap) = a.logit_cap {
            logits = self.scaled(logits, cap.recip());
            logits = self.out.node("Tanh", &[&logits], &[]);
            logits = self.scaled(logits, cap);
        }
        logits = self.biases(a, path, x, logits)?;
        if let Some(hidden) = self.hidden(a, x) {
            let lowest = self.out.number(LOWEST);
            logits = self.out.node("Where", &[&hidden, &lowest, &logits], &[]);
        }
        let shares = self.out.node("Softmax", &[&logits], &[("axis", Ints::One(-1))]);
        let mixed = self.out.node("MatMul", &[&shares, &v], &[]);
        let mixed = self.out.transpose(&mixed, &[0, 2, 1, 3]);
        let width = a.heads * a.head_dim;
        let mixed = self.out.reshape(&mixed, &[0, 0, width as i64]);
        let y = self.linear(&join(path, "output"), &mixed, [width, a.dim], a.output_bias, false)?;
        Ok(self.scaled(y, a.output_scale))
    }

    /// Heads that read the token a fixed offset back.
    pub(super) fn offsets(
        &mut self,
        path: &str,
        x: &str,
        inputs: usize,
        head_dim: usize,
        offsets: &[usize],
    ) -> Result<String, Error> {
        let width = head_dim * offsets.len();
        let values = self.linear(&join(path, "value"), x, [inputs, width], false, false)?;
        let shares = self.weight(path, "shares.weight", &[offsets.len()], false)?;
        let length = self.count(x);
        let heads = self.out.split(&values, 2, offsets.len());
        let mut moved = Vec::new();
        for (i, (mut head, offset)) in heads.into_iter().zip(offsets).enumerate() {
            if *offset > 0 {
                let pads = self.out.ints(&[0, (*offset).min(self.most) as i64, 0, 0, 0, 0]);
                head = self.out.node("Pad", &[&head, &pads], &[]);
                head = self.out.first(&head, 1, &length);
            }
            let share = self.out.slice(&shares, 0, i as i64, i as i64 + 1);
            moved.push(self.out.node("Mul", &[&head, &share], &[]));
        }
        let moved: Vec<&str> = moved.iter().map(String::as_str).collect();
        Ok(self.out.node("Concat", &moved, &[("axis", Ints::One(-1))]))
    }
}
