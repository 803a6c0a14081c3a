//! Knowledge distillation: what is learned, what does not fit, and that a run can be gone on with.

mod workshop;

use candle_core::{D, DType, Device, Tensor};
use candle_nn::ops::{log_softmax, softmax};
use lipschitz_nn::checkpoint;
use lipschitz_train::config::Config;
use lipschitz_train::teacher::digest;
use workshop::*;

fn taught_by(models: &[&str], more: &str) -> String {
    let models: Vec<String> = models.iter().map(|m| format!("\"{m}\"")).collect();
    format!("teacher={{ models = [{}]{more} }}", models.join(", "))
}

/// A workshop with two teachers, and their paths.
fn school() -> (Workshop, [String; 2]) {
    let w = Workshop::new(TINY);
    w.done("a", &["model.dim=16", "train.steps=60"], &[]);
    w.done("b", &["train.seed=3", "train.steps=40"], &[]);
    let paths = ["a", "b"].map(|name| w.path(name).display().to_string());
    (w, paths)
}

/// Cross-entropy of logits z/τ with probabilities p, as it is defined.
fn against(z: &Tensor, p: &Tensor, t: f64) -> f64 {
    let z = log_softmax(&(z / t).unwrap(), D::Minus1).unwrap();
    let each = (z * p).unwrap().sum(D::Minus1).unwrap().mean_all().unwrap();
    -f64::from(each.to_scalar::<f32>().unwrap())
}

/// The loss of a step is that of the network before it by the definition, with one teacher and with two, at
/// any share and temperature.
#[test]
fn the_loss_is_what_its_definition_says() {
    let (w, [a, b]) = school();
    // Ten steps, so that it knows something, and one more.
    let rate = ["train.learning_rate=1.0", "train.schedule.kind=\"constant\""];
    let load = |run: &str| checkpoint::load(&w.path(run).join("model.safetensors"), &Device::Cpu);
    let cases: [(&[&str], f64, f64); 4] =
        [(&[&a], 1.0, 1.0), (&[&a, &b], 1.0, 1.0), (&[&a, &b], 0.4, 2.5), (&[&b], 0.9, 0.5)];
    for (i, (models, share, t)) in cases.into_iter().enumerate() {
        let more = format!(", share = {share}, temperature = {t}");
        let (out, next) = (format!("ten-{i}"), format!("eleven-{i}"));
        let taught = taught_by(models, &more);
        w.done(&out, &[&rate[..], &[&taught, "train.steps=10"]].concat(), &[]);
        w.done(&next, &[&rate[..], &[&taught, "train.steps=11"]].concat(), &[]);
        let said = metrics(&w.path(&next))[10]["train_loss"].as_f64().unwrap();

        let (student, meta) = load(&out).unwrap();
        let config: Config = serde_json::from_value(meta.config).unwrap();
        let data = config.data.kind().load().unwrap();
        let mut batches = data.training(config.train.seed, student.graph().context()).unwrap();
        let (x, y) = batches.batch(10, config.train.batch_size, &Device::Cpu).unwrap();
        let logits =
            |model: &lipschitz_nn::Model| model.forward(&x).unwrap().flatten_to(1).unwrap();
        let (z, y) = (logits(&student), y.flatten_all().unwrap());
        let right = candle_nn::loss::cross_entropy(&z, &y).unwrap();
        let right = f64::from(right.to_scalar::<f32>().unwrap());
        let teacher = |path: &&str| {
            let (model, _) = lipschitz_certify::load(path.as_ref(), &Device::Cpu).unwrap();
            softmax(&(logits(&model) / t).unwrap(), D::Minus1).unwrap()
        };
        let all: Vec<Tensor> = models.iter().map(teacher).collect();
        let p = Tensor::stack(&all, 0).unwrap().mean(0).unwrap();
        let wanted = (1.0 - share) * right + share * t * t * against(&z, &p, t);
        assert!((said - wanted).abs() < 2e-5 * wanted, "{i}: {said}, not {wanted}");
        // The teachers differ from the classes, or this would show nothing.
        assert!((wanted - right).abs() > 1e-3 * right, "{i}: {wanted} {right}");

        let digests: Vec<String> = models
            .iter()
            .map(|path| {
                digest(&lipschitz_certify::load(path.as_ref(), &Device::Cpu).unwrap().0).unwrap()
            })
            .collect();
        assert_eq!(meta.provenance.teachers, digests);
    }
}

/// A network that never sees a right class ends nearer to its teacher than one that sees nothing else.
#[test]
fn what_the_teacher_says_is_learned() {
    let (w, [a, _]) = school();
    let settings = ["train.steps=120", "train.eval_every=120"];
    w.done("alone", &settings, &[]);
    w.done("pupil", &[&settings[..], &[&taught_by(&[&a], "")]].concat(), &[]);
    let load = |run: &str| {
        checkpoint::load(&w.path(run).join("model.safetensors"), &Device::Cpu).unwrap().0
    };
    let x = Tensor::rand(0f32, 20.0, (64, 8), &Device::Cpu).unwrap().to_dtype(DType::U32).unwrap();
    let logits = |run: &str| load(run).forward(&x).unwrap().flatten_to(1).unwrap();
    let p = softmax(&logits("a"), D::Minus1).unwrap();
    let [alone, pupil] = ["alone", "pupil"].map(|run| against(&logits(run), &p, 1.0));
    assert!(pupil < alone, "{pupil} {alone}");
}

/// A resumed run is one that was never stopped, wherever the teacher lies, and not one of another teacher.
#[test]
fn a_resumed_run_has_the_same_teachers() {
    let (w, [a, b]) = school();
    let more = ", share = 0.7, temperature = 2.0";
    let settings = |models: &[&str], steps: &str| {
        [taught_by(models, more), format!("train.steps={steps}"), "train.accumulate=2".into()]
    };
    let run = |out: &str, models: &[&str], steps: &str, resume: &[&str]| {
        let settings = settings(models, steps);
        w.run(out, &settings.each_ref().map(String::as_str), resume)
    };
    let constant = ["--set", "train.schedule.kind=\"constant\""];
    let again = [&constant[..], &["--resume"]].concat();
    succeeds(&mut run("whole", &[&a, &b], "20", &constant));
    succeeds(&mut run("parts", &[&a, &b], "9", &constant));
    let moved = w.copy("a", "elsewhere").display().to_string();
    for others in [&[&*a][..], &[&b, &a], &[&a, &a]] {
        let said = refused(&mut run("parts", others, "20", &again));
        assert!(said.contains("teacher.models have other weights there"), "{said}");
    }
    succeeds(&mut run("parts", &[&moved, &b], "20", &again));
    let bytes =
        |out: &str| std::fs::read(w.path(out).join("checkpoint/optimizer.safetensors")).unwrap();
    assert!(bytes("whole") == bytes("parts"));
    assert_eq!(metrics(&w.path("whole")).last(), metrics(&w.path("parts")).last());
}

#[test]
fn what_cannot_teach_is_refused_by_name() {
    let (w, [a, _]) = school();
    w.done("short", &["model.context=4", "train.steps=2"], &[]);
    let path = |name: &str| w.path(name).display().to_string();
    let [short, none] = ["short", "none"].map(path);
    for (setting, wanted) in [
        (taught_by(&[], ""), "teacher.models is empty"),
        (taught_by(&[&a], ", share = 0.0"), "teacher.share is 0; it must be above 0"),
        (taught_by(&[&a], ", share = 1.5"), "teacher.share is 1.5"),
        (taught_by(&[&a], ", temperature = 0.0"), "teacher.temperature is 0"),
        (taught_by(&[&a], ", temperature = 1e-39"), "it must be from 1e-3 to 1e3"),
        (taught_by(&[&a], ", temperature = inf"), "teacher.temperature is inf"),
        (taught_by(&[&a], ", hardness = 2"), "hardness"),
        (taught_by(&[&none], ""), "no such file"),
        (taught_by(&[&a, &short], ""), "short: reads 4 tokens at most, and the network 8"),
    ] {
        let said = refused(&mut w.run("out", &[&setting], &[]));
        assert!(said.contains(wanted), "{setting}: {said}");
        assert!(!w.path("out").exists(), "{setting}");
    }
    let said =
        refused(&mut w.run("out", &[&taught_by(&[&a], ""), "loss.label_smoothing=0.1"], &[]));
    assert!(said.contains("teacher.share is 1, which leaves them no part"), "{said}");
    let half = taught_by(&[&a], ", share = 0.5");
    w.done("half", &[&half, "loss.label_smoothing=0.1", "train.steps=2"], &[]);

    // Another alphabet, of another size and of the same.
    let text = |name: &str, letters: &[u8]| {
        let text: Vec<u8> = (0..4000).map(|i| letters[(i * i + i / 7) % letters.len()]).collect();
        std::fs::write(w.path(name), text).unwrap();
        format!("data={{ kind = \"text\", path = \"{}\" }}", path(name))
    };
    let [first, same, more] = [("f", &b"abcdef"[..]), ("s", b"uvwxyz"), ("m", b"abcdefg")]
        .map(|(name, letters)| text(name, letters));
    w.done("first", &[&first, "train.steps=2"], &[]);
    let teacher = taught_by(&[&path("first")], "");
    let said = refused(&mut w.run("out", &[&same, &teacher], &[]));
    assert!(said.contains("first: has another tokenizer than the data"), "{said}");
    let said = refused(&mut w.run("out", &[&more, &teacher], &[]));
    assert!(said.contains("first: has 6 classes, and the network has 7"), "{said}");
    w.done("out", &[&first, &teacher, "train.steps=2"], &[]);

    for (models, wanted) in [(&none, "teacher.models: "), (&short, "reads 4 tokens at most")] {
        let mut estimate = train(&["estimate"]);
        estimate.arg(w.path("tiny.toml")).args(["--set", &taught_by(&[models], "")]);
        assert!(refused(&mut estimate).contains(wanted));
    }
}

/// What a run writes would replace it.
#[test]
fn a_teacher_is_not_replaced() {
    let (w, [a, _]) = school();
    std::fs::create_dir(w.path("bare")).unwrap();
    let file = w.path("bare").join("model.safetensors");
    std::fs::copy(w.path("a").join("model.safetensors"), &file).unwrap();
    let before = std::fs::read(&file).unwrap();
    for teacher in [w.path("bare"), file.clone()] {
        let said =
            refused(&mut w.run("bare", &[&taught_by(&[teacher.to_str().unwrap()], "")], &[]));
        assert!(said.contains("lies in the directory of this run; choose another --out"), "{said}");
    }
    assert!(std::fs::read(&file).unwrap() == before);
    let said = refused(&mut w.run("a", &[&taught_by(&[&a], "")], &["--resume"]));
    assert!(said.contains("lies in the directory of this run"), "{said}");
}

/// Weights in 16 bits are learned from as they are, named by their own digest; ones that overflow are not.
#[test]
fn teachers_of_other_types_are_what_they_are() {
    let (w, _) = school();
    let (model, meta) =
        checkpoint::load(&w.path("a").join("model.safetensors"), &Device::Cpu).unwrap();
    let save = |name: &str, model: &lipschitz_nn::Model| {
        checkpoint::save(&w.path(name), model, &meta).unwrap();
        taught_by(&[w.path(name).to_str().unwrap()], "")
    };
    let half = model.to(&Device::Cpu, DType::F16).unwrap();
    let rounded = half.to(&Device::Cpu, DType::F32).unwrap();
    let [half_path, rounded_path] = [save("half", &half), save("rounded", &rounded)];
    w.done("by-half", &[&half_path], &[]);
    w.done("by-rounded", &[&rounded_path], &[]);
    let of =
        |run: &str| checkpoint::load(&w.path(run).join("model.safetensors"), &Device::Cpu).unwrap();
    let ((a, meta_a), (b, meta_b)) = (of("by-half"), of("by-rounded"));
    assert_eq!(digest(&a).unwrap(), digest(&b).unwrap());
    assert_eq!(meta_a.provenance.teachers, [digest(&half).unwrap()]);
    assert_ne!(meta_a.provenance.teachers, meta_b.provenance.teachers);

    let mut weights = model.weights().clone();
    for weight in weights.values_mut() {
        *weight = (weight.ones_like().unwrap() * 3e38).unwrap();
    }
    let large = lipschitz_nn::Model::new(model.graph().clone(), weights).unwrap();
    let said = refused(&mut w.run("out", &[&save("large", &large)], &[]));
    assert!(said.contains("teacher.models: probabilities are not finite"), "{said}");
}

/// Classes in another order are other classes.
#[test]
fn classes_have_their_order() {
    let w = Workshop::new(&TINY.replace("[data]\nkind = \"play\"\ncharacters = 4000", ""));
    for (name, grey) in [("cat", 40u8), ("dog", 200)] {
        let folder = w.path("images").join(name);
        std::fs::create_dir_all(&folder).unwrap();
        for i in 0..20u8 {
            image::GrayImage::from_pixel(4, 4, image::Luma([grey + i]))
                .save(folder.join(format!("{i}.png")))
                .unwrap();
        }
    }
    let data = format!("data={{ kind = \"images\", path = \"{}\" }}", w.path("images").display());
    let settings = [&*data, "model={ preset = \"mlp\", hidden = [8] }", "train.steps=3"];
    w.done("teacher", &settings, &[]);
    let file = w.path("teacher").join("model.safetensors");
    let teacher = taught_by(&[file.to_str().unwrap()], "");
    w.done("pupil", &[&settings[..], &[&teacher]].concat(), &[]);
    let (model, mut meta) = checkpoint::load(&file, &Device::Cpu).unwrap();
    meta.classes.reverse();
    checkpoint::save(&file, &model, &meta).unwrap();
    let said = refused(&mut w.run("other", &[&settings[..], &[&teacher]].concat(), &[]));
    assert!(said.contains("has other classes than the data, or in another order"), "{said}");
}
