"""What a corpus holds and what may go wrong with it: counts, rare types, spans and tokens that get lost, duplicates."""

from collections import Counter, defaultdict

from fastloss.ner.data import Corpus, Sentence, Span, count_types, surfaces, types_of
from fastloss.ner.encode import EncodedSentences
from fastloss.ner.train import Settings, make_tokenizer

# spaCy's `debug data` warns below as many mentions, too.
RARE = 50


def inspect_corpus(corpus: Corpus, settings: Settings) -> str:
    """A table of counts per type and part, and a sentence for each thing worth knowing."""
    lines = [*count_table(corpus), ""]
    tokenizer = make_tokenizer(settings, corpus.train)
    for part, sentences in corpus._asdict().items():
        encoded = EncodedSentences(sentences, tokenizer, settings.max_length, types_of(*corpus))
        lines += [f"{part}: {fact}." for fact in [*describe(sentences), *describe_tokens(encoded, settings)]]
    return "\n".join([*lines, *compare_parts(corpus)])


def count_table(corpus: Corpus) -> list[str]:
    counts = [column for part in corpus for column in count_types(part)]
    width = max(12, *(len(type_) + 2 for type_ in types_of(*corpus)))
    rows = [[type_, *(str(column[type_]) for column in counts)] for type_ in types_of(*corpus)]
    rows.append(["all", *(str(column.total()) for column in counts)])
    header = ["type", "train distinct", "train mentions", "dev distinct", "dev mentions"]
    return [row[0].ljust(width) + "".join(cell.rjust(16) for cell in row[1:]) for row in [header, *rows]]


def describe(sentences: list[Sentence]) -> list[str]:
    """Sizes, ambiguity, and spans in one another's way."""
    characters = sum(len(sentence.text) for sentence in sentences)
    longest = max(len(sentence.text) for sentence in sentences)
    empty = sum(not sentence.text for sentence in sentences)
    types = defaultdict(set)
    for sentence in sentences:
        for type_, surface in surfaces(sentence):
            types[surface].add(type_)
    ambiguous = sum(len(found) > 1 for found in types.values())
    nested, overlapping, edges = crossings(sentences)
    facts = [
        f"{len(sentences)} sentences, {characters} characters, the longest {longest}",
        f"{len(types)} distinct surfaces, {ambiguous} of several types",
    ]
    if nested or overlapping or edges:
        facts.append(
            f"{nested} nested pairs of spans, {overlapping} that overlap otherwise, {edges} that share an edge"
        )
    return facts + ([f"{empty} empty texts"] if empty else [])


def crossings(sentences: list[Sentence]) -> tuple[int, int, int]:
    """Pairs of spans that nest, that overlap without nesting, and that share a start or an end."""

    def nest(a: Span, b: Span) -> bool:
        return (a.start <= b.start and b.end <= a.end) or (b.start <= a.start and a.end <= b.end)

    pairs = [(a, b) for s in sentences for i, a in enumerate(s.spans) for b in s.spans[i + 1 :]]
    crossing = [(a, b) for a, b in pairs if a.start <= b.end and b.start <= a.end]
    nested = sum(nest(a, b) for a, b in crossing)
    return nested, len(crossing) - nested, sum(a.start == b.start or a.end == b.end for a, b in crossing)


def describe_tokens(encoded: EncodedSentences, settings: Settings) -> list[str]:
    spans = sum(len(sentence.spans) for sentence in encoded.sentences)
    held = sum(
        len(found.intersection(s.spans)) for s, found in zip(encoded.sentences, encoded.round_trip(), strict=True)
    )
    pieces = Counter(index for index, _ in encoded.origins)
    cut = sum(count > 1 for count in pieces.values())
    facts = [f"{encoded.unknown_share():.2%} of the tokens are unknown to the tokenizer"]
    if cut:
        facts.append(f"{cut} texts are longer than {settings.max_length} tokens and are cut into pieces")
    if held < spans:
        facts.append(
            f"{spans - held} of {spans} spans are lost on the way to two pointers and back "
            "(nested, crossing, inside a token, or cut)"
        )
    return facts


def compare_parts(corpus: Corpus) -> list[str]:
    """What is rare, missing or twice."""
    train, dev = (count_types(part)[1] for part in corpus)
    rare = [f"{type_} ({train[type_]})" for type_ in types_of(*corpus) if train[type_] < RARE]
    unmeasured = [type_ for type_ in types_of(corpus.train) if not dev[type_]]
    texts, patterns = {s.text for s in corpus.train}, {pattern(s) for s in corpus.train}
    same = sum(s.text in texts for s in corpus.dev)
    alike = sum(pattern(s) in patterns for s in corpus.dev)
    count = len(corpus.dev)
    facts = [
        f"{unseen_share(corpus):.1%} of dev's mentions have a surface that is no entity of train.",
        f"{same} of dev's {count} sentences are in train word for word, "
        f"{alike} ({alike / count:.0%}) outside the mentions.",
    ]
    if rare:
        facts.append(f"Fewer than {RARE} mentions in train: {', '.join(rare)}.")
    if unmeasured:
        facts.append(f"In train, but not in dev: {', '.join(unmeasured)}.")
    return facts


def pattern(sentence: Sentence) -> str:
    """The sentence with a type in place of each mention."""
    text, end = "", 0
    for span in sentence.spans:
        if span.start >= end:
            text += sentence.text[end : span.start] + f"\0{span.type}\0"
            end = span.end + 1
    return text + sentence.text[end:]


def unseen_share(corpus: Corpus) -> float:
    """The share of dev's mentions whose surface never occurs as an entity in train."""
    seen = {surface for sentence in corpus.train for _, surface in surfaces(sentence)}
    mentions = [sentence.text[span.start : span.end + 1] for sentence in corpus.dev for span in sentence.spans]
    return sum(surface not in seen for surface in mentions) / max(len(mentions), 1)
