"""Answers and questions as people write them in forums, made from lists: what textbooks lack.

Such sentences share most of their words ("It depends on ...") and mean different things; the teacher
knows that, and a student that never saw them takes them for alike.
"""

import random

WORDS = {
    "hedge": "I think|I believe|In my opinion,|As far as I know,|To be honest,|Generally,|In general,|Usually,|In "
    "my experience,|Personally,|Sadly,|Yes,|No,|Well,|Maybe|Of course,|Actually,|It seems that|I guess|Sure,|"
    "Strictly speaking,|If I remember correctly,|For what it's worth,|Technically,",
    "do": "use a different tool|ask your teacher|read the manual|pay the bill in advance|cook it slowly|write to "
    "the author|apply for a visa|wash it in cold water|sand the wood first|replace the battery|call a plumber|take "
    "the dog to the vet|feed the cat twice a day|practise every day|learn the chords|install the update|restart "
    "the server|write a test|back up your files|change the password|publish the paper|cite the source|talk to "
    "your supervisor|quit your job|ask for a raise|pay off the loan|open a bank account|invest in bonds|book a "
    "hotel|rent a car|carry your passport|change trains|bring your own food|chop the onions|boil the pasta|add "
    "more salt|freeze the soup|bake the bread again|water the plants|prune the roses|move the furniture|paint the "
    "ceiling|fix the leak|drill a hole|turn off the power|oil the chain|pump up the tyres|wear a helmet|shoot in "
    "raw|buy a better lens|use a tripod|lower the volume|tune the guitar|say it out loud|omit the comma|use the "
    "plural|write it as one word|translate it literally|skip this level|start a new game|trust the other player|"
    "let the baby cry|talk to your child|read a story at bedtime|see a doctor|drink more water|sleep on it|run "
    "slowly|stretch before you start|lift heavier weights|wait a few days|contact the seller|return it to the "
    "shop|check the warranty|sell the house|sign the contract|hire a lawyer|tell the truth|apologise to her|"
    "explain it in detail|give an example|ignore the comment|delete the question|accept the answer|search the "
    "archive|draw a diagram|measure it twice|compare the prices|test it in a small spot|mix the two|leave it "
    "alone|do it yourself|ask for help|do both|do nothing",
    "what": "the answer|the question|your problem|this word|that sentence|the paint|the wall|the floor|the sink|"
    "the dog|my cat|the baby|a good book|the contract|the rent|the visa|the airport|the ticket|the sauce|the dough|"
    "the chicken|fresh garlic|the oven|the recipe|the guitar|the melody|the lens|the camera|the picture|the file|"
    "the password|the error message|the code|the database|the paper|the thesis|the reviewer|the job|the "
    "interview|your boss|the salary|the loan|the tax|the account|the bike|the brake|the engine|the tyre|the "
    "garden|the soil|the plant|the game|the rule|the player|the character|the ending|the translation|the grammar|"
    "the comma|the difference|the reason|the price|the quality|the risk|the law|the evidence|the theory|the "
    "experiment|the number|the result|the first one|the second one|everything else|anything like that|nothing of "
    "the sort|either of them|neither of them|all of this|the whole thing|your idea|her reaction|the other side",
    "how": "good|bad|fine|hard|easy|possible|impossible|legal|illegal|safe|dangerous|expensive|cheap|wrong|right|"
    "common|rare|useful|useless|necessary|normal|strange|rude|polite|healthy|important|correct|enough|too late|"
    "better|worse|worth it|allowed|clear|complicated|the same|different|broken|perfect",
    "which": "what you need|what you mean|what you are trying to do|how much time you have|how much you can spend|"
    "where you live|who is asking|whether it rains|how old it is|why it broke|which version you have|what it is "
    "made of|when it was built|how often you use it|how you look at it|what others think|who pays for it|how far "
    "you go|what the rules say|why you want it|what happened next|how big it is|where it came from|who wrote it|"
    "whether it works|how it tastes|what it sounds like|which country you are in|what you already know|how cold "
    "it gets",
    "number": "two|three|several|many|a few|a lot of|some|countless|only two|at least three",
    "time": "every day|once a week|right now|after a month|before you begin|in the evening|in advance|at the end|"
    "from time to time|all the time|as soon as possible|for a year",
    "noun": "taste|opinion|time|money|luck|practice|habit|style|context|trust|safety|principle",
}
SHAPES = (
    "{hedge} {what} is {how}.",
    "{hedge} {what} is not {how}.",
    "{hedge} it is {how} to {do}.",
    "{hedge} you should {do}.",
    "{hedge} you can {do} {time}.",
    "You can {do}.",
    "You could {do} or {do2}.",
    "You should {do} and {do2}.",
    "You should not {do}.",
    "You don't need to {do}.",
    "You have to {do} {time}.",
    "Do not {do}.",
    "Just {do}.",
    "I would {do}.",
    "I would never {do}.",
    "I usually {do} {time}.",
    "I tried to {do}, but {what} is {how}.",
    "Try to {do}.",
    "It is {how} to {do}.",
    "It is not {how} to {do}.",
    "It's up to you whether you {do}.",
    "It depends on {which}.",
    "It depends on {which} and {which2}.",
    "That depends on {what}.",
    "A lot depends on {which}.",
    "Can I {do}?",
    "How do I {do}?",
    "How often should I {do}?",
    "Should I {do} or {do2}?",
    "What happens if I {do}?",
    "Why do people {do}?",
    "Is it {how} to {do}?",
    "Is {what} {how}?",
    "What is {what}, and {which}?",
    "There are {number} ways to {do}.",
    "There are {number} things to say about {what}.",
    "There are {number} reasons why {what} is {how}.",
    "There is no need to {do}.",
    "There is no way to {do}.",
    "There is nothing {how} about {what}.",
    "There's a difference between {what} and {what2}.",
    "The best way to {do} is to {do2}.",
    "The easiest thing is to {do}.",
    "The answer is {how}.",
    "The problem is {what}.",
    "The problem is not {what}, but {what2}.",
    "I have the same problem with {what}.",
    "I don't know {which}.",
    "I don't know anything about {what}.",
    "I don't think you should {do}.",
    "I don't think that {what} is {how}.",
    "I'm not sure {which}.",
    "It's hard to say {which} without seeing {what}.",
    "If you {do}, {what} will be {how}.",
    "If {what} is {how}, {do}.",
    "As others have said, {what} is {how}.",
    "My advice is to {do}.",
    "Your best option is to {do}.",
    "It sounds like {what} is {how}.",
    "Have you tried to {do}?",
    "Nobody will {do} for you.",
    "Let me know {which}.",
    "This is a matter of {noun}.",
    "This is a matter of {noun}, not of {noun2}.",
    "What you call {what} is {how}.",
    "The question is {which}.",
    "Tell us {which}.",
    "{what} or {what2}: both are {how}.",
    "{what} is as {how} as {what2}.",
    "Neither {what} nor {what2} is {how}.",
)


def answers(pairs: int, seed: int) -> list[str]:
    """Pairs of sentences that share some of their words, side by side."""
    rng = random.Random(seed)
    lists = {name: words.split("|") for name, words in WORDS.items()}
    lists |= {f"{name}2": lists[name] for name in ("do", "what", "which", "noun")}
    texts = []
    for _ in range(pairs):
        slots = {name: rng.choice(words) for name, words in lists.items()}
        first = rng.choice(SHAPES)
        used = [name for name in lists if "{" + name + "}" in first]
        draw = rng.random()
        second = first if draw < 0.45 else rng.choice(SHAPES)
        other = dict(slots)
        exchanged = rng.choice((0, 1, 1, 2)) if second != first else rng.choice((1, 1, 2, 3))
        for name in rng.sample(used, min(len(used), exchanged)):
            other[name] = rng.choice(lists[name])
        for shape, words in ((first, slots), (second, other)):
            text = shape.format(**words)
            texts.append(text[0].upper() + text[1:])
    return texts
