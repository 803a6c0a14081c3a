//! The types that `--executed` names.

use clap::ValueEnum;
use lipschitz_certify::bound::{BF16, F16, F32, F64, Format};

/// What a program computes in.
#[derive(Clone, Copy, ValueEnum)]
pub(super) enum Executed {
    /// Values of 11 bits of precision up to 65504, computed in f32.
    F16,
    /// Values of 8 bits of precision, computed in f32.
    Bf16,
    /// 24 bits of precision.
    F32,
    /// 53 bits of precision.
    F64,
}

impl Executed {
    pub(super) fn format(self) -> Format {
        match self {
            Self::F16 => F16,
            Self::Bf16 => BF16,
            Self::F32 => F32,
            Self::F64 => F64,
        }
    }
}
