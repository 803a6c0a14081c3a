//! Nobody breaks the bound: gradient search for the steepest pair, over random networks, against the certificate.

use candle_core::{Device, Tensor};
use certify::certificate::{Formula, certify};
use certify::probe;
use certify::spectral::Method;
use lipschitz_nn::graph::{Attention, Graph, Input, Node, Op};
use lipschitz_nn::{Model, Weights};
use lipschitz_tests::{Dice, random_graph, random_model};

/// Over 1,200 networks of every node kind; also says how tight the bounds are, so that a vacuous bound would show.
#[test]
fn no_pair_is_steeper_than_the_certificate() {
    let mut ratios = Vec::new();
    for seed in 0..1200 {
        let mut dice = Dice::new(seed);
        let graph = random_graph(&mut dice);
        let json = serde_json::to_string(&graph).unwrap();
        let model = random_model(graph, &mut dice);
        let certificate = certify(&model, Method::Proven, Formula::Sound, None).unwrap();
        let dim = model.weights()["embedding.weight"].dim(1).unwrap();
        let tokens = 1 + dice.below(4);
        let starts = dice.tensor(&[3, tokens, dim], 1.0);
        let radius = certificate.domain.radius.to_f64();
        let found = probe::search(&model, &starts, radius, 20).unwrap().sensitivity;
        let bound = certificate.l2.to_f64();
        assert!(found <= bound * (1.0 + 1e-6), "seed {seed}: found {found}, certified {bound}\n{json}");
        if bound.is_finite() && bound > 0.0 {
            ratios.push(found / bound);
        }
    }
    assert!(ratios.len() > 1000, "only {} finite bounds", ratios.len());
    ratios.sort_by(f64::total_cmp);
    let (median, best) = (ratios[ratios.len() / 2], ratios[ratios.len() - 1]);
    println!("found / certified: median {median:.3}, largest {best:.6}");
    assert!(best > 0.9, "no bound is nearly met, so the search finds nothing: {best}");
}

/// Identity weights, `heads` heads of width 4, tokens of RMS norm at most 1.
fn identity_attention(heads: usize) -> Model {
    let head_dim = 4;
    let dim = heads * head_dim;
    let attention = Attention {
        dim,
        heads,
        key_value_heads: heads,
        head_dim,
        logit_scale: 1.0 / head_dim as f64,
        output_scale: 1.0 / 3.0,
        causal: false,
        rotary: None,
        bias: false,
        output_bias: false,
        query_key_norm: None,
        logit_cap: None,
    };
    let nodes = vec![
        Node::new("embedding", Op::Embedding { vocabulary: dim, dim }),
        Node::new("attention", Op::Attention(attention)),
    ];
    let graph = Graph::new(Input::Tokens { context: 8 }, nodes).unwrap();
    let identity = Tensor::eye(dim, candle_core::DType::F64, &Device::Cpu).unwrap();
    let weight = |name: &str| {
        let scale = if name.starts_with("embedding") { (dim as f64).sqrt() } else { 1.0 };
        (identity.clone() * scale).unwrap()
    };
    let weights: Weights = graph.parameters().iter().map(|p| (p.name.clone(), weight(&p.name))).collect();
    Model::new(graph, weights).unwrap()
}

/// The published formula puts whole-matrix norms into the formula of one head: with eight heads a pair breaks it.
#[test]
fn the_published_formula_is_exceeded_and_ours_is_not() {
    let mut found = Vec::new();
    for heads in [1, 2, 4, 8] {
        let model = identity_attention(heads);
        let published = certify(&model, Method::Proven, Formula::Paper, None).unwrap();
        let sound = certify(&model, Method::Proven, Formula::Sound, None).unwrap();
        assert!((published.rms.to_f64() - 1.0).abs() < 1e-6, "{}", published.rms);
        assert!(!published.proven && !published.warnings.is_empty());
        let radius = sound.domain.radius.to_f64();
        let dim = heads * 4;
        let mut best: f64 = 0.0;
        // Tokens at two opposite points make the covariance in the bound large.
        for seed in 0..6 {
            let starts = (Dice::new(seed).tensor(&[8, 2 + seed as usize, dim], 1.0) * radius).unwrap();
            best = best.max(probe::search(&model, &starts, radius, 120).unwrap().sensitivity);
        }
        assert!(best <= sound.l2.to_f64() * (1.0 + 1e-6), "{heads} heads: found {best}, certified {}", sound.l2);
        found.push(best);
    }
    println!("found with 1, 2, 4, 8 heads: {found:.2?}; published: 1.00");
    assert!(found[0] <= 1.0 && found[3] > 1.5, "{found:?}");
}
