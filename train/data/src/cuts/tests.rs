use lipschitz_nn::random::{below, seeded};
use serde_json::{Value, json};

use super::*;

/// Byte-level pairs over a few merges, or words: a tokenizer with these parts.
fn tokenizer(normalizer: Value, pre_tokenizer: Value, added: &[Value]) -> tokenizers::Tokenizer {
    let mut vocab = serde_json::Map::new();
    let mut add = |token: String| {
        let id = vocab.len() as u32;
        vocab.entry(token).or_insert(id.into());
    };
    (0x21..0x180u32).filter_map(char::from_u32).for_each(|c| add(c.to_string()));
    [' ', '▁', '\n', '\t', '中', '文', '。', '\u{301}', 'ﷺ', '\u{3000}', '\r', '\u{a0}']
        .iter()
        .for_each(|c| add(c.to_string()));
    let pairs =
        [("t", "h"), ("th", "e"), ("Ġ", "th"), ("▁", "t"), (" ", "t"), ("a", "n"), ("\n", "\n")];
    pairs.iter().for_each(|(a, b)| add(format!("{a}{b}")));
    let merges: Vec<[&str; 2]> = pairs.iter().map(|(a, b)| [*a, *b]).collect();
    let first = vocab.len();
    let added: Vec<Value> = added
        .iter()
        .zip(first..)
        .map(|(token, id)| {
            let mut whole = json!({"id": id, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": false});
            let map = whole.as_object_mut().unwrap();
            map.extend(token.as_object().unwrap().clone());
            whole
        })
        .collect();
    let json = json!({"version": "1.0", "added_tokens": added, "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "model": {"type": "BPE", "vocab": vocab, "merges": merges, "unk_token": "!",
            "fuse_unk": true}});
    tokenizers::Tokenizer::from_bytes(json.to_string()).unwrap()
}

fn ids(tokenizer: &tokenizers::Tokenizer, text: &str) -> Vec<u32> {
    tokenizer.encode_fast(text, false).unwrap().get_ids().to_vec()
}

fn byte_level(prefix: bool, regex: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": true, "use_regex": regex})
}

fn split(pattern: &str) -> Value {
    json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false})
}

fn metaspace(scheme: &str, split: bool) -> Value {
    json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split})
}

fn replace(pattern: Value, content: &str) -> Value {
    json!({"type": "Replace", "pattern": pattern, "content": content})
}

fn normalizers() -> Vec<Value> {
    let bert = json!({"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
        "strip_accents": null, "lowercase": true});
    let one = |kind: &str| json!({"type": kind});
    vec![
        Value::Null,
        one("NFC"),
        one("NFD"),
        one("NFKC"),
        one("NFKD"),
        one("Lowercase"),
        one("StripAccents"),
        one("Nmt"),
        bert,
        json!({"type": "Strip", "strip_left": true, "strip_right": true}),
        json!({"type": "Prepend", "prepend": "▁"}),
        replace(json!({"String": " "}), "▁"),
        replace(json!({"String": "t"}), "\n"),
        replace(json!({"String": "."}), " "),
        replace(json!({"Regex": " {2,}"}), " "),
        json!({"type": "Sequence", "normalizers": [one("NFD"), one("Lowercase"), one("StripAccents")]}),
    ]
}

fn pre_tokenizers() -> Vec<Value> {
    let one = |kind: &str| json!({"type": kind});
    let turn = |all: Vec<Value>| json!({"type": "Sequence", "pretokenizers": all});
    let digits = json!({"type": "Digits", "individual_digits": true});
    let punctuation = json!({"type": "Punctuation", "behavior": "Isolated"});
    let mut all = vec![
        Value::Null,
        byte_level(false, true),
        byte_level(true, true),
        byte_level(false, false),
        metaspace("always", true),
        metaspace("first", true),
        metaspace("never", true),
        metaspace("always", false),
        one("BertPreTokenizer"),
        one("Whitespace"),
        one("WhitespaceSplit"),
        one("UnicodeScripts"),
        digits.clone(),
        punctuation.clone(),
        json!({"type": "CharDelimiterSplit", "delimiter": "t"}),
        json!({"type": "FixedLength", "length": 5}),
        json!({"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": false}),
        turn(vec![digits.clone(), byte_level(false, true)]),
        turn(vec![punctuation, digits, byte_level(true, true)]),
        turn(vec![one("WhitespaceSplit"), metaspace("first", true)]),
        turn(vec![one("Whitespace"), byte_level(true, false)]),
        turn(vec![byte_level(false, false), one("WhitespaceSplit")]),
    ];
    let patterns = PATTERNS.iter().map(|p| turn(vec![split(p), byte_level(false, false)]));
    all.extend(patterns);
    all
}

fn added() -> Vec<Vec<Value>> {
    let token = |content: &str, key: &str| json!({"content": content, key: true});
    vec![
        vec![],
        vec![token("<x>", "special"), token("  ", "normalized"), token(" the", "normalized")],
        vec![token("an the", "special")],
        vec![token("AN The", "normalized")],
        vec![token("the", "rstrip")],
        vec![token("the", "lstrip")],
        vec![token("<x>", "lstrip")],
        vec![token("<x>", "rstrip"), token("the", "single_word")],
        vec![token(".\n", "special")],
    ]
}

/// A text of the parts on which tokenizers decide.
fn text(seed: u64, parts: usize) -> String {
    const PARTS: [&str; 38] = [
        " ", " ", " ", " ", "  ", "\n", "\n", "\n\n", "\r\n", "\t", "\u{a0}", "\u{3000}", "the",
        "then", "an", "The", "AN", "t", "a", "'s", "'ll", "12", "3", ".", "...", "!", "/", "中文",
        "。", "é", "e\u{301}", "\u{301}", "ﷺ", "<x>", "▁", "İ", "\u{b4}", "\u{200b}",
    ];
    let mut stream = seeded(seed);
    (0..parts).map(|_| PARTS[below(&mut stream, PARTS.len())]).collect()
}

/// Whatever a tokenizer is made of: where it allows a cut, the parts have the tokens of the whole.
#[test]
fn the_tokens_of_the_parts_are_those_of_the_whole() {
    let mut tried = [0usize; 2];
    for (i, normalizer) in normalizers().iter().enumerate() {
        for (j, pre_tokenizer) in pre_tokenizers().iter().enumerate() {
            for (k, added) in added().iter().enumerate() {
                let made = tokenizer(normalizer.clone(), pre_tokenizer.clone(), added);
                let cuts = Cuts::of(&made);
                if cuts == Cuts::NONE {
                    continue;
                }
                for seed in 0..4u64 {
                    let text = text(seed + 7 * (i + 20 * j + 500 * k) as u64, 300);
                    let whole = ids(&made, &text);
                    for at in (1..text.len()).filter(|at| text.is_char_boundary(*at)) {
                        let (found, allowed) = match kind(&text, at) {
                            Some(Cut::Space) => (0, cuts.space),
                            Some(Cut::Line) => (1, cuts.line),
                            None => continue,
                        };
                        if !allowed {
                            continue;
                        }
                        tried[found] += 1;
                        let (left, right) = text.split_at(at);
                        let parts = [ids(&made, left), ids(&made, right)].concat();
                        assert!(
                            parts == whole,
                            "{normalizer} {pre_tokenizer} {added:?}\n{left:?} | {right:?}"
                        );
                    }
                }
            }
        }
    }
    assert!(tried.iter().all(|n| *n > 2000), "{tried:?}");
}

/// Those in use allow cuts, so that the test above is about them.
#[test]
fn tokenizers_in_use_allow_cuts() {
    let gpt2 = Cuts::of(&tokenizer(Value::Null, byte_level(false, true), &[]));
    assert_eq!(gpt2, Cuts::BOTH);
    for pre_tokenizer in pre_tokenizers().iter().rev().take(PATTERNS.len()) {
        let made = tokenizer(json!({"type": "NFC"}), pre_tokenizer.clone(), &added()[1]);
        assert_eq!(Cuts::of(&made), Cuts::BOTH);
    }
    let bert = normalizers().swap_remove(8);
    let made = tokenizer(bert, json!({"type": "BertPreTokenizer"}), &added()[0]);
    assert_eq!(Cuts::of(&made), Cuts::SPACE);
    let made = tokenizer(normalizers().swap_remove(14), metaspace("always", true), &added()[0]);
    assert_eq!(Cuts::of(&made), Cuts::SPACE);
    // Nothing is known of these.
    assert_eq!(Cuts::of(&tokenizer(Value::Null, Value::Null, &[])), Cuts::NONE);
    assert_eq!(Cuts::of(&tokenizer(Value::Null, split(" "), &[])), Cuts::NONE);
}

#[test]
fn pieces_are_the_text_and_no_shorter_than_asked_for() {
    for seed in 0..20 {
        let text = text(seed, 3000);
        for cuts in [Cuts::NONE, Cuts::SPACE, Cuts::BOTH] {
            let pieces: Vec<&str> = cuts.pieces(&text, 20).collect();
            assert_eq!(pieces.concat(), text);
            assert!(pieces.iter().rev().skip(1).all(|piece| piece.len() >= 20));
            assert_eq!(pieces.len() == 1, cuts == Cuts::NONE, "{}", pieces.len());
        }
    }
    assert_eq!(Cuts::BOTH.pieces("", 20).collect::<Vec<_>>(), [""]);
}
