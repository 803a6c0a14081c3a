//! The page about the keys of a config, made from the types that read it: each with its type, default
//! and range.

use std::collections::BTreeMap;
use std::fmt::Write;

use lipschitz_certify::terminal::reference::cell;
use serde_json::Value;

use crate::config::Config;
use crate::preset;

/// The page, in Markdown.
pub fn page() -> String {
    let schema = schemars::schema_for!(Config).to_value();
    let schema = Schema { definitions: schema["$defs"].clone(), root: schema.clone() };
    let mut out = String::from(
        "# Keys of a config\n\n\
         A config is a TOML file; `train config demo` prints one with comments. A key without a \
         default has to be given, unless it says *none*. Ranges are those that the program names \
         when a number lies outside.\n",
    );
    let mut sections = vec![(String::new(), schema.root.clone(), BTreeMap::new())];
    let mut seen = Vec::new();
    while !sections.is_empty() {
        let (path, section, of) = sections.remove(0);
        // Sections of two kinds may have one name, as the stages of two networks.
        if seen.contains(&(path.clone(), schema.resolved(&section)["items"].clone())) {
            continue;
        }
        let tables = schema.variants(&section);
        for Table { given, about, keys } in &tables {
            let given = if given.is_empty() { &of } else { given };
            let mut title = match path.as_str() {
                "" => "The file".to_string(),
                path if is_list(&section) => format!("`[[{path}]]`"),
                path => format!("`[{path}]`"),
            };
            for (key, value) in given {
                let _ = write!(title, " with `{key} = \"{value}\"`");
            }
            let _ = write!(out, "\n## {title}\n\n{}\n", cell(about));
            let mut rows = String::new();
            for key in keys {
                let full =
                    if path.is_empty() { key.name.clone() } else { format!("{path}.{}", key.name) };
                if let Some(below) = schema.section(&key.schema, &full) {
                    let of = if is_list(&key.schema) { given.clone() } else { BTreeMap::new() };
                    sections.push((below.clone(), key.schema.clone(), of));
                    if path.is_empty() {
                        continue;
                    }
                }
                let range = ranges(&full, given, &key.kind);
                let kind = match schema.section(&key.schema, &full) {
                    Some(below) => format!("a section, [as `{below}`](#keys-of-a-config)"),
                    None => key.kind.clone(),
                };
                let name = &key.name;
                let default = &key.default;
                let _ = writeln!(
                    rows,
                    "| `{name}` | {kind} | {default} | {range} | {} |",
                    cell(&key.about)
                );
            }
            if !rows.is_empty() {
                let _ = write!(
                    out,
                    "\n| key | type | default | range | |\n|---|---|---|---|---|\n{rows}"
                );
            }
        }
        seen.push((path, schema.resolved(&section)["items"].clone()));
    }
    out
}

/// Whether a key holds several sections.
fn is_list(schema: &Value) -> bool {
    schema["type"] == "array"
}

/// The schema of a config.
struct Schema {
    root: Value,
    definitions: Value,
}

/// The keys of a section, or of one kind of it.
struct Table {
    /// The key that says the kind, with its value.
    given: BTreeMap<String, String>,
    about: String,
    keys: Vec<Key>,
}

struct Key {
    name: String,
    schema: Value,
    kind: String,
    default: String,
    about: String,
}

impl Schema {
    /// A schema without references at its top.
    fn resolved(&self, schema: &Value) -> Value {
        let mut schema = schema.clone();
        for list in ["anyOf", "oneOf"] {
            let Some(options) = schema[list].as_array() else { continue };
            let some: Vec<&Value> = options.iter().filter(|o| o["type"] != "null").collect();
            if let ([one], 2) = (&some[..], options.len()) {
                let one = (*one).clone();
                take(&mut schema, list);
                merge(&mut schema, &one);
            }
        }
        while let Some(name) = schema["$ref"].as_str() {
            let name = name.trim_start_matches("#/$defs/").to_string();
            take(&mut schema, "$ref");
            merge(&mut schema, &self.definitions[&name]);
        }
        schema
    }

    /// The path of the section that describes a key, if its value is one.
    fn section(&self, schema: &Value, full: &str) -> Option<String> {
        let schema = self.resolved(schema);
        let item = match schema["type"].as_str() {
            Some("array") => self.resolved(&schema["items"]),
            _ => schema,
        };
        let tagged = item["oneOf"].as_array().is_some_and(|o| o[0]["properties"].is_object());
        let object = item["properties"].is_object();
        // Groups have optimizers of their own.
        let path = if full == "groups.optimizer" { "optimizer" } else { full };
        (tagged || object).then(|| path.to_string())
    }

    fn variants(&self, section: &Value) -> Vec<Table> {
        let schema = self.resolved(section);
        let schema = match schema["type"].as_str() {
            Some("array") => {
                let mut item = self.resolved(&schema["items"]);
                item["description"] = schema["description"].clone();
                item
            }
            _ => schema,
        };
        match schema["oneOf"].as_array() {
            Some(options) => {
                options.iter().map(|option| self.table(&self.resolved(option))).collect()
            }
            None => vec![self.table(&schema)],
        }
    }

    fn table(&self, schema: &Value) -> Table {
        let mut table =
            Table { given: BTreeMap::new(), about: text(&schema["description"]), keys: Vec::new() };
        let required: Vec<&str> =
            schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        for (name, key) in schema["properties"].as_object().into_iter().flatten() {
            if let Some(value) = key["const"].as_str() {
                table.given.insert(name.clone(), value.to_string());
                continue;
            }
            let resolved = self.resolved(key);
            let default = match key.get("default").or(resolved.get("default")) {
                Some(Value::Null) | None if !required.contains(&name.as_str()) => {
                    "none".to_string()
                }
                Some(value) if !required.contains(&name.as_str()) => format!("`{}`", toml(value)),
                _ => String::new(),
            };
            let about = [&key["description"], &resolved["description"]];
            let about = about.into_iter().map(text).find(|t| !t.is_empty()).unwrap_or_default();
            table.keys.push(Key {
                name: name.clone(),
                kind: self.kind(&resolved),
                schema: key.clone(),
                default,
                about,
            });
        }
        // What has to be given comes first.
        table.keys.sort_by_key(|key| (!key.default.is_empty(), key.name.clone()));
        table
    }

    /// The type of a value, in words.
    fn kind(&self, schema: &Value) -> String {
        let options = schema["oneOf"].as_array().or(schema["anyOf"].as_array());
        if let Some(options) = options {
            let each = options.iter().map(|option| self.kind(&self.resolved(option)));
            return each.collect::<Vec<_>>().join(", ");
        }
        if let Some(value) = schema["const"].as_str() {
            return format!("`\"{value}\"`");
        }
        if let Some(values) = schema["enum"].as_array() {
            return values.iter().map(|v| format!("`{v}`")).collect::<Vec<_>>().join(", ");
        }
        let kinds = match &schema["type"] {
            Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect(),
            Value::String(kind) => vec![kind.as_str()],
            _ => Vec::new(),
        };
        match kinds.into_iter().find(|kind| *kind != "null") {
            Some("integer") => "whole number".into(),
            Some("number") => "number".into(),
            Some("boolean") => "`true`, `false`".into(),
            Some("string") => "text".into(),
            Some("array") => format!("list of: {}", self.kind(&self.resolved(&schema["items"]))),
            Some("object") if schema["additionalProperties"].is_object() => {
                let of = self.resolved(&schema["additionalProperties"]);
                format!("names with: {}", self.kind(&of))
            }
            _ => "section".into(),
        }
    }
}

fn take(schema: &mut Value, key: &str) {
    if let Some(fields) = schema.as_object_mut() {
        fields.remove(key);
    }
}

fn merge(into: &mut Value, from: &Value) {
    for (key, value) in from.as_object().into_iter().flatten() {
        match (into.get_mut(key), value) {
            (Some(Value::Object(there)), Value::Object(more)) => {
                for (key, value) in more {
                    there.entry(key.clone()).or_insert_with(|| value.clone());
                }
            }
            (Some(Value::Array(there)), Value::Array(more)) if key == "required" => {
                there.extend(more.iter().cloned());
            }
            (Some(_), _) => {}
            (None, value) => into[key] = value.clone(),
        }
    }
}

fn text(value: &Value) -> String {
    let text = value.as_str().unwrap_or_default();
    // Links of the code's own documentation say nothing here.
    text.replace("[`ConstraintKind::SpectralNormalize`]", "`spectral_normalize`")
}

/// A value as TOML has it.
fn toml(value: &Value) -> String {
    match value {
        Value::Object(fields) => {
            let each = fields.iter().map(|(key, value)| format!("{key} = {}", toml(value)));
            format!("{{ {} }}", each.collect::<Vec<_>>().join(", "))
        }
        Value::Array(values) => {
            format!("[{}]", values.iter().map(toml).collect::<Vec<_>>().join(", "))
        }
        value => value.to_string(),
    }
}

/// The range of a number, as the program names it when the number lies outside.
fn ranges(full: &str, given: &BTreeMap<String, String>, kind: &str) -> String {
    let whole = kind.contains("whole number");
    if !whole && !kind.contains("number") {
        return String::new();
    }
    let tries: &[&str] = match whole {
        true => &["0", "9223372036854775807", "-1"],
        false => &["-1.0", "0.0", "1.5", "1e300", "inf"],
    };
    for value in tries {
        let value = match (kind.starts_with("list"), kind.starts_with("names")) {
            (true, _) => format!("[{value}]"),
            (_, true) => format!("{{ head = {value} }}"),
            _ => value.to_string(),
        };
        if let Some(said) = refused(full, &value, given) {
            return said;
        }
    }
    String::new()
}

/// A vision transformer, which no preset is.
const VIT: &str = "model={ preset = \"vit\", dim = 8, layers = 1, heads = 2, patch = 4 }";

/// What is said of this value of a key, where it is refused for its size.
fn refused(full: &str, value: &str, given: &BTreeMap<String, String>) -> Option<String> {
    let (section, key) = full.rsplit_once('.').unwrap_or(("", full));
    // A config in which the key means something.
    let kinds: Vec<&str> = given.values().map(String::as_str).collect();
    let base = match (section, &kinds[..]) {
        ("model.stages", ["isometric"]) => "isometric-shakespeare",
        ("model" | "model.stages", ["convnet"]) | ("model.attention", _) => "convnet-cifar10",
        ("model", ["vit"]) | ("model", ["mlp"]) | ("data", ["cifar10"]) => "mlp-cifar10",
        ("data", ["images"]) | ("augment", _) => "mlp-images",
        ("data", ["shards"]) => "nanogpt-145m",
        ("data", ["text"]) => "gpt-shakespeare",
        _ => "gpt-play",
    };
    let mut settings = Vec::new();
    match (section, &kinds[..]) {
        ("data", [kind @ ("cifar100" | "idx" | "tensors")]) => {
            settings.push(format!("data={{ kind = \"{kind}\", path = \"x\" }}"));
        }
        ("model", ["vit"]) => settings.push(VIT.into()),
        ("averaging", [kind]) => {
            let averaging = format!("averaging={{ kind = \"{kind}\", {key} = {value} }}");
            return said(base, &[averaging], full);
        }
        ("teacher", _) => {
            let teacher = format!("teacher={{ models = [\"x\"], {key} = {value} }}");
            return said(base, &[teacher], full);
        }
        ("optimizer" | "rates" | "train.schedule", [kind]) => {
            settings.push(format!("{section}={{ kind = \"{kind}\" }}"));
        }
        ("lipschitz", _) if key == "effort" => {
            let goal = "target = 2.0, by = \"certificate\"";
            return said(base, &[format!("lipschitz={{ {goal}, {key} = {value} }}")], full);
        }
        ("groups", _) => {
            let group = format!("groups=[{{ pattern = \"*\", {key} = {value} }}]");
            return said(base, &[group], full);
        }
        ("model.stages", [preset]) => {
            let sizes: &[(&str, &str)] = match *preset {
                "convnet" => &[("channels", "8"), ("patch", "2"), ("layers", "1"), ("kernel", "3")],
                _ => &[("heads", "2"), ("head_dim", "8"), ("layers", "1")],
            };
            let of = |(name, size): &(&str, &str)| {
                format!("{name} = {}", if *name == key { value } else { size })
            };
            let stage = sizes.iter().map(of).collect::<Vec<_>>().join(", ");
            return said(base, &[format!("model.stages=[{{ {stage} }}]")], full);
        }
        ("model.attention", _) => {
            let all = [("heads", "4"), ("share", "0.5"), ("reach", "8.0"), ("contents", "0.1")];
            let of = |(name, size): (&str, &str)| {
                format!("{name} = {}", if name == key { value } else { size })
            };
            let attention = all.map(of).join(", ");
            return said(base, &[format!("model.attention={{ {attention} }}")], full);
        }
        ("optimizer.warmup", _) => {
            let warmup = format!("optimizer.warmup={{ from = 0.5, steps = 1, {key} = {value} }}");
            return said(
                base,
                &[warmup
                    .replace(&format!("{key} = 0.5, "), "")
                    .replace(&format!("{key} = 1, "), "")],
                full,
            );
        }
        ("constraint", _) if key == "decay" => {
            settings.push("constraint={ method = \"weight_decay\" }".to_string());
        }
        _ => {}
    }
    settings.push(format!("{full}={value}"));
    said(base, &settings, full)
}

fn said(base: &str, settings: &[String], full: &str) -> Option<String> {
    let text = preset::text(base)?;
    let error = match Config::parse(text, settings) {
        Ok(config) => config.recipe().check().err().map(|error| error.to_string())?,
        Err(error) => error.to_string(),
    };
    if error.contains("unknown field") {
        return None;
    }
    let key = full.rsplit('.').next().unwrap_or(full);
    if !error.contains(key) {
        return None;
    }
    let after = |mark: &str| Some(error.split_once(mark)?.1.trim().to_string());
    let range = after("must be ").or_else(|| after("; ")).or_else(|| after("wants "))?;
    // The column before says what it is.
    let range = range.strip_prefix("a whole number ").unwrap_or(&range);
    Some(cell(if range == "of 0 or above" { "from 0" } else { range }))
}
