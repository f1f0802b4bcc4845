"""Made-up memories, and for each a question it answers: varied, seeded, none twice.

A memory is one fact about somebody, told in one to three sentences (8 to 60 words), from templates whose words are drawn
by a seeded generator. The question shares the subject and little else, as questions do. Used by the load generators of
both engines, so that they work on the same texts.
"""

from __future__ import annotations

import random
from typing import NamedTuple


class Fact(NamedTuple):
    memory: str
    question: str


def _split(words: str) -> tuple[str, ...]:
    return tuple(words.split())


_WORDS: dict[str, tuple[str, ...]] = {
    "first": _split(
        "Ada Ben Clara Dmitri Elena Farid Grace Hiro Ines Jonas Kavya Liam Mara Nadia Omar Priya Quentin Rosa Samir Tessa "
        "Uma Viktor Wen Ximena Yusuf Zoe Amara Bruno Chiara Declan Esra Finn Gita Henrik Isla Jamal Keiko Lukas Mina"),
    "last": _split("Okafor Lindqvist Moreau Tanaka Alvarez Novak Haddad Petrov Keller Osei Rossi Banerjee Silva Jensen Kaya "
        "Murphy Nakamura Dubois Weiss Santos Ibrahim Larsen Costa Varga Singh Walsh Romano Fischer Mendes Aydin"),
    "place": _split(
        "Lisbon Oslo Kyoto Nairobi Montreal Tbilisi Valencia Edinburgh Cusco Ghent Hanoi Marrakesh Tallinn Zagreb "
        "Seville Bergen Accra Porto Ljubljana Quito Gdansk Palermo Aarhus Utrecht"),
    "food": (
        "green tea without milk", "sourdough with olive oil", "spicy noodle soup", "black coffee", "mushroom risotto",
        "lentil curry", "grilled sardines", "mango with sticky rice", "goat cheese salad", "pumpkin ravioli",
        "oat porridge with cinnamon", "roasted chickpeas", "cardamom buns", "miso aubergine", "lemon sorbet",
    ),
    "hobby": (
        "restoring old bicycles", "sea kayaking", "playing the cello", "growing tomatoes on the balcony", "night photography",
        "bouldering", "making pottery", "birdwatching at dawn", "learning Georgian", "baking rye bread", "fencing",
        "writing short stories", "building mechanical keyboards", "long-distance running", "mending clothes",
    ),
    "project": (
        "the billing migration", "the warehouse robot", "the onboarding portal", "the tide forecast", "the museum archive",
        "the grid simulator", "the payroll rewrite", "the clinic scheduler", "the seed catalogue", "the ferry timetable",
        "the translation memory", "the energy audit", "the search relaunch", "the customs interface",
    ),
    "tool": (
        "Postgres", "a shared spreadsheet", "Rust", "Kubernetes", "a paper notebook", "Terraform", "an old Perl script",
        "Grafana dashboards", "SQLite", "Ansible", "a Raspberry Pi", "message queues", "static site generators",
    ),
    "item": (
        "a blue enamel kettle", "a second-hand telescope", "noise-cancelling headphones", "a leather satchel",
        "a standing desk", "a folding canoe", "a vintage typewriter", "hiking boots", "an electric cargo bike",
        "a cast-iron pan", "a sewing machine", "a pocket dictionary", "a wool blanket",
    ),
    "pet": ("a grey cat", "two parrots", "an old greyhound", "a tortoise", "three hens", "a nervous beagle", "a rescue pony"),
    "relative": ("sister", "brother", "grandmother", "uncle", "daughter", "neighbour", "cousin", "best friend"),
    "month": _split("January February March April May June July August September October November December"),
    "day": _split("Monday Tuesday Wednesday Thursday Friday Saturday Sunday"),
    "reason": (
        "the old supplier raised its prices", "a flight was cancelled", "the doctor advised it", "the deadline moved",
        "the house was too loud", "the budget was cut by a third", "everybody voted for it", "it rained for a week",
        "the first attempt had failed", "an apprentice suggested it", "the contract was ending",
    ),
    "feeling": ("relieved", "proud", "worried", "curious", "exhausted", "delighted", "unconvinced", "hopeful"),
}  # fmt: skip

_FACTS: tuple[tuple[str, str], ...] = (
    ("{who} prefers {food} for breakfast on {day}s.", "What does {who} like to have in the morning?"),
    ("{who} moved to {place} in {month} {year} because {reason}.", "Why did {who} move house?"),
    ("{who} has taken up {hobby} and practises every {day}.", "What is {who}'s hobby these days?"),
    ("{who} leads {project} and reports to the board each {month}.", "Which piece of work is {who} in charge of?"),
    ("{who} decided to use {tool} for {project} after {reason}.", "What technology did {who} choose for {project}?"),
    ("{who} bought {item} for {number} euros at the market in {place}.", "How much did {who} pay for {item}?"),
    ("{who} has {pet} and cannot travel without finding a sitter first.", "Does {who} keep any animals?"),
    ("{who}'s {relative} lives in {place} and visits every {month}.", "Where does {who}'s {relative} live?"),
    ("{who} is allergic to hazelnuts and carries an injector since {year}.", "What must {who} avoid eating?"),
    (
        "{who} wants every report for {project} as a one-page table, never as slides.",
        "How should reports for {who} look?",
    ),
    (
        "{who} said the meeting about {project} was moved to {day} at {hour}.",
        "When is {who}'s meeting about {project}?",
    ),
    ("{who} felt {feeling} when {project} was finally released in {month}.", "How did {who} feel about the release?"),
    ("{who} owes a {relative} {number} euros for {item}.", "What debt does {who} have?"),
    ("{who} is learning to cook {food} from an old family recipe.", "Which dish is {who} trying to learn?"),
    ("{who} spent the summer of {year} in {place}, mostly {hobby}.", "Where was {who} in the summer of {year}?"),
    ("{who} keeps the spare key under {item} by the back door.", "Where is {who}'s spare key?"),
    ("{who} will not take calls before {hour} on {day}s.", "When should nobody ring {who}?"),
    ("{who} gave {item} to {who2} as a birthday present in {month}.", "What did {who2} get from {who}?"),
    ("{who} and {who2} have shared an office in {place} since {year}.", "Who works in the same room as {who}?"),
    ("{who} broke a wrist while {hobby} and was off work for {number} days.", "How was {who} injured?"),
)
_TAILS: tuple[str, ...] = (
    "",
    "",
    "",
    "It was mentioned in passing on {day} while we talked about {project}.",
    "{who2} was there too and agreed, although {reason}.",
    "The plan before that had been {hobby} in {place}, but {reason}.",
    "Please remember this for the next time we prepare {project}; it came up twice in {month} already.",
    "Nobody was surprised. Since {year} the same has been said of {who2}, who was {feeling} about it and asked for {tool}.",
)


def facts(count: int, seed: int) -> list[Fact]:
    """``count`` facts with pairwise different memories and pairwise different questions."""
    rng = random.Random(seed)
    made: list[Fact] = []
    memories: set[str] = set()
    questions: set[str] = set()
    while len(made) < count:
        words = {slot: rng.choice(choices) for slot, choices in _WORDS.items()}
        # A middle initial and a number keep a hundred thousand facts about people from running out of people.
        words["who"] = f"{words['first']} {rng.choice('ABCDEFGHIJKLMNOPRSTVW')}. {words['last']}"
        words["who2"] = f"{rng.choice(_WORDS['first'])} {rng.choice(_WORDS['last'])}"
        words["year"] = str(rng.randint(1994, 2025))
        words["number"] = str(rng.randint(3, 980))
        words["hour"] = f"{rng.randint(7, 19)}:{rng.choice(('00', '15', '30', '45'))}"
        template, question_template = rng.choice(_FACTS)
        memory = f"{template} {rng.choice(_TAILS)}".strip().format(**words)
        question = question_template.format(**words)
        if memory in memories or question in questions:
            continue
        memories.add(memory)
        questions.add(question)
        made.append(Fact(memory, question))
    return made
