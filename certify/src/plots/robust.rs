//! Certified, attacked and clean shares over the radius, for one network or several.

use std::path::PathBuf;

use lipschitz_nn::Error;

use crate::robust::{Robustness, Share};
use lipschitz_plot::{Axis, Chart, Mark, Marker, Series};

/// The chart of files that `certify robust --json` wrote. The true share lies in the shaded band
/// between certified and attacked.
///
/// # Errors
/// [`Error::File`] names a file that is not such a result, or whose shares count something else
/// than those of the first.
pub fn chart(paths: &[PathBuf]) -> Result<Chart, Error> {
    named_chart(paths, &[])
}

/// [`chart`] of results with the given names, in their order; without names, with their own.
///
/// # Errors
/// As [`chart`], and for another number of names than of files.
pub fn named_chart(paths: &[PathBuf], names: &[String]) -> Result<Chart, Error> {
    let mut reports: Vec<Robustness> = Vec::new();
    for path in paths {
        let report: Robustness = super::result(path, "certify robust")?;
        if reports.first().is_some_and(|first| first.of != report.of) {
            return Err(Error::file(
                path,
                "counts something else than the files before it; plot it separately",
            ));
        }
        reports.push(report);
    }
    let own = reports.iter().map(|report| report.label.clone()).collect();
    for (report, name) in reports.iter_mut().zip(super::names(paths, own, names)?) {
        report.label = name;
    }
    Ok(draw(&reports))
}

fn draw(reports: &[Robustness]) -> Chart {
    let mut series = Vec::new();
    let (shares, unit) = match reports.first() {
        Some(Robustness { of: Share::Stability, unit, .. }) => {
            ("Share of next tokens that stay", unit.clone())
        }
        Some(Robustness { unit, .. }) => ("Accuracy", unit.clone()),
        None => ("Accuracy", String::new()),
    };
    for (color, report) in reports.iter().enumerate() {
        let points = |share: &dyn Fn(&crate::robust::Shares) -> Option<f64>| -> Vec<(f64, f64)> {
            report.rows.iter().filter_map(|row| Some((row.eps, share(row)?))).collect()
        };
        let plain = |mark, points| Series { color, mark, points, ..Series::default() };
        let (certified, attacked) =
            (points(&|row| Some(row.certified)), points(&|row| Some(row.attacked)));
        let one = points(&|row| row.attacked_one);
        let above = steps(&attacked);
        let band = report.curve.iter().copied().chain(above.iter().rev().copied()).collect();
        series.push(plain(Mark::Band, band));
        if !one.is_empty() {
            series.push(plain(Mark::Thin, steps(&one)));
            series.push(plain(Mark::Open(Marker::Triangle), one));
        }
        series.push(plain(Mark::Dashed, above));
        series.push(plain(Mark::Dashed, report.curve.clone()));
        let label = if reports.len() > 1 { report.label.clone() } else { String::new() };
        // The label is placed where the curves are still apart.
        let least = attacked.first().map_or(0.0, |clean| 0.2 * clean.1);
        let (high, low): (Vec<_>, _) = attacked.into_iter().partition(|point| point.1 >= least);
        series.push(Series { label, ..plain(Mark::Open(Marker::Disc), high) });
        series.push(plain(Mark::Open(Marker::Disc), low));
        series.push(plain(Mark::Filled(Marker::Square), certified));
    }
    let title = format!("{shares} within a radius");
    let of = if let [one] = reports { format!("{}; ", one.label) } else { String::new() };
    let one = reports.iter().any(|r| r.rows.iter().any(|row| row.attacked_one.is_some()));
    let all = if one { "attacked, all tokens" } else { "attacked" };
    let legend = [
        ("attacked, one token", Mark::Open(Marker::Triangle)),
        (all, Mark::Open(Marker::Disc)),
        ("certified", Mark::Filled(Marker::Square)),
    ];
    let y = Axis { label: shares.into(), include: vec![0.0], ..Axis::default() };
    let x = Axis { label: format!("Radius, {unit}"), include: vec![0.0], ..Axis::default() };
    Chart {
        title,
        note: format!("{of}the truth lies between the two, in the shaded band"),
        x,
        y,
        series,
        legend: legend.map(|(name, mark)| (name.to_string(), mark)).into(),
        ..Chart::default()
    }
}

/// The attacked share at a radius bounds the true share at every larger radius, up to the next one
/// that was attacked.
fn steps(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let corner = |pair: &[(f64, f64)]| [(pair[1].0, pair[0].1), pair[1]];
    points.first().copied().into_iter().chain(points.windows(2).flat_map(corner)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::robust::Shares;
    use crate::upper::Upper;

    #[test]
    fn results_are_drawn_and_other_files_named() {
        let row = |eps, attacked, certified| Shares {
            eps,
            clean: 0.6,
            attacked_one: None,
            attacked,
            certified,
        };
        let report = Robustness {
            label: "a".into(),
            of: Share::Accuracy,
            unit: "ℓ2".into(),
            inputs: 10,
            available: 10,
            lipschitz: Upper::ONE,
            domain: Upper::ONE,
            diameter: None,
            steps: 1,
            restarts: 1,
            rows: vec![row(0.0, 0.6, 0.6), row(1.0, 0.5, 0.2)],
            curve: vec![(0.0, 0.6), (0.5, 0.4), (1.0, 0.2)],
        };
        let dir = tempfile::tempdir().unwrap();
        let (good, bad) = (dir.path().join("good.json"), dir.path().join("bad.json"));
        std::fs::write(&good, serde_json::to_string(&report).unwrap()).unwrap();
        std::fs::write(&bad, "{}").unwrap();
        let chart = super::chart(&[good.clone(), good.clone()]).unwrap();
        // The certified share is nowhere above the attacked one.
        assert_eq!(chart.series[1].points, [(0.0, 0.6), (1.0, 0.6), (1.0, 0.5)]);
        super::super::write(&dir.path().join("r.png"), &[chart]).unwrap();
        assert!(super::chart(&[good, bad]).unwrap_err().to_string().contains("bad.json"));
    }
}
