"""Short made-up news in four classes: a lexicon of topic words, and a grammar all classes share.

Only the topic words tell the class. Each class has two halves of them: `train` and `test` draw from
SEEN, `transfer` from UNSEEN, so whoever does well on `transfer` knew those words beforehand.
"""

import re

import numpy as np

CLASSES = ("politics", "economy", "sport", "entertainment")
PARTS = ("train", "test", "transfer")
TEXTS_PER_PART = 400
NOISE = 0.2      # the share of texts that also mention a word of another class

_SLOTS = ("role", "place", "thing", "verb", "adjective")


def _words(role, place, thing, verb, adjective):
    lists = (role, place, thing, verb, adjective)
    return {slot: tuple(words.split()) for slot, words in zip(_SLOTS, lists, strict=True)}


SEEN = {
    "politics": _words(
        "minister senator ambassador president mayor diplomat",
        "parliament embassy senate ministry palace tribunal",
        "treaty election law vote campaign referendum constitution coalition republic sanction",
        "ratified vetoed abolished negotiated enacted",
        "political diplomatic federal presidential civic"),
    "economy": _words(
        "banker investor trader accountant economist merchant",
        "bank market factory warehouse shop mill",
        "profit debt price export tax loan currency budget wage inflation",
        "invested purchased financed sold exported",
        "economic financial industrial commercial profitable"),
    "sport": _words(
        "goalkeeper coach sprinter boxer champion referee",
        "stadium gymnasium racetrack rink clubhouse ballpark",
        "match goal tournament medal race penalty trophy league football tennis",
        "scored kicked tackled dribbled outran",
        "athletic olympic muscular unbeaten offside"),
    "entertainment": _words(
        "actor singer dancer comedian violinist painter",
        "theater cinema gallery studio museum auditorium",
        "film song concert comedy novel drama melody album costume poem",
        "sang filmed painted danced rehearsed",
        "artistic dramatic lyrical comic theatrical"),
}

# No stem of these stands in SEEN, so that pieces of a word give nothing away either.
UNSEEN = {
    "politics": _words(
        "chancellor governor congressman premier monarch delegate",
        "congress consulate legislature courthouse cabinet assembly",
        "statute ballot decree alliance amendment regime government democracy policy mandate",
        "repealed outlawed proclaimed annulled endorsed",
        "legislative partisan sovereign imperial governmental"),
    "economy": _words(
        "broker lender manufacturer employer retailer shareholder",
        "refinery brokerage supermarket bazaar foundry storehouse",
        "dividend mortgage tariff revenue salary bond invoice commodity recession credit",
        "borrowed repaid insured leased auctioned",
        "fiscal monetary corporate insolvent wholesale"),
    "sport": _words(
        "wrestler umpire swimmer jockey cyclist skier",
        "fairway coliseum infield grandstand paddock bullring",
        "marathon relay cricket rugby hockey knockout playoff wicket touchdown hurdle",
        "volleyed lobbed batted bowled hurled",
        "sporting equestrian agile aerobic winless"),
    "entertainment": _words(
        "musician playwright pianist magician clown soprano",
        "playhouse circus cabaret discotheque ballroom carnival",
        "movie symphony ballad tragedy script sonata portrait sculpture sequel orchestra",
        "composed sculpted recited choreographed serenaded",
        "musical orchestral choral animated satirical"),
}

_SHARED = {
    "name": """Anna Peter Maria Thomas Helen Victor Clara Daniel Ruth Martin Irene Samuel Laura
        Oscar Nora Felix Julia Simon Edith Hugo""".split(),
    "surname": """Keller Novak Brandt Osei Lindgren Moreau Tanaka Whitlock Duarte Haddad Petrov
        Quinn Varga Ellison Okafor Romano Sandoval Thorne""".split(),
    "town": """Milford Ashbury Velden Norcross Tarrow Lisbourne Kestwick Orvane Halden Pellmore
        Rosgate Dunmere Sarno Wexley""".split(),
    "day": """Monday Tuesday Wednesday Thursday Friday Saturday Sunday""".split(),
    "count": "two three four five six seven eight nine ten twelve twenty forty".split(),
    "span": "days weeks months years".split(),
    "mood": "quiet long sudden strange careful cold late bright heavy simple".split(),
    "object": """letter morning bridge weather window road river journey garden train photograph
        storm lamp kitchen street""".split(),
    "told": "said explained wrote repeated admitted thought remembered noticed".split(),
}

_FRAMES = (
    "The {role} from {town} {told} on {day} that the {thing} had come after a {mood} wait.",
    "The {adjective} {thing} in {town} surprised everyone who had waited for {count} {span}.",
    "{name} {surname} {verb} the {thing} on {day} and then left {town} without a word.",
    "On {day} the {role} {verb} it again, and {name} {surname} watched from the {object}.",
    "Outside the {place} in {town} people spoke about the {thing} for {count} {span}.",
    "After {count} {span} the {role} came back to the {place} with a {mood} smile.",
    "{name} {surname}, the {adjective} {role} of {town}, {told} that nothing had changed.",
    "A {mood} {day} for the {role}: the {thing} was over within {count} minutes.",
    "Nobody in the {place} {told} on {day} why it had been so {adjective}.",
    "The {thing}, {name} {surname} {told}, is the first in {town} for {count} {span}.",
    "They {verb} it near the {place}, as they had done for {count} {span}.",
    "What the {role} {told} about the {thing} was read aloud in {town} on {day}.",
)

_DISTRACTORS = (
    "The {object} near {town} was closed on {day}.",
    "It was a {mood} {day}, {name} {surname} {told}.",
    "There was a {mood} {object}, and little else to see.",
    "{name} {surname} could not be reached for {count} {span}.",
    "People in {town} still remember the {mood} {object}.",
)

_NOISE_FRAMES = (
    "Somebody also {told} a few words about the {thing}.",
    "The {role} next door had no part in it.",
    "All this happened not far from the {place}.",
    "It was not the {thing} that brought them together.",
)


def _pick(rng, choices):
    return choices[int(rng.integers(len(choices)))]


def _sentence(rng, frame, lexicon, used):
    """A frame, a class's topic words -> the sentence; its topic words join `used`, none twice."""
    def fill(match):
        slot = match[1]
        if slot in _SHARED:
            return _pick(rng, _SHARED[slot])
        word = _pick(rng, [word for word in lexicon[slot] if word not in used])
        used.append(word)
        return word

    text = re.sub(r"\{(\w+)\}", fill, frame)
    return text[0].upper() + text[1:]


def _text(rng, half, label):
    """Half of the lexicon, a class -> 1-3 sentences, 12-35 words, 2-4 of them topic words."""
    while True:
        used = []
        frames = [_pick(rng, _FRAMES) for _ in range(1 + int(rng.integers(2)))]
        if rng.random() < 0.4:
            frames.append(_pick(rng, _DISTRACTORS))
        sentences = [_sentence(rng, frame, half[label], used) for frame in frames]
        topics = len(used)
        if rng.random() < NOISE:
            other = _pick(rng, [name for name in CLASSES if name != label])
            noise = _sentence(rng, _pick(rng, _NOISE_FRAMES), half[other], used)
            # In place of the last sentence where there are three, so that three stay the most.
            sentences = sentences[:2] + [noise]
        order = rng.permutation(len(sentences))
        text = " ".join(sentences[i] for i in order)
        if len(set(frames)) == len(frames) and 2 <= topics <= 4 and 12 <= len(text.split()) <= 35:
            return text


def generate(part: str, seed: int = 0) -> tuple[list[str], list[str]]:
    """"train", "test" or "transfer", a seed -> 400 texts and their class names, a hundred a class.

    No text stands twice in the three parts of a seed. Raises ValueError for another part.
    """
    if part not in PARTS:
        raise ValueError(f"unknown part {part!r}; known: {', '.join(PARTS)}")
    rng = np.random.Generator(np.random.PCG64(seed))
    seen: set[str] = set()
    for name in PARTS[:PARTS.index(part) + 1]:      # earlier parts too, to keep off their texts
        half = UNSEEN if name == "transfer" else SEEN
        texts: list[str] = []
        labels: list[str] = []
        while len(texts) < TEXTS_PER_PART:
            label = CLASSES[len(texts) % len(CLASSES)]
            text = _text(rng, half, label)
            if text not in seen:
                seen.add(text)
                texts.append(text)
                labels.append(label)
        order = rng.permutation(len(texts))
    return [texts[i] for i in order], [labels[i] for i in order]
