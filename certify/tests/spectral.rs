//! Spectral norms against known norms and an SVD.

use certify::spectral::{Matrix, Method, product_norm, spectral_norm};
use faer::Mat;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn random(rows: usize, columns: usize, rng: &mut ChaCha8Rng) -> Matrix {
    let data = (0..rows * columns).map(|_| f64::from(rng.next_u32()) / f64::from(u32::MAX) * 2.0 - 1.0).collect();
    Matrix { rows, columns, data }
}

fn svd(m: &Matrix) -> f64 {
    let m = Mat::from_fn(m.rows, m.columns, |i, j| m.data[i * m.columns + j]);
    m.singular_values().unwrap().into_iter().fold(0.0, f64::max)
}

fn times(a: &Matrix, b: &Matrix) -> Matrix {
    let at = |i: usize, j: usize| (0..a.columns).map(|k| a.data[i * a.columns + k] * b.data[k * b.columns + j]).sum();
    let data = (0..a.rows).flat_map(|i| (0..b.columns).map(move |j| (i, j))).map(|(i, j)| at(i, j)).collect();
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
    assert!(spectral_norm(m, Method::Gram).upper.to_f64() <= upper * 1.002, "{what}: Gram iteration is loose");
}

#[test]
fn intervals_contain_the_svd() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for i in 0..150 {
        let side = |rng: &mut ChaCha8Rng| 1 + rng.next_u32() as usize % if i % 10 == 0 { 150 } else { 30 };
        let (rows, columns) = (side(&mut rng), side(&mut rng));
        let mut m = random(rows, columns, &mut rng);
        match i % 5 {
            1 => {
                // Rank one or two.
                let k = 1 + i % 2;
                m = times(&random(rows, k, &mut rng), &random(k, columns, &mut rng));
            }
            2 => m.data.iter_mut().enumerate().for_each(|(k, x)| *x *= 10f64.powi(-((k % columns) as i32) % 12)),
            _ => {}
        }
        let truth = svd(&m);
        for factor in [1.0, 1e-30, 1e30, 1e-150, 1e150] {
            let scaled = Matrix { data: m.data.iter().map(|x| x * factor).collect(), ..m.clone() };
            check(&format!("{i}: {rows} × {columns} · {factor}"), &scaled, truth * factor);
        }
    }
}

/// Norms known without rounding: the upper end must not be below them at all.
#[test]
fn exact_norms_are_not_undercut() {
    for (rows, columns) in [(1, 1), (4, 9), (16, 16), (100, 25), (225, 64)] {
        let ones = Matrix { rows, columns, data: vec![1.0; rows * columns] };
        let found = spectral_norm(&ones, Method::Proven);
        let truth = ((rows * columns) as f64).sqrt();
        assert!(found.lower <= truth && truth <= found.upper.to_f64(), "{rows} × {columns}: {found:?}");
    }
    for n in [1, 2, 7, 64, 130] {
        let data = (0..n * n).map(|i| f64::from(u8::from(i % (n + 1) == 0))).collect();
        let found = spectral_norm(&Matrix { rows: n, columns: n, data }, Method::Proven);
        let upper = found.upper.to_f64();
        assert!(found.lower <= 1.0 && (1.0..=1.0 + 1e-7).contains(&upper), "identity {n}: {found:?}");
    }
    // Hadamard matrices: every singular value is √n.
    for log in 1..8u32 {
        let n = 1usize << log;
        let data =
            (0..n * n).map(|k| if ((k / n) & (k % n)).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 }).collect();
        let found = spectral_norm(&Matrix { rows: n, columns: n, data }, Method::Proven);
        assert!(found.lower <= (n as f64).sqrt() && (n as f64).sqrt() <= found.upper.to_f64(), "{n}: {found:?}");
    }
    let zero = spectral_norm(&Matrix { rows: 3, columns: 2, data: vec![0.0; 6] }, Method::Proven);
    assert_eq!((zero.lower, zero.upper.to_f64()), (0.0, 0.0));
    let tiny = spectral_norm(&Matrix { rows: 1, columns: 2, data: vec![5e-324, 5e-324] }, Method::Proven);
    assert!(tiny.upper.to_f64() >= 5e-324 && tiny.lower <= 1e-323, "{tiny:?}");
    let huge = spectral_norm(&Matrix { rows: 1, columns: 2, data: vec![1.5e308, 1.5e308] }, Method::Proven);
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
