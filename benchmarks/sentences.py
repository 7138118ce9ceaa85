"""Sentences of mixed length for the benchmarks, written for this project: most are short, a few fill a paragraph."""

import numpy as np

#: The smallest and the largest length in tokens of BERT's English vocabulary, with the special ones.
SHORTEST, LONGEST = 5, 120
PIECES = """
the parcel was left in the rain behind the green gate
my invoice shows the same amount twice and nobody answers
how do I change the address of my account
the screen goes black after the last update
a short walk along the harbour before the shops open
she repaired the old bicycle with a spoon and some patience
the committee postponed its decision until the spring
water boils at a lower temperature in the mountains
the train to the coast was late again and full of students
he could not remember where he had put the red notebook
prices of wheat fell for the third week in a row
the battery lasts two days if the radio is switched off
our neighbours keep bees and sell the honey in small jars
a new library opened in the old tobacco factory
the results of the second experiment contradict the first one
please send me a copy of the contract before Friday
the museum shows drawings that were thought to be lost
nobody had expected the bridge to hold so long
the recipe asks for lemons, butter and a pinch of salt
the team scored twice in the last five minutes
an error message appears when I enter the code from the letter
the doctor advised her to sleep more and to drink less coffee
the river has not been this low for forty years
they painted the kitchen yellow because it faces north
the first chapter explains why the author left the city
engineers replaced the pump without stopping the mill
the refund arrived, though smaller than it should have been
a fox crossed the empty car park at dawn
the lecture on tides was better than its title
we counted eleven kinds of moss on a single wall
the warranty does not cover damage by salt water
a letter of complaint is best written the next morning
""".strip().splitlines()


def sentences(count: int, seed: int = 0) -> list[str]:
    """`count` texts decided by `seed`; their lengths are lognormal with a median of 22, as in mixed data."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        tokens = float(np.clip(random.lognormal(np.log(22), 0.75), SHORTEST, LONGEST))
        # Nearly every word is one token, and a text has two special ones.
        wanted = max(3, round((tokens - 2) / 1.06))
        words: list[str] = []
        while len(words) < wanted:
            words += [*str(random.choice(PIECES)).split(), "and" if random.random() < 0.5 else "while"]
        found.append(" ".join(words[:wanted]))
    return found
