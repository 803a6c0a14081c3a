//! Spectral norms, compared with known norms and an SVD.

use faer::Mat;
use lipschitz_certify::spectral::{
    Matrix, Method, affine_norm, max_row_norm, product_norm, spectral_norm, vector_norm,
};
use lipschitz_certify::upper::Upper;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

fn random(rows: usize, columns: usize, rng: &mut ChaCha8Rng) -> Matrix {
    let data = (0..rows * columns)
        .map(|_| f64::from(rng.next_u32()) / f64::from(u32::MAX) * 2.0 - 1.0)
        .collect();
    Matrix { rows, columns, data }
}

fn svd(m: &Matrix) -> f64 {
    let m = Mat::from_fn(m.rows, m.columns, |i, j| m.data[i * m.columns + j]);
    m.singular_values().unwrap().into_iter().fold(0.0, f64::max)
}

fn times(a: &Matrix, b: &Matrix) -> Matrix {
    let at = |i: usize, j: usize| {
        (0..a.columns).map(|k| a.data[i * a.columns + k] * b.data[k * b.columns + j]).sum()
    };
    let data = (0..a.rows)
        .flat_map(|i| (0..b.columns).map(move |j| (i, j)))
        .map(|(i, j)| at(i, j))
        .collect();
    Matrix { rows: a.rows, columns: b.columns, data }
}

fn check(what: &str, m: &Matrix, truth: f64) {
    let found = spectral_norm(m, Method::Proven);
    let (lower, upper) = (found.lower, found.upper.to_f64());
    assert_eq!(found.method, Method::Proven, "{what}");
    assert!(
        lower <= truth * (1.0 + 1e-13) && truth * (1.0 - 1e-13) <= upper,
        "{what}: {truth} not in [{lower}, {upper}]"
    );
    assert!(upper - lower <= 1e-6 * upper, "{what}: [{lower}, {upper}] is wide");
    for method in [Method::Gram, Method::Frobenius] {
        let other = spectral_norm(m, method).upper.to_f64();
        assert!(other >= truth * (1.0 - 1e-13), "{what}: {method} {other} below {truth}");
    }
    assert!(
        spectral_norm(m, Method::Gram).upper.to_f64() <= upper * 1.002,
        "{what}: Gram iteration is loose"
    );
}

#[test]
fn intervals_contain_the_svd() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for i in 0..150 {
        let side =
            |rng: &mut ChaCha8Rng| 1 + rng.next_u32() as usize % if i % 10 == 0 { 150 } else { 30 };
        let (rows, columns) = (side(&mut rng), side(&mut rng));
        let mut m = random(rows, columns, &mut rng);
        match i % 5 {
            1 => {
                // Rank one or two.
                let k = 1 + i % 2;
                m = times(&random(rows, k, &mut rng), &random(k, columns, &mut rng));
            }
            2 => m
                .data
                .iter_mut()
                .enumerate()
                .for_each(|(k, x)| *x *= 10f64.powi(-((k % columns) as i32) % 12)),
            _ => {}
        }
        let truth = svd(&m);
        for factor in [1.0, 1e-30, 1e30, 1e-150, 1e150] {
            let scaled = Matrix { data: m.data.iter().map(|x| x * factor).collect(), ..m.clone() };
            check(&format!("{i}: {rows} × {columns} · {factor}"), &scaled, truth * factor);
        }
    }
}

/// Norms that are known exactly: the upper end must not be below them.
#[test]
fn exact_norms_are_not_undercut() {
    for (rows, columns) in [(1, 1), (4, 9), (16, 16), (100, 25), (225, 64)] {
        let ones = Matrix { rows, columns, data: vec![1.0; rows * columns] };
        let found = spectral_norm(&ones, Method::Proven);
        let truth = ((rows * columns) as f64).sqrt();
        assert!(
            found.lower <= truth && truth <= found.upper.to_f64(),
            "{rows} × {columns}: {found:?}"
        );
    }
    for n in [1, 2, 7, 64, 130] {
        let data = (0..n * n).map(|i| f64::from(u8::from(i % (n + 1) == 0))).collect();
        let found = spectral_norm(&Matrix { rows: n, columns: n, data }, Method::Proven);
        let upper = found.upper.to_f64();
        assert!(
            found.lower <= 1.0 && (1.0..=1.0 + 1e-7).contains(&upper),
            "identity {n}: {found:?}"
        );
    }
    // Hadamard matrices: every singular value is √n.
    for log in 1..8u32 {
        let n = 1usize << log;
        let data = (0..n * n)
            .map(|k| if ((k / n) & (k % n)).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 })
            .collect();
        let found = spectral_norm(&Matrix { rows: n, columns: n, data }, Method::Proven);
        assert!(
            found.lower <= (n as f64).sqrt() && (n as f64).sqrt() <= found.upper.to_f64(),
            "{n}: {found:?}"
        );
    }
    let zero = spectral_norm(&Matrix { rows: 3, columns: 2, data: vec![0.0; 6] }, Method::Proven);
    assert_eq!((zero.lower, zero.upper.to_f64()), (0.0, 0.0));
    let tiny =
        spectral_norm(&Matrix { rows: 1, columns: 2, data: vec![5e-324, 5e-324] }, Method::Proven);
    assert!(tiny.upper.to_f64() >= 5e-324 && tiny.lower <= 1e-323, "{tiny:?}");
    let huge = spectral_norm(
        &Matrix { rows: 1, columns: 2, data: vec![1.5e308, 1.5e308] },
        Method::Proven,
    );
    assert!(huge.upper.log10() > 308.3, "{huge:?}");
}

#[test]
fn products_are_bounded_and_tight() {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    for i in 0..80 {
        let mut side = |n: u32| 1 + (rng.next_u32() % n) as usize;
        let (m, k, n) = (side(40), side(12), side(40));
        let (a, mut b) = (random(m, k, &mut rng), random(k, n, &mut rng));
        if i % 4 == 0 {
            b.data.iter_mut().for_each(|x| *x *= 1e20);
        }
        let truth = svd(&times(&a, &b));
        for method in [Method::Proven, Method::Gram, Method::Frobenius] {
            let found = product_norm(&a, &b, method).upper.to_f64();
            assert!(found >= truth * (1.0 - 1e-12), "{m} {k} {n} {method}: {found} below {truth}");
            if method == Method::Proven {
                assert!(found <= truth * (1.0 + 1e-5), "{m} {k} {n}: {found} above {truth}");
            }
        }
    }
}

/// `H D H / n` with H a Hadamard matrix and D dyadic: all elements, and the norm max |D|, are
/// exact.
fn known(log: u32, diagonal: &[f64]) -> Vec<f64> {
    let n = 1usize << log;
    let mut m = vec![0.0; n * n];
    for (i, d) in diagonal.iter().enumerate() {
        m[i * n + i] = *d;
    }
    // Walsh–Hadamard transforms over columns and over rows; sums of few bits are exact.
    for side in [(1, n), (n, 1)] {
        for line in 0..n {
            let mut half = 1;
            while half < n {
                for start in (0..n).step_by(2 * half) {
                    for k in start..start + half {
                        let (i, j) =
                            (line * side.1 + k * side.0, line * side.1 + (k + half) * side.0);
                        (m[i], m[j]) = (m[i] + m[j], m[i] - m[j]);
                    }
                }
                half *= 2;
            }
        }
    }
    m.iter_mut().for_each(|x| *x /= n as f64);
    m
}

/// 10,000 matrices of 1 to 512 rows and columns whose norm is known exactly: clustered, repeated,
/// graded, single and random spectra, at scales up to the limits of f64, with rows and columns
/// permuted, negated and interleaved with zeros.
#[test]
fn ten_thousand_exact_norms_are_not_undercut() {
    let widest = (0..10_000u64).into_par_iter().map(|seed| {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut below = |n: usize| rng.next_u64() as usize % n;
        let log =
            if seed % 200 == 0 { 9 } else { below(if seed % 20 == 0 { 8 } else { 6 }) as u32 };
        let n = 1usize << log;
        // At most 12 bits per number, so that sums of 512² of them are exact.
        let kind = below(6);
        let mut diagonal: Vec<f64> = (0..n)
            .map(|i| match kind {
                0 => 1.0,
                1 => 1.0 - (below(8) as f64) * 2f64.powi(-11),
                2 => 2f64.powi(-(i.min(11) as i32)),
                3 => f64::from(u8::from(i == 0)),
                4 => (below(4095) as f64 - 2047.0) / 2048.0,
                _ => {
                    if i % 2 == 0 {
                        -0.75
                    } else {
                        0.75
                    }
                }
            })
            .collect();
        let swap = below(n);
        diagonal.swap(0, swap);
        let truth = diagonal.iter().fold(0.0, |m: f64, d| m.max(d.abs()));
        // Elements are multiples of 2⁻³⁰ (12 bits of D, n² = 2¹⁸) of at most 1, so all of these
        // scales are exact.
        let scale = 2f64.powi([0, 0, 40, -40, 1000, -1000, -1040][below(7)]);
        let square = known(log, &diagonal);
        let (rows, columns) =
            (n + below(1 + n / 4).min(512 - n), n + below(1 + n / 2).min(512 - n));
        let order = |size: usize, below: &mut dyn FnMut(usize) -> usize| {
            let mut order: Vec<usize> = (0..size).collect();
            (1..size).rev().for_each(|i| order.swap(i, below(i + 1)));
            order
        };
        let (to_row, to_column) = (order(rows, &mut below), order(columns, &mut below));
        let mut m = Matrix { rows, columns, data: vec![0.0; rows * columns] };
        for i in 0..n {
            for j in 0..n {
                let sign = if (i * 7 + seed as usize).is_multiple_of(3) { -1.0 } else { 1.0 };
                m.data[to_row[i] * columns + to_column[j]] = sign * scale * square[i * n + j];
            }
        }
        let found = spectral_norm(&m, Method::Proven);
        let what = format!("seed {seed}: {rows} × {columns}, kind {kind}, scale {scale:e}");
        let (truth, upper) = (truth * scale, found.upper);
        assert!(found.lower <= truth, "{what}: at least {} of {truth}", found.lower);
        assert!(upper >= Upper::from_f64(truth), "{what}: at most {upper} of {truth}");
        assert!(
            upper <= Upper::from_f64(truth) * Upper::from_f64(1.0 + 1e-6),
            "{what}: at most {upper} of {truth}"
        );
        upper.div_up(truth).to_f64() - 1.0
    });
    let widest = widest.filter(|x| x.is_finite()).reduce(|| 0.0, f64::max);
    println!("largest excess: {widest:.1e}");
}

/// A matrix with overflowed elements, as from huge f64 weights and gains, has no bound by any
/// method.
#[test]
fn nothing_is_proven_about_what_is_not_finite() {
    for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        for data in [vec![bad; 4], vec![1.0, 2.0, bad, 0.5]] {
            let m = Matrix { rows: 2, columns: 2, data };
            let fine = Matrix { rows: 2, columns: 2, data: vec![1.0; 4] };
            for method in [Method::Proven, Method::Gram, Method::Frobenius] {
                assert_eq!(spectral_norm(&m, method).upper, Upper::INFINITY, "{m:?} {method}");
                assert_eq!(
                    product_norm(&m, &fine, method).upper,
                    Upper::INFINITY,
                    "{m:?} {method}"
                );
                assert_eq!(
                    product_norm(&fine, &m, method).upper,
                    Upper::INFINITY,
                    "{m:?} {method}"
                );
            }
            assert_eq!(max_row_norm(&m), Upper::INFINITY);
            assert_eq!(vector_norm(&m.data), Upper::INFINITY);
            assert_eq!(affine_norm(&m, &[1.0, 0.0], None), Upper::INFINITY);
        }
    }
}
