//! Plots validation loss against the certified constant for all runs of a sweep, with the Pareto
//! front of each constraint.
//!
//!     cargo run --example chart_sweep -- RUNS FIGURE.svg

use std::path::PathBuf;

use lipschitz_certify::plots::tradeoff::Tradeoff;
use lipschitz_certify::plots::write;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let paths: Vec<PathBuf> = std::env::args().skip(1).map(PathBuf::from).collect();
    let [runs, figure] = &paths[..] else {
        return Err("name a directory of runs and a figure to write".into());
    };
    let tradeoff = Tradeoff::read(std::slice::from_ref(runs), "lipschitz_log10", "val_loss", None)?;
    write(figure, &[tradeoff.chart()])?;
    for point in tradeoff.points.iter().filter(|point| point.front) {
        // A bound is rounded up.
        let log10 = (100.0 * point.x).ceil() / 100.0;
        println!("{}: loss {:.4} at L ≤ 10^{log10:.2}", point.label, point.y);
    }
    Ok(())
}
