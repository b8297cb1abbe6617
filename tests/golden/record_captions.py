"""Records what pycocoevalcap 1.2 says of a few captions: tokens (Java), CIDEr, BLEU, ROUGE-L, METEOR (Java).

    pip install pycocoevalcap==1.2 && python tests/golden/record_captions.py

The captions below are our own. The result is tests/golden/captions_coco.json.
"""

import json
from pathlib import Path

from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer


# A prediction and its references; punctuation, clitics, quotes, numbers and empty captions as they occur.
CAPTIONS = [
    ("a black dog running along the beach", ["A black dog runs along the beach.", "The dog is running on wet sand.", "A dog, black and wet, runs by the sea"]),
    ("two children playing with a red ball", ["Two kids play with a red ball.", "Children in a yard throwing a ball.", "A boy and a girl are playing catch."]),
    ("a man's hat on a table", ["A man's hat lies on the table.", "The hat on the table isn't new.", "Somebody's hat, left on a table"]),
    ("a sign that says stop", ['A sign that says "STOP" in white letters.', "A red stop sign (with graffiti) at a corner.", "Stop sign at the corner of 5th Ave. and Main St."]),
    ("a well known tower in the city", ["The well-known tower at the city's center.", "A tall tower -- the oldest in the city.", "There's a tower in the middle of the city!"]),
    ("", ["An empty plate on a tray.", "A plate with nothing on it."]),
    ("a train", ["A long red train pulls into the station at 12:30 while people wait on the platform with their bags."]),
    ("a a a a a a", ["A cat.", "a cat and a cat and a cat"]),
    ("zebras grazing", ["Three men are sitting in a boat."]),
    ("a bowl of rice and broccoli", ["A bowl of rice and broccoli", "a bowl of rice and broccoli", "Rice and broccoli in a bowl."]),
    ("a plane flying over the mountains at sunset", ["A plane flies over mountains at sunset.", "An airplane is flying above some mountains; the sun is setting.", "A jet over the mountains in the evening light"]),
    ("people riding bicycles down the street", ["People are riding bikes down a street.", "A group of cyclists on the street.", "Some people on bicycles are riding down the street next to parked cars."]),
    ("a cat sleeping on a laptop", ["A cat is sleeping on a laptop computer.", "The cat can't keep its eyes open.", "cat on a laptop"]),
    ("a kitchen with a stove and a sink", ["A kitchen with a stove, a sink, and a refrigerator.", "This kitchen has wooden cabinets.", "The kitchen's sink is full of dishes."]),
    ("a woman holding an umbrella in the rain", ["A woman holds an umbrella in the rain.", "A lady with a blue umbrella walks through the rain.", "It's raining, and she's holding an umbrella."]),
    ("a bus parked next to a building", ["A double-decker bus is parked next to a building.", "The bus/coach is parked.", "A No. 9 bus in front of a brick building."]),
    ("a baby elephant standing next to its mother", ["A baby elephant stands next to its mother.", "Two elephants, a mother and her baby, in the grass.", "Elephants in the wild..."]),
    ("a pizza with cheese and tomatoes", ["A pizza with cheese & tomatoes.", "Half of a pizza costs $5.", "A 12-inch pizza, 1/2 eaten"]),
    ("a clock on the wall", ["A clock on a wall shows five o'clock.", "The wall has a clock on it.", "Wall clock, a.k.a. time piece"]),
    ("a surfer riding a wave in the ocean", ["A surfer rides a wave in the ocean.", "The man is surfing.", "A person on a surfboard rides a big wave in the U.S."]),
    ("a horse in a field", ["A horse stands in a field.", "The brown horse is eating grass in a field.", "horse in field"]),
    ("a boy wearing a blue shirt", ["A boy in a blue t-shirt.", "The boy wears a '80s style shirt.", "A boy who's wearing a blue shirt smiles."]),
    ("an old man reading a newspaper on a bench", ["An old man reads a newspaper on a park bench.", "A man is reading.", "An elderly gentleman sits on a bench reading the newspaper"]),
    ("a vase of flowers", ["A vase full of flowers sits on a window sill.", "Flowers in a glass vase.", "Roses?? In a vase!"]),
]
TEXTS = """\
It isn't here, don't you think?
can't won't shan't ain't cannot gonna gotta wanna gimme lemme
I'll you're we've he'd I'm she's
the dogs' bowls in the men's room
'tis 'twas the season
rock 'n' roll in the '80s and 1980's
hors d'oeuvres at five o'clock with D'Angelo O'Brien
a sign that says "stop" and one that says 'go' and ''wait'' and `no`
(in a park) [x] {y}
well-known tri-colored dog - and cat -- and bird
dog--cat dog—cat dog – cat
wait... what wait...what wait…
What?! What?? Wow!!! Oh.
$5 and $5.50 and €5 and 50% off
#4 jersey and number #23 and #hashtag and @user
4x4 truck 4-wheel drive 1,000 people 0.5 miles .5 miles -5 degrees 5-10 people
and/or red/white/blue w/o a dog
black & white R&B AT&T black&white
Mr. Smith and Mrs. Jones in St. Louis, Washington D.C., in the U.S. today
a T.V. set at 5 p.m. today, 5:30pm, 5:30 p.m. and 12:30
man vs. machine, etc. on a table near Mt. Everest
street.The dog at www.example.com or example.com
a*b a+b a=b a;b a:b a|b
<person> here
it’s a dog’s life, don’t “quote” it
café résumé naïve ½ cup
ma'am c'mon y'all go get 'em
a two-year-old's toy
6 ft. tall, 5' tall, 5'6" tall
the letter "P." and plan B. here
I'd've couldn't've
slip n'slide, rock n' roll
100° and 20 °C
A dog. A cat ! A bird , a fish ; a horse : five
Domino 's Pizza , a woman 's neck
""".splitlines()


def main() -> None:
    samples = range(len(CAPTIONS))
    predictions = {i: [{"caption": CAPTIONS[i][0]}] for i in samples}
    references = {i: [{"caption": text} for text in CAPTIONS[i][1]] for i in samples}
    tokenizer = PTBTokenizer()
    candidates, truths = tokenizer.tokenize(predictions), tokenizer.tokenize(references)
    cider, each_cider = Cider().compute_score(truths, candidates)
    bleu, _ = Bleu().compute_score(truths, candidates, verbose=0)
    rouge, each_rouge = Rouge().compute_score(truths, candidates)
    meteor, _ = Meteor().compute_score(truths, candidates)
    texts = tokenizer.tokenize({i: [{"caption": text}] for i, text in enumerate(TEXTS)})
    record = {
        "predictions": [prediction for prediction, _ in CAPTIONS],
        "references": [texts for _, texts in CAPTIONS],
        "tokenized_predictions": [candidates[i][0] for i in samples],
        "tokenized_references": [truths[i] for i in samples],
        "cider": cider,
        "each_cider": list(each_cider),
        "bleu": bleu,
        "rouge_l": rouge,
        "each_rouge_l": list(each_rouge),
        "meteor": meteor,
        "texts": TEXTS,
        "tokenized_texts": [texts[i][0] for i in range(len(TEXTS))],
    }
    path = Path(__file__).parent / "captions_coco.json"
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
