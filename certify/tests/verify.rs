//! A certificate holds for its checkpoint and for no other, and no change in it goes unnoticed.

mod workshop;

use candle_core::Tensor;
use lipschitz_certify::certificate::{Certificate, Formula, certify};
use lipschitz_certify::source::{Rounded, Rounding};
use lipschitz_certify::spectral::Method;
use lipschitz_certify::verify::verify;
use lipschitz_nn::Model;
use lipschitz_nn::graph::{Graph, NodeId};
use serde_json::Value;
use workshop::{Workshop, normalised};

/// The paths of all numbers in a document.
fn numbers(value: &Value, path: String, out: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            map.iter().for_each(|(key, v)| numbers(v, format!("{path}/{key}"), out))
        }
        Value::Array(list) => {
            list.iter().enumerate().for_each(|(i, v)| numbers(v, format!("{path}/{i}"), out))
        }
        Value::Number(_) => out.push(path),
        _ => {}
    }
}

fn caught(document: &Value, model: &Model) -> bool {
    match serde_json::from_value::<Certificate>(document.clone()) {
        Ok(claim) => verify(&claim, model).is_err(),
        Err(_) => true,
    }
}

#[test]
fn every_number_is_needed() {
    for (model, radius) in [(Workshop::model(), None), (normalised(), Some(0.75))] {
        let certificate = certify(&model, Method::Proven, Formula::Sound, radius).unwrap();
        verify(&certificate, &model).unwrap();
        let document = serde_json::to_value(&certificate).unwrap();
        let text = serde_json::to_string_pretty(&certificate).unwrap();
        assert_eq!(serde_json::from_str::<Certificate>(&text).unwrap(), certificate);
        let mut paths = Vec::new();
        numbers(&document, String::new(), &mut paths);
        assert!(paths.len() > 300, "{}", paths.len());
        for path in paths {
            let number = document.pointer(&path).unwrap().clone();
            let changed: Vec<Value> = match (number.as_i64(), number.as_f64()) {
                (Some(n), _) => vec![(n + 1).into(), (n - 1).into()],
                (None, Some(x)) => vec![(x * 0.9999 - 1e-9).into(), (x * 1.0001 + 1e-9).into()],
                _ => panic!("{path}: {number}"),
            };
            for value in changed {
                let mut other = document.clone();
                *other.pointer_mut(&path).unwrap() = value.clone();
                assert!(caught(&other, &model), "{path}: {number} became {value}");
            }
        }
    }
}

#[test]
fn other_weights_graphs_rows_and_words_are_caught() {
    let model = Workshop::model();
    let certificate = certify(&model, Method::Proven, Formula::Sound, None).unwrap();
    // One weight, by one unit in the last place.
    let mut weights = model.weights().clone();
    let name = "blocks.1.attention.key.weight";
    let mut values = weights[name].flatten_all().unwrap().to_vec1::<f32>().unwrap();
    values[11] = f32::from_bits(values[11].to_bits() ^ 1);
    weights.insert(
        name.into(),
        Tensor::from_vec(values, weights[name].shape(), &model.device()).unwrap(),
    );
    let other = Model::new(model.graph().clone(), weights).unwrap();
    let said = verify(&certificate, &other).unwrap_err().to_string();
    assert!(said.contains("weights_sha256"), "{said}");
    let change = |what: &dyn Fn(&mut Certificate)| {
        let mut changed = certificate.clone();
        what(&mut changed);
        verify(&changed, &model).unwrap_err().to_string()
    };
    let says = |said: String, what: &str| assert!(said.contains(what), "{said}");
    says(change(&|c| drop(c.weights.remove(3))), "weights[3]");
    says(change(&|c| c.weights.push(c.weights[0].clone())), "no norm that the proof uses");
    says(change(&|c| drop(c.nodes.pop())), "nodes");
    says(change(&|c| c.nodes[2].path = "elsewhere".into()), "nodes[2].path");
    says(change(&|c| drop(c.assumptions.pop())), "assumptions");
    says(change(&|c| c.warnings.push("none".into())), "warnings");
    says(change(&|c| c.proven = false), "proven");
    says(change(&|c| c.domain.given = true), "domain.text");
    says(change(&|c| c.method = Method::Frobenius), "weights[1]");
    says(change(&|c| c.formula = Formula::Paper), "weights[");
    let shorter = |graph: &Graph| Graph::new(graph.input(), graph.nodes()[..1].to_vec()).unwrap();
    says(change(&|c| c.graph = shorter(&c.graph)), "graph");
    says(change(&|c| c.nodes[3].id = c.nodes[2].id.clone()), "nodes[3].id");
    says(change(&|c| c.format = 3), "format");
    says(change(&|c| c.format = 0), "format");
    // An estimate cannot claim to be a proof.
    let estimate = certify(&model, Method::Power, Formula::Sound, None).unwrap();
    verify(&estimate, &model).unwrap();
    let mut bold = estimate;
    (bold.proven, bold.method) = (true, Method::Proven);
    assert!(verify(&bold, &model).is_err());
}

/// Format 1 has no ids of nodes; format 2 has an id for each.
#[test]
fn certificates_of_format_1_are_verified_as_they_are() {
    let model = Workshop::model();
    let certificate = certify(&model, Method::Proven, Formula::Sound, None).unwrap();
    let mut ids: Vec<&NodeId> = certificate.nodes.iter().map(|row| &row.id).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), certificate.nodes.len());

    let mut first = Certificate { format: 1, ..certificate.clone() };
    assert!(verify(&first, &model).unwrap_err().to_string().contains("nodes[0]"));
    first.nodes.iter_mut().for_each(|row| row.id = NodeId::default());
    let json = serde_json::to_string(&first).unwrap();
    assert!(!json.contains("\"id\""));
    verify(&serde_json::from_str(&json).unwrap(), &model).unwrap();
    let nameless = Certificate { format: certificate.format, ..first };
    assert!(verify(&nameless, &model).unwrap_err().to_string().contains("nodes[0]"));
}

/// Documents of version 0.1.0 have no decimal values, and what they state is proven all the same;
/// every one that is there is checked.
#[test]
fn decimal_values_may_be_missing_and_may_not_be_wrong() {
    fn each(value: &mut Value, change: &mut dyn FnMut(&mut serde_json::Map<String, Value>)) {
        match value {
            Value::Object(map) if map.contains_key("mantissa") => change(map),
            Value::Object(map) => map.values_mut().for_each(|value| each(value, change)),
            Value::Array(list) => list.iter_mut().for_each(|value| each(value, change)),
            _ => {}
        }
    }
    let model = Workshop::model();
    let certificate = certify(&model, Method::Proven, Formula::Sound, None).unwrap();
    let document = serde_json::to_value(&certificate).unwrap();
    let mut old = document.clone();
    let mut count = 0;
    each(&mut old, &mut |bound| {
        let decimal: f64 = bound.remove("value").unwrap().as_str().unwrap().parse().unwrap();
        let exponent = bound["exponent"].as_i64().unwrap() as i32;
        assert!(decimal >= bound["mantissa"].as_f64().unwrap() * 2f64.powi(exponent));
        count += 1;
    });
    assert!(count > 50, "{count}");
    verify(&serde_json::from_value(old).unwrap(), &model).unwrap();
    for wrong in (0..count).step_by(7) {
        let (mut forged, mut at) = (document.clone(), 0);
        each(&mut forged, &mut |bound| {
            if at == wrong {
                let decimal: f64 = bound["value"].as_str().unwrap().parse().unwrap();
                let less = if decimal == 0.0 { -1.0 } else { decimal * (1.0 - 1e-12) };
                bound["value"] = format!("{less}").into();
            }
            at += 1;
        });
        assert!(caught(&forged, &model), "{wrong}");
    }
}

#[test]
fn from_disk_one_tensor_at_a_time_it_is_the_same() {
    let w = Workshop::new();
    let reader = lipschitz_nn::checkpoint::Reader::open(&w.path("model.safetensors")).unwrap();
    let certify = |source: &dyn lipschitz_certify::source::Source| {
        certify(source, Method::Proven, Formula::Sound, None).unwrap()
    };
    assert_eq!(certify(&reader), certify(&Workshop::model()));
    verify(&certify(&reader), &reader).unwrap();
}

/// A proof must not mix two checkpoints: a checkpoint that replaces the file changes nothing for an
/// open reader, and one that is written into the file is noticed.
#[test]
fn a_checkpoint_that_changes_under_a_proof() {
    let w = Workshop::new();
    let path = w.path("model.safetensors");
    let reader = lipschitz_nn::checkpoint::Reader::open(&path).unwrap();
    let name = reader.names().remove(0);
    let numbers =
        || reader.tensor(&name).map(|t| t.flatten_all().unwrap().to_vec1::<f32>().unwrap());
    let before = numbers().unwrap();
    let bytes = std::fs::read(&path).unwrap();
    lipschitz_nn::checkpoint::write(&path, &vec![0; bytes.len()]).unwrap();
    assert_eq!(numbers().unwrap(), before);

    std::fs::write(&path, &bytes).unwrap();
    let reader = lipschitz_nn::checkpoint::Reader::open(&path).unwrap();
    let later = std::time::SystemTime::now() + std::time::Duration::from_secs(5);
    std::fs::File::options().write(true).open(&path).unwrap().set_modified(later).unwrap();
    let said = reader.tensor(&name).unwrap_err().to_string();
    assert!(said.contains("model.safetensors: has changed since"), "{said}");
}

/// The published schema is that of the program, and certificates obey it. One with a value of
/// another type does not.
#[test]
fn certificates_obey_the_published_schema() {
    let published = include_str!("../../docs/certificate.schema.json");
    assert_eq!(
        published,
        lipschitz_certify::certificate::schema(),
        "run `certify schema > docs/certificate.schema.json`"
    );
    let validator = jsonschema::validator_for(&serde_json::from_str(published).unwrap()).unwrap();
    for (model, radius) in [(Workshop::model(), None), (normalised(), Some(0.75))] {
        let certificate = certify(&model, Method::Proven, Formula::Sound, radius).unwrap();
        let mut document = serde_json::to_value(&certificate).unwrap();
        let problems: Vec<String> =
            validator.iter_errors(&document).map(|e| e.to_string()).collect();
        assert!(problems.is_empty(), "{problems:?}");
        document["rms"]["mantissa"] = "1.5".into();
        assert!(!validator.is_valid(&document));
    }
}

/// A constant far beyond the range of f64 is stored, read and proven again exactly.
#[test]
fn huge_constants_survive() {
    let model = Workshop::model();
    let weights =
        model.weights().iter().map(|(name, w)| (name.clone(), (w * 1e36).unwrap())).collect();
    let model = Model::new(model.graph().clone(), weights).unwrap();
    let certificate = certify(&model, Method::Proven, Formula::Sound, None).unwrap();
    assert!(certificate.rms.is_finite() && certificate.rms.log10() > 400.0, "{}", certificate.rms);
    let text = serde_json::to_string(&certificate).unwrap();
    let read: Certificate = serde_json::from_str(&text).unwrap();
    assert_eq!(read, certificate);
    assert_eq!(serde_json::to_string(&read).unwrap(), text);
    verify(&read, &model).unwrap();
}

/// Inference in bf16 runs another network. Its certificate is that of the rounded weights, and says
/// so.
#[test]
fn rounded_weights_have_a_certificate_of_their_own() {
    let model = Workshop::model();
    let stored = certify(&model, Method::Proven, Formula::Sound, None).unwrap();
    for to in [Rounding::Bf16, Rounding::F16] {
        let rounded =
            certify(&Rounded { source: &model, to }, Method::Proven, Formula::Sound, None).unwrap();
        assert_ne!(rounded.rms, stored.rms);
        let cast = model.to(&candle_core::Device::Cpu, to.dtype()).unwrap();
        let own = certify(&cast, Method::Proven, Formula::Sound, None).unwrap();
        assert_eq!(
            (own.rms, &own.weights, &own.weights_sha256),
            (rounded.rms, &rounded.weights, &rounded.weights_sha256)
        );
        assert!(rounded.assumptions[0].contains("rounded"), "{:?}", rounded.assumptions);
        verify(&rounded, &model).unwrap();
        let plain = Certificate { rounding: None, ..rounded.clone() };
        assert!(verify(&plain, &model).is_err() && verify(&plain, &cast).is_err());
        let other = if to == Rounding::Bf16 { Rounding::F16 } else { Rounding::Bf16 };
        assert!(verify(&Certificate { rounding: Some(other), ..rounded }, &model).is_err());
    }
}

/// What claims a proof of a change of a hundred thousand elements is refused before it takes memory.
#[test]
fn a_claim_of_a_large_proof_takes_no_memory() {
    use lipschitz_nn::graph::{Function, Input, Node, Op};
    let start = std::time::Instant::now();
    let wide = 100_000;
    let nodes = vec![
        Node::new("", Op::Activation { function: Function::Relu, scale: 1.0 }),
        Node::new("head", Op::Linear { inputs: wide, outputs: 1, bias: false }),
    ];
    let graph = Graph::new(Input::Vector { dim: wide }, nodes).unwrap();
    let w = Tensor::ones((1, wide), candle_core::DType::F32, &candle_core::Device::Cpu).unwrap();
    let model = Model::new(graph, [("head.weight".to_string(), w)].into()).unwrap();
    let certificate = certify(&model, Method::Proven, Formula::Sound, None).unwrap();
    verify(&certificate, &model).unwrap();
    let mut document = serde_json::to_value(&certificate).unwrap();
    let l2 = document["l2"].clone();
    document["ellipsoids"] = serde_json::json!({
        "l2": l2, "logit": l2, "margin": l2, "nodes": [], "multipliers": []
    });
    let claim: Certificate = serde_json::from_value(document).unwrap();
    let said = verify(&claim, &model).unwrap_err().to_string();
    assert!(said.contains("prove nothing"), "{said}");
    assert!(start.elapsed().as_secs() < 60, "{:?}", start.elapsed());
}
