//! Ranges of numbers on the command line: a number outside is a usage error that names the range.

use clap::builder::{RangedU64ValueParser, TypedValueParser};

/// Threads that a program can be given. More of them only wait for each other.
const MAX_THREADS: u64 = 1024;

/// `--threads`.
pub fn threads() -> RangedU64ValueParser<usize> {
    count(1, MAX_THREADS)
}

/// A whole number from `least` to `most`.
pub fn count(least: u64, most: u64) -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(least..=most)
}

/// A number from `least` to `most`.
pub fn number(least: f64, most: f64) -> impl TypedValueParser<Value = f64> {
    move |text: &str| match text.parse() {
        Ok(number) if (least..=most).contains(&number) => Ok(number),
        _ => Err(format!("must be a number from {} to {}", brief(least), brief(most))),
    }
}

/// A number above 0, up to `most`.
pub fn positive(most: f64) -> impl TypedValueParser<Value = f64> {
    move |text: &str| match text.parse() {
        Ok(number) if number > 0.0 && number <= most => Ok(number),
        _ => Err(format!("must be a number above 0, up to {}", brief(most))),
    }
}

/// A number without a row of zeros.
fn brief(x: f64) -> String {
    if x.abs() < 1e16 { x.to_string() } else { format!("{x:e}") }
}

#[cfg(test)]
mod tests {
    use clap::{Arg, Command};

    fn said(arg: Arg, text: &str) -> Result<(), String> {
        let command = Command::new("program").arg(arg.long("flag").allow_negative_numbers(true));
        match command.try_get_matches_from(["program", "--flag", text]) {
            Ok(_) => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn a_number_out_of_its_range_is_told_with_the_range() {
        let cases = [
            (
                "count",
                vec!["1", "1024"],
                vec!["0", "1025", "-1", "", "1.5", "99999999999999999999"],
            ),
            ("number", vec!["0", "2.5", "-1"], vec!["-1.1", "2.6", "nan", "inf", "x", "1e999"]),
            ("positive", vec!["1e-300", "8"], vec!["0", "-0", "8.1", "nan", "-inf", ""]),
        ];
        for (kind, right, wrong) in cases {
            let arg = || match kind {
                "count" => Arg::new("flag").value_parser(super::threads()),
                "number" => Arg::new("flag").value_parser(super::number(-1.0, 2.5)),
                _ => Arg::new("flag").value_parser(super::positive(8.0)),
            };
            for text in right {
                said(arg().allow_hyphen_values(true), text).unwrap();
            }
            for text in wrong {
                let error = said(arg().allow_hyphen_values(true), text).unwrap_err();
                let range = ["1..=1024", "from -1 to 2.5", "above 0, up to 8"];
                let named = range.iter().any(|range| error.contains(range));
                // What is no whole number at all is told as such.
                let no_number =
                    kind == "count" && (text.is_empty() || text.parse::<u64>().is_err());
                assert!(named || no_number || text.len() > 18, "{text}: {error}");
            }
        }
    }
}
