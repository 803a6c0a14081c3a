//! Certified ≤ attacked ≤ clean, on networks whose true accuracy within a radius is known.

use candle_core::{DType, Device, Tensor};
use lipschitz_certify::robust::{self, Effort, Robustness, Settings};
use lipschitz_data::Corpus;
use lipschitz_data::cifar::PIXELS;
use lipschitz_data::examples::Split;
use lipschitz_data::play;
use lipschitz_nn::graph::{Function, Graph, Input, Node, Op};
use lipschitz_nn::init::{self, Blocks};
use lipschitz_nn::presets::{BlockConfig, Gpt};
use lipschitz_nn::{Model, random};

/// Uniform in [-1, 1].
fn noise(label: &str, shape: &[usize]) -> Tensor {
    let mut rng = random::keyed(5, label, 0);
    let one = |_| random::below(&mut rng, 1 << 30) as f64 / f64::from(1 << 29) - 1.0;
    Tensor::from_vec((0..shape.iter().product()).map(one).collect::<Vec<_>>(), shape, &Device::Cpu)
        .unwrap()
}

/// Images far from black and white, so that the range of pixels does not stop an attack.
fn grey_images(count: usize) -> Split {
    let mut rng = random::keyed(3, "pictures", 0);
    let pixels = (0..count * PIXELS).map(|_| 90 + random::below(&mut rng, 76) as u8).collect();
    let labels = (0..count).map(|i| (i % 10) as u32).collect();
    Split::images([3, 32, 32], pixels, labels)
}

fn images(
    model: &Model,
    test: &Split,
    settings: &Settings,
    watch: &dyn Fn(f64),
) -> Result<Robustness, lipschitz_certify::Error> {
    let batches = test.batches(robust::BATCH, &Device::Cpu);
    robust::images(model, batches, test.len(), settings, watch)
}

fn tokens(
    model: &Model,
    data: &Corpus,
    settings: &Settings,
    watch: &dyn Fn(f64),
) -> Result<Robustness, lipschitz_certify::Error> {
    let windows = data.full(robust::WINDOWS, robust::window(model)?, &Device::Cpu);
    robust::tokens(model, windows, settings, watch)
}

fn certified_accuracy(
    model: &Model,
    test: &Split,
    eps: f64,
) -> Result<f64, lipschitz_certify::Error> {
    let batches = test.batches(robust::BATCH, &Device::Cpu);
    Ok(robust::certified_accuracy(model, batches, &[eps], 30)?[0])
}

fn settings(eps: &[f64], limit: usize) -> Settings {
    Settings { eps: eps.to_vec(), effort: Effort { steps: 20, restarts: 2 }, limit, search: 30 }
}

fn image_model(nodes: Vec<Node>, weights: &[(&str, Tensor)]) -> Model {
    let graph = Graph::new(Input::Pixels { channels: 3, height: 32, width: 32 }, nodes).unwrap();
    Model::new(graph, weights.iter().map(|(name, w)| (name.to_string(), w.clone())).collect())
        .unwrap()
}

fn linear(inputs: usize, outputs: usize) -> Op {
    Op::Linear { inputs, outputs, bias: false }
}

/// For a linear classifier the radius of an image is the smallest `(z_y − z_j) / ‖w_y − w_j‖`: the
/// certified share is exact, and the attack is nearly so.
#[test]
fn a_linear_classifier_is_certified_exactly() {
    let count = 200;
    let test = grey_images(count);
    let (x, y) = test.batch(&(0..count).collect::<Vec<_>>(), &Device::Cpu).unwrap();
    // The row of each class is the mean of its images, so that many are classified correctly.
    let x = x.reshape((count, PIXELS)).unwrap().to_dtype(DType::F64).unwrap();
    let rows: Vec<Tensor> = (0..10)
        .map(|class| {
            let own: Vec<u32> = (0..count as u32).filter(|i| i % 10 == class).collect();
            let mean = x
                .index_select(&Tensor::new(own, &Device::Cpu).unwrap(), 0)
                .unwrap()
                .mean(0)
                .unwrap();
            (mean - x.mean(0).unwrap()).unwrap()
        })
        .collect();
    let w = Tensor::stack(&rows, 0).unwrap();
    let nodes = vec![
        Node::new("", Op::Flatten),
        Node::new("head", linear(PIXELS, 10)),
        Node::new("", Op::Scale { factor: 7.0 }),
    ];
    let model = image_model(nodes, &[("head.weight", w.clone())]);

    let (w, z) =
        (w.to_vec2::<f64>().unwrap(), x.matmul(&w.t().unwrap()).unwrap().to_vec2::<f64>().unwrap());
    let radius = |z: &Vec<f64>, y: usize| {
        let distance =
            |j: usize| w[y].iter().zip(&w[j]).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
        (0..10)
            .filter(|j| *j != y)
            .map(|j| (z[y] - z[j]) / distance(j))
            .fold(f64::INFINITY, f64::min)
    };
    let labels = y.to_vec1::<u32>().unwrap();
    let exact: Vec<f64> = z.iter().zip(&labels).map(|(z, y)| radius(z, *y as usize)).collect();
    let mut sorted: Vec<f64> = exact.iter().copied().filter(|r| *r > 0.0).collect();
    sorted.sort_by(f64::total_cmp);
    assert!(sorted.len() > count / 2, "{}", sorted.len());
    // Radii between those of images.
    let between = |share: f64| {
        let i = (share * sorted.len() as f64) as usize;
        (sorted[i] + sorted[i + 1]) / 2.0
    };
    let eps = [0.0, between(0.2), between(0.5), between(0.9)];
    let report = images(&model, &test, &settings(&eps, usize::MAX), &|_| {}).unwrap();
    for (row, eps) in report.rows.iter().zip(eps) {
        let share = exact.iter().filter(|r| **r > eps).count() as f64 / count as f64;
        assert_eq!(row.certified, share, "{row:?}");
        assert_eq!(row.clean, exact.iter().filter(|r| **r > 0.0).count() as f64 / count as f64);
        assert!(row.attacked - share <= 0.01, "the attack is weak: {row:?}, exact {share}");
    }
    assert_eq!(certified_accuracy(&model, &test, eps[2]).unwrap(), report.rows[2].certified);
}

/// Scaling the logits changes the constant but no certified share.
#[test]
fn shares_do_not_depend_on_the_scale_of_logits() {
    let test = grey_images(60);
    let hidden = (noise("first", &[24, PIXELS]) * 0.05).unwrap();
    let head = noise("head", &[10, 24]);
    let report = |factor: f64| {
        let nodes = vec![
            Node::new("", Op::Flatten),
            Node::new("first", linear(PIXELS, 24)),
            Node::new("", Op::Activation { function: Function::Relu, scale: 1.0 }),
            Node::new("head", linear(24, 10)),
            Node::new("", Op::Scale { factor }),
        ];
        let model =
            image_model(nodes, &[("first.weight", hidden.clone()), ("head.weight", head.clone())]);
        images(&model, &test, &settings(&[0.01, 0.0, 0.3, 5.0], 50), &|_| {}).unwrap()
    };
    let (one, many) = (report(1.0), report(64.0));
    assert_eq!((one.inputs, one.rows.len()), (50, 4));
    for (a, b) in one.rows.iter().zip(&many.rows) {
        assert_eq!((a.clean, a.certified, a.attacked), (b.clean, b.certified, b.attacked));
    }
    assert!(
        one.rows[0].certified > 0.0 && one.rows[3].attacked < one.rows[0].attacked,
        "{:?}",
        one.rows
    );
    assert!(one.curve.windows(2).all(|w| w[0].0 < w[1].0 && w[0].1 >= w[1].1));
}

#[test]
fn next_tokens_are_certified_and_attacked() {
    let data = Corpus::from_text("play", &play::text(1, 4000), None, None).unwrap();
    let vocabulary = data.vocabulary;
    let gpt =
        Gpt::new(vocabulary, 12, 1, BlockConfig { output_scale: 1.0, ..BlockConfig::new(16, 2) });
    let graph = gpt.graph().unwrap();
    let mut weights = init::weights(&graph, 2, Blocks::PerHead, &Device::Cpu, DType::F64).unwrap();
    // Weights that start at zero would make all logits zero.
    for (i, w) in weights.values_mut().enumerate() {
        *w = (&*w + (noise(&format!("w{i}"), w.dims()) * 0.2).unwrap()).unwrap();
    }
    let model = Model::new(graph, weights).unwrap();
    let report =
        tokens(&model, &data, &settings(&[0.0, 1e-4, 1e-3, 0.3, 3.0], 20), &|_| {}).unwrap();
    assert_eq!((report.inputs, report.rows.len()), (20, 5));
    let (near, far) = (&report.rows[1], &report.rows[4]);
    assert!(near.clean == 1.0 && near.certified > 0.0, "{:?}", report.rows);
    assert!(far.certified == 0.0 && far.attacked < 0.5, "{:?}", report.rows);
    assert!(report.rows.iter().all(|r| r.attacked <= r.attacked_one.unwrap()));
    assert!(far.attacked_one.unwrap() < 1.0, "{:?}", report.rows);
}

/// Rounding errors inside a network need not be visible in its logits: here 0.9 is lost beside
/// 2⁵³, and class 0 has the larger logit in truth.
#[test]
fn values_that_cancel_certify_nothing() {
    let mut first = vec![0.0; PIXELS];
    first[0] = 1.0;
    let huge = (1u64 << 53) as f64;
    let biased = |inputs, outputs| Op::Linear { inputs, outputs, bias: true };
    let nodes = vec![
        Node::new("", Op::Flatten),
        Node::new("a", biased(PIXELS, 1)),
        Node::new("b", biased(1, 2)),
    ];
    let weight =
        |values: Vec<f64>, shape: &[usize]| Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
    let weights = [
        ("a.weight", weight(first, &[1, PIXELS])),
        ("a.bias", weight(vec![huge], &[1])),
        ("b.weight", weight(vec![1.0, 0.0], &[2, 1])),
        ("b.bias", weight(vec![-huge, 0.5], &[2])),
    ];
    let model = image_model(nodes, &weights);
    let test = Split::images([3, 32, 32], vec![230; PIXELS], vec![1]);
    assert_eq!(certified_accuracy(&model, &test, 0.0).unwrap(), 0.0);
    // The same inside one map whose output is small.
    let mut row = vec![0.0; 2 * PIXELS];
    (row[0], row[1]) = (huge, 1.0);
    let nodes = vec![Node::new("", Op::Flatten), Node::new("a", biased(PIXELS, 2))];
    let weights =
        [("a.weight", weight(row, &[2, PIXELS])), ("a.bias", weight(vec![-huge, 0.5], &[2]))];
    let mut pixels = vec![230; PIXELS];
    pixels[0] = 255;
    let test = Split::images([3, 32, 32], pixels, vec![1]);
    assert_eq!(certified_accuracy(&image_model(nodes, &weights), &test, 0.0).unwrap(), 0.0);
}

/// With documents, only windows within one document are evaluated: for others the network is
/// another function of the embeddings.
#[test]
fn windows_with_a_new_document_are_left_out() {
    let data = Corpus::from_text("play", &play::text(1, 4000), None, None).unwrap();
    let report = |separator| {
        let graph = Gpt::new(data.vocabulary, 12, 1, BlockConfig::new(16, 2)).graph().unwrap();
        let graph = Graph::new(
            Input::Tokens { context: 12, separator, zero_prefix: 0 },
            graph.nodes().to_vec(),
        )
        .unwrap();
        let weights = init::weights(&graph, 2, Blocks::PerHead, &Device::Cpu, DType::F64).unwrap();
        tokens(&Model::new(graph, weights).unwrap(), &data, &settings(&[0.0], 3), &|_| {})
            .map(|r| r.available)
    };
    let windows: Vec<Vec<u32>> = data
        .full(1, 12, &Device::Cpu)
        .map(|batch| batch.unwrap().0.flatten_all().unwrap().to_vec1::<u32>().unwrap())
        .filter(|ids| ids.len() == 12)
        .collect();
    assert_eq!(report(None).unwrap(), windows.len());
    // A frequent token.
    let separator = windows[0][3];
    let whole = windows.iter().filter(|ids| !ids[1..].contains(&separator)).count();
    assert!(whole > 0 && whole < windows.len(), "{whole} of {}", windows.len());
    assert_eq!(report(Some(separator)).unwrap(), whole);
}

#[test]
fn proven_shares_are_not_rounded_up() {
    let shown = [3.0 / 64.0, 0.417, 1.0, 0.0, 834.0 / 2000.0].map(robust::percent);
    assert_eq!(shown, ["4.68 %", "41.70 %", "100.00 %", "0.00 %", "41.70 %"]);
}
