//! The data sets as they are published, where they lie beside the repository.

use std::time::Instant;

use candle_core::Device;
use lipschitz_data::cifar::{CLASSES, Limits, PIXELS, load10};
use lipschitz_data::examples::{Targets, Values};
use lipschitz_data::order::Shuffle;
use lipschitz_data::text;
use lipschitz_tests::shared;

#[test]
fn the_real_files_decode() {
    let Some(path) = shared("cifar10") else { return };
    let start = Instant::now();
    let data = load10(&path, Limits { train: Some(400), test: Some(100) }).unwrap();
    eprintln!("500 images in {:.0} ms", start.elapsed().as_secs_f64() * 1e3);
    let (Values::Bytes(pixels), Targets::Classes(classes)) =
        (&data.train.values, &data.train.targets)
    else {
        panic!("images are bytes with classes")
    };
    assert_eq!((data.train.len(), data.test.len(), pixels.len()), (400, 100, 400 * PIXELS));
    let classes: std::collections::BTreeSet<u32> = classes.iter().copied().collect();
    assert_eq!(classes.len(), CLASSES);
    // The mean over all of CIFAR-10 is (0.491, 0.482, 0.447); a few hundred images come near
    // it.
    let order = Shuffle::new(1, 400).batch(0, 400);
    let (pixels, _) = data.train.batch(&order, &Device::Cpu).unwrap();
    let mean = pixels.mean((0, 2, 3)).unwrap().to_vec1::<f32>().unwrap();
    for (mean, known) in mean.iter().zip([0.491, 0.482, 0.447]) {
        assert!((mean - known).abs() < 0.03, "{mean} {known}");
    }
}

#[test]
fn tiny_shakespeare_has_its_known_numbers() {
    let Some(path) = shared("tinyshakespeare.txt") else { return };
    let data = text::load(&text::TextConfig::new(path)).unwrap();
    assert_eq!((data.train.len(), data.val.len(), data.vocabulary), (1_003_854, 111_540, 65));
}
