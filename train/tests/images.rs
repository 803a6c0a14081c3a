//! The page about images, followed to the letter on a folder that is made here; and what both programs
//! do with images, vectors and tensors beyond it.

use std::path::Path;
use std::process::{Command, Output};

use candle_core::{DType, Device, Tensor};
use image::{GrayImage, Luma};
use lipschitz_certify::terminal::program;
use lipschitz_nn::checkpoint::{load_tensors, save_tensors};
use lipschitz_nn::random::{below, keyed, symmetric};

/// Between the arguments of a command line in an environment variable.
const BETWEEN: &str = "\x1f";
const LINE: &str = "LIPSCHITZ_TEST_LINE";

/// Not a test by itself: started by [`run`], it is one of the programs.
#[test]
fn a_program() {
    let Ok(line) = std::env::var(LINE) else { return };
    let words: Vec<&str> = line.split(BETWEEN).collect();
    program::called(words.iter().map(Into::into).collect(), Vec::new());
    let code = match words[0] {
        "train" => lipschitz_train::cli::main(),
        _ => lipschitz_certify::cli::main(),
    };
    std::process::exit(code.into());
}

/// `train` or `certify` with these arguments, in a directory.
fn run(place: &Path, words: &[&str]) -> Output {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["a_program", "--exact", "--nocapture", "--quiet"]);
    command.env(LINE, words.join(BETWEEN)).env("CANDLE_NUM_THREADS", "1").current_dir(place);
    command.output().unwrap()
}

/// What a program prints, behind what the test harness does.
fn printed(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.strip_prefix("\nrunning 1 test\n").map_or(text.clone(), str::to_string)
}

fn ok(place: &Path, words: &[&str]) -> String {
    let output = run(place, words);
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    printed(&output)
}

/// One line on stderr and exit code 2.
fn refused(place: &Path, words: &[&str]) -> String {
    let output = run(place, words);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{words:?}: {said}");
    assert!(said.starts_with("error: ") && said.lines().count() == 1, "{said}");
    said
}

/// A folder of drawings, 28 × 28: bars that lie or stand, frames and blots, each somewhere else, on
/// grey noise.
fn drawings(folder: &Path, each: usize) {
    let mut rng = keyed(28, "drawings", 0);
    let mut number = |n: usize| below(&mut rng, n);
    for class in ["blot", "frame", "lying", "standing"] {
        std::fs::create_dir_all(folder.join(class)).unwrap();
        for i in 0..each {
            let (x0, y0) = (4 + number(12) as i64, 4 + number(12) as i64);
            let shade = 150 + number(100) as u8;
            let noise: Vec<u8> = (0..28 * 28).map(|_| number(60) as u8).collect();
            let image = GrayImage::from_fn(28, 28, |x, y| {
                let (dx, dy) = (i64::from(x) - x0, i64::from(y) - y0);
                let inside = |w: i64, h: i64| (0..w).contains(&dx) && (0..h).contains(&dy);
                let edge = dx == 0 || dy == 0 || dx == 9 || dy == 9;
                let drawn = match class {
                    "blot" => inside(7, 7),
                    "frame" => inside(10, 10) && edge,
                    "lying" => inside(12, 3),
                    _ => inside(3, 12),
                };
                Luma([if drawn { shade } else { noise[(28 * y + x) as usize] }])
            });
            image.save(folder.join(class).join(format!("{i:03}.png"))).unwrap();
        }
    }
}

/// The commands of a section of a page, one a line: those of its blocks of shell.
fn commands(page: &str, heading: &str) -> Vec<String> {
    let section = page.split(&format!("\n## {heading}\n")).nth(1).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let blocks = section.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    let text = blocks.collect::<Vec<_>>().join("\n").replace("\\\n", " ");
    text.lines().map(str::trim).filter(|line| !line.is_empty()).map(String::from).collect()
}

#[test]
fn the_page_about_images_works_from_its_text_alone() {
    let page = include_str!("../../docs/images.md");
    let place = tempfile::tempdir().unwrap();
    let place = place.path();
    drawings(&place.join("drawings"), 120);
    let lines = commands(page, "A folder of your own");
    let mut robust = String::new();
    for line in &lines {
        let (line, file) = match line.split_once('>') {
            Some((line, file)) => (line, Some(file.trim())),
            None => (line.as_str(), None),
        };
        let words: Vec<&str> = line.split_whitespace().collect();
        let out = ok(place, &words);
        if std::env::var("LIPSCHITZ_SHOW").is_ok() {
            eprintln!("$ {line}\n{out}");
        }
        match file {
            Some(file) => std::fs::write(place.join(file), out).unwrap(),
            None if words[1] == "robust" => robust += &out,
            None => {}
        }
    }
    for command in ["train run", "train eval", "certify bound", "certify verify", "certify probe"] {
        assert!(lines.iter().any(|line| line.starts_with(command)), "{command}");
    }
    let summary = std::fs::read_to_string(place.join("runs/drawings/summary.json")).unwrap();
    let summary: serde_json::Value = serde_json::from_str(&summary).unwrap();
    let (clean, certified) = (
        summary["val_accuracy"].as_f64().unwrap(),
        summary["certified_accuracy"].as_f64().unwrap(),
    );
    assert!(clean > 0.9 && certified > 0.6 && certified <= clean, "{clean} {certified}");
    assert!(summary["certified_108"].as_f64().unwrap() <= certified);
    // The attack found what the certificate left open, and no more: rows of eps, clean, attacked,
    // certified.
    let rows: Vec<Vec<f64>> = robust
        .lines()
        .map(|line| {
            let words = line.split_whitespace().filter(|word| *word != "%");
            words.map_while(|word| word.parse().ok()).collect()
        })
        .filter(|row: &Vec<f64>| row.len() == 4)
        .collect();
    assert!(rows.len() >= 3, "{robust}");
    for row in &rows {
        assert!(row[3] <= row[2] && row[2] <= row[1] && row[1] > 90.0, "{robust}");
    }
    assert!(rows[rows.len() - 1][3] < rows[0][3], "{robust}");

    // Another folder of the same classes is evaluated as a whole; one of other classes is refused.
    drawings(&place.join("more"), 3);
    let out = ok(place, &["train", "eval", "runs/drawings", "--data", "more"]);
    assert!(out.contains("over 12 predictions"), "{out}");
    std::fs::rename(place.join("more/blot"), place.join("more/stain")).unwrap();
    let said = refused(place, &["certify", "robust", "runs/drawings", "--data", "more"]);
    assert!(said.contains("stain: is no class of the training data"), "{said}");
    let said = refused(place, &["certify", "robust", "runs/drawings", "--data", "runs"]);
    assert!(said.contains("holds no data for a model of images"), "{said}");
    let said = refused(place, &["train", "eval", "runs/drawings", "--data", "gone"]);
    assert!(said.contains("gone: no such file or directory; check the path"), "{said}");
}

/// Settings for a run of a second on the drawings.
const SMALL: [&str; 7] = [
    "data.path=drawings",
    "model.hidden=[16]",
    "train.batch_size=8",
    "train.log_every=5",
    "train.eval_every=10",
    "train.schedule.kind=constant",
    "train.steps=20",
];

fn training<'a>(out: &'a str, settings: &[&'a str]) -> Vec<&'a str> {
    let mut words = vec!["train", "run", "images.toml", "--out", out];
    SMALL.iter().chain(settings).for_each(|setting| words.extend(["--set", *setting]));
    words
}

fn workshop() -> tempfile::TempDir {
    let place = tempfile::tempdir().unwrap();
    drawings(&place.path().join("drawings"), 10);
    let config = ok(place.path(), &["train", "config", "mlp-images"]);
    std::fs::write(place.path().join("images.toml"), config).unwrap();
    place
}

/// Margins, augmentation and averaging in the middle of everything: a resumed run is the same, bit for
/// bit.
#[test]
fn a_resumed_run_of_images_is_one_that_was_never_stopped() {
    let place = workshop();
    let place = place.path();
    let all = [
        "loss.refresh_every=7",
        "loss.temperature=0.5",
        "loss.label_smoothing=0.05",
        "loss.offset=0.1",
        "augment.flip=true",
        "augment.crop=2",
        "augment.cutout=5",
        "train.dropout=0.2",
        "averaging={ kind = \"exponential\", decay = 0.9 }",
    ];
    ok(place, &training("whole", &all));
    let half = [&all[..], &["train.steps=10"]].concat();
    ok(place, &training("parts", &half));
    let again = [training("parts", &all), vec!["--resume"]].concat();
    ok(place, &again);
    let bytes = |run: &str, file: &str| std::fs::read(place.join(run).join(file)).unwrap();
    for file in
        ["model.safetensors", "checkpoint/model.safetensors", "checkpoint/optimizer.safetensors"]
    {
        assert!(bytes("whole", file) == bytes("parts", file), "{file}");
    }
    // Each of them changes what is learnt.
    for setting in all {
        let without: Vec<&str> = all.iter().copied().filter(|other| *other != setting).collect();
        let without = match setting {
            // The preset averages, too.
            s if s.starts_with("averaging") => [&without[..], &["averaging="]].concat(),
            _ => without,
        };
        let out = format!("without-{}", setting.split('=').next().unwrap());
        ok(place, &training(&out, &without));
        assert!(
            bytes("whole", "model.safetensors") != bytes(&out, "model.safetensors"),
            "{setting}"
        );
    }
    // A mean over the last part of a run depends on its length.
    let tail =
        [&all[..8], &["averaging={ kind = \"tail\", share = 0.5 }", "train.steps=10"]].concat();
    ok(place, &training("tail", &tail));
    let longer = [&tail[..9], &["train.steps=20"]].concat();
    let longer = [training("tail", &longer), vec!["--resume"]].concat();
    assert!(refused(place, &longer).contains("averaging.share is a share of them"));
}

/// The mean of orthogonal matrices is none; what is given out is.
#[test]
fn averaged_weights_are_under_the_constraint_again() {
    let place = workshop();
    let place = place.path();
    for method in ["stiefel", "spectral_soft_cap", "spectral_normalize"] {
        let constraint = format!("constraint={{ method = \"{method}\", sigma_max = 1.0 }}");
        let settings = [
            constraint.as_str(),
            "train.learning_rate=0.5",
            "averaging={ kind = \"tail\", share = 1 }",
        ];
        ok(place, &training(method, &settings));
        let norms = |file: &str| {
            let (weights, _) = load_tensors(&place.join(method).join(file), &Device::Cpu).unwrap();
            let w = weights["layer0.weight"].to_dtype(DType::F64).unwrap();
            // RMS norms of 784 numbers onto 16.
            let gram = (w.matmul(&w.t().unwrap()).unwrap() * (784.0 / 16.0)).unwrap();
            gram.to_vec2::<f64>().unwrap()
        };
        let (last, mean) = (norms("checkpoint/model.safetensors"), norms("model.safetensors"));
        assert!(last != mean, "{method}");
        if method == "stiefel" {
            for (i, row) in mean.iter().enumerate() {
                for (j, x) in row.iter().enumerate() {
                    let wanted = f64::from(u8::from(i == j));
                    assert!((x - wanted).abs() < 1e-3, "{i} {j}: {x}");
                }
            }
        }
        ok(place, &["certify", "verify", &format!("{method}/certificate.json"), method]);
    }
}

/// A target that the certificate meets holds of averaged weights, too.
#[test]
fn a_target_holds_of_averaged_weights() {
    let place = workshop();
    let settings = [
        "lipschitz={ target = 2.5, by = \"certificate\" }",
        "averaging={ kind = \"tail\", share = 0.5 }",
        "train.learning_rate=0.3",
    ];
    ok(place.path(), &training("run", &settings));
    let summary = std::fs::read_to_string(place.path().join("run/summary.json")).unwrap();
    let summary: serde_json::Value = serde_json::from_str(&summary).unwrap();
    let l = summary["lipschitz_log10"].as_f64().unwrap();
    assert!(l <= 2.5f64.log10() + 1e-12, "{l}");
}

#[test]
fn vectors_are_classified_attacked_and_regressed() {
    let place = workshop();
    let place = place.path();
    let mut rng = keyed(3, "vectors", 0);
    let (mut x, mut y, mut numbers) = (Vec::new(), Vec::new(), Vec::new());
    for i in 0..240u32 {
        let class = i % 3;
        let one: Vec<f32> = (0..6)
            .map(|k| 0.3 * symmetric(&mut rng) as f32 + if k % 3 == class { 4.0 } else { 0.0 })
            .collect();
        numbers.push(0.5 * one[0] - 0.25 * one[1]);
        x.extend(one);
        y.push(i64::from(class));
    }
    let cpu = Device::Cpu;
    let x = Tensor::from_vec(x, (240, 6), &cpu).unwrap();
    let save = |file: &str, y: Tensor| {
        let tensors = [("x", x.clone()), ("y", y)];
        save_tensors(&place.join(file), tensors.into_iter(), None).unwrap();
    };
    save("classes.safetensors", Tensor::from_vec(y, 240, &cpu).unwrap());
    save("numbers.safetensors", Tensor::from_vec(numbers, 240, &cpu).unwrap());
    let classes = "data={ kind = \"tensors\", path = \"classes.safetensors\" }";
    let steps = ["train.steps=150", "train.eval_every=50"];
    let settings = |data, loss| {
        let mut words = vec!["train", "run", "images.toml"];
        for setting in SMALL[1..].iter().chain(&steps).chain(&[data, loss]) {
            words.extend(["--set", *setting]);
        }
        words
    };
    ok(place, &[settings(classes, "loss.epsilon=0.2"), vec!["--out", "v"]].concat());
    let out =
        ok(place, &["certify", "robust", "v", "--data", "classes.safetensors", "--eps", "0,0.2"]);
    assert!(out.contains("distance of vectors") && out.contains("100.00 %"), "{out}");
    // Around each input: never less than the global bound gives, and an attack that is told apart.
    let local = ["certify", "local", "v", "--data", "classes.safetensors"];
    let more = ["--limit", "5", "--csv", "r.csv", "--radius", "0.1", "--json", "r.json"];
    ok(place, &[&local[..], &more].concat());
    let text = std::fs::read_to_string(place.join("r.json")).unwrap();
    let survey: serde_json::Value = serde_json::from_str(&text).unwrap();
    let inputs = survey["inputs"].as_array().unwrap();
    assert_eq!((inputs.len(), survey["distance"].as_str()), (5, Some("l2")));
    for input in inputs {
        let [radius, global] = ["radius", "global"].map(|key| input[key].as_f64().unwrap());
        assert!(radius >= global && global > 0.0, "{input}");
        assert!(input["broken"].as_f64().is_none_or(|broken| broken > radius), "{input}");
        let [lower, upper] = ["lower", "upper"].map(|key| &input["outputs"][0][key][0]);
        assert!(lower.as_f64() < upper.as_f64(), "{input}");
    }
    assert_eq!(std::fs::read_to_string(place.join("r.csv")).unwrap().lines().count(), 6);
    let out =
        ok(place, &[&local[..], &["--norm", "linf", "--steps", "0", "--limit", "3"]].concat());
    assert!(out.contains("median over 3 inputs"), "{out}");
    let range = ["certify", "range", "v", "--data", "classes.safetensors", "--format", "bf16"];
    // Vectors are bounded by nothing, so no format is proven to hold them.
    assert_eq!(run(place, &range).status.code(), Some(1));
    ok(place, &["certify", "probe", "v", "--data", "classes.safetensors", "--seconds", "1"]);

    let numbers = "data={ kind = \"tensors\", path = \"numbers.safetensors\" }";
    let said =
        refused(place, &[settings(numbers, "loss.epsilon=0.2"), vec!["--out", "n"]].concat());
    assert!(said.contains("[loss] is about classes"), "{said}");
    let out = ok(place, &[settings(numbers, "loss="), vec!["--out", "n"]].concat());
    assert!(!out.contains("accuracy"), "{out}");
    let out = ok(place, &["train", "eval", "n"]);
    let error: f64 =
        out.split("squared error ").nth(1).unwrap().split(',').next().unwrap().parse().unwrap();
    assert!(error < 0.05, "{out}");
    let said = refused(place, &["certify", "robust", "n", "--data", "numbers.safetensors"]);
    assert!(said.contains("holds numbers to predict, and classes are needed"), "{said}");
    let said = refused(place, &["certify", "local", "n", "--data", "numbers.safetensors"]);
    assert!(said.contains("holds numbers to predict, and classes are needed"), "{said}");
    let said = refused(place, &["train", "eval", "v", "--data", "numbers.safetensors"]);
    assert!(said.contains("does not predict this data"), "{said}");
}

/// The convolutional network, with attention between pixels and without: trained, proven, proven again
/// and attacked. The constant is what the target says, and what is proven of pictures withstands attacks.
#[test]
fn convolutional_networks_meet_their_target() {
    let place = tempfile::tempdir().unwrap();
    let place = place.path();
    drawings(&place.join("drawings"), 20);
    std::fs::write(place.join("c.toml"), ok(place, &["train", "config", "convnet-cifar10"]))
        .unwrap();
    let stages = "model.stages=[{channels=8,layers=1,kernel=1},{channels=16,layers=1,kernel=1}]";
    let settings = ["data.kind=images", "data.path=drawings", stages, "train.steps=8"];
    let small = ["train.batch_size=16", "train.eval_every=8", "train.learning_rate=0.05"];
    let attention = "model.attention={heads=2,share=0.3,reach=4.0,contents=0.2}";
    for (name, more) in [("plain", None), ("attention", Some(attention))] {
        let mut words = vec!["train", "run", "c.toml", "--out", name, "--quiet"];
        for setting in settings.into_iter().chain(small).chain(more) {
            words.extend(["--set", setting]);
        }
        ok(place, &words);
        let certificate = format!("{name}.json");
        ok(place, &["certify", "bound", name, "--json", &certificate]);
        assert!(ok(place, &["certify", "verify", &certificate, name]).contains("holds: L ≤ "));
        let text = std::fs::read_to_string(place.join(&certificate)).unwrap();
        let document: serde_json::Value = serde_json::from_str(&text).unwrap();
        let proven: f64 = document["rms"]["value"].as_str().unwrap().parse().unwrap();
        assert!(proven <= 20.0 && proven > 1.0, "{name}: {proven}");
        let read = text.contains("most read of 49 tokens");
        assert_eq!(read, more.is_some(), "{name}");
        let said = ok(place, &["certify", "robust", name, "--data", "drawings", "--limit", "8"]);
        assert!(said.contains("attacked"), "{said}");
    }
    let wrong = "model.attention={heads=3,share=0.3,reach=4.0,contents=0.2}";
    let mut words = vec!["train", "run", "c.toml", "--out", "wrong"];
    for setting in settings.into_iter().chain([wrong]) {
        words.extend(["--set", setting]);
    }
    let said = refused(place, &words);
    assert!(said.contains("model: ") && said.contains("attention.heads = 3"), "{said}");
}

#[test]
fn what_cannot_be_trained_on_is_one_line() {
    let place = workshop();
    let place = place.path();
    std::fs::create_dir_all(place.join("one/only")).unwrap();
    std::fs::copy(place.join("drawings/blot/000.png"), place.join("one/only/a.png")).unwrap();
    std::fs::write(place.join("cut.npz"), b"PK\x03\x04cut").unwrap();
    for (setting, wanted) in [
        ("data.path=gone", "gone: no such directory; check the path"),
        ("data.path=one", "holds a single class"),
        ("data.val_fraction=1.5", "data.val_fraction is 1.5"),
        ("data.classes=7", "data.classes is 7, and the data has 4 classes"),
        ("data.shape=[1, 32, 32]", "its image is 28 × 28, not 32 × 32"),
        ("data={ kind = \"tensors\", path = \"cut.npz\" }", "cut.npz"),
        ("data={ kind = \"idx\", path = \"drawings\" }", "holds no train-images-idx3-ubyte"),
        ("data={ kind = \"cifar100\", path = \"drawings\" }", "give the directory of CIFAR-100"),
        ("loss.epsilon=-1", "loss.epsilon is -1; it must be from 0 to 1e6"),
        ("loss.offset=1e39", "it must be from 0 to 1e6"),
        ("loss.temperature=0", "loss.temperature is 0; it must be above 0"),
        ("loss.label_smoothing=1", "loss.label_smoothing is 1"),
        ("loss.refresh_every=0", "loss.refresh_every is 0; it must be from 1"),
        ("augment.crop=99999", "augment.crop is 99999; it must be from 0 to 4096"),
        ("train.dropout=1", "train.dropout is 1; it must be from 0 to below 1"),
        ("averaging={ kind = \"tail\", share = 0 }", "averaging.share is 0"),
        ("averaging={ kind = \"exponential\", decay = 1 }", "averaging.decay is 1"),
    ] {
        let said = refused(place, &training("out", &[setting]));
        assert!(said.contains(wanted), "{setting}: {said}");
        assert!(!place.join("out").exists(), "{setting}");
    }
    let text = [
        "data={ kind = \"play\", characters = 20000 }",
        "model={ preset = \"gpt\", dim = 16, layers = 1, heads = 2, context = 16 }",
    ];
    let mut words = vec!["train", "run", "images.toml", "--out", "out"];
    for setting in SMALL[2..].iter().chain(&text) {
        words.extend(["--set", *setting]);
    }
    assert!(refused(place, &words).contains("loss.offset and loss.epsilon ask for margins"));
    words.extend(["--set", "loss=", "--set", "augment.crop=1"]);
    assert!(refused(place, &words).contains("[augment] changes images"));
}
