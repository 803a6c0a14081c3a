//! Runs as a table on stdout.

use comfy_table::Table;
use lipschitz_certify::terminal::tables;
use lipschitz_train::run_dir::Summary;

/// A row per run.
pub(super) fn summaries(summaries: &[Summary]) -> Table {
    let header =
        ["network", "method", "σ_max", "val loss", "accuracy", "certified L ≤", "found L ≥"];
    let mut table = tables::table(&header, 2..=6);
    for s in summaries {
        let sigma = s.sigma_max.map_or("–".into(), |x| format!("{x:.3}"));
        let found = s.found_log10.map_or("–".into(), |x| format!("{:.3}", 10f64.powf(x)));
        let accuracy = s.val_accuracy.map_or("–".into(), |a| format!("{:.1} %", 100.0 * a));
        let loss = format!("{:.4}", s.val_loss);
        table.add_row([
            &s.label,
            &s.method,
            &sigma,
            &loss,
            &accuracy,
            &s.lipschitz.to_string(),
            &found,
        ]);
    }
    table
}
