//! How many decisions are certified around their inputs, over the radius.

use std::path::PathBuf;

use lipschitz_nn::Error;
use lipschitz_plot::{Axis, Chart, Mark, Marker, Series};

use crate::local::{Distance, Radius, Survey};

/// The chart of files that `certify local --json` wrote: the share of decisions certified by the
/// proof around each input, by the global bound, and not changed by the attack.
///
/// # Errors
/// [`Error::File`] names a file that is not such a result, or that measures changes otherwise than the
/// first; and for another number of names than of files.
pub fn chart(paths: &[PathBuf], names: &[String]) -> Result<Chart, Error> {
    let mut surveys: Vec<Survey> = Vec::new();
    for path in paths {
        let survey: Survey = super::result(path, "certify local")?;
        if surveys.first().is_some_and(|first| first.distance != survey.distance) {
            let what = "measures changes otherwise than the files before it; plot it separately";
            return Err(Error::file(path, what));
        }
        if survey.inputs.is_empty() {
            return Err(Error::file(path, "holds no inputs"));
        }
        surveys.push(survey);
    }
    let own = surveys.iter().map(|survey| survey.label.clone()).collect();
    for (survey, name) in surveys.iter_mut().zip(super::names(paths, own, names)?) {
        survey.label = name;
    }
    Ok(draw(&surveys))
}

/// The share of decisions that hold at each radius, those that are known to be wrong aside. Without a
/// radius, a decision holds at all of them.
fn shares(rows: &[Radius], radius: impl Fn(&Radius) -> Option<f64>, end: f64) -> Vec<(f64, f64)> {
    let right = rows.iter().filter(|row| row.correct != Some(false));
    let mut radii: Vec<f64> = right.map(|row| radius(row).unwrap_or(f64::INFINITY)).collect();
    radii.sort_by(f64::total_cmp);
    let share = |left: usize| left as f64 / rows.len().max(1) as f64;
    let mut points = vec![(0.0, share(radii.len()))];
    for (i, at) in radii.iter().enumerate().filter(|(_, at)| **at <= end) {
        points.extend([(*at, share(radii.len() - i)), (*at, share(radii.len() - i - 1))]);
    }
    let last = points.last().map_or(0.0, |last| last.1);
    points.push((end, last));
    points
}

fn draw(surveys: &[Survey]) -> Chart {
    let rows = || surveys.iter().flat_map(|survey| &survey.inputs);
    let finite = rows().flat_map(|row| [Some(row.radius), row.broken]).flatten();
    let end = finite.filter(|x| *x < f64::MAX).fold(0.0, f64::max);
    let end = if end > 0.0 { 1.05 * end } else { 1.0 };
    let mut series = Vec::new();
    for (color, survey) in surveys.iter().enumerate() {
        let rows = &survey.inputs;
        let line = |mark, points| Series { color, mark, points, ..Series::default() };
        let label = if surveys.len() > 1 { survey.label.clone() } else { String::new() };
        series.push(line(Mark::Thin, shares(rows, |row| Some(row.global), end)));
        if rows.iter().any(|row| row.broken.is_some()) {
            let attacked = shares(rows, |row| row.broken, end);
            let ends = attacked[..attacked.len() - 1].iter().copied().step_by(2).collect();
            series.push(line(Mark::Dashed, attacked));
            series.push(line(Mark::Open(Marker::Disc), ends));
        }
        let own = line(Mark::Line, shares(rows, |row| Some(row.radius), end));
        series.push(Series { label, ..own });
    }
    let (what, unit) = match rows().any(|row| row.correct.is_some()) {
        true => ("Accuracy", "the input"),
        false => ("Share of decisions that stay", "the input"),
    };
    let distance = match surveys.first().map(|survey| survey.distance) {
        Some(Distance::Token) => "ℓ2 norm of the change of each token",
        Some(Distance::Linf) => "largest change of an element",
        Some(Distance::L2) | None => "ℓ2 norm of the change",
    };
    let of = if let [one] = surveys { format!("{}; ", one.label) } else { String::new() };
    let legend = [
        ("not changed by the attack", Mark::Open(Marker::Disc)),
        ("certified around the input", Mark::Line),
        ("certified by the global bound", Mark::Thin),
    ];
    Chart {
        title: format!("{what} within a radius of {unit}"),
        note: format!("{of}the truth lies between certified and attacked"),
        x: Axis { label: format!("Radius, {distance}"), include: vec![0.0], ..Axis::default() },
        y: Axis { label: what.into(), include: vec![0.0], ..Axis::default() },
        series,
        legend: legend.map(|(name, mark)| (name.to_string(), mark)).into(),
        ..Chart::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(radius: f64, global: f64, broken: Option<f64>, correct: Option<bool>) -> Radius {
        Radius {
            input: 0,
            sha256: String::new(),
            class: 0,
            correct,
            margin: 1.0,
            radius,
            global,
            tangent: radius,
            broken,
            outputs: Vec::new(),
            lost: Vec::new(),
            seconds: 0.0,
        }
    }

    #[test]
    fn shares_fall_at_the_radii_and_other_files_are_named() {
        let rows = [
            row(1.0, 0.5, Some(2.0), Some(true)),
            row(2.0, 0.5, None, Some(true)),
            row(3.0, 3.0, None, Some(false)),
        ];
        let third = 1.0 / 3.0;
        let points = shares(&rows, |row| Some(row.radius), 4.0);
        let steps = [(0.0, 2.0), (1.0, 2.0), (1.0, 1.0), (2.0, 1.0), (2.0, 0.0), (4.0, 0.0)];
        for (point, step) in points.iter().zip(steps) {
            assert!((point.0 - step.0).abs() < 1e-12 && (point.1 - third * step.1).abs() < 1e-12);
        }
        assert_eq!(points.len(), steps.len());
        // What no attack changed stays.
        assert!((shares(&rows, |row| row.broken, 4.0).last().unwrap().1 - third).abs() < 1e-12);

        let survey = Survey {
            label: "a".into(),
            distance: Distance::L2,
            tokens: 1,
            weights_sha256: String::new(),
            search: 0,
            inputs: rows.into(),
        };
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, survey: &Survey| {
            let path = dir.path().join(name);
            std::fs::write(&path, serde_json::to_string(survey).unwrap()).unwrap();
            path
        };
        let good = write("good.json", &survey);
        let other = write("other.json", &Survey { distance: Distance::Linf, ..survey.clone() });
        let empty = write("empty.json", &Survey { inputs: Vec::new(), ..survey });
        let chart = super::chart(&[good.clone(), good.clone()], &[]).unwrap();
        super::super::write(&dir.path().join("r.png"), &[chart]).unwrap();
        for bad in [other, empty] {
            let name = bad.file_name().unwrap().to_string_lossy().into_owned();
            let said = super::chart(&[good.clone(), bad], &[]).unwrap_err().to_string();
            assert!(said.contains(&name), "{said}");
        }
    }
}
