"""Headlines made from lists of names and events: the news that textbooks and glosses lack."""

import random

WORDS = {
    "country": "Russia Ukraine China Japan Iran Iraq Syria Egypt Israel Turkey India Pakistan Afghanistan "
    "Germany France Britain Spain Italy Greece Portugal Ireland Poland Sweden Norway Denmark Finland "
    "Austria Switzerland Hungary Romania Bulgaria Serbia Croatia Bosnia Georgia Armenia Belarus Cyprus "
    "Lebanon Jordan Libya Tunisia Algeria Morocco Sudan Nigeria Kenya Somalia Mali Ghana Ethiopia Uganda "
    "Zimbabwe Mexico Brazil Argentina Chile Peru Colombia Venezuela Cuba Canada Australia Indonesia "
    "Malaysia Thailand Vietnam Philippines Myanmar Bangladesh Nepal Taiwan Yemen Qatar Kuwait",
    "city": "Moscow Kiev Beijing Shanghai Tokyo Tehran Baghdad Damascus Cairo Jerusalem Gaza Istanbul "
    "Mumbai Delhi Karachi Islamabad Kabul Berlin Paris London Madrid Barcelona Rome Athens Lisbon Dublin "
    "Warsaw Stockholm Oslo Vienna Geneva Brussels Amsterdam Budapest Washington Boston Chicago Texas "
    "California Florida Toronto Sydney Melbourne Bangkok Manila Jakarta Nairobi Lagos Tripoli Aleppo Homs",
    "people": "Russian Chinese Japanese Iranian Iraqi Syrian Egyptian Israeli Palestinian Turkish Indian "
    "Pakistani Afghan German French British Spanish Italian Greek American Canadian Australian Mexican "
    "Brazilian African European Korean Ukrainian Polish Swiss Saudi Libyan Lebanese Thai",
    "leader": "Obama Putin Merkel Cameron Hollande Kerry Clinton Bush Assad Erdogan Netanyahu Modi Mandela "
    "Morsi Mubarak Snowden Romney Biden Blair Berlusconi Karzai Abbas Ban Gandhi Chavez Castro Thatcher",
    "who": "president minister premier government parliament court police army rebels troops protesters "
    "militants lawmakers senators officials judge prosecutor opposition union scientists doctors bank "
    "company investors regulators pope king prince bishop mayor governor activists journalists students",
    "group": "UN EU NATO IMF Apple Google Microsoft Facebook Samsung Sony Toyota Boeing BP Taliban Hamas "
    "Hezbollah Congress Senate FBI CIA NSA Pentagon Vatican Kremlin Fed ECB Airbus Nokia Amazon Twitter",
    "said": "says warns urges denies confirms admits claims announces tells asks promises threatens",
    "did": "rejects backs approves signs opposes welcomes blocks delays seeks plans votes accepts wins "
    "loses faces defends criticises condemns cancels launches cuts raises",
    "thing": "talks deal treaty sanctions ceasefire election vote referendum budget bailout loan reform law "
    "ban report inquiry trial appeal verdict protest strike attack raid offer merger lawsuit plan aid "
    "nuclear-programme missile-test peace-plan gun-control health-care tax-increase debt-limit summit",
    "event": "bombing blast shooting explosion earthquake flood storm fire crash landslide clash attack "
    "airstrike ambush riot stampede avalanche hurricane typhoon tornado accident collision",
    "hit": "killed dead injured wounded missing arrested rescued evacuated feared-dead",
    "market": "stocks shares oil gold profits sales exports prices jobs unemployment growth inflation yen "
    "euro dollar",
    "moved": "rise fall jump drop surge slip climb tumble gain slump rebound edge-up edge-down",
    "amount": "two three four five six seven eight nine 10 12 15 20 24 30 40 50 60 100 dozens hundreds",
    "vehicle": "bus train plane ferry helicopter truck boat ship car tanker",
    "fate": "dies resigns retires quits arrested jailed freed charged sentenced re-elected honoured ill",
}
SHAPES = (
    "{amount} {hit} in {city} {event}",
    "{amount} {hit} in {country} {event}",
    "{event} in {country} leaves {amount} {hit}",
    "At least {amount} {hit} as {vehicle} {event} hits {city}",
    "{vehicle} crash in {country} kills {amount}",
    "{country} {said} {country} over {thing}",
    "{country} {did} {thing} with {country}",
    "{people} {who} {did} {thing}",
    "{people} {who} {said} {thing} with {group} is possible",
    "{leader} {said} {country} {thing} must go on",
    "{leader} {did} {thing} in {city}",
    "{leader}, {leader} meet for {thing} in {city}",
    "{people} {market} {moved} on {thing} hopes",
    "{market} {moved} as {country} {thing} nears",
    "{group} {did} {thing}",
    "{group} {said} {market} will {moved} next year",
    "Former {people} president {leader} {fate}",
    "{people} {who} {fate} after {thing}",
    "{who} and {who} clash in {city}",
    "The {who} said the {market} would {moved} by {amount} percent.",
    "{leader} told reporters in {city} that the {thing} had been approved by the {who}.",
    "The {people} company said {market} {moved} {amount} percent in the quarter.",
)


def headlines(pairs: int, seed: int) -> list[str]:
    """Pairs of headlines that share most of their words, side by side."""
    rng = random.Random(seed)
    lists = {name: [w.replace("-", " ") for w in words.split()] for name, words in WORDS.items()}
    texts = []
    for _ in range(pairs):
        slots = {name: rng.choice(words) for name, words in lists.items()}
        other = dict(slots)
        first = rng.choice(SHAPES)
        used = [name for name in lists if "{" + name + "}" in first]
        for name in rng.sample(used, min(len(used), rng.choice((1, 1, 1, 2)))):
            other[name] = rng.choice(lists[name])
        second = first if rng.random() < 0.5 else rng.choice(SHAPES)
        for shape, words in ((first, slots), (second, other)):
            text = shape.format(**words)
            texts.append(text[0].upper() + text[1:])
    return texts
