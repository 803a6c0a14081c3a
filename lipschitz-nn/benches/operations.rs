//! `cargo bench --bench operations`: each fused operation beside its form composed of candle's
//! operations, forward and backward, at the sizes of the Shakespeare transformer with a batch of 16
//! × 256 tokens, and of images of 64 × 16 × 16 in a batch of 256.
//!
//! Beside the times are rates: of operations that are matmuls, in floating-point operations per second
//! ("item/s"), to be compared with `matmul`; of others, in bytes that cannot but be moved, to be compared
//! with `copy`. Both sum all outputs and read a gradient of ones, which is counted.

use candle_core::{Device, Result, Tensor, Var};
use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use lipschitz_nn::graph::{Convolution, Function, Pairing, Pool, Pooling, Rotary};
use lipschitz_nn::linalg::{Precision, Strided, matmul};
use lipschitz_nn::ops::{self, AttentionBlock, ImageLayer, Mask, MlpBlock, Scores};

/// As in the programs.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const KINDS: [&str; 2] = ["fused", "composed"];
const ROWS: usize = 4096;
const DIM: usize = 256;
/// Numbers of 256 images of 64 channels.
const PIXELS: usize = 256 * 64 * 16 * 16;
/// Operations of attention of 4 heads of 64 over 16 × 256 tokens, each of which sees half of them: two
/// products forward and five back, one of which is made again.
const ATTENTION: usize = 7 * 2 * 16 * 4 * 64 * 256 * 256 / 2;

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

/// Multiplications and additions of a matmul of `[m, k]` and `[k, n]`, and of the two of its gradient.
fn products(m: usize, k: usize, n: usize) -> ItemsCount {
    ItemsCount::new(3 * 2 * m * k * n)
}

/// An operation that reads so many numbers and writes so many: forward; the sum; back, where it reads the
/// gradient of what it wrote and what it had read, and writes as many.
fn moved(read: usize, written: usize) -> BytesCount {
    BytesCount::of_many::<f32>(read + written + written + (written + read) + read)
}

/// A benchmark of two forms, forward and backward.
macro_rules! compare {
    ($name:ident, $work:expr, $setup:expr, |$v:ident| $fused:expr, $composed:expr) => {
        #[divan::bench(args = KINDS, sample_count = 12, sample_size = 1)]
        fn $name(bencher: Bencher, kind: &str) {
            let $v = $setup;
            let forward = || -> Result<Tensor> { if kind == "fused" { $fused } else { $composed } };
            bencher
                .counter($work)
                .bench_local(|| forward().and_then(|y| y.sum_all()?.backward()).expect("a pass"));
        }
    };
}

/// One matmul of the size of the linear maps here.
#[divan::bench(name = "matmul", sample_count = 12, sample_size = 1)]
fn one_matmul(bencher: Bencher) {
    let (m, k, n) = (ROWS, DIM, 4 * DIM);
    let (a, b) = (vec![0.5_f32; m * k], vec![0.25_f32; k * n]);
    let mut out = vec![0_f32; m * n];
    bencher.counter(ItemsCount::new(2 * m * k * n)).bench_local(|| {
        matmul(&mut out, n, Strided::dense(&a, k), Strided::dense(&b, n), false, 1.0, true);
    });
}

/// A copy of an image batch's numbers, by one core.
#[divan::bench(sample_count = 12, sample_size = 1)]
fn copy(bencher: Bencher) {
    let from = vec![0.5_f32; PIXELS];
    let mut to = vec![0_f32; PIXELS];
    bencher
        .counter(BytesCount::of_many::<f32>(2 * PIXELS))
        .bench_local(|| to.copy_from_slice(divan::black_box(&from)));
}

compare!(
    gelu,
    moved(4 * ROWS * DIM, 4 * ROWS * DIM),
    var(&[ROWS, 4 * DIM]),
    |x| ops::activation(&x, Function::GeluErf, 0.9),
    ops::composed::activation(&x, Function::GeluErf, 0.9)
);
compare!(
    soft_cap,
    moved(ROWS * DIM, ROWS * DIM),
    var(&[ROWS, DIM]),
    |x| ops::soft_cap(&x, 3.0),
    ops::composed::soft_cap(&x, 3.0)
);
compare!(
    clip,
    moved(ROWS * DIM, ROWS * DIM),
    var(&[ROWS, DIM]),
    |x| ops::clip(&x, 0.5),
    ops::composed::clip(&x, 0.5)
);
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
    products(PIXELS / 64, 64, 64),
    [var(&[256, 64, 16, 16]), var(&[64, 64]), var(&[64])],
    |v| ops::image_chain(&v[0], &layers(&v), Precision::F32, true),
    ops::composed::image_chain(&v[0], &layers(&v), Precision::F32)
);
compare!(
    convolution,
    products(PIXELS / 64, 9 * 64, 64),
    [var(&[256, 64, 16, 16]), var(&[64, 9 * 64]), var(&[64])],
    |v| ops::convolution(&v[0], &v[1], Some(&v[2]), &Convolution::same(64, 64, 3), Precision::F32),
    ops::composed::convolution(
        &v[0],
        &v[1],
        Some(&v[2]),
        &Convolution::same(64, 64, 3),
        Precision::F32
    )
);
compare!(
    shift,
    moved(PIXELS, PIXELS),
    (var(&[256, 64, 16, 16]), [[0, 0], [0, 1], [1, 0], [0, -1], [-1, 0], [0, 0], [1, 1], [-1, -1]]),
    |v| ops::shift(&v.0, &v.1, true),
    ops::composed::shift(&v.0, &v.1, true)
);
compare!(
    max_min,
    moved(2 * ROWS * DIM, 2 * ROWS * DIM),
    var(&[ROWS, 2 * DIM]),
    |x| ops::max_min(&x),
    ops::composed::max_min(&x)
);
compare!(
    look_back,
    moved(2 * ROWS * DIM, 2 * ROWS * DIM),
    (var(&[16, 256, 2 * DIM]), var(&[1, 8]), [0, 1, 2, 3, 4, 5, 6, 7]),
    |v| ops::look_back(&v.0, &v.1, &v.2),
    ops::composed::look_back(&v.0, &v.1, &v.2)
);
compare!(
    max_pool,
    moved(PIXELS, PIXELS / 4),
    (var(&[256, 64, 16, 16]), halves(Pooling::Max)),
    |v| ops::pool(&v.0, &v.1),
    ops::composed::pool(&v.0, &v.1)
);
compare!(
    average_pool,
    moved(PIXELS, PIXELS / 4),
    (var(&[256, 64, 16, 16]), halves(Pooling::Average)),
    |v| ops::pool(&v.0, &v.1),
    ops::composed::pool(&v.0, &v.1)
);
compare!(
    residual,
    moved(2 * ROWS * DIM, ROWS * DIM),
    [var(&[ROWS, DIM]), var(&[ROWS, DIM])],
    |v| ops::residual(&v[0], &v[1], 0.8, 0.2),
    ops::composed::residual(&v[0], &v[1], 0.8, 0.2)
);
compare!(
    rms_norm,
    moved(ROWS * DIM, ROWS * DIM),
    [var(&[ROWS, DIM]), var(&[DIM])],
    |v| ops::rms_norm(&v[0], &v[1], 1e-5),
    ops::composed::rms_norm(&v[0], &v[1], 1e-5)
);
compare!(
    layer_norm,
    moved(ROWS * DIM, ROWS * DIM),
    [var(&[ROWS, DIM]), var(&[DIM]), var(&[DIM])],
    |v| ops::layer_norm(&v[0], &v[1], Some(v[2].as_tensor()), 1e-5),
    ops::composed::layer_norm(&v[0], &v[1], Some(v[2].as_tensor()), 1e-5)
);
compare!(
    linear,
    products(ROWS, DIM, 4 * DIM),
    [var(&[ROWS, DIM]), var(&[4 * DIM, DIM])],
    |v| ops::linear(&v[0], &v[1], None, Precision::F32),
    ops::composed::linear(&v[0], &v[1], None, Precision::F32)
);
compare!(
    cross_entropy,
    moved(ROWS * 65, ROWS),
    (var(&[ROWS, 65]), ids(ROWS, 65)),
    |v| ops::cross_entropy(&v.0, &v.1),
    ops::composed::cross_entropy(&v.0, &v.1)
);
compare!(
    embedding,
    moved(ROWS * DIM, ROWS * DIM),
    (var(&[50304, DIM]), ids(ROWS, 50304)),
    |v| ops::embedding(&v.0, &v.1),
    ops::composed::embedding(&v.0, &v.1)
);
compare!(
    rotary,
    moved(ROWS * DIM, ROWS * DIM),
    (var(&[16, 256, 4, 64]), Rotary::new(10000.0, Pairing::Half)),
    |v| ops::rotary(&v.0, &v.1),
    ops::composed::rotary(&v.0, &v.1)
);
compare!(
    attention_core,
    ItemsCount::new(ATTENTION),
    [(); 3].map(|()| var(&[16, 256, 4, 64])),
    |v| ops::attention(&v[0], &v[1], &v[2], &Scores::new(1.0 / 64.0, Mask::Causal)),
    ops::composed::attention(&v[0], &v[1], &v[2], &Scores::new(1.0 / 64.0, Mask::Causal))
);
compare!(
    mlp_block,
    products(ROWS, DIM, 8 * DIM),
    [var(&[ROWS, DIM]), var(&[4 * DIM, DIM]), var(&[DIM, 4 * DIM])],
    |v| ops::mlp_block(MLP, &v[0], &v[1], &v[2], true),
    ops::composed::mlp_block(MLP, &v[0], &v[1], &v[2])
);
compare!(
    attention_block,
    ItemsCount::new(6 * 4 * ROWS * DIM * DIM + ATTENTION),
    (attention(), [var(&[16, 256, DIM]), var(&[3 * DIM, DIM]), var(&[DIM, DIM])]),
    |v| ops::attention_block(&v.0, &v.1[0], &v.1[1], &v.1[2], true),
    ops::composed::attention_block(&v.0, &v.1[0], &v.1[1], &v.1[2], None)
);

fn halves(pooling: Pooling) -> Pool {
    Pool { pooling, window: 2, stride: 2, padding: 0 }
}

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
