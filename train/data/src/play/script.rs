//! The grammar of the plays: acts and scenes, who is on stage, whose turn it is, what they say.
//!
//! What a model can learn, from near to far: spelling; agreement of determiner, noun and verb;
//! which words belong to the scene's topic; who may speak next and whom they can address, settled
//! where the scene begins; the count of scenes and acts.

use super::grammar::Templates;
use super::words::{CASTS, CRIES, KINDS, LINKS, MODALS, NAMES, TIMES, TOPICS, Topic, VERBS};

/// Acts of a play and scenes of an act, at most.
const ACTS: usize = 5;
const SCENES: usize = 4;

/// The rules, the play first.
pub(super) fn rules() -> Templates {
    let mut script = Script(Vec::new());
    script.frame();
    for topic in &TOPICS {
        for (cast, members) in CASTS.iter().enumerate() {
            script.dialogue(topic.name, cast, members);
        }
        script.sentences(topic.name);
        script.clauses(topic.name);
        script.nouns(topic);
    }
    script.shared_words();
    script.0
}

struct Script(Templates);

impl Script {
    fn rule<T: ToString>(
        &mut self,
        name: impl ToString,
        alternatives: impl IntoIterator<Item = (u32, T)>,
    ) {
        let alternatives = alternatives
            .into_iter()
            .map(|(weight, template)| (weight, template.to_string()))
            .collect();
        self.0.push((name.to_string(), alternatives));
    }

    /// A rule that is a list of words, the first the most frequent.
    fn words<T: ToString>(&mut self, name: impl ToString, words: impl IntoIterator<Item = T>) {
        self.rule(name, words.into_iter().zip(0..).map(|(word, rank)| (60 / (rank + 3), word)));
    }

    /// Title, acts, scenes, their headings.
    fn frame(&mut self) {
        self.rule("play", [(1, "THE {kind} OF {hero}\n\nACT 1\n\n{scene 1.1}")]);
        self.words("kind", KINDS);
        self.words("hero", NAMES.map(str::to_uppercase));
        for act in 1..=ACTS {
            for scene in 1..=SCENES {
                self.rule(
                    format!("scene {act}.{scene}"),
                    [(1, format!("Scene {scene}. A {{stage}}{{then {act}.{scene}}}"))],
                );
                let mut then = Vec::new();
                if scene < SCENES {
                    then.push((
                        3,
                        format!("\n\nScene {}. A {{stage}}{{then {act}.{}}}", scene + 1, scene + 1),
                    ));
                }
                if act < ACTS && scene > 1 {
                    then.push((1, format!("\n\nACT {}\n\n{{scene {}.1}}", act + 1, act + 1)));
                }
                if act == ACTS && scene > 1 {
                    then.push((1, "\n\nTHE END\n\n\n".to_string()));
                }
                self.rule(format!("then {act}.{scene}"), then);
            }
        }
        // Every setting belongs to one topic and every topic admits every cast.
        let settings = TOPICS.iter().flat_map(|t| {
            t.settings.iter().map(move |s| (1, format!("{s}.\n{{enter {}}}", t.name)))
        });
        self.rule("stage", settings.collect::<Vec<_>>());
    }

    /// A scene between `members`: entrance, speeches in turn, exit.
    fn dialogue(&mut self, topic: &str, cast: usize, members: &[usize]) {
        if cast == 0 {
            let enter = |(cast, members): (usize, &&[usize])| {
                let names: Vec<_> = members.iter().map(|m| NAMES[*m]).collect();
                let (last, others) = names
                    .split_last()
                    .map_or(("", [].as_slice()), |(last, others)| (*last, others));
                (1, format!("[Enter {} and {last}]{{first {topic}.{cast}}}", others.join(", ")))
            };
            self.rule(
                format!("enter {topic}"),
                CASTS.iter().enumerate().map(enter).collect::<Vec<_>>(),
            );
        }
        let speech =
            |m: &usize| format!("\n\n{}:\n{{speech {topic}.{cast}.{m}}}", NAMES[*m].to_uppercase());
        self.rule(format!("first {topic}.{cast}"), members.iter().map(|m| (1, speech(m))));
        for me in members {
            let others = || members.iter().filter(move |m| *m != me);
            let share = if members.len() == 2 { 2 } else { 1 };
            let next = format!("{{next {topic}.{cast}.{me}}}");
            let call = |m: &usize| {
                (share, format!("{}, {{clause {topic}}}{{end {topic}}}{next}", NAMES[*m]))
            };
            let plain = (10, format!("{{sentence {topic}}}{next}"));
            self.rule(format!("speech {topic}.{cast}.{me}"), others().map(call).chain([plain]));
            let turn = || others().map(|m| (5 * share, speech(m)));
            let aside = format!("\n\n({{direction {topic}}}){{turn {topic}.{cast}.{me}}}");
            let more = [
                (12, format!(" {{sentence {topic}}}{next}")),
                (1, aside),
                (1, "\n\n[Exeunt]".to_string()),
            ];
            self.rule(format!("next {topic}.{cast}.{me}"), turn().chain(more));
            self.rule(format!("turn {topic}.{cast}.{me}"), turn());
        }
    }

    fn sentences(&mut self, t: &str) {
        let sentence = [
            (8, format!("{{Clause {t}}}{{end {t}}}")),
            (5, format!("{{question {t}}}")),
            (2, format!("If {{clause {t}}}, {{clause {t}}}{{end {t}}}")),
            (1, format!("When {{clause {t}}}, {{clause {t}}}{{end {t}}}")),
            (1, format!("Let {{one {t}}} {{plain}} {{object {t}}}{{end {t}}}")),
            (2, format!("{{cry}}, {{clause {t}}}{{end {t}}}")),
            (1, format!("As they say: {{saying {t}}}")),
        ];
        self.rule(format!("sentence {t}"), sentence);
        let question = [
            (3, format!("Why do you {{plain}} {{object {t}}}{{ask {t}}}")),
            (3, format!("Who {{does {t}}}{{ask {t}}}")),
            (2, format!("Where is {{one {t}}}{{ask {t}}}")),
            (1, format!("Where are {{many {t}}}{{ask {t}}}")),
            (2, format!("Have you {{done}} {{object {t}}}{{ask {t}}}")),
            (2, format!("Will you {{plain}} {{object {t}}}{{ask {t}}}")),
            (1, format!("Is {{one {t}}} {{quality {t}}}{{ask {t}}}")),
        ];
        self.rule(format!("question {t}"), question);
        self.rule(format!("ask {t}"), [(4, "?".to_string()), (1, format!(" {{moment {t}}}?"))]);
        let end = [
            (9, ".".to_string()),
            (2, "!".to_string()),
            (4, format!(" {{moment {t}}}.")),
            (3, format!(", {{link}} {{clause {t}}}{{end {t}}}")),
        ];
        self.rule(format!("end {t}"), end);
        self.rule(
            format!("moment {t}"),
            [(3, "{time}".to_string()), (1, format!("{{place {t}}}"))],
        );
    }

    fn clauses(&mut self, t: &str) {
        let subject = |capital: bool| {
            let case = |word: &str| {
                if capital { word[..1].to_uppercase() + &word[1..] } else { word.to_string() }
            };
            let (one, many) =
                (if capital { "One" } else { "one" }, if capital { "Many" } else { "many" });
            [
                (5, format!("I {{do I {t}}}")),
                (3, format!("{} {{do you {t}}}", case("you"))),
                (2, format!("{} {{do you {t}}}", case("we"))),
                (5, format!("{{{one} {t}}} {{does {t}}}")),
                (2, format!("{{{many} {t}}} {{do you {t}}}")),
            ]
        };
        self.rule(format!("clause {t}"), subject(false));
        self.rule(format!("Clause {t}"), subject(true));
        for (rule, verb, have, be) in [
            ("do I", "plain", "have", "am"),
            ("do you", "plain", "have", "are"),
            ("does", "does", "has", "is"),
        ] {
            let predicate = [
                (6, format!("{{{verb}}} {{object {t}}}")),
                (3, format!("{{modal}} {{plain}} {{object {t}}}")),
                (2, format!("{have} {{done}} {{object {t}}}")),
                (2, format!("{be} {{quality {t}}}")),
            ];
            self.rule(format!("{rule} {t}"), predicate);
        }
        let object = [
            (6, format!("{{one {t}}}")),
            (3, format!("{{many {t}}}")),
            (1, "it".to_string()),
            (1, "them".to_string()),
            (1, "nobody".to_string()),
        ];
        self.rule(format!("object {t}"), object);
    }

    fn nouns(&mut self, topic: &Topic) {
        let t = topic.name;
        let determiners = [
            ("one", [(6, "the"), (3, "my"), (3, "your"), (1, "this"), (1, "every")]),
            ("many", [(3, "those"), (2, "our"), (2, "these"), (1, "two"), (1, "such")]),
        ];
        for (number, words) in determiners {
            let phrase =
                |(weight, word): (u32, &str)| (weight, format!("{word} {{{number} bare {t}}}"));
            self.rule(format!("{number} {t}"), words.map(phrase));
            let capital = |(weight, word): (u32, &str)| {
                phrase((weight, &(word[..1].to_uppercase() + &word[1..])))
            };
            self.rule(
                format!("{}{} {t}", number[..1].to_uppercase(), &number[1..]),
                words.map(capital),
            );
            let noun = format!("{{thing {t}}}{}", if number == "many" { "s" } else { "" });
            self.rule(
                format!("{number} bare {t}"),
                [(3, noun.clone()), (1, format!("{{quality {t}}} {noun}"))],
            );
        }
        self.words(format!("thing {t}"), topic.things);
        self.words(format!("quality {t}"), topic.qualities);
        self.words(format!("place {t}"), topic.places);
        self.words(format!("direction {t}"), topic.directions);
        self.words(format!("saying {t}"), topic.sayings);
    }

    fn shared_words(&mut self) {
        self.words("plain", VERBS.map(|verb| verb.0));
        self.words("does", VERBS.map(|verb| verb.1));
        self.words("done", VERBS.map(|verb| verb.2));
        self.words("modal", MODALS);
        self.words("time", TIMES);
        self.words("cry", CRIES);
        self.words("link", LINKS);
    }
}
