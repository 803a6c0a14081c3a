//! `f32` and `f64` with the special functions that kernels need, written so that loops over them
//! vectorise.

use std::ops::{Add, AddAssign, Div, Mul, Neg, Sub};
use std::sync::Mutex;

use candle_core::{CpuStorage, WithDType};
use faer::traits::ComplexField;

use super::pool::Pool;

/// Floats that kernels are written for.
pub trait Real:
    WithDType
    + ComplexField
    + Copy
    + PartialOrd
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + std::ops::MulAssign
{
    /// A constant.
    fn of(x: f64) -> Self;
    /// eˣ
    fn exp(self) -> Self;
    /// eˣ − 1, without loss where that is small
    fn exp_m1(self) -> Self;
    /// (Φ(x), φ(x)): the normal distribution and its density.
    fn normal(self) -> (Self, Self);
    /// tanh(x)
    fn tanh(self) -> Self;
    /// √x
    fn sqrt(self) -> Self;
    /// ln x
    fn ln(self) -> Self;
    /// ln(1 + x), without loss where that is small
    fn ln_1p(self) -> Self;
    /// The elements of a storage of this type.
    fn of_storage(storage: &mut CpuStorage) -> Option<&mut [Self]>;
    /// Memory that is not in use.
    #[doc(hidden)]
    fn pool() -> &'static Mutex<Pool<Self>>;
}

impl Real for f64 {
    #[inline(always)]
    fn of(x: f64) -> Self {
        x
    }

    #[inline(always)]
    fn exp(self) -> Self {
        f64::exp(self)
    }

    #[inline(always)]
    fn exp_m1(self) -> Self {
        f64::exp_m1(self)
    }

    #[inline(always)]
    fn normal(self) -> (Self, Self) {
        let distribution =
            0.5 * candle_core::cpu::erf::erfc_f64(-self * std::f64::consts::FRAC_1_SQRT_2);
        (distribution, (-0.5 * self * self).exp() * INV_SQRT_2PI)
    }

    #[inline(always)]
    fn tanh(self) -> Self {
        f64::tanh(self)
    }

    #[inline(always)]
    fn sqrt(self) -> Self {
        f64::sqrt(self)
    }

    fn ln(self) -> Self {
        f64::ln(self)
    }

    fn ln_1p(self) -> Self {
        f64::ln_1p(self)
    }

    fn of_storage(storage: &mut CpuStorage) -> Option<&mut [Self]> {
        match storage {
            CpuStorage::F64(data) => Some(data),
            _ => None,
        }
    }

    fn pool() -> &'static Mutex<Pool<Self>> {
        static POOL: Mutex<Pool<f64>> = Pool::new();
        &POOL
    }
}

const INV_SQRT_2PI: f64 = 0.398_942_280_401_432_7;

impl Real for f32 {
    #[inline(always)]
    fn of(x: f64) -> Self {
        x as f32
    }

    /// Relative error below 2e-7 where the result is normal; Cody–Waite reduction and a degree-6
    /// Taylor polynomial.
    #[inline(always)]
    fn exp(self) -> Self {
        // Adding 1.5·2²³ rounds to an integer without a call into libm.
        const ROUND: f32 = 12_582_912.0;
        let x = self.clamp(-87.0, 88.0);
        let n = (x * std::f32::consts::LOG2_E + ROUND) - ROUND;
        let r = (x - n * 0.693_359_4) - n * -2.121_944_4e-4;
        let p = 1.0
            + r * (1.0
                + r * (0.5
                    + r * (1.0 / 6.0 + r * (1.0 / 24.0 + r * (1.0 / 120.0 + r * (1.0 / 720.0))))));
        // NaN passes through p, whatever the exponent bits become.
        let power = f32::from_bits((((n as i32) + 127) << 23) as u32);
        p * power
    }

    /// Relative error below 5e-7: a Taylor polynomial of degree 8 up to ½.
    #[inline(always)]
    fn exp_m1(self) -> Self {
        let x = self;
        let p = 1.0 / 120.0 + x * (1.0 / 720.0 + x * (1.0 / 5040.0 + x * (1.0 / 40320.0)));
        let near = x * (1.0 + x * (0.5 + x * (1.0 / 6.0 + x * (1.0 / 24.0 + x * p))));
        if x.abs() < 0.5 { near } else { Real::exp(x) - 1.0 }
    }

    /// Absolute error below 2e-7; Abramowitz and Stegun 7.1.26.
    #[inline(always)]
    fn normal(self) -> (Self, Self) {
        let z = self.abs() * std::f32::consts::FRAC_1_SQRT_2;
        // Smaller values are below the error, and their products would be denormal, which
        // processors are slow at.
        let e = Real::exp((-z * z).max(-60.0));
        let t = 1.0 / (1.0 + 0.327_591_1 * z);
        let poly = t
            * (0.254_829_6
                + t * (-0.284_496_74 + t * (1.421_413_8 + t * (-1.453_152 + t * 1.061_405_4))));
        let tail = 0.5 * poly * e;
        let distribution = if self > 0.0 { 1.0 - tail } else { tail };
        (distribution, e * INV_SQRT_2PI as f32)
    }

    #[inline(always)]
    fn tanh(self) -> Self {
        let e = Real::exp_m1(2.0 * self);
        e / (e + 2.0)
    }

    #[inline(always)]
    fn sqrt(self) -> Self {
        f32::sqrt(self)
    }

    fn ln(self) -> Self {
        f32::ln(self)
    }

    fn ln_1p(self) -> Self {
        f32::ln_1p(self)
    }

    fn of_storage(storage: &mut CpuStorage) -> Option<&mut [Self]> {
        match storage {
            CpuStorage::F32(data) => Some(data),
            _ => None,
        }
    }

    fn pool() -> &'static Mutex<Pool<Self>> {
        static POOL: Mutex<Pool<f32>> = Pool::new();
        &POOL
    }
}

#[cfg(test)]
mod tests {
    use super::Real;

    /// Near 0, where a difference of numbers near 1 is lost, and far from it.
    #[test]
    fn small_results_keep_their_digits() {
        let (mut worst, mut tried) = ([0.0_f64; 2], 0);
        for power in -60..28 {
            for step in 0..40 {
                for sign in [-1.0_f32, 1.0] {
                    let x = sign * 2f32.powi(power / 4) * (1.0 + step as f32 / 40.0);
                    let wide = f64::from(x);
                    let of = |found: f32, truth: f64| (f64::from(found) / truth - 1.0).abs();
                    let both = [
                        of(Real::exp_m1(x), wide.exp_m1().min(88f64.exp())),
                        of(Real::tanh(x), wide.tanh()),
                    ];
                    for (worst, off) in worst.iter_mut().zip(both) {
                        *worst = worst.max(if wide > 88.0 { 0.0 } else { off });
                    }
                    tried += 1;
                }
            }
        }
        assert!(tried > 7000 && worst.iter().all(|off| *off < 5e-7), "{worst:?}");
        assert_eq!([1e30, -1e30, 0.0].map(Real::tanh), [1.0_f32, -1.0, 0.0]);
        assert!(Real::tanh(f32::NAN).is_nan() && Real::exp_m1(f32::NAN).is_nan());
    }
}
