//! The order of layers: as the caller says, as the file has them, or by the numbers in their names.
//! Never by the alphabet, which puts a decoder in front of its encoder.

use std::collections::BTreeMap;

use crate::Undecided;

/// What a layer is called.
#[derive(Clone, Copy)]
pub(super) struct Name<'a> {
    /// Its name.
    pub layer: &'a str,
    /// The tensor whose place in the file is its place.
    pub place: &'a str,
}

/// Why an order was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    /// There is one layer.
    Alone,
    /// The caller named them.
    Said,
    /// The file has an order, and the numbers in the names agree with it.
    File,
    /// The names are one name with different numbers.
    Numbers,
}

/// An order of layers.
#[derive(Debug)]
pub(super) struct Order {
    /// The index of each layer in what was ordered, first layer first.
    pub places: Vec<usize>,
    why: Why,
}

impl Order {
    /// What is to be known about it, of these layers.
    pub(super) fn note(&self, names: &[Name]) -> Option<String> {
        let why = match self.why {
            Why::Alone => return None,
            Why::Said => "as was said at import",
            Why::File => "as the file has them",
            Why::Numbers => "as the numbers in their names say",
        };
        let list: Vec<String> = self
            .places
            .iter()
            .filter_map(|i| Some(format!("`{}`", names.get(*i)?.layer)))
            .collect();
        Some(format!("layers in the order {}, {why}", list.join(", ")))
    }
}

/// A name without its numbers, and the numbers.
fn numbers(name: &str) -> (String, Vec<u64>) {
    let (mut pattern, mut numbers) = (String::new(), Vec::new());
    let mut rest = name;
    while let Some(start) = rest.find(|c: char| c.is_ascii_digit()) {
        let (before, digits) = rest.split_at(start);
        let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
        let (digits, after) = digits.split_at(end);
        pattern.push_str(before);
        match digits.parse() {
            Ok(number) => {
                pattern.push('#');
                numbers.push(number);
            }
            // More than a number can hold: a part of the name.
            Err(_) => pattern.push_str(digits),
        }
        rest = after;
    }
    pattern.push_str(rest);
    (pattern, numbers)
}

/// The order of layers: `said`, or that of the `file`, where it has one and no numbers speak against
/// it, or that of the numbers in the names.
///
/// # Errors
/// [`Undecided::NoOrder`] if none of them decides it.
pub(super) fn order(
    names: &[Name],
    file: Option<&[&str]>,
    said: Option<&[String]>,
) -> Result<Order, Undecided> {
    if let Some(said) = said {
        return as_said(names, said);
    }
    if names.len() == 1 {
        return Ok(Order { places: vec![0], why: Why::Alone });
    }
    let mut by_number: Vec<(usize, String, Vec<u64>)> = names
        .iter()
        .enumerate()
        .map(|(i, name)| {
            let (pattern, numbers) = numbers(name.layer);
            (i, pattern, numbers)
        })
        .collect();
    if let Some(file) = file {
        let at: BTreeMap<&str, usize> = file.iter().enumerate().map(|(i, n)| (*n, i)).collect();
        by_number.sort_by_key(|(i, ..)| at.get(names[*i].place).copied());
        return in_file(names, &by_number);
    }
    let one = by_number.windows(2).all(|pair| pair[0].1 == pair[1].1);
    by_number.sort_by(|a, b| a.2.cmp(&b.2));
    let apart = by_number.windows(2).all(|pair| pair[0].2 < pair[1].2);
    if one && apart {
        let places = by_number.into_iter().map(|(i, ..)| i).collect();
        return Ok(Order { places, why: Why::Numbers });
    }
    Err(Undecided::NoOrder(format!(
        "does not say in which order {} follow each other",
        list(names)
    )))
}

/// The order of the file, if it contradicts no numbers and holds nothing but weights of layers.
fn in_file(names: &[Name], layers: &[(usize, String, Vec<u64>)]) -> Result<Order, Undecided> {
    let mut last: BTreeMap<&str, (usize, &[u64])> = BTreeMap::new();
    for (i, pattern, numbers) in layers {
        if let Some((before, smaller)) = last.insert(pattern, (*i, numbers))
            && smaller >= numbers.as_slice()
        {
            return Err(Undecided::NoOrder(format!(
                "has `{}` in front of `{}`, and their numbers say otherwise",
                names[before].layer, names[*i].layer
            )));
        }
    }
    let why = if last.len() == 1 { Why::Numbers } else { Why::File };
    // A matrix among layers that is not called a weight may be anything, a table of constants too.
    let odd = |(i, ..): &&(usize, String, Vec<u64>)| !names[*i].layer.ends_with("weight");
    if let (Why::File, Some((i, ..))) = (why, layers.iter().find(odd)) {
        return Err(Undecided::NoOrder(format!(
            "holds `{}`, which may be no layer, among {}",
            names[*i].layer,
            list(names)
        )));
    }
    Ok(Order { places: layers.iter().map(|(i, ..)| *i).collect(), why })
}

fn as_said(names: &[Name], said: &[String]) -> Result<Order, Undecided> {
    let mut places: Vec<usize> = Vec::new();
    for wanted in said {
        let is = |name: &Name| {
            name.layer == wanted || name.layer.strip_suffix(".weight") == Some(wanted)
        };
        let Some(place) = names.iter().position(is) else {
            let what = format!("holds no layer `{wanted}`; it holds {}", list(names));
            return Err(Undecided::NoOrder(what));
        };
        if places.contains(&place) {
            return Err(Undecided::NoOrder(format!("is to have the layer `{wanted}` twice")));
        }
        places.push(place);
    }
    if places.is_empty() {
        return Err(Undecided::NoOrder(format!("is given no order of {}", list(names))));
    }
    Ok(Order { places, why: Why::Said })
}

/// The first few names.
fn list(names: &[Name]) -> String {
    const SHOWN: usize = 8;
    let shown: Vec<String> =
        names.iter().take(SHOWN).map(|name| format!("`{}`", name.layer)).collect();
    let more = names.len().saturating_sub(SHOWN);
    let shown = shown.join(", ");
    if more == 0 { shown } else { format!("{shown} and {more} more") }
}

#[cfg(test)]
mod tests {
    use super::{Name, Why, order};
    use crate::Undecided;

    fn names<'a>(of: &[&'a str]) -> Vec<Name<'a>> {
        of.iter().map(|name| Name { layer: name, place: name }).collect()
    }

    /// The layers in order, or none if nothing decides it.
    fn found<'a>(
        of: &[&'a str],
        file: Option<&[&str]>,
        said: Option<&[&str]>,
    ) -> Option<(Vec<&'a str>, Why)> {
        let said: Option<Vec<String>> = said.map(|s| s.iter().map(|n| n.to_string()).collect());
        match order(&names(of), file, said.as_deref()) {
            Ok(order) => Some((order.places.iter().map(|i| of[*i]).collect(), order.why)),
            Err(Undecided::NoOrder(_)) => None,
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn numbers_are_numbers() {
        let layers = ["l.10.weight", "l.9.weight", "l.09x.weight", "l.0.weight"];
        assert_eq!(
            found(&[layers[0], layers[1], layers[3]], None, None).unwrap(),
            (vec!["l.0.weight", "l.9.weight", "l.10.weight"], Why::Numbers)
        );
        // Padded, nested, and at the ends of names.
        for ordered in [
            vec!["layer_00", "layer_01", "layer_09", "layer_10", "layer_100"],
            vec!["b.0.fc1.weight", "b.0.fc2.weight", "b.1.fc1.weight", "b.10.fc1.weight"],
            vec!["W1", "W2", "W11"],
            vec!["0.weight", "2.weight"],
        ] {
            let mut shuffled = ordered.clone();
            shuffled.reverse();
            assert_eq!(found(&shuffled, None, None).unwrap(), (ordered, Why::Numbers));
        }
    }

    /// Neither the alphabet nor some numbers of different names are an order.
    #[test]
    fn what_does_not_decide_is_refused() {
        for names in [
            vec!["decoder.weight", "encoder.weight"],
            vec!["decoder.0.weight", "encoder.0.weight"],
            vec!["fc1.weight", "fc2.weight", "out.weight"],
            vec!["encoder.0.weight", "encoder.2.weight", "head.0.weight"],
            vec!["l1.weight", "l01.weight"],
            vec!["l99999999999999999999999.weight", "l99999999999999999999998.weight"],
        ] {
            assert_eq!(found(&names, None, None), None, "{names:?}");
        }
    }

    #[test]
    fn the_files_order_holds_unless_numbers_contradict() {
        let sorted = ["decoder.weight", "encoder.weight"];
        let file = ["encoder.weight", "encoder.bias", "decoder.weight"];
        let (places, why) = found(&sorted, Some(&file), None).unwrap();
        assert_eq!((places, why), (vec!["encoder.weight", "decoder.weight"], Why::File));
        let file = ["fc1.weight", "fc2.weight", "out.weight"];
        let (places, why) = found(&file, Some(&file), None).unwrap();
        assert_eq!((places, why), (file.to_vec(), Why::File));
        let file = ["fc1.weight", "fc2.weight"];
        assert_eq!(found(&file, Some(&file), None).unwrap().1, Why::Numbers);
        for file in [
            vec!["fc2.weight", "fc1.weight"],
            vec!["fc2.weight", "out.weight", "fc1.weight"],
            vec!["0.weight", "2.weight", "log_std"],
        ] {
            assert_eq!(found(&file, Some(&file), None), None, "{file:?}");
        }
    }

    #[test]
    fn what_is_said_holds_if_it_can() {
        let names = ["a.weight", "b.weight", "c"];
        let say = |said: &[&str]| found(&names, Some(&["b.weight", "a.weight", "c"]), Some(said));
        assert_eq!(
            say(&["c", "a", "b.weight"]).unwrap(),
            (vec!["c", "a.weight", "b.weight"], Why::Said)
        );
        // What is left out is left to be accounted for.
        assert_eq!(say(&["a", "b"]).unwrap().0.len(), 2);
        for said in [vec!["a", "d"], vec!["a", "a"], vec!["a", "a.weight"], vec![]] {
            assert_eq!(say(&said), None, "{said:?}");
        }
    }
}
