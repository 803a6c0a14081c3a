//! Ellipsoids that contain others: of sums, of two at a time, and of unknowns that are bounded by others.

use std::borrow::Cow;

use lipschitz_nn::linalg::Strided;

use super::approx::{Approx, Enclosed, common, cut, inverse_transpose};
use super::block::{Block, height};
use super::tape::{Tape, Var, power, product};
use super::vectors::{dot, symmetric};
use crate::upper::Upper;

impl Tape {
    /// For stacked square A and B, each cut up among registers: L with `LLᵀ ⪰ AAᵀ` and
    /// `LLᵀ ⪰ BBᵀ`, from `AAᵀ + (BBᵀ − AAᵀ)₊`, cut up likewise.
    pub(super) fn dominate(&self, a: &[Var], b: &[Var]) -> Option<Vec<Var>> {
        let fits = |(a, b): (&Var, &Var)| a.value.rows == b.value.rows;
        if a.len() != b.len() || !a.iter().zip(b).all(fits) {
            return None;
        }
        let scales: Vec<i64> =
            a.iter().zip(b).map(|(a, b)| common(&[&a.value, &b.value])).collect();
        let at = |of: &[Var]| -> Approx {
            let parts: Vec<_> = of.iter().zip(&scales).map(|(x, e)| x.value.at(*e)).collect();
            let error = parts.iter().fold(Upper::ZERO, |s, p| s + p.error * p.error).sqrt();
            let rows = parts.iter().map(|p| p.rows).sum();
            let columns = parts.first().map_or(0, |p| p.columns);
            Approx::new(rows, columns, joined(&parts), 0, error)
        };
        let (sa, sb) = (at(a), at(b));
        let n = sa.rows;
        let above = super::approx::above(&sa, &sb)?;
        let mut blocks = vec![Enclosed::Dense(&sa), Enclosed::Dense(&above.factor)];
        let lift = if self.searching() { None } else { Some(above.lift(&sa, &sb)?) };
        if let Some(lift) = &lift {
            blocks.push(Enclosed::Diagonal(0, lift));
        }
        let l = Approx::enclose(n, &blocks)?;
        let mut outs = Vec::new();
        let mut from = 0;
        for (x, scale) in a.iter().zip(&scales) {
            let rows = x.value.rows;
            let data = l.data[from * n..(from + rows) * n].to_vec();
            outs.push(self.var(Approx::new(rows, n, data, l.exponent + scale, Upper::ZERO)));
            from += rows;
        }
        if self.recording() {
            let (a, b, outs) = (a.to_vec(), b.to_vec(), outs.clone());
            let (values, vectors) = (above.values, above.vectors);
            return Some({
                let out = outs.clone();
                self.record(move |adjoints| {
                    let mut g = vec![0.0; n * n];
                    let mut first = 0;
                    for (out, scale) in outs.iter().zip(&scales) {
                        if let Some(own) = adjoints.take(out.id) {
                            let shift = power(l.exponent + scale - out.value.exponent);
                            let to = &mut g[first..first + own.len()];
                            to.iter_mut().zip(&own).for_each(|(to, x)| *to = shift * x);
                        }
                        first += out.value.rows * n;
                    }
                    let inverse = inverse_transpose(&l);
                    let mut c = vec![0.0; n * n];
                    // By LLᵀ itself, at the scales of the registers.
                    let shift = 0.5 * power(inverse.exponent - l.exponent);
                    product(Strided::dense(&g, n), inverse.view().t(), shift, &mut c);
                    symmetric(&mut c, n);
                    // The derivative of the positive part: V (Γ ∘ VᵀCV) Vᵀ.
                    let v = Strided::dense(&vectors, n);
                    let (mut half, mut k) = (vec![0.0; n * n], vec![0.0; n * n]);
                    product(v.t(), Strided::dense(&c, n), 1.0, &mut half);
                    product(Strided::dense(&half, n), v, 1.0, &mut k);
                    for i in 0..n {
                        for j in 0..n {
                            let (x, y) = (values[i], values[j]);
                            let gamma = match (x > 0.0, y > 0.0) {
                                (true, true) => 1.0,
                                (false, false) => 0.0,
                                _ => x.max(y) / (x - y).abs().max(f64::MIN_POSITIVE),
                            };
                            k[i * n + j] *= gamma;
                        }
                    }
                    half.fill(0.0);
                    product(v, Strided::dense(&k, n), 1.0, &mut half);
                    k.fill(0.0);
                    product(Strided::dense(&half, n), v.t(), 1.0, &mut k);
                    let rest: Vec<f64> = c.iter().zip(&k).map(|(c, k)| c - k).collect();
                    for (of, stack, c) in [(&a, &sa, &rest), (&b, &sb, &k)] {
                        let mut all = vec![0.0; n * stack.columns];
                        let over = 2.0 * power(stack.exponent);
                        product(Strided::dense(c, n), stack.view(), over, &mut all);
                        let mut first = 0;
                        for (x, scale) in of.iter().zip(&scales) {
                            let shift = power(x.value.exponent - scale);
                            let len = x.value.data.len();
                            adjoints.add_scaled(x, shift, &all[first..first + len]);
                            first += len;
                        }
                    }
                });
                out
            });
        }
        Some(outs)
    }

    /// One lower triangular matrix L whose rows are cut up among `registers` again: the smallest
    /// ellipsoid that contains the stacked `Σ_k B_k z_k`, `Σ‖z_k‖² ≤ 1`. A register is a list of
    /// blocks, one for each k.
    pub(super) fn enclose(&self, registers: &[&[Block]]) -> Option<Vec<Var>> {
        let heights: Vec<usize> = registers.iter().map(|r| height(r)).collect();
        let total: usize = heights.iter().sum();
        // Each register at its own scale, so that none drowns in another's rounding.
        let scale = |r: &[Block]| {
            let values: Vec<&Approx> = r.iter().filter_map(Block::value).collect();
            common(&values)
        };
        let scales: Vec<i64> = registers.iter().map(|r| scale(r)).collect();
        let mut stacked = Vec::new();
        for k in 0..registers.first().map_or(0, |r| r.len()) {
            let used: Vec<usize> =
                (0..registers.len()).filter(|i| registers[*i][k].value().is_some()).collect();
            let from = |i: usize| heights[..i].iter().sum::<usize>();
            match used[..] {
                [] => {}
                [i] if matches!(registers[i][k], Block::Diagonal(_)) => {
                    let d = registers[i][k].value()?;
                    let d = Approx { exponent: d.exponent - scales[i], ..d.clone() };
                    stacked.push((k, Some(from(i)), d));
                }
                _ => {
                    let columns = registers[used[0]][k].width()?;
                    let mut data = vec![0.0; total * columns];
                    let mut error = Upper::ZERO;
                    for &i in &used {
                        let b = registers[i][k].value()?;
                        let whole;
                        let b = if matches!(registers[i][k], Block::Diagonal(_)) {
                            whole = b.spread();
                            &whole
                        } else {
                            b
                        };
                        let b = b.at(scales[i]);
                        let first = from(i) * columns;
                        data[first..first + b.data.len()].copy_from_slice(&b.data);
                        error = error + b.error * b.error;
                    }
                    let b = Approx::new(total, columns, data, 0, error.sqrt());
                    stacked.push((k, None, b));
                }
            }
        }
        let blocks: Vec<Enclosed<'_>> = stacked
            .iter()
            .map(|(_, at, b)| match at {
                Some(from) => Enclosed::Diagonal(*from, b),
                None => Enclosed::Dense(b),
            })
            .collect();
        let l = Approx::enclose(total, &blocks)?;
        let mut out = Vec::new();
        for (i, h) in heights.iter().enumerate() {
            let from = heights[..i].iter().sum::<usize>();
            let data = l.data[from * total..(from + h) * total].to_vec();
            out.push(self.var(Approx::new(*h, total, data, l.exponent + scales[i], Upper::ZERO)));
        }
        if self.recording() {
            let (outs, registers) =
                (out.clone(), registers.iter().map(|r| r.to_vec()).collect::<Vec<_>>());
            self.record(move |adjoints| {
                // Of L, at the scales of the registers: dJ = tr(C dP) with C = ½ sym(L̄ L⁻¹).
                let mut g = vec![0.0; total * total];
                let mut any = false;
                for (i, out) in outs.iter().enumerate() {
                    let Some(own) = adjoints.take(out.id) else { continue };
                    any = true;
                    let first = heights[..i].iter().sum::<usize>() * total;
                    let shift = power(l.exponent + scales[i] - out.value.exponent);
                    g[first..first + own.len()]
                        .iter_mut()
                        .zip(&own)
                        .for_each(|(to, x)| *to = shift * x);
                }
                if !any {
                    return;
                }
                let inverse = inverse_transpose(&l);
                let shift = power(inverse.exponent + l.exponent);
                let mut c = vec![0.0; total * total];
                let dense = Strided::dense(&g, total);
                product(dense, inverse.view().t(), 0.5 * shift, &mut c);
                symmetric(&mut c, total);
                // B̄ = 2 C B, where c is over the scale of l.
                for (k, at, b) in &stacked {
                    let over = power(b.exponent - 2 * l.exponent);
                    // 2^(−2 l.exponent) makes C that of the matrix itself.
                    match at {
                        Some(from) => {
                            let i = (0..heights.len()).find(|i| {
                                heights[..*i].iter().sum::<usize>() == *from
                                    && registers[*i][*k].value().is_some()
                            });
                            let Some(i) = i else { continue };
                            let Block::Diagonal(d) = &registers[i][*k] else { continue };
                            let shift = power(d.value.exponent - scales[i]);
                            adjoints.add(d, |to| {
                                for (j, to) in to.iter_mut().enumerate() {
                                    let n = from + j;
                                    *to += 2.0 * c[n * total + n] * b.data[j] * over * shift;
                                }
                            });
                        }
                        None => {
                            let mut all = vec![0.0; total * b.columns];
                            product(Strided::dense(&c, total), b.view(), 2.0 * over, &mut all);
                            for (i, register) in registers.iter().enumerate() {
                                let first = heights[..i].iter().sum::<usize>() * b.columns;
                                let own = &all[first..first + heights[i] * b.columns];
                                match &register[*k] {
                                    Block::Zero => {}
                                    Block::Dense(x) => {
                                        let shift = power(x.value.exponent - scales[i]);
                                        adjoints.add_scaled(x, shift, own);
                                    }
                                    Block::Diagonal(d) => {
                                        let shift = power(d.value.exponent - scales[i]);
                                        let n = b.columns;
                                        adjoints.add(d, |to| {
                                            (0..n).for_each(|j| to[j] += shift * own[j * n + j]);
                                        });
                                    }
                                }
                            }
                        }
                    }
                }
            });
        }
        Some(out)
    }

    /// Adds unknowns ω with `‖ω_i‖ ≤ |u_i ζ|` for rows u_i, or for all rows together: for any
    /// positive t with `H = I − Σ t_i u_iᵀu_i ≻ 0`,
    ///
    /// ```text
    /// ζᵀ H ζ + Σ t_i ω_i² ≤ ‖ζ‖² ≤ 1,
    /// ```
    ///
    /// so with `H ⪰ LLᵀ` the pair is `ζ = L⁻ᵀ ζ'` and `ω_i = ω'_i/√t_i` for a point (ζ', ω') of the
    /// unit ball: the S-procedure. Gives `x L⁻ᵀ` for each matrix of `all`, and the row of 1/√t.
    ///
    /// `u` are the indices in `all` of the matrices whose rows are the u_i; `whole` says of each
    /// whether its rows are bounded together, so that they share one t.
    pub(super) fn rebase(
        &self,
        what: &str,
        all: &[Var],
        u: &[(usize, bool)],
    ) -> Option<(Vec<Var>, Vec<Var>)> {
        let rows: Vec<usize> = u.iter().map(|(i, _)| all[*i].value.rows).collect();
        let group: Vec<usize> =
            rows.iter().zip(u).map(|(n, (_, w))| if *w { 1 } else { *n }).collect();
        let values: Vec<&Approx> = u.iter().map(|(i, _)| &*all[*i].value).collect();
        let stack = stacked(&values);
        let spread = |t: &[f64]| -> Vec<f64> {
            let (mut out, mut from) = (Vec::new(), 0);
            for (n, g) in rows.iter().zip(&group) {
                (0..*n).for_each(|i| out.push(t[from + if *g == 1 { 0 } else { i }]));
                from += g;
            }
            out
        };
        let count: usize = group.iter().sum();
        // t over 4^−exponent.
        let found = self.multipliers.borrow_mut().slopes(what, count, &stack, &spread)?;
        let (t, exponent) = (found.t, found.exponent);
        // What is proven is about the squares of these roots, which are near the t.
        let root: Vec<f64> = t.iter().map(|t| t.sqrt()).collect();
        let each = spread(&root);
        let root_row = Approx::exact(1, each.len(), each.clone());
        let mut scaled_rows = stack.diagonal_times(&root_row);
        scaled_rows.exponent += exponent;
        let found_cut = if self.searching() {
            super::approx::cut_near(&scaled_rows)
        } else {
            cut(&scaled_rows)
        }?;
        let inverse = inverse_transpose(&found_cut.l);
        let solve = |x: &Var| {
            if self.searching() {
                self.var(x.value.times(&inverse))
            } else {
                self.var(found_cut.solve(&x.value, &inverse))
            }
        };
        let out: Vec<Var> = all.iter().map(solve).collect();
        let one_over = |root: f64| Upper::ONE.div_up(root).to_f64();
        let mut noise = Vec::new();
        let mut first = 0;
        for (n, g) in rows.iter().zip(&group) {
            let own = |i: usize| one_over(root[first + if *g == 1 { 0 } else { i }]);
            let data = (0..*n).map(own).collect();
            noise.push(self.var(Approx::new(1, *n, data, -exponent, Upper::ZERO)));
            first += g;
        }
        if self.recording() {
            let (all, outs, noises, u) = (all.to_vec(), out.clone(), noise.clone(), u.to_vec());
            let (slot, search) = (found.slot, found.search);
            self.record(move |adjoints| {
                let r = inverse.rows;
                let mut s = vec![0.0; r * r];
                for (x, y) in all.iter().zip(&outs) {
                    let Some(g) = adjoints.take(y.id) else { continue };
                    let shift = power(x.value.exponent + inverse.exponent - y.value.exponent);
                    let dense = Strided::dense(&g, r);
                    product(y.value.view().t(), dense, 1.0, &mut s);
                    adjoints.add(x, |to| product(dense, inverse.view().t(), shift, to));
                }
                symmetric(&mut s, r);
                // dJ = tr(C dH) with C = −½ L⁻ᵀ S L⁻¹.
                let mut half = vec![0.0; r * r];
                product(inverse.view(), Strided::dense(&s, r), 1.0, &mut half);
                let mut c = vec![0.0; r * r];
                let over = -0.5 * power(2 * inverse.exponent);
                product(Strided::dense(&half, r), inverse.view().t(), over, &mut c);
                // With V = √t U: dH = −d(VᵀV), so V̄ = −2 V C.
                let mut v = vec![0.0; scaled_rows.data.len()];
                let over = -2.0 * power(2 * scaled_rows.exponent);
                product(scaled_rows.view(), Strided::dense(&c, r), over, &mut v);
                // By log t_i: ½ ⟨V̄_i, V_i⟩, and −½ from 1/√t_i.
                let mut by: Vec<f64> = v
                    .chunks(r)
                    .zip(scaled_rows.data.chunks(r))
                    .map(|(g, x)| 0.5 * g.iter().zip(x).map(|(g, x)| g * x).sum::<f64>())
                    .collect();
                let mut first = 0;
                for n in &noises {
                    if let Some(g) = adjoints.take(n.id) {
                        for (i, g) in g.iter().enumerate() {
                            by[first + i] -= 0.5 * g * n.value.data[i];
                        }
                    }
                    first += n.value.columns;
                }
                // t = κ t̂/λ, and d log λ = Σ t̂_i (u_i·v)²/λ (d log t̂_i + 2 d log u_i).
                let all_by: f64 = by.iter().sum();
                let top = &search.top;
                let pull: Vec<f64> = scaled_rows.data.chunks(r).map(|row| dot(row, top)).collect();
                let whole: f64 = pull.iter().map(|p| p * p).sum::<f64>().max(f64::MIN_POSITIVE);
                for (i, p) in pull.iter().enumerate() {
                    by[i] -= all_by * p * p / whole;
                    let factor = -2.0 * all_by * p / whole;
                    v[i * r..(i + 1) * r].iter_mut().zip(top).for_each(|(v, t)| *v += factor * t);
                }
                // V = √t U.
                let mut first = 0;
                for (i, _) in &u {
                    let x = &all[*i];
                    let n = x.value.rows;
                    let shift = power(x.value.exponent + exponent - scaled_rows.exponent);
                    adjoints.add(x, |to| {
                        for (j, to) in to.chunks_mut(r).enumerate() {
                            let root = each[first + j] * shift;
                            let v = &v[(first + j) * r..(first + j + 1) * r];
                            to.iter_mut().zip(v).for_each(|(to, v)| *to += root * v);
                        }
                    });
                    first += n;
                }
                let (mut at, mut from) = (0, 0);
                for (n, g) in rows.iter().zip(&group) {
                    for i in 0..*n {
                        let k = from + if *g == 1 { 0 } else { i };
                        adjoints.multipliers[slot][k] += by[at + i];
                    }
                    (at, from) = (at + n, from + g);
                }
                adjoints.multipliers[slot][count] += all_by * (1.0 - search.kappa);
            });
        }
        Some((out, noise))
    }
}

/// Matrices on top of one another.
fn stacked(parts: &[&Approx]) -> Approx {
    let top = common(parts);
    let parts: Vec<_> = parts.iter().map(|p| p.at(top)).collect();
    let columns = parts.first().map_or(0, |p| p.columns);
    let rows = parts.iter().map(|p| p.rows).sum();
    let error = parts.iter().fold(Upper::ZERO, |sum, p| sum + p.error * p.error).sqrt();
    let data = joined(&parts);
    Approx::new(rows, columns, data, top, error)
}

/// All rows.
fn joined(parts: &[Cow<'_, Approx>]) -> Vec<f64> {
    parts.iter().map(|p| &p.data[..]).collect::<Vec<_>>().concat()
}
