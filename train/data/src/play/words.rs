//! The words of the plays. In every list the first words are the most frequent.

/// Who speaks, as in the dialogue; headings have them in capitals.
pub(super) const NAMES: [&str; 12] = [
    "Orla", "Bram", "Tessaly", "Hewin", "Margery", "Dunstan", "Pell", "Quillon", "Wynne", "Lucan",
    "Adela", "Corvin",
];

/// Who meets whom, by place in [`NAMES`].
pub(super) const CASTS: [&[usize]; 14] = [
    &[0, 1],
    &[2, 3],
    &[0, 4, 5],
    &[1, 6],
    &[7, 8],
    &[2, 9, 10],
    &[11, 0],
    &[4, 3],
    &[5, 6, 8],
    &[9, 7],
    &[1, 10],
    &[11, 2, 7],
    &[8, 4],
    &[3, 9, 0],
];

/// What a scene is about.
pub(super) struct Topic {
    /// Its name in rules.
    pub name: &'static str,
    /// Where a scene is set, after `A` in a heading.
    pub settings: &'static [&'static str],
    /// Where something happens.
    pub places: &'static [&'static str],
    /// Things, singular; `s` makes them plural.
    pub things: &'static [&'static str],
    /// What things are like.
    pub qualities: &'static [&'static str],
    /// What the stage shows or sounds.
    pub directions: &'static [&'static str],
    /// Sayings, each a sentence.
    pub sayings: &'static [&'static str],
}

/// The topics.
pub(super) const TOPICS: [Topic; 5] = [
    Topic {
        name: "sea",
        settings: &[
            "harbour wall at low tide",
            "narrow deck",
            "net loft",
            "lamp room above the bay",
        ],
        places: &["at the quay", "under the pier", "beyond the reef", "in the hold"],
        things: &[
            "ship", "tide", "sail", "anchor", "captain", "gull", "lantern", "rope", "oar",
            "current", "mast", "pilot",
        ],
        qualities: &[
            "salt", "drowned", "tarred", "restless", "grey", "deep", "leaking", "becalmed",
        ],
        directions: &[
            "A ship's bell, far off.",
            "Wind. The lamp goes out.",
            "A rope falls from above.",
        ],
        sayings: &[
            "A wet rope holds no grudge.",
            "The gull eats first and thanks last.",
            "No chart was ever drawn by drowning.",
            "Low water shows whose boots are clean.",
        ],
    },
    Topic {
        name: "court",
        settings: &[
            "throne hall before noon",
            "gallery hung with maps",
            "private chamber",
            "stair behind the chapel",
        ],
        places: &["in the council", "behind the curtain", "on the stair", "at the gate"],
        things: &[
            "crown",
            "letter",
            "seal",
            "chancellor",
            "promise",
            "envoy",
            "throne",
            "rumour",
            "page",
            "ring",
            "treason",
            "guard",
        ],
        qualities: &["royal", "gilded", "false", "patient", "sworn", "idle", "jealous", "nameless"],
        directions: &[
            "Trumpets within.",
            "A door closes softly.",
            "They kneel as the banner passes.",
        ],
        sayings: &[
            "A crown is heaviest on the way down.",
            "The curtain has heard more than the king.",
            "Wax remembers every thumb.",
            "He who bows low may be looking for coins.",
        ],
    },
    Topic {
        name: "field",
        settings: &[
            "barn in late summer",
            "ditch between two farms",
            "hillside with hives",
            "kitchen garden",
        ],
        places: &["by the hedge", "in the orchard", "near the well", "across the furrow"],
        things: &[
            "plough",
            "apple",
            "shepherd",
            "scythe",
            "lamb",
            "miller",
            "fence",
            "barrel",
            "crow",
            "neighbour",
            "seed",
            "kettle",
        ],
        qualities: &[
            "ripe", "muddy", "stubborn", "golden", "hungry", "blighted", "plain", "honest",
        ],
        directions: &["A dog barks twice.", "They shake the tree.", "Rain begins."],
        sayings: &[
            "Rain asks nobody's leave.",
            "The fence knows both farmers.",
            "One crow is company and two are council.",
            "Never thank a scythe in June.",
        ],
    },
    Topic {
        name: "forge",
        settings: &[
            "smithy by night",
            "clockmaker's back room",
            "cellar full of bells",
            "workshop with its shutters closed",
        ],
        places: &["at the anvil", "beside the furnace", "among the ashes", "below the wheel"],
        things: &[
            "hammer",
            "blade",
            "spark",
            "bell",
            "apprentice",
            "chain",
            "engine",
            "lock",
            "master",
            "nail",
            "mould",
            "debt",
        ],
        qualities: &[
            "molten",
            "crooked",
            "tempered",
            "dull",
            "iron",
            "unfinished",
            "silent",
            "bright",
        ],
        directions: &[
            "Three blows of a hammer.",
            "The fire is covered.",
            "A wheel turns by itself.",
        ],
        sayings: &[
            "Cold iron keeps no secrets.",
            "Every lock was once an open door.",
            "The spark does not ask who swept the floor.",
            "Strike late and you are only making noise.",
        ],
    },
    Topic {
        name: "road",
        settings: &[
            "crossroads in fog",
            "tent behind the lines",
            "toll bridge",
            "room at a poor inn",
        ],
        places: &["past the milestone", "over the bridge", "inside the camp", "along the ridge"],
        things: &[
            "soldier", "drum", "horse", "banner", "stranger", "coin", "cart", "beggar", "sword",
            "song", "widow", "boot",
        ],
        qualities: &[
            "weary",
            "borrowed",
            "distant",
            "ragged",
            "loyal",
            "wounded",
            "lucky",
            "forgotten",
        ],
        directions: &["Drums, then nothing.", "A cart passes.", "Someone sings in the dark."],
        sayings: &[
            "The road has no opinion of boots.",
            "A borrowed horse is always tired.",
            "Victory walks home like the rest.",
            "Ask the beggar which house is kind.",
        ],
    },
];

/// Verbs with an object: plain form, third person, participle.
pub(super) const VERBS: [(&str, &str, &str); 22] = [
    ("know", "knows", "known"),
    ("fear", "fears", "feared"),
    ("love", "loves", "loved"),
    ("leave", "leaves", "left"),
    ("carry", "carries", "carried"),
    ("follow", "follows", "followed"),
    ("break", "breaks", "broken"),
    ("bury", "buries", "buried"),
    ("curse", "curses", "cursed"),
    ("hide", "hides", "hidden"),
    ("guard", "guards", "guarded"),
    ("trust", "trusts", "trusted"),
    ("mend", "mends", "mended"),
    ("find", "finds", "found"),
    ("sell", "sells", "sold"),
    ("forgive", "forgives", "forgiven"),
    ("remember", "remembers", "remembered"),
    ("burn", "burns", "burnt"),
    ("praise", "praises", "praised"),
    ("weigh", "weighs", "weighed"),
    ("betray", "betrays", "betrayed"),
    ("envy", "envies", "envied"),
];

/// Before a plain form.
pub(super) const MODALS: [&str; 6] = ["must", "will", "cannot", "would", "should", "never"];

/// When something happens.
pub(super) const TIMES: [&str; 10] = [
    "tonight",
    "again",
    "at dawn",
    "too late",
    "before winter",
    "in silence",
    "once more",
    "with both hands",
    "for seven years",
    "without a word",
];

/// Before a clause, at the beginning of a sentence.
pub(super) const CRIES: [&str; 9] =
    ["Alas", "Come", "No", "Indeed", "Hush", "Well", "Perhaps", "Truly", "Enough"];

/// Between two clauses.
pub(super) const LINKS: [&str; 5] = ["and", "but", "for", "yet", "so"];

/// In the titles of plays.
pub(super) const KINDS: [&str; 8] =
    ["TRAGEDY", "COMEDY", "HISTORY", "TRIAL", "WEDDING", "EXILE", "LEDGER", "LAST WINTER"];
