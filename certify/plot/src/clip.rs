//! What a robust axis leaves out: lines end at its limits, and a marker shows where they go on.

use crate::axis::Axis;
use crate::chart::{Chart, Mark, Series};
use crate::marker::Marker;

/// With fewer values than this, none is far from the others.
const FEW: usize = 10;
/// At most this share of the values lies beyond either end.
const SHARE: usize = 20;
/// A value is far if it extends the axis by more than this many times the range of the others.
const FAR: f64 = 2.0;

/// The lowest and highest values that the axis shows. The first value of a line is always shown: it
/// is where training begins, however soon the line leaves it.
fn limits(series: &[Series]) -> (f64, f64) {
    let mut all: Vec<f64> = series.iter().flat_map(|s| s.points.iter().map(|p| p.1)).collect();
    all.sort_by(f64::total_cmp);
    let [low, .., high] = all[..] else { return (f64::NEG_INFINITY, f64::INFINITY) };
    let far = if all.len() < FEW { 0 } else { (all.len() / SHARE).max(1) };
    let middle = &all[far..all.len() - far];
    let (Some(bottom), Some(top)) = (middle.first().copied(), middle.last().copied()) else {
        return (low, high);
    };
    let range = top - bottom;
    let firsts = || series.iter().filter_map(|s| s.points.first()).map(|p| p.1);
    // Values that are only a little outside the middle are inside the axis.
    let near = |x: &&f64| (bottom - range / 2.0..=top + range / 2.0).contains(*x);
    let shown = || all.iter().filter(near).copied().chain(firsts());
    (
        if bottom - low > FAR * range { shown().fold(bottom, f64::min) } else { low },
        if high - top > FAR * range { shown().fold(top, f64::max) } else { high },
    )
}

/// The chart as its axes show it, with markers where lines leave it.
pub(crate) fn shown(chart: &Chart) -> Chart {
    let mut chart = chart.clone();
    if !chart.y.robust {
        return chart;
    }
    let ends = limits(&chart.series);
    let mut beyond = Vec::new();
    let mut series = Vec::new();
    for one in std::mem::take(&mut chart.series) {
        beyond.extend(excursions(&one, ends, &chart.y));
        series.extend(inside(one, ends));
    }
    let text = |mark, word: &str, value: Option<f64>| {
        let value = value.map(|value| chart.y.text(value))?;
        Some(format!("{mark} beyond the axis, {word} to {value}"))
    };
    let values = |marker: Marker| {
        let own =
            beyond.iter().filter(move |(s, _): &&(Series, f64)| s.mark == Mark::Filled(marker));
        own.map(|(_, value)| *value)
    };
    let up = values(Marker::Triangle).reduce(f64::max);
    let down = values(Marker::Down).reduce(f64::min);
    let told = [text('▲', "up", up), text('▼', "down", down)];
    let notes = std::iter::once(std::mem::take(&mut chart.note)).chain(told.into_iter().flatten());
    chart.note = notes.filter(|note| !note.is_empty()).collect::<Vec<_>>().join("; ");
    series.extend(beyond.into_iter().map(|(series, _)| series));
    chart.series = series;
    chart
}

/// A marker, with its value, for each stretch of points beyond an end of the axis.
fn excursions(series: &Series, (low, high): (f64, f64), axis: &Axis) -> Vec<(Series, f64)> {
    let side = |y: f64| if y > high { 1 } else { -i32::from(y < low) };
    let stretches = series.points.chunk_by(|a, b| side(a.1) == side(b.1));
    let farthest = |points: &[(f64, f64)]| {
        let side = side(points.first()?.1);
        let far = points
            .iter()
            .max_by(|a, b| (f64::from(side) * a.1).total_cmp(&(f64::from(side) * b.1)))?;
        let (end, marker) = match side {
            1 => (high, Marker::Triangle),
            -1 => (low, Marker::Down),
            _ => return None,
        };
        let one = Series {
            color: series.color,
            mark: Mark::Filled(marker),
            points: vec![(far.0, end)],
            titles: vec![axis.text(far.1)],
            ..Series::default()
        };
        Some((one, far.1))
    };
    stretches.filter_map(farthest).collect()
}

/// What lies between the ends: the pieces of a line, or the markers.
fn inside(series: Series, (low, high): (f64, f64)) -> Vec<Series> {
    let held = |y: f64| (low..=high).contains(&y);
    if series.points.iter().all(|p| held(p.1)) {
        return vec![series];
    }
    if !matches!(series.mark, Mark::Line | Mark::Dashed | Mark::Thin) {
        let keep: Vec<bool> = series.points.iter().map(|p| held(p.1)).collect();
        fn kept<T: Clone>(keep: &[bool], all: &[T]) -> Vec<T> {
            all.iter().zip(keep).filter(|(_, keep)| **keep).map(|(one, _)| one.clone()).collect()
        }
        return vec![Series {
            points: kept(&keep, &series.points),
            labels: kept(&keep, &series.labels),
            titles: kept(&keep, &series.titles),
            spread: kept(&keep, &series.spread),
            ..series
        }];
    }
    let mut pieces: Vec<Vec<(f64, f64)>> = vec![Vec::new()];
    let mut push = |point: (f64, f64), goes_on: bool| {
        if let Some(piece) = pieces.last_mut() {
            piece.push(point);
        }
        if !goes_on {
            pieces.push(Vec::new());
        }
    };
    // Where the line between two points crosses a value.
    let cross =
        |a: (f64, f64), b: (f64, f64), y: f64| (a.0 + (y - a.1) / (b.1 - a.1) * (b.0 - a.0), y);
    if let Some(first) = series.points.first().filter(|p| held(p.1)) {
        push(*first, true);
    }
    for ends in series.points.windows(2) {
        let [a, b] = [ends[0], ends[1]];
        let end = |y: f64| if y > high { high } else { low };
        match (held(a.1), held(b.1)) {
            (true, true) => push(b, true),
            (true, false) => push(cross(a, b, end(b.1)), false),
            (false, true) => {
                push(cross(a, b, end(a.1)), true);
                push(b, true);
            }
            (false, false) if (a.1 > high) != (b.1 > high) => {
                push(cross(a, b, end(a.1)), true);
                push(cross(a, b, end(b.1)), false);
            }
            (false, false) => {}
        }
    }
    pieces.retain(|piece| piece.len() > 1);
    let last = pieces.len().saturating_sub(1);
    let piece = |(i, points): (usize, Vec<(f64, f64)>)| Series {
        // One entry in the legend, and the label where the line ends.
        name: if i == 0 { series.name.clone() } else { String::new() },
        label: if i == last { series.label.clone() } else { String::new() },
        color: series.color,
        mark: series.mark,
        points,
        ..Series::default()
    };
    pieces.into_iter().enumerate().map(piece).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(values: impl IntoIterator<Item = f64>) -> Series {
        let points = values.into_iter().enumerate().map(|(i, y)| (i as f64, y)).collect();
        Series { name: "a".into(), label: "a".into(), points, ..Series::default() }
    }

    /// A loss that falls from `first` to 2.
    fn falling(first: f64) -> Vec<f64> {
        (0..100).map(|i| 2.0 + (first - 2.0) * (-0.2 * f64::from(i)).exp()).collect()
    }

    fn chart(series: Vec<Series>, robust: bool) -> Chart {
        Chart { y: Axis { robust, ..Axis::default() }, series, ..Chart::default() }
    }

    #[test]
    fn a_spike_does_not_set_the_axis_and_is_marked() {
        let mut values = falling(4.0);
        (values[40], values[41], values[90]) = (1e6, 3e6, -50.0);
        let seen = shown(&chart(vec![line(values.clone())], true));
        let ys = || seen.series.iter().flat_map(|s| s.points.iter().map(|p| p.1));
        assert!(ys().all(|y| (1.9..=4.0).contains(&y)), "{seen:?}");
        assert!(ys().any(|y| y == 4.0), "the start of training is shown");
        let marks: Vec<&Series> = seen.series.iter().filter(|s| s.mark != Mark::Line).collect();
        assert_eq!(
            marks.iter().map(|s| (s.points[0].0, s.mark)).collect::<Vec<_>>(),
            [(41.0, Mark::Filled(Marker::Triangle)), (90.0, Mark::Filled(Marker::Down))]
        );
        assert_eq!(marks[0].titles, ["3000000"]);
        assert_eq!(seen.note, "▲ beyond the axis, up to 3000000; ▼ beyond the axis, down to −50");
        // Three pieces, one entry of the legend, and the label at the end.
        let pieces: Vec<&Series> = seen.series.iter().filter(|s| s.mark == Mark::Line).collect();
        assert_eq!(pieces.len(), 3);
        assert_eq!(pieces.iter().map(|s| s.name.len()).collect::<Vec<_>>(), [1, 0, 0]);
        assert_eq!(pieces.iter().map(|s| s.label.len()).collect::<Vec<_>>(), [0, 0, 1]);
        assert_eq!(shown(&chart(vec![line(values.clone())], false)).series, [line(values)]);
    }

    #[test]
    fn what_is_no_spike_is_whole() {
        let diverged = (0..100).map(|i| if i < 80 { 2.0 } else { 1e9 }).collect();
        for values in [falling(4.0), falling(1e6), diverged, vec![1.0, 2.0, 1e9], vec![5.0; 40]] {
            let whole = chart(vec![line(values)], true);
            assert_eq!(shown(&whole), whole);
        }
        assert_eq!(shown(&chart(vec![], true)), chart(vec![], true));
    }

    #[test]
    fn markers_beyond_are_left_out_with_what_belongs_to_them() {
        let mut values = falling(4.0);
        values[50] = 1e9;
        let mut marks = line(values);
        marks.mark = Mark::Open(Marker::Disc);
        marks.titles = (0..100).map(|i| i.to_string()).collect();
        let seen = shown(&chart(vec![marks], true));
        assert_eq!((seen.series[0].points.len(), seen.series[0].titles.len()), (99, 99));
        assert_eq!(seen.series[0].titles[50], "51");
    }
}
