"""Words for the items of a made world: one topic per cluster, each with a category, nouns and words of its own."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["TOPICS", "item_texts"]

TOPICS: tuple[tuple[str, str, str], ...] = (
    ("Kitchen > Kettles", "kettle teapot samovar boiler", "steam boil spout whistle pour brew enamel limescale"),
    ("Kitchen > Knives", "knife cleaver peeler sharpener", "blade slice chop steel edge carve handle whetstone"),
    ("Kitchen > Baking", "tin whisk rolling-pin mould", "dough bake oven cake flour crust pastry yeast"),
    ("Garden > Seeds", "seeds bulbs seedlings sprouts", "sow sprout bloom soil harvest tomato basil perennial"),
    ("Garden > Tools", "spade rake shears trowel", "dig prune hedge weed lawn root mulch compost"),
    (
        "Garden > Furniture",
        "bench hammock parasol lounger",
        "shade patio teak recline cushion weatherproof sun",
    ),
    ("Sport > Running", "shoes vest belt socks", "marathon pace sprint cushioning tempo stride trail sole"),
    ("Sport > Climbing", "harness rope carabiner helmet", "belay summit crag grip boulder anchor chalk ascent"),
    ("Sport > Swimming", "goggles fins cap kickboard", "pool lap dive chlorine freestyle buoyant snorkel splash"),
    (
        "Books > Mystery",
        "novel casebook thriller omnibus",
        "detective clue murder alibi suspect poison motive",
    ),
    ("Books > Travel", "guide atlas journal memoir", "map journey island border hostel itinerary temple harbour"),
    ("Books > Science", "primer handbook almanac essays", "quantum gene orbit fossil theorem neuron galaxy"),
    ("Games > Board", "game expansion puzzle dice", "dice token strategy turn board meeple rulebook victory"),
    (
        "Games > Video",
        "console controller headset cartridge",
        "pixel level boss multiplayer joystick quest score",
    ),
    ("Games > Building", "bricks blocks kit robot", "brick build model tower axle crane baseplate assemble"),
    ("Music > Strings", "guitar violin ukulele strings", "fret chord bow pluck tuning wood resonance capo"),
    ("Music > Keys", "piano synthesizer organ melodica", "octave pedal hammer keybed sustain oscillator filter scale"),
    ("Music > Drums", "drum cymbal sticks cajon", "beat rhythm snare groove cymbal stick tempo hi-hat"),
    ("Pets > Dogs", "leash bed bowl chew-toy", "bark fetch puppy collar walk treat kennel paw"),
    ("Pets > Cats", "scratcher litter tunnel feeder", "purr whisker claw kitten catnip climb nap mouse"),
    ("Pets > Fish", "aquarium pump gravel lamp", "tank gill coral algae reef oxygen tropical fin"),
    ("Home > Lighting", "lamp lantern chandelier sconce", "glow bulb dim shade watt warm ceiling switch"),
    ("Home > Textiles", "blanket curtain rug pillow", "cotton weave linen fringe wool soft thread drape"),
    ("Home > Storage", "shelf basket cabinet hook", "drawer stack tidy wardrobe hanger bracket compartment lid"),
)
"""Category, nouns for titles, words for texts; the part before ``>`` is the department."""

_MARKS = "Alder Birch Cedar Delta Ember Fjord Grove Haven Isola Juno Kestrel Lumen Mira Nova Orla Pico".split()
_KINDS = "classic compact deluxe light modern original simple small sturdy travel".split()
_COMMON = "new gift quality daily design colour set easy durable popular value best family make use good".split()


def item_texts(cluster_I: NDArray[np.int64], rng: np.random.Generator) -> tuple[list[str], list[str], list[str]]:
    """Titles, texts and categories of items; the words tell the cluster, and say nothing else."""
    titles, texts, categories = [], [], []
    for cluster in cluster_I.tolist():
        category, nouns, words = TOPICS[cluster]
        noun = rng.choice(nouns.split())
        titles.append(f"{rng.choice(_MARKS)} {rng.choice(_KINDS)} {noun}")
        own = rng.choice(words.split(), size=5, replace=False)
        common = rng.choice(_COMMON, size=4, replace=False)
        texts.append(f"{noun} {' '.join(rng.permutation(np.concatenate([own, common])))}")
        categories.append(category)
    return titles, texts, categories
