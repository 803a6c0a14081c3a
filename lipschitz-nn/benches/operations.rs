//! `cargo bench --bench operations`: each fused operation beside its form composed of candle's
//! operations, forward and backward, at the sizes of the Shakespeare transformer with a batch of 16
//! × 256 tokens.

use candle_core::{Device, Result, Tensor, Var};
use divan::Bencher;
use lipschitz_nn::graph::{Convolution, Function, Pairing, Rotary};
use lipschitz_nn::linalg::Precision;
use lipschitz_nn::ops::{self, AttentionBlock, ImageLayer, Mask, MlpBlock, Scores};

/// As in the programs.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const KINDS: [&str; 2] = ["fused", "composed"];
const ROWS: usize = 4096;
const DIM: usize = 256;

fn main() {
    divan::main();
}

fn var(shape: &[usize]) -> Var {
    let n: usize = shape.iter().product();
    let values: Vec<f32> = (0..n).map(|i| (i * 7919 % 2003) as f32 / 1001.5 - 1.0).collect();
    Var::from_tensor(&Tensor::from_vec(values, shape, &Device::Cpu).expect("a tensor"))
        .expect("a variable")
}

fn ids(n: usize, below: usize) -> Tensor {
    Tensor::from_vec((0..n).map(|i| (i * 31 % below) as u32).collect(), n, &Device::Cpu)
        .expect("ids")
}

/// A benchmark of two forms, forward and backward.
macro_rules! compare {
    ($name:ident, $setup:expr, |$v:ident| $fused:expr, $composed:expr) => {
        #[divan::bench(args = KINDS, sample_count = 12, sample_size = 1)]
        fn $name(bencher: Bencher, kind: &str) {
            let $v = $setup;
            let forward = || -> Result<Tensor> { if kind == "fused" { $fused } else { $composed } };
            bencher
                .bench_local(|| forward().and_then(|y| y.sum_all()?.backward()).expect("a pass"));
        }
    };
}

compare!(
    gelu,
    var(&[ROWS, 4 * DIM]),
    |x| ops::activation(&x, Function::GeluErf, 0.9),
    ops::composed::activation(&x, Function::GeluErf, 0.9)
);
compare!(soft_cap, var(&[ROWS, DIM]), |x| ops::soft_cap(&x, 3.0), ops::composed::soft_cap(&x, 3.0));
compare!(clip, var(&[ROWS, DIM]), |x| ops::clip(&x, 0.5), ops::composed::clip(&x, 0.5));
/// A shift, a convolution of one pixel and MaxMin on 256 images of 64 × 16 × 16.
fn layers(v: &[Var; 3]) -> [ImageLayer; 3] {
    let same = Convolution::same(64, 64, 1);
    let offsets = vec![[0, 0], [0, 1], [0, 0], [1, 0], [0, 0], [0, -1], [0, 0], [-1, 0]];
    [
        ImageLayer::Shift { offsets, circular: true },
        ImageLayer::Convolution(same, v[1].as_tensor().clone(), Some(v[2].as_tensor().clone())),
        ImageLayer::MaxMin,
    ]
}

compare!(
    image_layers,
    [var(&[256, 64, 16, 16]), var(&[64, 64]), var(&[64])],
    |v| ops::image_chain(&v[0], &layers(&v), Precision::F32, true),
    ops::composed::image_chain(&v[0], &layers(&v), Precision::F32)
);
compare!(
    residual,
    [var(&[ROWS, DIM]), var(&[ROWS, DIM])],
    |v| ops::residual(&v[0], &v[1], 0.8, 0.2),
    ops::composed::residual(&v[0], &v[1], 0.8, 0.2)
);
compare!(
    rms_norm,
    [var(&[ROWS, DIM]), var(&[DIM])],
    |v| ops::rms_norm(&v[0], &v[1], 1e-5),
    ops::composed::rms_norm(&v[0], &v[1], 1e-5)
);
compare!(
    layer_norm,
    [var(&[ROWS, DIM]), var(&[DIM]), var(&[DIM])],
    |v| ops::layer_norm(&v[0], &v[1], Some(v[2].as_tensor()), 1e-5),
    ops::composed::layer_norm(&v[0], &v[1], Some(v[2].as_tensor()), 1e-5)
);
compare!(
    linear,
    [var(&[ROWS, DIM]), var(&[4 * DIM, DIM])],
    |v| ops::linear(&v[0], &v[1], None, Precision::F32),
    ops::composed::linear(&v[0], &v[1], None, Precision::F32)
);
compare!(
    cross_entropy,
    (var(&[ROWS, 65]), ids(ROWS, 65)),
    |v| ops::cross_entropy(&v.0, &v.1),
    ops::composed::cross_entropy(&v.0, &v.1)
);
compare!(
    embedding,
    (var(&[50304, DIM]), ids(ROWS, 50304)),
    |v| ops::embedding(&v.0, &v.1),
    ops::composed::embedding(&v.0, &v.1)
);
compare!(
    rotary,
    (var(&[16, 256, 4, 64]), Rotary::new(10000.0, Pairing::Half)),
    |v| ops::rotary(&v.0, &v.1),
    ops::composed::rotary(&v.0, &v.1)
);
compare!(
    attention_core,
    [(); 3].map(|()| var(&[16, 256, 4, 64])),
    |v| ops::attention(&v[0], &v[1], &v[2], &Scores::new(1.0 / 64.0, Mask::Causal)),
    ops::composed::attention(&v[0], &v[1], &v[2], &Scores::new(1.0 / 64.0, Mask::Causal))
);
compare!(
    mlp_block,
    [var(&[ROWS, DIM]), var(&[4 * DIM, DIM]), var(&[DIM, 4 * DIM])],
    |v| ops::mlp_block(MLP, &v[0], &v[1], &v[2], true),
    ops::composed::mlp_block(MLP, &v[0], &v[1], &v[2])
);
compare!(
    attention_block,
    (attention(), [var(&[16, 256, DIM]), var(&[3 * DIM, DIM]), var(&[DIM, DIM])]),
    |v| ops::attention_block(&v.0, &v.1[0], &v.1[1], &v.1[2], true),
    ops::composed::attention_block(&v.0, &v.1[0], &v.1[1], &v.1[2], None)
);

const MLP: MlpBlock = MlpBlock { function: Function::GeluErf, scale: 0.9, skip: 0.8, branch: 0.2 };

fn attention() -> AttentionBlock {
    AttentionBlock {
        heads: 4,
        key_value_heads: 4,
        logit_scale: 1.0 / 64.0,
        causal: true,
        rotary: Some(Rotary::new(10000.0, Pairing::Half)),
        skip: 0.8,
        branch: 0.2,
        documents: None,
    }
}
